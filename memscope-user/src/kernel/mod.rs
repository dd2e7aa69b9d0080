//! The only stage that talks to the kernel's BPF side: loads the programs, attaches
//! probes, reads what they count and hands out the ring of records.
//!
//! Nothing it makes outlives the process: all programs, maps and links are held by
//! descriptors, so that even SIGKILL leaves nothing behind.

mod attached;
mod cookies;
mod cost;
mod facts;
mod features;
mod load;
mod mmap_events;
mod offsets;
mod overflow;
mod pages;
mod plain;
mod probe_programs;
mod ring;
mod sampling;
mod site_cost;
mod sys;
mod tables;
mod targets;
mod types;

pub use cost::ProbeCost;
pub use facts::{ProgramFacts, held_map_bytes};
pub use features::{Feature, features, kernel_and_arch, missing_capabilities};
pub use load::{AttachRequest, Kernel, KernelConfig, OneTarget, Received, causes};
pub use mmap_events::{AddressSpaceEvent, MmapEvent, MmapEvents};
pub use overflow::{OverflowCount, Pauses};
pub use ring::{EventRing, RawRecord, RingError, RingSize};
pub use site_cost::{HitCosts, MeasuredHits};
pub use tables::{KernelTables, PlacedTable, TableUse, WalkableCode};
pub use targets::Selection;

use std::{io, thread};

use aya::{
    Ebpf,
    maps::{Map, MapError},
};

pub use memscope_common::{control::MAX_TARGETS, unwind::Epoch};

/// The slots of all CPUs have one part in so many of the ring buffer's size: they are small, and
/// copies of stacks are not.
const SLOT_SHARE: u32 = 2;

/// Does one thing in a thread of its own while the other is done here, and after that if there can be no thread. The kernel takes
/// a tenth of a second to verify the largest program, on one processor.
pub fn beside<A, B: Send>(mut there: impl FnMut() -> B + Send, here: impl FnOnce() -> A) -> (A, B) {
    let (done, other) = thread::scope(|scope| {
        let working = thread::Builder::new().spawn_scoped(scope, &mut there);
        let done = here();
        let join = |working: thread::ScopedJoinHandle<'_, B>| {
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (done, working.ok().map(join))
    });
    (done, other.unwrap_or_else(there))
}

/// Whose probes are meant, in words.
fn whose(pid: Option<u32>) -> String {
    pid.map_or_else(|| "all processes".to_owned(), |pid| format!("process {pid}"))
}

/// Why the kernel side could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Rights are missing.
    #[error("not allowed to load BPF programs: missing {}; run it with sudo", .missing.join(", "))]
    NotAllowed {
        /// Names of the capabilities.
        missing: Vec<&'static str>,
    },
    /// The kernel was built without something that is needed, or forbids it.
    #[error("this kernel cannot trace: {what}; `memscope doctor` tells more")]
    Unsupported {
        /// What is missing.
        what: &'static str,
    },
    /// The object that was compiled in does not fit this collector.
    #[error(
        "the eBPF object has contract {found:?}, this memscope needs {expected}: rebuild it with `cargo xtask build-ebpf`"
    )]
    WrongObject {
        /// What the object says.
        found: Option<u32>,
        /// What the collector was compiled with.
        expected: u32,
    },
    /// The object was refused as a whole.
    #[error("cannot load the eBPF object")]
    Object(#[source] aya::EbpfError),
    /// A program was refused.
    #[error("the kernel refused the eBPF program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's reason among others.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// A program for probes was refused.
    #[error("the kernel refused the eBPF program {program}")]
    ProbeProgram {
        /// Its name.
        program: &'static str,
        /// The verifier's reason among others.
        #[source]
        source: io::Error,
    },
    /// There are no more file descriptors.
    #[error("cannot keep an eBPF map open: raise the limit of open files (ulimit -n)")]
    Descriptor(#[source] io::Error),
    /// Several probes could not be attached.
    #[error("cannot attach {count} probes in {path} for {}", whose(*pid))]
    AttachMany {
        /// The file.
        path: String,
        /// How many.
        count: usize,
        /// In which process; none for all.
        pid: Option<u32>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is mapped by system calls cannot be observed.
    #[error(
        "this kernel does not let programs observe system calls in this way, as `--mappings` needs"
    )]
    SystemCalls {
        /// Why.
        #[source]
        source: Box<KernelError>,
    },
    /// Page faults of a process cannot be observed.
    #[error("cannot observe the page faults of thread {thread} of process {pid}")]
    PageFaults {
        /// The process.
        pid: u32,
        /// The thread.
        thread: u32,
        /// Why.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// The threads of a process cannot be listed.
    #[error("cannot list the threads of process {pid}")]
    Threads {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A probe could not be attached.
    #[error("cannot attach a probe at offset {file_offset:#x} of {path} for {}", whose(*pid))]
    Attach {
        /// The file.
        path: String,
        /// Position in it.
        file_offset: u64,
        /// In which process; none for all.
        pid: Option<u32>,
        /// Why.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// A map could not be used.
    #[error("cannot use the eBPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
    /// A map's memory could not be shared.
    #[error("cannot share the memory of the eBPF map {map}")]
    MapMemory {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are more pieces of code in the traced processes than there is room for.
    #[error(
        "the traced processes have mapped more than {limit} pieces of code together: the stacks of the last one cannot be walked"
    )]
    TooManyMappings {
        /// How many there can be.
        limit: u32,
    },
    /// The object lacks a part.
    #[error("the eBPF object has no {what}: rebuild it with `cargo xtask build-ebpf`")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// The size given for the ring is none.
    #[error(
        "a ring buffer of {bytes} bytes is not possible: it must be a power of two and at least one page"
    )]
    RingSize {
        /// What was given.
        bytes: u64,
    },
    /// It cannot be told which CPUs there are.
    #[error("cannot read which CPUs are online")]
    Cpus(#[source] io::Error),
    /// The kernel does not report new code.
    #[error(
        "the kernel refused perf events of new mappings on CPU {cpu}: it takes CAP_PERFMON, and a kernel with perf events"
    )]
    MmapEvents {
        /// The CPU.
        cpu: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's types cannot be read.
    #[error("cannot read the types of the kernel in {path}")]
    Types {
        /// Their file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log of the eBPF side cannot be read.
    #[error("cannot read the log of the eBPF side")]
    Log(#[source] io::Error),
}

fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(KernelError::Missing { what: name })?;
    M::try_from(map).map_err(|source| KernelError::Map { map: name, source })
}
