//! The programs that probes run, loaded for the way by which they are attached.
//!
//! aya loads uprobe programs for perf events only. The same object is taken here once more,
//! its programs are made to use the maps that aya has made, and the kernel is told that they
//! are for uprobe_multi links. Those of tracepoints are loaded here too, as aya would read all
//! types of the kernel for it.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, generated::bpf_insn};
use memscope_common::control::SESSION_IS_RETURN;

use super::{
    KernelError,
    attached::Attached,
    beside,
    load::causes,
    sys::{
        self, LINK_AT_RETURN, MultiLink, RawProgram, RunsAt, TRACE_ENTRY, TRACE_EXIT,
        TRACE_RAW_TRACEPOINT, TRACE_UPROBE_MULTI, TRACE_UPROBE_SESSION,
    },
    types::{KernelTypes, Kind},
};
use crate::model::{AttachMethod, MappingMethod};

/// Entry and return of malloc and its like in one.
pub(super) const SESSION: &str = "allocation_session";
/// Entry of malloc and its like.
pub(super) const ENTRY: &str = "allocation_entered";
/// Return of malloc and its like.
pub(super) const RETURN: &str = "allocation_returned";
/// Entry of free and its like.
pub(super) const FREE: &str = "free_entered";
/// Entry of operator new and its like.
pub(super) const THROWING: &str = "throwing_entered";
/// An instruction by which these return.
pub(super) const EXIT: &str = "throwing_exited";
/// Entry of what makes exceptions.
pub(super) const THROW: &str = "exception_thrown";
/// Entry of what handlers of exceptions call.
pub(super) const CATCH: &str = "exception_caught";
/// Entry of what the C library calls as a thread ends.
pub(super) const THREAD_END: &str = "thread_ending";
/// Entry of what the dynamic loader calls.
pub(super) const CODE_CHANGED: &str = "code_changed";

/// The kernel's function that [`SESSION_IS_RETURN`] stands for.
const IS_RETURN_FUNCTION: &str = "bpf_session_is_return";

/// Programs of tracepoints, and what these are called in the kernel's types.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("process_exec", "btf_trace_sched_process_exec"),
    ("thread_exit", "btf_trace_sched_process_exit"),
    (FORK, "btf_trace_sched_process_fork"),
];

/// Runs only if children are followed.
const FORK: &str = "process_fork";

/// Programs of single system calls, where in these they run, and what these are called in the kernel.
const SYSTEM_CALLS: [(&str, u32, &str); 5] = [
    ("memory_unmapping", TRACE_ENTRY, "__x64_sys_munmap"),
    ("memory_moving", TRACE_ENTRY, "__x64_sys_mremap"),
    ("memory_moved", TRACE_EXIT, "__x64_sys_mremap"),
    ("memory_mapped", TRACE_EXIT, "__x64_sys_mmap"),
    ("heap_resized", TRACE_EXIT, "__x64_sys_brk"),
];

/// Programs of all system calls, and what their tracepoints are called in the kernel's types.
const ALL_SYSTEM_CALLS: [(&str, &str); 2] = [
    ("system_call_entered", "btf_trace_sys_enter"),
    ("system_call_returned", "btf_trace_sys_exit"),
];

/// What programs are loaded by.
pub(super) const TYPES: [(Kind, &str); 10] = [
    (Kind::Function, IS_RETURN_FUNCTION),
    (Kind::Function, SYSTEM_CALLS[0].2),
    (Kind::Function, SYSTEM_CALLS[1].2),
    (Kind::Function, SYSTEM_CALLS[3].2),
    (Kind::Function, SYSTEM_CALLS[4].2),
    (Kind::Typedef, TRACEPOINTS[0].1),
    (Kind::Typedef, TRACEPOINTS[1].1),
    (Kind::Typedef, TRACEPOINTS[2].1),
    (Kind::Typedef, ALL_SYSTEM_CALLS[0].1),
    (Kind::Typedef, ALL_SYSTEM_CALLS[1].1),
];

