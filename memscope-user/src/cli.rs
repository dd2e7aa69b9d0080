//! The command line: what was typed, checked as far as that goes without looking at
//! the system.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{
    ArgAction, Args, Parser, Subcommand,
    builder::{PossibleValue, TypedValueParser},
};

use crate::{
    export::{Format, Weight},
    model::{AttachMethod, MappingMethod, OnOverflow, ProbeScope, StackMode},
    reports::View,
};

/// What memscope calls itself with to be the guard of targets that it may stop.
pub const GUARD_COMMAND: &str = "resume-guard";

/// Finds out who allocates, what leaks and what is live at the peak in a running
/// program, without recompiling, restarting or changing it.
#[derive(Debug, Parser)]
#[command(name = "memscope", version, max_term_width = 100)]
pub struct Cli {
    /// Say more: what memscope does (-v), and what its eBPF side does (-vv)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record the allocations of running processes, or of a command
    Trace(TraceOptions),
    /// Show what a recording says
    Report(ReportOptions),
    /// Write a recording in a format that other tools read
    Export(ExportOptions),
    /// Print a recording record by record
    Dump(FileOptions),
    /// Check that a recording is whole, undamaged and consistent
    Verify(FileOptions),
    /// Say what this kernel and a process allow, and why not
    Doctor(DoctorOptions),
    /// Let stopped targets go on when memscope is gone; memscope itself calls this
    #[command(name = GUARD_COMMAND, hide = true)]
    ResumeGuard,
}

/// Options of `memscope trace`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("target").required(true).args(["pid", "comm", "cgroup", "all", "command"]))]
#[command(group = clap::ArgGroup::new("selected").multiple(true).args(["comm", "cgroup", "all"]))]
#[command(group = clap::ArgGroup::new("drawn").multiple(true).args(["sample", "max_overhead"]))]
pub struct TraceOptions {
    /// A running process to trace; can be given several times
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..), num_args = 1..)]
    pub pid: Vec<u32>,
    /// All processes of programs called so, now and later; can be given several times
    #[arg(long, value_name = "NAME", value_parser = comm, num_args = 1..)]
    pub comm: Vec<String>,
    /// All processes of a control group or container, now and later: a path, as in /proc/PID/cgroup or below /sys/fs/cgroup, or a container's id
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub cgroup: Vec<String>,
    /// All processes of this machine, now and later, but memscope
    #[arg(long)]
    pub all: bool,
    /// Not programs called so, and what they begin; can be given several times
    #[arg(long, value_name = "NAME", value_parser = comm)]
    pub exclude: Vec<String>,
    /// Do not trace the children of traced processes
    #[arg(long)]
    pub no_follow: bool,
    /// Where probes are put: `host` has traced from the first instruction what begins later, and lets other processes that use the same files pay for hits [default: targets for --pid and with --no-follow, else host]
    #[arg(long, value_name = "WHERE", value_parser = probe_scopes())]
    pub probes: Option<ProbeScope>,
    /// Where the recording goes [default: memscope.NAME.PID.mscope here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// End the trace after this time (30s, 5m, 1h) [default: when the targets end, or by Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Size of the buffer between kernel and memscope, a power of two (64MiB); frequent events have half as much beside it [default: from processors and memory]
    #[arg(long, value_name = "SIZE", value_parser = ring_buffer())]
    pub ring_buffer: Option<ByteSize>,
    /// Record a sample of all blocks, one for so many bytes in the mean (512KiB)
    #[arg(long, value_name = "BYTES", value_parser = sampling_interval())]
    pub sample: Option<ByteSize>,
    /// Spend no more than this share of the targets' processor time (5%): sample, and observe them in windows of time
    #[arg(long, value_name = "PERCENT", value_parser = percentage, conflicts_with_all = ["selected", "probes"])]
    pub max_overhead: Option<Percentage>,
    /// Observe page faults instead of allocators: what makes resident memory grow, and from where
    #[arg(long, conflicts_with_all = ["sample", "max_overhead", "on_overflow", "attach_by", "allocator"])]
    pub pages: bool,
    /// Record what is mapped by mmap, munmap, mremap and brk as well, and from where (report --view mappings)
    #[arg(long, conflicts_with = "pages")]
    pub mappings: bool,
    /// Where these system calls are observed [default: in their functions, if the kernel lets programs run there]
    #[arg(long, value_name = "WHERE", value_parser = mapping_methods(), requires = "mappings")]
    pub mappings_by: Option<MappingMethod>,
    /// Functions of an allocator of your own, described in a file, or one in braces ('{name="my_alloc", kind="allocates", size=0}'); can be given several times
    #[arg(long, value_name = "FILE")]
    pub allocator: Vec<String>,
    /// Draw the sample by this number, not by the clock
    #[arg(long, value_name = "NUMBER", requires = "drawn")]
    pub seed: Option<u32>,
    /// How much of each call chain is recorded: not walking stacks makes a traced call cheaper
    #[arg(long, value_name = "HOW", default_value = StackMode::Full.name(), value_parser = stack_modes())]
    pub stacks: StackMode,
    /// What to do when allocations come faster than they can be recorded
    #[arg(long, value_name = "WHAT", default_value = OnOverflow::Count.name(), value_parser = on_overflow())]
    pub on_overflow: OnOverflow,
    /// How probes are attached [default: the cheapest way that the kernel has]
    #[arg(long, value_name = "WAY", value_parser = attach_methods())]
    pub attach_by: Option<AttachMethod>,
    /// Exit with 3 if anything is missing from the recording, or nothing was recorded
    #[arg(long)]
    pub strict: bool,
    /// Fetch missing debug information from the servers in DEBUGINFOD_URLS
    #[arg(long)]
    pub debuginfod: bool,
    /// A command to run and trace from its first instruction, after `--`
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `memscope report`.
#[derive(Args, Clone, Debug)]
pub struct ReportOptions {
    /// The recording
    pub file: PathBuf,
    /// The question
    #[arg(long, value_name = "VIEW", default_value = View::Summary.name(), value_parser = views())]
    pub view: View,
    /// How many call chains to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Show the functions between the program and the allocator too (operator new, __rust_alloc), and each process by itself
    #[arg(long)]
    pub show_wrappers: bool,
    /// As JSON, for programs; has all functions
    #[arg(long)]
    pub json: bool,
}

