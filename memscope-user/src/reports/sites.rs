//! Who allocates: call chains by what they have live, allocated, or allocated in
//! vain.

use serde::Serialize;

use super::{
    Analysis, Detail, Estimate, Trust,
    estimate::{
        blocks_about, blocks_within, bytes_about, bytes_within, count_about, live_blocks_within,
        live_bytes_about, live_bytes_within, things_within,
    },
    layout::{self, line},
    pages::instead_of_blocks,
    row::{SiteRow, ranked},
};
use crate::{lifetimes::Site, text};

/// What sites are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteOrder {
    /// Bytes live when the trace ended, then bytes allocated.
    Live,
    /// Bytes allocated in all.
    Allocated,
    /// Allocations freed right after; sites without any are left out.
    Temporary,
}

/// Sites in some order.
#[derive(Clone, Debug, Serialize)]
pub struct SitesReport<'a> {
    /// What they are ordered by.
    pub order: SiteOrder,
    /// Sites in the order, without the limit of `rows`.
    pub site_count: usize,
    /// Bytes allocated by all sites.
    pub allocated_bytes: u64,
    /// Bytes live when the trace ended, of all sites.
    pub live_bytes: u64,
    /// Temporary allocations of all sites.
    pub temporary_allocations: u64,
    /// The largest.
    pub rows: Vec<SiteRow<'a>>,
    /// What the numbers of all sites rest on; none if every block was recorded.
    pub estimate: Option<Estimate>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    detail: Detail,
    #[serde(skip)]
    analysis: &'a Analysis,
}

impl<'a> SitesReport<'a> {
    /// The `top` first sites in an order, or all.
    #[must_use]
    pub fn of(
        analysis: &'a Analysis,
        order: SiteOrder,
        top: Option<usize>,
        detail: Detail,
    ) -> Self {
        let rank = |site: &Site| {
            let sums = &site.sums;
            match order {
                _ if sums.allocations == 0 => None,
                SiteOrder::Live => Some((sums.live_bytes(), sums.allocated_bytes)),
                SiteOrder::Allocated => Some((sums.allocated_bytes, sums.allocations)),
                SiteOrder::Temporary if sums.temporary_allocations == 0 => None,
                SiteOrder::Temporary => Some((sums.temporary_allocations, sums.allocated_bytes)),
            }
        };
        let (rows, site_count) = ranked(analysis, top, detail, rank);
        Self {
            order,
            site_count,
            allocated_bytes: analysis.totals.allocated_bytes,
            live_bytes: analysis.totals.live_bytes,
            temporary_allocations: analysis.totals.temporary_allocations,
            rows,
            estimate: Estimate::of_all(analysis),
            trust: Trust::of(analysis),
            detail,
            analysis,
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(told) = instead_of_blocks(self.analysis, &self.trust) {
            return told;
        }
        let mut out = String::new();
        let what = match self.order {
            SiteOrder::Live => "Sites by bytes live at the end",
            SiteOrder::Allocated => "Sites by bytes allocated",
            SiteOrder::Temporary => {
                "Sites by temporary allocations (freed with no other allocation in between)"
            }
        };
        layout::heading(&mut out, what, self.rows.len(), self.site_count);
        for (position, row) in self.rows.iter().enumerate() {
            line!(out, "\n{:>3}. {}", position + 1, self.numbers(row));
            layout::stack(&mut out, row, self.detail, self.analysis);
        }
        layout::folded(&mut out, &self.rows, self.detail);
        line!(out, "\n{}", self.trust.sentence);
        out
    }

    fn numbers(&self, row: &SiteRow<'_>) -> String {
        let estimate = row.estimate.as_ref();
        match self.order {
            SiteOrder::Live => format!(
                "{:>9} live {:>7} in {}; allocated {} in {}",
                live_bytes_within(row.live_bytes, estimate.map(|estimate| estimate.live_bytes)),
                text::percent(row.live_bytes, self.live_bytes),
                live_blocks_within(row.live_blocks, estimate.map(|estimate| estimate.live_blocks)),
                bytes_about(row.allocated_bytes, estimate),
                blocks_about(row.allocations, estimate),
            ),
            SiteOrder::Allocated => format!(
                "{:>9} allocated {:>7} in {}; {} live; {}",
                bytes_within(
                    row.allocated_bytes,
                    estimate.map(|estimate| estimate.allocated_bytes)
                ),
                text::percent(row.allocated_bytes, self.allocated_bytes),
                blocks_within(row.allocations, estimate.map(|estimate| estimate.allocations)),
                live_bytes_about(row.live_bytes, estimate),
                lifetimes(row),
            ),
            SiteOrder::Temporary => format!(
                "{:>9} temporary {:>7}, {} of the {} here; {}",
                count_about(row.temporary_allocations, estimate),
                text::percent(row.temporary_allocations, self.temporary_allocations),
                text::percent(row.temporary_allocations, row.allocations),
                things_within(
                    row.allocations,
                    "allocation",
                    estimate.map(|estimate| estimate.allocations)
                ),
                lifetimes(row),
            ),
        }
    }
}

fn lifetimes(row: &SiteRow<'_>) -> String {
    let Some(lifetime) = row.lifetime_ns else { return "none freed".to_owned() };
    let told = format!("half lived ≤ {}", text::duration_ns(lifetime.p50));
    match &row.estimate {
        Some(estimate) => {
            format!("{told} ({} sampled)", text::count(estimate.freed_sampled_blocks))
        }
        None => told,
    }
}
