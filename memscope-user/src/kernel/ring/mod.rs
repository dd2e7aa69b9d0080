//! The reading end of what the eBPF side writes: the slots of each CPU and the ring buffer,
//! brought into one order.
//!
//! What caused another record was made before it, and both have read a clock that all CPUs
//! share; so the order of times is a valid order. A record can be written long after its clock
//! was read, if its task was interrupted in between. Its consequences come later still. So a
//! round first reads the clock, then looks everywhere, and gives only what is older: what has
//! become visible behind the reader's back cannot have caused any of that.

mod buffer;
mod size;
mod slots;

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use aya::maps::{Array, Map, MapData, MapError};
use memscope_common::{control::Consumer, record::MAX_COPY_BYTES};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::{ClockId, clock_gettime},
};

use self::{buffer::RingBuffer, slots::Slots};
use super::{KernelError, plain::Plain};

pub use size::RingSize;
pub(super) use slots::{possible_cpus, slots_log2};

/// By how much the clock of one CPU can seem to be behind that of another
/// (`ktime_get_mono_fast_ns` in kernel/time/timekeeping.c, while the clock is adjusted), and
/// more.
const CLOCK_DOUBT_NS: u64 = 10_000;

/// Why waiting for records failed.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The operating system does not let the reader sleep.
    #[error("cannot wait for records")]
    Wait(#[source] io::Error),
    /// The kernel side could not be told that the reader sleeps.
    #[error("cannot tell the eBPF side that the reader sleeps")]
    Consumer(#[source] MapError),
}

/// A record as it lies in memory that is shared with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawRecord<'a> {
    /// Of a slot.
    Small([u64; 3]),
    /// Of the ring buffer.
    Large(&'a [u8]),
}

/// What a source has next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A record of this time.
    At(u64),
    /// One that is not written yet.
    Unwritten,
    Nothing,
}

/// The maps that are read.
pub(super) struct RingMaps {
    pub(super) buffer: Map,
    pub(super) buffer_bytes: u32,
    /// Of the slots of all CPUs together.
    pub(super) slot_bytes: u32,
    pub(super) slots: Map,
    pub(super) cpu_rings: Map,
    pub(super) consumer: Array<MapData, Plain<Consumer>>,
}

/// Where records wait.
struct Sources {
    buffer: RingBuffer,
    slots: Slots,
}

/// Reading end of all rings.
pub struct EventRing {
    sources: Sources,
    wakers: Epoll,
    consumer: Array<MapData, Plain<Consumer>>,
    /// Keep the memory's maps.
    _maps: [Map; 3],
}

impl EventRing {
    pub(super) fn new(maps: RingMaps) -> Result<Self, KernelError> {
        let RingMaps { buffer: buffer_map, buffer_bytes, slot_bytes, slots, cpu_rings, consumer } =
            maps;
        let memory_error = |map| move |source| KernelError::MapMemory { map, source };
        let buffer_fd = data_of(&buffer_map)?.fd().as_fd();
        let buffer = RingBuffer::map(buffer_fd, buffer_bytes).map_err(memory_error("EVENTS"))?;
        let wakers = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .and_then(|wakers| wakers.add(buffer_fd, woken()).map(|()| wakers))
            .map_err(|error| memory_error("EVENTS")(error.into()))?;
        let cpus = possible_cpus().map_err(KernelError::Cpus)?;
        let slots_memory = Slots::map(
            data_of(&slots)?.fd().as_fd(),
            data_of(&cpu_rings)?.fd().as_fd(),
            cpus,
            slots_log2(slot_bytes, cpus),
        )
        .map_err(memory_error("SLOTS"))?;
        Ok(Self {
            sources: Sources { buffer, slots: slots_memory },
            wakers,
            consumer,
            _maps: [buffer_map, slots, cpu_rings],
        })
    }

    /// The reader is woken early, because copies of stacks fill the buffer quickly. They may take
    /// most of it, as most records have slots; none is made where a few would fill it.
    fn state(&self, waiting: bool) -> Consumer {
        let buffer_bytes = self.sources.buffer.bytes();
        Consumer {
            waiting: waiting.into(),
            watermark_bytes: buffer_bytes / 8,
            copy_limit_bytes: if buffer_bytes as usize >= 8 * MAX_COPY_BYTES {
                buffer_bytes / 8 * 7
            } else {
                0
            },
            watermark_slots: self.sources.slots.count_per_cpu() / 8,
        }
    }

    /// How many slots the eBPF side has taken.
    #[must_use]
    pub fn slots_taken(&self) -> u64 {
        self.sources.slots.taken()
    }

