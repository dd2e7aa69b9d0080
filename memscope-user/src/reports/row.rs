//! A site as a row of a table: all its numbers and its call chain.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Analysis, Estimate,
    folding::{Detail, MergedSite, merged},
    frames::{ResolvedFrame, ResolvedStack},
    origin::ProcessName,
};
use crate::lifetimes::{LifetimeSummary, Site};

/// Everything known of a site. The definitions of the numbers are those of
/// [`crate::lifetimes::SiteSums`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteRow<'a> {
    /// Number of the site in this recording.
    pub site: usize,
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// Of how many processes these are the numbers; more than one in text only.
    #[serde(skip)]
    pub process_count: usize,
    /// Innermost first: the allocator's caller first.
    pub frames: Vec<ResolvedFrame<'a>>,
    /// Whether the chain is complete, or why not: a
    /// [`crate::model::StackOutcome::name`].
    pub stack: &'static str,
    /// Type of the objects: always unknown, as nothing in a recording is evidence
    /// of it.
    pub r#type: (),
    /// Blocks that began here.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Those of them that were freed.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Those not ended when the trace ended.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
    /// Live when all processes together had most live bytes.
    pub at_peak_blocks: u64,
    /// Sum of their requested sizes.
    pub at_peak_bytes: u64,
    /// Freed by their thread with no other allocation of it in between.
    pub temporary_allocations: u64,
    /// Calls that returned no block.
    pub failed_allocations: u64,
    /// Blocks whose end was not seen, but whose address was given out again.
    pub unseen_ends: u64,
    /// Calls that gave a block from here to another allocator to be freed or reallocated.
    pub mismatched_frees: u64,
    /// Age of the oldest live block when the trace ended.
    pub oldest_live_age_ns: Option<u64>,
    /// Age of the newest live block when the trace ended.
    pub newest_live_age_ns: Option<u64>,
    /// How long its freed blocks lived; none if none was freed.
    pub lifetime_ns: Option<LifetimeNs>,
    /// What all this rests on; none if every block was recorded.
    pub estimate: Option<Estimate>,
}

/// Distribution of lifetimes in nanoseconds; the quantiles are at most 1/32 off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LifetimeNs {
    /// Shortest.
    pub min: u64,
    /// Half of the blocks lived no longer.
    pub p50: u64,
    /// Nine in ten lived no longer.
    pub p90: u64,
    /// 99 in 100 lived no longer.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

impl From<LifetimeSummary> for LifetimeNs {
    fn from(summary: LifetimeSummary) -> Self {
        Self {
            min: summary.min_ns,
            p50: summary.p50_ns,
            p90: summary.p90_ns,
            p99: summary.p99_ns,
            max: summary.max_ns,
        }
    }
}

impl<'a> SiteRow<'a> {
    /// Puts together what is known of the site with this number.
    #[must_use]
    pub fn of(analysis: &'a Analysis, number: usize, site: &Site) -> Self {
        Self::of_merged(analysis, &MergedSite::of(analysis, number, site))
    }

    fn of_merged(analysis: &'a Analysis, merged: &MergedSite<'_>) -> Self {
        let (number, site) = (merged.number, &*merged.site);
        let stack = ResolvedStack::of(&analysis.definitions, site.key.stack);
        let ages = merged.ages;
        let age = |allocated_ns: u64| analysis.ended_at_ns.saturating_sub(allocated_ns);
        Self {
            site: number,
            process: ProcessName::of(analysis, site.key.process),
            process_count: merged.process_count(),
            stack: stack.outcome.name(),
            frames: stack.frames,
            r#type: (),
            allocations: site.sums.allocations,
            allocated_bytes: site.sums.allocated_bytes,
            frees: site.sums.frees,
            freed_bytes: site.sums.freed_bytes,
            live_blocks: site.sums.live_blocks(),
            live_bytes: site.sums.live_bytes(),
            at_peak_blocks: site.at_peak.blocks,
            at_peak_bytes: site.at_peak.bytes,
            temporary_allocations: site.sums.temporary_allocations,
            failed_allocations: site.sums.failed_allocations,
            unseen_ends: site.sums.unseen_ends,
            mismatched_frees: site.sums.mismatched_frees,
            oldest_live_age_ns: ages.map(|ages| age(ages.oldest_allocated_ns)),
            newest_live_age_ns: ages.map(|ages| age(ages.newest_allocated_ns)),
            lifetime_ns: site.lifetimes.summary().map(LifetimeNs::from),
            estimate: Estimate::of_site(analysis, site),
        }
    }
}

/// The sites that have something to show, largest first, and how many there are in
/// all. `rank` gives what they are ordered by, or none for those left out; equal
/// ones stay in the order in which they were first seen.
pub(super) fn ranked<'a, K: Ord>(
    analysis: &'a Analysis,
    top: Option<usize>,
    detail: Detail,
    rank: impl Fn(&Site) -> Option<K>,
) -> (Vec<SiteRow<'a>>, usize) {
    let sites = merged(analysis, detail);
    let mut order: Vec<_> =
        sites.iter().filter_map(|merged| Some((Reverse(rank(&merged.site)?), merged))).collect();
    order.sort_by(|(left, left_site), (right, right_site)| {
        left.cmp(right).then(left_site.number.cmp(&right_site.number))
    });
    let all = order.len();
    let shown = order.iter().take(top.unwrap_or(all));
    (shown.map(|(_, merged)| SiteRow::of_merged(analysis, merged)).collect(), all)
}
