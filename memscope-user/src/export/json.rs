//! Everything, as memscope's own JSON: schema `memscope.export`, version 1.
//!
//! Written as it is made, so that its size is no matter. [`FIELDS`] says of every
//! key where its value comes from.

mod blocks;
mod fields;
mod mappings;
mod pages;

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::{Serialize, Serializer};

pub use blocks::BlockSource;
pub use fields::{FIELDS, Field, Origin};

use super::ExportError;
use crate::{
    lifetimes::Windows,
    model::{Capture, Counters, ExactCounts, Process, StackOutcome},
    reports::{
        Analysis, Budget, Estimate, FunctionName, MemoryJson, MemoryPoint, MismatchRow,
        ProcessSums, SiteRow, ThreadNumbers, ThreadRow, ThreadsReport, Trust, check, started_at,
    },
    store::Damage,
};
use blocks::Blocks;
use mappings::MappingsJson;
use pages::PagesJson;

#[derive(Serialize)]
struct Document<'a, B> {
    schema: &'static str,
    version: u32,
    capture: CaptureJson<'a>,
    #[serde(serialize_with = "processes")]
    processes: &'a Analysis,
    totals: TotalsJson,
    loss: LossJson,
    stacks: StacksJson,
    counters: Option<CountersJson>,
    /// None if every block was recorded.
    exact: Option<ExactJson>,
    /// None unless the trace was limited.
    budget: Option<BudgetJson>,
    /// None unless page faults were observed.
    pages: Option<PagesJson<'a>>,
    /// None unless system calls that map memory were observed.
    mappings: Option<MappingsJson<'a>>,
    file: FileJson,
    trust: String,
    #[serde(serialize_with = "sites")]
    sites: &'a Analysis,
    /// Those that allocated most first.
    threads: Vec<ThreadRow<'a>>,
    /// Threads that were too many to be told one by one, together.
    other_threads: ThreadNumbers,
    #[serde(serialize_with = "mismatches")]
    mismatches: &'a Analysis,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<&'a B>,
}

#[derive(Serialize)]
struct CaptureJson<'a> {
    started_at: String,
    started_at_monotonic_ns: u64,
    duration_ns: u64,
    kernel: &'a str,
    arch: &'a str,
    mode: &'static str,
    /// `allocations` or `pages`.
    events: &'static str,
    sampling_interval_bytes: Option<u64>,
    stacks: &'static str,
    command: Option<&'a [String]>,
    complete: bool,
    memscope_version: &'a str,
    ring_bytes: u64,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    process: u32,
    pid: u32,
    comm: &'a str,
    exe: &'a str,
    allocators: &'a [String],
    exit_status: Option<i32>,
    /// `exit`, `exec`, or none if it was alive when the trace ended.
    end: Option<&'static str>,
    end_monotonic_ns: Option<u64>,
    /// The process that it was forked by.
    parent: Option<u32>,
    #[serde(rename = "totals")]
    sums: ProcessSums,
    image: u32,
    from_start: bool,
    probed_late: bool,
    observed_from_monotonic_ns: u64,
    /// None if it was not read.
    memory: Option<MemoryJson<'a>>,
}

#[derive(Serialize)]
struct TotalsJson {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
    reallocations: u64,
    failed_allocations: u64,
    live_blocks: u64,
    live_bytes: u64,
    peak_live_blocks: u64,
    peak_live_bytes: u64,
    peak_time_monotonic_ns: Option<u64>,
    temporary_allocations: u64,
    unknown_frees: u64,
    mismatched_frees: u64,
    inherited_frees: u64,
    allocator_internal_frees: u64,
    unseen_ends: u64,
    unseen_end_bytes: u64,
    live_blocks_at_least: Option<u64>,
    live_blocks_at_most: Option<u64>,
    /// None if every block was recorded.
    estimate: Option<Estimate>,
}

