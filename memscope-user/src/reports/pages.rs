//! What has made resident memory grow: call chains by what became resident in their page faults.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Analysis, Detail, NamedChain, Trust,
    chains::merged,
    layout::{self, counted, line},
};
use crate::{lifetimes::FaultSums, model::PageSums, text};

/// What page faults tell.
#[derive(Clone, Debug, Serialize)]
pub struct PagesReport<'a> {
    /// `pages` if page faults were observed, else `allocations`.
    pub events: &'static str,
    /// All that were handled.
    #[serde(flatten)]
    pub sums: PageFaults,
    /// What became resident in no page fault: by `MAP_POPULATE`, `mlock`, system calls.
    pub elsewhere_bytes: u64,
    /// What is resident no more, but for the end of processes.
    pub gone_bytes: u64,
    /// Call chains, without the limit of `rows`.
    pub chain_count: usize,
    /// Those by which most became resident.
    pub rows: Vec<PageRow<'a>>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

/// A call chain in which there were page faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageRow<'a> {
    /// From the function that accessed the memory first.
    #[serde(flatten)]
    pub chain: NamedChain<'a>,
    /// Its page faults.
    #[serde(flatten)]
    pub sums: PageFaults,
}

/// Page faults, and what came of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageFaults {
    /// How many there were.
    pub faults: u64,
    /// Of these, those that had to wait for a disk or for another thread.
    pub major_faults: u64,
    /// What became resident by them.
    pub resident_bytes: u64,
    /// Of that, memory of the process alone.
    pub anonymous_bytes: u64,
    /// Of that, pages of files.
    pub file_bytes: u64,
    /// Of that, pages of shared memory.
    pub shared_bytes: u64,
}

/// What a view of blocks shows of a recording in which page faults were observed instead; none
/// if allocations were.
pub(super) fn instead_of_blocks(analysis: &Analysis, trust: &Trust) -> Option<String> {
    analysis.page_sums?;
    Some(format!(
        "Allocations were not observed, but page faults; `--view pages` shows these.\n\n{}\n",
        trust.sentence
    ))
}

impl From<FaultSums> for PageFaults {
    fn from(sums: FaultSums) -> Self {
        Self {
            faults: sums.faults,
            major_faults: sums.major_faults,
            resident_bytes: sums.resident.total(),
            anonymous_bytes: sums.resident.anonymous,
            file_bytes: sums.resident.file,
            shared_bytes: sums.resident.shared,
        }
    }
}

impl PageFaults {
    /// `3 page faults, 1 major`
    fn faults_text(&self) -> String {
        let all = counted(self.faults, "page fault");
        match self.major_faults {
            0 => all,
            major => format!("{all}, {} major", text::count(major)),
        }
    }

    /// `4.0 KiB anonymous, 64.0 KiB of files`
    fn kinds_text(&self) -> String {
        let kinds = [
            (self.anonymous_bytes, "anonymous"),
            (self.file_bytes, "of files"),
            (self.shared_bytes, "shared"),
        ];
        let told: Vec<String> = kinds
            .into_iter()
            .filter(|(bytes, _)| *bytes > 0)
            .map(|(bytes, kind)| format!("{} {kind}", text::bytes(bytes)))
            .collect();
        if told.is_empty() { "nothing became resident".to_owned() } else { told.join(", ") }
    }
}

impl<'a> PagesReport<'a> {
    /// The `top` call chains by which most became resident, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>, detail: Detail) -> Self {
        let PageSums { elsewhere, gone } = analysis.page_sums.unwrap_or_default();
        let sites = analysis.fault_sites.iter().map(|site| (site.key, (), site.sums));
        let mut chains = merged(analysis, detail, sites, FaultSums::add);
        // Stable: equal ones stay in the order in which they were first seen.
        chains.sort_by_key(|merged| Reverse((merged.sums.resident.total(), merged.sums.faults)));
        let chain_count = chains.len();
        let rows = chains.into_iter().take(top.unwrap_or(chain_count));
        let rows = rows.map(|merged| merged.named(analysis));
        let rows = rows.map(|(chain, (), sums)| PageRow { chain, sums: sums.into() });
        Self {
            events: analysis.observed().name(),
            sums: analysis.fault_totals.into(),
            elsewhere_bytes: elsewhere.total(),
            gone_bytes: gone.total(),
            chain_count,
            rows: rows.collect(),
            trust: Trust::of(analysis),
            analysis,
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.analysis.page_sums.is_none() {
            line!(out, "Page faults were not observed; `memscope trace --pages` observes them.");
            line!(out, "\n{}", self.trust.sentence);
            return out;
        }
        let what = format!(
            "Made resident by page faults, {} in {}",
            text::bytes(self.sums.resident_bytes),
            counted(self.sums.faults, "fault")
        );
        layout::heading(&mut out, &what, self.rows.len(), self.chain_count);
        self.tell_others(&mut out, "");
        for (position, row) in self.rows.iter().enumerate() {
            line!(
                out,
                "\n{:>3}. {:>9} {:>7} in {}; {}",
                position + 1,
                text::bytes(row.sums.resident_bytes),
                text::percent(row.sums.resident_bytes, self.sums.resident_bytes),
                row.sums.faults_text(),
                row.sums.kinds_text()
            );
            row.chain.tell(&mut out, self.analysis);
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }

    /// The sums, as lines of the summary.
    pub(super) fn tell_sums(&self, out: &mut String) {
        line!(out, "  faults     {}; allocations were not observed", self.sums.faults_text());
        line!(
            out,
            "  resident   {} by page faults: {}",
            text::bytes(self.sums.resident_bytes),
            self.sums.kinds_text()
        );
        self.tell_others(out, "  beside     ");
    }

    fn tell_others(&self, out: &mut String, before: &str) {
        line!(
            out,
            "{before}{} became resident otherwise; {} went while the program ran",
            text::bytes(self.elsewhere_bytes),
            text::bytes(self.gone_bytes)
        );
    }
}
