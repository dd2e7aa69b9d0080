//! The threads between the ring and the recording. Each owns what it works on:
//!
//! ```text
//! drain:    ring → decode ──┐ mappings, records
//! main:     control ────────┴─▶ pipeline: collect → lifetimes, store
//! symbols:  names ◀─ frames ──────┘  ▲
//!                └──── names ────────┘
//! ```
//!
//! The channel into the pipeline is bounded: when it is full the drain thread waits,
//! the ring fills, and the kernel side counts what is lost. Nothing is lost uncounted.

use std::{
    collections::VecDeque,
    io::Write,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustc_hash::FxHashSet;
use tokio::sync::{mpsc::UnboundedSender, watch};

use super::{
    memory::{HeldReadings, Reading},
    modules::{EventFilter, Notice, SharedModules, SharedProcesses, TargetEvent, TargetView},
    naming::{SymbolJob, symbolize},
    pause::Resumer,
};
use crate::{
    collect::{
        Collector, DecodeError, Decoder, Observation, OfImage, Probing, ProcessBegin, Record,
        TargetStart, is_fork, parent_of,
    },
    kernel::{EventRing, MmapEvents, OverflowCount, RawRecord, Received},
    model::{
        Counters, Event, ExactCounts, FrameSymbols, Item, ModuleId, Observes, PageSums, Probe,
        ProbeOwner, ProbeScope, Window,
    },
    reports::Analyzer,
    store::{StoreError, Writer},
    symbols::Debuginfod,
    target::{MappedFile, TargetProcess},
};

/// Records handed over at once.
const BATCH_RECORDS: usize = 4096;
/// Bytes of records from which on no more is handed over at once: copies of stacks are large.
const BATCH_BYTES: usize = 4 << 20;
/// Batches that may wait for the pipeline.
const WAITING_BATCHES: usize = 256;
/// How often the generated code of a target is looked for.
const GENERATING_INTERVAL: Duration = Duration::from_millis(100);
/// How long records may wait in the ring of a target that calls now and then.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long one has to have been silent for the ring to be looked at less often, and how often then: each
/// look costs some 90 µs of processor time, as the processor sleeps in between.
const SILENCE: Duration = Duration::from_millis(250);
const SILENT_POLL_INTERVAL: Duration = Duration::from_millis(80);
/// How often what is still being written is looked for when recording has ended, and how long.
const LAST_RECORDS_INTERVAL: Duration = Duration::from_millis(1);
const LAST_RECORDS_PATIENCE: Duration = Duration::from_millis(100);
/// Of so many targets that have ended, what is known of their memory is kept: records can be kept back
/// by the rings, and what was mapped last is told by process ids.
const KEPT_TARGETS: usize = 64;
/// What a crash of memscope can cost of the recording.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// How often lost reports of new code make the collector look at all targets.
const LOSS_INTERVAL: Duration = Duration::from_millis(100);
/// How much later a loss may be known than it was: the kernel tells it before the next report on the same
/// processor.
const LOSS_HINDSIGHT: Duration = Duration::from_secs(1);

/// Longer than the rings keep back a record that was written.
const LAST_MOMENT: Duration = Duration::from_micros(50);

/// What reaches the pipeline.
pub(super) enum Input {
    /// Before the records of code that was mapped.
    Mapped(Vec<TargetEvent>),
    /// The kernel has not told of all that was mapped since then.
    MappingsLost {
        since_ns: u64,
    },
    Records(Vec<Record>),
    Control(Control),
    Symbols(Vec<FrameSymbols>),
}

/// What the main thread tells the pipeline.
pub(super) enum Control {
    DefineProbe(Probe, Option<ProbeOwner>),
    StartTarget(TargetStart),
    Seen(u16, Observation),
    EndTarget {
        target: u16,
        time_ns: u64,
        status: Option<i32>,
    },
    /// For a target; where files are probed, see [`Self::FileProbed`].
    ProbedLate(u16),
    /// A file is probed in all processes, since a moment.
    FileProbed(ModuleId, u64),
    /// A target runs and is recorded, since a moment.
    Runs(u16, u64),
    /// What threads of a target are called that run when recording ends.
    ThreadNames(u16, Vec<(u32, String)>),
    Counters(Counters),
    ExactCounts(ExactCounts),
    PageSums(PageSums),
    /// What is mapped by system calls is recorded; to be said before all of it.
    MappingsObserved,
    Overflows(Vec<OverflowCount>),
    Window(Window),
    /// Of a target at some moment, told at once: it waits for the records before it.
    Memory(Box<Reading>),
    NoMoreRecords,
}

/// How things stand, for the status line.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) events: u64,
    pub(super) resident_bytes: u64,
    /// Made resident by page faults; none if these are not observed.
    pub(super) faulted_bytes: Option<u64>,
    pub(super) written_bytes: u64,
    /// Why the recording cannot go on.
    pub(super) failure: Option<Arc<StoreError>>,
}

