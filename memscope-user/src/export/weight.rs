use super::ExportError;
use crate::{
    lifetimes::{FaultSums, Site, SiteKey},
    model::Observes,
    reports::Analysis,
};

/// What makes a call chain wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Bytes live when the trace ended.
    LiveBytes,
    /// Blocks live when the trace ended.
    LiveBlocks,
    /// Bytes live at the moment of most live bytes.
    PeakBytes,
    /// Bytes allocated in all.
    AllocatedBytes,
    /// Blocks allocated in all.
    Allocations,
    /// Blocks freed with no other allocation in between.
    Temporary,
    /// Bytes that became resident in page faults.
    ResidentBytes,
    /// Page faults.
    PageFaults,
}

impl Weight {
    /// All of them, in the order of the help.
    pub const ALL: [Self; 8] = [
        Self::LiveBytes,
        Self::LiveBlocks,
        Self::PeakBytes,
        Self::AllocatedBytes,
        Self::Allocations,
        Self::Temporary,
        Self::ResidentBytes,
        Self::PageFaults,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiveBytes => "live-bytes",
            Self::LiveBlocks => "live-blocks",
            Self::PeakBytes => "peak-bytes",
            Self::AllocatedBytes => "allocated-bytes",
            Self::Allocations => "allocations",
            Self::Temporary => "temporary",
            Self::ResidentBytes => "resident-bytes",
            Self::PageFaults => "page-faults",
        }
    }

    /// What it means, in a line.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::LiveBytes => "bytes live at the end",
            Self::LiveBlocks => "blocks live at the end",
            Self::PeakBytes => "bytes live at the peak",
            Self::AllocatedBytes => "bytes allocated in all",
            Self::Allocations => "blocks allocated in all",
            Self::Temporary => "blocks freed with no other allocation in between",
            Self::ResidentBytes => "bytes made resident by page faults",
            Self::PageFaults => "page faults",
        }
    }

    /// The weight of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|weight| weight.name() == name)
    }

    /// What is counted.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::LiveBytes | Self::PeakBytes | Self::AllocatedBytes | Self::ResidentBytes => {
                "bytes"
            }
            Self::LiveBlocks | Self::Allocations | Self::Temporary => "blocks",
            Self::PageFaults => "faults",
        }
    }

    /// What is shown of a recording if nothing else is asked for.
    #[must_use]
    pub fn usual(analysis: &Analysis) -> Self {
        match analysis.observed() {
            Observes::Allocations => Self::AllocatedBytes,
            Observes::PageFaults => Self::ResidentBytes,
        }
    }

    /// Refuses a weight that nothing can have in this recording.
    ///
    /// # Errors
    ///
    /// If it is of something that was not observed.
    pub fn check(self, analysis: &Analysis) -> Result<(), ExportError> {
        if self.observed_by() == analysis.observed() {
            return Ok(());
        }
        Err(ExportError::NotObserved { weight: self })
    }

    /// What must have been observed for it.
    const fn observed_by(self) -> Observes {
        match self {
            Self::LiveBytes
            | Self::LiveBlocks
            | Self::PeakBytes
            | Self::AllocatedBytes
            | Self::Allocations
            | Self::Temporary => Observes::Allocations,
            Self::ResidentBytes | Self::PageFaults => Observes::PageFaults,
        }
    }

    /// Why a recording has none of it, and what to do.
    pub(super) const fn why_none(self) -> &'static str {
        match self.observed_by() {
            Observes::Allocations => {
                "page faults were observed, not allocations; it has resident-bytes and page-faults"
            }
            Observes::PageFaults => {
                "page faults were not observed; `memscope trace --pages` observes them"
            }
        }
    }

    /// The sites of a recording, and what each weighs.
    pub(super) fn of_sites(self, analysis: &Analysis) -> impl Iterator<Item = (SiteKey, u64)> {
        let blocks = analysis.sites.iter().map(move |site| (site.key, self.of_blocks(site)));
        let faults = analysis.fault_sites.iter();
        blocks.chain(faults.map(move |site| (site.key, self.of_faults(&site.sums))))
    }

    fn of_blocks(self, site: &Site) -> u64 {
        match self {
            Self::LiveBytes => site.sums.live_bytes(),
            Self::LiveBlocks => site.sums.live_blocks(),
            Self::PeakBytes => site.at_peak.bytes,
            Self::AllocatedBytes => site.sums.allocated_bytes,
            Self::Allocations => site.sums.allocations,
            Self::Temporary => site.sums.temporary_allocations,
            Self::ResidentBytes | Self::PageFaults => 0,
        }
    }

    fn of_faults(self, sums: &FaultSums) -> u64 {
        match self {
            Self::ResidentBytes => sums.resident.total(),
            Self::PageFaults => sums.faults,
            _ => 0,
        }
    }
}
