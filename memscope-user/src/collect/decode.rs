use memscope_common::record::{
    Allocation, CodeChanged, Free, KIND_ALLOCATION, KIND_CODE_CHANGED, KIND_EXEC, KIND_FREE,
    KIND_LOSS, KIND_REALLOCATION_BEGIN, KIND_REALLOCATION_END, KIND_STACK, KIND_STACK_COPY,
    KIND_THREAD_EXIT, Loss, MAX_COPY_BYTES, MAX_FRAMES, ProcessExec, ReallocationBegin,
    ReallocationEnd, StackCopy, StackHeader, ThreadExit,
};
use zerocopy::FromBytes;

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
    ReallocationEnd(ReallocationEnd),
    /// Frames of a stack.
    Stack(StackFrames),
    /// A part of a stack, to be walked here.
    StackCopy(Box<CopiedStack>),
    /// Records are missing here.
    Loss(Loss),
    /// A target replaced its image.
    Exec(ProcessExec),
    /// A thread ended.
    ThreadExit(ThreadExit),
    /// Libraries were mapped or unmapped.
    CodeChanged(CodeChanged),
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
    /// What lay from its `sp_avma` on, as many bytes as it says.
    pub bytes: Vec<u8>,
}

impl Record {
    /// When it was made.
    #[must_use]
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Allocation(record) => record.header.time_ns,
            Self::Free(record) => record.header.time_ns,
            Self::ReallocationBegin(record) => record.header.time_ns,
            Self::ReallocationEnd(record) => record.header.time_ns,
            Self::Stack(record) => record.header.header.time_ns,
            Self::StackCopy(record) => record.copy.header.time_ns,
            Self::Loss(record) => record.header.time_ns,
            Self::Exec(record) => record.header.time_ns,
            Self::ThreadExit(record) => record.header.time_ns,
            Self::CodeChanged(record) => record.header.time_ns,
        }
    }
}

impl Record {
    /// The target whose code has changed, if that is what it says.
    #[must_use]
    pub fn changed_code_of(&self) -> Option<u16> {
        match self {
            Self::CodeChanged(record) => Some(record.header.target),
            Self::Exec(record) => Some(record.header.target),
            _ => None,
        }
    }
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
    /// Too long or too short for its kind.
    #[error("a record of kind {kind} with {bytes} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
}

/// Makes a record of the bytes of one.
///
/// # Errors
///
/// If they are none.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let Some(&kind) = bytes.first() else {
        return Err(DecodeError::Empty);
    };
    let length = DecodeError::Length { kind, bytes: bytes.len() };
    match kind {
        KIND_ALLOCATION => whole(bytes).map(Record::Allocation),
        KIND_FREE => whole(bytes).map(Record::Free),
        KIND_REALLOCATION_BEGIN => whole(bytes).map(Record::ReallocationBegin),
        KIND_REALLOCATION_END => whole(bytes).map(Record::ReallocationEnd),
        KIND_STACK => stack(bytes).map(Record::Stack),
        KIND_STACK_COPY => stack_copy(bytes).map(|copy| Record::StackCopy(Box::new(copy))),
        KIND_LOSS => whole(bytes).map(Record::Loss),
        KIND_EXEC => whole(bytes).map(Record::Exec),
        KIND_THREAD_EXIT => whole(bytes).map(Record::ThreadExit),
        KIND_CODE_CHANGED => whole(bytes).map(Record::CodeChanged),
        kind => return Err(DecodeError::UnknownKind { kind }),
    }
    .ok_or(length)
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

/// A copy always has the length of the longest, because that is how it can be made.
fn stack_copy(bytes: &[u8]) -> Option<CopiedStack> {
    let (copy, bytes) = StackCopy::read_from_prefix(bytes).ok()?;
    if bytes.len() != MAX_COPY_BYTES {
        return None;
    }
    let bytes = bytes.get(..copy.byte_count as usize)?.to_vec();
    Some(CopiedStack { copy, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use memscope_common::record::{Header, OUTCOME_DEPTH_LIMIT};
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    fn header(kind: u8) -> Header {
        Header { kind, padding: 0, probe: 1, image: 0, target: 2, time_ns: 3 }
    }

    #[test]
    fn an_allocation_is_read_back() {
        let record = Allocation {
            header: header(KIND_ALLOCATION),
            address_avma: 0x1000,
            size_bytes: 24,
            stack: 7,
            thread: 9,
            padding: 0,
        };
        assert_eq!(decode(record.as_bytes()), Ok(Record::Allocation(record)));
    }

    #[test]
    fn a_stack_has_as_many_frames_as_it_says() {
        let stack = StackHeader {
            header: header(KIND_STACK),
            stack: 5,
            tables_read_ns: 0,
            outcome: OUTCOME_DEPTH_LIMIT,
            flags: 0,
            frame_count: 2,
        };
        let mut bytes = stack.as_bytes().to_vec();
        bytes.extend(0x40_1000_u64.to_ne_bytes());
        assert!(matches!(decode(&bytes), Err(DecodeError::Length { .. })), "one frame too few");
        bytes.extend(0x40_2000_u64.to_ne_bytes());
        let expected = StackFrames { header: stack, frames_avma: vec![0x40_1000, 0x40_2000] };
        assert_eq!(decode(&bytes), Ok(Record::Stack(expected)));
        bytes.push(0);
        assert!(matches!(decode(&bytes), Err(DecodeError::Length { .. })), "a byte too many");
    }

    #[test]
    fn frame_counts_beyond_the_limit_are_refused() {
        let stack = StackHeader {
            header: header(KIND_STACK),
            stack: 5,
            tables_read_ns: 0,
            outcome: 0,
            flags: 0,
            frame_count: MAX_FRAMES as u32 + 1,
        };
        let mut bytes = stack.as_bytes().to_vec();
        bytes.resize(bytes.len() + (MAX_FRAMES + 1) * 8, 0);
        assert!(matches!(decode(&bytes), Err(DecodeError::Length { .. })));
    }

    #[test]
    fn what_is_no_record_is_told_apart() {
        assert_eq!(decode(&[]), Err(DecodeError::Empty));
        assert_eq!(decode(&[200, 0, 0]), Err(DecodeError::UnknownKind { kind: 200 }));
        assert_eq!(decode(&[KIND_FREE]), Err(DecodeError::Length { kind: KIND_FREE, bytes: 1 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(kind in 0_u8..12, mut bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(record) = decode(&bytes) {
                prop_assert!(record.time_ns() == u64::from_ne_bytes(bytes[8..16].try_into().unwrap()));
            }
        }
    }
}