/// What the drain thread shares with the main thread.
#[derive(Debug, Default)]
pub(super) struct DrainState {
    stop: AtomicBool,
    records: AtomicU64,
    slots_taken: AtomicU64,
    overwritten: AtomicU64,
    calls: AtomicU64,
    frees: AtomicU64,
    malformed: AtomicU64,
}

/// Of one batch.
#[derive(Clone, Copy, Debug, Default)]
struct BatchCounts {
    calls: u64,
    frees: u64,
    malformed: u64,
}

impl DrainState {
    pub(super) fn received(&self) -> Received {
        Received {
            records: self.records.load(Ordering::Acquire),
            slots_taken: self.slots_taken.load(Ordering::Acquire),
            overwritten: self.overwritten.load(Ordering::Acquire),
            calls: self.calls.load(Ordering::Acquire),
            frees: self.frees.load(Ordering::Acquire),
        }
    }

    fn add(&self, records: usize, counts: BatchCounts) {
        for (counter, count) in [
            (&self.records, records as u64),
            (&self.calls, counts.calls),
            (&self.frees, counts.frees),
            (&self.malformed, counts.malformed),
        ] {
            counter.fetch_add(count, Ordering::AcqRel);
        }
    }

    pub(super) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Acquire)
    }
}

/// The running threads.
pub(super) struct Pipeline<W> {
    pub(super) input: SyncSender<Input>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) drain_state: Arc<DrainState>,
    after_drain: Sender<Control>,
    /// Wakes the draining thread.
    wake_drain: Arc<EventFd>,
    drain: JoinHandle<anyhow::Result<()>>,
    collect: JoinHandle<Collected<W>>,
    symbols: JoinHandle<()>,
}

/// What the pipeline leaves when everything has gone through it.
pub(super) struct Collected<W> {
    pub(super) analyzer: Analyzer,
    pub(super) writer: Writer<W>,
    pub(super) failure: Option<Arc<StoreError>>,
    /// Records that spoke of what there is not.
    pub(super) nonsense: u64,
}

/// What a pipeline is made of.
pub(super) struct PipelineParts<W> {
    pub(super) ring: EventRing,
    /// If targets may be stopped.
    pub(super) resumer: Option<Resumer>,
    pub(super) view: TargetView,
    pub(super) debuginfod: Option<Debuginfod>,
    pub(super) writer: Writer<W>,
    pub(super) follow: Following,
}

/// How processes come to be targets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Following {
    /// Whether some do so by themselves.
    pub(super) follows: bool,
    pub(super) scope: ProbeScope,
    pub(super) observes: Observes,
}

impl Following {
    fn probing(self) -> Probing {
        match (self.observes, self.scope) {
            (Observes::PageFaults, _) => Probing::Nothing,
            (_, ProbeScope::Host) => Probing::Files,
            (_, ProbeScope::Targets) => Probing::Processes,
        }
    }
}

