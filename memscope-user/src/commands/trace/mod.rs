//! `memscope trace`: joins target, kernel, collection, lifetimes and store.

mod ahead;
mod budget;
mod copies;
mod memory;
mod modules;
mod naming;
mod output;
mod pause;
mod pipeline;
mod selected;
mod session;
mod status;
mod tables;
mod windows;

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::UnboundedReceiver,
    time::{Instant, MissedTickBehavior},
};

pub use self::pause::run_guard;
use self::{
    ahead::Ahead,
    modules::Notice,
    output::Output,
    pipeline::Following,
    selected::Selected,
    session::{Recorded, Session},
    status::StatusLine,
    windows::Limit,
};
use crate::{
    cli::TraceOptions,
    kernel::{Kernel, KernelConfig, MeasuredHits, RingSize, beside, kernel_and_arch},
    model::{Capture, EndingReason, MappingMethod, Observes},
    reports::{Detail, SummaryReport},
    symbols::Debuginfod,
    target::{Descriptions, HeldCommand, Invoker, RunningCommand, Startup, TargetProcess},
    text::bytes,
};

/// How often the status is shown and the kernel side's counters are saved.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Most process ids told in a line.
const MAX_TOLD_PIDS: usize = 8;
/// Exit code for `--strict` when something is missing.
const EXIT_INCOMPLETE: u8 = 3;

/// `CLOCK_MONOTONIC`, the clock of all records.
fn monotonic_ns() -> u64 {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
    })
}

/// Runs the command.
///
/// # Errors
///
/// If the trace could not begin, or its recording could not be saved.
pub fn run(options: &TraceOptions, log_level: u8) -> anyhow::Result<ExitCode> {
    let invoker = Invoker::from_sudo();
    raise_descriptor_limit();
    // Everything that can be refused is tried before a command is started.
    let targets =
        options.pids().into_iter().map(TargetProcess::open).collect::<Result<Vec<_>, _>>()?;
    if targets.iter().any(|target| target.pid() == std::process::id()) {
        bail!("memscope cannot trace itself: every event would cause the next one");
    }
    let selected = Selected::find(options)?;
    let descriptions = Descriptions::read(&options.allocator)?;
    let ring_bytes = ring_bytes(options)?;
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let config = KernelConfig {
        ring_bytes,
        log_level,
        attach_by: options.attach_by,
        stacks: options.stacks,
        sampling_interval_bytes: sampling_interval_bytes(options),
        seed,
        on_overflow: options.on_overflow,
        counts_cost: options.max_overhead.is_some(),
        follows: options.follows(),
        selection: selected.selection(),
        observes: if options.pages { Observes::PageFaults } else { Observes::Allocations },
        observes_mappings: options.mappings,
        mappings_by: options.mappings_by,
    };
    let (kernel, ahead) = beside(|| Ahead::read(&targets, &descriptions), || Kernel::load(config));
    let mut kernel = kernel?;
    if options.mappings_by.is_none() && kernel.mappings_by() == Some(MappingMethod::Tracepoints) {
        log::warn!(
            "this kernel lets no programs run in its functions of mmap and the like: memscope observes them at the entry and return of all system calls, which slows these down in all processes of this machine until it ends"
        );
    }
    let limit = limit(options, &kernel, seed)?;
    let output = Output::create(
        options.output.as_deref(),
        &default_name(options, &targets),
        invoker.as_ref(),
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the event loop")?;
    let in_runtime = runtime.enter();
    let log = (log_level > 0).then(|| kernel.take_log()).transpose()?;
    let capture = capture(options, ring_bytes);
    let begun = match begin(
        options,
        Wanted { named: targets, selected, descriptions, ahead },
        kernel,
        &output,
        &capture,
        limit.as_ref(),
        invoker.as_ref(),
    ) {
        Ok(begun) => begun,
        Err(error) => {
            // Nothing was recorded: an empty file would only be in the way.
            output.remove();
            return Err(error);
        }
    };
    drop(in_runtime);
    let (recorded, command_code) = runtime.block_on(follow(options, begun, log))?;
    conclude(options, &capture, recorded, &output, command_code)
}

/// A trace under way.
struct Begun {
    session: Session,
    notices: UnboundedReceiver<Notice>,
    command: Option<RunningCommand>,
    selected: Selected,
}

/// Whom to trace, if it is no command, and what is probed beside the known allocators.
struct Wanted {
    named: Vec<TargetProcess>,
    selected: Selected,
    descriptions: Descriptions,
    ahead: Ahead,
}

fn begin(
    options: &TraceOptions,
    Wanted { named, mut selected, descriptions, ahead }: Wanted,
    kernel: Kernel,
    output: &Output,
    capture: &Capture,
    limit: Option<&Limit>,
    invoker: Option<&Invoker>,
) -> anyhow::Result<Begun> {
    let ring_bytes = u32::try_from(capture.ring_bytes).context("the ring buffer is too large")?;
    let debuginfod =
        options.debuginfod.then(|| Debuginfod::from_environment(invoker)).transpose()?;
    let file = output.file()?;
    let how = Following {
        follows: options.follows() || options.selects(),
        scope: options.probe_scope(),
        observes: kernel.observes(),
    };
    let (mut session, notices) =
        Session::start(kernel, ring_bytes, file, capture, how, debuginfod, ahead.tables)
            .with_context(|| cannot_save(output))?;
    session.describe(descriptions, ahead.files);
    if options.selects() {
        session.probe_ahead()?;
        session.enable_new();
        let found = selected.attach(&mut session)?;
        log::info!("{found} processes are traced now");
        session.prepare()?;
        return Ok(Begun { session, notices, command: None, selected });
    }
    if options.command.is_empty() {
        for target in named {
            session.attach_running(target)?;
        }
        session.prepare()?;
        limit.map_or(Ok(()), |limit| session.limit(limit))?;
        return Ok(Begun { session, notices, command: None, selected });
    }
    let mut held = HeldCommand::start(&options.command, invoker)?;
    let target = session.add_command(TargetProcess::open(held.pid())?)?;
    loop {
        session.attach_new_modules(target)?;
        session.bring_tables(target)?;
        match held.step()? {
            Startup::CodeMapped => {}
            Startup::Loaded | Startup::Ended => break,
        }
    }
    session.started(target)?;
    session.prepare()?;
    limit.map_or(Ok(()), |limit| session.limit(limit))?;
    Ok(Begun { session, notices, command: Some(held.release()?), selected })
}

/// The end of a trace is asked for once or twice, see [`follow`].
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next signal; none for one that a terminal has sent to the command as well.
    async fn next(&mut self) -> Option<nix::sys::signal::Signal> {
        tokio::select! {
            _ = self.interrupt.recv() => None,
            _ = self.terminate.recv() => Some(nix::sys::signal::Signal::SIGTERM),
            _ = self.hang_up.recv() => Some(nix::sys::signal::Signal::SIGHUP),
        }
    }
}

