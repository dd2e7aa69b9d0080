//! What each thread has done.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    Analysis, ProcessName, Trust,
    layout::{WIDTH, cut, first_of, line},
    pages::instead_of_blocks,
};
use crate::{
    lifetimes::ThreadRecord,
    model::{ProcessId, ThreadId},
    text,
};

/// A thread and its sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadRow<'a> {
    /// Whose it is.
    #[serde(flatten)]
    pub process: ProcessName<'a>,
    /// Its number.
    pub thread: u32,
    /// What it was called at its end, or at that of the trace; its process's name if it had no
    /// other. Untrusted text.
    pub name: Option<&'a str>,
    /// Its sums.
    #[serde(flatten)]
    pub sums: ThreadNumbers,
}

/// The sums of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThreadNumbers {
    /// Blocks that began in its calls.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that it freed or reallocated, whoever had allocated them.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Freed by it right after it had allocated them.
    pub temporary_allocations: u64,
    /// Its calls that returned no block.
    pub failed_allocations: u64,
    /// What it has allocated and nobody has freed.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
}

impl From<&ThreadRecord> for ThreadNumbers {
    fn from(record: &ThreadRecord) -> Self {
        let ThreadRecord { sums, live, .. } = record;
        Self {
            allocations: sums.allocations,
            allocated_bytes: sums.allocated_bytes,
            frees: sums.frees,
            freed_bytes: sums.freed_bytes,
            temporary_allocations: sums.temporary_allocations,
            failed_allocations: sums.failed_allocations,
            live_blocks: live.blocks,
            live_bytes: live.bytes,
        }
    }
}

/// Threads by what they have allocated.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadsReport<'a> {
    /// All of them, without the limit of `rows`, but for the others.
    pub thread_count: usize,
    /// Those that allocated most bytes.
    pub rows: Vec<ThreadRow<'a>>,
    /// Threads that were too many to be told one by one, together.
    pub others: ThreadNumbers,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

fn row<'a>(
    analysis: &'a Analysis,
    (process, thread): (ProcessId, ThreadId),
    record: &ThreadRecord,
) -> ThreadRow<'a> {
    let name = analysis.definitions.thread_names.get(&(process, thread));
    let process = ProcessName::of(analysis, process);
    ThreadRow {
        process,
        thread: thread.0,
        name: name.map(String::as_str).or(process.comm),
        sums: record.into(),
    }
}

impl<'a> ThreadsReport<'a> {
    /// The `top` first ones, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>) -> Self {
        let threads = analysis.threads.iter();
        let known = threads.filter_map(|record| Some(row(analysis, record.thread?, record)));
        let mut rows: Vec<_> = known.collect();
        let thread_count = rows.len();
        rows.sort_by_key(|row| {
            (Reverse(row.sums.allocated_bytes), row.process.process, row.thread)
        });
        rows.truncate(top.unwrap_or(usize::MAX));
        let others = analysis.threads.iter().find(|record| record.thread.is_none());
        Self {
            thread_count,
            rows,
            others: others.map(ThreadNumbers::from).unwrap_or_default(),
            trust: Trust::of(analysis),
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
        let first = first_of(self.rows.len(), self.thread_count);
        let estimates = if self.analysis.is_sampled() { " (estimates)" } else { "" };
        line!(out, "Threads by bytes allocated{estimates}: {first}\n");
        line!(
            out,
            "{:>8} {:>10} {:>11} {:>11} {:>10} {:>11}  name",
            "thread",
            "allocated",
            "blocks",
            "frees",
            "live",
            "blocks"
        );
        let several = self.analysis.definitions.processes.len() > 1;
        for row in &self.rows {
            let mut whose = text::harmless(row.name.unwrap_or("?"));
            if several {
                whose.push_str(&format!(" in {}", row.process.text()));
            }
            let told = format!("{:>8} {}  {whose}", row.thread, numbers(&row.sums));
            line!(out, "{}", cut(&told, WIDTH));
        }
        if self.others != ThreadNumbers::default() {
            line!(out, "{:>8} {}  others, too many to be told", "", numbers(&self.others));
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }
}

fn numbers(sums: &ThreadNumbers) -> String {
    format!(
        "{:>10} {:>11} {:>11} {:>10} {:>11}",
        text::bytes(sums.allocated_bytes),
        text::count(sums.allocations),
        text::count(sums.frees),
        text::bytes(sums.live_bytes),
        text::count(sums.live_blocks),
    )
}
