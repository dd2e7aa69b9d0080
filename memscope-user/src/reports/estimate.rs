//! Bounds of what was estimated from sampled blocks.

use serde::Serialize;

use super::Analysis;
use crate::{
    lifetimes::{Sampled, Site, Spread, deviations_for, interval},
    text,
};

/// The bounds of so many sites, whichever they are, hold all together in 95 of 100 cases.
pub(super) const SITES_TOGETHER: u32 = 20;

/// Bounds of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// It is hardly less.
    pub low: u64,
    /// It is hardly more.
    pub high: u64,
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
    fn of(estimate: u64, spread: &Spread, deviations: f64) -> Self {
        let bounds = interval(estimate as f64, spread, deviations);
        // The estimate is a whole number, and in its bounds.
        Self {
            low: (bounds.low.floor() as u64).min(estimate),
            high: (bounds.high.ceil() as u64).max(estimate),
        }
    }
}

impl Estimate {
    /// Of a site; none if none of its blocks was sampled.
    pub(super) fn of_site(site: &Site) -> Option<Self> {
        let sums = &site.sums;
        let numbers =
            [sums.allocations, sums.allocated_bytes, sums.live_blocks(), sums.live_bytes()];
        site.sampled.as_ref().map(|sampled| Self::of(numbers, sampled, SITES_TOGETHER))
    }

    /// Of all together.
    #[must_use]
    pub fn of_all(analysis: &Analysis) -> Option<Self> {
        let totals = &analysis.totals;
        let numbers =
            [totals.allocations, totals.allocated_bytes, totals.live_blocks, totals.live_bytes];
        analysis.sampled.as_ref().map(|sampled| Self::of(numbers, sampled, 1))
    }

    fn of(numbers: [u64; 4], sampled: &Sampled, figures: u32) -> Self {
        let deviations = deviations_for(figures);
        let [allocations, allocated_bytes, live_blocks, live_bytes] = numbers;
        let (allocated, live) = (&sampled.allocated, &sampled.live);
        Self {
            sampled_blocks: sampled.blocks,
            freed_sampled_blocks: sampled.freed_blocks,
            live_sampled_blocks: sampled.live_blocks,
            allocations: Bounds::of(allocations, &allocated.blocks, deviations),
            allocated_bytes: Bounds::of(allocated_bytes, &allocated.bytes, deviations),
            live_blocks: Bounds::of(live_blocks, &live.blocks, deviations),
            live_bytes: Bounds::of(live_bytes, &live.bytes, deviations),
        }
    }
}

/// Bytes, with their bounds if they were estimated: `≈ 1.20 GiB (1.10–1.31)`.
pub(super) fn bytes_within(bytes: u64, bounds: Option<Bounds>) -> String {
    match bounds {
        Some(Bounds { low, high }) if low < high => {
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

/// Bytes, without their bounds: `≈ 1.20 GiB`.
pub(super) fn bytes_about(bytes: u64, estimate: Option<&Estimate>) -> String {
    let about = if estimate.is_some() { "≈ " } else { "" };
    format!("{about}{}", text::bytes(bytes))
}
