//! How much of what happened is in a recording, and what follows from the rest.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{Analysis, frames::outcome_words, layout::counted};
use crate::{
    lifetimes::Windows,
    model::{Counters, LossCause, StackOutcome},
    store::RecordingEnd,
    text,
};

/// How complete a recording is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trust {
    /// Whether everything that the target did while it was observed is in it.
    pub complete: bool,
    /// All of this in one sentence. Harmless to a terminal.
    pub sentence: String,
    /// Whether the recording has its ending.
    pub has_ending: bool,
    /// Events that were to be recorded; none if the recording was cut before it
    /// said so.
    pub attempted_events: Option<u64>,
    /// Events that were recorded; none if the recording was cut before it said so.
    pub recorded_events: Option<u64>,
    /// Events lost; at least so many if `attempted_events` is unknown.
    pub lost_events: u64,
    /// The same by cause, all causes.
    pub lost_by_cause: BTreeMap<&'static str, u64>,
    /// Whether attempted = recorded + lost; none if the recording does not say.
    pub counters_add_up: Option<bool>,
    /// Places where the file is not as it was written.
    pub damage_count: u64,
    /// Blocks whose end was not seen, but whose address was given out again.
    pub unseen_ends: u64,
    /// Of the lost allocations, those that the sums of their sites have all the same.
    pub counted_allocations: u64,
    /// Frees of blocks whose allocation was not seen.
    pub unknown_frees: u64,
    /// Whether every process was observed from its first instruction.
    pub from_start: bool,
    /// Whether what was to be observed could be seen: an allocator function was probed, or page
    /// faults were asked for.
    pub probed: bool,
    /// Whether any process that was to be observed was seen.
    pub has_processes: bool,
    /// Processes that may have called an allocator before it was probed.
    pub probed_late: u64,
    /// How many blocks were live when the trace ended; none if nothing bounds it.
    pub live_blocks_between: Option<LiveBounds>,
    /// How many sampled blocks the numbers are estimated from; none if all were recorded.
    pub sampled_blocks: Option<u64>,
    /// What a limited trace has spent, and how much it has observed; none if it was not limited.
    pub budget: Option<Budget>,
    /// How many allocations have a call chain of each outcome.
    pub stacks: BTreeMap<&'static str, u64>,
}

/// What `--max-overhead` led to. Shares are of the targets' work, in millionths: their processor
/// time without what probes have cost of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// What was to be spent at most.
    pub limit_ppm: u64,
    /// What was spent: what probes cost, and the collector's processor time. None if the targets
    /// did nothing.
    pub spent_ppm: Option<u64>,
    /// How much was observed.
    pub observed_ppm: u64,
    /// In how many windows of time.
    pub windows: u64,
}

impl Budget {
    fn of(windows: &Windows) -> Option<Self> {
        let (work_ns, observed_ns) = (windows.ledger.work_ns(), windows.ledger.observed_work_ns());
        let ppm = |share: f64| (share * 1e6).round() as u64;
        (windows.budget_ppm > 0).then(|| Self {
            limit_ppm: windows.budget_ppm.into(),
            spent_ppm: windows.overhead().map(ppm),
            observed_ppm: if work_ns > 0.0 { ppm(observed_ns / work_ns) } else { 0 },
            windows: windows.count,
        })
    }
}

/// Bounds of a number of live blocks. For bytes there are none: the size of a block
/// whose allocation was lost, and which block a lost free was of, is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LiveBounds {
    /// If every lost event that can have been a free was one.
    pub at_least: u64,
    /// If every lost event that can have been an allocation was one.
    pub at_most: u64,
}

/// Name of the cause of losses that only a marker in the stream tells of.
const UNATTRIBUTED: &str = "unattributed";

const fn may_hide_free(cause: LossCause) -> bool {
    match cause {
        LossCause::RingFullFree
        | LossCause::RingFullReallocation
        | LossCause::ThreadTableFull
        | LossCause::ReturnNotSeen
        | LossCause::MalformedRecord => true,
        LossCause::RingFullAllocation
        | LossCause::RingFullStack
        | LossCause::RingFullProcess
        | LossCause::ResultUnreadable
        | LossCause::SampleTableFull
        | LossCause::RingFullPageFault
        | LossCause::RingFullMapping => false,
    }
}

