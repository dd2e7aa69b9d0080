/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Seen: an event, a kernel counter, `/proc`, an ELF file, the command line.
    Measured,
    /// Computed from measured values, by this formula.
    Derived(&'static str),
    /// Always null: nothing tells.
    Unknown,
}

/// A key of the JSON export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Keys from the top, joined by `.`; `[]` is every element, `*` every key.
    pub path: &'static str,
    /// Where its value comes from.
    pub origin: Origin,
}

const fn measured(path: &'static str) -> Field {
    Field { path, origin: Origin::Measured }
}

const fn derived(path: &'static str, formula: &'static str) -> Field {
    Field { path, origin: Origin::Derived(formula) }
}

/// Every key of the JSON export that holds a value.
pub const FIELDS: &[Field] = &[
    derived("schema", "constant"),
    derived("version", "constant"),
    measured("capture.started_at"),
    measured("capture.started_at_monotonic_ns"),
    derived(
        "capture.duration_ns",
        "end of the recording, or its last event if it has none, − start",
    ),
    measured("capture.kernel"),
    measured("capture.arch"),
    derived("capture.mode", "constant: every call is recorded"),
    derived("capture.sampling_interval_bytes", "constant: null in mode full"),
    measured("capture.command[]"),
    derived(
        "capture.complete",
        "has an ending, no damage, no loss, no unseen end, a probe, no process probed late",
    ),
    measured("capture.memscope_version"),
    measured("capture.ring_bytes"),
    derived("processes[].process", "number in the recording"),
    measured("processes[].pid"),
    measured("processes[].comm"),
    measured("processes[].exe"),
    measured("processes[].allocators[]"),
    measured("processes[].exit_status"),
    measured("processes[].end"),
    measured("processes[].end_monotonic_ns"),
    measured("processes[].image"),
    measured("processes[].from_start"),
    measured("processes[].probed_late"),
    measured("processes[].observed_from_monotonic_ns"),
    derived("totals.allocations", "calls that returned a block"),
    derived("totals.allocated_bytes", "Σ their requested sizes"),
    derived("totals.frees", "known blocks freed, or ended by a reallocation"),
    derived("totals.freed_bytes", "Σ their requested sizes"),
    derived("totals.reallocations", "reallocations of a block that returned a block"),
    derived("totals.failed_allocations", "calls that returned no block"),
    derived("totals.live_blocks", "allocations − frees − unseen_ends"),
    derived("totals.live_bytes", "allocated_bytes − freed_bytes − unseen_end_bytes"),
    derived("totals.peak_live_blocks", "live blocks at the peak"),
    derived("totals.peak_live_bytes", "greatest sum of live bytes of processes alive then"),
    derived("totals.peak_time_monotonic_ns", "first moment of the peak; null if nothing was live"),
    derived(
        "totals.temporary_allocations",
        "freed by their thread with no other allocation of it in between",
    ),
    derived("totals.unknown_frees", "frees of blocks not seen to begin"),
    derived(
        "totals.allocator_internal_frees",
        "frees by the allocator at a thread's end of blocks already freed",
    ),
    derived("totals.unseen_ends", "live blocks whose address was given out again"),
    derived("totals.unseen_end_bytes", "Σ their requested sizes"),
    derived(
        "totals.live_blocks_at_least",
        "live_blocks − lost events that can have been frees; null if unbounded",
    ),
    derived(
        "totals.live_blocks_at_most",
        "live_blocks + lost events that can have been allocations; null if unbounded",
    ),
    derived("loss.lost_events", "Σ by_cause"),
    measured("loss.by_cause.*"),
    measured("loss.windows[].from_monotonic_ns"),
    measured("loss.windows[].until_monotonic_ns"),
    measured("loss.windows[].lost_events"),
    derived("stacks.complete", "allocations and failed ones whose call chain is complete"),
    derived("stacks.truncated", "Σ by_reason"),
    derived(
        "stacks.by_reason.*",
        "allocations and failed ones whose call chain is not complete, by reason",
    ),
    measured("counters.attempted"),
    measured("counters.recorded"),
    measured("counters.nested"),
    measured("counters.hits"),
    measured("counters.in_flight"),
    measured("counters.malformed"),
    measured("file.has_ending"),
    measured("file.damage_count"),
    measured("file.damage[].file_offset"),
    measured("file.damage[].skipped_bytes"),
    measured("file.damage[].what"),
    derived("trust", "all of that in a sentence"),
    derived("sites[].site", "number in the recording"),
    derived("sites[].process", "as processes[].process"),
    measured("sites[].pid"),
    measured("sites[].comm"),
    measured("sites[].frames[].function"),
    measured("sites[].frames[].module"),
    measured("sites[].frames[].offset"),
    measured("sites[].frames[].file"),
    measured("sites[].frames[].line"),
    measured("sites[].frames[].inlined"),
    measured("sites[].stack"),
    Field { path: "sites[].type", origin: Origin::Unknown },
    derived("sites[].allocations", "as in totals, of blocks that began here"),
    derived("sites[].allocated_bytes", "as in totals, of blocks that began here"),
    derived("sites[].frees", "as in totals, of blocks that began here"),
    derived("sites[].freed_bytes", "as in totals, of blocks that began here"),
    derived("sites[].live_blocks", "as in totals, of blocks that began here"),
    derived("sites[].live_bytes", "as in totals, of blocks that began here"),
    derived("sites[].at_peak_blocks", "its share of totals.peak_live_blocks"),
    derived("sites[].at_peak_bytes", "its share of totals.peak_live_bytes"),
    derived("sites[].temporary_allocations", "as in totals, of blocks that began here"),
    derived("sites[].failed_allocations", "as in totals, of calls from here"),
    derived("sites[].unseen_ends", "as in totals, of blocks that began here"),
    derived("sites[].oldest_live_age_ns", "end of the trace − first allocation still live"),
    derived("sites[].newest_live_age_ns", "end of the trace − last allocation still live"),
    derived("sites[].lifetime_ns.min", "least of freed_ns − allocated_ns"),
    derived("sites[].lifetime_ns.p50", "median of freed_ns − allocated_ns, ± 1/32"),
    derived("sites[].lifetime_ns.p90", "90th percentile of freed_ns − allocated_ns, ± 1/32"),
    derived("sites[].lifetime_ns.p99", "99th percentile of freed_ns − allocated_ns, ± 1/32"),
    derived("sites[].lifetime_ns.max", "greatest of freed_ns − allocated_ns"),
    derived("blocks[].process", "as processes[].process"),
    measured("blocks[].address"),
    measured("blocks[].size"),
    derived("blocks[].site", "as sites[].site"),
    measured("blocks[].thread"),
    measured("blocks[].allocated_ns"),
    measured("blocks[].freed_ns"),
    measured("blocks[].freed_by_thread"),
    derived("blocks[].end", "freed, live, or unseen: its address was given out again"),
    measured("blocks[].ended_before_ns"),
    derived(
        "blocks[].chain_allocated_ns",
        "allocated_ns of the first block of its chain of reallocations",
    ),
];