/// What the main thread does, new libraries wait for; it is
/// little, but on a busy machine it would wait for its turn. The main thread takes it only
/// once a command was started, which would inherit it.
const URGENT_NICENESS: i32 = -10;

/// Before the main thread, which makes tables: while it does, copies of stacks come in.
const DRAIN_NICENESS: i32 = -15;

/// Names can wait.
const SYMBOLS_NICENESS: i32 = 10;

/// Sets the niceness of the calling thread (in Linux each has its own, setpriority(2)).
fn set_niceness(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        log::debug!("a thread keeps its priority: {error}");
    }
}

/// Follows the targets until they end, time is over, or somebody asks for the end.
///
/// A command is asked to end as well by the first signal, and traced until it has; the
/// second signal ends the trace at once and leaves the command alone.
async fn follow(
    options: &TraceOptions,
    begun: Begun,
    log: Option<EbpfLog>,
) -> anyhow::Result<(Recorded, Option<i32>)> {
    let Begun { mut session, mut notices, mut command, mut selected } = begun;
    set_niceness(URGENT_NICENESS);
    let mut interrupts = Interrupts::new()?;
    let mut log = watch_log(log)?;
    let mut status = StatusLine::new(command.is_none());
    let mut ticks = tokio::time::interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let duration = options.duration.unwrap_or(Duration::MAX);
    let deadline = tokio::time::sleep(duration.min(Duration::from_secs(u32::MAX.into())));
    tokio::pin!(deadline);
    let mut budget_at = next_time(session.keep_budget()?);
    let mut asked = false;
    let mut command_code = None;
    let reason = loop {
        tokio::select! {
            ended = session.next_exit() => {
                session.note_used();
                let code = command.as_mut().map(exit_code).transpose()?;
                command_code = command_code.or(code);
                session.target_ended(ended, code);
                // Whatever a command leaves behind is not waited for.
                if command.is_some() || is_over(options, &session) {
                    break EndingReason::TargetsEnded;
                }
            }
            Some(notice) = notices.recv() => {
                session.act_on(&with_waiting(notice, &mut notices));
                if is_over(options, &session) {
                    break EndingReason::TargetsEnded;
                }
                if notices.is_empty() {
                    session.prepare()?;
                }
            }
            signal = interrupts.next() => {
                let Some(command) = command.as_ref().filter(|_| !asked) else { break EndingReason::Interrupted };
                asked = true;
                if let Some(signal) = signal {
                    command.signal(signal);
                }
                status.say("waiting for the command to end; once more to stop tracing at once");
            }
            () = &mut deadline => break EndingReason::Duration,
            _ = ticks.tick() => {
                selected.look_again(&mut session)?;
                let (counters, progress) = session.save_counters()?;
                if progress.failure.is_some() {
                    break EndingReason::Interrupted;
                }
                status.show(&counters, &progress, session.overhead()?.as_ref());
            }
            () = sleep_until(budget_at) => budget_at = next_time(session.keep_budget()?),
            () = read_log(&mut log) => {}
        }
    };
    status.clear();
    let recorded = session.finish(reason)?;
    if let Some(command) = &mut command
        && command_code.is_none()
        && reason == EndingReason::Duration
    {
        command_code = Some(exit_code(command)?);
    }
    Ok((recorded, command_code))
}

