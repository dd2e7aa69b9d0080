//! How much memory processes had over time: live blocks beside what the kernel counts.

use serde::Serialize;

use super::{
    Analysis, Estimate, Trust,
    estimate::live_bytes_about,
    layout::{WIDTH, counted, cut, line},
    origin::ProcessName,
    timeline::{AtAttach, Explained, MemoryPoint, MemoryTimeline},
};
use crate::{model::Observes, text};

/// Widths of the columns of the table. Live bytes may be estimates, which say so.
const COLUMNS: [usize; 9] = [9, 11, 9, 9, 9, 9, 9, 9, 9];
/// In place of a number that is not known.
const UNKNOWN: &str = "–";

/// What the numbers are, and are not.
const EXPLANATION: &str = "\
Live blocks are what was asked for, RSS is pages that were touched. A block of which little was
touched explains more than it takes, so there can be more than 100 %. What is left is code, stacks,
free memory that the allocator keeps, its own, and what was mapped without it. PSS is read rarely:
it is that of the last reading until then.

";

/// The memory of all processes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport<'a> {
    /// In the order of their first observation; those of which nothing was read are left out.
    pub processes: Vec<ProcessMemoryReport<'a>>,
    /// Frees of blocks that were not seen to begin, of all processes: after an attach, mostly
    /// of such that are older.
    pub unknown_frees: u64,
    /// What numbers of live blocks rest on; none if every block was recorded.
    pub estimate: Option<Estimate>,
    /// How far to trust all this.
    pub trust: Trust,
    #[serde(skip)]
    analysis: &'a Analysis,
}

/// The memory of a process.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessMemoryReport<'a> {
    /// Whose.
    pub process: ProcessName<'a>,
    /// All of it, but for the rows that were left out.
    #[serde(flatten)]
    pub memory: MemoryJson<'a>,
    #[serde(skip)]
    rows: Vec<&'a MemoryPoint>,
    #[serde(skip)]
    timeline: &'a MemoryTimeline,
}

/// A timeline for programs.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryJson<'a> {
    reading_count: u64,
    peak_rss_bytes: Option<u64>,
    at_attach: Option<AtAttach>,
    explained: Option<ExplainedJson>,
    points: Vec<PointJson<'a>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct ExplainedJson {
    time_ns: u64,
    live_bytes: u64,
    rss_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
struct PointJson<'a> {
    time_ns: u64,
    live_blocks: Option<u64>,
    live_bytes: Option<u64>,
    rss_bytes: Option<RssJson>,
    pss_bytes: Option<u64>,
    /// When that was read.
    pss_time_ns: Option<u64>,
    swap_bytes: Option<u64>,
    cgroup: Option<GroupJson<'a>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct RssJson {
    anon: u64,
    file: u64,
    shmem: u64,
}

#[derive(Clone, Debug, Serialize)]
struct GroupJson<'a> {
    path: &'a str,
    bytes: Option<u64>,
}

impl<'a> MemoryJson<'a> {
    /// With these points of it.
    pub(crate) fn of(timeline: &'a MemoryTimeline, points: &[&'a MemoryPoint]) -> Self {
        Self {
            reading_count: timeline.reading_count(),
            peak_rss_bytes: timeline.peak_resident_bytes(),
            at_attach: timeline.at_attach().copied(),
            explained: timeline.explained().map(|explained| ExplainedJson {
                time_ns: explained.time_ns,
                live_bytes: explained.live_bytes,
                rss_bytes: explained.resident.bytes(),
            }),
            points: points.iter().map(|point| PointJson::of(point)).collect(),
        }
    }
}

impl<'a> PointJson<'a> {
    fn of(point: &'a MemoryPoint) -> Self {
        Self {
            time_ns: point.time_ns,
            live_blocks: point.live.map(|live| live.blocks),
            live_bytes: point.live.map(|live| live.bytes),
            rss_bytes: point.memory.resident.map(|resident| RssJson {
                anon: resident.anonymous_bytes,
                file: resident.file_bytes,
                shmem: resident.shared_bytes,
            }),
            pss_bytes: point.proportional.map(|read| read.bytes),
            pss_time_ns: point.proportional.map(|read| read.time_ns),
            swap_bytes: point.memory.swapped_bytes,
            cgroup: point
                .memory
                .control_group
                .as_ref()
                .map(|group| GroupJson { path: &group.path, bytes: group.bytes }),
        }
    }
}

