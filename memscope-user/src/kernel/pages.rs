//! Page faults of the targets: how they are observed, and what became resident otherwise.

use std::{collections::BTreeSet, fs, io};

use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{
        PerfEvent, ProgramError, RawTracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use memscope_common::{
    control::{PageCpu, PageOffsets},
    record::{RESIDENT_ANONYMOUS, RESIDENT_FILE, RESIDENT_KINDS, RESIDENT_SHARED},
};

use super::{
    Kernel, KernelError,
    attached::Attached,
    load::{page_bytes, program},
    offsets::may_read_kernel,
    plain::Plain,
    types::{KernelTypes, Kind},
};
use crate::model::{Observes, PageSums, ResidentBytes};

/// The program that follows the counters of memory, and its tracepoint.
const COUNTED: (&str, &str) = ("memory_counted", "rss_stat");
/// The programs of page faults.
const FAULTS: [(&str, SoftwareEvent); 2] =
    [("minor_fault", SoftwareEvent::PageFaultsMin), ("major_fault", SoftwareEvent::PageFaultsMaj)];

/// The types that say where counters are.
pub(super) const TYPES: [(Kind, &str); 3] =
    [(Kind::Struct, "mm_struct"), (Kind::Struct, "percpu_counter"), (Kind::Struct, "bpf_array")];

/// Least part that a CPU adds to a counter.
const MIN_BATCH: u32 = 32;

/// How often the threads of a process are listed for those that began meanwhile.
const MAX_LISTINGS: usize = 64;

/// Where the running kernel keeps what is needed for page faults; all 0 if they are not observed.
pub(super) fn offsets(
    observed: Observes,
    types: &KernelTypes<'_>,
) -> Result<PageOffsets, KernelError> {
    if observed != Observes::PageFaults {
        return Ok(PageOffsets::default());
    }
    if !may_read_kernel() {
        let what = "its lockdown lets no program read how much memory a process has";
        return Err(KernelError::Unsupported { what });
    }
    // `compute_batch_value`, lib/percpu_counter.c.
    let cpus = online_cpus().map_err(|(_file, error)| KernelError::Cpus(error))?;
    let batch = (2 * cpus.len() as u32).max(MIN_BATCH);
    let of_task = |member| types.member_offset("task_struct", member);
    let found = || {
        Some(PageOffsets {
            task_memory: of_task("mm")?,
            task_flags: of_task("flags")?,
            task_minor_faults: of_task("min_flt")?,
            task_major_faults: of_task("maj_flt")?,
            memory_counters: types.array_offset("mm_struct", "rss_stat", "percpu_counter")?,
            counter_bytes: types.size("percpu_counter")?,
            counter_sum: types.member_offset("percpu_counter", "count")?,
            counter_of_cpus: types.member_offset("percpu_counter", "counters")?,
            // The union has no name, and comes behind this pointer.
            array_values: types.member_offset("bpf_array", "aux")? + size_of::<u64>() as u32,
            batch,
            known: 1,
            padding: 0,
        })
    };
    found().ok_or(KernelError::Unsupported {
        what: "it does not count resident pages in the way that page faults are observed by (since Linux 6.2)",
    })
}

/// Loads the programs, and attaches what is not for one process.
pub(super) fn attach(ebpf: &mut Ebpf, attached: &mut Attached) -> Result<(), KernelError> {
    let (name, tracepoint) = COUNTED;
    let refused = |source| KernelError::Program { program: name, source };
    let counted: &mut RawTracePoint = program(ebpf, name)?;
    counted.load().map_err(refused)?;
    let link = counted.attach(tracepoint).and_then(|link| counted.take_link(link));
    attached.push_lasting(Box::new(link.map_err(refused)?));
    for (name, _) in FAULTS {
        let fault: &mut PerfEvent = program(ebpf, name)?;
        fault.load().map_err(|source| KernelError::Program { program: name, source })?;
    }
    Ok(())
}

/// Numbers of the threads of a process.
fn threads_of(pid: u32) -> io::Result<BTreeSet<u32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn has_ended(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32)
}

impl Kernel {
    /// From now on the page faults of a process are told, if that was asked for: of all its
    /// threads, and of those that these will begin.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn observe_faults(&mut self, pid: u32) -> Result<(), KernelError> {
        if self.observes != Observes::PageFaults {
            return Ok(());
        }
        let mut known = BTreeSet::new();
        // A thread can be begun by one that is not observed yet.
        for _ in 0..MAX_LISTINGS {
            let threads = threads_of(pid).map_err(|source| KernelError::Threads { pid, source })?;
            let new: Vec<u32> = threads.difference(&known).copied().collect();
            if new.is_empty() {
                break;
            }
            for thread in new {
                known.insert(thread);
                match self.observe_thread(thread) {
                    Err(error) if has_ended(&error) => {}
                    result => {
                        result.map_err(|source| KernelError::PageFaults { pid, thread, source })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn observe_thread(&mut self, thread: u32) -> Result<(), ProgramError> {
        for (name, event) in FAULTS {
            let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
            let program: &mut PerfEvent = program.try_into()?;
            let link = program.attach(
                PerfEventConfig::Software(event),
                PerfEventScope::OneProcess { pid: thread, cpu: None },
                SamplePolicy::Period(1),
                true,
            )?;
            let link = program.take_link(link)?;
            self.attached.push_lasting(Box::new(link));
        }
        Ok(())
    }

    /// What became resident in no page fault, and what is resident no more; none if page faults
    /// are not observed.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn page_sums(&self) -> Result<Option<PageSums>, KernelError> {
        if self.observes != Observes::PageFaults {
            return Ok(None);
        }
        let source = |source| KernelError::Map { map: "PAGE_CPUS", source };
        let map =
            self.ebpf.map("PAGE_CPUS").ok_or(KernelError::Missing { what: "map PAGE_CPUS" })?;
        let cpus: PerCpuArray<_, Plain<PageCpu>> = PerCpuArray::try_from(map).map_err(source)?;
        let cpus = cpus.get(&0, 0).map_err(source)?;
        let sum = |pages: fn(&PageCpu) -> [u64; RESIDENT_KINDS]| {
            let of = |kind: usize| -> u64 {
                cpus.iter().filter_map(|Plain(cpu)| pages(cpu).get(kind).copied()).sum::<u64>()
                    * u64::from(page_bytes())
            };
            ResidentBytes {
                anonymous: of(RESIDENT_ANONYMOUS),
                file: of(RESIDENT_FILE),
                shared: of(RESIDENT_SHARED),
            }
        };
        Ok(Some(PageSums {
            elsewhere: sum(|cpu| cpu.elsewhere_pages),
            gone: sum(|cpu| cpu.gone_pages),
        }))
    }
}