const fn may_hide_allocation(cause: LossCause) -> bool {
    match cause {
        LossCause::RingFullAllocation
        | LossCause::RingFullReallocation
        | LossCause::ThreadTableFull
        | LossCause::ReturnNotSeen
        | LossCause::ResultUnreadable
        | LossCause::MalformedRecord
        | LossCause::SampleTableFull => true,
        LossCause::RingFullFree
        | LossCause::RingFullStack
        | LossCause::RingFullProcess
        | LossCause::RingFullPageFault
        | LossCause::RingFullMapping => false,
    }
}

fn lost_where(counters: &Counters, which: impl Fn(LossCause) -> bool) -> u64 {
    let lost = counters.lost.iter().filter(|(cause, _)| which(*cause));
    lost.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

fn lost_by_cause(analysis: &Analysis) -> BTreeMap<&'static str, u64> {
    let mut by_cause: BTreeMap<_, _> =
        LossCause::ALL.iter().map(|cause| (cause.name(), 0_u64)).collect();
    by_cause.insert(UNATTRIBUTED, 0);
    let mut add = |cause, count| {
        let sum = by_cause.entry(cause).or_default();
        *sum = sum.saturating_add(count);
    };
    match &analysis.counters {
        Some(counters) => {
            counters.lost.iter().for_each(|(cause, count)| add(cause.name(), *count));
        }
        None => add(UNATTRIBUTED, analysis.totals.marked_losses),
    }
    by_cause
}

/// Damage hides any number of events, and so does a missing end.
fn live_bounds(analysis: &Analysis) -> Option<LiveBounds> {
    let counters = analysis.counters.as_ref()?;
    // A lost record of a sampled block stood for more than one.
    if analysis.damage_count > 0 || analysis.is_sampled() || analysis.page_sums.is_some() {
        return None;
    }
    let live = analysis.totals.live_blocks;
    Some(LiveBounds {
        at_least: live.saturating_sub(lost_where(counters, may_hide_free)),
        at_most: live.saturating_add(lost_where(counters, may_hide_allocation)),
    })
}

impl Trust {
    /// Judges a recording.
    #[must_use]
    pub fn of(analysis: &Analysis) -> Self {
        let lost_by_cause = lost_by_cause(analysis);
        let lost_events =
            lost_by_cause.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
        let counters = analysis.counters.as_ref();
        let adds_up = |counters: &Counters| {
            counters.recorded.checked_add(lost_events) == Some(counters.attempted)
        };
        let outcome = |outcome: &StackOutcome| {
            (outcome.name(), analysis.stack_outcomes.get(outcome).copied().unwrap_or(0))
        };
        let mut trust = Self {
            complete: analysis.is_complete(),
            sentence: String::new(),
            has_ending: matches!(analysis.end, RecordingEnd::Complete(_)),
            attempted_events: counters.map(|counters| counters.attempted),
            recorded_events: counters.map(|counters| counters.recorded),
            lost_events,
            lost_by_cause,
            counters_add_up: counters.map(adds_up),
            damage_count: analysis.damage_count,
            unseen_ends: analysis.totals.unseen_ends,
            counted_allocations: analysis.totals.counted_allocations,
            unknown_frees: analysis.totals.unknown_frees,
            from_start: analysis.definitions.processes.values().all(|process| process.from_start),
            probed: analysis.page_sums.is_some() || !analysis.definitions.probes.is_empty(),
            has_processes: !analysis.definitions.processes.is_empty(),
            probed_late: analysis
                .definitions
                .processes
                .values()
                .filter(|process| process.probed_late)
                .count() as u64,
            live_blocks_between: live_bounds(analysis),
            sampled_blocks: analysis
                .is_sampled()
                .then(|| analysis.sampled.as_ref().map_or(0, |sampled| sampled.blocks)),
            budget: Budget::of(&analysis.windows),
            stacks: StackOutcome::ALL.iter().map(outcome).collect(),
        };
        trust.sentence = trust.tell(analysis);
        trust
    }

