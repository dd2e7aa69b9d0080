use memscope_common::record::{
    FIRST_ONCE_NUMBER, MAX_STACK_NUMBER, OUTCOME_DEPTH_LIMIT, SMALL_FREE_ALLOCATED_SINCE,
    address_and_thread, kind_and_time,
};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

use super::*;

const OF: OfImage = OfImage { target: 2, image: 1 };

fn header(kind: u8) -> Header {
    Header { kind, padding: 0, probe: 1, image: OF.image, target: OF.target, time_ns: 3 }
}

fn decode(bytes: &[u8]) -> Result<Option<Record>, DecodeError> {
    Decoder::default().decode(bytes)
}

fn thread_number(number: u32, thread: u32) -> Vec<u8> {
    ThreadNumber { header: header(KIND_THREAD_NUMBER), number, thread }.as_bytes().to_vec()
}

/// A decoder that knows one thread.
fn decoder_of(number: u32, thread: u32) -> Decoder {
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&thread_number(number, thread)), Ok(None), "no event");
    decoder
}

#[test]
fn an_allocation_is_read_back() {
    let record = record::Allocation {
        header: header(KIND_ALLOCATION),
        address_avma: 0x1000,
        size_bytes: 24,
        interval_bytes: 512,
        stack: 7,
        thread: 9,
    };
    let expected = Allocation {
        of: OF,
        probe: 1,
        thread: 9,
        time_ns: 3,
        address_avma: 0x1000,
        size_bytes: 24,
        interval_bytes: 512,
        stack: 7,
    };
    assert_eq!(decode(record.as_bytes()), Ok(Some(Record::Allocation(expected))));
}

#[test]
fn a_page_fault_is_read_back_and_only_whole() {
    let record = PageFault {
        header: header(KIND_PAGE_FAULT),
        address_avma: 0x1000,
        stack: 7,
        thread: 9,
        resident_pages: [16, 512, 1],
        is_major: 1,
    };
    let bytes = record.as_bytes();
    assert_eq!(decode(bytes), Ok(Some(Record::PageFault(record))));
    let error = DecodeError::Length { kind: KIND_PAGE_FAULT, bytes: bytes.len() - 1 };
    assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(error));
}

#[test]
fn a_small_allocation_says_the_same_as_a_large_one() {
    for (size_bytes, probe, stack, address_avma, time_ns) in [
        (24, 1, 7, 0x1000, 3),
        (0, 0, 0, 0, 0),
        (
            SmallAllocation::MAX_SIZE_BYTES - 1,
            SmallAllocation::MAX_PROBE - 1,
            MAX_STACK_NUMBER - 1,
            MAX_SMALL_AVMA - 1,
            (1 << 60) - 1,
        ),
        (1, 255, FIRST_ONCE_NUMBER, 0x7fff_ffff_f010, 1 << 59),
    ] {
        let words = [
            kind_and_time(KIND_SMALL_ALLOCATION, time_ns),
            address_and_thread(address_avma, 5),
            SmallAllocation::pack(stack as u32, size_bytes, probe),
        ];
        let expected = Allocation {
            of: OF,
            probe,
            thread: 900,
            time_ns,
            address_avma,
            size_bytes,
            interval_bytes: 0,
            stack: stack as u32,
        };
        let decoded = decoder_of(5, 900).decode_small(words);
        assert_eq!(decoded, Ok(Record::Allocation(expected)));
    }
}

#[test]
fn a_small_free_says_who_has_called_it_and_what_came_before() {
    for (kind, is_internal, allocated_since) in [
        (KIND_SMALL_FREE, false, false),
        (KIND_SMALL_FREE_INTERNAL, true, false),
        (KIND_SMALL_FREE, false, true),
    ] {
        let flags = if allocated_since { SMALL_FREE_ALLOCATED_SINCE } else { 0 };
        let address_and_thread = address_and_thread(0x1000, 0xffff);
        let words = [kind_and_time(kind, 77), address_and_thread, 0xfffe | flags];
        let expected = Free {
            of: OF,
            probe: 0xfffe,
            thread: 900,
            time_ns: 77,
            address_avma: 0x1000,
            is_internal,
            allocated_since,
        };
        assert_eq!(decoder_of(0xffff, 900).decode_small(words), Ok(Record::Free(expected)));
        let large = record::Free {
            header: Header { probe: 0xfffe, time_ns: 77, ..header(KIND_FREE) },
            address_avma: 0x1000,
            thread: 900,
            is_internal: is_internal.into(),
            allocated_since: allocated_since.into(),
        };
        assert_eq!(decode(large.as_bytes()), Ok(Some(Record::Free(expected))));
    }
}

