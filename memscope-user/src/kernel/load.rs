use std::{
    num::NonZeroU32,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, Map, MapData, PerCpuArray},
    programs::{
        Program, ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
    },
};
use aya_obj::Object;
use memmap2::MmapOptions;
use memscope_common::{
    CONTRACT_VERSION,
    control::{
        Arguments, COPIES_PER_CPU, COUNTER_ATTEMPTED, COUNTER_HIT_TWICE, COUNTER_LOST_ALLOCATION,
        COUNTER_LOST_FREE, COUNTER_LOST_MAPPING, COUNTER_LOST_PAGE_FAULT, COUNTER_LOST_PROCESS,
        COUNTER_LOST_REALLOCATION, COUNTER_LOST_STACK, COUNTER_NESTED, COUNTER_PASSED_BY,
        COUNTER_RESULT_UNREADABLE, COUNTER_RETURN_NOT_SEEN, COUNTER_SAMPLE_TABLE_FULL,
        COUNTER_THREAD_TABLE_FULL, Cookie, CpuCounters, InnerCalls, MAX_INNER_CALLS, MAX_THREADS,
        NO_ARGUMENT, ProbeSurroundings, Settings, TaskOffsets, ThreadState,
    },
    unwind::{CFA_SP, Rule, SAVED_AT_CFA, SAVED_NOT},
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::{
    KernelError, SLOT_SHARE,
    attached::Attached,
    beside,
    cookies::KnownCookies,
    features::{missing_capabilities, required_features},
    offsets::{self, kernel_offsets},
    overflow::Overflows,
    pages,
    plain::Plain,
    probe_programs::{
        self, CATCH, CODE_CHANGED, ENTRY, EXIT, FREE, Prepared, ProbePoints, ProbePrograms, RETURN,
        SESSION, THREAD_END, THROW, THROWING,
    },
    ring::{self, EventRing, RingMaps},
    sampling::SamplingMaps,
    tables::KernelTables,
    take_map,
    targets::{Selection, Targets},
    types::{KERNEL_BTF, KernelTypes},
};
use crate::{
    model::{
        AttachMethod, Counters, LossCause, MappingMethod, Observes, OnOverflow, ProbeId, StackMode,
    },
    target::{self, FrameAt, FunctionKind, Inner, Midst, PlannedProbe},
};

/// The programs, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] =
    include_bytes_aligned!("../../../memscope-ebpf/prebuilt/memscope-ebpf.bpf.o");

/// How the kernel side is set up.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Size of the ring buffer, a power of two, at least a page. The slots of all CPUs together
    /// have half as much.
    pub ring_bytes: u32,
    /// Which of the programs' own log lines are compiled in: 0 none, 5 all.
    pub log_level: u8,
    /// How probes are to be attached; none: the cheapest way that this kernel has.
    pub attach_by: Option<AttachMethod>,
    /// How much of each stack is noted.
    pub stacks: StackMode,
    /// Mean bytes between two sampled blocks; none: every block is recorded.
    pub sampling_interval_bytes: Option<u64>,
    /// What random numbers are made of.
    pub seed: u32,
    /// What is done when records come faster than they are taken.
    pub on_overflow: OnOverflow,
    /// Whether it is counted what probes cost the targets.
    pub counts_cost: bool,
    /// Whether children of targets become targets.
    pub follows: bool,
    /// What else does.
    pub selection: Selection,
    /// What is observed.
    pub observes: Observes,
    /// Whether what is mapped by system calls is observed as well.
    pub observes_mappings: bool,
    /// Where; none: in their functions, if this kernel lets programs run there.
    pub mappings_by: Option<MappingMethod>,
}

/// What to attach to: the functions of one file.
#[derive(Clone, Copy, Debug)]
pub struct AttachRequest<'a> {
    /// For which target; none for all processes that have the file mapped, or will have.
    pub only: Option<OneTarget>,
    /// Where the file with the functions can be opened.
    pub file: &'a Path,
    /// What to call it in messages.
    pub shown_path: &'a str,
    /// Which functions, where, and what events will call them; in the order in which they
    /// are to be attached.
    pub probes: &'a [(ProbeId, PlannedProbe)],
}

