use serde::Serialize;

use crate::reports::{Analysis, MappedSums, MappingRow, MappingsReport};

/// What was mapped by system calls.
#[derive(Serialize)]
pub(super) struct MappingsJson<'a> {
    #[serde(flatten)]
    sums: MappedSums,
    unknown_unmapped_bytes: u64,
    inherited_unmapped_bytes: u64,
    peak_bytes: u64,
    peak_after_ns: Option<u64>,
    /// By call chain, those that have most mapped at the end first.
    chains: Vec<MappingRow<'a>>,
}

impl<'a> MappingsJson<'a> {
    /// None if it was not observed.
    pub(super) fn of(analysis: &'a Analysis) -> Option<Self> {
        analysis.mapping_totals?;
        let report = MappingsReport::of(analysis, None);
        Some(Self {
            sums: report.sums,
            unknown_unmapped_bytes: report.unknown_unmapped_bytes,
            inherited_unmapped_bytes: report.inherited_unmapped_bytes,
            peak_bytes: report.peak_bytes,
            peak_after_ns: report.peak_after_ns,
            chains: report.rows,
        })
    }
}