/// Options of `memscope export`.
#[derive(Args, Clone, Debug)]
pub struct ExportOptions {
    /// The recording
    pub file: PathBuf,
    /// The format
    #[arg(short, long, value_name = "FORMAT", value_parser = formats())]
    pub format: Format,
    /// Where to write to; `-` is standard output
    #[arg(short, long, value_name = "OUT", default_value = "-")]
    pub output: PathBuf,
    /// Every single block as well (json)
    #[arg(long)]
    pub blocks: bool,
    /// What makes a call chain wide (collapsed, flamegraph) [default: allocated-bytes; resident-bytes of page faults]
    #[arg(long, value_name = "WEIGHT", value_parser = weights())]
    pub weight: Option<Weight>,
}

/// Options of commands that only take a recording.
#[derive(Args, Clone, Debug)]
pub struct FileOptions {
    /// The recording
    pub file: PathBuf,
}

/// Options of `memscope doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorOptions {
    /// A process to look at as well
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// Functions of an allocator of your own, as for trace
    #[arg(long, value_name = "FILE", requires = "pid")]
    pub allocator: Vec<String>,
    /// How probes would be attached, as for trace: with fewer ways of the kernel, functions are probed elsewhere
    #[arg(long, value_name = "WAY", value_parser = attach_methods())]
    pub attach_by: Option<AttachMethod>,
    /// As JSON, for programs
    #[arg(long)]
    pub json: bool,
}

impl TraceOptions {
    /// Whether what is traced is told by what it is, not named.
    #[must_use]
    pub fn selects(&self) -> bool {
        self.all || !self.comm.is_empty() || !self.cgroup.is_empty()
    }

    /// The processes that were named, each once, in the order of the command line.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for pid in &self.pid {
            if !pids.contains(pid) {
                pids.push(*pid);
            }
        }
        pids
    }

    /// Whether children of targets are traced. With a budget they are not: it is kept for the
    /// processes that were named.
    #[must_use]
    pub fn follows(&self) -> bool {
        !self.no_follow && self.max_overhead.is_none()
    }

    /// Where probes are put.
    #[must_use]
    pub fn probe_scope(&self) -> ProbeScope {
        let default = if self.selects() || (self.follows() && self.pid.is_empty()) {
            ProbeScope::Host
        } else {
            ProbeScope::Targets
        };
        self.probes.unwrap_or(default)
    }
}

impl ExportOptions {
    /// What is wrong with this combination of options, if anything is.
    #[must_use]
    pub fn contradiction(&self) -> Option<String> {
        if self.blocks && self.format != Format::Json {
            return Some(format!("--blocks is for --format json, not {}", self.format.name()));
        }
        let weighted = matches!(self.format, Format::Collapsed | Format::Flamegraph);
        (self.weight.is_some() && !weighted).then(|| {
            format!("--weight is for collapsed and flamegraph, not {}", self.format.name())
        })
    }
}

