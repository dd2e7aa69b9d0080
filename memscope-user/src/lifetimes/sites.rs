use super::{
    block::{LiveBlock, Weight},
    histogram::Lifetimes,
    sampled::Sampled,
    state::Map,
    windows::Begun,
};
use crate::model::{ProbeId, ProcessId, StackId, Window};

/// A call chain of a process at which blocks begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SiteKey {
    /// Whose.
    pub process: ProcessId,
    /// From where.
    pub stack: StackId,
}

/// Stacks whose sites are found without a search; ids are given from 0.
const MAX_DENSE_STACKS: usize = 1 << 22;
/// No site.
const NONE: u32 = u32::MAX;

/// What is summed per site. Sums wrap: only a forged recording can have blocks of 2^64
/// bytes in all, or stand for 2^64 blocks, and it must not stop the reader.
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
    /// Calls that gave a block from here to another allocator to be freed or reallocated.
    pub mismatched_frees: u64,
}

impl SiteSums {
    /// Blocks begun and not ended.
    #[must_use]
    pub const fn live_blocks(&self) -> u64 {
        self.allocations.wrapping_sub(self.frees).wrapping_sub(self.unseen_ends)
    }

    /// Sum of their requested sizes.
    #[must_use]
    pub const fn live_bytes(&self) -> u64 {
        self.allocated_bytes.wrapping_sub(self.freed_bytes).wrapping_sub(self.unseen_end_bytes)
    }

    /// What began and ended, if what was seen stands for so much. What lives is not scaled: what
    /// neither is seen to end nor known to live has ended unseen.
    #[must_use]
    pub(super) fn scaled(&self, scale: f64) -> Self {
        let scaled = |number: u64| (number as f64 * scale) as u64;
        let mut sums = Self {
            allocations: scaled(self.allocations),
            allocated_bytes: scaled(self.allocated_bytes),
            frees: scaled(self.frees),
            freed_bytes: scaled(self.freed_bytes),
            temporary_allocations: scaled(self.temporary_allocations),
            unseen_ends: 0,
            unseen_end_bytes: 0,
            failed_allocations: scaled(self.failed_allocations),
            // Where numbers are scaled, blocks are sampled, and nothing is known of it.
            mismatched_frees: self.mismatched_frees,
        };
        sums.unseen_ends = sums.live_blocks().wrapping_sub(self.live_blocks());
        sums.unseen_end_bytes = sums.live_bytes().wrapping_sub(self.live_bytes());
        sums
    }

    /// Adds those of another site.
    pub fn add(&mut self, other: &Self) {
        for (sum, other) in [
            (&mut self.allocations, other.allocations),
            (&mut self.allocated_bytes, other.allocated_bytes),
            (&mut self.frees, other.frees),
            (&mut self.freed_bytes, other.freed_bytes),
            (&mut self.temporary_allocations, other.temporary_allocations),
            (&mut self.unseen_ends, other.unseen_ends),
            (&mut self.unseen_end_bytes, other.unseen_end_bytes),
            (&mut self.failed_allocations, other.failed_allocations),
            (&mut self.mismatched_frees, other.mismatched_frees),
        ] {
            *sum = sum.wrapping_add(other);
        }
    }

    /// Those of all sites together.
    pub(super) fn of_all(sites: &[Site]) -> Self {
        let mut all = Self::default();
        sites.iter().for_each(|site| all.add(&site.sums));
        all
    }
}