impl<W: Write + Send + 'static> Pipeline<W> {
    pub(super) fn start(parts: PipelineParts<W>, modules: SharedModules) -> anyhow::Result<Self> {
        let PipelineParts { ring, resumer, view, debuginfod, writer, follow } = parts;
        let (input, receiver) = mpsc::sync_channel(WAITING_BATCHES);
        let (after_drain, after_drain_receiver) = mpsc::channel();
        let (jobs, job_receiver) = mpsc::channel();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let drain_state = Arc::new(DrainState::default());
        let mappings = Mappings::open(&view, follow.follows);
        let wake_drain = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("cannot make an event descriptor")?;
        let wake_drain = Arc::new(wake_drain);
        let drain = spawn("memscope-drain", {
            let (state, input) = (Arc::clone(&drain_state), input.clone());
            let drain = Drain { ring, resumer, mappings, woken: Arc::clone(&wake_drain) };
            move || drain.run(&state, &input, &after_drain_receiver)
        })?;
        let symbols = spawn("memscope-symbols", {
            let input = input.clone();
            move || symbolize(&job_receiver, &modules, debuginfod, &input)
        })?;
        let collect = spawn("memscope-collect", move || {
            Collect::new(view, follow.probing(), writer, jobs, progress_sender).run(&receiver)
        })?;
        Ok(Self { input, progress, drain_state, after_drain, wake_drain, drain, collect, symbols })
    }

    /// What was said to the draining thread is heard at once.
    fn wake_drain(&self) {
        if let Err(error) = self.wake_drain.write(1) {
            log::debug!("the draining thread is not woken: {error}");
        }
    }

    /// To be said to the pipeline once all records made until now are through.
    pub(super) fn after_records(&self, control: Control) {
        if self.after_drain.send(control).is_err() {
            log::debug!("the drain thread has ended");
        }
        self.wake_drain();
    }

    /// Takes what is left in the ring, then says `last` and waits until everything is
    /// named and written. Recording must have ended.
    pub(super) fn finish(
        self,
        last: impl FnOnce(&DrainState) -> anyhow::Result<Vec<Control>>,
    ) -> anyhow::Result<Collected<W>> {
        self.drain_state.stop.store(true, Ordering::Release);
        self.wake_drain();
        join(self.drain)??;
        for control in last(&self.drain_state)? {
            self.input
                .send(Input::Control(control))
                .ok()
                .context("the collecting thread has ended")?;
        }
        self.input
            .send(Input::Control(Control::NoMoreRecords))
            .ok()
            .context("the collecting thread has ended")?;
        drop(self.input);
        let collected = join(self.collect)?;
        join(self.symbols)?;
        Ok(collected)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).context("cannot start a thread")
}

fn join<T>(thread: JoinHandle<T>) -> anyhow::Result<T> {
    thread.join().map_err(|_panic| anyhow::anyhow!("a thread of memscope has panicked"))
}

/// What the kernel tells of new code in the targets.
struct Mappings {
    /// None if the kernel refuses; then new code is noticed later.
    events: Option<MmapEvents>,
    filter: EventFilter,
    held: Vec<TargetEvent>,
    /// Losses that the collecting thread knows of, and when it was told last.
    told_lost: u64,
    notices: UnboundedSender<Notice>,
    processes: SharedProcesses,
    /// Targets that have generated code of which the attaching thread does not know yet.
    generating: FxHashSet<u16>,
    told_generating_at: Instant,
    told_at: Instant,
}

impl Mappings {
    fn open(view: &TargetView, follows: bool) -> Self {
        let events = MmapEvents::open()
            .map_err(anyhow::Error::from)
            .inspect_err(|error| {
                log::warn!("libraries that are unloaded soon may stay without names: {error:#}");
            })
            .ok();
        Self {
            events,
            filter: EventFilter::new(view.processes.clone(), follows),
            held: Vec::new(),
            told_lost: 0,
            notices: view.notices.clone(),
            processes: view.processes.clone(),
            generating: FxHashSet::default(),
            told_generating_at: Instant::now(),
            told_at: Instant::now(),
        }
    }

    /// Tells the attaching thread what it must know of a record.
    fn note(&mut self, record: &Record) {
        if let Record::ProcessBegin(begin) = record {
            self.follow(begin);
        }
        let notice = notice_of(record);
        if notice.is_some_and(|notice| self.notices.send(notice).is_err()) {
            log::debug!("after the end: {notice:?}");
        }
    }