impl<'a> MemoryReport<'a> {
    /// About `top` points of each process, or all.
    #[must_use]
    pub fn of(analysis: &'a Analysis, top: Option<usize>) -> Self {
        let processes = analysis.memory.iter().map(|(process, timeline)| {
            let rows = timeline.rows(top.unwrap_or(usize::MAX));
            let memory = MemoryJson::of(timeline, &rows);
            let process = ProcessName::of(analysis, *process);
            ProcessMemoryReport { process, memory, rows, timeline }
        });
        Self {
            processes: processes.collect(),
            unknown_frees: analysis.totals.unknown_frees,
            estimate: Estimate::of_all(analysis),
            trust: Trust::of(analysis),
            analysis,
        }
    }

    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for process in &self.processes {
            self.tell_table(&mut out, process);
            self.tell_explained(&mut out, process);
            out.push('\n');
        }
        if self.processes.is_empty() {
            line!(out, "The recording has no readings of the processes' memory.\n");
        } else if self.analysis.observed() == Observes::Allocations {
            out.push_str(EXPLANATION);
        }
        line!(out, "{}", self.trust.sentence);
        out
    }

    fn tell_table(&self, out: &mut String, process: &ProcessMemoryReport<'_>) {
        let timeline = process.timeline;
        let rows = &process.rows;
        let readings = counted(timeline.reading_count(), "reading");
        line!(out, "Memory of {}, {readings}", process.process.text());
        if let Some(group) = rows.last().and_then(|point| point.memory.control_group.as_ref()) {
            line!(out, "{}", cut(&format!("cgroup {}", text::harmless(&group.path)), WIDTH));
        }
        let titles = ["after", "live", "RSS", "anon", "file", "shmem", "swap", "PSS", "cgroup"];
        line!(out, "\n{}", row_text(titles.map(str::to_owned)));
        let peak_ns = timeline.peak().map(|peak| peak.time_ns);
        for (index, point) in rows.iter().copied().enumerate() {
            let marks = [
                (index == 0, "first"),
                (Some(point.time_ns) == peak_ns, "peak"),
                (index + 1 == rows.len(), "last"),
            ];
            let marks: Vec<&str> =
                marks.into_iter().filter_map(|(is, mark)| is.then_some(mark)).collect();
            line!(out, "{}", format!("{}  {}", self.cells(point), marks.join(", ")).trim_end());
        }
        out.push('\n');
        if let (Some(bytes), Some(until_ns)) =
            (timeline.peak_resident_bytes(), timeline.peak_resident_until_ns())
        {
            let (bytes, at) = (text::bytes(bytes), text::duration_ns(self.after_ns(until_ns)));
            line!(
                out,
                "At most {bytes} were resident up to the last reading, at {at}, also between readings."
            );
        }
    }

    fn cells(&self, point: &MemoryPoint) -> String {
        let known = |bytes: Option<u64>| bytes.map_or_else(|| UNKNOWN.to_owned(), text::bytes);
        let resident = point.memory.resident;
        let group = point.memory.control_group.as_ref();
        row_text([
            text::duration_ns(self.after_ns(point.time_ns)),
            point.live.map_or_else(
                || UNKNOWN.to_owned(),
                |live| live_bytes_about(live.bytes, self.estimate.as_ref()),
            ),
            known(point.resident_bytes()),
            known(resident.map(|resident| resident.anonymous_bytes)),
            known(resident.map(|resident| resident.file_bytes)),
            known(resident.map(|resident| resident.shared_bytes)),
            known(point.memory.swapped_bytes),
            known(point.proportional.map(|read| read.bytes)),
            known(group.and_then(|group| group.bytes)),
        ])
    }

    fn after_ns(&self, time_ns: u64) -> u64 {
        time_ns.saturating_sub(self.analysis.capture.started_at_ns)
    }

    fn tell_explained(&self, out: &mut String, process: &ProcessMemoryReport<'_>) {
        let Some(explained) = process.timeline.explained() else { return };
        let at = text::duration_ns(self.after_ns(explained.time_ns));
        let sentence = explained_text(&explained, self.estimate.as_ref());
        let Some(attach) = process.timeline.at_attach() else {
            line!(out, "At {at}, live blocks explain {sentence}.");
            return;
        };
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "an unknown".to_owned(), text::bytes);
        let before = known(attach.resident_bytes);
        line!(out, "Attached at {before} RSS; at {at}, blocks seen since explain");
        line!(out, "{sentence}.");
        if let Some(heap) = &attach.heap {
            line!(
                out,
                "At the attach [heap] had {} mapped, {} resident; other private anonymous",
                text::bytes(heap.brk_mapped_bytes),
                text::bytes(heap.brk_resident_bytes)
            );
            line!(
                out,
                "mappings (arenas, large blocks, stacks of threads, its own) {} mapped, {} resident.",
                text::bytes(heap.anonymous_mapped_bytes),
                text::bytes(heap.anonymous_resident_bytes)
            );
        }
        line!(
            out,
            "Older blocks are in no number; {}.",
            unknown_frees_text(self.unknown_frees, self.processes.len())
        );
    }
}

/// `X of Y RSS (Z %)`.
pub(super) fn explained_text(explained: &Explained, estimate: Option<&Estimate>) -> String {
    let resident_bytes = explained.resident.bytes();
    format!(
        "{} of {} RSS ({})",
        live_bytes_about(explained.live_bytes, estimate),
        text::bytes(resident_bytes),
        text::percent(explained.live_bytes, resident_bytes)
    )
}

/// `N frees were of such blocks`.
fn unknown_frees_text(count: u64, processes: usize) -> String {
    let of = if processes > 1 { " of all processes" } else { "" };
    format!("{}{of} were of blocks not seen to begin", counted(count, "free"))
}

fn row_text(cells: [String; 9]) -> String {
    let mut row = String::new();
    for (cell, width) in cells.iter().zip(COLUMNS) {
        let padding = width.saturating_sub(cell.chars().count()).max(1);
        row.push_str(&" ".repeat(padding));
        row.push_str(cell);
    }
    row
}

/// The process to be told of in few words: one that did not end, if there is one, and of those
/// that with most resident pages.
pub(super) fn largest(
    analysis: &Analysis,
) -> Option<(ProcessName<'_>, &MemoryTimeline, Explained)> {
    let known = analysis.memory.iter().filter_map(|(process, timeline)| {
        let explained = timeline.explained()?;
        Some((*process, timeline, explained))
    });
    let (process, timeline, explained) = known.max_by_key(|(process, _, explained)| {
        let has_ended = analysis.definitions.process_ends.contains_key(process);
        (!has_ended, explained.resident.bytes())
    })?;
    Some((ProcessName::of(analysis, process), timeline, explained))
}
