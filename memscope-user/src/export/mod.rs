//! A recording in the formats of other tools. One file per format.
//!
//! Takes an [`Analysis`] and writes to whatever takes bytes. The numbers are those
//! of the reports; no export is made from numbers that contradict each other.

mod collapsed;
mod flamegraph;
mod json;
mod pprof;
mod weight;

#[cfg(test)]
mod tests;

use std::io::{self, Write};

pub use collapsed::export_collapsed;
pub use flamegraph::export_flamegraph;
pub use json::{BlockSource, FIELDS, Field, Origin, export_json};
pub use pprof::export_pprof;
pub use weight::Weight;

use crate::reports::{Analysis, Inconsistency, ReadError};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Everything, as memscope's own JSON.
    Json,
    /// Call chains with a weight, a line each.
    Collapsed,
    /// A picture of the call chains by weight.
    Flamegraph,
    /// What `pprof` and many other viewers read.
    Pprof,
}

impl Format {
    /// All of them, in the order of the help.
    pub const ALL: [Self; 4] = [Self::Json, Self::Collapsed, Self::Flamegraph, Self::Pprof];

    /// What `--format` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Collapsed => "collapsed",
            Self::Flamegraph => "flamegraph",
            Self::Pprof => "pprof",
        }
    }

    /// What it is, in a line.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Json => "everything, as JSON of schema memscope.export, version 1",
            Self::Collapsed => {
                "call chains with a weight, one a line, for flame graph tools and speedscope"
            }
            Self::Flamegraph => "call chains by weight as an SVG picture",
            Self::Pprof => "gzipped profile.proto for pprof and compatible viewers",
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Whether it is text that a terminal can show.
    #[must_use]
    pub const fn is_text(self) -> bool {
        !matches!(self, Self::Pprof)
    }
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The operating system refused to write.
    #[error("cannot write the export")]
    Write(#[source] io::Error),
    /// The recording has nothing of what was to make call chains wide.
    #[error("the recording has no {}: {}", weight.name(), weight.why_none())]
    NotObserved {
        /// What was asked for.
        weight: Weight,
    },
    /// The numbers are wrong, so none are exported.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistency),
    /// The recording could not be read again for its blocks.
    #[error("cannot read the recording again for its blocks")]
    Blocks(#[source] ReadError),
}

/// Writes a recording in a format. `weight` is for collapsed and flamegraph,
/// `blocks` for JSON.
///
/// # Errors
///
/// See [`ExportError`].
pub fn export(
    format: Format,
    analysis: &Analysis,
    weight: Weight,
    blocks: Option<BlockSource<'_>>,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    match format {
        Format::Json => export_json(analysis, blocks, out),
        Format::Collapsed => export_collapsed(analysis, weight, out),
        Format::Flamegraph => export_flamegraph(analysis, weight, out),
        Format::Pprof => export_pprof(analysis, out),
    }
}