#[test]
fn a_call_among_allocators_names_both() {
    let record = AllocatorCall {
        header: Header { time_ns: 5, ..header(KIND_ALLOCATOR_CALL) },
        outer: 3,
        inner: 0,
        padding: 0,
    };
    assert_eq!(decode(record.as_bytes()), Ok(Some(Record::AllocatorCall(record))));
    let cut = &record.as_bytes()[..16];
    assert_eq!(decode(cut), Err(DecodeError::Length { kind: KIND_ALLOCATOR_CALL, bytes: 16 }));
}

#[test]
fn a_thread_is_known_by_its_number_from_when_it_was_told() {
    let words = |number| [kind_and_time(KIND_SMALL_FREE, 1), address_and_thread(0x10, number), 0];
    let thread_of = |decoder: &Decoder, number| match decoder.decode_small(words(number)) {
        Ok(Record::Free(free)) => Some((free.of, free.thread)),
        Err(DecodeError::UnknownThread { number: unknown }) => {
            assert_eq!(unknown, number);
            None
        }
        other => panic!("no free: {other:?}"),
    };
    let mut decoder = decoder_of(3, 900);
    assert_eq!(thread_of(&decoder, 3), Some((OF, 900)));
    for unknown in [0, 2, 4, MAX_THREAD_NUMBER - 1] {
        assert_eq!(thread_of(&decoder, unknown), None);
    }
    // After an exec the thread has another number, and the old one still stands for the old image.
    let of = OfImage { image: 2, ..OF };
    let header = Header { image: 2, ..header(KIND_THREAD_NUMBER) };
    let told = ThreadNumber { header, number: 4, thread: 900 };
    assert_eq!(decoder.decode(told.as_bytes()), Ok(None));
    assert_eq!(thread_of(&decoder, 4), Some((of, 900)));
    assert_eq!(thread_of(&decoder, 3), Some((OF, 900)));
}

#[test]
fn numbers_of_threads_are_limited() {
    let limit = MAX_THREAD_NUMBER as u32;
    let mut decoder = Decoder::default();
    for number in [limit, u32::MAX] {
        let unknown = DecodeError::UnknownThread { number: number.into() };
        assert_eq!(decoder.decode(&thread_number(number, 1)), Err(unknown));
    }
    assert_eq!(decoder.threads.len(), 0, "no room is taken for them");
    assert_eq!(decoder.decode(&thread_number(limit - 1, 1)), Ok(None));
    let short = &thread_number(1, 1)[..16];
    let length = DecodeError::Length { kind: KIND_THREAD_NUMBER, bytes: 16 };
    assert_eq!(decoder.decode(short), Err(length));
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
    assert_eq!(decode(&bytes), Ok(Some(Record::Stack(Box::new(expected)))));
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
    let small = [KIND_SMALL_FREE; 16];
    let unknown = DecodeError::UnknownKind { kind: KIND_SMALL_FREE };
    assert_eq!(decode(&small), Err(unknown), "small ones have no place in the ring buffer");
    let words = [kind_and_time(KIND_FREE, 1), 0, 0];
    let unknown = DecodeError::UnknownKind { kind: KIND_FREE };
    assert_eq!(decoder_of(0, 1).decode_small(words), Err(unknown), "nor large ones in a slot");
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_an_error(
        kind in 0_u8..16,
        mut bytes in prop::collection::vec(any::<u8>(), 0..1200),
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = kind;
        }
        let mut decoder = Decoder::default();
        match decoder.decode(&bytes) {
            Ok(Some(record)) => prop_assert_eq!(
                record.time_ns(),
                u64::from_ne_bytes(bytes[8..16].try_into().unwrap())
            ),
            Ok(None) => prop_assert_eq!(kind, KIND_THREAD_NUMBER),
            Err(_) => {}
        }
        prop_assert!(decoder.threads.len() as u64 <= MAX_THREAD_NUMBER);
    }

    #[test]
    fn any_words_are_a_record_or_an_error(words in any::<[u64; 3]>(), number in 0_u32..1 << 16) {
        let decoder = decoder_of(number, 900);
        let kind = words[0] as u8 & KIND_MASK;
        let is_small =
            [KIND_SMALL_ALLOCATION, KIND_SMALL_FREE, KIND_SMALL_FREE_INTERNAL].contains(&kind);
        match decoder.decode_small(words) {
            Ok(record) => {
                prop_assert!(is_small);
                prop_assert_eq!(words[1] >> 48, u64::from(number));
                prop_assert_eq!(record.time_ns(), words[0] >> 4);
            }
            Err(DecodeError::UnknownKind { .. }) => prop_assert!(!is_small),
            Err(error) => {
                prop_assert!(matches!(error, DecodeError::UnknownThread { .. }), "{error}");
                prop_assert_ne!(words[1] >> 48, u64::from(number));
            }
        }
        // Those of the one thread that is known.
        let known = [words[0], address_and_thread(words[1] % MAX_SMALL_AVMA, number.into()), words[2]];
        prop_assert_eq!(decoder.decode_small(known).is_ok(), is_small);
    }
}

