use serde::Serialize;

use crate::reports::{Analysis, Detail, MappedTotals, MappingRow, MappingsReport};

/// What was mapped by system calls.
#[derive(Serialize)]
pub(super) struct MappingsJson<'a> {
    #[serde(flatten)]
    totals: MappedTotals,
    /// By call chain, those that have most mapped at the end first.
    chains: Vec<MappingRow<'a>>,
}

impl<'a> MappingsJson<'a> {
    /// None if it was not observed.
    pub(super) fn of(analysis: &'a Analysis) -> Option<Self> {
        analysis.mapping_totals?;
        let MappingsReport { totals, rows: chains, .. } =
            MappingsReport::of(analysis, None, Detail::All);
        Some(Self { totals, chains })
    }
}
