//! What a hit of a probe costs on this kernel: measured, on code made for it.
//!
//! A few functions are written to a file in memory, mapped as code, and called with a
//! program that does nothing on an instruction of each.

use std::{
    ffi::CString,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::PathBuf,
    ptr::NonNull,
    time::Instant,
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_prog_type, perf_event_attr};

use super::sys::{self, LINK_AT_RETURN, MultiLink, TRACE_UPROBE_MULTI, TRACE_UPROBE_SESSION};
use crate::model::AttachMethod;

/// Calls in a round, and rounds, of which the quickest counts because others were
/// disturbed. With the slowest kind of hit this takes about 5 ms.
const CALLS: u32 = 100;
const ROUNDS: u32 = 4;

/// Length of the mapping, and of the room for each function in it.
const PAGE_BYTES: usize = 4096;
const FUNCTION_BYTES: u64 = 16;
/// `jmp +0; ret`, `test %rdi,%rdi; ret`, `push %rbx; pop %rbx; ret`, and the first once more: the kernel emulates a jump and a push,
/// and steps through a test. Most that is probed with its return begins with a push, which costs more; most that
/// is probed without is probed at a jump.
const FUNCTIONS: [&[u8]; 4] =
    [&[0xeb, 0, 0xc3], &[0x48, 0x85, 0xff, 0xc3], &[0x53, 0x5b, 0xc3], &[0xeb, 0, 0xc3]];
const EMULATED: u64 = 0;
const SINGLE_STEPPED: u64 = FUNCTION_BYTES;
const WITH_RETURN: u64 = 2 * FUNCTION_BYTES;
const NOT_PROBED: u64 = 3 * FUNCTION_BYTES;

/// Code of the common kind, to be disturbed by hits: it is read, and put into a tree.
const WORK: &str =
    r#"{"id":17,"name":"a name","tags":["x","yy","zzz"],"size":[1.5,2,3e2],"on":true}"#;
/// Times it is done in a round, with one hit each, and rounds.
const WORK_CALLS: u32 = 100;
const WORK_ROUNDS: u32 = 20;

/// `r0 = 0; exit` (`struct bpf_insn` in include/uapi/linux/bpf.h).
const DO_NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

/// `perf_event_open(2)`
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Nanoseconds of a call with a program that does nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCosts {
    /// Probed at a jump, which the kernel emulates.
    pub emulated_ns: f64,
    /// Probed at one that it steps through.
    pub single_stepped_ns: f64,
    /// Probed at an entry that is an emulated push, and at the return.
    pub with_return_ns: f64,
    /// By how much code of the common kind is slower behind a hit, as the kernel leaves the
    /// processor's caches and predictions in another state.
    pub aftermath_ns: f64,
}

impl HitCosts {
    /// What a call costs that is probed so.
    #[must_use]
    pub fn of_call(&self, emulated: bool, with_return: bool) -> f64 {
        let entry = if emulated { self.emulated_ns } else { self.single_stepped_ns };
        entry + if with_return { self.of_return() } else { 0.0 }
    }

    /// What its return adds.
    #[must_use]
    pub fn of_return(&self) -> f64 {
        (self.with_return_ns - self.emulated_ns).max(0.0)
    }
}

/// What hits cost by each way that this kernel has and allows.
pub struct MeasuredHits {
    costs: Vec<(AttachMethod, HitCosts)>,
    links: Vec<OwnedFd>,
}

impl MeasuredHits {
    /// Measures, in about 20 ms for each way. The probes are removed when this is dropped, which
    /// is better done when nobody waits: it takes the kernel a tenth of a second or two.
    #[must_use]
    pub fn measure() -> Self {
        let mut measured = Self { costs: Vec::new(), links: Vec::new() };
        for way in AttachMethod::ALL {
            measured.try_way(way);
        }
        measured
    }

    /// The same of one way; none if the kernel has it not.
    #[must_use]
    pub fn measure_one(way: AttachMethod) -> Option<(HitCosts, Self)> {
        let mut measured = Self { costs: Vec::new(), links: Vec::new() };
        measured.try_way(way);
        measured.costs.first().map(|(_, costs)| *costs).map(|costs| (costs, measured))
    }