/// A target that probes are attached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneTarget {
    /// Its index.
    pub target: u16,
    /// Its process id.
    pub pid: u32,
}

/// The loaded programs and everything attached; dropping it removes all of it.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    pub(super) method: AttachMethod,
    /// Empty where perf events are used: then aya has the programs.
    pub(super) programs: ProbePrograms,
    /// What is attached.
    pub(super) attached: Attached,
    surroundings: Array<MapData, Plain<ProbeSurroundings>>,
    cookies: KnownCookies,
    pub(super) sampling: Option<SamplingMaps>,
    pub(super) overflows: Overflows,
    pub(super) pauses: bool,
    pub(super) observes: Observes,
    mappings_by: Option<MappingMethod>,
    pub(super) targets: Targets,
    pub(super) tables: KernelTables,
    tells_exits: bool,
}

impl AttachRequest<'_> {
    fn target(&self) -> Option<u16> {
        self.only.map(|only| only.target)
    }

    fn pid(&self) -> Option<u32> {
        self.only.map(|only| only.pid)
    }
}

impl Kernel {
    /// Loads the programs.
    ///
    /// # Errors
    ///
    /// If rights or kernel features are missing, or the kernel refuses them.
    pub fn load(config: KernelConfig) -> Result<Self, KernelError> {
        check_machine()?;
        if !config.ring_bytes.is_power_of_two() || config.ring_bytes < page_bytes() {
            return Err(KernelError::RingSize { bytes: config.ring_bytes.into() });
        }
        check_contract()?;
        raise_memory_limit();
        let cpus = ring::possible_cpus().map_err(KernelError::Cpus)?;
        let mut settings = settings(&config, cpus);
        let (loader, Parsed { types, object }) = read_all()?;
        let task_offsets = offsets::task_offsets(&types);
        let tells_exits = task_offsets.known != 0;
        settings.follows = u32::from(config.follows && can_follow(tells_exits));
        let mut ebpf = load_object(loader, &config, cpus, (settings, task_offsets), &types)?;
        let prepared = Prepared::new(object, &ebpf, &types)?;
        let targets = Targets::new(&mut ebpf)?;
        let mut tables = KernelTables::new(&mut ebpf, targets.given().clone())?;
        let (loaded, attached) = beside(
            || {
                tables.make_room()?;
                prepared.attach_tracepoints(settings.follows != 0)
            },
            || load_probe_programs(&mut ebpf, &prepared, config.attach_by),
        );
        let (method, mut programs) = loaded?;
        log::info!("probes are attached by {}", method.name());
        programs.extend(attached?);
        if config.counts_cost {
            Self::load_sampler(&mut ebpf)?;
        }
        let mut attached = Attached::new(config.counts_cost);
        let observed = config.observes_mappings.then_some(config.mappings_by);
        let mappings_by =
            prepared.observe_mappings(observed, tells_exits, &mut programs, &mut attached)?;
        prepared.keep_rest(method, &mut programs);
        if config.observes == Observes::PageFaults {
            pages::attach(&mut ebpf, &mut attached)?;
        }
        config.selection.tell(&mut ebpf)?;
        let surroundings = take_map(&mut ebpf, "SURROUNDINGS")?;
        let cookies = KnownCookies::new(&mut ebpf)?;
        let sampling = config
            .sampling_interval_bytes
            .map(|interval_bytes| SamplingMaps::new(&mut ebpf, interval_bytes))
            .transpose()?;
        let overflows = Overflows::new(&mut ebpf)?;
        Ok(Self {
            ebpf,
            method,
            programs,
            attached,
            surroundings,
            cookies,
            sampling,
            overflows,
            pauses: config.on_overflow == OnOverflow::Pause,
            observes: config.observes,
            mappings_by,
            targets,
            tables,
            tells_exits,
        })
    }

    /// What is observed of the targets.
    #[must_use]
    pub fn observes(&self) -> Observes {
        self.observes
    }

    /// Where it is observed what system calls map; none: nowhere.
    #[must_use]
    pub fn mappings_by(&self) -> Option<MappingMethod> {
        self.mappings_by
    }

    /// Whether a record tells that a process has ended.
    #[must_use]
    pub fn tells_exits(&self) -> bool {
        self.tells_exits
    }

