//! What has made resident memory grow: call chains by what became resident in their page faults.

use std::{cmp::Reverse, collections::hash_map::Entry};

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    Analysis, Trust, Wrappers,
    frames::{ResolvedFrame, ResolvedStack},
    layout::{self, Chain, counted, line},
    origin::ProcessName,
};
use crate::{
    lifetimes::FaultSums,
    model::{PageSums, ProcessId, ResidentBytes, StackOutcome},
    text,
};

/// What page faults tell.
#[derive(Clone, Debug, Serialize)]
pub struct PagesReport<'a> {
    /// `pages` if page faults were observed, else `allocations`.
    pub events: &'static str,
    /// Page faults that were handled.
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

/// A call chain in which there were page faults. Chains that differ only in where in their
/// functions' lines they are, are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageRow<'a> {
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// Innermost first: the function that accessed the memory first.
    pub frames: Vec<ResolvedFrame<'a>>,
    /// Whether the chain is complete, or why not: a [`crate::model::StackOutcome::name`].
    pub stack: &'static str,
    /// Page faults.
    pub faults: u64,
    /// Of these, those that had to wait.
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

impl<'a> PageRow<'a> {
    fn chain(&'a self) -> Chain<'a> {
        Chain { process: self.process, frames: &self.frames, outcome: self.stack }
    }
}

/// What a reader can tell apart.
type Visible<'a> = (ProcessId, StackOutcome, Vec<ResolvedFrame<'a>>);

fn merged(analysis: &Analysis) -> Vec<(Visible<'_>, FaultSums)> {
    let mut all: Vec<(Visible<'_>, FaultSums)> = Vec::new();
    let mut known: FxHashMap<Visible<'_>, usize> = FxHashMap::default();
    for site in &analysis.fault_sites {
        let mut stack = ResolvedStack::of(&analysis.definitions, site.key.stack);
        for frame in stack.frames.iter_mut().filter(|frame| frame.function.is_some()) {
            frame.offset = 0;
        }
        match known.entry((site.key.process, stack.outcome, stack.frames)) {
            Entry::Occupied(first) => {
                if let Some((_, sums)) = all.get_mut(*first.get()) {
                    sums.add(&site.sums);
                }
            }
            Entry::Vacant(place) => {
                all.push((place.key().clone(), site.sums));
                place.insert(all.len() - 1);
            }
        }
    }
    all
}

impl<'a> PagesReport<'a> {
    /// The `top` call chains by which most became resident, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>) -> Self {
        let FaultSums { faults, major_faults, resident } = analysis.fault_totals;
        let PageSums { elsewhere, gone } = analysis.page_sums.unwrap_or_default();
        let mut chains = merged(analysis);
        // Stable: equal ones stay in the order in which they were first seen.
        chains.sort_by_key(|(_, sums)| Reverse((sums.resident.total(), sums.faults)));
        let chain_count = chains.len();
        let rows = chains.into_iter().take(top.unwrap_or(chain_count));
        let rows = rows.map(|((process, outcome, frames), sums)| PageRow {
            process: ProcessName::of(analysis, process),
            frames,
            stack: outcome.name(),
            faults: sums.faults,
            major_faults: sums.major_faults,
            resident_bytes: sums.resident.total(),
            anonymous_bytes: sums.resident.anonymous,
            file_bytes: sums.resident.file,
            shared_bytes: sums.resident.shared,
        });
        Self {
            events: analysis.observed().name(),
            faults,
            major_faults,
            resident_bytes: resident.total(),
            anonymous_bytes: resident.anonymous,
            file_bytes: resident.file,
            shared_bytes: resident.shared,
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
            text::bytes(self.resident_bytes),
            counted(self.faults, "fault")
        );
        layout::heading(&mut out, &what, self.rows.len(), self.chain_count);
        self.tell_others(&mut out, "");
        for (position, row) in self.rows.iter().enumerate() {
            line!(
                out,
                "\n{:>3}. {:>9} {:>7} in {}; {}",
                position + 1,
                text::bytes(row.resident_bytes),
                text::percent(row.resident_bytes, self.resident_bytes),
                faults_text(row.faults, row.major_faults),
                kinds_text(&ResidentBytes {
                    anonymous: row.anonymous_bytes,
                    file: row.file_bytes,
                    shared: row.shared_bytes,
                })
            );
            layout::chain(&mut out, &row.chain(), Wrappers::Shown, self.analysis);
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }

    /// The sums, as lines of the summary.
    pub(super) fn tell_sums(&self, out: &mut String) {
        line!(
            out,
            "  faults     {}; allocations were not observed",
            faults_text(self.faults, self.major_faults)
        );
        let kinds = self.analysis.fault_totals.resident;
        line!(
            out,
            "  resident   {} by page faults: {}",
            text::bytes(self.resident_bytes),
            kinds_text(&kinds)
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

/// `3 faults, 1 of them major`
fn faults_text(faults: u64, major_faults: u64) -> String {
    let all = counted(faults, "page fault");
    if major_faults == 0 { all } else { format!("{all}, {} major", text::count(major_faults)) }
}

/// `4.0 KiB anonymous, 64.0 KiB of files`
fn kinds_text(resident: &ResidentBytes) -> String {
    let kinds = [
        (resident.anonymous, "anonymous"),
        (resident.file, "of files"),
        (resident.shared, "shared"),
    ];
    let told: Vec<String> = kinds
        .into_iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, kind)| format!("{} {kind}", text::bytes(bytes)))
        .collect();
    if told.is_empty() { "nothing became resident".to_owned() } else { told.join(", ") }
}