    /// A process is followed: what the kernel has told of it is a target's from now on.
    fn follow(&mut self, begin: &ProcessBegin) {
        let process = TargetProcess::open(begin.pid)
            .inspect_err(|error| log::debug!("a process has ended soon: {error}"))
            .unwrap_or_else(|_gone| TargetProcess::gone(begin.pid));
        let target = begin.header.target;
        self.processes.insert(target, Arc::new(process));
        // Its record can be behind what a fork's child has mapped and executed since, as the rings keep back what was
        // made in the last moment. One that becomes a target by an exec is told of before that.
        let since_ns = if is_fork(begin) { begin.header.time_ns } else { 0 };
        self.filter.claim(begin.pid, since_ns, |event| self.held.push(event));
    }

    /// Has tables made for what was mapped. Compilers of generated code change their memory
    /// all the time; frame pointers do for it meanwhile, so it is told now and then.
    fn notice(&mut self, events: &[TargetEvent]) {
        let mut changed: FxHashSet<u16> = FxHashSet::default();
        for event in events {
            match event {
                TargetEvent::Mapped(mapped) if mapped.mapping.file == MappedFile::Anonymous => {
                    self.generating.insert(mapped.target);
                }
                TargetEvent::Mapped(mapped) => {
                    changed.insert(mapped.target);
                }
                TargetEvent::Replaced { .. } => {}
            }
        }
        if !self.generating.is_empty() && self.told_generating_at.elapsed() > GENERATING_INTERVAL {
            self.told_generating_at = Instant::now();
            changed.extend(self.generating.drain());
        }
        for target in changed {
            if self.notices.send(Notice::CodeChanged(target)).is_err() {
                log::debug!("after the end: code has changed");
            }
        }
    }

    /// Hands over what was told until now.
    fn send(&mut self, input: &SyncSender<Input>) -> anyhow::Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        // Each processor tells what happened on it; what happened since the first was asked
        // is kept until all have been asked again, to be told in the order of time.
        let asked_ns = super::monotonic_ns();
        events.drain(|event| self.filter.take(event, |event| self.held.push(event)));
        self.held.sort_by_key(TargetEvent::time_ns);
        let ready = self.held.partition_point(|event| event.time_ns() <= asked_ns);
        let mapped: Vec<TargetEvent> = self.held.drain(..ready).collect();
        if events.lost() > self.told_lost && self.told_at.elapsed() >= LOSS_INTERVAL {
            (self.told_lost, self.told_at) = (events.lost(), Instant::now());
            let since_ns = asked_ns.saturating_sub(LOSS_HINDSIGHT.as_nanos() as u64);
            send(input, Input::MappingsLost { since_ns })?;
        }
        self.notice(&mapped);
        if mapped.is_empty() { Ok(()) } else { send(input, Input::Mapped(mapped)) }
    }

    /// Whether something was told that is not handed over yet.
    fn keeps_back(&self) -> bool {
        !self.held.is_empty()
    }

    fn say_lost(&self) {
        let lost = self.events.as_ref().map_or(0, MmapEvents::lost);
        if lost > 0 {
            log::warn!(
                "{lost} reports of the kernel on new code, of whatever process, were lost: libraries that were unloaded soon may be without names"
            );
        }
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.events.iter().flat_map(MmapEvents::as_fds)
    }
}

fn send(input: &SyncSender<Input>, what: Input) -> anyhow::Result<()> {
    input.send(what).ok().context("the collecting thread has ended")
}

fn decoded(
    decoder: &mut Decoder,
    raw: RawRecord<'_>,
    counts: &mut BatchCounts,
) -> Result<Option<Record>, DecodeError> {
    let record = match raw {
        RawRecord::Small(words) => decoder.decode_small(words).map(Some),
        RawRecord::Large(bytes) => decoder.decode(bytes),
    }?;
    match &record {
        Some(Record::Allocation(_) | Record::ReallocationEnd(_)) => counts.calls += 1,
        Some(Record::Free(_)) => counts.frees += 1,
        _ => {}
    }
    Ok(record)
}