/// Programs that are loaded once a function is to be probed that can throw: few processes have one, and to verify the first
/// takes as long as all others together.
const LOADED_LATER: [&str; 4] = [THROWING, EXIT, THROW, CATCH];

/// The object, ready to be loaded from.
pub(super) struct Prepared<'a> {
    code: Relocated,
    kernel: &'a KernelTypes<'a>,
}

/// The object's programs with the descriptors of the maps in them, which are kept open.
struct Relocated {
    object: Object,
    btf: OwnedFd,
    _maps: Vec<OwnedFd>,
}

/// Programs loaded for uprobe_multi links and for the kernel, and the links of tracepoints.
#[derive(Default)]
pub(super) struct ProbePrograms {
    programs: Vec<(&'static str, OwnedFd)>,
    /// Detached when these are dropped.
    tracepoints: Vec<OwnedFd>,
    /// What those are loaded from that are loaded later; none if there are no such ones.
    rest: Option<Relocated>,
}

/// Probes that are to run one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProbePoints {
    pub(super) file_offsets: Vec<u64>,
    pub(super) cookies: Vec<u64>,
}

impl<'a> Prepared<'a> {
    /// Takes the maps of `ebpf`, none of which may have been taken out of it yet.
    pub(super) fn new(
        mut object: Object,
        ebpf: &Ebpf,
        kernel: &'a KernelTypes<'a>,
    ) -> Result<Self, KernelError> {
        let btf = load_btf(&mut object)?;
        let maps = relocate(&mut object, ebpf)?;
        Ok(Self { code: Relocated { object, btf, _maps: maps }, kernel })
    }

    /// Keeps what is needed to load the other programs of this way of attaching.
    pub(super) fn keep_rest(self, method: AttachMethod, to: &mut ProbePrograms) {
        to.rest = (method != AttachMethod::PerfEvent).then_some(self.code);
    }

    /// Loads what this way of attaching always runs.
    pub(super) fn load(&self, method: AttachMethod) -> Result<ProbePrograms, KernelError> {
        let names: &[&'static str] = match method {
            AttachMethod::Session => &[SESSION, FREE, CODE_CHANGED, THREAD_END],
            AttachMethod::Multi => &[ENTRY, RETURN, FREE, CODE_CHANGED, THREAD_END],
            AttachMethod::PerfEvent => &[],
        };
        let load = |names: &[&'static str]| -> Result<Vec<(&'static str, OwnedFd)>, KernelError> {
            let load = |name| self.load_one(name, RunsAt::Probes(attach_type(name)));
            names.iter().map(|name| Ok((*name, load(name)?))).collect()
        };
        let (largest, others) = names.split_at(names.len().min(1));
        let (largest, others) = beside(|| load(others), || load(largest));
        let mut programs = others?;
        programs.extend(largest?);
        Ok(ProbePrograms { programs, ..ProbePrograms::default() })
    }

    /// Loads the programs of tracepoints, and attaches them.
    pub(super) fn attach_tracepoints(&self, follows: bool) -> Result<ProbePrograms, KernelError> {
        let mut attached = ProbePrograms::default();
        for (name, type_name) in TRACEPOINTS {
            if name == FORK && !follows {
                continue;
            }
            let link = self.attach_tracepoint(name, type_name, &mut attached)?;
            attached.tracepoints.push(link);
        }
        Ok(attached)
    }

    /// Loads the programs of the system calls by which processes map memory, and attaches them: in
    /// the way asked for, or in the first that the kernel takes. Not at all if nobody asks.
    pub(super) fn observe_mappings(
        &self,
        asked: Option<Option<MappingMethod>>,
        may_read_kernel: bool,
        to: &mut ProbePrograms,
        attached: &mut Attached,
    ) -> Result<Option<MappingMethod>, KernelError> {
        let Some(by) = asked else { return Ok(None) };
        let failed = |source| KernelError::SystemCalls { source: Box::new(source) };
        if by != Some(MappingMethod::Tracepoints) {
            match self.attach_functions(to) {
                Ok(links) => {
                    attached.push_lasting(Box::new(links));
                    return Ok(Some(MappingMethod::Functions));
                }
                Err(refusal) if by.is_some() => return Err(failed(refusal)),
                Err(refusal) => log::debug!("system calls: {}", causes(&refusal)),
            }
        }
        if !may_read_kernel {
            let what = "its memory may not be read, and only there it says which system call is one of 32-bit code";
            return Err(failed(KernelError::Unsupported { what }));
        }
        attached.push_lasting(Box::new(self.attach_all_calls(to).map_err(failed)?));
        Ok(Some(MappingMethod::Tracepoints))
    }

