//! Bounds of what was estimated from sampled blocks.

use serde::Serialize;

use super::{Analysis, layout::counted};
use crate::{
    lifetimes::{Begun, Interval, Sampled, Site, Spread, deviations_for, interval, undrawn},
    model::ExactCounts,
    text,
};

/// The bounds of so many sites, whichever they are, hold all together in 95 of 100 cases: those of
/// blocks and those of bytes.
const SITES_TOGETHER: u32 = 20;
const FIGURES_OF_SITE: u32 = 2;

/// Bounds of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// It is hardly less.
    pub low: u64,
    /// It is hardly more; none if nothing bounds it.
    pub high: Option<u64>,
}

/// What a site's numbers, or those of all, rest on, if blocks were sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Sampled blocks that began.
    pub sampled_blocks: u64,
    /// Those of them that were freed: lifetimes rest on them.
    pub freed_sampled_blocks: u64,
    /// Those of them that were live when the trace ended.
    pub live_sampled_blocks: u64,
    /// Bounds of the number of the same name, as the next ones.
    pub allocations: Bounds,
    /// Bounds.
    pub allocated_bytes: Bounds,
    /// Bounds.
    pub live_blocks: Bounds,
    /// Bounds.
    pub live_bytes: Bounds,
}

impl Bounds {
    /// The estimate is a whole number, and in its bounds.
    fn of(estimate: u64, bounds: Interval) -> Self {
        let high = bounds.high.is_finite().then(|| (bounds.high.ceil() as u64).max(estimate));
        Self { low: (bounds.low.floor() as u64).min(estimate), high }
    }

    /// Whether it can be another number than the one that is told.
    fn is_open(self) -> bool {
        self.high != Some(self.low)
    }
}

impl Estimate {
    /// Of a site; none if none of its blocks was sampled.
    pub(super) fn of_site(analysis: &Analysis, site: &Site) -> Option<Self> {
        let sums = &site.sums;
        let numbers =
            [sums.allocations, sums.allocated_bytes, sums.live_blocks(), sums.live_bytes()];
        let begun = Some(site.begun.as_deref().copied().unwrap_or_default());
        let sampled = site.sampled.as_ref()?;
        Some(Self::of(analysis, begun, numbers, sampled, FIGURES_OF_SITE * SITES_TOGETHER))
    }

    /// Of all together.
    #[must_use]
    pub fn of_all(analysis: &Analysis) -> Option<Self> {
        let totals = &analysis.totals;
        let numbers =
            [totals.allocations, totals.allocated_bytes, totals.live_blocks, totals.live_bytes];
        let sampled = analysis.sampled.as_ref()?;
        let mut estimate = Self::of(analysis, None, numbers, sampled, 1);
        estimate.bound_what_was_not_drawn(analysis);
        Some(estimate)
    }

    /// That no block was drawn of those that live does not say that none lives.
    fn bound_what_was_not_drawn(&mut self, analysis: &Analysis) {
        // With a budget the interval changes.
        let interval_bytes = analysis.capture.sampling_interval_bytes;
        let interval_bytes = interval_bytes.filter(|_| analysis.windows.budget_ppm == 0);
        if let Some(interval_bytes) = interval_bytes
            && (self.live_sampled_blocks, self.live_bytes.high) == (0, Some(0))
        {
            let missed = Bounds::of(0, undrawn(interval_bytes));
            let at_most = |all: Option<u64>| Bounds {
                high: missed.high.map(|high| high.min(all.unwrap_or(high))),
                ..missed
            };
            let exact = analysis.exact.as_ref();
            self.live_bytes = at_most(exact.map(ExactCounts::bytes));
            // Each block has a byte at least, or counts as if it had.
            self.live_blocks = at_most(exact.map(ExactCounts::calls));
        }
    }

    /// `begun` is what began at the site window by window; none for all sites.
    fn of(
        analysis: &Analysis,
        begun: Option<Begun>,
        numbers: [u64; 4],
        sampled: &Sampled,
        figures: u32,
    ) -> Self {
        let deviations = deviations_for(figures);
        let [allocations, allocated_bytes, live_blocks, live_bytes] = numbers;
        let within = |estimate: u64, spread: &Spread| interval(estimate as f64, spread, deviations);
        let (allocated, live, windows) = (&sampled.allocated, &sampled.live, &analysis.windows);
        let begun = begun.as_ref();
        let [blocks, bytes, live_blocks_within, live_bytes_within] = if windows.has_gaps() {
            // What lives from before its window ended is not known to live.
            let at_least = |bounds: Interval| Interval { high: f64::INFINITY, ..bounds };
            [
                windows.blocks_within(begun, allocations, &allocated.blocks, deviations),
                windows.bytes_within(begun, allocated_bytes, &allocated.bytes, deviations),
                at_least(within(live_blocks, &live.blocks)),
                at_least(within(live_bytes, &live.bytes)),
            ]
        } else {
            [
                within(allocations, &allocated.blocks),
                within(allocated_bytes, &allocated.bytes),
                within(live_blocks, &live.blocks),
                within(live_bytes, &live.bytes),
            ]
        };
        Self {
            sampled_blocks: sampled.blocks,
            freed_sampled_blocks: sampled.freed_blocks,
            live_sampled_blocks: sampled.live_blocks,
            allocations: Bounds::of(allocations, blocks),
            allocated_bytes: Bounds::of(allocated_bytes, bytes),
            live_blocks: Bounds::of(live_blocks, live_blocks_within),
            live_bytes: Bounds::of(live_bytes, live_bytes_within),
        }
    }
}