    /// How probes are attached.
    #[must_use]
    pub fn attach_method(&self) -> AttachMethod {
        self.method
    }

    /// The reading end of the rings; there is one.
    ///
    /// # Errors
    ///
    /// If it was taken before.
    pub fn take_ring(&mut self, ring_bytes: u32) -> Result<EventRing, KernelError> {
        let ebpf = &mut self.ebpf;
        let mut take = |name, what| ebpf.take_map(name).ok_or(KernelError::Missing { what });
        EventRing::new(RingMaps {
            buffer: take("EVENTS", "map EVENTS")?,
            slots: take("SLOTS", "map SLOTS")?,
            cpu_rings: take("CPU_RINGS", "map CPU_RINGS")?,
            buffer_bytes: ring_bytes,
            slot_bytes: slot_bytes(ring_bytes),
            consumer: take_map(ebpf, "CONSUMER")?,
        })
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

    /// Attaches the probes of one file.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for example because the process has ended.
    pub fn attach(&mut self, request: &AttachRequest<'_>) -> Result<(), KernelError> {
        for (id, probe) in request.probes {
            self.surroundings
                .set(id.0, Plain(surroundings_of(probe)), 0)
                .map_err(|source| KernelError::Map { map: "SURROUNDINGS", source })?;
            if probe.function.kind.is_of_blocks() {
                let cookie = cookie_of(*id, probe);
                self.cookies.tell(probe.file_offset, cookie)?;
            }
        }
        self.attached.remember(request);
        self.link(request, &[CODE_CHANGED])?;
        if self.attached.is_open() && self.observes == Observes::Allocations {
            self.link(request, &OF_BLOCKS)
        } else {
            Ok(())
        }
    }

    /// Loads the programs that are otherwise loaded when they are needed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one.
    pub fn load_rest(&mut self) -> Result<(), KernelError> {
        self.programs.load_rest()
    }

    /// Attaches those of the probes that run these programs.
    pub(super) fn link(
        &mut self,
        request: &AttachRequest<'_>,
        programs: &[&'static str],
    ) -> Result<(), KernelError> {
        if self.method == AttachMethod::PerfEvent {
            return self.link_by_perf_events(request, programs);
        }
        for name in programs {
            let points = points_of(request, name);
            if points.file_offsets.is_empty() || !self.programs.has_loaded(name)? {
                continue;
            }
            let link = self.programs.link(name, request.file, request.pid(), &points);
            let link = link.map_err(|source| KernelError::AttachMany {
                path: request.shown_path.to_owned(),
                count: points.file_offsets.len(),
                pid: request.pid(),
                source,
            })?;
            self.attached.push(name, request.target(), Box::new(link));
        }
        Ok(())
    }

    fn link_by_perf_events(
        &mut self,
        request: &AttachRequest<'_>,
        programs: &[&'static str],
    ) -> Result<(), KernelError> {
        for (id, probe) in request.probes {
            let cookie = cookie_of(*id, probe);
            for name in programs {
                if *name == SESSION || !runs(name, probe) {
                    continue;
                }
                self.attach_perf_event(name, request, probe.file_offset, cookie).map_err(
                    |source| KernelError::Attach {
                        path: request.shown_path.to_owned(),
                        file_offset: probe.file_offset,
                        pid: request.pid(),
                        source,
                    },
                )?;
            }
        }
        Ok(())
    }

    fn attach_perf_event(
        &mut self,
        name: &'static str,
        request: &AttachRequest<'_>,
        file_offset: u64,
        cookie: Cookie,
    ) -> Result<(), ProgramError> {
        let program = self.ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        let program: &mut UProbe = program.try_into()?;
        let pid = request.pid().and_then(NonZeroU32::new);
        let scope = pid.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(file_offset),
            cookie: Some(cookie.0),
        };
        let link = program.attach(point, request.file, scope)?;
        let link = program.take_link(link)?;
        self.attached.push(name, request.target(), Box::new(link));
        Ok(())
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

    /// What the programs have counted, given what was received. While recording goes on, the
    /// numbers are of slightly different moments. How many calls are under way is not known
    /// from it.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn counters(&self, received: Received) -> Result<Counters, KernelError> {
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
            (LossCause::SampleTableFull, COUNTER_SAMPLE_TABLE_FULL),
            (LossCause::RingFullPageFault, COUNTER_LOST_PAGE_FAULT),
            (LossCause::RingFullMapping, COUNTER_LOST_MAPPING),
        ];
        let at_calls = received.calls + sum(COUNTER_LOST_ALLOCATION) + sum(COUNTER_HIT_TWICE);
        let aside = sum(COUNTER_NESTED) + sum(COUNTER_PASSED_BY);
        let entered_only = sum(COUNTER_THREAD_TABLE_FULL) + sum(COUNTER_RETURN_NOT_SEEN);
        let frees = received.frees + sum(COUNTER_LOST_FREE);
        Ok(Counters {
            attempted: received.slots_taken + sum(COUNTER_ATTEMPTED),
            recorded: received.records,
            nested: sum(COUNTER_NESTED),
            hits: at_calls + entered_only + frees + aside,
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
        let missing = KernelError::Missing { what: "array THREADS" };
        let Some(Map::Array(map)) = self.ebpf.map("THREADS") else { return Err(missing) };
        let memory = MmapOptions::new()
            .len(MAX_THREADS as usize * size_of::<ThreadState>())
            .map_raw_read_only(map.fd().as_fd().as_raw_fd())
            .map_err(|source| KernelError::MapMemory { map: "THREADS", source })?;
        let first = memory.as_ptr().cast::<ThreadState>();
        let is_in_call = |place: &usize| {
            // SAFETY: one of the states that were mapped; the programs write words whole.
            unsafe { (&raw const (*first.add(*place)).cookie).read_volatile() != 0 }
        };
        Ok((0..MAX_THREADS as usize).filter(is_in_call).count() as u64)
    }
}

/// What has come out of the rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Records of all kinds.
    pub records: u64,
    /// Slots that the eBPF side says it has taken for small records.
    pub slots_taken: u64,
    /// Of these, those that were taken again before they were read.
    pub overwritten: u64,
    /// Records of calls that returned.
    pub calls: u64,
    /// Records of frees.
    pub frees: u64,
}

fn slot_bytes(ring_bytes: u32) -> u32 {
    ring_bytes / SLOT_SHARE
}

fn settings(config: &KernelConfig, cpus: u32) -> Settings {
    Settings {
        caller_only: u32::from(config.stacks == StackMode::CallerOnly),
        slots_log2: ring::slots_log2(slot_bytes(config.ring_bytes), cpus),
        samples: config.sampling_interval_bytes.is_some().into(),
        seed: config.seed,
        pauses: u32::from(config.on_overflow == OnOverflow::Pause),
        counts_cost: config.counts_cost.into(),
        follows: config.follows.into(),
        selects: config.selection.bits(),
    }
}

/// Says so if it cannot.
fn can_follow(tells_exits: bool) -> bool {
    if !tells_exits {
        log::warn!(
            "children are not followed: this kernel does not let it be seen how processes begin and end"
        );
    }
    tells_exits
}

/// What nothing works without.
fn check_machine() -> Result<(), KernelError> {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(KernelError::NotAllowed { missing });
    }
    match required_features().into_iter().find(|feature| !feature.available) {
        Some(feature) => Err(KernelError::Unsupported { what: feature.purpose }),
        None => Ok(()),
    }
}

/// Before Linux 5.11 BPF memory counts against this limit; later raising it has no use, and a
/// container may forbid it.
fn raise_memory_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
        .unwrap_or_else(|error| log::debug!("RLIMIT_MEMLOCK stays as it is: {error}"));
}

