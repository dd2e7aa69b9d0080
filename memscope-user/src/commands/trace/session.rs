//! One trace: its targets, what is attached to them, and the pipeline behind.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::{
    ahead::ReadFile,
    budget::Overhead,
    copies::FrameInfos,
    memory::MemoryReader,
    modules::{
        LoadedModule, ModuleCache, Notice, SharedModules, SharedProcesses, TargetView, lock,
        mappings_of, observation_of, probed_modules_of,
    },
    monotonic_ns,
    pause::{Guard, Resumer},
    pipeline::{Collected, Control, Following, Input, Pipeline, PipelineParts, Progress},
    tables::bring_tables,
    windows::{Limit, Observed, Windowed},
};
use crate::{
    collect::TargetStart,
    kernel::{AttachRequest, Kernel, KernelError, MAX_TARGETS, OneTarget},
    model::{Capture, Counters, Ending, EndingReason, LossCause, ModuleId, Observes, ProbeScope},
    reports::Analyzer,
    store::{RecordingEnd, StoreError, Writer},
    symbols::Debuginfod,
    target::{Descriptions, FileIdentity, SiteRules, TargetError, TargetProcess},
    unwind::Tables,
};

/// How long calls that are under way when recording ends are waited for.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_millis(100);

struct Target {
    process: Arc<TargetProcess>,
    /// By what its end is noticed, if not by a record of the kernel side.
    exit: Option<AsyncFd<OwnedFd>>,
    /// Files whose probes are there for it.
    attached: FxHashSet<ModuleId>,
    /// How many files are probed from which blocks come.
    allocators: usize,
    /// Whether it may use what it has mapped: not while it is held, or not recorded yet.
    runs: bool,
}

/// How a process has come to be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    /// It is the command, held before its first instruction, and its end is waited for.
    Command,
    /// By its number: its end is waited for.
    Named,
    /// By what it is.
    Selected,
}

/// A trace that is going on.
pub(super) struct Session {
    kernel: Kernel,
    pipeline: Pipeline<File>,
    memory: MemoryReader,
    modules: SharedModules,
    processes: SharedProcesses,
    /// Those that have not ended.
    targets: FxHashMap<u16, Target>,
    scope: ProbeScope,
    /// What is probed: of all processes, or of one at least.
    probed: FxHashSet<ModuleId>,
    /// Memscope's own file, which is never probed.
    own: Option<FileIdentity>,
    tables: Tables,
    /// If targets may be stopped.
    guard: Option<Guard>,
    /// If there is a budget to be kept.
    windowed: Option<Windowed>,
}

/// What a trace leaves.
pub(super) struct Recorded {
    pub(super) analyzer: Analyzer,
    pub(super) end: RecordingEnd,
    pub(super) failure: Option<Arc<StoreError>>,
    /// What is still attached. Dropping it takes seconds, see [`Kernel::forget_process`];
    /// recording has ended all the same.
    pub(super) attached: Kernel,
    /// To be dropped after that.
    pub(super) guard: Option<Guard>,
}

impl Session {
    /// A trace without targets, and what the collector notices in those to come.
    pub(super) fn start(
        mut kernel: Kernel,
        ring_bytes: u32,
        output: File,
        capture: &Capture,
        how: Following,
        debuginfod: Option<Debuginfod>,
        tables: Tables,
    ) -> anyhow::Result<(Self, UnboundedReceiver<Notice>)> {
        let ring = kernel.take_ring(ring_bytes)?;
        // What an allocator maps is told with the call that it was for.
        let follows_calls = kernel.mappings_by().is_some();
        let rules = SiteRules::of_this_kernel(kernel.attach_method(), follows_calls);
        let modules = Arc::new(Mutex::new(ModuleCache::new(rules)));
        let processes = SharedProcesses::default();
        let (notices_sender, notices) = unbounded_channel();
        let view = TargetView {
            modules: Arc::clone(&modules),
            processes: processes.clone(),
            notices: notices_sender,
            frame_infos: FrameInfos::default(),
        };
        let has_paused = Arc::new(AtomicBool::new(false));
        let resumer = kernel
            .take_pauses()?
            .map(|pauses| Resumer::new(pauses, processes.clone(), Arc::clone(&has_paused)));
        let guard = resumer.is_some().then(|| Guard::start(has_paused)).transpose()?;
        let writer = Writer::new(output, capture)?;
        let parts = PipelineParts { ring, resumer, view, debuginfod, writer, follow: how };
        let pipeline = Pipeline::start(parts, Arc::clone(&modules))?;
        let memory = MemoryReader::start(pipeline.input.clone())?;
        let session = Self {
            kernel,
            pipeline,
            memory,
            modules,
            processes,
            targets: FxHashMap::default(),
            scope: how.scope,
            probed: FxHashSet::default(),
            own: TargetProcess::own_file(),
            tables,
            guard,
            windowed: None,
        };
        session.tell_page_sums()?;
        if session.kernel.mappings_by().is_some() {
            session.tell(Control::MappingsObserved)?;
        }
        Ok((session, notices))
    }

