//! bpf(2) for what aya does not know yet: programs with an attach type of their own, and
//! links of many uprobes at once.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

use aya_obj::{
    Function,
    generated::{bpf_attr, bpf_attr__bindgen_ty_4, bpf_cmd, bpf_insn, bpf_prog_type},
};

/// `BPF_F_UPROBE_MULTI_RETURN`: the program runs at the function's return.
pub(super) const LINK_AT_RETURN: u32 = 1;
/// `enum bpf_attach_type`: a tracepoint, whose arguments have types.
pub(super) const TRACE_RAW_TRACEPOINT: u32 = 23;
/// The same: the entry of a function of the kernel.
pub(super) const TRACE_ENTRY: u32 = 24;
/// The same: its return.
pub(super) const TRACE_EXIT: u32 = 25;
/// `enum bpf_attach_type`: many uprobes by one link (Linux 6.6).
pub(super) const TRACE_UPROBE_MULTI: u32 = 48;
/// The same, running at entry and return (Linux 6.13).
pub(super) const TRACE_UPROBE_SESSION: u32 = 57;
/// Bytes of the verifier's words that are kept of a refusal, from their end.
const MAX_LOG_BYTES: usize = 4096;
/// Room for all it says, which the kernel limits itself.
const LOG_ROOM_BYTES: u32 = 1 << 22;

/// `MEMBARRIER_CMD_GLOBAL` (include/uapi/linux/membarrier.h)
const MEMBARRIER_GLOBAL: libc::c_int = 1;
/// No program takes so long unless its task is kept from running.
const LIKELY_ENDED: Duration = Duration::from_millis(20);

/// A program to be loaded.
pub(super) struct RawProgram<'a> {
    pub(super) name: &'static str,
    pub(super) function: &'a Function,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) runs_at: RunsAt,
    pub(super) license: &'a CStr,
    pub(super) btf: BorrowedFd<'a>,
}

/// What a program is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum RunsAt {
    /// Uprobes, by one of the kernel's `enum bpf_attach_type`.
    Probes(u32),
    /// A tracepoint or a function of the kernel, by an `enum bpf_attach_type` and the number of
    /// its type there.
    Kernel { attach_type: u32, number: u32 },
}

/// Many probes of one program in one file.
pub(super) struct MultiLink<'a> {
    pub(super) program: BorrowedFd<'a>,
    pub(super) attach_type: u32,
    pub(super) path: &'a Path,
    pub(super) file_offsets: &'a [u64],
    /// One for each offset.
    pub(super) cookies: &'a [u64],
    pub(super) pid: u32,
    pub(super) flags: u32,
}

/// Attributes to be filled in.
pub(super) fn empty() -> bpf_attr {
    // SAFETY: all its variants are plain integers, for which 0 is a value.
    unsafe { std::mem::zeroed() }
}

/// Calls a command that gives a descriptor. What the attributes point to must be alive.
pub(super) fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the callers keep what the attributes point to alive through the call, and the
    // kernel reads as many bytes as are told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attributes,
            size_of::<bpf_attr>(),
        )
    };
    descriptor(result)
}

/// What a system call has given that gives a descriptor.
pub(super) fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(result).ok().filter(|descriptor| *descriptor >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Brings type information into the kernel.
pub(super) fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = empty();
    // SAFETY: a variant of plain integers.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes)
}

/// Loads a program; the error has the end of what the verifier says.
pub(super) fn load_program(program: &RawProgram<'_>) -> io::Result<OwnedFd> {
    let function = program.function;
    let (functions, lines) =
        (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    let mut attributes = empty();
    // SAFETY: a variant of plain integers.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    match program.runs_at {
        RunsAt::Probes(attach_type) => {
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
            load.expected_attach_type = attach_type;
        }
        RunsAt::Kernel { attach_type, number } => {
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
            load.expected_attach_type = attach_type;
            load.attach_btf_id = number;
        }
    }
    load.insns = program.instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(program.instructions.len()).map_err(io::Error::other)?;
    load.license = program.license.as_ptr() as u64;
    load.prog_btf_fd = program.btf.as_raw_fd().cast_unsigned();
    load.func_info = functions.as_ptr() as u64;
    load.func_info_cnt = function.func_info.num_info;
    load.func_info_rec_size = function.func_info_rec_size as u32;
    load.line_info = lines.as_ptr() as u64;
    load.line_info_cnt = function.line_info.num_info;
    load.line_info_rec_size = function.line_info_rec_size as u32;
    // The kernel keeps 15 bytes of a name, and a zero.
    let name_places = load.prog_name.len() - 1;
    for (place, byte) in load.prog_name.iter_mut().take(name_places).zip(program.name.bytes()) {
        *place = byte.cast_signed();
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)
        .map_err(|refused| with_log(&mut attributes, refused))
}

/// Asks once more, for the verifier's reasons.
fn with_log(attributes: &mut bpf_attr, refused: io::Error) -> io::Error {
    let mut log = vec![0_u8; LOG_ROOM_BYTES as usize];
    // SAFETY: the variant that was filled in.
    let load: &mut bpf_attr__bindgen_ty_4 = unsafe { &mut attributes.__bindgen_anon_3 };
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = LOG_ROOM_BYTES;
    if bpf(bpf_cmd::BPF_PROG_LOAD, attributes).is_ok() {
        return refused;
    }
    let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let end = log.get(length.saturating_sub(MAX_LOG_BYTES)..length).unwrap_or_default();
    let end = String::from_utf8_lossy(end);
    match end.trim() {
        // It was refused before the verifier had looked at it.
        "" => refused,
        end => io::Error::new(refused.kind(), format!("{refused}: {end}")),
    }
}

/// Attaches a program to what it was loaded for in the kernel.
pub(super) fn link_to_kernel(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = empty();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes)
}

/// Attaches a program to many instructions of a file, in one process.
pub(super) fn link_uprobes(link: &MultiLink<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(link.path.as_os_str().as_bytes())?;
    let mut attributes = empty();
    // SAFETY: variants of plain integers.
    unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = link.program.as_raw_fd().cast_unsigned();
        create.attach_type = link.attach_type;
        let many = &mut create.__bindgen_anon_3.uprobe_multi;
        many.path = path.as_ptr() as u64;
        many.offsets = link.file_offsets.as_ptr() as u64;
        many.cookies = link.cookies.as_ptr() as u64;
        many.cnt = link.file_offsets.len().min(link.cookies.len()) as u32;
        many.flags = link.flags;
        many.pid = link.pid;
    }
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

/// Programs run between two quiescent states of their processor (RCU; `__bpf_trace_run` and `bpf_prog_run_array_uprobe`),
/// and this waits until each has come to one (`membarrier_global`, kernel/sched/membarrier.c): those that run now have
/// ended then.
pub(super) fn wait_for_programs() {
    // SAFETY: the call takes three numbers, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels whose processors can do without a clock's tick refuse.
        std::thread::sleep(LIKELY_ENDED);
    }
}
