//! The price that nothing on this kernel can go below: programs that do nothing, on
//! the instructions that memscope probes. And the price of the kernel's own way to walk
//! stacks, `bpf_get_stackid`, which needs frame pointers.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// `r0 = 0; exit`, as `struct bpf_insn` (include/uapi/linux/bpf.h).
const DO_NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
/// `r0 = 1; exit`: at the entry of a session, "the return is not wanted".
const WANT_NO_RETURN: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ENABLE_STATS: libc::c_long = 32;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
const BPF_STATS_RUN_TIME: u32 = 0;
const BPF_MAP_TYPE_STACK_TRACE: u32 = 7;
/// The kernel's `PERF_MAX_STACK_DEPTH`: it refuses maps for more.
const STACK_FRAMES: u32 = 127;
const STACK_IDS: u32 = 16384;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
/// `_IOW('$', 8, __u32)` and `_IO('$', 0)` (include/uapi/linux/perf_event.h).
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// First part of `union bpf_attr` for `BPF_MAP_CREATE`; the rest is zero.
#[repr(C)]
struct MapCreation {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

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
    name: [u8; 16],
    interface_index: u32,
    expected_attach_type: u32,
}
const _: () = assert!(size_of::<ProgramLoad>() == 72);

/// First part of `union bpf_attr` for `BPF_LINK_CREATE` of `uprobe_multi`; the rest is zero.
#[repr(C)]
struct MultiLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    file_offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}
const _: () = assert!(size_of::<MultiLink>() == 64);

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

/// Probes with a program of the kit; dropping it removes them.
#[derive(Debug)]
pub struct Floor {
    program: OwnedFd,
    _map: Option<OwnedFd>,
    _links: Vec<OwnedFd>,
}

/// The ways to attach many probes by one link, which take newer kernels than perf events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiProbe {
    /// At the instructions (Linux 6.6).
    Instruction,
    /// At the returns of the functions (Linux 6.6).
    Return,
    /// At the instructions and the returns, by one program (Linux 6.13).
    Session,
    /// By the same kind of program, which lets the kernel not hook the return.
    SessionWithoutReturn,
}

impl MultiProbe {
    fn attach_type(self) -> u32 {
        match self {
            MultiProbe::Instruction | MultiProbe::Return => BPF_TRACE_UPROBE_MULTI,
            MultiProbe::Session | MultiProbe::SessionWithoutReturn => BPF_TRACE_UPROBE_SESSION,
        }
    }

    fn instructions(self) -> &'static [u64] {
        match self {
            MultiProbe::SessionWithoutReturn => &WANT_NO_RETURN,
            _ => &DO_NOTHING,
        }
    }
}

/// What the probes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloorProgram {
    Nothing,
    /// `bpf_get_stackid`.
    StackId,
}

/// One instruction of a file.
#[derive(Clone, Debug)]
pub struct FloorProbe {
    /// Where it is.
    pub file_offset: u64,
    /// Whether the probe is to fire at the return of the function.
    pub at_return: bool,
}

impl FloorProbe {
    /// A probe at the return of a function of an ELF file.
    ///
    /// # Panics
    ///
    /// If the file is no ELF file or has no such function.
    #[must_use]
    pub fn at_return_of(path: &Path, function: &str) -> Self {
        let bytes = fs::read(path).expect("the program was just compiled");
        let file = object::File::parse(&*bytes).expect("it is an ELF file");
        let named = file.symbols().find(|symbol| symbol.name() == Ok(function));
        let address = named.unwrap_or_else(|| panic!("no function {function}")).address();
        let segment = file
            .segments()
            .find(|segment| {
                (segment.address()..segment.address() + segment.size()).contains(&address)
            })
            .expect("a function is in a segment");
        let file_offset = address - segment.address() + segment.file_range().0;
        Self { file_offset, at_return: true }
    }
}

/// How often the kernel ran a program and how long that took; see [`RunTimes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    pub ns: u64,
    pub runs: u64,
}

impl RunTime {
    /// As `/proc/<pid>/fdinfo/<fd>` says it of a program; none of another file.
    #[must_use]
    pub fn parse(fdinfo: &str) -> Option<Self> {
        let value = |key| {
            let mut lines = fdinfo.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
        };
        Some(Self { ns: value("run_time_ns")?, runs: value("run_cnt")? })
    }

    /// Mean of a run.
    #[must_use]
    pub fn ns_per_run(self) -> f64 {
        self.ns as f64 / self.runs.max(1) as f64
    }
}

/// While it lives, the kernel measures the run time of all programs.
#[derive(Debug)]
pub struct RunTimes(#[expect(dead_code, reason = "closing it ends the measurement")] OwnedFd);

impl RunTimes {
    /// Has the kernel begin.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn measure() -> io::Result<Self> {
        bpf(BPF_ENABLE_STATS, &BPF_STATS_RUN_TIME).map(Self)
    }
}

