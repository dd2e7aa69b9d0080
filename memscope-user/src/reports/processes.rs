//! What each process has done: a row for each image.

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    Analysis, Trust,
    layout::{WIDTH, counted, cut, first_of, line},
    pages::PageFaults,
};
use crate::{
    lifetimes::{FaultSums, SiteSums},
    model::{EndReason, EndingReason, Process, ProcessId},
    store::RecordingEnd,
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
    /// It may have allocated before it was probed.
    pub probed_late: bool,
    /// Its sums.
    #[serde(flatten)]
    pub sums: ProcessSums,
    /// Its page faults; none if allocations were observed.
    pub pages: Option<PageFaults>,
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
) -> FxHashMap<ProcessId, SiteSums> {
    let mut all = FxHashMap::<ProcessId, SiteSums>::default();
    for (process, sums) in sites {
        all.entry(process).or_default().add(sums);
    }
    all
}

/// The page faults of each process; none if allocations were observed.
fn faults_by_process(analysis: &Analysis) -> Option<FxHashMap<ProcessId, FaultSums>> {
    analysis.page_sums?;
    let mut all = FxHashMap::<ProcessId, FaultSums>::default();
    for site in &analysis.fault_sites {
        all.entry(site.key.process).or_default().add(&site.sums);
    }
    Some(all)
}

/// Processes that ran on when the trace ended because its command did: those that it has left
/// behind, such as a daemon. None of a trace that ended for another reason.
#[must_use]
pub fn left_running(analysis: &Analysis) -> Vec<&Process> {
    let over = matches!(
        &analysis.end,
        RecordingEnd::Complete(ending) if ending.reason == EndingReason::TargetsEnded
    );
    if !over || analysis.capture.command.is_none() {
        return Vec::new();
    }
    let definitions = &analysis.definitions;
    // The command itself has ended, even if the record of that was lost.
    let command = definitions.processes.values().next().map(|process| process.pid);
    let all = definitions.processes.values();
    let others = all.filter(|process| Some(process.pid) != command);
    others.filter(|process| definitions.end_of(process.id).is_none()).collect()
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
    fn of(
        analysis: &'a Analysis,
        process: &'a Process,
        faults: Option<&FxHashMap<ProcessId, FaultSums>>,
    ) -> Self {
        let faults = faults.map(|all| all.get(&process.id).copied().unwrap_or_default());
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
            probed_late: process.probed_late,
            sums: ProcessSums::of(analysis, process.id),
            pages: faults.map(PageFaults::from),
        }
    }

    /// What processes are ordered by: what they have allocated, or made resident.
    pub(super) fn weight_bytes(&self) -> u64 {
        self.pages.map_or(self.sums.allocated_bytes, |pages| pages.resident_bytes)
    }

    /// All of a recording, those with most bytes first.
    pub(super) fn all(analysis: &'a Analysis) -> Vec<Self> {
        let faults = faults_by_process(analysis);
        let processes = analysis.definitions.processes.values();
        let mut rows: Vec<_> =
            processes.map(|process| Self::of(analysis, process, faults.as_ref())).collect();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.weight_bytes()), row.process));
        rows
    }

    /// Its numbers, as columns below [`ProcessesReport::titles`].
    fn numbers(&self) -> String {
        let sums = &self.sums;
        match &self.pages {
            None => format!(
                "{:>8} {:>10} {:>12} {:>10} {:>12}",
                self.pid,
                text::bytes(sums.allocated_bytes),
                text::count(sums.allocations),
                text::bytes(sums.live_bytes),
                text::count(sums.live_blocks),
            ),
            Some(pages) => format!(
                "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12}",
                self.pid,
                text::bytes(pages.resident_bytes),
                text::bytes(pages.anonymous_bytes),
                text::bytes(pages.file_bytes),
                text::bytes(pages.shared_bytes),
                text::count(pages.faults),
            ),
        }
    }
}

/// Processes by what they have allocated, or made resident by page faults where these were observed.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessesReport<'a> {
    /// All images, without the limit of `rows`.
    pub process_count: usize,
    /// Those that allocated most bytes, or made most resident by page faults.
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
        let mut rows = ProcessRow::all(analysis);
        let process_count = rows.len();
        rows.truncate(top.unwrap_or(usize::MAX));
        Self {
            process_count,
            rows,
            inherited_frees: analysis.totals.inherited_frees,
            trust: Trust::of(analysis),
            analysis,
        }
    }

    /// What the processes are ordered by, and the titles of the columns.
    fn titles(&self) -> (&'static str, String) {
        match self.analysis.page_sums {
            None => (
                "allocated",
                format!(
                    "{:>8} {:>10} {:>12} {:>10} {:>12}",
                    "pid", "allocated", "blocks", "live", "blocks"
                ),
            ),
            Some(_) => (
                "made resident by page faults",
                format!(
                    "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12}",
                    "pid", "resident", "anon", "file", "shmem", "faults"
                ),
            ),
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let first = first_of(self.rows.len(), self.process_count);
        let (what, titles) = self.titles();
        let estimates = if self.analysis.is_sampled() { " (estimates)" } else { "" };
        line!(
            out,
            "Processes by bytes {what}{estimates}: {first}, one for each program that a process ran\n"
        );
        line!(out, "{titles}  program");
        for row in &self.rows {
            let numbers = row.numbers();
            let definitions = &self.analysis.definitions;
            let parent = row.parent.and_then(|id| definitions.processes.get(&ProcessId(id)));
            let parent = parent.map(|parent| format!(", forked by {}", parent.pid));
            let told = format!(
                "{numbers}  {}, {}{}{}",
                text::harmless(row.comm),
                if row.probed_late { "probed late, " } else { "" },
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
