use std::{num::NonZeroU32, path::Path};

use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, Program, ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
};
use memscope_common::{
    CONTRACT_VERSION,
    control::{
        Arguments, COUNTER_ATTEMPTED, COUNTER_HITS, COUNTER_LOST_ALLOCATION, COUNTER_LOST_FREE,
        COUNTER_LOST_PROCESS, COUNTER_LOST_REALLOCATION, COUNTER_LOST_STACK, COUNTER_NESTED,
        COUNTER_RECORDED, COUNTER_RESULT_UNREADABLE, COUNTER_RETURN_NOT_SEEN,
        COUNTER_THREAD_TABLE_FULL, Cookie, CpuCounters, NO_ARGUMENT, Target, ThreadState,
    },
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{
    KernelError,
    features::{missing_capabilities, required_features},
    offsets::kernel_offsets,
    plain::Plain,
    ring::EventRing,
    tables::KernelTables,
    take_map,
};
use crate::{
    model::{Counters, LossCause, ProbeId},
    target::{FunctionKind, PlannedProbe},
};

/// The programs, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] =
    include_bytes_aligned!("../../../memscope-ebpf/prebuilt/memscope-ebpf.bpf.o");

const ENTRY: &str = "allocation_entered";
const RETURN: &str = "allocation_returned";
const FREE: &str = "free_entered";
const CODE_CHANGED: &str = "code_changed";

/// How the kernel side is set up.
#[derive(Clone, Copy, Debug)]
pub struct KernelConfig {
    /// Size of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Which of the programs' own log lines are compiled in: 0 none, 5 all.
    pub log_level: u8,
}

/// What to attach to.
#[derive(Clone, Copy, Debug)]
pub struct AttachRequest<'a> {
    /// Index of the target.
    pub target: u16,
    /// Its process id.
    pub pid: u32,
    /// Where the file with the function can be opened.
    pub file: &'a Path,
    /// What to call it in messages.
    pub shown_path: &'a str,
    /// Which function, and where.
    pub probe: &'a PlannedProbe,
    /// What events will refer to.
    pub id: ProbeId,
}

/// The loaded programs and everything attached; dropping it removes all of it.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    targets: Array<MapData, Plain<Target>>,
    tables: KernelTables,
}

