//! Which file an address of a process belongs to, and since when.

use std::sync::Arc;

use super::decode::CopiedStack;
use crate::model::{Module, StackOutcome};

/// Executable memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeRange {
    /// First address.
    pub start_avma: u64,
    /// First address after it.
    pub end_avma: u64,
    /// Position in the file of the first byte.
    pub file_offset: u64,
    /// The file; none for memory without one.
    pub module: Option<Arc<Module>>,
    /// Whether allocator functions of the file are probed.
    pub is_allocator: bool,
}

/// What a process looks like at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Name of its main thread.
    pub comm: String,
    /// Path of its executable.
    pub exe: String,
    /// Its executable memory, in the order of addresses.
    pub code: Vec<CodeRange>,
}

/// Looks at the traced processes on behalf of the collector.
pub trait ProcessView {
    /// What a target looks like now; none if it is gone or cannot be looked at.
    fn observe(&mut self, target: u16) -> Option<Observation>;

    /// The kernel has removed the probes of a target.
    fn probes_gone(&mut self, target: u16);

    /// Walks a copied stack of a target; `range_at` gives the code that lay at an address
    /// when it was copied. None if it cannot be walked at all.
    fn walk_copy<'code>(
        &mut self,
        target: u16,
        stack: &CopiedStack,
        range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> Option<WalkedCopy>;
}

/// A stack that was walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkedCopy {
    /// Return addresses, innermost first.
    pub frames_avma: Vec<u64>,
    /// Why they end.
    pub outcome: StackOutcome,
    /// Whether at least one step followed the frame pointer, for want of unwind information.
    pub used_frame_pointers: bool,
    /// The address at which it ended because nothing is known of it, if so.
    pub unknown_avma: Option<u64>,
}

/// The range that an address lies in. Expects the ranges in order.
pub(super) fn range_of(code: &[CodeRange], address_avma: u64) -> Option<&CodeRange> {
    let after = code.partition_point(|range| range.start_avma <= address_avma);
    let range = code.get(after.checked_sub(1)?)?;
    (address_avma < range.end_avma).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_within_bounds_only() {
        let range = |start_avma, end_avma| CodeRange {
            start_avma,
            end_avma,
            file_offset: 0,
            module: None,
            is_allocator: false,
        };
        let code = [range(0x1000, 0x2000), range(0x3000, 0x4000)];
        let start = |address| range_of(&code, address).map(|range| range.start_avma);
        assert_eq!(start(0xfff), None);
        assert_eq!(start(0x1000), Some(0x1000));
        assert_eq!(start(0x1fff), Some(0x1000));
        assert_eq!(start(0x2000), None);
        assert_eq!(start(0x3fff), Some(0x3000));
        assert_eq!(start(u64::MAX), None);
        assert_eq!(range_of(&[], 0x1000), None);
    }
}