    /// Has functions probed that were described; to be called before there is a target. `ahead`: what was read with them.
    pub(super) fn describe(
        &self,
        descriptions: Descriptions,
        ahead: FxHashMap<FileIdentity, ReadFile>,
    ) {
        lock(&self.modules).describe(descriptions, ahead);
    }

    /// Says which of the functions that were described no traced process had.
    fn say_not_found(&self) {
        for (name, origin) in lock(&self.modules).not_found() {
            log::warn!(
                "{name}, described at {origin}, is in no file of a traced process, or no function begins there"
            );
        }
    }

    /// Attaches to a process that runs already, and begins to record it.
    pub(super) fn attach_running(&mut self, process: TargetProcess) -> anyhow::Result<()> {
        let pid = process.pid();
        let target = self.add(process, Chosen::Named)?;
        let Some(target) = target else { bail!("process {pid} is traced already") };
        self.begin_running(target)?;
        let without = self.targets.get(&target).filter(|state| state.allocators == 0);
        if let Some(state) = without
            && self.kernel.observes() == Observes::Allocations
        {
            let why = lock(&self.modules).explain(&state.process);
            bail!(
                "no known allocator in process {pid}: none of its files defines malloc or the like; its own can be described (--allocator). {why}"
            );
        }
        Ok(())
    }

    /// Attaches to a process that was not named. It can have ended, or be followed already.
    pub(super) fn attach_selected(&mut self, process: TargetProcess) -> anyhow::Result<()> {
        let Some(target) = self.add(process, Chosen::Selected)? else { return Ok(()) };
        self.begin_running(target)
    }

    fn begin_running(&mut self, target: u16) -> anyhow::Result<()> {
        self.attach_all_modules(target)?;
        self.runs(target)?;
        if let Some(state) = self.targets.get(&target) {
            // As late as can be, so that all that is older than the first event is in it.
            self.memory.follow(target, Arc::clone(&state.process), true)?;
        }
        self.enable(target);
        Ok(())
    }

    /// Probes all that a process has mapped that runs, and has its stacks walked.
    fn attach_all_modules(&mut self, target: u16) -> anyhow::Result<()> {
        // More than once, because libraries can be loaded meanwhile.
        while self.attach_new_modules(target)? > 0 {}
        self.bring_tables(target)
    }

    /// From now on programs are traced that are to be by what they are.
    pub(super) fn enable_new(&mut self) {
        self.kernel.enable_new();
    }

    /// Unless the targets are not observed just now.
    fn enable(&mut self, target: u16) {
        if self.windowed.as_ref().is_none_or(Windowed::is_open) {
            self.kernel.set_enabled(target, true);
        }
    }

    /// Makes a held command a target; it is recorded from its first instruction.
    pub(super) fn add_command(&mut self, process: TargetProcess) -> anyhow::Result<u16> {
        let target = self.add(process, Chosen::Command)?;
        let target = target.context("the command is traced already")?;
        if let Some(state) = self.targets.get(&target) {
            self.memory.follow(target, Arc::clone(&state.process), false)?;
        }
        self.enable(target);
        Ok(target)
    }

    /// A command that was held is let go, having loaded all it will run at first.
    pub(super) fn started(&mut self, target: u16) -> anyhow::Result<()> {
        self.runs(target)?;
        let Some(state) = self.targets.get(&target) else { return Ok(()) };
        if let Ok(seen) = mappings_of(&state.process) {
            let seen = observation_of(&self.modules, &state.process, &seen);
            self.tell(Control::Seen(target, seen))?;
        }
        Ok(())
    }

