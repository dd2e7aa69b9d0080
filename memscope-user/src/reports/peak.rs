//! Whose memory it was when the program had most of it.

use serde::Serialize;

use super::{
    Analysis, Detail, Estimate, Trust,
    estimate::{live_blocks_about, live_bytes_about},
    layout::{self, line},
    pages::instead_of_blocks,
    row::{SiteRow, ranked},
};
use crate::{lifetimes::Site, text};

/// What was live at the moment of the largest sum of live bytes.
#[derive(Clone, Debug, Serialize)]
pub struct PeakReport<'a> {
    /// The moment, after the beginning of the recording; none if nothing was live
    /// at any time.
    pub peak_after_ns: Option<u64>,
    /// Blocks live then.
    pub peak_live_blocks: u64,
    /// Sum of their requested sizes.
    pub peak_live_bytes: u64,
    /// Sites with blocks live then, without the limit of `rows`.
    pub site_count: usize,
    /// Those with most bytes then.
    pub rows: Vec<SiteRow<'a>>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    detail: Detail,
    #[serde(skip)]
    analysis: &'a Analysis,
}

/// How long after the beginning of the recording the peak was; none if there was
/// none.
pub(super) fn peak_after_ns(analysis: &Analysis) -> Option<u64> {
    let totals = &analysis.totals;
    (totals.peak_live_bytes > 0)
        .then(|| totals.peak_time_ns.saturating_sub(analysis.capture.started_at_ns))
}

impl<'a> PeakReport<'a> {
    /// The `top` first sites by bytes live at the peak, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>, detail: Detail) -> Self {
        let rank = |site: &Site| {
            (site.at_peak.blocks > 0).then_some((site.at_peak.bytes, site.at_peak.blocks))
        };
        let (rows, site_count) = ranked(analysis, top, detail, rank);
        Self {
            peak_after_ns: peak_after_ns(analysis),
            peak_live_blocks: analysis.totals.peak_live_blocks,
            peak_live_bytes: analysis.totals.peak_live_bytes,
            site_count,
            rows,
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
        let estimate = Estimate::of_all(self.analysis);
        let what = match self.peak_after_ns {
            Some(after_ns) => format!(
                "Live at the peak, {} in {}, {} after the start",
                live_bytes_about(self.peak_live_bytes, estimate.as_ref()),
                live_blocks_about(self.peak_live_blocks, estimate.as_ref()),
                text::duration_ns(after_ns)
            ),
            None => "Live at the peak, nothing".to_owned(),
        };
        layout::heading(&mut out, &what, self.rows.len(), self.site_count);
        for (position, row) in self.rows.iter().enumerate() {
            line!(
                out,
                "\n{:>3}. {:>9} {:>7} in {}; {} live at the end",
                position + 1,
                live_bytes_about(row.at_peak_bytes, row.estimate.as_ref()),
                text::percent(row.at_peak_bytes, self.peak_live_bytes),
                live_blocks_about(row.at_peak_blocks, row.estimate.as_ref()),
                live_bytes_about(row.live_bytes, row.estimate.as_ref()),
            );
            layout::stack(&mut out, row, self.detail, self.analysis);
        }
        layout::folded(&mut out, &self.rows, self.detail);
        line!(out, "\n{}", self.trust.sentence);
        out
    }
}