/// Lets stopped targets go on if there is room for what they will do; whether there is. What
/// waits can be behind a record that is not written yet, because its task was interrupted: then
/// there is no room although nothing can be taken.
fn resume_if_room(resumer: Option<&Resumer>, ring: &EventRing, stop: bool) -> bool {
    let has_room = ring.has_room();
    if let Some(resumer) = resumer.filter(|_| has_room || stop) {
        resumer.resume();
    }
    has_room
}

/// What the attaching thread must know of a record.
fn notice_of(record: &Record) -> Option<Notice> {
    Some(match record {
        Record::CodeChanged(record) => Notice::CodeChanged(record.header.target),
        Record::Exec(record) => Notice::CodeChanged(record.header.target),
        Record::ProcessBegin(record) => Notice::Begun {
            target: record.header.target,
            is_copy: is_fork(record),
            parent: parent_of(record),
        },
        Record::ProcessExit(record) => Notice::Ended(record.header.target),
        _ => return None,
    })
}

/// What the draining thread works with.
struct Drain {
    ring: EventRing,
    resumer: Option<Resumer>,
    mappings: Mappings,
    /// By those who say something to this thread. Never read: that it was written to again is what wakes.
    woken: Arc<EventFd>,
}

impl Drain {
    fn run(
        self,
        state: &DrainState,
        input: &SyncSender<Input>,
        after_drain: &Receiver<Control>,
    ) -> anyhow::Result<()> {
        let Self { mut ring, resumer, mut mappings, woken } = self;
        super::set_niceness(super::DRAIN_NICENESS);
        ring.also_wake_by(mappings.fds().chain([woken.as_fd()]))?;
        let mut heard_at = Instant::now();
        let mut decoder = Decoder::default();
        let mut stopped_at = None;
        loop {
            // Read before the ring: what is in it now was made before these were said.
            let stop = state.stop.load(Ordering::Acquire);
            let controls: Vec<Control> = after_drain.try_iter().collect();
            if !controls.is_empty() {
                // The rings keep back what was made in the last moment.
                std::thread::sleep(LAST_MOMENT);
            }
            loop {
                let mut batch = Vec::with_capacity(BATCH_RECORDS);
                let mut counts = BatchCounts::default();
                let count = ring.drain(BATCH_RECORDS, BATCH_BYTES, |raw| {
                    match decoded(&mut decoder, raw, &mut counts) {
                        Ok(record) => {
                            // Not by way of the collector, which may have much to do before.
                            record.iter().for_each(|record| mappings.note(record));
                            batch.extend(record);
                        }
                        Err(error) => {
                            counts.malformed += 1;
                            log::debug!("{error}");
                        }
                    }
                });
                state.add(count, counts);
                state.slots_taken.store(ring.slots_taken(), Ordering::Release);
                state.overwritten.store(ring.overwritten(), Ordering::Release);
                // After the batch was read and before it is handed over: so the collector knows of
                // every mapping that was made before a record of the batch.
                mappings.send(input)?;
                if count == 0 {
                    break;
                }
                heard_at = Instant::now();
                // Copies are few to a batch. Its room is used again for the next one, while fresh
                // memory would have to be had page by page.
                batch.shrink_to_fit();
                send(input, Input::Records(batch))?;
            }
            let has_room = resume_if_room(resumer.as_ref(), &ring, stop);
            for control in controls {
                send(input, Input::Control(control))?;
            }
            if !stop {
                let is_soon = !has_room || ring.keeps_back();
                let is_silent = !mappings.keeps_back() && heard_at.elapsed() > SILENCE;
                ring.wait(longest_wait(is_soon, is_silent))?;
                continue;
            }
            // Those of the last moment, and those whose tasks were interrupted in between.
            let stopped_at = *stopped_at.get_or_insert_with(Instant::now);
            if ring.is_empty() || stopped_at.elapsed() > LAST_RECORDS_PATIENCE {
                mappings.say_lost();
                return Ok(());
            }
            std::thread::sleep(LAST_RECORDS_INTERVAL);
        }
    }
}

/// Until the rings are looked at again, whatever wakes the reader before.
fn longest_wait(is_soon: bool, is_silent: bool) -> Duration {
    match (is_soon, is_silent) {
        (true, _) => LAST_RECORDS_INTERVAL,
        (false, false) => POLL_INTERVAL,
        (false, true) => SILENT_POLL_INTERVAL,
    }
}