impl Kernel {
    /// Loads the programs.
    ///
    /// # Errors
    ///
    /// If rights or kernel features are missing, or the kernel refuses them.
    pub fn load(config: KernelConfig) -> Result<Self, KernelError> {
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(KernelError::NotAllowed { missing });
        }
        if let Some(feature) = required_features().into_iter().find(|feature| !feature.available) {
            return Err(KernelError::Unsupported { what: feature.purpose });
        }
        if !config.ring_bytes.is_power_of_two() || config.ring_bytes < page_bytes() {
            return Err(KernelError::RingSize { bytes: config.ring_bytes.into() });
        }
        check_contract()?;
        // Before Linux 5.11 BPF memory counts against this limit; later raising it has
        // no use, and a container may forbid it.
        nix::sys::resource::setrlimit(
            nix::sys::resource::Resource::RLIMIT_MEMLOCK,
            nix::sys::resource::RLIM_INFINITY,
            nix::sys::resource::RLIM_INFINITY,
        )
        .unwrap_or_else(|error| log::debug!("RLIMIT_MEMLOCK stays as it is: {error}"));
        let btf = Btf::from_sys_fs().map_err(|error| KernelError::Object(error.into()))?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .map_max_entries("EVENTS", config.ring_bytes)
            .override_global(aya_log::LEVEL, &config.log_level, false)
            .override_global("KERNEL_OFFSETS", &Plain(kernel_offsets()), true)
            .load(OBJECT)
            .map_err(KernelError::Object)?;
        for name in [ENTRY, RETURN, FREE, CODE_CHANGED] {
            let program: &mut UProbe = program(&mut ebpf, name)?;
            program.load().map_err(|source| KernelError::Program { program: name, source })?;
        }
        for (name, tracepoint) in
            [("process_exec", "sched_process_exec"), ("thread_exit", "sched_process_exit")]
        {
            let program: &mut BtfTracePoint = program(&mut ebpf, name)?;
            program
                .load(tracepoint, &btf)
                .and_then(|()| program.attach().map(drop))
                .map_err(|source| KernelError::Program { program: name, source })?;
        }
        let targets = take_map(&mut ebpf, "TARGETS")?;
        let tables = KernelTables::new(&mut ebpf)?;
        Ok(Self { ebpf, targets, tables })
    }

    /// The reading end of the ring; there is one.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_ring(&mut self, ring_bytes: u32) -> Result<EventRing, KernelError> {
        Ok(EventRing::new(
            take_map::<RingBuf<MapData>>(&mut self.ebpf, "EVENTS")?,
            take_map(&mut self.ebpf, "CONSUMER")?,
            ring_bytes,
        ))
    }

    /// Reader of the programs' own log lines.
    ///
    /// # Errors
    ///
    /// If the programs were loaded without any.
    pub fn take_log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, KernelError> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
            .map_err(|_missing| KernelError::Missing { what: "map AYA_LOGS" })
    }

    /// From now on exec, exit and new code of a process are told as those of a target.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn watch_process(&mut self, target: u16, pid: u32) -> Result<(), KernelError> {
        self.processes()?
            .insert(pid, u32::from(target), 0)
            .map_err(|source| KernelError::Map { map: "PROCESSES", source })
    }

    fn processes(&mut self) -> Result<HashMap<&mut MapData, u32, u32>, KernelError> {
        let map =
            self.ebpf.map_mut("PROCESSES").ok_or(KernelError::Missing { what: "map PROCESSES" })?;
        HashMap::try_from(map).map_err(|source| KernelError::Map { map: "PROCESSES", source })
    }

    /// Attaches one probe.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for example because the process has ended.
    pub fn attach(&mut self, request: &AttachRequest<'_>) -> Result<(), KernelError> {
        let function = &request.probe.function;
        let argument = |index: Option<u8>| index.unwrap_or(NO_ARGUMENT);
        let cookie = Cookie::new(
            request.target,
            request.id.0 as u16,
            Arguments {
                size: argument(function.size),
                count: argument(function.count),
                block: argument(function.block),
                result_slot: argument(function.result_slot),
            },
        );
        // The return first: an entry that is seen must find its return probed.
        let programs: &[&'static str] = match function.kind {
            FunctionKind::Allocates => &[RETURN, ENTRY],
            FunctionKind::Frees => &[FREE],
            FunctionKind::ChangesCode => &[CODE_CHANGED],
        };
        for name in programs {
            self.attach_program(name, request, cookie).map_err(|source| KernelError::Attach {
                path: request.shown_path.to_owned(),
                file_offset: request.probe.file_offset,
                pid: request.pid,
                source,
            })?;
        }
        Ok(())
    }

    fn attach_program(
        &mut self,
        name: &'static str,
        request: &AttachRequest<'_>,
        cookie: Cookie,
    ) -> Result<(), ProgramError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        let program: &mut UProbe = program.try_into()?;
        let scope = NonZeroU32::new(request.pid)
            .map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(request.probe.file_offset),
            cookie: Some(cookie.0),
        };
        // The link is the program's, and goes when it goes.
        program.attach(point, request.file, scope).map(drop)
    }

    /// Begins or ends recording of a target.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn set_enabled(&mut self, target: u16, enabled: bool) -> Result<(), KernelError> {
        self.change_target(target, |target| target.enabled = enabled.into())
    }

    /// Tells where a target's dynamic loader says what it is about to do.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn set_loader_state(&mut self, target: u16, avma: u64) -> Result<(), KernelError> {
        self.change_target(target, |target| target.loader_state_avma = avma)
    }

    fn change_target(
        &mut self,
        target: u16,
        change: impl FnOnce(&mut Target),
    ) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { map: "TARGETS", source };
        let mut block = self.targets.get(&target.into(), 0).map_err(error)?.0;
        change(&mut block);
        self.targets.set(target.into(), Plain(block), 0).map_err(error)
    }

    /// The unwind tables that stacks are walked by.
    #[must_use]
    pub fn tables(&self) -> &KernelTables {
        &self.tables
    }

    /// The same, to be changed.
    pub fn tables_mut(&mut self) -> &mut KernelTables {
        &mut self.tables
    }

    /// A process has ended: what another process of the same number does is not its own.
    /// Its probes stay until all are removed, because the kernel waits for about a tenth
    /// of a second for each (`synchronize_rcu_tasks_trace`), and nothing hits them.
    pub fn forget_process(&mut self, target: u16, pid: u32) {
        self.tables.forget(target);
        if let Ok(mut processes) = self.processes()
            && let Err(error) = processes.remove(&pid)
        {
            log::debug!("process {pid} was not watched: {error}");
        }
    }

    /// What the programs have counted, and how many calls are under way.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let source = |source| KernelError::Map { map: "COUNTERS", source };
        let map = self.ebpf.map("COUNTERS").ok_or(KernelError::Missing { what: "map COUNTERS" })?;
        let cpus: PerCpuArray<_, Plain<CpuCounters>> =
            PerCpuArray::try_from(map).map_err(source)?;
        let cpus = cpus.get(&0, 0).map_err(source)?;
        let sum = |counter: u32| -> u64 {
            cpus.iter().filter_map(|cpu| cpu.0.values.get(counter as usize)).sum()
        };
        let lost = [
            (LossCause::RingFullAllocation, COUNTER_LOST_ALLOCATION),
            (LossCause::RingFullFree, COUNTER_LOST_FREE),
            (LossCause::RingFullReallocation, COUNTER_LOST_REALLOCATION),
            (LossCause::RingFullStack, COUNTER_LOST_STACK),
            (LossCause::RingFullProcess, COUNTER_LOST_PROCESS),
            (LossCause::ThreadTableFull, COUNTER_THREAD_TABLE_FULL),
            (LossCause::ReturnNotSeen, COUNTER_RETURN_NOT_SEEN),
            (LossCause::ResultUnreadable, COUNTER_RESULT_UNREADABLE),
        ];
        Ok(Counters {
            attempted: sum(COUNTER_ATTEMPTED),
            recorded: sum(COUNTER_RECORDED),
            nested: sum(COUNTER_NESTED),
            hits: sum(COUNTER_HITS),
            malformed: 0,
            in_flight: 0,
            lost: lost.into_iter().map(|(cause, counter)| (cause, sum(counter))).collect(),
        })
    }

    /// How many calls were entered and have not returned. To be asked once recording
    /// has ended; while it goes on the answer is old before it is given.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn calls_in_flight(&self) -> Result<u64, KernelError> {
        let map_error = |source| KernelError::Map { map: "THREADS", source };
        let map = self.ebpf.map("THREADS").ok_or(KernelError::Missing { what: "map THREADS" })?;
        let threads: HashMap<_, u64, Plain<ThreadState>> =
            HashMap::try_from(map).map_err(map_error)?;
        let mut in_flight = 0;
        for entry in threads.iter() {
            match entry {
                Ok((_, state)) => in_flight += u64::from(state.0.cookie != 0),
                // A thread that ended while the table was read.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(error)),
            }
        }
        Ok(in_flight)
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(KernelError::Missing { what: name })?
        .try_into()
        .map_err(|source| KernelError::Program { program: name, source })
}

/// The object says which contract it was built with.
fn check_contract() -> Result<(), KernelError> {
    let found = object::File::parse(OBJECT).ok().and_then(|elf| {
        let symbol =
            elf.symbols().find(|symbol| symbol.name() == Ok("MEMSCOPE_CONTRACT_VERSION"))?;
        let section = elf.section_by_index(symbol.section_index()?).ok()?;
        let bytes = section.data_range(symbol.address(), 4).ok()??;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    });
    if found == Some(CONTRACT_VERSION) {
        return Ok(());
    }
    Err(KernelError::WrongObject { found, expected: CONTRACT_VERSION })
}

fn page_bytes() -> u32 {
    u32::try_from(procfs::page_size()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_object_fits_this_collector() {
        super::check_contract().unwrap();
    }
}
