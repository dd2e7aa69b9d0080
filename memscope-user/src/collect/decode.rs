use std::sync::Arc;

use memscope_common::record::{
    self, AllocatorCall, BEGUN_BY_EXEC, BEGUN_BY_FORK, COPIED_PLACES, COPY_PART_BYTES, CodeChanged,
    CopiedParts, Header, KIND_ALLOCATION, KIND_ALLOCATOR_CALL, KIND_CODE_CHANGED, KIND_EXEC,
    KIND_FREE, KIND_LOSS, KIND_MAPPING_CHANGE, KIND_MASK, KIND_PAGE_FAULT, KIND_PROCESS_BEGIN,
    KIND_PROCESS_EXIT, KIND_REALLOCATION_BEGIN, KIND_REALLOCATION_END, KIND_SMALL_ALLOCATION,
    KIND_SMALL_FREE, KIND_SMALL_FREE_INTERNAL, KIND_STACK, KIND_STACK_COPY, KIND_THREAD_EXIT,
    KIND_THREAD_NUMBER, Loss, MAX_COPY_PARTS, MAX_FRAMES, MAX_SMALL_AVMA, MAX_THREAD_NUMBER,
    MappingChange, PART_UNREADABLE, PageFault, ProcessBegin, ProcessExec, ProcessExit,
    ReallocationBegin, ReallocationEnd, SMALL_FREE_ALLOCATED_SINCE, SmallAllocation, SmallFree,
    StackCopy, StackHeader, ThreadExit, ThreadNumber, copied_place,
};
use zerocopy::FromBytes;

/// Which image of which target a record speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfImage {
    /// Index of the target.
    pub target: u16,
    /// How many times it had replaced its image.
    pub image: u16,
}

impl OfImage {
    pub(super) fn of(header: &Header) -> Self {
        Self { target: header.target, image: header.image }
    }
}

/// A block began, or a call failed (address 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Whose.
    pub of: OfImage,
    /// By which function.
    pub probe: u16,
    /// By which thread.
    pub thread: u32,
    /// When the call returned.
    pub time_ns: u64,
    /// What it returned.
    pub address_avma: u64,
    /// What was asked for.
    pub size_bytes: u64,
    /// Mean distance of samples when it was drawn; 0 if every block is recorded.
    pub interval_bytes: u64,
    /// Number of the stack, 0 if it is lost.
    pub stack: u32,
}

/// A block is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Whose.
    pub of: OfImage,
    /// By which function.
    pub probe: u16,
    /// By which thread.
    pub thread: u32,
    /// When the call was entered.
    pub time_ns: u64,
    /// Which block.
    pub address_avma: u64,
    /// Whether the allocator's module itself called.
    pub is_internal: bool,
    /// Whether the thread has allocated blocks that were not drawn since the last one that was.
    pub allocated_since: bool,
}

/// A record of the kernel side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A block began, or a call failed.
    Allocation(Allocation),
    /// A block is about to end.
    Free(Free),
    /// A reallocation was entered.
    ReallocationBegin(ReallocationBegin),
    /// A reallocation returned.
    ReallocationEnd(Box<ReallocationEnd>),
    /// Frames of a stack.
    Stack(Box<StackFrames>),
    /// A part of a stack, to be walked here.
    StackCopy(Box<CopiedStack>),
    /// Records are missing here.
    Loss(Loss),
    /// The kernel side has begun to follow a process by itself.
    ProcessBegin(ProcessBegin),
    /// A target replaced its image.
    Exec(ProcessExec),
    /// A target has ended.
    ProcessExit(ProcessExit),
    /// A thread ended.
    ThreadExit(ThreadExit),
    /// Libraries were mapped or unmapped.
    CodeChanged(CodeChanged),
    /// A page fault was handled.
    PageFault(PageFault),
    /// What a process has mapped has changed.
    MappingChange(MappingChange),
    /// A function of one allocator has called one of another.
    AllocatorCall(AllocatorCall),
}

/// A stack with its frames, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackFrames {
    /// Identity and outcome.
    pub header: StackHeader,
    /// Return addresses, as many as the header says.
    pub frames_avma: Vec<u64>,
}

