use serde::Serialize;

use crate::{
    model::ResidentBytes,
    reports::{Analysis, Detail, PageRow, PagesReport},
};

/// What page faults tell.
#[derive(Serialize)]
pub(super) struct PagesJson<'a> {
    faults: u64,
    major_faults: u64,
    resident: ResidentJson,
    /// What became resident in no page fault.
    elsewhere: ResidentJson,
    /// What is resident no more, but for the end of processes.
    gone: ResidentJson,
    /// By call chain, those by which most became resident first.
    chains: Vec<PageRow<'a>>,
}

#[derive(Serialize)]
struct ResidentJson {
    bytes: u64,
    anonymous_bytes: u64,
    file_bytes: u64,
    shared_bytes: u64,
}

impl From<ResidentBytes> for ResidentJson {
    fn from(resident: ResidentBytes) -> Self {
        Self {
            bytes: resident.total(),
            anonymous_bytes: resident.anonymous,
            file_bytes: resident.file,
            shared_bytes: resident.shared,
        }
    }
}

impl<'a> PagesJson<'a> {
    /// None if page faults were not observed.
    pub(super) fn of(analysis: &'a Analysis) -> Option<Self> {
        let sums = analysis.page_sums?;
        Some(Self {
            faults: analysis.fault_totals.faults,
            major_faults: analysis.fault_totals.major_faults,
            resident: analysis.fault_totals.resident.into(),
            elsewhere: sums.elsewhere.into(),
            gone: sums.gone.into(),
            chains: PagesReport::of(analysis, None, Detail::All).rows,
        })
    }
}