/// What is read before anything is loaded.
struct Parsed {
    types: KernelTypes<'static>,
    object: Object,
}

/// Reads the kernel's types and the object. A loader of aya reads all these types as it is
/// made, so that is done beside it.
fn read_all<'a>() -> Result<(EbpfLoader<'a>, Parsed), KernelError> {
    let (parsed, loader) = beside(EbpfLoader::new, || {
        let wanted: Vec<_> =
            offsets::TYPES.into_iter().chain(probe_programs::TYPES).chain(pages::TYPES).collect();
        let types = KernelTypes::find(&wanted)
            .map_err(|source| KernelError::Types { path: KERNEL_BTF, source })?;
        let object = Object::parse(OBJECT).map_err(|error| KernelError::Object(error.into()))?;
        // Asked here, the kernel has answered when the loader wants to know.
        log::debug!("the kernel takes type information: {}", aya::features().btf().is_some());
        Ok(Parsed { types, object })
    });
    parsed.map(|parsed| (loader, parsed))
}

/// Makes the maps, and puts into the programs what is known before they are loaded.
fn load_object(
    loader: EbpfLoader<'_>,
    config: &KernelConfig,
    cpus: u32,
    (settings, task_offsets): (Settings, TaskOffsets),
    types: &KernelTypes<'_>,
) -> Result<Ebpf, KernelError> {
    let page_offsets = Plain(pages::offsets(config.observes, types)?);
    let (kernel_offsets, task_offsets, settings) =
        (Plain(kernel_offsets(Some(types))), Plain(task_offsets), Plain(settings));
    // As one that lives no longer than these.
    let mut loader = loader;
    if config.sampling_interval_bytes.is_none() {
        // They are never looked at, and to clear their memory would take the kernel a while.
        loader.map_max_entries("SAMPLED", 1).map_max_entries("SAMPLED_NEAR", 1);
    }
    loader
        .btf(None)
        .map_max_entries("EVENTS", config.ring_bytes)
        .map_max_entries("SLOTS", cpus << settings.0.slots_log2)
        .map_max_entries("CPU_RINGS", cpus)
        .map_max_entries("COPIES", cpus * COPIES_PER_CPU)
        .override_global(aya_log::LEVEL, &config.log_level, false)
        .override_global("KERNEL_OFFSETS", &kernel_offsets, true)
        .override_global("TASK_OFFSETS", &task_offsets, true)
        .override_global("SETTINGS", &settings, true)
        .override_global("PAGE_OFFSETS", &page_offsets, true)
        .load(OBJECT)
        .map_err(KernelError::Object)
}