#[derive(Serialize)]
struct LossJson {
    lost_events: u64,
    by_cause: BTreeMap<&'static str, u64>,
    /// Of the lost allocations, those that the sums of their sites have all the same.
    counted_allocations: u64,
    /// Stretches of time in which records are missing; at most the first few
    /// thousand.
    windows: Vec<WindowJson>,
}

#[derive(Serialize)]
struct WindowJson {
    from_monotonic_ns: u64,
    until_monotonic_ns: u64,
    lost_events: u64,
}

#[derive(Serialize)]
struct StacksJson {
    complete: u64,
    truncated: u64,
    by_reason: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct CountersJson {
    attempted: u64,
    recorded: u64,
    nested: u64,
    hits: u64,
    in_flight: u64,
    malformed: u64,
}

/// What was counted of all calls while blocks were sampled.
#[derive(Serialize)]
struct ExactJson {
    calls: u64,
    bytes: u64,
    frees_dropped: u64,
    size_classes: Vec<SizeClassJson>,
}

#[derive(Serialize)]
struct SizeClassJson {
    /// Largest size of the class.
    up_to_bytes: u64,
    calls: u64,
    bytes: u64,
}

impl ExactJson {
    fn of(exact: &ExactCounts) -> Self {
        let classes = exact.classes.iter().map(|class| SizeClassJson {
            up_to_bytes: class.largest_bytes(),
            calls: class.calls,
            bytes: class.bytes,
        });
        Self {
            calls: exact.calls(),
            bytes: exact.bytes(),
            frees_dropped: exact.frees_dropped,
            size_classes: classes.collect(),
        }
    }
}

/// What a limited trace has spent, and when it has observed its targets.
#[derive(Serialize)]
struct BudgetJson {
    limit_ppm: u64,
    spent_ppm: Option<u64>,
    observed_ppm: u64,
    /// What numbers of what began and ended were multiplied by, in millionths.
    scale_ppm: u64,
    observed_cpu_ns: u64,
    missed_cpu_ns: u64,
    probe_cost_ns: u64,
    hits: u64,
    aftermath_ns: u64,
    work_samples: u64,
    probe_samples: u64,
    collector_cpu_ns: u64,
    window_count: u64,
    /// At most the first few thousand.
    windows: Vec<ObservedJson>,
}

#[derive(Serialize)]
struct ObservedJson {
    from_monotonic_ns: u64,
    until_monotonic_ns: u64,
    observed_cpu_ns: u64,
    missed_cpu_ns: u64,
    probe_cost_ns: u64,
    hits: u64,
    aftermath_ns: u64,
    work_samples: u64,
    probe_samples: u64,
    collector_cpu_ns: u64,
    interval_bytes: u64,
}

impl BudgetJson {
    fn of(trust: &Trust, windows: &Windows) -> Option<Self> {
        let Budget { limit_ppm, spent_ppm, observed_ppm, windows: window_count } = trust.budget?;
        let list = windows.list.iter().map(|window| ObservedJson {
            from_monotonic_ns: window.begin_ns,
            until_monotonic_ns: window.end_ns,
            observed_cpu_ns: window.observed_cpu_ns,
            missed_cpu_ns: window.missed_cpu_ns,
            probe_cost_ns: window.probe_cost_ns,
            hits: window.hits,
            aftermath_ns: window.aftermath_ns,
            work_samples: window.work_samples,
            probe_samples: window.probe_samples,
            collector_cpu_ns: window.collector_cpu_ns,
            interval_bytes: window.interval_bytes,
        });
        Some(Self {
            limit_ppm,
            spent_ppm,
            observed_ppm,
            scale_ppm: (windows.scale() * 1e6).round() as u64,
            observed_cpu_ns: windows.ledger.observed_cpu_ns,
            missed_cpu_ns: windows.ledger.missed_cpu_ns,
            probe_cost_ns: windows.ledger.probe_cost_ns,
            hits: windows.ledger.hits,
            aftermath_ns: windows.ledger.aftermath_ns,
            work_samples: windows.ledger.work_samples,
            probe_samples: windows.ledger.probe_samples,
            collector_cpu_ns: windows.collector_cpu_ns,
            window_count,
            windows: list.collect(),
        })
    }
}

#[derive(Serialize)]
struct FileJson {
    has_ending: bool,
    damage_count: u64,
    damage: Vec<DamageJson>,
}

#[derive(Serialize)]
struct DamageJson {
    file_offset: u64,
    skipped_bytes: u64,
    what: &'static str,
}

/// Writes everything; with `blocks` also every block, which that source gives.
///
/// # Errors
///
/// See [`ExportError`].
pub fn export_json(
    analysis: &Analysis,
    blocks: Option<BlockSource<'_>>,
    mut out: &mut dyn Write,
) -> Result<(), ExportError> {
    check(analysis)?;
    let blocks = blocks.map(Blocks::new);
    let trust = Trust::of(analysis);
    let threads = ThreadsReport::of(analysis, None);
    let document = Document {
        schema: "memscope.export",
        version: 1,
        capture: capture(analysis, &analysis.capture),
        processes: analysis,
        totals: totals(analysis, &trust),
        stacks: stacks(analysis),
        counters: analysis.counters.as_ref().map(counters),
        exact: analysis.exact.as_ref().map(ExactJson::of),
        budget: BudgetJson::of(&trust, &analysis.windows),
        pages: PagesJson::of(analysis),
        mappings: MappingsJson::of(analysis),
        file: FileJson {
            has_ending: trust.has_ending,
            damage_count: analysis.damage_count,
            damage: analysis.damages.iter().map(damage).collect(),
        },
        loss: loss(analysis, &trust),
        trust: trust.sentence,
        sites: analysis,
        threads: threads.rows,
        other_threads: threads.others,
        mismatches: analysis,
        blocks: blocks.as_ref(),
    };
    let written = serde_json::to_writer(&mut out, &document);
    if let Some(error) = blocks.and_then(Blocks::into_error) {
        return Err(ExportError::Blocks(error));
    }
    written.map_err(|error| ExportError::Write(io::Error::from(error)))?;
    out.write_all(b"\n").map_err(ExportError::Write)?;
    out.flush().map_err(ExportError::Write)
}

fn capture<'a>(analysis: &Analysis, capture: &'a Capture) -> CaptureJson<'a> {
    CaptureJson {
        started_at: started_at(capture),
        started_at_monotonic_ns: capture.started_at_ns,
        duration_ns: analysis.duration_ns(),
        kernel: &capture.kernel,
        arch: &capture.arch,
        events: analysis.observed().name(),
        mode: if analysis.is_sampled() { "sampled" } else { "full" },
        sampling_interval_bytes: capture.sampling_interval_bytes,
        stacks: capture.stacks.name(),
        command: capture.command.as_deref(),
        complete: analysis.is_complete(),
        memscope_version: &capture.memscope_version,
        ring_bytes: capture.ring_bytes,
    }
}

