//! Who has mapped memory: call chains by what they have mapped by `mmap`, `mremap` and `brk`.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Analysis, Detail, NamedChain, Trust,
    chains::merged,
    layout::{self, counted, line},
};
use crate::{
    lifetimes::MappingSums,
    model::{MappedBy, MappingKind},
    text,
};

const ABOUT: &str = "\
What is mapped is address space; it takes memory where it is touched. What allocators map, they make
blocks of: that is in the other views too.";

/// What system calls have mapped.
#[derive(Clone, Debug, Serialize)]
pub struct MappingsReport<'a> {
    /// Whether that was observed; else all is 0.
    pub observed: bool,
    /// All of it.
    #[serde(flatten)]
    pub totals: MappedTotals,
    /// Call chains, without the limit of `rows`.
    pub chain_count: usize,
    /// Those that have most mapped at the end.
    pub rows: Vec<MappingRow<'a>>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

/// All that was mapped, and what cannot be said of a call chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MappedTotals {
    /// Of all call chains.
    #[serde(flatten)]
    pub sums: MappedSums,
    /// Unmapped although nobody was seen to map it: it is older than the trace, was mapped by
    /// another call, or was not mapped at all.
    pub unknown_unmapped_bytes: u64,
    /// Unmapped by processes that had it from those that they were forked by.
    pub inherited_unmapped_bytes: u64,
    /// Most that was mapped at once.
    pub peak_bytes: u64,
    /// Nanoseconds from the start to when that was first so; null if nothing was ever mapped.
    pub peak_after_ns: Option<u64>,
}

impl MappedTotals {
    fn of(analysis: &Analysis) -> Self {
        let totals = analysis.mapping_totals.unwrap_or_default();
        let since_start = |ns: u64| ns.saturating_sub(analysis.capture.started_at_ns);
        Self {
            sums: totals.sums.into(),
            unknown_unmapped_bytes: totals.unknown_unmapped_bytes,
            inherited_unmapped_bytes: totals.inherited_unmapped_bytes,
            peak_bytes: totals.peak_bytes,
            peak_after_ns: (totals.peak_ns != 0).then(|| since_start(totals.peak_ns)),
        }
    }
}

/// A call chain by which something was mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MappingRow<'a> {
    /// From the function that made the system call.
    #[serde(flatten)]
    pub chain: NamedChain<'a>,
    /// What was mapped: a [`MappingKind::name`].
    pub kind: &'static str,
    /// Who wanted it: a [`MappedBy::name`].
    pub by: &'static str,
    /// The function of the allocator, if it was one.
    pub allocator: Option<&'a str>,
    /// How much.
    #[serde(flatten)]
    pub sums: MappedSums,
}

/// What was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MappedSums {
    /// What is mapped still.
    pub live_bytes: u64,
    /// In how many pieces.
    pub live_mappings: u64,
    /// All that was mapped.
    pub mapped_bytes: u64,
    /// By so many calls.
    pub mappings: u64,
    /// What is mapped no more.
    pub unmapped_bytes: u64,
    /// Calls that failed.
    pub failed_mappings: u64,
}

impl From<MappingSums> for MappedSums {
    fn from(sums: MappingSums) -> Self {
        Self {
            live_bytes: sums.live_bytes(),
            live_mappings: sums.live_mappings,
            mapped_bytes: sums.mapped_bytes,
            mappings: sums.mappings,
            unmapped_bytes: sums.unmapped_bytes,
            failed_mappings: sums.failed_mappings,
        }
    }
}

impl MappingRow<'_> {
    fn what(&self) -> String {
        let kind = match self.kind {
            "file" => "of files",
            "heap" => "the heap of brk",
            "unknown" => "of unknown kind",
            kind => kind,
        };
        let by = match (self.by, self.allocator) {
            ("allocator", Some(function)) => format!(", by {}", text::harmless(function)),
            ("allocator", None) => ", by an allocator".to_owned(),
            _ => String::new(),
        };
        format!("{kind}{by}")
    }
}

