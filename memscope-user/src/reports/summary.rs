//! What a recording holds, in one screen of 24 lines of 80 columns.

mod titles;

use serde::Serialize;

use self::titles::RowLine;
use super::{
    Analysis, Bounds, Detail, Estimate, PagesReport, ProcessRow, SiteOrder, SitesReport, Trust,
    estimate::{
        blocks_about, blocks_within, bytes_about, bytes_within, live_blocks_about,
        live_blocks_within, live_bytes_about, live_bytes_within, things_about,
    },
    layout::{counted, cut, line},
    mappings::tell_mapped,
    memory::{explained_text, largest},
    origin::{self, ProcessName},
    peak::peak_after_ns,
    processes::{how_it_ended, left_running},
    row::SiteRow,
};
use crate::{
    model::{EndReason, ExactCounts, Process, ProcessId},
    text,
};

/// Sites shown per question.
const TOP: usize = 3;
/// Most lines about processes.
const MAX_PROCESS_LINES: usize = 2;
/// A reading of memory is of the end if no larger part of the trace's time came after it.
const AT_END_PART: u64 = 200;
/// What shares are counted in.
const MILLION: u64 = 1_000_000;
/// The terminal's width.
const WIDTH: usize = 80;

/// The whole in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct SummaryReport<'a> {
    /// What the recording is called. Untrusted text.
    pub recording: &'a str,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// How long was observed.
    pub duration_ns: u64,
    /// Process ids of those that the command had left running when it ended; `--pid` goes on
    /// with them.
    pub left_running: Vec<u32>,
    /// Who was observed.
    pub processes: Vec<ProcessName<'a>>,
    /// Blocks that began.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that ended.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Reallocations of an existing block that returned a block.
    pub reallocations: u64,
    /// Calls that returned no block.
    pub failed_allocations: u64,
    /// Freed by their thread with no other allocation of it in between.
    pub temporary_allocations: u64,
    /// Calls that gave a block to another allocator to be freed or reallocated.
    pub mismatched_frees: u64,
    /// Not ended when the trace ended.
    pub live_blocks: u64,
    /// Sum of their requested sizes.
    pub live_bytes: u64,
    /// Blocks live at the moment of the largest sum of live bytes.
    pub peak_live_blocks: u64,
    /// That sum.
    pub peak_live_bytes: u64,
    /// That moment, after the beginning of the recording.
    pub peak_after_ns: Option<u64>,
    /// Probe hits while recording was on; none if the recording does not say.
    pub probe_hits: Option<u64>,
    /// What these numbers rest on; none if every block was recorded.
    pub estimate: Option<Estimate>,
    /// Calls that asked for a block, counted exactly; none if every block was recorded.
    pub exact_calls: Option<u64>,
    /// Sum of the sizes they asked for.
    pub exact_bytes: Option<u64>,
    /// Resident bytes of the process with most of them, at the last reading; none if they were
    /// not read. `report --view memory` has all.
    pub resident_bytes: Option<u64>,
    /// What was live in that process then.
    pub resident_live_bytes: Option<u64>,
    /// The sites with most bytes live at the end.
    pub most_live: Vec<SiteRow<'a>>,
    /// The sites with most bytes allocated.
    pub most_allocated: Vec<SiteRow<'a>>,
    /// What page faults tell; none if allocations were observed.
    pub pages: Option<PagesReport<'a>>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