    fn tell(&self, analysis: &Analysis) -> String {
        let live_blocks = analysis.totals.live_blocks;
        let has_gaps = analysis.windows.has_gaps();
        let mut parts =
            if self.complete { self.tell_complete() } else { self.tell_missing(has_gaps) };
        if let Some(budget) = self.budget.filter(|_| has_gaps) {
            parts.insert(
                0,
                format!(
                    "{} of the work observed in {}, sums are scaled by {:.1}, live is a minimum",
                    text::percent(budget.observed_ppm, 1_000_000),
                    counted(budget.windows, "window"),
                    analysis.windows.scale(),
                ),
            );
        }
        if let Some(blocks) = self.sampled_blocks {
            parts.push(format!("estimated from {}", counted(blocks, "sampled block")));
        }
        if let Some(bounds) = self.live_blocks_between
            && (bounds.at_least, bounds.at_most) != (live_blocks, live_blocks)
        {
            parts.push(format!(
                "so between {} and {} blocks are live",
                text::count(bounds.at_least),
                text::count(bounds.at_most)
            ));
        }
        if self.unknown_frees > 0 && !has_gaps {
            let blocks =
                if self.from_start { "not seen to begin" } else { "from before the trace" };
            parts.push(format!("{} of blocks {blocks}", counted(self.unknown_frees, "free")));
        }
        if !self.has_processes {
            let seen = if self.has_ending {
                "no such process was seen"
            } else {
                "no process is named in what was saved"
            };
            parts.push(seen.to_owned());
        }
        parts.extend(self.tell_stacks());
        let verdict = if self.complete { "Complete" } else { "INCOMPLETE" };
        format!("{verdict}: {}.", parts.join("; "))
    }

    fn tell_complete(&self) -> Vec<String> {
        let recorded = self.recorded_events.unwrap_or(0);
        vec![format!("all {} recorded, 0 lost", counted(recorded, "event"))]
    }

    /// With gaps, ends are unseen by choice.
    fn tell_missing(&self, has_gaps: bool) -> Vec<String> {
        let mut parts = Vec::new();
        if !self.has_ending {
            parts.push("cut off before its end".to_owned());
        }
        match self.attempted_events {
            Some(attempted) if self.lost_events > 0 => parts.push(format!(
                "{} of {} events lost ({})",
                text::count(self.lost_events),
                text::count(attempted),
                self.tell_causes()
            )),
            None if self.lost_events > 0 => {
                parts.push(format!("at least {} events lost", text::count(self.lost_events)));
            }
            None => parts.push("how many events were lost is unknown".to_owned()),
            Some(_) => {}
        }
        if self.damage_count > 0 {
            parts.push(format!("{} in the file", counted(self.damage_count, "damaged place")));
        }
        if self.counted_allocations > 0 {
            parts.push(format!(
                "{} of the lost allocations are in their sites' sums all the same",
                text::count(self.counted_allocations)
            ));
        }
        let not_seen = self.unseen_ends.saturating_sub(self.counted_allocations);
        if not_seen > 0 && !has_gaps {
            parts.push(format!("the end of {} was not seen", counted(not_seen, "block")));
        }
        if self.counters_add_up == Some(false) {
            parts.push("the counters of events do not add up".to_owned());
        }
        if !self.probed && self.has_processes {
            let found = if self.has_ending {
                "no known allocator was found, so no allocation could be seen"
            } else {
                "no allocator is named in what was saved"
            };
            parts.push(found.to_owned());
        }
        if self.probed_late > 0 {
            let processes = counted(self.probed_late, "process image");
            parts.push(format!("{processes} may have allocated before being probed"));
        }
        if parts.is_empty() && !has_gaps && self.has_processes {
            // Markers in the stream tell of losses that the counters do not have.
            parts.push("events are missing that no counter tells of".to_owned());
        }
        parts
    }

    fn tell_causes(&self) -> String {
        let mut causes: Vec<_> =
            self.lost_by_cause.iter().filter(|(_, count)| **count > 0).collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let tell = |(cause, count): &(&&str, &u64)| {
            format!("{} {}", cause.replace('_', " "), text::count(**count))
        };
        causes.iter().map(tell).collect::<Vec<_>>().join(", ")
    }

    fn tell_stacks(&self) -> Option<String> {
        let all = self.stacks.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
        if all == 0 {
            return None;
        }
        let complete = self.stacks.get(StackOutcome::Complete.name()).copied().unwrap_or(0);
        let mut told = format!("stacks: {} complete", text::percent(complete, all));
        for outcome in
            StackOutcome::ALL.iter().filter(|outcome| **outcome != StackOutcome::Complete)
        {
            let count = self.stacks.get(outcome.name()).copied().unwrap_or(0);
            if count > 0 {
                // Writing to a String cannot fail.
                write!(told, ", {} {}", text::percent(count, all), outcome_words(*outcome)).ok();
            }
        }
        Some(told)
    }
}