/// A part of a stack's memory, and the registers to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedStack {
    /// Registers and identity.
    pub copy: StackCopy,
    /// What lay from its `start_avma` on, as many bytes as it says, in parts of
    /// [`COPY_PART_BYTES`]. Those that are not known are empty.
    pub parts: Vec<Arc<[u8]>>,
}

impl Record {
    /// When it was made.
    #[must_use]
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Allocation(record) => record.time_ns,
            Self::Free(record) => record.time_ns,
            Self::ReallocationBegin(record) => record.header.time_ns,
            Self::ReallocationEnd(record) => record.header.time_ns,
            Self::Stack(record) => record.header.header.time_ns,
            Self::StackCopy(record) => record.copy.header.time_ns,
            Self::Loss(record) => record.header.time_ns,
            Self::ProcessBegin(record) => record.header.time_ns,
            Self::Exec(record) => record.header.time_ns,
            Self::ProcessExit(record) => record.header.time_ns,
            Self::ThreadExit(record) => record.header.time_ns,
            Self::CodeChanged(record) => record.header.time_ns,
            Self::PageFault(record) => record.header.time_ns,
            Self::MappingChange(record) => record.header.time_ns,
            Self::AllocatorCall(record) => record.header.time_ns,
        }
    }
}

/// Whether a process begins as the copy of another one.
#[must_use]
pub const fn is_fork(begin: &ProcessBegin) -> bool {
    begin.begun_by == BEGUN_BY_FORK
}

/// The target that has begun a process, if one has.
#[must_use]
pub fn parent_of(begin: &ProcessBegin) -> Option<u16> {
    (begin.begun_by != BEGUN_BY_EXEC).then_some(begin.parent_target)
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing at all.
    #[error("a record without bytes")]
    Empty,
    /// A kind that this collector does not know.
    #[error("a record of unknown kind {kind}")]
    UnknownKind {
        /// What it says.
        kind: u8,
    },
    /// It speaks of a thread whose number was not told.
    #[error("a record of thread number {number}, which stands for no thread")]
    UnknownThread {
        /// The number.
        number: u64,
    },
    /// Too long or too short for its kind.
    #[error("a record of kind {kind} with {bytes} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
}

/// A thread that has a number.
#[derive(Clone, Copy, Debug)]
struct NumberedThread {
    of: OfImage,
    thread: u32,
}

/// Makes records of bytes. It knows the numbers of threads, which are told before they are
/// used and never given twice: at most 65,536.
#[derive(Debug, Default)]
pub struct Decoder {
    threads: Vec<Option<NumberedThread>>,
    parts: KnownParts,
}

/// Parts of copied stacks, by where they lay, as the eBPF side remembers them as well. A stack
/// is copied again and again while the functions at its outer end stay as they are. Fresh memory
/// for what is the same would cost the draining thread more than anything else it does: a page
/// fault for each page, while the ring fills.
#[derive(Debug, Default)]
struct KnownParts(Vec<KnownPart>);

#[derive(Clone, Debug, Default)]
struct KnownPart {
    hash: u64,
    bytes: Arc<[u8]>,
}

impl KnownParts {
    fn place(&mut self, target: u16, part_avma: u64) -> Option<&mut KnownPart> {
        if self.0.is_empty() {
            self.0.resize(COPIED_PLACES, KnownPart::default());
        }
        self.0.get_mut(copied_place(target, part_avma))
    }

    /// A part that was sent.
    fn learn(&mut self, target: u16, part_avma: u64, hash: u64, bytes: &[u8]) -> Arc<[u8]> {
        let Some(known) = self.place(target, part_avma) else { return Arc::from(bytes) };
        if *known.bytes != *bytes {
            known.bytes = Arc::from(bytes);
        }
        known.hash = hash;
        Arc::clone(&known.bytes)
    }

    /// A part that was not sent. Without bytes if it could not be read, or is not known: another CPU has
    /// sent it, or another part for its place, at the same moment.
    fn recall(&mut self, target: u16, part_avma: u64, hash: u64) -> Arc<[u8]> {
        match self.place(target, part_avma) {
            Some(known) if known.hash == hash && hash != PART_UNREADABLE => {
                Arc::clone(&known.bytes)
            }
            _ => Arc::default(),
        }
    }
}

