//! The price that nothing on this kernel can go below: programs that do nothing, on
//! the instructions that memscope probes.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// `r0 = 0; exit`, as `struct bpf_insn` (include/uapi/linux/bpf.h).
const DO_NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `_IOW('$', 8, __u32)` and `_IO('$', 0)` (include/uapi/linux/perf_event.h).
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// First part of `union bpf_attr` for `BPF_PROG_LOAD`; the rest is zero.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER1`.
#[repr(C)]
struct EventAttributes {
    event_type: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    /// Path of the probed file.
    path: u64,
    /// Offset of the instruction.
    file_offset: u64,
}
const _: () = assert!(size_of::<EventAttributes>() == 72);

/// Probes that do nothing; dropping it removes them.
#[derive(Debug)]
pub struct Floor {
    _program: OwnedFd,
    _events: Vec<OwnedFd>,
}

/// One instruction of a file.
#[derive(Clone, Debug)]
pub struct FloorProbe {
    /// Where it is.
    pub file_offset: u64,
    /// Whether the probe is to fire at the return of the function.
    pub at_return: bool,
}

impl Floor {
    /// Attaches to a process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach(pid: u32, file: &Path, probes: &[FloorProbe]) -> io::Result<Self> {
        let program = load()?;
        let event_type = number_in("/sys/bus/event_source/devices/uprobe/type")?;
        // "config:0"
        let return_bit: u64 = number_in("/sys/bus/event_source/devices/uprobe/format/retprobe")?;
        let path = CString::new(file.as_os_str().as_encoded_bytes())?;
        let mut events = Vec::new();
        for probe in probes {
            let attributes = EventAttributes {
                event_type: event_type as u32,
                size: size_of::<EventAttributes>() as u32,
                config: u64::from(probe.at_return) << return_bit,
                sample_period: 0,
                sample_type: 0,
                read_format: 0,
                flags: 0,
                wakeup_events: 0,
                breakpoint_type: 0,
                path: path.as_ptr() as u64,
                file_offset: probe.file_offset,
            };
            events.push(open_event(&attributes, pid, &program)?);
        }
        Ok(Self { _program: program, _events: events })
    }
}

fn number_in(path: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let digits = text.trim().rsplit(':').next().unwrap_or_default().to_owned();
    digits.parse().map_err(|error| io::Error::other(format!("{path}: {error}")))
}

fn load() -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: DO_NOTHING.len() as u32,
        instructions: DO_NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes and what they point to live through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<ProgramLoad>())
    };
    descriptor(result)
}

fn open_event(attributes: &EventAttributes, pid: u32, program: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the attributes and the path they point to live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const *attributes,
            pid,
            -1,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let event = descriptor(result)?;
    for (request, argument) in
        [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)]
    {
        // SAFETY: both requests take an integer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from(File::from_raw_fd(result as i32)) })
}