    /// What a target uses from now on must be probed.
    fn runs(&mut self, target: u16) -> anyhow::Result<()> {
        let now_ns = monotonic_ns();
        if let Some(state) = self.targets.get_mut(&target) {
            state.runs = true;
        }
        self.tell(Control::Runs(target, now_ns))
    }

    /// None if it is followed already.
    fn add(&mut self, process: TargetProcess, chosen: Chosen) -> anyhow::Result<Option<u16>> {
        let pid = process.pid();
        if self.kernel.target_of(pid).is_some() {
            return Ok(None);
        }
        let is_watched = chosen != Chosen::Selected || !self.kernel.tells_exits();
        let exit = is_watched.then(|| watch_exit(pid)).transpose()?;
        // A process number that was given to another process in between is noticed here.
        if !process.is_alive() {
            bail!("process {pid} ended before it could be traced");
        }
        let index = self
            .kernel
            .new_target()
            .with_context(|| format!("more than {MAX_TARGETS} processes were traced"))?;
        if !self.kernel.watch_process(index, pid)? {
            return Ok(None);
        }
        self.kernel.observe_faults(pid)?;
        let heap_end_avma = match chosen {
            _ if self.kernel.mappings_by().is_none() => None,
            // What it will run has none yet.
            Chosen::Command => None,
            Chosen::Named | Chosen::Selected => process.heap_end_avma()?,
        };
        let process = Arc::new(process);
        self.processes.insert(index, Arc::clone(&process));
        self.tell(Control::StartTarget(TargetStart {
            target: index,
            pid,
            start_ticks: process.start_ticks(),
            time_ns: monotonic_ns(),
            from_start: chosen == Chosen::Command,
            heap_end_avma,
        }))?;
        self.keep(
            index,
            Target { process, exit, attached: FxHashSet::default(), allocators: 0, runs: false },
        )?;
        Ok(Some(index))
    }

    fn keep(&mut self, index: u16, target: Target) -> anyhow::Result<()> {
        if let Some(guard) = &mut self.guard {
            guard.watch(target.process.pid(), target.process.start_ticks())?;
            self.kernel.let_stop(index);
        }
        self.targets.insert(index, target);
        Ok(())
    }

    /// The kernel side has begun to follow a process.
    fn begun(&mut self, target: u16, parent: Option<u16>, is_copy: bool) -> anyhow::Result<()> {
        let Some(process) = self.processes.get(target) else { return Ok(()) };
        if parent.is_none() {
            // A child has inherited it.
            self.kernel.observe_faults(process.pid())?;
        }
        let is_whole = is_copy && self.scope == ProbeScope::Host;
        let parent = parent.filter(|_| is_whole).and_then(|parent| self.targets.get(&parent));
        self.memory.follow_begun(target, Arc::clone(&process))?;
        let (attached, allocators) =
            parent.map(|parent| (parent.attached.clone(), parent.allocators)).unwrap_or_default();
        let exit = None;
        self.keep(target, Target { process, exit, attached, allocators, runs: true })?;
        if is_whole {
            // It has what its parent has, its tables too.
            return Ok(());
        }
        self.attach_all_modules(target)
    }

    /// Probes what is not probed yet in a target; how many modules that were.
    pub(super) fn attach_new_modules(&mut self, target: u16) -> anyhow::Result<usize> {
        let Some(state) = self.targets.get(&target) else { return Ok(0) };
        let (process, runs) = (Arc::clone(&state.process), state.runs);
        let seen = mappings_of(&process)?;
        let mut new: Vec<Arc<LoadedModule>> =
            probed_modules_of(&self.modules, &process, &seen.mappings);
        new.retain(|module| {
            !state.attached.contains(&module.module.id) && !module.is_file(self.own)
        });
        if !new.is_empty() {
            // Told, not left to be looked at: a short command would be gone by then.
            let seen = observation_of(&self.modules, &process, &seen);
            self.tell(Control::Seen(target, seen))?;
        }
        let coming = new.iter().filter(|module| module.is_allocator()).count();
        let known = self.targets.get(&target).map_or(0, |state| state.allocators);
        // Before they are probed: from then on a free that is seen in one of several may be handed on to another.
        self.kernel.set_single_allocator(target, known + coming == 1);
        let mut is_late = false;
        let only = OneTarget { target, pid: process.pid() };
        let only = (self.scope == ProbeScope::Targets).then_some(only);
        for module in &new {
            self.probe(only, module)?;
            if let Some(state) = self.targets.get_mut(&target) {
                state.attached.insert(module.module.id);
                state.allocators += usize::from(module.is_allocator());
            }
            // Where files are probed the collector finds who is late.
            is_late |= runs
                && self.kernel.observes() == Observes::Allocations
                && self.scope == ProbeScope::Targets
                && module.is_allocator();
        }
        if is_late {
            self.tell(Control::ProbedLate(target))?;
        }
        Ok(new.len())
    }

