//! Blocks that were given to another allocator than their own to be freed, by where they began.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Analysis, Detail, ProcessName, ResolvedFrame, ResolvedStack, Trust, base_name,
    layout::{self, Chain, counted, line},
    pages::instead_of_blocks,
};
use crate::{
    lifetimes::Mismatch,
    model::{ProbeId, ProcessId, StackId},
    text,
};

/// Blocks freed or reallocated by another allocator than the one that gave them.
#[derive(Clone, Debug, Serialize)]
pub struct MismatchedReport<'a> {
    /// Calls that were to free or reallocate such a block.
    pub mismatched_frees: u64,
    /// How many different ones there are, without the limit of `rows`.
    pub row_count: usize,
    /// Those with most calls.
    pub rows: Vec<MismatchRow<'a>>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    detail: Detail,
    #[serde(skip)]
    analysis: &'a Analysis,
}

/// Blocks of one site that one function gave, and another one was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MismatchRow<'a> {
    /// Number of the site in this recording.
    pub site: u32,
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// Which function gave the blocks.
    pub allocated_by: FunctionName<'a>,
    /// Which function was to free or reallocate them.
    pub freed_by: FunctionName<'a>,
    /// How many times.
    pub frees: u64,
    /// Sum of the blocks' requested sizes.
    pub bytes: u64,
    /// Where the blocks began, innermost first.
    pub frames: Vec<ResolvedFrame<'a>>,
    /// Whether the chain is complete, or why not: a
    /// [`crate::model::StackOutcome::name`].
    pub stack: &'static str,
}

/// A function of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionName<'a> {
    /// What it is called; none if its definition is missing. Untrusted text.
    pub function: Option<&'a str>,
    /// Path of the file it is in. Untrusted text.
    pub module: Option<&'a str>,
}

impl<'a> FunctionName<'a> {
    fn of(analysis: &'a Analysis, probe: ProbeId) -> Self {
        let probe = analysis.definitions.probes.get(&probe);
        let module = probe.and_then(|probe| analysis.definitions.modules.get(&probe.module));
        Self {
            function: probe.map(|probe| probe.function.as_str()),
            module: module.map(|module| module.path.as_str()),
        }
    }

    /// `function [file]`. Harmless to a terminal.
    fn text(&self) -> String {
        let function =
            self.function.map_or_else(|| "[unknown function]".to_owned(), text::harmless);
        match self.module {
            Some(module) => format!("{function} [{}]", text::harmless(base_name(module))),
            None => function,
        }
    }
}

impl<'a> MismatchRow<'a> {
    /// Puts together what is known of one.
    #[must_use]
    pub fn of(analysis: &'a Analysis, found: &Mismatch) -> Self {
        let key = usize::try_from(found.site).ok().and_then(|site| analysis.sites.get(site));
        let (process, stack) = key.map_or((ProcessId(u32::MAX), StackId(u32::MAX)), |site| {
            (site.key.process, site.key.stack)
        });
        let stack = ResolvedStack::of(&analysis.definitions, stack);
        Self {
            site: found.site,
            process: ProcessName::of(analysis, process),
            allocated_by: FunctionName::of(analysis, found.given_by),
            freed_by: FunctionName::of(analysis, found.freed_by),
            frees: found.frees,
            bytes: found.bytes,
            frames: stack.frames,
            stack: stack.outcome.name(),
        }
    }
}

impl<'a> MismatchedReport<'a> {
    /// The `top` first by calls, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>, detail: Detail) -> Self {
        let mut order: Vec<&Mismatch> = analysis.mismatches.iter().collect();
        order.sort_by_key(|found| Reverse((found.frees, found.bytes)));
        let row_count = order.len();
        let shown = order.into_iter().take(top.unwrap_or(row_count));
        Self {
            mismatched_frees: analysis.totals.mismatched_frees,
            row_count,
            rows: shown.map(|found| MismatchRow::of(analysis, found)).collect(),
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
            "Freed by another allocator than their own, {}",
            counted(self.mismatched_frees, "time")
        );
        layout::heading(&mut out, &what, self.rows.len(), self.row_count);
        for (position, row) in self.rows.iter().enumerate() {
            line!(
                out,
                "\n{:>3}. {}, {}: allocated by {}, freed by {}",
                position + 1,
                counted(row.frees, "time"),
                text::bytes(row.bytes),
                row.allocated_by.text(),
                row.freed_by.text(),
            );
            let chain = Chain {
                process: row.process,
                process_count: 1,
                frames: &row.frames,
                outcome: row.stack,
            };
            layout::chain(&mut out, &chain, self.detail, self.analysis);
        }
        if self.analysis.is_sampled() {
            line!(out, "\nOf sampled blocks it is not known: there can be others.");
        } else {
            line!(
                out,
                "\nOnly what is certain is shown: of allocators that call each other, and of those that"
            );
            line!(out, "nobody has named (--allocator), it is not known whose a block is.");
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }
}