impl<'a> SummaryReport<'a> {
    /// Sums up a recording; `recording` is what it is called, such as its path.
    #[must_use]
    pub fn of(analysis: &'a Analysis, recording: &'a str, detail: Detail) -> Self {
        let totals = &analysis.totals;
        let mut most_live = SitesReport::of(analysis, SiteOrder::Live, Some(TOP), detail).rows;
        most_live.retain(|row| row.live_blocks > 0);
        let processes = analysis.definitions.processes.keys();
        let largest = largest(analysis);
        Self {
            recording,
            started_at: origin::started_at(&analysis.capture),
            duration_ns: analysis.duration_ns(),
            left_running: left_running(analysis).iter().map(|process| process.pid).collect(),
            processes: processes.map(|process| ProcessName::of(analysis, *process)).collect(),
            allocations: totals.allocations,
            allocated_bytes: totals.allocated_bytes,
            frees: totals.frees,
            freed_bytes: totals.freed_bytes,
            reallocations: totals.reallocations,
            failed_allocations: totals.failed_allocations,
            temporary_allocations: totals.temporary_allocations,
            mismatched_frees: totals.mismatched_frees,
            live_blocks: totals.live_blocks,
            live_bytes: totals.live_bytes,
            peak_live_blocks: totals.peak_live_blocks,
            peak_live_bytes: totals.peak_live_bytes,
            peak_after_ns: peak_after_ns(analysis),
            probe_hits: analysis.counters.as_ref().map(|counters| counters.hits),
            estimate: Estimate::of_all(analysis),
            exact_calls: analysis.exact.as_ref().map(ExactCounts::calls),
            exact_bytes: analysis.exact.as_ref().map(ExactCounts::bytes),
            resident_bytes: largest.as_ref().map(|(.., explained)| explained.resident.bytes()),
            resident_live_bytes: largest.as_ref().map(|(.., explained)| explained.live_bytes),
            most_live,
            most_allocated: SitesReport::of(analysis, SiteOrder::Allocated, Some(TOP), detail).rows,
            pages: analysis.page_sums.map(|_| PagesReport::of(analysis, Some(TOP), detail)),
            trust: Trust::of(analysis),
            analysis,
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        line!(out, "{}", cut(&text::harmless(self.recording), WIDTH));
        self.tell_processes(&mut out);
        self.tell_when(&mut out);
        if let Some(pages) = &self.pages {
            pages.tell_sums(&mut out);
            out.push('\n');
            tell_chains(&mut out, "Most made resident", pages);
            let gap = if pages.rows.is_empty() { "" } else { "\n" };
            line!(out, "{gap}{}", self.trust.sentence);
            return out;
        }
        self.tell_numbers(&mut out);
        self.tell_memory(&mut out);
        tell_mapped(&mut out, self.analysis);
        if self.allocations == 0 {
            let hits =
                self.probe_hits.map_or_else(|| "an unknown number of".to_owned(), text::count);
            line!(out, "\nNo allocation was recorded; the probes had {hits} hits.");
        }
        out.push('\n');
        let several = self.processes.len() > 1;
        tell_sites(&mut out, "Most live at the end", several, &self.most_live, |row| {
            let of = |bounds: fn(Estimate) -> Bounds| row.estimate.map(bounds);
            [
                live_bytes_within(row.live_bytes, of(|estimate| estimate.live_bytes)),
                text::percent(row.live_bytes, self.live_bytes),
                live_blocks_within(row.live_blocks, of(|estimate| estimate.live_blocks)),
            ]
        });
        tell_sites(&mut out, "Most allocated", several, &self.most_allocated, |row| {
            let of = |bounds: fn(Estimate) -> Bounds| row.estimate.map(bounds);
            [
                match of(|estimate| estimate.allocated_bytes) {
                    // There is no room for what little is known of it.
                    Some(Bounds { high: None, .. }) => {
                        bytes_about(row.allocated_bytes, row.estimate.as_ref())
                    }
                    bounds => bytes_within(row.allocated_bytes, bounds),
                },
                text::percent(row.allocated_bytes, self.allocated_bytes),
                blocks_within(row.allocations, of(|estimate| estimate.allocations)),
            ]
        });
        let gap = if self.allocations == 0 { "" } else { "\n" };
        line!(out, "{gap}{}", self.trust.sentence);
        out
    }

    fn tell_processes(&self, out: &mut String) {
        let definitions = &self.analysis.definitions;
        let all = definitions.processes.len();
        let shown = if all > MAX_PROCESS_LINES { MAX_PROCESS_LINES - 1 } else { all };
        let mut processes: Vec<&Process> = definitions.processes.values().collect();
        if shown < all {
            // Those that it is about.
            let rows = ProcessRow::all(self.analysis);
            let ids = rows.iter().map(|row| ProcessId(row.process));
            processes = ids.filter_map(|id| definitions.processes.get(&id)).collect();
        }
        for process in processes.into_iter().take(shown) {
            let end = definitions.end_of(process.id);
            line!(out, "{}", cut(&format!("  process    {}", process_text(process, end)), WIDTH));
        }
        if shown < all {
            line!(
                out,
                "             and {} more (--view processes)",
                text::count((all - shown) as u64)
            );
        }
    }

    /// Of one process, as pages that several share cannot be summed up.
    fn tell_memory(&self, out: &mut String) {
        let Some((process, timeline, explained)) = largest(self.analysis) else { return };
        let title = match process.pid {
            Some(pid) if self.processes.len() > 1 => format!("pid {pid}"),
            _ => "memory".to_owned(),
        };
        let estimate = self.estimate.as_ref();
        // A process that has ended was read before, when less or more was live.
        let after_ns = explained.time_ns.saturating_sub(self.analysis.capture.started_at_ns);
        let before_end_ns = self.duration_ns.saturating_sub(after_ns);
        let ends = &self.analysis.definitions.process_ends;
        let is_of_end = before_end_ns <= self.duration_ns / AT_END_PART
            && !ends.contains_key(&ProcessId(process.process));
        let at = (!is_of_end).then(|| text::duration_ns(after_ns));
        let told = match timeline.at_attach() {
            None => {
                let at = at.map_or_else(String::new, |after| format!("at {after}, "));
                format!("{at}live blocks explain {}", explained_text(&explained, estimate))
            }
            Some(attach) => {
                let before =
                    attach.resident_bytes.map_or_else(|| "unknown".to_owned(), text::bytes);
                let now_bytes = explained.resident.bytes();
                let now = text::bytes(now_bytes);
                let then = match at {
                    None => format!("is {now}; new blocks explain"),
                    Some(after) => format!("{now} at {after}; new blocks"),
                };
                format!(
                    "RSS was {before}, {then} {} ({})",
                    live_bytes_about(explained.live_bytes, estimate),
                    text::percent(explained.live_bytes, now_bytes)
                )
            }
        };
        line!(out, "{}", cut(&format!("  {title:<10} {told}"), WIDTH));
    }

    fn tell_when(&self, out: &mut String) {
        let when = self.started_at.split('.').next().unwrap_or_default();
        line!(
            out,
            "  when       {when}Z for {}, {}",
            text::duration_ns(self.duration_ns),
            origin::ending_text(&self.analysis.end)
        );
        let left = match self.left_running.len() as u64 {
            0 => return,
            1 => "1 process was".to_owned(),
            many => format!("{} processes were", text::count(many)),
        };
        line!(out, "             {left} still running, and observed until then");
    }

    fn tell_numbers(&self, out: &mut String) {
        let estimate = self.estimate.as_ref();
        if let Some(budget) = self.trust.budget {
            let percent = |ppm: u64| text::percent(ppm, MILLION);
            line!(
                out,
                "  cost       {} of the work (limit {}); {} observed in {}",
                budget.spent_ppm.map_or_else(|| "unknown".to_owned(), percent),
                percent(budget.limit_ppm),
                percent(budget.observed_ppm),
                counted(budget.windows, "window")
            );
        }
        if let (Some(calls), Some(bytes)) = (self.exact_calls, self.exact_bytes) {
            let windows = if self.analysis.windows.has_gaps() { " in the windows" } else { "" };
            line!(
                out,
                "  requested  {} in {}, counted exactly{windows}",
                text::bytes(bytes),
                counted(calls, "call")
            );
        }
        line!(
            out,
            "  allocated  {} in {}; {}, {} failed",
            bytes_within(self.allocated_bytes, estimate.map(|estimate| estimate.allocated_bytes)),
            blocks_within(self.allocations, estimate.map(|estimate| estimate.allocations)),
            things_about(
                self.reallocations,
                "reallocation",
                estimate.filter(|_| self.reallocations > 0)
            ),
            text::count(self.failed_allocations)
        );
        let temporary = match self.allocations {
            0 => String::new(),
            all => format!(
                "; {} of allocations were temporary",
                text::percent(self.temporary_allocations, all)
            ),
        };
        line!(
            out,
            "  freed      {} in {}{temporary}",
            bytes_about(self.freed_bytes, estimate),
            blocks_about(self.frees, estimate)
        );
        if self.mismatched_frees > 0 {
            line!(
                out,
                "  mismatched {} by another allocator than the block's (--view mismatched)",
                counted(self.mismatched_frees, "free")
            );
        }
        line!(
            out,
            "  live       {} in {} at the end",
            live_bytes_within(self.live_bytes, estimate.map(|estimate| estimate.live_bytes)),
            live_blocks_within(self.live_blocks, estimate.map(|estimate| estimate.live_blocks))
        );
        if let Some(after_ns) = self.peak_after_ns {
            line!(
                out,
                "  peak       {} in {}, {} after the start",
                live_bytes_about(self.peak_live_bytes, estimate),
                live_blocks_about(self.peak_live_blocks, estimate),
                text::duration_ns(after_ns)
            );
        }
    }
}

/// `comm (pid N) path, allocators, how it ended`.
fn process_text(process: &Process, end: Option<EndReason>) -> String {
    let mut told = format!("{} (pid {})", text::harmless(&process.comm), process.pid);
    if !process.exe.is_empty() {
        told.push(' ');
        told.push_str(&text::harmless(&process.exe));
    }
    for allocator in &process.allocators {
        told.push_str(", ");
        told.push_str(&text::harmless(allocator));
    }
    format!("{told}, {}", how_it_ended(end))
}

/// A heading and a line for each row. `numbers` gives bytes, their share, blocks.
fn tell_sites(
    out: &mut String,
    heading: &str,
    several: bool,
    rows: &[SiteRow<'_>],
    numbers: impl Fn(&SiteRow<'_>) -> [String; 3],
) {
    let lines = rows.iter().map(|row| {
        let [bytes, share, blocks] = numbers(row);
        let numbers = format!("  {bytes:>9} {share:>7} in {blocks:<14}");
        let comm = row.process.comm.filter(|_| several);
        RowLine::of(numbers, comm, &row.frames)
    });
    titles::tell(out, heading, lines.collect());
}

/// As [`tell_sites`], of page faults.
fn tell_chains(out: &mut String, heading: &str, pages: &PagesReport<'_>) {
    let lines = pages.rows.iter().map(|row| {
        let numbers = format!(
            "  {:>9} {:>7} in {:<14}",
            text::bytes(row.sums.resident_bytes),
            text::percent(row.sums.resident_bytes, pages.sums.resident_bytes),
            counted(row.sums.faults, "fault")
        );
        RowLine::of(numbers, None, &row.chain.frames)
    });
    titles::tell(out, heading, lines.collect());
}