    /// A target has mapped an allocator. It may have ended by now, or execute something else; then the file is probed
    /// for the next process that uses it.
    fn allocator_mapped(&mut self, target: u16, module: ModuleId) -> anyhow::Result<()> {
        let attached = self.attach_new_modules(target).map(drop);
        if self.scope != ProbeScope::Host || self.probed.contains(&module) {
            return attached;
        }
        let module = lock(&self.modules).module(module).filter(|module| !module.is_file(self.own));
        if let Some(module) = module {
            // Even if the process that has mapped it is forgotten already: the next one may be as short.
            self.probe(None, &module)?;
        }
        attached
    }

    /// Has a file's probes attached for a target, or for all.
    fn probe(&mut self, only: Option<OneTarget>, module: &LoadedModule) -> anyhow::Result<()> {
        let id = module.module.id;
        let is_known = self.probed.contains(&id);
        if is_known && self.scope == ProbeScope::Host {
            return Ok(());
        }
        if !is_known && self.kernel.observes() == Observes::Allocations {
            for (probe, owner) in module.definitions() {
                self.tell(Control::DefineProbe(probe, owner))?;
            }
        }
        self.attach_module(only, module)?;
        self.probed.insert(id);
        if self.scope == ProbeScope::Host {
            self.tell(Control::FileProbed(id, monotonic_ns()))?;
        }
        Ok(())
    }

    /// Has the libraries probed that memscope has itself, above all the C library: most programs that are to be traced
    /// and do not run yet will have them, and the first of these must not be over before it was looked at.
    pub(super) fn probe_ahead(&mut self) -> anyhow::Result<()> {
        if self.scope != ProbeScope::Host {
            return Ok(());
        }
        let own = TargetProcess::open(std::process::id())?;
        let seen = mappings_of(&own)?;
        let mut modules = probed_modules_of(&self.modules, &own, &seen.mappings);
        modules.retain(|module| !module.is_file(self.own));
        for module in &modules {
            self.probe(None, module)?;
        }
        Ok(())
    }

    /// Does what was found to be necessary.
    pub(super) fn act_on(&mut self, notices: &[Notice]) {
        for notice in notices {
            let done = match *notice {
                Notice::Allocators(target) => self.attach_new_modules(target).map(drop),
                Notice::AllocatorMapped(target, module) => self.allocator_mapped(target, module),
                Notice::CodeChanged(target) => self.bring_tables(target),
                Notice::ProbesGone(target) => {
                    if let Some(state) = self.targets.get_mut(&target) {
                        state.attached.clear();
                        state.allocators = 0;
                    }
                    self.kernel.forget_probes(target);
                    self.attach_new_modules(target).map(drop)
                }
                Notice::Begun { target, parent, is_copy } => self.begun(target, parent, is_copy),
                Notice::Ended(target) => {
                    // Of a process that was named the status may be known better.
                    if self.targets.get(&target).is_some_and(|state| state.exit.is_none()) {
                        self.target_ended(target, None);
                    }
                    Ok(())
                }
            };
            match done {
                Ok(()) => {}
                // Its last libraries were mapped as it ended.
                Err(error) if is_about_exit(&error) => log::debug!("{error:#}"),
                Err(error) => log::warn!("new code of a target is not traced: {error:#}"),
            }
        }
    }

    /// Has a target's stacks walked by the tables of what it has mapped now.
    pub(super) fn bring_tables(&mut self, target: u16) -> anyhow::Result<()> {
        let Some(state) = self.targets.get(&target) else { return Ok(()) };
        bring_tables(&mut self.kernel, &self.tables, &self.modules, &state.process, target)
    }

    /// Does for the next tables what can be done before they are waited for, and what is left
    /// to do for the last ones, and closes what was read ahead of them in vain.
    pub(super) fn prepare(&mut self) -> anyhow::Result<()> {
        self.kernel.tables_mut().make_room()?;
        self.tables.keep_new();
        self.tables.forget_ahead();
        lock(&self.modules).forget_ahead();
        Ok(())
    }