/// A value with a name and a line of help, from a registry.
#[derive(Clone)]
struct Registry<T: 'static> {
    entries: Vec<(T, &'static str, &'static str)>,
}

impl<T: Copy + Send + Sync + 'static> TypedValueParser for Registry<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<T, clap::Error> {
        let names =
            clap::builder::PossibleValuesParser::new(self.entries.iter().map(|(_, name, _)| *name));
        let name = names.parse_ref(command, argument, value)?;
        let entry = self.entries.iter().find(|(_, known, _)| *known == name);
        entry
            .map(|(value, _, _)| *value)
            .ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidValue))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(
            self.entries.iter().map(|(_, name, help)| PossibleValue::new(*name).help(*help)),
        ))
    }
}

fn views() -> Registry<View> {
    Registry { entries: View::ALL.map(|view| (view, view.name(), view.description())).to_vec() }
}

fn formats() -> Registry<Format> {
    Registry {
        entries: Format::ALL.map(|format| (format, format.name(), format.description())).to_vec(),
    }
}

/// Largest mean distance of samples.
const MAX_SAMPLING_INTERVAL: u64 = 1 << 40;

fn sampling_interval() -> impl TypedValueParser<Value = ByteSize> {
    clap::builder::StringValueParser::new().try_map(|text| {
        let interval: ByteSize = text.parse()?;
        if (1..=MAX_SAMPLING_INTERVAL).contains(&interval.as_u64()) {
            Ok(interval)
        } else {
            Err("it must be at least 1 byte, and at most 1 TiB".to_owned())
        }
    })
}

/// Least and largest ring buffer: a page, and what its positions can tell apart.
const RING_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 31;

fn ring_buffer() -> impl TypedValueParser<Value = ByteSize> {
    clap::builder::StringValueParser::new().try_map(|text| {
        let size: ByteSize = text.parse()?;
        if size.as_u64().is_power_of_two() && RING_BYTES.contains(&size.as_u64()) {
            Ok(size)
        } else {
            Err("it must be a power of two, from 4KiB to 2GiB".to_owned())
        }
    })
}

/// The name of a program, as far as the kernel has it.
fn comm(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_COMM_BYTES || text.contains('\0') {
        return Err(format!(
            "the kernel keeps from 1 to {MAX_COMM_BYTES} bytes of a name (/proc/PID/comm)"
        ));
    }
    Ok(text.to_owned())
}

/// Longest name of a thread (`TASK_COMM_LEN`, less the 0 at its end).
const MAX_COMM_BYTES: usize = 15;

fn probe_scopes() -> Registry<ProbeScope> {
    Registry {
        entries: vec![
            (ProbeScope::Targets, ProbeScope::Targets.name(), "in the traced processes only"),
            (ProbeScope::Host, ProbeScope::Host.name(), "in all processes that use the same files"),
        ],
    }
}

/// A share, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage {
    /// From 1 to a million.
    pub ppm: u32,
}

/// Least and largest share that can be asked for.
const MIN_PERCENT: f64 = 0.1;
const MAX_PERCENT: f64 = 100.0;

/// `5%`, `5` or `0.5%`.
fn percentage(text: &str) -> Result<Percentage, String> {
    let number: f64 = text
        .strip_suffix('%')
        .unwrap_or(text)
        .trim()
        .parse()
        .map_err(|_no_number| "it must be a percentage, such as 5%".to_owned())?;
    if (MIN_PERCENT..=MAX_PERCENT).contains(&number) {
        Ok(Percentage { ppm: (number * 10_000.0).round() as u32 })
    } else {
        Err(format!("it must be from {MIN_PERCENT}% to {MAX_PERCENT}%"))
    }
}

fn stack_modes() -> Registry<StackMode> {
    Registry {
        entries: vec![
            (
                StackMode::Full,
                StackMode::Full.name(),
                "the whole chain, to the start of the thread",
            ),
            (StackMode::CallerOnly, StackMode::CallerOnly.name(), "only who called the allocator"),
        ],
    }
}

fn on_overflow() -> Registry<OnOverflow> {
    let help = |what| match what {
        OnOverflow::Count => "keep each call chain's sums exact, and say what else is missing",
        OnOverflow::Pause => "stop the target (SIGSTOP) until there is room again (SIGCONT)",
    };
    Registry {
        entries: [OnOverflow::Count, OnOverflow::Pause]
            .map(|what| (what, what.name(), help(what)))
            .to_vec(),
    }
}

