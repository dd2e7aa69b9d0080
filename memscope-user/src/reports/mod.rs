//! Answers to questions about a recording, as data: who allocates, what leaks, what
//! is live at the peak. One file per question.
//!
//! Everything starts from an [`Analysis`], which [`Analyzer`] makes of a recording's
//! items, whether they come from a file or straight from the collector. [`View`] has
//! the questions by name; each answer is a struct that is JSON by serde and text by
//! its `text`. Nothing here does I/O.

mod analysis;
mod chains;
mod consistency;
mod estimate;
mod folding;
mod frames;
mod layout;
mod leaks;
mod library;
mod mappings;
mod memory;
mod mismatched;
mod origin;
mod pages;
mod peak;
mod processes;
mod row;
mod sites;
mod summary;
mod threads;
mod timeline;
mod trust;
mod view;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use analysis::{
    Analysis, Analyzer, BlockFate, Definitions, LiveAge, ReadError, analyze, replay_blocks,
};
pub use chains::NamedChain;
pub use consistency::{Inconsistency, check};
pub use estimate::{Bounds, Estimate};
pub use folding::Detail;
pub(crate) use frames::place;
pub use frames::{ResolvedFrame, ResolvedStack, base_name, hexadecimal, missing_callers};
pub(crate) use layout::{counted, cut};
pub use leaks::LeaksReport;
pub use mappings::{MappedTotals, MappingRow, MappingsReport};
pub use memory::{MemoryJson, MemoryReport, ProcessMemoryReport};
pub use mismatched::{FunctionName, MismatchRow, MismatchedReport};
pub use origin::{ProcessName, started_at};
pub use pages::{PageRow, PagesReport};
pub use peak::PeakReport;
pub use processes::{ProcessRow, ProcessSums, ProcessesReport, left_running};
pub use row::{LifetimeNs, SiteRow};
pub use sites::{SiteOrder, SitesReport};
pub use summary::SummaryReport;
pub use threads::{ThreadNumbers, ThreadRow, ThreadsReport};
pub use timeline::{
    AtAttach, Explained, HeapAtAttach, MAX_POINTS, MemoryPoint, MemoryTimeline, Proportional,
};
pub use trust::{Budget, LiveBounds, Trust};
pub use view::{Report, View};