    fn attach_module(
        &mut self,
        only: Option<OneTarget>,
        module: &LoadedModule,
    ) -> Result<(), KernelError> {
        let Some(file) = &module.file else {
            return Ok(());
        };
        if module.probes.is_empty() {
            return Ok(());
        }
        self.kernel.attach(&AttachRequest {
            only,
            file: &crate::target::path_of_open(file),
            shown_path: &module.module.path,
            probes: &module.probes,
        })
    }

    fn tell(&self, control: Control) -> anyhow::Result<()> {
        self.pipeline
            .input
            .send(Input::Control(control))
            .ok()
            .context("the collecting thread has ended")
    }

    /// Waits for the next target that exits; its index.
    pub(super) async fn next_exit(&self) -> u16 {
        let watched = self
            .targets
            .iter()
            .filter_map(|(index, target)| target.exit.as_ref().map(|exit| (*index, exit)));
        let exits = watched.map(|(index, exit)| {
            Box::pin(async move {
                // A descriptor that cannot be watched would never be ready; then the
                // trace goes on until it is ended from outside.
                if let Err(error) = exit.readable().await {
                    log::warn!("the end of a target will not be noticed: {error}");
                    std::future::pending::<()>().await;
                }
                index
            })
        });
        first_of(exits.collect()).await
    }

    /// A target has exited.
    pub(super) fn target_ended(&mut self, target: u16, status: Option<i32>) {
        let Some(state) = self.targets.remove(&target) else { return };
        let pid = state.process.pid();
        // While its stacks still have their numbers.
        match self.kernel.take_overflows() {
            Ok(counts) => self.pipeline.after_records(Control::Overflows(counts)),
            Err(error) => log::warn!("allocations without room are not counted: {error}"),
        }
        self.kernel.forget_process(target, pid);
        self.pipeline.after_records(Control::EndTarget { target, time_ns: monotonic_ns(), status });
    }

    pub(super) fn is_traced(&self, pid: u32) -> bool {
        self.kernel.target_of(pid).is_some()
    }

    pub(super) fn live_targets(&self) -> usize {
        self.targets.len()
    }

    /// Saves what the kernel side has counted; that, and how things stand.
    pub(super) fn save_counters(&mut self) -> anyhow::Result<(Counters, Progress)> {
        let mut counters = self.kernel.counters(self.pipeline.drain_state.received())?;
        // Records are being made while this is read, counted as attempted and not yet as
        // recorded or lost, or the other way around. Left out here; at the end there are none.
        counters.attempted =
            counters.recorded + counters.lost.iter().map(|(_, lost)| lost).sum::<u64>();
        self.tell(Control::Counters(counters.clone()))?;
        let overflows = self.kernel.take_overflows()?;
        if !overflows.is_empty() {
            self.pipeline.after_records(Control::Overflows(overflows));
        }
        if let Some(exact) = self.kernel.exact_counts()? {
            self.tell(Control::ExactCounts(exact))?;
        }
        self.tell_page_sums()?;
        Ok((counters, self.pipeline.progress.borrow().clone()))
    }

    fn tell_page_sums(&self) -> anyhow::Result<()> {
        match self.kernel.page_sums()? {
            Some(sums) => self.tell(Control::PageSums(sums)),
            None => Ok(()),
        }
    }

    fn observed(&self) -> Vec<Observed> {
        let live = self.targets.iter();
        live.map(|(index, target)| Observed { index: *index, pid: target.process.pid() }).collect()
    }

    /// From now on no more is spent than this.
    pub(super) fn limit(&mut self, limit: &Limit) -> anyhow::Result<()> {
        let observed = self.observed();
        self.windowed = Some(Windowed::begin(limit, &mut self.kernel, &observed)?);
        Ok(())
    }

    /// Keeps the budget; when to do it again, if there is one.
    pub(super) fn keep_budget(&mut self) -> anyhow::Result<Option<Duration>> {
        let observed = self.observed();
        let Some(windowed) = &mut self.windowed else { return Ok(None) };
        let calls = self.pipeline.drain_state.received().calls;
        let (window, wait) = windowed.step(&mut self.kernel, &observed, calls)?;
        if let Some(window) = window {
            self.pipeline.after_records(Control::Window(window));
        }
        Ok(Some(wait))
    }