impl<'a> MappingsReport<'a> {
    /// The `top` call chains that have most mapped at the end, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>, detail: Detail) -> Self {
        let sites = analysis.mapping_sites.iter();
        let sites = sites.map(|site| (site.key, (site.kind, site.by), site.sums));
        let mut chains = merged(analysis, detail, sites, MappingSums::add);
        // Stable: equal ones stay in the order in which they were first seen.
        chains.sort_by_key(|merged| Reverse((merged.sums.live_bytes(), merged.sums.mapped_bytes)));
        let chain_count = chains.len();
        let rows = chains.into_iter().take(top.unwrap_or(chain_count));
        let rows = rows.map(|merged| merged.named(analysis));
        let rows = rows.map(|(chain, (kind, by), sums)| MappingRow {
            chain,
            kind: kind.name(),
            by: by.name(),
            allocator: function_of(analysis, by),
            sums: sums.into(),
        });
        Self {
            observed: analysis.mapping_totals.is_some(),
            totals: MappedTotals::of(analysis),
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
        if !self.observed {
            line!(
                out,
                "What is mapped by system calls was not observed; `memscope trace --mappings` observes it."
            );
            line!(out, "\n{}", self.trust.sentence);
            return out;
        }
        let MappedSums { live_bytes, mapped_bytes, mappings, .. } = self.totals.sums;
        let what = format!(
            "Mapped at the end, {} of {} in {}",
            text::bytes(live_bytes),
            text::bytes(mapped_bytes),
            counted(mappings, "call")
        );
        layout::heading(&mut out, &what, self.rows.len(), self.chain_count);
        self.tell_others(&mut out);
        line!(out, "{ABOUT}");
        for (position, row) in self.rows.iter().enumerate() {
            let sums = &row.sums;
            let failed = match sums.failed_mappings {
                0 => String::new(),
                failed => format!("; {} failed", counted(failed, "call")),
            };
            line!(
                out,
                "\n{:>3}. {:>9} {:>7} in {}; {} in {}; {}{failed}",
                position + 1,
                text::bytes(sums.live_bytes),
                text::percent(sums.live_bytes, live_bytes),
                counted(sums.live_mappings, "piece"),
                text::bytes(sums.mapped_bytes),
                counted(sums.mappings, "call"),
                row.what()
            );
            row.chain.tell(&mut out, self.analysis);
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }

    fn tell_others(&self, out: &mut String) {
        let totals = &self.totals;
        let mut told = Vec::new();
        if let Some(after_ns) = totals.peak_after_ns {
            let peak = text::bytes(totals.peak_bytes);
            told.push(format!("{peak} at most, {} after the start", text::duration_ns(after_ns)));
        }
        for (bytes, what) in [
            (totals.unknown_unmapped_bytes, "unmapped that nobody was seen to map"),
            (
                totals.inherited_unmapped_bytes,
                "unmapped by children that had it from their parents",
            ),
        ] {
            if bytes > 0 {
                told.push(format!("{} {what}", text::bytes(bytes)));
            }
        }
        if totals.sums.failed_mappings > 0 {
            told.push(format!("{} failed", counted(totals.sums.failed_mappings, "call")));
        }
        for line in told {
            line!(out, "{line}");
        }
    }
}

/// What is mapped at the end, by who wanted it: a line of the summary, if anything was mapped.
pub(super) fn tell_mapped(out: &mut String, analysis: &Analysis) {
    let Some(totals) = analysis.mapping_totals.filter(|totals| totals.sums.mappings > 0) else {
        return;
    };
    let (mut allocators, mut program, mut either, mut files) = (0_u64, 0_u64, 0_u64, 0_u64);
    for site in &analysis.mapping_sites {
        let sum = match (site.kind, site.by) {
            (MappingKind::File, _) => &mut files,
            (_, MappedBy::Allocator(_)) => &mut allocators,
            (_, MappedBy::Program) => &mut program,
            (_, MappedBy::Unknown) => &mut either,
        };
        *sum = sum.wrapping_add(site.sums.live_bytes());
    }
    let parts: Vec<String> = [
        (allocators, "by allocators"),
        (program, "by the program"),
        (either, "by either"),
        (files, "of files"),
    ]
    .into_iter()
    .filter(|(bytes, _)| *bytes > 0)
    .map(|(bytes, what)| format!("{} {what}", text::bytes(bytes)))
    .collect();
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    line!(out, "  mapped     {} at the end{parts}", text::bytes(totals.sums.live_bytes()));
}

fn function_of(analysis: &Analysis, by: MappedBy) -> Option<&str> {
    let MappedBy::Allocator(probe) = by else { return None };
    analysis.definitions.probes.get(&probe).map(|probe| probe.function.as_str())
}
