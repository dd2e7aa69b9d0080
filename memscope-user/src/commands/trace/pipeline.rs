//! The threads between the ring and the recording. Each owns what it works on:
//!
//! ```text
//! drain:    ring → decode ──┐ records
//! main:     control ────────┴─▶ pipeline: order → collect → lifetimes, store
//! symbols:  names ◀─ frames ──────┘  ▲
//!                └──── names ────────┘
//! ```
//!
//! The channel into the pipeline is bounded: when it is full the drain thread waits,
//! the ring fills, and the kernel side counts what is lost. Nothing is lost uncounted.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc::UnboundedSender, watch};

use super::modules::{Notice, SharedModules, TargetView, lock};
use crate::{
    collect::{Collector, Observation, Order, ProbeDefinition, Record, TargetStart, decode},
    kernel::EventRing,
    model::{Counters, Event, FrameId, FrameSymbols, Item, Location, ModuleId},
    reports::Analyzer,
    store::{StoreError, Writer},
    symbols::{SymbolSource, Symbolizer},
};

/// Records handed over at once.
const BATCH_RECORDS: usize = 4096;
/// Batches that may wait for the pipeline.
const WAITING_BATCHES: usize = 64;
/// How long records may wait in the ring of a quiet target.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What a crash of memscope can cost of the recording.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Frames named at once.
const SYMBOL_BATCH: usize = 256;

/// What reaches the pipeline.
pub(super) enum Input {
    Records(Vec<Record>),
    Control(Control),
    Symbols(Vec<FrameSymbols>),
}

/// What the main thread tells the pipeline.
pub(super) enum Control {
    DefineProbe(ProbeDefinition),
    StartTarget(TargetStart),
    Seen(u16, Observation),
    EndTarget { target: u16, time_ns: u64, status: Option<i32> },
    ProbedLate(u16),
    Counters(Counters),
    NoMoreRecords,
}

/// How things stand, for the status line.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) events: u64,
    pub(super) resident_bytes: u64,
    pub(super) written_bytes: u64,
    /// Why the recording cannot go on.
    pub(super) failure: Option<Arc<StoreError>>,
}

/// What the drain thread shares with the main thread.
#[derive(Debug, Default)]
pub(super) struct DrainState {
    stop: AtomicBool,
    received: AtomicU64,
    malformed: AtomicU64,
}

impl DrainState {
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
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

impl<W: Write + Send + 'static> Pipeline<W> {
    pub(super) fn start(
        ring: EventRing,
        view: TargetView,
        modules: SharedModules,
        writer: Writer<W>,
    ) -> anyhow::Result<Self> {
        let (input, receiver) = mpsc::sync_channel(WAITING_BATCHES);
        let (after_drain, after_drain_receiver) = mpsc::channel();
        let (jobs, job_receiver) = mpsc::channel();
        let (progress_sender, progress) = watch::channel(Progress::default());
        let drain_state = Arc::new(DrainState::default());
        let drain = spawn("memscope-drain", {
            let (state, input) = (Arc::clone(&drain_state), input.clone());
            let notices = view.notices.clone();
            move || drain(ring, &state, &input, &after_drain_receiver, &notices)
        })?;
        let symbols = spawn("memscope-symbols", {
            let input = input.clone();
            move || symbolize(&job_receiver, &modules, &input)
        })?;
        let collect = spawn("memscope-collect", move || {
            Collect::new(view, writer, jobs, progress_sender).run(&receiver)
        })?;
        Ok(Self { input, progress, drain_state, after_drain, drain, collect, symbols })
    }

    /// To be said to the pipeline once all records made until now are through.
    pub(super) fn after_records(&self, control: Control) {
        if self.after_drain.send(control).is_err() {
            log::debug!("the drain thread has ended");
        }
    }