impl Decoder {
    /// Makes a record of the bytes of one with a header; none of those that only prepare others.
    ///
    /// # Errors
    ///
    /// If they are no record.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Option<Record>, DecodeError> {
        match bytes.first() {
            None => Err(DecodeError::Empty),
            Some(&KIND_THREAD_NUMBER) => self.thread_number(bytes).map(|()| None),
            Some(&KIND_STACK_COPY) => self.stack_copy(bytes).map(Some),
            Some(kind) => large(*kind, bytes).map(Some),
        }
    }

    /// Makes a record of the words of a small one.
    ///
    /// # Errors
    ///
    /// If they are no record.
    #[inline]
    pub fn decode_small(&self, words: [u64; 3]) -> Result<Record, DecodeError> {
        let [kind_and_time, address_and_thread, third] = words;
        match kind_and_time as u8 & KIND_MASK {
            KIND_SMALL_ALLOCATION => self.small_allocation(&SmallAllocation {
                kind_and_time,
                address_and_thread,
                stack_size_probe: third,
            }),
            kind @ (KIND_SMALL_FREE | KIND_SMALL_FREE_INTERNAL) => self.small_free(
                &SmallFree { kind_and_time, address_and_thread, probe_and_flags: third },
                kind == KIND_SMALL_FREE_INTERNAL,
            ),
            kind => Err(DecodeError::UnknownKind { kind }),
        }
    }

    #[inline]
    fn small_allocation(&self, record: &SmallAllocation) -> Result<Record, DecodeError> {
        let NumberedThread { of, thread } = self.thread(record.address_and_thread)?;
        Ok(Record::Allocation(Allocation {
            of,
            probe: record.probe(),
            thread,
            time_ns: record.kind_and_time >> 4,
            address_avma: record.address_and_thread & (MAX_SMALL_AVMA - 1),
            size_bytes: record.size_bytes(),
            interval_bytes: 0,
            stack: record.stack(),
        }))
    }

    #[inline]
    fn small_free(&self, record: &SmallFree, is_internal: bool) -> Result<Record, DecodeError> {
        let NumberedThread { of, thread } = self.thread(record.address_and_thread)?;
        Ok(Record::Free(Free {
            of,
            probe: record.probe_and_flags as u16,
            thread,
            time_ns: record.kind_and_time >> 4,
            address_avma: record.address_and_thread & (MAX_SMALL_AVMA - 1),
            is_internal,
            allocated_since: record.probe_and_flags & SMALL_FREE_ALLOCATED_SINCE != 0,
        }))
    }

    fn thread(&self, address_and_thread: u64) -> Result<NumberedThread, DecodeError> {
        let number = address_and_thread / MAX_SMALL_AVMA;
        self.threads
            .get(number as usize)
            .copied()
            .flatten()
            .ok_or(DecodeError::UnknownThread { number })
    }

    fn stack_copy(&mut self, bytes: &[u8]) -> Result<Record, DecodeError> {
        stack_copy(bytes, &mut self.parts)
            .map(|copy| Record::StackCopy(Box::new(copy)))
            .ok_or(DecodeError::Length { kind: KIND_STACK_COPY, bytes: bytes.len() })
    }

    fn thread_number(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let record: ThreadNumber = whole(bytes)
            .ok_or(DecodeError::Length { kind: KIND_THREAD_NUMBER, bytes: bytes.len() })?;
        let number = u64::from(record.number);
        if number >= MAX_THREAD_NUMBER {
            return Err(DecodeError::UnknownThread { number });
        }
        if self.threads.len() <= number as usize {
            self.threads.resize(number as usize + 1, None);
        }
        if let Some(place) = self.threads.get_mut(number as usize) {
            *place =
                Some(NumberedThread { of: OfImage::of(&record.header), thread: record.thread });
        }
        Ok(())
    }
}