    fn try_way(&mut self, way: AttachMethod) {
        match self.measure_way(way) {
            Ok(costs) => self.costs.push((way, costs)),
            Err(error) => log::debug!("no probes by {}: {error}", way.name()),
        }
    }

    fn measure_way(&mut self, way: AttachMethod) -> io::Result<HitCosts> {
        let page = CodePage::new()?;
        self.links.extend(attach(way, &page)?);
        let emulated_ns = page.ns_per_call(EMULATED);
        Ok(HitCosts {
            emulated_ns,
            single_stepped_ns: page.ns_per_call(SINGLE_STEPPED),
            with_return_ns: page.ns_per_call(WITH_RETURN),
            aftermath_ns: (page.ns_per_hit_in_work() - emulated_ns).max(0.0),
        })
    }

    /// All that was measured.
    #[must_use]
    pub fn costs(&self) -> &[(AttachMethod, HitCosts)] {
        &self.costs
    }
}

impl Drop for MeasuredHits {
    /// All at once, because for each the kernel waits until no program can be running any
    /// more, and for several it can wait at the same time.
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for link in self.links.drain(..) {
                let removal = std::thread::Builder::new().spawn_scoped(scope, move || drop(link));
                // Without a thread the link has gone with the closure.
                removal.map(drop).unwrap_or_else(|error| log::debug!("no thread: {error}"));
            }
        });
    }
}

/// Probes all functions of the page, the last one at its return as well.
fn attach(way: AttachMethod, page: &CodePage) -> io::Result<Vec<OwnedFd>> {
    let entries = [EMULATED, SINGLE_STEPPED];
    let link = |attach_type, flags, offsets: &[u64]| {
        link_uprobes(&load(attach_type)?, attach_type, flags, page, offsets)
    };
    match way {
        AttachMethod::PerfEvent => {
            let program = load(0)?;
            let event =
                |at_return, offset| link_event(&program, &perf_event(at_return, page, offset)?);
            // The return first: an entry that is seen must find its return probed.
            Ok(vec![
                event(true, WITH_RETURN)?,
                event(false, WITH_RETURN)?,
                event(false, EMULATED)?,
                event(false, SINGLE_STEPPED)?,
            ])
        }
        AttachMethod::Multi => Ok(vec![
            link(TRACE_UPROBE_MULTI, LINK_AT_RETURN, &[WITH_RETURN])?,
            link(TRACE_UPROBE_MULTI, 0, &[EMULATED, SINGLE_STEPPED, WITH_RETURN])?,
        ]),
        AttachMethod::Session => Ok(vec![
            link(TRACE_UPROBE_SESSION, 0, &[WITH_RETURN])?,
            link(TRACE_UPROBE_MULTI, 0, &entries)?,
        ]),
    }
}

/// A probe as a perf event (`perf_uprobe_init` in kernel/events/core.c), of this thread.
fn perf_event(at_return: bool, page: &CodePage, file_offset: u64) -> io::Result<OwnedFd> {
    let event_type = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let path = CString::new(page.path().into_os_string().into_vec())?;
    // SAFETY: all its members are plain integers, for which 0 is a value.
    let mut attributes: perf_event_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<perf_event_attr>() as u32;
    attributes.type_ = event_type.trim().parse().map_err(io::Error::other)?;
    attributes.config = at_return.into();
    attributes.__bindgen_anon_3.uprobe_path = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.probe_offset = file_offset;
    // SAFETY: the attributes and the path live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            0,
            -1,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    sys::descriptor(result)
}

/// Has a program run when an event happens.
fn link_event(program: &OwnedFd, event: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attributes = sys::empty();
    // SAFETY: variants of plain integers.
    unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
        create.__bindgen_anon_2.target_fd = event.as_raw_fd().cast_unsigned();
        create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
    }
    sys::bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

