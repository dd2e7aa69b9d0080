//! Call chains as lines: `main;parse;read_header 4096`, outermost first.
//!
//! Read by inferno, FlameGraph, speedscope and others. What would be mistaken for
//! syntax, or obeyed by a terminal, is replaced in names.

use std::{collections::BTreeMap, io::Write};

use super::{ExportError, Weight};
use crate::{
    lifetimes::SiteKey,
    reports::{Analysis, ProcessName, ResolvedStack, check, missing_callers},
    text,
};

/// Writes a line for each distinct call chain whose weight is not 0, sorted.
///
/// # Errors
///
/// See [`ExportError`].
pub fn export_collapsed(
    analysis: &Analysis,
    weight: Weight,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    check(analysis)?;
    weight.check(analysis)?;
    for (chain, weight) in chains(analysis, weight) {
        writeln!(out, "{chain} {weight}").map_err(ExportError::Write)?;
    }
    out.flush().map_err(ExportError::Write)
}

/// Distinct call chains, outermost frame first, and their weights.
pub(super) fn chains(analysis: &Analysis, weight: Weight) -> BTreeMap<String, u64> {
    let mut chains: BTreeMap<String, u64> = BTreeMap::new();
    for (key, weight) in weight.of_sites(analysis) {
        if weight > 0 {
            let sum = chains.entry(chain(analysis, key)).or_default();
            *sum = sum.saturating_add(weight);
        }
    }
    chains
}

fn chain(analysis: &Analysis, key: SiteKey) -> String {
    let stack = ResolvedStack::of(&analysis.definitions, key.stack);
    let mut parts = Vec::with_capacity(stack.frames.len() + 2);
    if analysis.definitions.processes.len() > 1 {
        parts.push(part(&ProcessName::of(analysis, key.process).text()));
    }
    if let Some(missing) = missing_callers(stack.outcome) {
        parts.push(missing.to_owned());
    }
    parts.extend(stack.frames.iter().rev().map(|frame| part(&frame.name())));
    if parts.is_empty() {
        parts.push("[no frames]".to_owned());
    }
    parts.join(";")
}

/// A name that is one frame: `;` separates frames, a line break the lines.
fn part(name: &str) -> String {
    let part = text::harmless(name).replace(';', ":");
    if part.is_empty() { "[no name]".to_owned() } else { part }
}