/// By the way that is asked for, or by the first that the kernel takes.
fn load_probe_programs(
    ebpf: &mut Ebpf,
    prepared: &Prepared<'_>,
    asked: Option<AttachMethod>,
) -> Result<(AttachMethod, ProbePrograms), KernelError> {
    for method in AttachMethod::ALL {
        if asked.is_some_and(|asked| asked != method) {
            continue;
        }
        let loaded = match method {
            AttachMethod::Multi if !multi_links_are_for_processes() => {
                Err(KernelError::Unsupported {
                    what: "its uprobe_multi links are for single threads only (before Linux 6.10)",
                })
            }
            AttachMethod::PerfEvent => load_for_perf_events(ebpf),
            _ => Ok(()),
        };
        match loaded.and_then(|()| prepared.load(method)) {
            Ok(programs) => return Ok((method, programs)),
            Err(error) if asked.is_some() || method == AttachMethod::PerfEvent => {
                return Err(error);
            }
            Err(error) => {
                log::debug!("no probes by {}: {}", method.name(), causes(&error));
            }
        }
    }
    Err(KernelError::Unsupported { what: "it has no way to attach probes" })
}

/// An error with all its causes, in one line.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn load_for_perf_events(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    for name in [ENTRY, RETURN, FREE, CODE_CHANGED, THROWING, EXIT, THROW, CATCH, THREAD_END] {
        let program: &mut UProbe = program(ebpf, name)?;
        program.load().map_err(|source| KernelError::Program { program: name, source })?;
    }
    Ok(())
}

/// Before, a link for a process let only its first thread through (kernel commit
/// 46ba0e49b642, "fix multi-uprobe PID filtering logic").
fn multi_links_are_for_processes() -> bool {
    super::features::kernel_is_at_least(6, 10)
}

/// The programs of functions that make and end blocks. What ends blocks is attached first, behind what tells how such a
/// call is meant, and the return before the entry: an entry that is seen must find its return probed.
pub(super) const OF_BLOCKS: [&str; 9] =
    [THREAD_END, FREE, THROW, CATCH, EXIT, RETURN, SESSION, ENTRY, THROWING];

