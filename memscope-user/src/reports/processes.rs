//! What each process has done: a row for each image.

use serde::Serialize;

use super::{
    Analysis, Trust,
    layout::{WIDTH, counted, cut, line},
};
use crate::{
    lifetimes::SiteSums,
    model::{EndReason, Process, ProcessId},
    text,
};

/// An image of a process, and its sums.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessRow<'a> {
    /// Its id in this recording.
    pub process: u32,
    /// Its process id.
    pub pid: u32,
    /// The process of this recording that it was forked by.
    pub parent: Option<u32>,
    /// Name of its main thread. Untrusted text.
    pub comm: &'a str,
    /// Path of its executable. Untrusted text.
    pub exe: &'a str,
    /// `exit`, `exec`, or none if it was alive when the trace ended.
    pub end: Option<&'static str>,
    /// Exit code, or 128 and the signal.
    pub exit_status: Option<i32>,
    /// Its sums.
    #[serde(flatten)]
    pub sums: ProcessSums,
}

/// The sums of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessSums {
    /// Blocks that began.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that ended.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Calls that returned no block.
    pub failed_allocations: u64,
    /// Freed by their thread with no other allocation of it in between.
    pub temporary_allocations: u64,
    /// Not ended when the trace ended, or it did.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
}

impl ProcessSums {
    /// Of a process.
    #[must_use]
    pub fn of(analysis: &Analysis, process: ProcessId) -> Self {
        let sums = analysis.process_sums.get(&process).copied().unwrap_or_default();
        Self {
            allocations: sums.allocations,
            allocated_bytes: sums.allocated_bytes,
            frees: sums.frees,
            freed_bytes: sums.freed_bytes,
            failed_allocations: sums.failed_allocations,
            temporary_allocations: sums.temporary_allocations,
            live_blocks: sums.live_blocks(),
            live_bytes: sums.live_bytes(),
        }
    }
}

/// The sums of the sites of each process.
pub(super) fn sums_by_process<'a>(
    sites: impl Iterator<Item = (ProcessId, &'a SiteSums)>,
) -> rustc_hash::FxHashMap<ProcessId, SiteSums> {
    let mut all = rustc_hash::FxHashMap::<ProcessId, SiteSums>::default();
    for (process, sums) in sites {
        all.entry(process).or_default().add(sums);
    }
    all
}

/// `exited with 3`: how a process image has ended, for a reader.
pub(super) fn how_it_ended(end: Option<EndReason>) -> String {
    match end {
        None => "was still running".to_owned(),
        Some(EndReason::Exec) => "replaced itself".to_owned(),
        Some(EndReason::Exit(None)) => "exited".to_owned(),
        Some(EndReason::Exit(Some(status))) => format!("exited with {status}"),
    }
}

impl<'a> ProcessRow<'a> {
    fn of(analysis: &'a Analysis, process: &'a Process) -> Self {
        let definitions = &analysis.definitions;
        let end = definitions.end_of(process.id);
        Self {
            process: process.id.0,
            pid: process.pid,
            parent: definitions.parents.get(&process.id).map(|parent| parent.0),
            comm: &process.comm,
            exe: &process.exe,
            end: end.map(EndReason::name),
            exit_status: end.and_then(EndReason::exit_status),
            sums: ProcessSums::of(analysis, process.id),
        }
    }
}

/// Processes by what they have allocated.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessesReport<'a> {
    /// All images, without the limit of `rows`.
    pub process_count: usize,
    /// Those that allocated most bytes.
    pub rows: Vec<ProcessRow<'a>>,
    /// Frees, in forked processes, of blocks that their parents had allocated.
    pub inherited_frees: u64,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

impl<'a> ProcessesReport<'a> {
    /// The `top` first ones, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>) -> Self {
        let processes = analysis.definitions.processes.values();
        let mut rows: Vec<_> = processes.map(|process| ProcessRow::of(analysis, process)).collect();
        let process_count = rows.len();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.sums.allocated_bytes), row.process));
        rows.truncate(top.unwrap_or(usize::MAX));
        Self {
            process_count,
            rows,
            inherited_frees: analysis.totals.inherited_frees,
            trust: Trust::of(analysis),
            analysis,
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (shown, all) = (self.rows.len() as u64, self.process_count as u64);
        let first = if shown < all {
            format!("the first {} of {}", text::count(shown), text::count(all))
        } else {
            text::count(all)
        };
        let estimates = if self.analysis.is_sampled() { " (estimates)" } else { "" };
        line!(
            out,
            "Processes by bytes allocated{estimates}: {first}, one for each program that a process ran\n"
        );
        line!(
            out,
            "{:>8} {:>10} {:>12} {:>10} {:>12}  program",
            "pid",
            "allocated",
            "blocks",
            "live",
            "blocks"
        );
        for row in &self.rows {
            let sums = &row.sums;
            let numbers = format!(
                "{:>8} {:>10} {:>12} {:>10} {:>12}",
                row.pid,
                text::bytes(sums.allocated_bytes),
                text::count(sums.allocations),
                text::bytes(sums.live_bytes),
                text::count(sums.live_blocks),
            );
            let definitions = &self.analysis.definitions;
            let parent = row.parent.and_then(|id| definitions.processes.get(&ProcessId(id)));
            let parent = parent.map(|parent| format!(", forked by {}", parent.pid));
            let told = format!(
                "{numbers}  {}, {}{}",
                text::harmless(row.comm),
                how_it_ended(definitions.end_of(ProcessId(row.process))),
                parent.unwrap_or_default()
            );
            line!(out, "{}", cut(&told, WIDTH));
        }
        if self.inherited_frees > 0 {
            let frees = counted(self.inherited_frees, "block");
            line!(
                out,
                "\nForked processes freed {frees} of their parents, which are in no other number."
            );
        }
        line!(out, "\n{}", self.trust.sentence);
        out
    }
}