    /// How many slots were lost because another record took them before they were read, which
    /// [`memscope_common::control::SPARE_SLOTS`] are there to prevent.
    #[must_use]
    pub fn overwritten(&self) -> u64 {
        self.sources.slots.overwritten()
    }

    /// Whether nothing waits, not even what is not written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.buffer.is_empty() && self.sources.slots.is_empty()
    }

    /// Whether a record of the ring buffer waits: one that was too young to be given, and can be
    /// one that has to be acted on soon.
    #[must_use]
    pub fn keeps_back(&self) -> bool {
        !self.sources.buffer.is_empty()
    }

    /// Whether there is room for much: less than a quarter is taken anywhere, by what waits or is
    /// not written yet.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let Sources { buffer, slots } = &self.sources;
        4 * buffer.waiting_bytes() < buffer.bytes().into()
            && 4 * slots.most_waiting() < slots.count_per_cpu().into()
    }

    /// Gives at most `limit` waiting records, in order, and then room for as many back to the
    /// kernel; how many there were. Those of the last moment are left for the next time.
    pub fn drain(
        &mut self,
        limit: usize,
        limit_bytes: usize,
        record: impl FnMut(RawRecord<'_>),
    ) -> usize {
        let until_ns = monotonic_ns().saturating_sub(CLOCK_DOUBT_NS);
        self.sources.drain(until_ns, limit, limit_bytes, record)
    }

    /// From now on these descriptors wake the reader as well.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn also_wake_by<'a>(
        &mut self,
        others: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<(), RingError> {
        for other in others {
            self.wakers.add(other, woken()).map_err(|error| RingError::Wait(error.into()))?;
        }
        Ok(())
    }

    /// Sleeps until much has come together, here or behind one of the other descriptors, at most
    /// for the given time. Waking up is costly for the target, so it happens by time unless the
    /// rings fill quickly.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn wait(&mut self, at_most: Duration) -> Result<(), RingError> {
        self.consumer.set(0, Plain(self.state(true)), 0).map_err(RingError::Consumer)?;
        let timeout = EpollTimeout::try_from(at_most).unwrap_or(EpollTimeout::MAX);
        match self.wakers.wait(&mut [EpollEvent::empty()], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(RingError::Wait(error.into())),
        }
    }
}

impl Sources {
    /// Gives records in order, none later than `until_ns`, a moment from before the call.
    fn drain(
        &mut self,
        mut until_ns: u64,
        limit: usize,
        limit_bytes: usize,
        mut record: impl FnMut(RawRecord<'_>),
    ) -> usize {
        let (mut count, mut bytes) = (0, 0_usize);
        // Before the buffer: what a small record refers to was in the buffer before it was
        // in its slot.
        self.slots.look();
        while count < limit && bytes < limit_bytes {
            let buffered = self.buffer.next();
            let slots = self.slots.earliest();
            for (next, last_ns) in
                [(buffered, self.buffer.last_ns()), (slots.next, slots.unwritten_after_ns)]
            {
                if next == Next::Unwritten {
                    until_ns = until_ns.min(last_ns);
                }
            }
            // Of equal times the buffer's comes first: frames come before what refers to them.
            match (buffered, slots.next) {
                (Next::At(time_ns), _) if time_ns <= until_ns && time_ns <= slots.time_ns() => {
                    let Some(length) = self.buffer.take(|bytes| record(RawRecord::Large(bytes)))
                    else {
                        break;
                    };
                    bytes = bytes.saturating_add(length);
                    count += 1;
                }
                (_, Next::At(time_ns)) if time_ns <= until_ns => {
                    let bound_ns = match buffered {
                        Next::At(buffered_ns) => until_ns.min(buffered_ns.saturating_sub(1)),
                        _ => until_ns,
                    };
                    let small = |words| record(RawRecord::Small(words));
                    let taken = self.slots.take(slots, bound_ns, limit - count, small);
                    if taken == 0 {
                        break;
                    }
                    count += taken;
                }
                _ => break,
            }
        }
        self.buffer.tell();
        self.slots.tell();
        count
    }
}

/// By the edge: a ring buffer is always ready that has a record in it
/// (`ringbuf_map_poll_kern`), and the reader would never sleep.
fn woken() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)
}

/// The clock of all records.
fn monotonic_ns() -> u64 {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
    })
}

fn data_of(map: &Map) -> Result<&MapData, KernelError> {
    match map {
        Map::RingBuf(data) | Map::Array(data) => Ok(data),
        _ => Err(KernelError::Missing { what: "map of the kind that is read" }),
    }
}

#[cfg(test)]
mod tests;
