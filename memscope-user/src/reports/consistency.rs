//! The laws that the numbers of a recording obey whatever happened to it.

use super::Analysis;
use crate::{
    lifetimes::{MappingSums, Site, ThreadRecord},
    model::Counters,
    store::RecordingEnd,
};

/// Two ways to the same number that lead to different ones: a fault of memscope,
/// or a forged recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the numbers contradict each other: {law}, but {left} is not {right}")]
pub struct Inconsistency {
    /// What should hold.
    pub law: &'static str,
    /// Its left side.
    pub left: u64,
    /// Its right side.
    pub right: u64,
}

fn law(law: &'static str, left: u64, right: u64) -> Result<(), Inconsistency> {
    if left == right { Ok(()) } else { Err(Inconsistency { law, left, right }) }
}

/// Checks the laws of the totals, of the sites against the totals, and of the
/// kernel side's counters.
///
/// # Errors
///
/// The first law that does not hold.
pub fn check(analysis: &Analysis) -> Result<(), Inconsistency> {
    let totals = &analysis.totals;
    let ended = totals.frees.wrapping_add(totals.unseen_ends);
    law(
        "allocations − frees − unseen ends = live blocks",
        totals.allocations.wrapping_sub(ended),
        totals.live_blocks,
    )?;
    let ended_bytes = totals.freed_bytes.wrapping_add(totals.unseen_end_bytes);
    law(
        "allocated − freed − unseen bytes = live bytes",
        totals.allocated_bytes.wrapping_sub(ended_bytes),
        totals.live_bytes,
    )?;
    check_sites(analysis)?;
    check_threads(analysis)?;
    check_faults(analysis)?;
    check_mappings(analysis)?;
    // The counters of all CPUs are not read at one moment: only the last reading,
    // after recording had been switched off, is exact.
    match (&analysis.counters, &analysis.end) {
        (Some(counters), RecordingEnd::Complete(_)) if analysis.damage_count == 0 => {
            check_counters(counters)
        }
        _ => Ok(()),
    }
}

fn check_sites(analysis: &Analysis) -> Result<(), Inconsistency> {
    let totals = &analysis.totals;
    let sum = |number: fn(&Site) -> u64| {
        analysis.sites.iter().fold(0_u64, |sum, site| sum.wrapping_add(number(site)))
    };
    let sums: [(&'static str, u64, u64); 10] = [
        (
            "Σ sites' allocations = allocations",
            sum(|site| site.sums.allocations),
            totals.allocations,
        ),
        (
            "Σ sites' allocated bytes = allocated bytes",
            sum(|site| site.sums.allocated_bytes),
            totals.allocated_bytes,
        ),
        ("Σ sites' frees = frees", sum(|site| site.sums.frees), totals.frees),
        (
            "Σ sites' freed bytes = freed bytes",
            sum(|site| site.sums.freed_bytes),
            totals.freed_bytes,
        ),
        (
            "Σ sites' live blocks = live blocks",
            sum(|site| site.sums.live_blocks()),
            totals.live_blocks,
        ),
        ("Σ sites' live bytes = live bytes", sum(|site| site.sums.live_bytes()), totals.live_bytes),
        (
            "Σ sites' blocks at the peak = peak blocks",
            sum(|site| site.at_peak.blocks),
            totals.peak_live_blocks,
        ),
        (
            "Σ sites' bytes at the peak = peak bytes",
            sum(|site| site.at_peak.bytes),
            totals.peak_live_bytes,
        ),
        (
            "Σ sites' temporary allocations = temporary allocations",
            sum(|site| site.sums.temporary_allocations),
            totals.temporary_allocations,
        ),
        (
            "Σ sites' mismatched frees = mismatched frees",
            sum(|site| site.sums.mismatched_frees),
            totals.mismatched_frees,
        ),
    ];
    for (name, left, right) in sums {
        law(name, left, right)?;
    }
    Ok(())
}

/// Each thread's numbers are scaled for themselves, where they are.
fn check_threads(analysis: &Analysis) -> Result<(), Inconsistency> {
    if analysis.windows.has_gaps() {
        return Ok(());
    }
    let totals = &analysis.totals;
    let sum = |number: fn(&ThreadRecord) -> u64| {
        analysis.threads.iter().fold(0_u64, |sum, thread| sum.wrapping_add(number(thread)))
    };
    let counted = totals.counted_allocations;
    for (name, left, right) in [
        (
            "Σ threads' allocations + counted ones = allocations",
            sum(|thread| thread.sums.allocations).wrapping_add(counted),
            totals.allocations,
        ),
        ("Σ threads' frees = frees", sum(|thread| thread.sums.frees), totals.frees),
        (
            "Σ threads' freed bytes = freed bytes",
            sum(|thread| thread.sums.freed_bytes),
            totals.freed_bytes,
        ),
        ("Σ threads' live bytes = live bytes", sum(|thread| thread.live.bytes), totals.live_bytes),
        (
            "Σ threads' temporary allocations = temporary allocations",
            sum(|thread| thread.sums.temporary_allocations),
            totals.temporary_allocations,
        ),
    ] {
        law(name, left, right)?;
    }
    Ok(())
}

fn check_faults(analysis: &Analysis) -> Result<(), Inconsistency> {
    let faults = analysis.fault_sites.iter();
    law(
        "Σ sites' page faults = page faults",
        faults.clone().fold(0_u64, |sum, site| sum.wrapping_add(site.sums.faults)),
        analysis.fault_totals.faults,
    )?;
    law(
        "Σ sites' resident bytes = resident bytes",
        faults.fold(0_u64, |sum, site| sum.wrapping_add(site.sums.resident.total())),
        analysis.fault_totals.resident.total(),
    )
}

fn check_mappings(analysis: &Analysis) -> Result<(), Inconsistency> {
    let Some(totals) = analysis.mapping_totals else { return Ok(()) };
    let mut sum = MappingSums::default();
    analysis.mapping_sites.iter().for_each(|site| sum.add(&site.sums));
    for (name, left, right) in [
        ("Σ sites' mappings = mappings", sum.mappings, totals.sums.mappings),
        ("Σ sites' mapped bytes = mapped bytes", sum.mapped_bytes, totals.sums.mapped_bytes),
        ("Σ sites' live mappings = live mappings", sum.live_mappings, totals.sums.live_mappings),
        (
            "mapped − unmapped bytes of all sites = live mapped bytes",
            sum.live_bytes(),
            totals.sums.live_bytes(),
        ),
    ] {
        law(name, left, right)?;
    }
    Ok(())
}

fn check_counters(counters: &Counters) -> Result<(), Inconsistency> {
    let lost = counters.lost.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    law(
        "attempted = recorded + lost events",
        counters.attempted,
        counters.recorded.saturating_add(lost),
    )
}