/// State of the collecting thread.
struct Collect<W> {
    collector: Collector<TargetView>,
    sink: Sink<W>,
    readings: HeldReadings,
    /// Targets that ended last.
    ended: VecDeque<u16>,
    progress: watch::Sender<Progress>,
    flushed_at: Instant,
}

/// Where items go: to the live analysis, the recording, and what is to be named.
struct Sink<W> {
    analyzer: Analyzer,
    writer: Writer<W>,
    /// Dropped when no more frames will come, which ends the symbol thread.
    jobs: Option<Sender<SymbolJob>>,
    events: u64,
    failure: Option<Arc<StoreError>>,
}

impl<W: Write> Sink<W> {
    fn take(&mut self, item: &Item) {
        self.analyzer.apply(item, |_ended| {});
        if self.failure.is_none()
            && let Err(error) = self.writer.push(item)
        {
            self.failure = Some(Arc::new(error));
        }
        if let Item::Event(event) = item {
            self.events += u64::from(!matches!(event, Event::Loss { .. }));
        }
        if let Some(jobs) = &self.jobs
            && let Some(job) = SymbolJob::of(item)
            && jobs.send(job).is_err()
        {
            log::debug!("the symbol thread has ended");
        }
    }

    fn flush(&mut self) {
        if self.failure.is_none()
            && let Err(error) = self.writer.flush()
        {
            self.failure = Some(Arc::new(error));
        }
    }
}

impl<W: Write> Collect<W> {
    fn new(
        view: TargetView,
        probing: Probing,
        writer: Writer<W>,
        jobs: Sender<SymbolJob>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        Self {
            collector: Collector::new(view, probing),
            sink: Sink {
                analyzer: Analyzer::default(),
                writer,
                jobs: Some(jobs),
                events: 0,
                failure: None,
            },
            readings: HeldReadings::default(),
            ended: VecDeque::new(),
            progress,
            flushed_at: Instant::now(),
        }
    }