/// Bytes, with their bounds if they were estimated: `≈ 1.20 GiB (1.10–1.31)`, or
/// `≈ 1.20 GiB (≥ 12.0 MiB)` where nothing bounds them from above.
pub(super) fn bytes_within(bytes: u64, bounds: Option<Bounds>) -> String {
    match bounds {
        Some(Bounds { low, high: None }) => {
            format!("≈ {} (≥ {})", text::bytes(bytes), text::bytes(low))
        }
        Some(Bounds { high: Some(high), .. }) if bytes == 0 && high > 0 => {
            format!("≤ {}", text::bytes(high))
        }
        Some(Bounds { low, high: Some(high) }) if low < high => {
            let (value, low, high) = text::bytes_between(bytes, low, high);
            // So near to each other that three figures do not tell them apart.
            if low == high {
                format!("≈ {value}")
            } else {
                format!("≈ {value} ({low}–{high})")
            }
        }
        _ => text::bytes(bytes),
    }
}

/// Bytes of what lives, which is at least so much where blocks are not followed on: `≥ 12.0 MiB`.
/// What was seen to live is never scaled.
pub(super) fn live_bytes_within(bytes: u64, bounds: Option<Bounds>) -> String {
    match bounds {
        Some(Bounds { low, high: None }) => format!("≥ {}", text::bytes(low)),
        _ => bytes_within(bytes, bounds),
    }
}

/// Blocks beside [`bytes_within`], of the same kind: `≈ 1,200 blocks`.
pub(super) fn blocks_within(blocks: u64, bounds: Option<Bounds>) -> String {
    things_within(blocks, "block", bounds)
}

/// Blocks, or what else is counted with them.
pub(super) fn things_within(count: u64, noun: &str, bounds: Option<Bounds>) -> String {
    things_if(bounds.is_some_and(Bounds::is_open), count, noun)
}

/// The same without bounds: `≈ 1,200 reallocations`.
pub(super) fn things_about(count: u64, noun: &str, estimate: Option<&Estimate>) -> String {
    things_if(estimate.is_some(), count, noun)
}

fn things_if(is_estimate: bool, count: u64, noun: &str) -> String {
    if is_estimate {
        format!("≈ {}", counted(rounded(count), noun))
    } else {
        counted(count, noun)
    }
}

/// A number without a noun: `≈ 1,200`.
pub(super) fn count_about(count: u64, estimate: Option<&Estimate>) -> String {
    match estimate {
        Some(_) => format!("≈ {}", text::count(rounded(count))),
        None => text::count(count),
    }
}

/// To three figures, as bytes have them: an estimate deserves no more.
fn rounded(count: u64) -> u64 {
    let figures = count.checked_ilog10().unwrap_or(0);
    let unit = 10_u64.pow(figures.saturating_sub(2));
    count.saturating_add(unit / 2) / unit * unit
}

/// Blocks beside [`live_bytes_within`]: `≥ 3 blocks`.
pub(super) fn live_blocks_within(blocks: u64, bounds: Option<Bounds>) -> String {
    match bounds {
        Some(Bounds { low, high: None }) => format!("≥ {}", counted(low, "block")),
        Some(bounds) if blocks == 0 && bounds.is_open() => counted(0, "sampled block"),
        _ => blocks_within(blocks, bounds),
    }
}

/// Blocks beside [`bytes_about`].
pub(super) fn blocks_about(blocks: u64, estimate: Option<&Estimate>) -> String {
    things_about(blocks, "block", estimate)
}

/// Blocks beside [`live_bytes_about`].
pub(super) fn live_blocks_about(blocks: u64, estimate: Option<&Estimate>) -> String {
    match estimate {
        Some(estimate) if estimate.live_bytes.high.is_none() => {
            format!("≥ {}", counted(blocks, "block"))
        }
        _ => blocks_about(blocks, estimate),
    }
}

/// Bytes, without their bounds: `≈ 1.20 GiB`.
pub(super) fn bytes_about(bytes: u64, estimate: Option<&Estimate>) -> String {
    let about = if estimate.is_some() { "≈ " } else { "" };
    format!("{about}{}", text::bytes(bytes))
}

/// Bytes of what lives, or lived at the peak: at least so many where blocks are not followed on.
pub(super) fn live_bytes_about(bytes: u64, estimate: Option<&Estimate>) -> String {
    match estimate {
        Some(estimate) if estimate.live_bytes.high.is_none() => format!("≥ {}", text::bytes(bytes)),
        _ => bytes_about(bytes, estimate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimated_counts_have_three_figures() {
        for (count, told) in [
            (0, 0),
            (1, 1),
            (999, 999),
            (1_004, 1_000),
            (1_005, 1_010),
            (562_687, 563_000),
            (999_500, 1_000_000),
            (u64::MAX, 18_400_000_000_000_000_000),
        ] {
            assert_eq!(rounded(count), told, "{count}");
        }
    }
}