fn totals(analysis: &Analysis, trust: &Trust) -> TotalsJson {
    let totals = &analysis.totals;
    TotalsJson {
        allocations: totals.allocations,
        allocated_bytes: totals.allocated_bytes,
        frees: totals.frees,
        freed_bytes: totals.freed_bytes,
        reallocations: totals.reallocations,
        failed_allocations: totals.failed_allocations,
        live_blocks: totals.live_blocks,
        live_bytes: totals.live_bytes,
        peak_live_blocks: totals.peak_live_blocks,
        peak_live_bytes: totals.peak_live_bytes,
        peak_time_monotonic_ns: (totals.peak_live_bytes > 0).then_some(totals.peak_time_ns),
        temporary_allocations: totals.temporary_allocations,
        unknown_frees: totals.unknown_frees,
        mismatched_frees: totals.mismatched_frees,
        inherited_frees: totals.inherited_frees,
        allocator_internal_frees: totals.allocator_internal_frees,
        unseen_ends: totals.unseen_ends,
        unseen_end_bytes: totals.unseen_end_bytes,
        live_blocks_at_least: trust.live_blocks_between.map(|bounds| bounds.at_least),
        live_blocks_at_most: trust.live_blocks_between.map(|bounds| bounds.at_most),
        estimate: Estimate::of_all(analysis),
    }
}