    /// Takes what is left in the ring, then says `last` and waits until everything is
    /// named and written. Recording must have ended.
    pub(super) fn finish(
        self,
        last: impl FnOnce(&DrainState) -> anyhow::Result<Vec<Control>>,
    ) -> anyhow::Result<Collected<W>> {
        self.drain_state.stop.store(true, Ordering::Release);
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

fn drain(
    mut ring: EventRing,
    state: &DrainState,
    input: &SyncSender<Input>,
    after_drain: &Receiver<Control>,
    notices: &UnboundedSender<Notice>,
) -> anyhow::Result<()> {
    loop {
        // Read before the ring: what is in it now was made before these were said.
        let stop = state.stop.load(Ordering::Acquire);
        let controls: Vec<Control> = after_drain.try_iter().collect();
        loop {
            let mut batch = Vec::with_capacity(BATCH_RECORDS);
            let mut malformed = 0;
            let count = ring.drain(BATCH_RECORDS, |bytes| match decode(bytes) {
                Ok(record) => {
                    // Not by way of the collector, which may have much to do before.
                    if let Some(target) = record.changed_code_of()
                        && notices.send(Notice::CodeChanged(target)).is_err()
                    {
                        log::debug!("after the end: code has changed");
                    }
                    batch.push(record);
                }
                Err(error) => {
                    malformed += 1;
                    log::debug!("{error}");
                }
            });
            state.received.fetch_add(count as u64, Ordering::AcqRel);
            state.malformed.fetch_add(malformed, Ordering::AcqRel);
            if count == 0 {
                break;
            }
            input.send(Input::Records(batch)).ok().context("the collecting thread has ended")?;
        }
        for control in controls {
            input.send(Input::Control(control)).ok().context("the collecting thread has ended")?;
        }
        if stop {
            return Ok(());
        }
        ring.wait(POLL_INTERVAL)?;
    }
}

/// A frame that wants a name.
struct SymbolJob {
    frame: FrameId,
    module: ModuleId,
    file_offset: u64,
}

fn symbolize(jobs: &Receiver<SymbolJob>, modules: &SharedModules, output: &SyncSender<Input>) {
    let symbolizer = Symbolizer::new();
    let mut sources: FxHashMap<ModuleId, Option<SymbolSource>> = FxHashMap::default();
    while let Ok(first) = jobs.recv() {
        let mut by_module: FxHashMap<ModuleId, Vec<SymbolJob>> = FxHashMap::default();
        for job in std::iter::once(first).chain(jobs.try_iter().take(SYMBOL_BATCH)) {
            by_module.entry(job.module).or_default().push(job);
        }
        let mut named = Vec::new();
        for (module, jobs) in by_module {
            let source =
                sources.entry(module).or_insert_with(|| lock(modules).symbol_source(module));
            let Some(source) = source else { continue };
            let offsets: Vec<u64> = jobs.iter().map(|job| job.file_offset).collect();
            let functions = symbolizer.functions(source, &offsets);
            named.extend(
                jobs.iter()
                    .zip(functions)
                    .filter(|(_, functions)| !functions.is_empty())
                    .map(|(job, functions)| FrameSymbols { frame: job.frame, functions }),
            );
        }
        if output.send(Input::Symbols(named)).is_err() {
            return;
        }
    }
}

/// State of the collecting thread.
struct Collect<W> {
    collector: Collector<TargetView>,
    sink: Sink<W>,
    order: Order,
    progress: watch::Sender<Progress>,
    flushed_at: Instant,
}

/// Where items go: to the live analysis, the recording, and frames to be named.
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
        match item {
            Item::Event(event) => self.events += u64::from(!matches!(event, Event::Loss { .. })),
            Item::Frame(frame) => {
                if let Location::Module { module, file_offset } = frame.location
                    && let Some(jobs) = &self.jobs
                    && jobs.send(SymbolJob { frame: frame.id, module, file_offset }).is_err()
                {
                    log::debug!("the symbol thread has ended");
                }
            }
            _ => {}
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
        writer: Writer<W>,
        jobs: Sender<SymbolJob>,
        progress: watch::Sender<Progress>,
    ) -> Self {
        Self {
            collector: Collector::new(view),
            sink: Sink {
                analyzer: Analyzer::default(),
                writer,
                jobs: Some(jobs),
                events: 0,
                failure: None,
            },
            order: Order::new(1),
            progress,
            flushed_at: Instant::now(),
        }
    }

    fn run(mut self, input: &Receiver<Input>) -> Collected<W> {
        loop {
            match input.recv_timeout(FLUSH_INTERVAL) {
                Ok(Input::Records(records)) => {
                    for record in records {
                        let (collector, sink) = (&mut self.collector, &mut self.sink);
                        self.order.push(0, record, |record| {
                            collector.take(&record, |item| sink.take(&item));
                        });
                    }
                    // Soon, so that a new image's allocator is probed early.
                    let sink = &mut self.sink;
                    self.collector.refresh(super::monotonic_ns(), |item| sink.take(&item));
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
        Collected {
            analyzer: self.sink.analyzer,
            writer: self.sink.writer,
            failure: self.sink.failure,
            nonsense: self.collector.nonsense(),
        }
    }

    fn control(&mut self, control: Control) {
        let (collector, sink) = (&mut self.collector, &mut self.sink);
        match control {
            Control::DefineProbe(probe) => collector.define_probe(probe, |item| sink.take(&item)),
            Control::StartTarget(start) => collector.start_target(&start, |item| sink.take(&item)),
            Control::Seen(target, seen) => {
                collector.saw(target, seen, super::monotonic_ns(), |item| sink.take(&item));
            }
            Control::EndTarget { target, time_ns, status } => {
                collector.end_target(target, time_ns, status, |item| sink.take(&item));
            }
            Control::ProbedLate(target) => {
                collector.probed_late(target, |item| sink.take(&item));
            }
            Control::Counters(counters) => sink.take(&Item::Counters(counters)),
            Control::NoMoreRecords => {
                self.order.finish(|record| collector.take(&record, |item| sink.take(&item)));
                sink.jobs = None;
            }
        }
    }

    /// What is done from time to time: save, tell how things stand.
    fn publish(&mut self) {
        self.flushed_at = Instant::now();
        let sink = &mut self.sink;
        sink.flush();
        self.progress.send_replace(Progress {
            events: sink.events,
            resident_bytes: sink.analyzer.tracker().resident_bytes(),
            written_bytes: sink.writer.written_bytes(),
            failure: sink.failure.clone(),
        });
    }
}