    /// To be called before a target that has ended is waited for.
    pub(super) fn note_used(&mut self) {
        let observed = self.observed();
        if let Some(windowed) = &mut self.windowed {
            windowed.note(&self.kernel, &observed);
        }
    }

    /// What is spent now, if that is limited.
    pub(super) fn overhead(&mut self) -> anyhow::Result<Option<Overhead>> {
        let observed = self.observed();
        let Some(windowed) = &mut self.windowed else { return Ok(None) };
        Ok(Some(windowed.overhead(&self.kernel, &observed)?))
    }

    /// Those that have ended were named as they did.
    fn tell_thread_names(&self) -> anyhow::Result<()> {
        for (index, target) in &self.targets {
            self.tell(Control::ThreadNames(*index, target.process.thread_names()))?;
        }
        Ok(())
    }

    /// Ends recording, and brings everything into the file.
    pub(super) fn finish(mut self, reason: EndingReason) -> anyhow::Result<Recorded> {
        self.say_not_found();
        let observed = self.observed();
        let windowed = self.windowed.take();
        self.kernel.end_all();
        let ended_at_ns = monotonic_ns();
        self.tell_thread_names()?;
        let Self { mut kernel, pipeline, memory, guard, .. } = self;
        kernel.settle();
        let patience = Instant::now();
        while kernel.calls_in_flight()? > 0 && patience.elapsed() < IN_FLIGHT_PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A call is over before its record is written.
        kernel.settle();
        memory.finish()?;
        let collected = pipeline.finish(|state| {
            let mut counters = kernel.counters(state.received())?;
            counters.in_flight = kernel.calls_in_flight()?;
            let lost = counters.lost_total() + state.received().overwritten;
            if counters.attempted != counters.recorded + lost {
                log::error!(
                    "{} records were attempted, {} received and {lost} lost: please report this",
                    counters.attempted,
                    counters.recorded
                );
            }
            count_malformed(&mut counters, state.malformed(), state.received().overwritten);
            let exact = kernel.exact_counts()?.map(Control::ExactCounts);
            let window =
                windowed.map(|windowed| windowed.finish(&kernel, &observed)).transpose()?;
            let overflows = Control::Overflows(kernel.take_overflows()?);
            let pages = kernel.page_sums()?.map(Control::PageSums);
            let counts = exact.into_iter().chain(pages);
            let counts = counts.chain([overflows, Control::Counters(counters)]);
            Ok(window.map(Control::Window).into_iter().chain(counts).collect())
        })?;
        let Collected { analyzer, writer, failure, nonsense } = collected;
        if nonsense > 0 {
            log::warn!("{nonsense} records spoke of processes or probes that there are not");
        }
        if failure.is_some() {
            return Ok(Recorded {
                analyzer,
                end: RecordingEnd::Truncated,
                failure,
                attached: kernel,
                guard,
            });
        }
        let ending = Ending { ended_at_ns, reason };
        let failure = writer.finish(&ending).err().map(Arc::new);
        let end = RecordingEnd::Complete(ending);
        Ok(Recorded { analyzer, end, failure, attached: kernel, guard })
    }
}

/// A descriptor that is ready when a process has ended.
fn watch_exit(pid: u32) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let exit = pidfd_open(
        Pid::from_raw(pid.cast_signed()).context("no process has the number 0")?,
        PidfdFlags::empty(),
    )
    .with_context(|| format!("process {pid} has ended"))?;
    // SAFETY: it owns the descriptor and keeps it until it is dropped.
    unsafe { AsyncFd::register_with_interest(exit, Interest::READABLE) }
        .context("cannot watch the process")
}

/// Whether something could not be done because the process has exited.
fn is_about_exit(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(TargetError::Exited { .. } | TargetError::NoSuchProcess { .. })
    )
}

/// Records that arrived damaged were recorded by the kernel side, and are lost all the same; and
/// so are those that were overwritten, which did not arrive.
fn count_malformed(counters: &mut Counters, malformed: u64, overwritten: u64) {
    counters.recorded -= malformed;
    counters.malformed = malformed;
    counters.lost.push((LossCause::MalformedRecord, malformed + overwritten));
}

/// The first of several futures to be ready; never, if there are none.
async fn first_of<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(move |context| {
        for future in &mut futures {
            if let std::task::Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return std::task::Poll::Ready(output);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