    fn attach_functions(&self, to: &mut ProbePrograms) -> Result<Vec<OwnedFd>, KernelError> {
        let links = SYSTEM_CALLS.iter().map(|(name, attach_type, function)| {
            let missing = KernelError::Unsupported { what: "it has no type of such a function" };
            let number = self.kernel.id(Kind::Function, function).ok_or(missing)?;
            self.attach_in_kernel(name, *attach_type, number, to)
        });
        links.collect()
    }

    fn attach_all_calls(&self, to: &mut ProbePrograms) -> Result<Vec<OwnedFd>, KernelError> {
        let calls = ALL_SYSTEM_CALLS.iter();
        calls.map(|(name, type_name)| self.attach_tracepoint(name, type_name, to)).collect()
    }

    fn attach_tracepoint(
        &self,
        name: &'static str,
        type_name: &str,
        to: &mut ProbePrograms,
    ) -> Result<OwnedFd, KernelError> {
        let missing = KernelError::Unsupported { what: "it has no type of a tracepoint" };
        let number = self.kernel.id(Kind::Typedef, type_name).ok_or(missing)?;
        self.attach_in_kernel(name, TRACE_RAW_TRACEPOINT, number, to)
    }

    fn attach_in_kernel(
        &self,
        name: &'static str,
        attach_type: u32,
        number: u32,
        to: &mut ProbePrograms,
    ) -> Result<OwnedFd, KernelError> {
        let program = self.load_one(name, RunsAt::Kernel { attach_type, number })?;
        let link = sys::link_to_kernel(program.as_fd())
            .map_err(|source| KernelError::ProbeProgram { program: name, source })?;
        to.programs.push((name, program));
        Ok(link)
    }

    fn load_one(&self, name: &'static str, runs_at: RunsAt) -> Result<OwnedFd, KernelError> {
        let kernel = (name == SESSION).then_some(self.kernel);
        self.code.load_one(name, runs_at, kernel)
    }
}

impl Relocated {
    /// `kernel`: for a program that calls the kernel's function.
    fn load_one(
        &self,
        name: &'static str,
        runs_at: RunsAt,
        kernel: Option<&KernelTypes<'_>>,
    ) -> Result<OwnedFd, KernelError> {
        let missing = || KernelError::Missing { what: name };
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self.object.functions.get(&program.function_key()).ok_or_else(missing)?;
        let mut instructions = function.instructions.clone();
        if let Some(kernel) = kernel {
            name_kernel_function(&mut instructions, kernel)?;
        }
        sys::load_program(&RawProgram {
            name,
            function,
            instructions: &instructions,
            runs_at,
            license: &program.license,
            btf: self.btf.as_fd(),
        })
        .map_err(|source| KernelError::ProbeProgram { program: name, source })
    }
}

impl ProbePrograms {
    /// Takes others, and their links.
    pub(super) fn extend(&mut self, others: Self) {
        self.programs.extend(others.programs);
        self.tracepoints.extend(others.tracepoints);
    }

    /// Whether it is one of them, and loaded, if need be now.
    pub(super) fn has_loaded(&mut self, name: &str) -> Result<bool, KernelError> {
        if self.programs.iter().any(|(known, _)| *known == name) {
            return Ok(true);
        }
        let later = LOADED_LATER.iter().find(|later| **later == name);
        let Some((name, rest)) = later.zip(self.rest.as_ref()) else { return Ok(false) };
        let program = rest.load_one(name, RunsAt::Probes(attach_type(name)), None)?;
        self.programs.push((name, program));
        Ok(true)
    }