/// A copy with four parts, each filled with one number, which is its hash as well; those that are
/// sent are said by the bits of `sent`.
fn copy_of_parts(sp_avma: u64, parts: [u8; 4], sent: u64) -> Vec<u8> {
    let copy = StackCopy {
        header: header(KIND_STACK_COPY),
        stack: FIRST_ONCE_NUMBER,
        return_avma: 0x4000,
        sp_avma,
        rbp: 0,
        rbx: 0,
        r12_to_r15: [0; 4],
        outcome: OUTCOME_DEPTH_LIMIT,
        flags: 0,
        byte_count: (COPY_PART_BYTES * parts.len()) as u32,
    };
    let mut copied = CopiedParts { sent, hashes: [0; MAX_COPY_PARTS] };
    let mut memory = Vec::new();
    for (number, byte) in parts.into_iter().enumerate() {
        copied.hashes[number] = byte.into();
        if sent & 1 << number != 0 {
            memory.extend([byte; COPY_PART_BYTES]);
        }
    }
    [copy.as_bytes(), copied.as_bytes(), &memory].concat()
}

const ALL_SENT: u64 = 0b1111;

/// The parts of a copy, each of which is filled with one number or empty.
fn parts_of(decoder: &mut Decoder, bytes: &[u8]) -> (Vec<Arc<[u8]>>, Vec<Option<u8>>) {
    let Ok(Some(Record::StackCopy(copy))) = decoder.decode(bytes) else { panic!("no copy") };
    let bytes_of = |part: &Arc<[u8]>| {
        let byte = *part.first()?;
        assert_eq!(part[..], vec![byte; COPY_PART_BYTES]);
        Some(byte)
    };
    let bytes = copy.parts.iter().map(bytes_of).collect();
    (copy.parts, bytes)
}