    fn run(mut self, input: &Receiver<Input>) -> Collected<W> {
        loop {
            match input.recv_timeout(FLUSH_INTERVAL) {
                Ok(Input::Records(records)) => {
                    self.records(&records);
                    let sink = &mut self.sink;
                    // Soon, so that a new image's allocator is probed early.
                    self.collector.refresh(super::monotonic_ns(), |item| sink.take(&item));
                }
                Ok(Input::Mapped(events)) => self.mapped(events),
                Ok(Input::MappingsLost { since_ns }) => {
                    let sink = &mut self.sink;
                    self.collector.mappings_lost(since_ns, |item| sink.take(&item));
                }
                Ok(Input::Symbols(symbols)) => {
                    for symbols in symbols {
                        self.sink.take(&Item::Symbols(symbols));
                    }
                }
                Ok(Input::Control(control)) => self.control(control),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if self.flushed_at.elapsed() >= FLUSH_INTERVAL {
                self.publish();
            }
        }
        self.publish();
        let forgotten = self.collector.forgotten_ranges();
        if forgotten > 0 {
            log::warn!("{forgotten} mappings of code were too many to be remembered");
        }
        let copied = self.collector.copied_stacks();
        log::info!(
            "{} stacks were walked from copies, {} of them completely",
            copied.count,
            copied.complete
        );
        let over_limit = self.collector.stacks_over_limit();
        if over_limit > 0 {
            log::warn!("{over_limit} stacks were too many to be kept whole");
        }
        Collected {
            analyzer: self.sink.analyzer,
            writer: self.sink.writer,
            failure: self.sink.failure,
            nonsense: self.collector.nonsense(),
        }
    }

    /// Takes records, and the readings that come in between.
    fn records(&mut self, records: &[Record]) {
        let mut rest = records;
        loop {
            let next = self.readings.within(rest);
            let (now, later) =
                rest.split_at(next.as_ref().map_or(rest.len(), |(before, _)| *before));
            let sink = &mut self.sink;
            for record in now {
                self.collector.take(record, |item| sink.take(&item));
            }
            let Some((_, reading)) = next else { return };
            self.memory_read(reading);
            rest = later;
        }
    }

    fn memory_read(&mut self, reading: Reading) {
        let Reading { target, time_ns, memory } = reading;
        let sink = &mut self.sink;
        self.collector.memory_read(target, time_ns, memory, |item| sink.take(&item));
    }

    /// No record of what happened until now will come any more.
    fn give_readings(&mut self) {
        while let Some(reading) = self.readings.next() {
            self.memory_read(reading);
        }
    }

    fn mapped(&mut self, events: Vec<TargetEvent>) {
        for event in events {
            match event {
                TargetEvent::Mapped(mapped) => {
                    let (target, time_ns) = (mapped.target, mapped.time_ns);
                    let range = self.collector.view().code_range_of_event(mapped);
                    let sink = &mut self.sink;
                    self.collector.mapped(target, time_ns, range, |item| sink.take(&item));
                }
                TargetEvent::Replaced { target, time_ns } => {
                    self.collector.replaced(target, time_ns);
                }
            }
        }
    }

    fn control(&mut self, control: Control) {
        // What lived in a window is not followed on when it has ended.
        let ends = |control: &Control| {
            matches!(
                control,
                Control::EndTarget { .. } | Control::Window(_) | Control::NoMoreRecords
            )
        };
        if ends(&control) {
            self.give_readings();
        }
        let (collector, sink) = (&mut self.collector, &mut self.sink);
        match control {
            Control::DefineProbe(probe, owner) => {
                collector.define_probe(probe, owner, |item| sink.take(&item));
            }
            Control::StartTarget(start) => collector.start_target(&start, |item| sink.take(&item)),
            Control::Seen(target, seen) => {
                collector.saw(target, seen, super::monotonic_ns(), |item| sink.take(&item));
            }
            Control::EndTarget { target, time_ns, status } => {
                collector.end_target(target, time_ns, status, |item| sink.take(&item));
                self.ended.push_back(target);
                if self.ended.len() > KEPT_TARGETS
                    && let Some(target) = self.ended.pop_front()
                {
                    collector.forget_target(target, |item| sink.take(&item));
                    collector.view().processes.remove(target);
                }
            }
            Control::ProbedLate(target) => {
                collector.probed_late(target, |item| sink.take(&item));
            }
            Control::FileProbed(module, since_ns) => {
                collector.file_probed(module, since_ns, |item| sink.take(&item));
            }
            Control::Runs(target, since_ns) => {
                collector.runs(target, since_ns, |item| sink.take(&item));
            }
            Control::ThreadNames(target, names) => {
                collector.thread_names(target, names, |item| sink.take(&item));
            }
            Control::Counters(counters) => sink.take(&Item::Counters(counters)),
            Control::Overflows(counts) => {
                for count in counts {
                    let of = OfImage { target: count.target, image: count.image };
                    let sums = (count.allocations, count.bytes);
                    let now_ns = super::monotonic_ns();
                    collector.counted(of, count.stack, sums, now_ns, |item| sink.take(&item));
                }
            }
            Control::ExactCounts(exact) => sink.take(&Item::ExactCounts(exact)),
            Control::PageSums(sums) => sink.take(&Item::PageSums(sums)),
            Control::MappingsObserved => sink.take(&Item::MappingsObserved),
            Control::Window(window) => sink.take(&Item::Window(window)),
            Control::Memory(reading) => self.readings.hold(*reading),
            Control::NoMoreRecords => {
                collector.finish(|item| sink.take(&item));
                sink.jobs = None;
            }
        }
    }

    /// What is done from time to time: save, tell how things stand.
    fn publish(&mut self) {
        self.flushed_at = Instant::now();
        while let Some(reading) = self.readings.overdue(super::monotonic_ns()) {
            self.memory_read(reading);
        }
        let sink = &mut self.sink;
        sink.flush();
        self.progress.send_replace(Progress {
            events: sink.events,
            resident_bytes: sink.analyzer.tracker().resident_bytes(),
            faulted_bytes: sink.analyzer.faulted_bytes(),
            written_bytes: sink.writer.written_bytes(),
            failure: sink.failure.clone(),
        });
    }
}