fn exit_code(command: &mut RunningCommand) -> anyhow::Result<i32> {
    command.wait().context("cannot wait for the command")
}

/// Whether there is nothing left to wait for.
fn is_over(options: &TraceOptions, session: &Session) -> bool {
    session.live_targets() == 0 && !options.selects()
}

fn next_time(wait: Option<Duration>) -> Option<Instant> {
    wait.map(|wait| Instant::now() + wait)
}

/// Never, if there is nothing to wait for.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A notice and those that wait behind it. What is said again meanwhile needs to be done once.
fn with_waiting(notice: Notice, notices: &mut UnboundedReceiver<Notice>) -> Vec<Notice> {
    let mut waiting = vec![notice];
    while let Ok(notice) = notices.try_recv() {
        if !waiting.contains(&notice) {
            waiting.push(notice);
        }
    }
    waiting
}

type EbpfLog = aya_log::EbpfLogger<&'static dyn log::Log>;

fn watch_log(log: Option<EbpfLog>) -> anyhow::Result<Option<AsyncFd<EbpfLog>>> {
    let Some(log) = log else { return Ok(None) };
    // SAFETY: the logger owns the descriptor of its ring and keeps it until it is dropped.
    let watched = unsafe { AsyncFd::register(log) };
    Ok(Some(watched.context("cannot follow the eBPF log")?))
}

/// Hands on what the eBPF side logs; never ends if it logs nothing.
async fn read_log(log: &mut Option<AsyncFd<EbpfLog>>) {
    let Some(log) = log else {
        return std::future::pending().await;
    };
    match log.readable_mut().await {
        Ok(mut ready) => {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
        Err(error) => {
            log::debug!("the eBPF log cannot be read: {error}");
            std::future::pending().await
        }
    }
}

fn conclude(
    options: &TraceOptions,
    capture: &Capture,
    recorded: Recorded,
    output: &Output,
    command_code: Option<i32>,
) -> anyhow::Result<ExitCode> {
    let path = output.path().display().to_string();
    let analysis = recorded.analyzer.finish(capture.clone(), recorded.end);
    let summary = SummaryReport::of(&analysis, &path, Detail::Folded);
    eprint!("{}", summary.text());
    tell_left_running(&summary.left_running);
    // After the summary, which nobody should have to wait for.
    drop(recorded.attached);
    // Only now can no probe stop a target any more.
    drop(recorded.guard);
    if let Some(failure) = recorded.failure {
        let failure = anyhow::Error::new(failure);
        return Err(failure.context(cannot_save(output)));
    }
    let nothing = analysis.totals.allocations == 0
        && analysis.totals.frees == 0
        && analysis.fault_totals.faults == 0;
    if options.strict && (nothing || !analysis.is_complete()) {
        return Ok(ExitCode::from(EXIT_INCOMPLETE));
    }
    Ok(command_code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code as u8)))
}

