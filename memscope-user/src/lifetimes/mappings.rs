//! What processes have mapped, by the system calls that did it.

use std::collections::BTreeMap;

use hashbrown::hash_map::Entry;

use super::{sites::SiteKey, state::Map};
use crate::model::{Event, MappedBy, MappingKind, ProcessId};

/// What one call chain of a process has mapped, of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingSite {
    /// Whose, and from where.
    pub key: SiteKey,
    /// What it is.
    pub kind: MappingKind,
    /// Who wanted it.
    pub by: MappedBy,
    /// How much.
    pub sums: MappingSums,
}

/// What was mapped. Sums wrap, see [`super::SiteSums`].
///
/// What was unmapped is that of what was mapped here, whoever did it, and also what other memory
/// took the place of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingSums {
    /// Calls that mapped something.
    pub mappings: u64,
    /// How much they did.
    pub mapped_bytes: u64,
    /// How much of that is mapped no more.
    pub unmapped_bytes: u64,
    /// In how many pieces the rest is.
    pub live_mappings: u64,
    /// Calls that failed.
    pub failed_mappings: u64,
}

impl MappingSums {
    /// What is mapped still.
    #[must_use]
    pub const fn live_bytes(&self) -> u64 {
        self.mapped_bytes.wrapping_sub(self.unmapped_bytes)
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        let Self { mappings, mapped_bytes, unmapped_bytes, live_mappings, failed_mappings } =
            others;
        for (sum, number) in [
            (&mut self.mappings, mappings),
            (&mut self.mapped_bytes, mapped_bytes),
            (&mut self.unmapped_bytes, unmapped_bytes),
            (&mut self.live_mappings, live_mappings),
            (&mut self.failed_mappings, failed_mappings),
        ] {
            *sum = sum.wrapping_add(*number);
        }
    }
}

/// Everything that was mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingTotals {
    /// Of all sites.
    pub sums: MappingSums,
    /// Unmapped although nobody was seen to map it: it is older than the trace, was mapped by
    /// another call, or was not mapped at all.
    pub unknown_unmapped_bytes: u64,
    /// Unmapped by a process that had it from the one that it was forked by.
    pub inherited_unmapped_bytes: u64,
    /// Most that was mapped at once.
    pub peak_bytes: u64,
    /// When that was first so; 0 if nothing was ever mapped.
    pub peak_ns: u64,
}

/// A piece of mapped memory, of which where it begins is known.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end_avma: u64,
    site: u32,
    /// Whether the process has it from the one that it was forked by, whose site this is.
    is_inherited: bool,
    mapped_ns: u64,
}

/// What is mapped in a process, by where it begins; nothing overlaps.
type Pieces = BTreeMap<u64, Piece>;

/// What processes have mapped, by site.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    processes: Map<ProcessId, Pieces>,
    sites: Vec<MappingSite>,
    places: Map<(SiteKey, MappingKind, MappedBy), u32>,
    totals: MappingTotals,
}

impl Mappings {
    /// Takes one of the events of mappings.
    pub(super) fn apply(&mut self, event: &Event) {
        match *event {
            Event::Mapping {
                process, time_ns, address_avma, size_bytes, stack, kind, by, ..
            } => {
                let site = self.site(SiteKey { process, stack }, kind, by);
                self.map(process, site, time_ns, address_avma, size_bytes);
            }
            Event::Unmapping { process, address_avma, size_bytes, .. } => {
                let known_bytes = self.cut(process, address_avma, size_bytes, u64::MAX);
                self.unmapped(size_bytes, known_bytes);
            }
            Event::Remapping {
                process,
                began_ns,
                time_ns,
                old_address_avma,
                old_size_bytes,
                new_address_avma,
                new_size_bytes,
                keeps_old,
                stack,
                by,
                ..
            } => {
                let kind = self.kind_at(process, old_address_avma);
                if !keeps_old {
                    let known_bytes = self.cut(process, old_address_avma, old_size_bytes, began_ns);
                    self.unmapped(old_size_bytes, known_bytes);
                }
                let site = self.site(SiteKey { process, stack }, kind, by);
                self.map(process, site, time_ns, new_address_avma, new_size_bytes);
            }
            _ => {}
        }
    }

    /// A process is the copy of another one. What it has mapped by that is nobody's second
    /// mapping.
    pub(super) fn fork(&mut self, child: ProcessId, parent: ProcessId) {
        let Some(pieces) = self.processes.get(&parent) else { return };
        let inherited =
            pieces.iter().map(|(start, piece)| (*start, Piece { is_inherited: true, ..*piece }));
        let inherited: Pieces = inherited.collect();
        self.processes.insert(child, inherited);
    }

    /// A process image ended: what it had mapped stays in the sums, but takes no memory.
    pub(super) fn end_process(&mut self, process: ProcessId) {
        self.processes.remove(&process);
    }

    /// In the order in which they were first seen.
    pub(super) fn sites(&self) -> &[MappingSite] {
        &self.sites
    }

