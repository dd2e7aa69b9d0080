use hashbrown::hash_map::Entry;

use super::{sites::SiteKey, state::Map};
use crate::model::ResidentBytes;

/// Page faults of one process and stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSite {
    /// Whose, and from where.
    pub key: SiteKey,
    /// What came of them.
    pub sums: FaultSums,
}

/// What came of page faults. Sums wrap, see [`super::SiteSums`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSums {
    /// How many there were.
    pub faults: u64,
    /// Of these, those that had to wait.
    pub major_faults: u64,
    /// What became resident by them.
    pub resident: ResidentBytes,
}

impl FaultSums {
    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        self.faults = self.faults.wrapping_add(others.faults);
        self.major_faults = self.major_faults.wrapping_add(others.major_faults);
        self.resident.add(&others.resident);
    }
}

/// Page faults by site.
#[derive(Debug, Default)]
pub(super) struct Faults {
    sites: Vec<FaultSite>,
    places: Map<SiteKey, u32>,
    totals: FaultSums,
}

impl Faults {
    pub(super) fn count(&mut self, key: SiteKey, resident: ResidentBytes, is_major: bool) {
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                self.sites.push(FaultSite { key, sums: FaultSums::default() });
                *place.insert((self.sites.len() - 1) as u32)
            }
        };
        let fault = FaultSums { faults: 1, major_faults: is_major.into(), resident };
        self.totals.add(&fault);
        if let Some(site) = self.sites.get_mut(place as usize) {
            site.sums.add(&fault);
        }
    }

    /// In the order in which they were first seen.
    pub(super) fn sites(&self) -> &[FaultSite] {
        &self.sites
    }

    pub(super) fn totals(&self) -> FaultSums {
        self.totals
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.sites.capacity() * size_of::<FaultSite>() + self.places.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        lifetimes::Tracker,
        model::{Event, ProcessId, ResidentBytes, StackId, ThreadId},
    };

    fn fault(stack: u32, anonymous: u64, file: u64, is_major: bool) -> Event {
        Event::PageFault {
            process: ProcessId(0),
            thread: ThreadId(1),
            time_ns: 1,
            address_avma: 0x1000,
            stack: StackId(stack),
            resident: ResidentBytes { anonymous, file, shared: 0 },
            is_major,
        }
    }

    #[test]
    fn faults_are_summed_by_stack_and_are_no_allocations() {
        let mut tracker = Tracker::new();
        for event in [
            fault(7, 4096, 0, false),
            fault(3, 0, 65_536, true),
            fault(7, 2 << 20, 0, false),
            fault(7, 0, 0, false),
        ] {
            tracker.apply(&event, |_| panic!("no block ends"));
        }
        let sums: Vec<_> = tracker
            .fault_sites()
            .iter()
            .map(|site| {
                let sums = site.sums;
                (site.key.stack.0, sums.faults, sums.major_faults, sums.resident.total())
            })
            .collect();
        assert_eq!(sums, [(7, 3, 0, 4096 + (2 << 20)), (3, 1, 1, 65_536)]);
        assert_eq!(tracker.totals().allocations, 0);
        assert!(tracker.sites().is_empty());
    }
}