#[test]
fn parts_that_are_as_before_are_not_sent_again_and_shared() {
    let mut decoder = Decoder::default();
    let (first, bytes) = parts_of(&mut decoder, &copy_of_parts(0x7010, [1, 2, 3, 4], ALL_SENT));
    assert_eq!(bytes, [1, 2, 3, 4].map(Some));
    // Something was written into the second …
    let (second, bytes) = parts_of(&mut decoder, &copy_of_parts(0x7010, [1, 7, 3, 4], 0b0010));
    assert_eq!(bytes, [1, 7, 3, 4].map(Some));
    // … and then the stack has grown by a part, but for which all are sent, as to somebody who
    // has forgotten them.
    let (third, bytes) = parts_of(&mut decoder, &copy_of_parts(0x6fff, [5, 1, 7, 3], ALL_SENT));
    assert_eq!(bytes, [5, 1, 7, 3].map(Some));
    let shared = |one: &[Arc<[u8]>], other: &[Arc<[u8]>]| {
        one.iter().map(|one| other.iter().any(|other| Arc::ptr_eq(one, other))).collect::<Vec<_>>()
    };
    assert_eq!(shared(&second, &first), [true, false, true, true]);
    assert_eq!(shared(&third, &second), [false, true, true, true]);
    // What was there before is as it was, and any address will do.
    assert_eq!(*first[1], [2; COPY_PART_BYTES]);
    let bytes = copy_of_parts(u64::MAX, [8; 4], ALL_SENT);
    assert_eq!(parts_of(&mut decoder, &bytes).1, [8; 4].map(Some));
}

#[test]
fn a_part_that_is_not_known_is_empty_and_never_another() {
    let mut decoder = Decoder::default();
    let first = copy_of_parts(0x7010, [1, 2, 3, 4], 0b0111);
    assert_eq!(parts_of(&mut decoder, &first).1, [Some(1), Some(2), Some(3), None]);
    let second = copy_of_parts(0x7010, [1, 9, 3, 4], 0);
    assert_eq!(parts_of(&mut decoder, &second).1, [Some(1), None, Some(3), None]);
    // What another target has at the same address is its own.
    let third = StackCopy {
        header: Header { target: OF.target + 1, ..header(KIND_STACK_COPY) },
        ..StackCopy::read_from_prefix(&second).unwrap().0
    };
    let third = [third.as_bytes(), &second[size_of::<StackCopy>()..]].concat();
    assert_eq!(parts_of(&mut decoder, &third).1, [None; 4]);
}

#[test]
fn a_part_that_could_not_be_read_is_empty_and_what_is_behind_it_is_not() {
    let mut decoder = Decoder::default();
    let unreadable = PART_UNREADABLE as u8;
    // Nothing is known of its place yet, and then something is.
    for first in [unreadable, 2] {
        let copy =
            copy_of_parts(0x7010, [1, first, 3, 4], if first == 2 { 0b1111 } else { 0b1101 });
        let second = Some(first).filter(|first| *first != unreadable);
        assert_eq!(parts_of(&mut decoder, &copy).1, [Some(1), second, Some(3), Some(4)]);
    }
    let copy = copy_of_parts(0x7010, [1, unreadable, 3, 4], 0);
    assert_eq!(parts_of(&mut decoder, &copy).1, [Some(1), None, Some(3), Some(4)]);
}

#[test]
fn a_copy_is_as_long_as_it_says() {
    let mut whole = copy_of_parts(0x7010, [1, 2, 3, 4], 0b0101);
    let is_refused = |bytes: &[u8]| {
        matches!(decode(bytes), Err(DecodeError::Length { kind: KIND_STACK_COPY, .. }))
    };
    assert!(!is_refused(&whole));
    for length in 1..whole.len() {
        assert!(is_refused(&whole[..length]), "{length}");
    }
    whole.push(0);
    assert!(is_refused(&whole));
    whole.pop();
    let with = |change: &dyn Fn(&mut StackCopy, &mut CopiedParts)| {
        let (mut copy, rest) = StackCopy::read_from_prefix(&whole).unwrap();
        let (mut parts, memory) = CopiedParts::read_from_prefix(rest).unwrap();
        change(&mut copy, &mut parts);
        [copy.as_bytes(), parts.as_bytes(), memory].concat()
    };
    assert!(is_refused(&with(&|_, parts| parts.sent = 0b1_0001)), "not one of its four");
    assert!(is_refused(&with(&|_, parts| parts.sent = 1 | 1 << 63)));
    assert!(is_refused(&with(&|_, parts| parts.sent = 0b0111)));
    assert!(is_refused(&with(&|copy, _| copy.byte_count += 1)));
    assert!(is_refused(&with(&|copy, _| copy.byte_count = u32::MAX - 1023)));
}