/// Loads the program that does nothing.
fn load(attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = sys::empty();
    // SAFETY: a variant of plain integers.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = attach_type;
    load.insns = DO_NOTHING.as_ptr() as u64;
    load.insn_cnt = DO_NOTHING.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    sys::bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)
}

fn link_uprobes(
    program: &OwnedFd,
    attach_type: u32,
    flags: u32,
    page: &CodePage,
    offsets: &[u64],
) -> io::Result<OwnedFd> {
    sys::link_uprobes(&MultiLink {
        program: program.as_fd(),
        attach_type,
        path: &page.path(),
        file_offsets: offsets,
        cookies: &vec![0; offsets.len()],
        pid: std::process::id(),
        flags,
    })
}

/// The functions, in memory that can be executed and in a file that can be probed.
struct CodePage {
    file: OwnedFd,
    start: NonNull<u8>,
}

impl CodePage {
    fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"memscope-probed", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        let mut bytes = [0_u8; PAGE_BYTES];
        for (room, code) in bytes.chunks_exact_mut(FUNCTION_BYTES as usize).zip(FUNCTIONS) {
            for (place, byte) in room.iter_mut().zip(code) {
                *place = *byte;
            }
        }
        file.write_all(&bytes)?;
        let file = OwnedFd::from(file);
        // Private, because the kernel puts no breakpoint into a shared mapping.
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        let start = NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED);
        let start = start.ok_or_else(io::Error::last_os_error)?;
        Ok(Self { file, start })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    fn function(&self, offset: u64) -> extern "C" fn() {
        // SAFETY: one of the functions that were written there: it takes nothing, gives nothing
        // and leaves the registers as the calling convention wants them.
        unsafe { std::mem::transmute(self.start.as_ptr().add(offset as usize)) }
    }

    /// What a hit adds to work that it is in the midst of. The medians of rounds that alternate
    /// are compared, as the work itself is not equally quick each time.
    fn ns_per_hit_in_work(&self) -> f64 {
        let round = |function: extern "C" fn()| {
            let begun = Instant::now();
            for _ in 0..WORK_CALLS {
                function();
                let tree: Result<serde_json::Value, _> =
                    serde_json::from_str(std::hint::black_box(WORK));
                drop(std::hint::black_box(tree));
            }
            begun.elapsed().as_nanos() as f64 / f64::from(WORK_CALLS)
        };
        let (hit, not_hit) = (self.function(EMULATED), self.function(NOT_PROBED));
        let (mut with, mut without): (Vec<f64>, Vec<f64>) =
            (0..WORK_ROUNDS).map(|_| (round(hit), round(not_hit))).unzip();
        median(&mut with) - median(&mut without)
    }

    /// The quickest round of calls of the function there.
    fn ns_per_call(&self, offset: u64) -> f64 {
        let function = self.function(offset);
        let round = || {
            let begun = Instant::now();
            for _ in 0..CALLS {
                function();
            }
            begun.elapsed().as_nanos() as f64 / f64::from(CALLS)
        };
        (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Drop for CodePage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and no call into it is under way.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), PAGE_BYTES) } != 0 {
            log::debug!("a page of code stays mapped: {}", io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_run_where_they_are_mapped() {
        let page = CodePage::new().unwrap();
        for offset in [EMULATED, SINGLE_STEPPED, WITH_RETURN] {
            let ns = page.ns_per_call(offset);
            assert!(ns > 0.0 && ns < 10_000.0, "{ns}");
        }
    }

    #[test]
    fn what_a_call_costs_follows_from_its_hits() {
        let costs = HitCosts {
            emulated_ns: 600.0,
            single_stepped_ns: 9000.0,
            with_return_ns: 900.0,
            aftermath_ns: 100.0,
        };
        assert_eq!(costs.of_call(true, false), 600.0);
        assert_eq!(costs.of_call(true, true), 900.0);
        assert_eq!(costs.of_call(false, true), 9300.0);
        let noisy = HitCosts { with_return_ns: 500.0, ..costs };
        assert_eq!(noisy.of_call(true, true), 600.0);
    }
}