    pub(super) fn totals(&self) -> MappingTotals {
        self.totals
    }

    pub(super) fn held_bytes(&self) -> usize {
        let pieces: usize = self.processes.values().map(BTreeMap::len).sum();
        pieces * size_of::<(u64, Piece)>()
            + self.processes.allocation_size()
            + self.sites.capacity() * size_of::<MappingSite>()
            + self.places.allocation_size()
    }

    fn site(&mut self, key: SiteKey, kind: MappingKind, by: MappedBy) -> u32 {
        match self.places.entry((key, kind, by)) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                self.sites.push(MappingSite { key, kind, by, sums: MappingSums::default() });
                *place.insert((self.sites.len() - 1) as u32)
            }
        }
    }

    /// Adds to the sums of a site, and to those of everything.
    fn count(&mut self, site: u32, sums: &MappingSums) {
        self.totals.sums.add(sums);
        if let Some(site) = self.sites.get_mut(site as usize) {
            site.sums.add(sums);
        }
    }

    /// Of a range, so much was known to be mapped.
    fn unmapped(&mut self, size_bytes: u64, known_bytes: u64) {
        let sum = &mut self.totals.unknown_unmapped_bytes;
        *sum = sum.wrapping_add(size_bytes.saturating_sub(known_bytes));
    }

    fn map(
        &mut self,
        process: ProcessId,
        site: u32,
        mapped_ns: u64,
        start_avma: u64,
        size_bytes: u64,
    ) {
        let end_avma = start_avma.saturating_add(size_bytes);
        if start_avma == 0 || start_avma == end_avma {
            self.count(site, &MappingSums { failed_mappings: 1, ..Default::default() });
            return;
        }
        // What was there, `MAP_FIXED` has replaced.
        self.cut(process, start_avma, size_bytes, u64::MAX);
        self.processes
            .entry(process)
            .or_default()
            .insert(start_avma, Piece { end_avma, site, is_inherited: false, mapped_ns });
        let mapped_bytes = end_avma - start_avma;
        let sums =
            MappingSums { mappings: 1, mapped_bytes, live_mappings: 1, ..Default::default() };
        self.count(site, &sums);
        let live_bytes = self.totals.sums.live_bytes();
        if live_bytes > self.totals.peak_bytes {
            (self.totals.peak_bytes, self.totals.peak_ns) = (live_bytes, mapped_ns);
        }
    }

    /// What is mapped at an address.
    fn kind_at(&self, process: ProcessId, avma: u64) -> MappingKind {
        let pieces = self.processes.get(&process);
        let below = pieces.and_then(|pieces| pieces.range(..=avma).next_back());
        below
            .filter(|(_, piece)| avma < piece.end_avma)
            .and_then(|(_, piece)| self.sites.get(piece.site as usize))
            .map_or(MappingKind::Unknown, |site| site.kind)
    }

    /// Takes a range out of what is mapped, but what was mapped since a moment. Gives how much of
    /// it was.
    fn cut(
        &mut self,
        process: ProcessId,
        start_avma: u64,
        size_bytes: u64,
        mapped_before_ns: u64,
    ) -> u64 {
        let end_avma = start_avma.saturating_add(size_bytes);
        let Some(pieces) = self.processes.get_mut(&process) else { return 0 };
        let first = pieces.range(..=start_avma).next_back();
        let first = first.filter(|(_, piece)| piece.end_avma > start_avma);
        let first_avma = first.map_or(start_avma, |(start, _)| *start);
        if first_avma >= end_avma {
            return 0;
        }
        let overlapping: Vec<(u64, Piece)> = pieces
            .range(first_avma..end_avma)
            .filter(|(_, piece)| piece.mapped_ns < mapped_before_ns)
            .map(|(start, piece)| (*start, *piece))
            .collect();
        for (piece_avma, piece) in &overlapping {
            pieces.remove(piece_avma);
            if *piece_avma < start_avma {
                pieces.insert(*piece_avma, Piece { end_avma: start_avma, ..*piece });
            }
            if end_avma < piece.end_avma {
                pieces.insert(end_avma, *piece);
            }
        }
        let mut cut_bytes = 0_u64;
        for (piece_avma, piece) in overlapping {
            let bytes = piece.end_avma.min(end_avma) - piece_avma.max(start_avma);
            cut_bytes = cut_bytes.wrapping_add(bytes);
            if piece.is_inherited {
                let sum = &mut self.totals.inherited_unmapped_bytes;
                *sum = sum.wrapping_add(bytes);
                continue;
            }
            let left = u64::from(piece_avma < start_avma) + u64::from(end_avma < piece.end_avma);
            let live_mappings = left.wrapping_sub(1);
            let sums = MappingSums { unmapped_bytes: bytes, live_mappings, ..Default::default() };
            self.count(piece.site, &sums);
        }
        cut_bytes
    }
}

#[cfg(test)]
mod tests;