/// One site and all that is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Which.
    pub key: SiteKey,
    /// Whether its process has ended, and its blocks take no memory any more.
    gone: bool,
    /// The peak that `at_peak` was taken at, see [`Sites`].
    at_peak_epoch: u64,
    /// Function that gave its first block.
    probe: Option<ProbeId>,
    /// What was summed.
    pub sums: SiteSums,
    /// Live at the peak of all processes together.
    pub at_peak: Resident,
    /// How long its ended blocks lived.
    pub lifetimes: Lifetimes,
    /// What the sampled ones of its blocks tell; none if none was sampled.
    pub sampled: Option<Box<Sampled>>,
    /// What began here in each window; none if all the time was observed.
    pub begun: Option<Box<Begun>>,
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
        self.sums.add(&other.sums);
        for (sum, other) in [
            (&mut self.at_peak.blocks, other.at_peak.blocks),
            (&mut self.at_peak.bytes, other.at_peak.bytes),
        ] {
            *sum = sum.wrapping_add(other);
        }
        self.lifetimes.merge(&other.lifetimes);
        if let Some(other) = &other.sampled {
            self.sampled.get_or_insert_default().merge(other);
        }
        if let Some(other) = &other.begun {
            self.begun.get_or_insert_default().merge(other);
        }
    }

    fn resident(&self) -> Resident {
        if self.gone {
            return Resident::default();
        }
        Resident { blocks: self.sums.live_blocks(), bytes: self.sums.live_bytes() }
    }

    /// To be called before its first change after a peak.
    #[inline]
    fn save_peak(&mut self, epoch: u64) {
        if self.at_peak_epoch != epoch {
            self.at_peak = self.resident();
            self.at_peak_epoch = epoch;
        }
    }
}

impl Resident {
    pub(super) fn add(&mut self, weight: Weight) {
        self.blocks = self.blocks.wrapping_add(weight.blocks);
        self.bytes = self.bytes.wrapping_add(weight.bytes);
    }

    pub(super) fn subtract(&mut self, weight: Weight) {
        self.blocks = self.blocks.wrapping_sub(weight.blocks);
        self.bytes = self.bytes.wrapping_sub(weight.bytes);
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
    /// Site of a stack, of the first process that had it.
    by_stack: Vec<u32>,
    /// The others.
    by_key: Map<SiteKey, u32>,
    resident: Resident,
    peak: Resident,
    peak_epoch: u64,
    peak_time_ns: u64,
}

impl Sites {
    #[inline]
    pub(super) fn index_of(&mut self, key: SiteKey) -> u32 {
        let dense = self.by_stack.get(key.stack.index()).copied();
        match dense.and_then(|index| Some((index, self.list.get(index as usize)?))) {
            Some((index, site)) if site.key == key => index,
            _ => self.search(key),
        }
    }

    #[cold]
    fn search(&mut self, key: SiteKey) -> u32 {
        let next = self.list.len() as u32;
        let stack = key.stack.index();
        if stack < MAX_DENSE_STACKS && self.by_stack.len() <= stack {
            self.by_stack.resize(stack + 1, NONE);
        }
        match self.by_stack.get_mut(stack) {
            Some(index) if *index == NONE => *index = next,
            _ => {
                if let Some(known) = self.by_key.get(&key) {
                    return *known;
                }
                self.by_key.insert(key, next);
            }
        }
        self.list.push(Site {
            key,
            gone: false,
            // A site born after the peak had nothing at the peak: its saved
            // value, zero, is that of this epoch.
            at_peak_epoch: self.peak_epoch,
            probe: None,
            sums: SiteSums::default(),
            at_peak: Resident::default(),
            lifetimes: Lifetimes::default(),
            sampled: None,
            begun: None,
        });
        next
    }

    /// Which function gave a site's first block; if none has yet, it is this one.
    #[inline]
    pub(super) fn first_probe(&mut self, index: u32, probe: ProbeId) -> ProbeId {
        self.list.get_mut(index as usize).map_or(probe, |site| *site.probe.get_or_insert(probe))
    }

    /// Which function gave a block.
    #[inline]
    pub(super) fn probe_of(&self, block: &LiveBlock) -> Option<ProbeId> {
        let first = || self.list.get(block.site as usize).and_then(|site| site.probe);
        block.other_probe.or_else(first)
    }

    /// What a block of a site will count for.
    #[inline]
    pub(super) fn draw(&mut self, index: u32, size_bytes: u64, interval_bytes: u64) -> Weight {
        match self.list.get_mut(index as usize) {
            Some(site) if interval_bytes != 0 => {
                site.sampled.get_or_insert_default().draw(size_bytes, interval_bytes)
            }
            _ => Weight::one(size_bytes),
        }
    }

    /// A block begins.
    #[inline]
    pub(super) fn begin(&mut self, index: u32, time_ns: u64, weight: Weight) {
        let Some(site) = self.list.get_mut(index as usize) else { return };
        site.save_peak(self.peak_epoch);
        let sums = &mut site.sums;
        sums.allocations = sums.allocations.wrapping_add(weight.blocks);
        sums.allocated_bytes = sums.allocated_bytes.wrapping_add(weight.bytes);
        if !site.gone {
            self.resident.add(weight);
            self.note_peak(time_ns);
        }
    }