fn loss(analysis: &Analysis, trust: &Trust) -> LossJson {
    let windows = analysis.loss_windows.iter().map(|window| WindowJson {
        from_monotonic_ns: window.from_ns,
        until_monotonic_ns: window.until_ns,
        lost_events: window.lost_count,
    });
    LossJson {
        lost_events: trust.lost_events,
        by_cause: trust.lost_by_cause.clone(),
        counted_allocations: analysis.totals.counted_allocations,
        windows: windows.collect(),
    }
}

fn stacks(analysis: &Analysis) -> StacksJson {
    let count = |outcome: &StackOutcome| analysis.stack_outcomes.get(outcome).copied().unwrap_or(0);
    let reasons = StackOutcome::ALL.iter().filter(|outcome| **outcome != StackOutcome::Complete);
    let by_reason: BTreeMap<_, _> =
        reasons.map(|outcome| (outcome.name(), count(outcome))).collect();
    StacksJson {
        complete: count(&StackOutcome::Complete),
        truncated: by_reason.values().fold(0_u64, |sum, count| sum.saturating_add(*count)),
        by_reason,
    }
}

fn counters(counters: &Counters) -> CountersJson {
    CountersJson {
        attempted: counters.attempted,
        recorded: counters.recorded,
        nested: counters.nested,
        hits: counters.hits,
        in_flight: counters.in_flight,
        malformed: counters.malformed,
    }
}

fn damage(damage: &Damage) -> DamageJson {
    DamageJson {
        file_offset: damage.file_offset,
        skipped_bytes: damage.skipped_bytes,
        what: damage.what,
    }
}

fn processes<S: Serializer>(analysis: &&Analysis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(
        analysis.definitions.processes.values().map(|process| process_json(analysis, process)),
    )
}

fn process_json<'a>(analysis: &'a Analysis, process: &'a Process) -> ProcessJson<'a> {
    let end = analysis.definitions.process_ends.get(&process.id);
    ProcessJson {
        process: process.id.0,
        pid: process.pid,
        comm: &process.comm,
        exe: &process.exe,
        allocators: &process.allocators,
        exit_status: end.and_then(|end| end.reason.exit_status()),
        end: end.map(|end| end.reason.name()),
        end_monotonic_ns: end.map(|end| end.time_ns),
        parent: analysis.definitions.parents.get(&process.id).map(|parent| parent.0),
        sums: ProcessSums::of(analysis, process.id),
        image: process.image,
        from_start: process.from_start,
        probed_late: process.probed_late,
        observed_from_monotonic_ns: process.observed_from_ns,
        memory: analysis.memory.get(&process.id).map(|timeline| {
            let points: Vec<&MemoryPoint> = timeline.points().iter().collect();
            MemoryJson::of(timeline, &points)
        }),
    }
}

fn sites<S: Serializer>(analysis: &&Analysis, serializer: S) -> Result<S::Ok, S::Error> {
    let sites = analysis.sites.iter().enumerate();
    serializer.collect_seq(sites.map(|(number, site)| SiteRow::of(analysis, number, site)))
}

/// Which blocks were freed by another allocator. Their chains are those of their sites.
#[derive(Serialize)]
struct MismatchJson<'a> {
    site: u32,
    allocated_by: FunctionName<'a>,
    freed_by: FunctionName<'a>,
    frees: u64,
    bytes: u64,
}

fn mismatches<S: Serializer>(analysis: &&Analysis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(analysis.mismatches.iter().map(|found| {
        let MismatchRow { site, allocated_by, freed_by, frees, bytes, .. } =
            MismatchRow::of(analysis, found);
        MismatchJson { site, allocated_by, freed_by, frees, bytes }
    }))
}
