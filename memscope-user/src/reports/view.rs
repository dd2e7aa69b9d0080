//! The reports by name.

use serde::Serialize;

use super::{
    Analysis, Detail, LeaksReport, MappingsReport, MemoryReport, MismatchedReport, PagesReport,
    PeakReport, ProcessesReport, SiteOrder, SitesReport, SummaryReport, ThreadsReport,
};

/// A question to a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// What does it hold?
    Summary,
    /// Who has most memory at the end?
    Sites,
    /// Who allocates most?
    Allocated,
    /// Who allocates in vain?
    Temporary,
    /// What was never freed?
    Leaks,
    /// Whose memory was it at the peak?
    Peak,
    /// What did each process do?
    Processes,
    /// What did each thread do?
    Threads,
    /// How much memory was there, and how much of it are live blocks?
    Memory,
    /// What has made resident memory grow?
    Pages,
    /// Who has mapped memory by system calls?
    Mappings,
    /// Which blocks were freed by another allocator than their own?
    Mismatched,
}

impl View {
    /// All of them, in the order of the help.
    pub const ALL: [Self; 12] = [
        Self::Summary,
        Self::Sites,
        Self::Allocated,
        Self::Temporary,
        Self::Leaks,
        Self::Peak,
        Self::Processes,
        Self::Threads,
        Self::Memory,
        Self::Pages,
        Self::Mappings,
        Self::Mismatched,
    ];

    /// What `--view` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Sites => "sites",
            Self::Allocated => "allocated",
            Self::Temporary => "temporary",
            Self::Leaks => "leaks",
            Self::Peak => "peak",
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::Memory => "memory",
            Self::Pages => "pages",
            Self::Mappings => "mappings",
            Self::Mismatched => "mismatched",
        }
    }

    /// What it shows, in a line.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Summary => "the whole in one screen",
            Self::Sites => "call chains by bytes live at the end",
            Self::Allocated => "call chains by bytes allocated in all",
            Self::Temporary => "call chains by blocks freed with no other allocation in between",
            Self::Leaks => "blocks live at the end, by call chain, with their age",
            Self::Peak => "blocks live when the program had most memory, by call chain",
            Self::Processes => "each process and what it allocated",
            Self::Threads => "each thread, its name, and what it allocated and freed",
            Self::Memory => "live blocks beside RSS, PSS, swap and cgroup over time",
            Self::Pages => {
                "call chains by what became resident in their page faults (trace --pages)"
            }
            Self::Mappings => "call chains by what they mapped by mmap, mremap and brk",
            Self::Mismatched => "blocks freed by another allocator than their own, by call chain",
        }
    }

    /// The view of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|view| view.name() == name)
    }

    /// Answers the question. `recording` is what the recording is called, such as
    /// its path; `top` limits the number of sites, or of moments. `detail` says whether sites
    /// are one that a reader can hardly tell apart.
    #[must_use]
    pub fn report<'a>(
        self,
        analysis: &'a Analysis,
        recording: &'a str,
        top: Option<usize>,
        detail: Detail,
    ) -> Report<'a> {
        match self {
            Self::Summary => {
                Report::Summary(Box::new(SummaryReport::of(analysis, recording, detail)))
            }
            Self::Sites => Report::Sites(SitesReport::of(analysis, SiteOrder::Live, top, detail)),
            Self::Allocated => {
                Report::Sites(SitesReport::of(analysis, SiteOrder::Allocated, top, detail))
            }
            Self::Temporary => {
                Report::Sites(SitesReport::of(analysis, SiteOrder::Temporary, top, detail))
            }
            Self::Leaks => Report::Leaks(LeaksReport::of(analysis, top, detail)),
            Self::Peak => Report::Peak(PeakReport::of(analysis, top, detail)),
            Self::Processes => Report::Processes(ProcessesReport::of(analysis, top)),
            Self::Threads => Report::Threads(ThreadsReport::of(analysis, top)),
            Self::Memory => Report::Memory(MemoryReport::of(analysis, top)),
            Self::Pages => Report::Pages(PagesReport::of(analysis, top, detail)),
            Self::Mappings => Report::Mappings(MappingsReport::of(analysis, top, detail)),
            Self::Mismatched => Report::Mismatched(MismatchedReport::of(analysis, top, detail)),
        }
    }
}

/// The answer, as data; `report --json` is its serialization.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "view", rename_all = "snake_case")]
pub enum Report<'a> {
    /// To [`View::Summary`].
    Summary(Box<SummaryReport<'a>>),
    /// To [`View::Sites`], [`View::Allocated`] and [`View::Temporary`].
    Sites(SitesReport<'a>),
    /// To [`View::Leaks`].
    Leaks(LeaksReport<'a>),
    /// To [`View::Peak`].
    Peak(PeakReport<'a>),
    /// To [`View::Processes`].
    Processes(ProcessesReport<'a>),
    /// To [`View::Threads`].
    Threads(ThreadsReport<'a>),
    /// To [`View::Memory`].
    Memory(MemoryReport<'a>),
    /// To [`View::Pages`].
    Pages(PagesReport<'a>),
    /// To [`View::Mappings`].
    Mappings(MappingsReport<'a>),
    /// To [`View::Mismatched`].
    Mismatched(MismatchedReport<'a>),
}

impl Report<'_> {
    /// As text for a terminal; the last line says how far to trust it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Summary(report) => report.text(),
            Self::Sites(report) => report.text(),
            Self::Leaks(report) => report.text(),
            Self::Peak(report) => report.text(),
            Self::Processes(report) => report.text(),
            Self::Threads(report) => report.text(),
            Self::Memory(report) => report.text(),
            Self::Pages(report) => report.text(),
            Self::Mappings(report) => report.text(),
            Self::Mismatched(report) => report.text(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn views_have_unique_names_and_are_described() {
        let names: BTreeSet<_> = View::ALL.iter().map(|view| view.name()).collect();
        assert_eq!(names.len(), View::ALL.len());
        for view in View::ALL {
            assert!(view.description().len() > 10, "{view:?}");
            assert_eq!(View::from_name(view.name()), Some(view));
        }
        assert_eq!(View::from_name("nothing"), None);
    }
}