fn attach_methods() -> Registry<AttachMethod> {
    let help = |method| match method {
        AttachMethod::Session => "one program for entry and return (Linux 6.13)",
        AttachMethod::Multi => "one link for all probes of a file (Linux 6.10)",
        AttachMethod::PerfEvent => "a perf event for each probe",
    };
    Registry {
        entries: AttachMethod::ALL.map(|method| (method, method.name(), help(method))).to_vec(),
    }
}

fn mapping_methods() -> Registry<MappingMethod> {
    let help = |method| match method {
        MappingMethod::Functions => "in the kernel's functions of these calls (fentry)",
        MappingMethod::Tracepoints => {
            "at the entry and return of all system calls, which slows them down in all processes"
        }
    };
    Registry {
        entries: MappingMethod::ALL.map(|method| (method, method.name(), help(method))).to_vec(),
    }
}

fn weights() -> Registry<Weight> {
    Registry {
        entries: Weight::ALL.map(|weight| (weight, weight.name(), weight.description())).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn targets_contradict_each_other_or_are_needed() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for wrong in [
            "memscope trace",
            "memscope trace --pid 0",
            "memscope trace --pid 1 -- true",
            "memscope trace --pid 1 --all",
            "memscope trace --comm sixteen-bytes-xx",
            "memscope trace --all --max-overhead 5%",
            "memscope trace --all --probes nowhere",
            "memscope trace --cgroup",
            "memscope trace --duration 5 --pid 1",
            "memscope trace --seed 5 --pid 1",
            "memscope trace --max-overhead 0% --pid 1",
            "memscope trace --max-overhead 101% --pid 1",
            "memscope trace --max-overhead NaN --pid 1",
            "memscope trace --max-overhead much --pid 1",
            "memscope trace --pages --sample 512KiB --pid 1",
            "memscope trace --pages --max-overhead 5% --pid 1",
            "memscope trace --pages --on-overflow pause --pid 1",
            "memscope trace --pages --allocator pool.toml --pid 1",
            "memscope trace --pages --mappings --pid 1",
            "memscope doctor --allocator pool.toml",
            "memscope trace --ring-buffer big --pid 1",
            "memscope trace --ring-buffer 3MiB --pid 1",
            "memscope trace --ring-buffer 2KiB --pid 1",
            "memscope trace --ring-buffer 4GiB --pid 1",
            "memscope export f",
            "memscope export f --format xml",
            "memscope report f --view nothing",
        ] {
            assert_eq!(parse(wrong).map_err(|error| error.exit_code()).err(), Some(2), "{wrong}");
        }
        for right in [
            "memscope trace --pid 1 --pid 2 --duration 30s --ring-buffer 64KiB",
            "memscope trace --ring-buffer 2GiB --pid 1",
            "memscope trace --strict -- ls -l --pid 3",
            "memscope trace --pid 1 2 3",
            "memscope trace --comm python3 redis-server",
            "memscope trace --cgroup /system.slice --probes targets",
            "memscope trace --all --exclude bash --exclude sh",
            "memscope trace --no-follow -- make",
            "memscope trace --debuginfod --pid 1",
            "memscope trace --max-overhead 5% --seed 1 --pid 1",
            "memscope trace --max-overhead 0.5 --sample 4KiB --pid 1",
            "memscope trace --sample 4KiB --seed 1 --pid 1",
            "memscope trace --pages --stacks caller --pid 1",
            "memscope trace --mappings --sample 4KiB --pid 1",
            "memscope report f --view pages",
            "memscope -vv trace -p 1",
            "memscope report f --view leaks --top 3 --json",
            "memscope report f --show-wrappers",
            "memscope doctor",
        ] {
            parse(right).unwrap();
        }
    }

    #[test]
    fn a_process_that_is_named_twice_is_one() {
        let line = "memscope trace --pid 7 3 7 --pid 3";
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Trace(options) => assert_eq!(options.pids(), [7, 3]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wrong_size_is_told_as_it_was_written() {
        let line = "memscope trace --ring-buffer 3MiB --pid 1";
        let told = Cli::try_parse_from(line.split_whitespace()).unwrap_err().to_string();
        assert!(told.contains("'3MiB'") && told.contains("from 4KiB to 2GiB"), "{told}");
    }

    #[test]
    fn export_options_must_fit_the_format() {
        let contradiction =
            |line: &str| match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
                Command::Export(options) => options.contradiction(),
                _ => None,
            };
        assert!(contradiction("memscope export f --format pprof --blocks").is_some());
        assert!(contradiction("memscope export f --format json --weight temporary").is_some());
        assert_eq!(contradiction("memscope export f --format json --blocks"), None);
        assert_eq!(
            contradiction("memscope export f --format collapsed --weight allocations"),
            None
        );
    }
}