/// Says how to go on with processes that the command has left behind.
fn tell_left_running(pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let told: Vec<String> = pids.iter().take(MAX_TOLD_PIDS).map(u32::to_string).collect();
    let more = if pids.len() > MAX_TOLD_PIDS { " …" } else { "" };
    eprintln!(
        "memscope: the command has left processes running; `memscope trace --pid {}{more}` goes on with them",
        told.join(" ")
    );
}

fn cannot_save(output: &Output) -> String {
    format!(
        "cannot write the recording to {}; what it holds so far can be read. Free some space, or choose another place with -o",
        output.path().display()
    )
}

/// As asked for, or by what the machine has.
fn ring_bytes(options: &TraceOptions) -> anyhow::Result<u32> {
    if let Some(asked) = options.ring_buffer {
        return u32::try_from(asked.as_u64())
            .ok()
            .context("the ring buffer cannot be larger than 2 GiB");
    }
    let size = RingSize::of_this_machine()?;
    log::info!(
        "the ring buffer has {}, for {} processors and {} of memory",
        bytes(size.bytes.into()),
        size.cpus,
        bytes(size.available_bytes)
    );
    Ok(size.bytes)
}

fn capture(options: &TraceOptions, ring_bytes: u32) -> Capture {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (kernel, arch) = kernel_and_arch();
    Capture {
        memscope_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_unix_seconds: now.as_secs(),
        started_at_unix_nanoseconds: now.subsec_nanos(),
        started_at_ns: monotonic_ns(),
        kernel,
        arch,
        command: (!options.command.is_empty()).then(|| options.command.clone()),
        ring_bytes: ring_bytes.into(),
        sampling_interval_bytes: sampling_interval_bytes(options),
        stacks: options.stacks,
    }
}

/// With a budget, blocks are drawn from the beginning, at first all of them.
fn sampling_interval_bytes(options: &TraceOptions) -> Option<u64> {
    let asked = options.sample.map(|interval| interval.as_u64());
    asked.or_else(|| options.max_overhead.is_some().then_some(1))
}

/// The budget, and by what is measured whether it is kept.
fn limit(options: &TraceOptions, kernel: &Kernel, seed: u32) -> anyhow::Result<Option<Limit>> {
    let Some(share) = options.max_overhead else { return Ok(None) };
    let (costs, probes) = MeasuredHits::measure_one(kernel.attach_method())
        .context("cannot keep a budget: what a hit of a probe costs cannot be measured here")?;
    // The kernel waits for a while until they are gone, for which nobody else should.
    std::thread::spawn(move || drop(probes));
    log::info!(
        "a hit costs {:.0} ns, its return {:.0} ns, and what follows {:.0} ns",
        costs.emulated_ns,
        costs.of_return(),
        costs.aftermath_ns
    );
    let interval_bytes = sampling_interval_bytes(options).unwrap_or(1);
    Ok(Some(Limit { ppm: share.ppm, interval_bytes, seed, costs }))
}

/// Another one for each trace.
fn seed_of_now() -> u32 {
    let now_ns = monotonic_ns();
    (now_ns ^ now_ns >> 32) as u32 ^ std::process::id()
}

/// `memscope.NAME.PID.mscope`, as in `heaptrack.NAME.PID.zst`.
fn default_name(options: &TraceOptions, targets: &[TargetProcess]) -> String {
    let (name, pid) = match targets.first() {
        Some(target) => (target.comm().unwrap_or_default(), target.pid()),
        None => {
            let named = options.command.first().or(options.comm.first()).or(options.cgroup.first());
            let name = named.map_or("all", String::as_str).trim_end_matches('/');
            (name.rsplit('/').next().unwrap_or_default().to_owned(), std::process::id())
        }
    };
    let harmless = |character: char| {
        if character.is_ascii_alphanumeric() || "-_.".contains(character) { character } else { '_' }
    };
    let name: String = name.chars().map(harmless).collect();
    format!("memscope.{}.{pid}.mscope", name.trim_start_matches('.'))
}

/// Each probe takes two descriptors, each module one.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::debug!("the limit of open files stays as it is: {error}");
    }
}
