//! What was live when the trace ended, by call chain, with its age.

use serde::Serialize;

use super::{
    Analysis, Detail, Estimate, Trust,
    estimate::{count_about, live_blocks_within, live_bytes_within},
    layout::{self, line},
    pages::instead_of_blocks,
    row::{SiteRow, ranked},
};
use crate::{lifetimes::Site, text};

/// What was live when the trace ended.
#[derive(Clone, Debug, Serialize)]
pub struct LeaksReport<'a> {
    /// Sites with live blocks, without the limit of `rows`.
    pub site_count: usize,
    /// Blocks live when the trace ended.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
    /// Those with most live bytes.
    pub rows: Vec<SiteRow<'a>>,
    /// What `live_blocks` and `live_bytes` rest on; none if every block was recorded.
    pub estimate: Option<Estimate>,
    /// How far to trust all this, with the bounds of `live_blocks`.
    pub trust: Trust,
    #[serde(skip)]
    detail: Detail,
    #[serde(skip)]
    analysis: &'a Analysis,
}

impl<'a> LeaksReport<'a> {
    /// The `top` first sites by live bytes, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>, detail: Detail) -> Self {
        let rank = |site: &Site| {
            let blocks = site.sums.live_blocks();
            (blocks > 0).then(|| (site.sums.live_bytes(), blocks))
        };
        let (rows, site_count) = ranked(analysis, top, detail, rank);
        Self {
            site_count,
            live_blocks: analysis.totals.live_blocks,
            live_bytes: analysis.totals.live_bytes,
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
        let what = format!(
            "Live at the end, {} in {}{}",
            live_bytes_within(self.live_bytes, self.estimate.map(|estimate| estimate.live_bytes)),
            live_blocks_within(
                self.live_blocks,
                self.estimate.map(|estimate| estimate.live_blocks)
            ),
            rests_on(self.estimate.as_ref()),
        );
        layout::heading(&mut out, &what, self.rows.len(), self.site_count);
        for (position, row) in self.rows.iter().enumerate() {
            line!(
                out,
                "\n{:>3}. {:>9} {:>7} in {}{}, {}; {}",
                position + 1,
                live_bytes_within(row.live_bytes, row.estimate.map(|estimate| estimate.live_bytes)),
                text::percent(row.live_bytes, self.live_bytes),
                live_blocks_within(
                    row.live_blocks,
                    row.estimate.map(|estimate| estimate.live_blocks)
                ),
                rests_on(row.estimate.as_ref()),
                ages(row),
                freed_text(row),
            );
            layout::stack(&mut out, row, self.detail, self.analysis);
        }
        if self.analysis.windows.has_gaps() {
            line!(
                out,
                "\nBlocks were followed to the end of their window only: there are at least these, and"
            );
            line!(out, "leaks are better looked for with --sample.");
        }
        if self.live_blocks > 0 {
            line!(
                out,
                "\nLive is not lost: caches and pools are live too, and memscope follows no pointers to"
            );
            line!(
                out,
                "see which blocks the program can still reach. Old blocks of a growing site are suspects."
            );
        }
        layout::folded(&mut out, &self.rows, self.detail);
        line!(out, "\n{}", self.trust.sentence);
        out
    }
}

/// Where none was sampled, the number of blocks says so.
fn rests_on(estimate: Option<&Estimate>) -> String {
    match estimate.map(|estimate| estimate.live_sampled_blocks) {
        None | Some(0) => String::new(),
        Some(blocks) => format!(" ({} sampled)", text::count(blocks)),
    }
}

fn ages(row: &SiteRow<'_>) -> String {
    match (row.newest_live_age_ns, row.oldest_live_age_ns) {
        (Some(newest), Some(oldest)) => {
            let (newest, oldest) = (text::duration_ns(newest), text::duration_ns(oldest));
            // So near to each other that three figures do not tell them apart.
            if newest == oldest {
                format!("{oldest} old")
            } else {
                format!("{newest} to {oldest} old")
            }
        }
        _ => "of unknown age".to_owned(),
    }
}

fn freed_text(row: &SiteRow<'_>) -> String {
    match row.frees {
        0 => "none freed".to_owned(),
        frees => format!("{} freed", count_about(frees, row.estimate.as_ref())),
    }
}
