//! The live blocks of all processes: 40 bytes each, in chunks that never move, and beside
//! them what only few blocks have.

use super::{
    block::{LiveBlock, Weight},
    state::Map,
};
use crate::model::{ProbeId, ThreadId};

/// Blocks that get their memory at once.
const CHUNK_BLOCKS: usize = 4096;
/// Size of a block whose size is kept beside.
const LARGE: u32 = u32::MAX;
/// In [`Slot::ordinal`]: the block was sampled, and its weight is kept beside.
const SAMPLED: u32 = 1 << 31;
/// What ordinals are counted modulo.
const ORDINAL_MASK: u32 = SAMPLED - 1;
/// No place.
const NONE: u32 = u32::MAX;

/// A block, or a vacant place of which `site` is the next one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    address_avma: u64,
    allocated_ns: u64,
    chain_allocated_ns: u64,
    size_bytes: u32,
    site: u32,
    thread: ThreadId,
    ordinal: u32,
}

const VACANT: Slot = Slot {
    address_avma: 0,
    allocated_ns: 0,
    chain_allocated_ns: 0,
    size_bytes: 0,
    site: NONE,
    thread: ThreadId(0),
    ordinal: 0,
};

/// What is kept of a sampled block beside.
#[derive(Clone, Copy, Debug)]
struct Sample {
    weight: Weight,
    interval_bytes: u64,
}

/// Blocks at places with numbers, which are used again. There are less than 2^32 of them:
/// so many would take 160 GiB.
#[derive(Debug)]
pub(super) struct LiveBlocks {
    chunks: Vec<Vec<Slot>>,
    /// The place that became vacant last, as it is still in the cache.
    vacant: u32,
    large_bytes: Map<u32, u64>,
    samples: Map<u32, Sample>,
    /// Functions, see [`LiveBlock::other_probe`].
    other_probes: Map<u32, ProbeId>,
}

impl Default for LiveBlocks {
    fn default() -> Self {
        let (large_bytes, samples) = (Map::default(), Map::default());
        let other_probes = Map::default();
        Self { chunks: Vec::new(), vacant: NONE, large_bytes, samples, other_probes }
    }
}

impl LiveBlocks {
    #[inline]
    fn slot(&self, place: u32) -> &Slot {
        &self.chunks[place as usize / CHUNK_BLOCKS][place as usize % CHUNK_BLOCKS]
    }

    #[inline]
    fn slot_mut(&mut self, place: u32) -> &mut Slot {
        &mut self.chunks[place as usize / CHUNK_BLOCKS][place as usize % CHUNK_BLOCKS]
    }

    #[inline]
    pub(super) fn address_avma(&self, place: u32) -> u64 {
        self.slot(place).address_avma
    }

    /// A place for another block.
    #[inline]
    pub(super) fn reserve(&mut self) -> u32 {
        if self.vacant != NONE {
            let place = self.vacant;
            self.vacant = self.slot(place).site;
            return place;
        }
        let chunk = match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_BLOCKS => chunk,
            _ => {
                self.chunks.push(Vec::with_capacity(CHUNK_BLOCKS));
                return self.reserve();
            }
        };
        chunk.push(VACANT);
        let in_chunk = chunk.len() - 1;
        ((self.chunks.len() - 1) * CHUNK_BLOCKS + in_chunk) as u32
    }

    #[inline]
    pub(super) fn put(&mut self, place: u32, address_avma: u64, block: &LiveBlock) {
        let mut ordinal = block.ordinal & ORDINAL_MASK;
        if block.interval_bytes != 0 {
            let sample = Sample { weight: block.weight, interval_bytes: block.interval_bytes };
            self.samples.insert(place, sample);
            ordinal |= SAMPLED;
        }
        let size_bytes = match u32::try_from(block.size_bytes) {
            Ok(bytes) if bytes != LARGE => bytes,
            _ => {
                self.large_bytes.insert(place, block.size_bytes);
                LARGE
            }
        };
        if let Some(probe) = block.other_probe {
            self.other_probes.insert(place, probe);
        }
        *self.slot_mut(place) = Slot {
            address_avma,
            allocated_ns: block.allocated_ns,
            chain_allocated_ns: block.chain_allocated_ns,
            size_bytes,
            site: block.site,
            thread: block.thread,
            ordinal,
        };
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> LiveBlock {
        let slot = self.slot(place);
        let size_bytes = match slot.size_bytes {
            LARGE => self.large_bytes.get(&place).copied().unwrap_or(LARGE.into()),
            bytes => bytes.into(),
        };
        let sample = match slot.ordinal & SAMPLED {
            0 => None,
            _ => self.samples.get(&place),
        };
        LiveBlock {
            size_bytes,
            allocated_ns: slot.allocated_ns,
            chain_allocated_ns: slot.chain_allocated_ns,
            site: slot.site,
            thread: slot.thread,
            weight: sample.map_or(Weight::one(size_bytes), |sample| sample.weight),
            interval_bytes: sample.map_or(0, |sample| sample.interval_bytes),
            // Mostly there are none, and then nothing is searched.
            other_probe: self.other_probes.get(&place).copied(),
            ordinal: slot.ordinal & ORDINAL_MASK,
        }
    }

    /// Takes a block out, for another to be put there.
    #[inline]
    pub(super) fn take(&mut self, place: u32) -> LiveBlock {
        let block = self.get(place);
        if block.interval_bytes != 0 {
            self.samples.remove(&place);
        }
        if block.size_bytes >= LARGE.into() {
            self.large_bytes.remove(&place);
        }
        if block.other_probe.is_some() {
            self.other_probes.remove(&place);
        }
        block
    }

    /// Makes a place vacant whose block was taken out.
    #[inline]
    pub(super) fn release(&mut self, place: u32) {
        let next = std::mem::replace(&mut self.vacant, place);
        self.slot_mut(place).site = next;
    }

    /// The sampled ones.
    pub(super) fn sampled(&self) -> impl Iterator<Item = LiveBlock> {
        self.samples.keys().map(|place| self.get(*place))
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BLOCKS * size_of::<Slot>()
            + self.large_bytes.allocation_size()
            + self.samples.allocation_size()
            + self.other_probes.allocation_size()
    }
}

/// As the tracker counts allocations.
pub(super) const fn ordinal_of(allocations: u64) -> u32 {
    allocations as u32 & ORDINAL_MASK
}
