//! The reading end of the ring buffer (kernel/bpf/ringbuf.c).
//!
//! aya's reader tells the kernel of every single record that it has been read; this one tells
//! it once for many, which is what a reader of millions of records a second can afford.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use aya::maps::{Array, Map, MapData, MapError};
use memmap2::{Mmap, MmapOptions, MmapRaw};
use memscope_common::control::Consumer;
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{KernelError, plain::Plain};

/// Bytes before each record: its length with two flags, and where its page is.
const HEADER_BYTES: usize = 8;
/// `BPF_RINGBUF_BUSY_BIT`: reserved and not yet written.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: given up by who reserved it.
const DISCARDED: u32 = 1 << 30;

/// Why waiting for records failed.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// poll failed.
    #[error("cannot wait for records")]
    Wait(#[source] io::Error),
    /// The kernel side could not be told that the reader sleeps.
    #[error("cannot tell the eBPF side that the reader sleeps")]
    Consumer(#[source] MapError),
}

/// The memory that is shared with the kernel.
struct RingMemory {
    /// One page, of which the first word is the position up to which records have been read.
    consumer: MmapRaw,
    /// A page, of which the first word is the position up to which records have been reserved;
    /// then the records, and once more the same, so that none is cut at the end.
    producer: Mmap,
    page_bytes: usize,
    ring_bytes: usize,
    /// Up to where records have been read.
    read: u64,
    /// Up to where the kernel knows that they have been.
    told: u64,
}

impl RingMemory {
    fn map(ring: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<Self> {
        let page_bytes = super::load::page_bytes() as usize;
        let ring_bytes = ring_bytes as usize;
        let descriptor = ring.as_raw_fd();
        let consumer = MmapOptions::new().len(page_bytes).map_raw(descriptor)?;
        // SAFETY: what the kernel changes in it is read with atomic loads, or after such a
        // load has said that it will not change any more.
        let producer = unsafe {
            MmapOptions::new()
                .offset(page_bytes as u64)
                .len(page_bytes + 2 * ring_bytes)
                .map(descriptor)
        }?;
        let mut memory = Self { consumer, producer, page_bytes, ring_bytes, read: 0, told: 0 };
        memory.read = memory.consumer_position().load(Ordering::Acquire);
        memory.told = memory.read;
        Ok(memory)
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: the mapping is a page, begins at one, and lives as long as `self`.
        unsafe { &*self.consumer.as_ptr().cast::<AtomicU64>() }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.producer.as_ptr().cast::<AtomicU64>() }
    }

    /// The length and the flags of the record at the reading position; none if there is none.
    fn next_header(&self) -> Option<u32> {
        if self.read == self.producer_position().load(Ordering::Acquire) {
            return None;
        }
        let offset = self.page_bytes + self.offset();
        let header = self.producer.get(offset..offset.checked_add(HEADER_BYTES)?)?;
        // SAFETY: records begin at multiples of eight bytes, and the word lies in the mapping.
        let header = unsafe { &*header.as_ptr().cast::<AtomicU32>() }.load(Ordering::Acquire);
        (header & BUSY == 0).then_some(header)
    }

    fn offset(&self) -> usize {
        self.read as usize & (self.ring_bytes - 1)
    }

    /// Gives the next record, if there is one that is written; how many bytes it has.
    fn take(&mut self, record: &mut impl FnMut(&[u8])) -> Option<Taken> {
        let header = self.next_header()?;
        let length = (header & !DISCARDED) as usize;
        let begin = self.page_bytes + self.offset() + HEADER_BYTES;
        let taken = if header & DISCARDED == 0 {
            record(self.producer.get(begin..begin.checked_add(length)?)?);
            Taken::Record(length)
        } else {
            Taken::Nothing
        };
        self.read += (HEADER_BYTES + length).next_multiple_of(8) as u64;
        Some(taken)
    }

    /// Gives room back to the kernel.
    fn tell(&mut self) {
        if self.told != self.read {
            // Paired with the acquiring load in `__bpf_ringbuf_reserve`.
            self.consumer_position().store(self.read, Ordering::Release);
            self.told = self.read;
        }
    }
}

enum Taken {
    Record(usize),
    Nothing,
}

/// Reading end of the ring buffer.
pub struct EventRing {
    memory: RingMemory,
    wakers: Epoll,
    /// Keeps the ring.
    _ring: Map,
    consumer: Array<MapData, Plain<Consumer>>,
    ring_bytes: u32,
}

impl EventRing {
    pub(super) fn new(
        ring: Map,
        consumer: Array<MapData, Plain<Consumer>>,
        ring_bytes: u32,
    ) -> Result<Self, KernelError> {
        let data = data_of(&ring).ok_or(KernelError::Missing { what: "ring EVENTS" })?;
        let memory = RingMemory::map(data.fd().as_fd(), ring_bytes)
            .map_err(|source| KernelError::MapMemory { map: "EVENTS", source })?;
        let wakers = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .and_then(|wakers| wakers.add(data.fd().as_fd(), woken()).map(|()| wakers))
            .map_err(|error| KernelError::MapMemory { map: "EVENTS", source: error.into() })?;
        Ok(Self { memory, wakers, _ring: ring, consumer, ring_bytes })
    }

    /// The reader is woken early, because copies of stacks fill the ring quickly; they may not
    /// take more than half of it.
    fn state(&self, waiting: bool) -> Consumer {
        Consumer {
            waiting: waiting.into(),
            watermark_bytes: self.ring_bytes / 8,
            copy_limit_bytes: self.ring_bytes / 2,
            padding: 0,
        }
    }

    /// Gives at most `limit` waiting records, each as its bytes, and then room for as many
    /// back to the kernel; how many there were.
    pub fn drain(
        &mut self,
        limit: usize,
        limit_bytes: usize,
        mut record: impl FnMut(&[u8]),
    ) -> usize {
        let (mut count, mut bytes) = (0, 0_usize);
        while count < limit && bytes < limit_bytes {
            match self.memory.take(&mut record) {
                Some(Taken::Record(length)) => {
                    bytes = bytes.saturating_add(length);
                    count += 1;
                }
                Some(Taken::Nothing) => {}
                None => break,
            }
        }
        self.memory.tell();
        count
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
    /// ring fills quickly.
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

/// By the edge: a ring is always ready that has a record in it (`ringbuf_map_poll_kern`), and
/// the reader would never sleep.
fn woken() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)
}

fn data_of(ring: &Map) -> Option<&MapData> {
    match ring {
        Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
