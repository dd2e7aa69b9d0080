//! What the eBPF side does while the collector cannot keep up: counts by stack, or stops the
//! targets.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use memmap2::{MmapOptions, MmapRaw};
use memscope_common::control::{MAX_TARGETS, Overflow, OverflowKey};
use rustc_hash::FxHashMap;

use super::{Kernel, KernelError, plain::Plain, take_map, targets::Given};

/// Allocations of one stack for which there was no room since they were last asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverflowCount {
    /// Which target.
    pub target: u16,
    /// Which image of it.
    pub image: u16,
    /// Number of the stack.
    pub stack: u32,
    /// Blocks.
    pub allocations: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}

/// The map of such counts, and what was told of it.
pub(super) struct Overflows {
    map: HashMap<MapData, Plain<OverflowKey>, Plain<Overflow>>,
    told: FxHashMap<OverflowKey, Overflow>,
}

impl Overflows {
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, KernelError> {
        Ok(Self { map: take_map(ebpf, "OVERFLOWS")?, told: FxHashMap::default() })
    }

    fn take(&mut self) -> Result<Vec<OverflowCount>, KernelError> {
        let mut counts = Vec::new();
        for entry in self.map.iter() {
            let (Plain(key), Plain(now)) = match entry {
                Ok(entry) => entry,
                Err(MapError::KeyNotFound) => continue,
                Err(source) => return Err(KernelError::Map { map: "OVERFLOWS", source }),
            };
            let told = self.told.insert(key, now).unwrap_or_default();
            let allocations = now.allocations.saturating_sub(told.allocations);
            if allocations > 0 {
                counts.push(OverflowCount {
                    target: key.target,
                    image: key.image,
                    stack: key.stack,
                    allocations,
                    bytes: now.bytes.wrapping_sub(told.bytes),
                });
            }
        }
        Ok(counts)
    }
}

impl Kernel {
    /// Allocations for which there was no room, since this was last asked.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn take_overflows(&mut self) -> Result<Vec<OverflowCount>, KernelError> {
        self.overflows.take()
    }

    /// Which targets are stopped; none if none ever is.
    ///
    /// # Errors
    ///
    /// If it was taken before, or the map's memory cannot be shared.
    pub fn take_pauses(&mut self) -> Result<Option<Pauses>, KernelError> {
        if !self.pauses {
            return Ok(None);
        }
        let missing = KernelError::Missing { what: "map PAUSED" };
        let map = self.ebpf.take_map("PAUSED").ok_or(missing)?;
        let Map::Array(data) = &map else {
            return Err(KernelError::Missing { what: "array PAUSED" });
        };
        let memory = MmapOptions::new()
            .len(MAX_TARGETS as usize * size_of::<u64>())
            .map_raw(data.fd().as_fd().as_raw_fd())
            .map_err(|source| KernelError::MapMemory { map: "PAUSED", source })?;
        let given = self.targets.given().clone();
        Ok(Some(Pauses { memory, given, _map: map }))
    }
}

/// Targets that the eBPF side has stopped.
pub struct Pauses {
    memory: MmapRaw,
    given: Given,
    /// Keeps the memory's map.
    _map: Map,
}

impl Pauses {
    /// Gives each target that was stopped since this was last asked.
    pub fn take(&self, mut stopped: impl FnMut(u16)) {
        for target in 0..self.given.count() {
            // SAFETY: the word is one of those that were mapped, which live as long as `self`.
            let word = unsafe { &*self.memory.as_ptr().cast::<AtomicU64>().add(target as usize) };
            if word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::AcqRel) != 0 {
                stopped(target as u16);
            }
        }
    }
}