/// A record with a header.
fn large(kind: u8, bytes: &[u8]) -> Result<Record, DecodeError> {
    match kind {
        KIND_ALLOCATION => whole(bytes).map(|record: record::Allocation| {
            Record::Allocation(Allocation {
                of: OfImage::of(&record.header),
                probe: record.header.probe,
                thread: record.thread,
                time_ns: record.header.time_ns,
                address_avma: record.address_avma,
                size_bytes: record.size_bytes,
                interval_bytes: record.interval_bytes,
                stack: record.stack,
            })
        }),
        KIND_FREE => whole(bytes).map(|record: record::Free| {
            Record::Free(Free {
                of: OfImage::of(&record.header),
                probe: record.header.probe,
                thread: record.thread,
                time_ns: record.header.time_ns,
                address_avma: record.address_avma,
                is_internal: record.is_internal != 0,
                allocated_since: record.allocated_since != 0,
            })
        }),
        KIND_REALLOCATION_BEGIN => whole(bytes).map(Record::ReallocationBegin),
        KIND_REALLOCATION_END => whole(bytes).map(|end| Record::ReallocationEnd(Box::new(end))),
        KIND_STACK => stack(bytes).map(|stack| Record::Stack(Box::new(stack))),
        KIND_LOSS => whole(bytes).map(Record::Loss),
        KIND_PROCESS_BEGIN => whole(bytes).map(Record::ProcessBegin),
        KIND_EXEC => whole(bytes).map(Record::Exec),
        KIND_PROCESS_EXIT => whole(bytes).map(Record::ProcessExit),
        KIND_THREAD_EXIT => whole(bytes).map(Record::ThreadExit),
        KIND_CODE_CHANGED => whole(bytes).map(Record::CodeChanged),
        KIND_PAGE_FAULT => whole(bytes).map(Record::PageFault),
        KIND_MAPPING_CHANGE => whole(bytes).map(Record::MappingChange),
        KIND_ALLOCATOR_CALL => whole(bytes).map(Record::AllocatorCall),
        kind => return Err(DecodeError::UnknownKind { kind }),
    }
    .ok_or(DecodeError::Length { kind, bytes: bytes.len() })
}

/// The ring rounds each record up to eight bytes but tells its true length, so it
/// must be met exactly.
fn whole<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_bytes(bytes).ok()
}

fn stack(bytes: &[u8]) -> Option<StackFrames> {
    let (header, frames) = StackHeader::read_from_prefix(bytes).ok()?;
    let count = header.frame_count as usize;
    if count > MAX_FRAMES || frames.len() != count * size_of::<u64>() {
        return None;
    }
    let frames_avma = frames
        .chunks_exact(size_of::<u64>())
        .map(|frame| u64::read_from_bytes(frame).ok())
        .collect::<Option<Vec<u64>>>()?;
    Some(StackFrames { header, frames_avma })
}

fn stack_copy(bytes: &[u8], known: &mut KnownParts) -> Option<CopiedStack> {
    let (copy, bytes) = StackCopy::read_from_prefix(bytes).ok()?;
    let (CopiedParts { sent, hashes }, bytes) = CopiedParts::read_from_prefix(bytes).ok()?;
    let (copied_bytes, target) = (copy.byte_count as usize, copy.header.target);
    let part_count = copied_bytes / COPY_PART_BYTES;
    if !copied_bytes.is_multiple_of(COPY_PART_BYTES)
        || part_count > MAX_COPY_PARTS
        || sent >> part_count != 0
        || bytes.len() != sent.count_ones() as usize * COPY_PART_BYTES
    {
        return None;
    }
    let mut sent_parts = bytes.chunks_exact(COPY_PART_BYTES);
    let parts = hashes.iter().take(part_count).zip(0..).map(|(hash, number)| {
        let avma = copy.part_avma(number);
        if sent & 1 << number == 0 {
            return Some(known.recall(target, avma, *hash));
        }
        sent_parts.next().map(|part| known.learn(target, avma, *hash, part))
    });
    let parts = parts.collect::<Option<Vec<_>>>()?;
    Some(CopiedStack { copy, parts })
}

#[cfg(test)]
mod tests;
