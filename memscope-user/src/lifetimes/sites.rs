use rustc_hash::FxHashMap;

use super::histogram::Lifetimes;
use crate::model::{ProcessId, StackId};

/// A call chain of a process at which blocks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SiteKey {
    /// Whose.
    pub process: ProcessId,
    /// From where.
    pub stack: StackId,
}

/// What is summed per site. Sums of bytes wrap: only a forged recording can have
/// blocks of 2^64 bytes in all, and it must not stop the reader.
///
/// Frees and lifetimes are those of the blocks that began
/// here, wherever they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteSums {
    /// Blocks that began.
    pub allocations: u64,
    /// Sum of their requested sizes.
    pub allocated_bytes: u64,
    /// Blocks that ended.
    pub frees: u64,
    /// Sum of their requested sizes.
    pub freed_bytes: u64,
    /// Blocks freed by their thread with no other allocation of it in between.
    pub temporary_allocations: u64,
    /// Blocks whose end was not seen, but whose address was given out again.
    pub unseen_ends: u64,
    /// Sum of their requested sizes.
    pub unseen_end_bytes: u64,
    /// Calls that returned no block.
    pub failed_allocations: u64,
}

impl SiteSums {
    /// Blocks begun and not ended.
    #[must_use]
    pub const fn live_blocks(&self) -> u64 {
        self.allocations - self.frees - self.unseen_ends
    }

    /// Sum of their requested sizes.
    #[must_use]
    pub const fn live_bytes(&self) -> u64 {
        self.allocated_bytes.wrapping_sub(self.freed_bytes).wrapping_sub(self.unseen_end_bytes)
    }
}

/// One site and all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which.
    pub key: SiteKey,
    /// What was summed.
    pub sums: SiteSums,
    /// How long its ended blocks lived.
    pub lifetimes: Lifetimes,
    /// Live at the peak of all processes together.
    pub at_peak: Resident,
    /// The peak that `at_peak` was taken at, see [`Sites`].
    at_peak_epoch: u64,
    /// Whether its process has ended, and its blocks take no memory any more.
    gone: bool,
}

/// Blocks that take memory at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// How many.
    pub blocks: u64,
    /// Sum of their requested sizes.
    pub bytes: u64,
}

impl Site {
    /// Adds what is known of another site, for those who want to see both as one.
    pub fn merge(&mut self, other: &Self) {
        let (sums, others) = (&mut self.sums, &other.sums);
        sums.allocations += others.allocations;
        sums.allocated_bytes = sums.allocated_bytes.wrapping_add(others.allocated_bytes);
        sums.frees += others.frees;
        sums.freed_bytes = sums.freed_bytes.wrapping_add(others.freed_bytes);
        sums.temporary_allocations += others.temporary_allocations;
        sums.unseen_ends += others.unseen_ends;
        sums.unseen_end_bytes = sums.unseen_end_bytes.wrapping_add(others.unseen_end_bytes);
        sums.failed_allocations += others.failed_allocations;
        self.at_peak.blocks += other.at_peak.blocks;
        self.at_peak.bytes = self.at_peak.bytes.wrapping_add(other.at_peak.bytes);
        self.lifetimes.merge(&other.lifetimes);
    }

    fn resident(&self) -> Resident {
        if self.gone {
            return Resident::default();
        }
        Resident { blocks: self.sums.live_blocks(), bytes: self.sums.live_bytes() }
    }
}

/// All sites, and what each had live at the peak.
///
/// A new peak is reached by nearly every event while a program grows, so the sites'
/// values at the peak are not copied then. Each peak is an epoch; a site saves its
/// value when it is first changed *after* a peak, and one that was not changed since
/// has its present value as that at the peak.
#[derive(Debug, Default)]
pub(super) struct Sites {
    list: Vec<Site>,
    by_key: FxHashMap<SiteKey, u32>,
    resident: Resident,
    peak: Resident,
    peak_epoch: u64,
    peak_time_ns: u64,
}

impl Sites {
    pub(super) fn index_of(&mut self, key: SiteKey) -> u32 {
        *self.by_key.entry(key).or_insert_with(|| {
            self.list.push(Site {
                key,
                sums: SiteSums::default(),
                lifetimes: Lifetimes::default(),
                at_peak: Resident::default(),
                // A site born after the peak had nothing at the peak: its saved
                // value, zero, is that of this epoch.
                at_peak_epoch: self.peak_epoch,
                gone: false,
            });
            (self.list.len() - 1) as u32
        })
    }

    /// Changes a site's sums, with all that follows from it for the peak.
    pub(super) fn change(&mut self, index: u32, time_ns: u64, change: impl FnOnce(&mut Site)) {
        let Some(site) = self.list.get_mut(index as usize) else {
            return;
        };
        let before = site.resident();
        if site.at_peak_epoch != self.peak_epoch {
            site.at_peak = before;
            site.at_peak_epoch = self.peak_epoch;
        }
        change(site);
        let after = site.resident();
        self.resident.blocks = self.resident.blocks + after.blocks - before.blocks;
        self.resident.bytes =
            self.resident.bytes.wrapping_add(after.bytes).wrapping_sub(before.bytes);
        if self.resident.bytes > self.peak.bytes {
            self.peak = self.resident;
            self.peak_epoch += 1;
            self.peak_time_ns = time_ns;
        }
    }

    /// The blocks of a process take no memory from now on.
    pub(super) fn end_process(&mut self, process: ProcessId, time_ns: u64) {
        for index in 0..self.list.len() as u32 {
            let ends = |site: &Site| site.key.process == process && !site.gone;
            if self.list.get(index as usize).is_some_and(ends) {
                self.change(index, time_ns, |site| site.gone = true);
            }
        }
    }

    pub(super) fn resident(&self) -> Resident {
        self.resident
    }

    pub(super) fn peak(&self) -> (Resident, u64) {
        (self.peak, self.peak_time_ns)
    }

    /// All sites, with their values at the peak filled in.
    pub(super) fn snapshot(&self) -> Vec<Site> {
        let fill = |site: &Site| {
            let mut site = site.clone();
            if site.at_peak_epoch != self.peak_epoch {
                site.at_peak = site.resident();
            }
            site
        };
        self.list.iter().map(fill).collect()
    }

    pub(super) fn key(&self, index: u32) -> Option<SiteKey> {
        self.list.get(index as usize).map(|site| site.key)
    }
}
