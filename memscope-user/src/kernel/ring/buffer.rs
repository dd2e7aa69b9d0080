//! The kernel's ring buffer (kernel/bpf/ringbuf.c).
//!
//! aya's reader tells the kernel of every single record that it has been read; this one tells
//! it once for many, and lets a record be looked at before it is taken.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use super::Next;

/// Bytes before each record: its length with two flags, and where its page is.
const HEADER_BYTES: usize = 8;
/// `BPF_RINGBUF_BUSY_BIT`: reserved and not yet written.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: given up by who reserved it.
const DISCARDED: u32 = 1 << 30;
/// Where a record has its time, see [`memscope_common::record::Header`].
const TIME_OFFSET: usize = 8;

pub(super) struct RingBuffer {
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
    last_ns: u64,
}

impl RingBuffer {
    pub(super) fn map(ring: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<Self> {
        let page_bytes = crate::kernel::load::page_bytes() as usize;
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
        let mut ring =
            Self { consumer, producer, page_bytes, ring_bytes, read: 0, told: 0, last_ns: 0 };
        ring.read = ring.consumer_position().load(Ordering::Acquire);
        ring.told = ring.read;
        Ok(ring)
    }

    pub(super) fn bytes(&self) -> u32 {
        self.ring_bytes as u32
    }

    /// Time of the record taken last.
    pub(super) fn last_ns(&self) -> u64 {
        self.last_ns
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: the mapping is a page, begins at one, and lives as long as `self`.
        unsafe { &*self.consumer.as_ptr().cast::<AtomicU64>() }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.producer.as_ptr().cast::<AtomicU64>() }
    }

    /// Whether there is nothing behind the reading position.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting_bytes() == 0
    }

    pub(super) fn waiting_bytes(&self) -> u64 {
        self.producer_position().load(Ordering::Acquire).wrapping_sub(self.read)
    }

    /// The record at the reading position, those that were given up passed over.
    pub(super) fn next(&mut self) -> Next {
        while !self.is_empty() {
            let Some(header) = self.header() else { return Next::Nothing };
            if header & BUSY != 0 {
                return Next::Unwritten;
            }
            if header & DISCARDED == 0 {
                return Next::At(self.time_ns((header & !DISCARDED) as usize));
            }
            self.advance((header & !DISCARDED) as usize);
        }
        Next::Nothing
    }

    fn begin(&self) -> usize {
        self.page_bytes + (self.read as usize & (self.ring_bytes - 1))
    }

    fn header(&self) -> Option<u32> {
        let word = self.producer.get(self.begin()..)?.get(..size_of::<u32>())?;
        // SAFETY: records begin at multiples of eight bytes, and the word lies in the mapping.
        Some(unsafe { &*word.as_ptr().cast::<AtomicU32>() }.load(Ordering::Acquire))
    }

    fn record(&self, length: usize) -> Option<&[u8]> {
        self.producer.get(self.begin() + HEADER_BYTES..)?.get(..length)
    }

    /// 0 for what is too short to be a record: it is taken at once, to be refused.
    fn time_ns(&self, length: usize) -> u64 {
        let time = self.record(length).and_then(|record| record.get(TIME_OFFSET..)?.first_chunk());
        time.map_or(0, |time| u64::from_ne_bytes(*time))
    }

    fn advance(&mut self, length: usize) {
        self.read += (HEADER_BYTES + length).next_multiple_of(8) as u64;
    }

    /// Gives the record that [`RingBuffer::next`] has found; its length.
    pub(super) fn take(&mut self, record: impl FnOnce(&[u8])) -> Option<usize> {
        let length = (self.header()? & !(BUSY | DISCARDED)) as usize;
        record(self.record(length)?);
        self.last_ns = self.last_ns.max(self.time_ns(length));
        self.advance(length);
        Some(length)
    }

    /// Gives room back to the kernel.
    pub(super) fn tell(&mut self) {
        if self.told != self.read {
            // Paired with the acquiring load in `__bpf_ringbuf_reserve`.
            self.consumer_position().store(self.read, Ordering::Release);
            self.told = self.read;
        }
    }
}