    /// Loads what is loaded later.
    pub(super) fn load_rest(&mut self) -> Result<(), KernelError> {
        LOADED_LATER.iter().try_for_each(|name| self.has_loaded(name).map(|_loaded| ()))
    }

    /// Attaches a program to these points of a file in a process, or in all.
    pub(super) fn link(
        &self,
        name: &'static str,
        file: &Path,
        pid: Option<u32>,
        points: &ProbePoints,
    ) -> io::Result<OwnedFd> {
        let program = self.programs.iter().find(|(known, _)| *known == name);
        let (_, program) = program.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        sys::link_uprobes(&MultiLink {
            program: program.as_fd(),
            attach_type: attach_type(name),
            path: file,
            file_offsets: &points.file_offsets,
            cookies: &points.cookies,
            // 0 stands for all (`bpf_uprobe_multi_link_attach`, kernel/trace/bpf_trace.c).
            pid: pid.unwrap_or(0),
            flags: if name == RETURN { LINK_AT_RETURN } else { 0 },
        })
    }

    /// All of them, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.programs.iter().map(|(name, program)| (*name, program.as_fd()))
    }
}

fn attach_type(name: &str) -> u32 {
    if name == SESSION { TRACE_UPROBE_SESSION } else { TRACE_UPROBE_MULTI }
}

fn load_btf(object: &mut Object) -> Result<OwnedFd, KernelError> {
    let missing = KernelError::Missing { what: "type information that this kernel takes" };
    let Some(features) = aya::features().btf() else { return Err(missing) };
    let btf = object
        .fixup_and_sanitize_btf(features)
        .map_err(|error| KernelError::Object(error.into()))?;
    let bytes = btf.ok_or(missing)?.to_bytes();
    sys::load_btf(&bytes)
        .map_err(|source| KernelError::ProbeProgram { program: "type information", source })
}

/// Puts descriptors of the maps into the programs, which are given, and the functions they call behind them.
fn relocate(object: &mut Object, ebpf: &Ebpf) -> Result<Vec<OwnedFd>, KernelError> {
    let mut maps: Vec<(String, RawFd, aya_obj::Map)> = Vec::new();
    let mut descriptors = Vec::new();
    for (name, map) in ebpf.maps() {
        let Some((parsed, data)) = object.maps.get(name).zip(data_of(map)) else { continue };
        let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(KernelError::Descriptor)?;
        maps.push((name.to_owned(), descriptor.as_raw_fd(), parsed.clone()));
        descriptors.push(descriptor);
    }
    let code: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let failed =
        |error: aya_obj::relocation::EbpfRelocationError| KernelError::Object(error.into());
    object
        .relocate_maps(maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)), &code)
        .map_err(failed)?;
    object.relocate_calls(&code).map_err(failed)?;
    object.sanitize_functions(aya::features());
    Ok(descriptors)
}

/// The kinds of map that the object has.
fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data)
        | Map::Unsupported(data) => Some(data),
        _ => None,
    }
}

/// Makes calls of the kernel's function out of the calls that stand for them.
fn name_kernel_function(
    instructions: &mut [bpf_insn],
    kernel: &KernelTypes<'_>,
) -> Result<(), KernelError> {
    /// `BPF_JMP | BPF_CALL`
    const CALL: u8 = 0x85;
    /// `BPF_PSEUDO_KFUNC_CALL`
    const KERNEL_FUNCTION: u8 = 2;
    let missing = KernelError::Unsupported { what: "it has no uprobe sessions (Linux 6.13)" };
    let number = kernel
        .id(Kind::Function, IS_RETURN_FUNCTION)
        .and_then(|number| i32::try_from(number).ok())
        .ok_or(missing)?;
    for instruction in instructions {
        if instruction.code == CALL && instruction.imm == SESSION_IS_RETURN {
            instruction.set_src_reg(KERNEL_FUNCTION);
            instruction.imm = number;
        }
    }
    Ok(())
}