    /// A block ends.
    #[inline]
    pub(super) fn end(&mut self, block: &LiveBlock, time_ns: u64, temporary: bool) {
        let Some(site) = self.list.get_mut(block.site as usize) else { return };
        site.save_peak(self.peak_epoch);
        let (sums, weight) = (&mut site.sums, block.weight);
        sums.frees = sums.frees.wrapping_add(weight.blocks);
        sums.freed_bytes = sums.freed_bytes.wrapping_add(weight.bytes);
        if temporary {
            sums.temporary_allocations = sums.temporary_allocations.wrapping_add(weight.blocks);
        }
        site.lifetimes.add(time_ns.saturating_sub(block.allocated_ns), weight.blocks);
        if let Some(sampled) = &mut site.sampled {
            sampled.freed_blocks += u64::from(block.interval_bytes != 0);
        }
        if !site.gone {
            self.resident.subtract(weight);
        }
    }

    /// A block's end was not seen.
    pub(super) fn end_unseen(&mut self, block: &LiveBlock) {
        let Some(site) = self.list.get_mut(block.site as usize) else { return };
        site.save_peak(self.peak_epoch);
        let (sums, weight) = (&mut site.sums, block.weight);
        sums.unseen_ends = sums.unseen_ends.wrapping_add(weight.blocks);
        sums.unseen_end_bytes = sums.unseen_end_bytes.wrapping_add(weight.bytes);
        if !site.gone {
            self.resident.subtract(weight);
        }
    }

    /// Blocks began of which nothing else is known: neither that they live nor that they ended.
    pub(super) fn count(&mut self, index: u32, weight: Weight) {
        let Some(site) = self.list.get_mut(index as usize) else { return };
        let sums = &mut site.sums;
        for (blocks, bytes) in [
            (&mut sums.allocations, &mut sums.allocated_bytes),
            (&mut sums.unseen_ends, &mut sums.unseen_end_bytes),
        ] {
            *blocks = blocks.wrapping_add(weight.blocks);
            *bytes = bytes.wrapping_add(weight.bytes);
        }
    }

    /// A call gave no block.
    pub(super) fn fail(&mut self, index: u32, calls: u64) {
        if let Some(site) = self.list.get_mut(index as usize) {
            let failed = &mut site.sums.failed_allocations;
            *failed = failed.wrapping_add(calls);
        }
    }

    #[inline]
    fn note_peak(&mut self, time_ns: u64) {
        if self.resident.bytes > self.peak.bytes {
            self.peak = self.resident;
            self.peak_epoch += 1;
            self.peak_time_ns = time_ns;
        }
    }

    /// The blocks of a process take no memory from now on.
    pub(super) fn end_process(&mut self, process: ProcessId) {
        let ends = |site: &&mut Site| site.key.process == process && !site.gone;
        for site in self.list.iter_mut().filter(ends) {
            site.save_peak(self.peak_epoch);
            let Resident { blocks, bytes } = site.resident();
            self.resident.subtract(Weight { blocks, bytes });
            site.gone = true;
        }
    }

    pub(super) fn resident(&self) -> Resident {
        self.resident
    }

    pub(super) fn peak(&self) -> (Resident, u64) {
        (self.peak, self.peak_time_ns)
    }

    /// A window ends in which the targets were observed.
    pub(super) fn end_window(&mut self, window: &Window) {
        for site in &mut self.list {
            let (blocks, bytes) = (site.sums.allocations, site.sums.allocated_bytes);
            Begun::note(&mut site.begun, window, blocks, bytes);
        }
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

    pub(super) fn held_bytes(&self) -> usize {
        let beside = |site: &Site| {
            site.lifetimes.held_bytes()
                + site.sampled.as_ref().map_or(0, |_| size_of::<Sampled>())
                + site.begun.as_ref().map_or(0, |_| size_of::<Begun>())
        };
        self.list.iter().map(beside).sum::<usize>()
            + self.list.capacity() * size_of::<Site>()
            + self.by_stack.capacity() * size_of::<u32>()
            + self.by_key.allocation_size()
    }
}