/// Whether a program runs on a function.
fn runs(name: &str, probe: &PlannedProbe) -> bool {
    match probe.function.kind {
        FunctionKind::Allocates if probe.function.can_throw => name == THROWING,
        FunctionKind::Allocates if probe.site.midst.is_some() => name == SESSION,
        FunctionKind::Allocates => [SESSION, ENTRY, RETURN].contains(&name),
        FunctionKind::Frees => name == FREE,
        FunctionKind::ChangesCode => name == CODE_CHANGED,
        FunctionKind::Throws => name == THROW,
        FunctionKind::Catches => name == CATCH,
        FunctionKind::EndsThread => name == THREAD_END,
        FunctionKind::Exits => name == EXIT,
    }
}

fn points_of(request: &AttachRequest<'_>, name: &str) -> ProbePoints {
    let mut points = ProbePoints::default();
    for (id, probe) in request.probes {
        if runs(name, probe) {
            points.file_offsets.push(probe.file_offset);
            points.cookies.push(cookie_of(*id, probe).0);
        }
    }
    points
}

fn cookie_of(id: ProbeId, probe: &PlannedProbe) -> Cookie {
    let function = &probe.function;
    let argument = |index: Option<u8>| index.unwrap_or(NO_ARGUMENT);
    let arguments = Arguments {
        size: argument(function.size),
        count: argument(function.count),
        block: argument(function.block),
        result_slot: argument(function.result_slot),
    };
    let cookie = Cookie::new(id.0 as u16, arguments).of_allocator(probe.allocator);
    let cookie = if function.is_leaf { cookie.of_leaf() } else { cookie };
    let cookie = if function.can_throw { cookie.of_throwing() } else { cookie };
    let cookie = match probe.site.midst {
        Some(Midst::Gives { register, condition, was_noted }) => {
            let cookie = cookie.of_giving(register, condition);
            if was_noted { cookie.of_noted() } else { cookie }
        }
        Some(Midst::Notes) => cookie.of_noting(),
        None => cookie,
    };
    let cookie = cookie.of_depth(probe.site.frame.depth_bytes);
    let cookie = if probe.site.inner.is_some() { cookie.of_inner() } else { cookie };
    let cookie =
        if probe.frees_again_unnoticed { cookie.of_freeing_again_unnoticed() } else { cookie };
    if probe.site.emulated { cookie } else { cookie.of_stepped() }
}

fn surroundings_of(probe: &PlannedProbe) -> ProbeSurroundings {
    let (begin, end) = probe.code_file_offsets;
    let bytes = |from: u64, to: u64| u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX);
    ProbeSurroundings {
        before_bytes: bytes(begin, probe.file_offset),
        after_bytes: bytes(probe.file_offset, end),
        to_caller: to_caller(probe.site.frame),
        inner: probe.site.inner.map_or_else(InnerCalls::default, |inner| inner_calls(&inner)),
    }
}

fn inner_calls(inner: &Inner) -> InnerCalls {
    const { assert!(MAX_INNER_CALLS == target::MAX_INNER_CALLS) };
    let mut calls = InnerCalls { depth_bytes: inner.depth_bytes, ..InnerCalls::default() };
    let places = calls.return_distances.iter_mut().zip(inner.calls);
    for (number, (return_distance, call)) in places.enumerate() {
        if let Some(call) = call {
            *return_distance = call.return_distance;
            calls.tell_failures |= u16::from(call.tells_failure) << number;
        }
    }
    calls
}

/// How the caller is found from where a probe is.
fn to_caller(frame: FrameAt) -> Rule {
    // The canonical frame address is just above the return address.
    let saved = |depth_bytes: Option<u16>| match depth_bytes {
        Some(depth_bytes) => (SAVED_AT_CFA, -i32::from(depth_bytes) - 8),
        None => (SAVED_NOT, 0),
    };
    let ((rbp, rbp_offset), (rbx, rbx_offset)) =
        (saved(frame.rbp_depth_bytes), saved(frame.rbx_depth_bytes));
    let cfa_offset = i32::from(frame.depth_bytes) + 8;
    Rule { rbp, rbx, cfa_offset, rbp_offset, rbx_offset, ..Rule::of_kind(CFA_SP) }
}

pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, KernelError>
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

pub(super) fn page_bytes() -> u32 {
    u32::try_from(procfs::page_size()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_object_fits_this_collector() {
        super::check_contract().unwrap();
    }
}