impl Floor {
    /// Attaches a program that does nothing to a process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach(pid: u32, file: &Path, probes: &[FloorProbe]) -> io::Result<Self> {
        Self::attach_program(FloorProgram::Nothing, pid, file, probes)
    }

    /// Attaches to a process.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach_program(
        what: FloorProgram,
        pid: u32,
        file: &Path,
        probes: &[FloorProbe],
    ) -> io::Result<Self> {
        let (program, map) = match what {
            FloorProgram::Nothing => (load(&DO_NOTHING, 0)?, None),
            FloorProgram::StackId => {
                let map = stack_map()?;
                (load(&get_stack_id(&map), 0)?, Some(map))
            }
        };
        let event_type = number_in("/sys/bus/event_source/devices/uprobe/type")?;
        // "config:0"
        let return_bit: u64 = number_in("/sys/bus/event_source/devices/uprobe/format/retprobe")?;
        let path = CString::new(file.as_os_str().as_encoded_bytes())?;
        let mut links = Vec::new();
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
            links.push(open_event(&attributes, pid, &program)?);
        }
        Ok(Self { program, _map: map, _links: links })
    }

    /// Attaches a program that does nothing to a process, at all these instructions of a file by one link.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, as those do that have no such link.
    pub fn attach_multi(
        how: MultiProbe,
        pid: u32,
        file: &Path,
        file_offsets: &[u64],
    ) -> io::Result<Self> {
        let program = load(how.instructions(), how.attach_type())?;
        let path = CString::new(file.as_os_str().as_encoded_bytes())?;
        let attributes = MultiLink {
            program: program.as_raw_fd().cast_unsigned(),
            target: 0,
            attach_type: how.attach_type(),
            flags: 0,
            path: path.as_ptr() as u64,
            file_offsets: file_offsets.as_ptr() as u64,
            reference_counters: 0,
            cookies: 0,
            count: file_offsets.len() as u32,
            multi_flags: if how == MultiProbe::Return { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
            pid,
            padding: 0,
        };
        let link = bpf(BPF_LINK_CREATE, &attributes)?;
        Ok(Self { program, _map: None, _links: vec![link] })
    }

    /// How long its program has run; 0 unless [`RunTimes`] are measured.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn run_time(&self) -> io::Result<RunTime> {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        RunTime::parse(&fs::read_to_string(path)?).ok_or_else(|| io::Error::other("no run time"))
    }
}

/// `struct bpf_insn` as a number: opcode, registers, immediate value.
const fn instruction(opcode: u8, to: u8, from: u8, value: i32) -> u64 {
    opcode as u64 | (to as u64) << 8 | (from as u64) << 12 | (value as u32 as u64) << 32
}

/// `bpf_get_stackid(ctx, map, BPF_F_USER_STACK); return 0`
fn get_stack_id(map: &OwnedFd) -> [u64; 6] {
    const LOAD_64_BITS: u8 = 0x18;
    const MOVE_VALUE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const PSEUDO_MAP_FD: u8 = 1;
    const BPF_F_USER_STACK: i32 = 1 << 8;
    const GET_STACKID: i32 = 27;
    [
        instruction(LOAD_64_BITS, 2, PSEUDO_MAP_FD, map.as_raw_fd()),
        0,
        instruction(MOVE_VALUE, 3, 0, BPF_F_USER_STACK),
        instruction(CALL, 0, 0, GET_STACKID),
        DO_NOTHING[0],
        DO_NOTHING[1],
    ]
}

fn stack_map() -> io::Result<OwnedFd> {
    let creation = MapCreation {
        map_type: BPF_MAP_TYPE_STACK_TRACE,
        key_size: 4,
        value_size: 8 * STACK_FRAMES,
        max_entries: STACK_IDS,
    };
    bpf(BPF_MAP_CREATE, &creation)
}

/// A command of bpf(2) that gives a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes, and what they point to, live through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    descriptor(result)
}

fn number_in(path: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let digits = text.trim().rsplit(':').next().unwrap_or_default().to_owned();
    digits.parse().map_err(|error| io::Error::other(format!("{path}: {error}")))
}

fn load(instructions: &[u64], attach_type: u32) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_KPROBE,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface_index: 0,
        expected_attach_type: attach_type,
    };
    bpf(BPF_PROG_LOAD, &attributes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_times_are_read_where_they_are() {
        let fdinfo = "pos:\t0\nprog_type:\t2\nrun_time_ns:\t1200\nrun_cnt:\t4\n";
        assert_eq!(RunTime::parse(fdinfo), Some(RunTime { ns: 1200, runs: 4 }));
        assert_eq!(RunTime::parse(fdinfo).unwrap_or_default().ns_per_run(), 300.0);
        assert_eq!(RunTime::parse("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn instructions_are_as_the_kernel_has_them() {
        assert_eq!(instruction(0xb7, 0, 0, 0), DO_NOTHING[0]);
        assert_eq!(instruction(0xb7, 0, 0, 1), WANT_NO_RETURN[0]);
        assert_eq!(instruction(0x18, 2, 1, 7), 0x0000_0007_0000_1218);
    }
}
