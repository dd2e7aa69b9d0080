//! The columns of a chunk: what they cost, and what is made of forged ones.

use proptest::prelude::*;

use super::capture;
use crate::{
    model::{Event, FreeCaller, Item, Module, ModuleId, ProbeId, ProcessId, StackId, ThreadId},
    store::{
        MAX_CHUNK_TAGS, MAX_PAYLOAD_BYTES, Writer,
        columns::{Columns, Packer},
        context::*,
        decode::decode_items,
        varint,
    },
};

fn decode(columns: &Columns<Vec<u8>>) -> (Vec<Item>, bool) {
    let mut payload = Vec::new();
    columns.pack(&mut Packer::new().unwrap(), &mut payload).unwrap();
    decode_items(&payload)
}

/// A free at address 0x40 by thread 2 of process 1, at 5 ns.
fn one_free() -> Columns<Vec<u8>> {
    Columns {
        tags: vec![FREE | ADDRESS_NEW],
        times_low: vec![5],
        times_high: vec![0],
        threads: vec![0, 1, 2],
        addresses: vec![0x40 / 16 * 4],
        ..Columns::default()
    }
}

#[test]
fn columns_are_as_documented() {
    let (items, whole) = decode(&one_free());
    let event = Event::Free {
        process: ProcessId(1),
        thread: ThreadId(2),
        time_ns: 5,
        address_avma: 0x40,
        probe: None,
        caller: FreeCaller::Program,
    };
    assert_eq!((items, whole), (vec![Item::Event(event)], true));
    let mut payload = Vec::new();
    one_free().pack(&mut Packer::new().unwrap(), &mut payload).unwrap();
    assert_eq!(payload, [2, 1, 0, 2, 5, 2, 0, 6, 0, 1, 2, 0, 2, 0x10, 0, 0, 0]);
}

#[test]
fn forged_columns_are_refused() {
    let definition = |item: &Item| Columns {
        tags: vec![OTHER_ITEM],
        definitions: postcard::to_stdvec(item).unwrap(),
        ..Columns::default()
    };
    let module = Module { id: ModuleId(1), path: String::new(), build_id: vec![] };
    assert!(decode(&definition(&Item::Module(module))).1);
    let exit = Event::ThreadExit { process: ProcessId(1), thread: ThreadId(1), time_ns: 1 };
    let forged = [
        ("an event among the definitions", definition(&Item::Event(exit))),
        ("no such kind", Columns { tags: vec![7], ..one_free() }),
        ("no function before", Columns { tags: vec![FREE | SAME_ENDING], ..one_free() }),
        ("no function", Columns { tags: vec![FREE | NEW_ENDING], ..one_free() }),
        (
            "two functions",
            Columns { tags: vec![FREE | SAME_ENDING | NEW_ENDING], others: vec![1], ..one_free() },
        ),
        ("no such thread", Columns { threads: vec![1], ..one_free() }),
        ("no thread before", Columns { tags: vec![FREE | SAME_THREAD], ..one_free() }),
        ("no time", Columns { times_low: vec![], ..one_free() }),
        (
            "no address so long ago",
            Columns {
                tags: vec![FREE | ADDRESS_FAR],
                addresses: vec![],
                distances: vec![1],
                ..one_free()
            },
        ),
        (
            "no address before",
            Columns { tags: vec![FREE | ADDRESS_LAST], addresses: vec![], ..one_free() },
        ),
    ];
    for (what, columns) in forged {
        assert_eq!(decode(&columns), (vec![], false), "{what}");
    }
    let too_long = decode(&Columns { others: vec![0], ..one_free() });
    assert_eq!((too_long.0.len(), too_long.1), (1, false), "a byte that nothing takes");
}

#[test]
fn limits_hold_before_memory_is_reserved() {
    let many = Columns { tags: vec![OTHER_INTERVAL; MAX_CHUNK_TAGS + 1], ..Columns::default() };
    assert_eq!(decode(&many), (vec![], false));
    let mut payload = Vec::new();
    varint::push(&mut payload, (u64::from(MAX_PAYLOAD_BYTES) + 1) << 1);
    assert!(Columns::unpack(&payload).is_none());
    // Two columns of which each is within the limit.
    let half = MAX_PAYLOAD_BYTES as usize / 2 + 1;
    let packed = zstd::bulk::compress(&vec![0; half], 1).unwrap();
    let mut payload = Vec::new();
    for _ in 0..2 {
        varint::push(&mut payload, (half as u64) << 1 | 1);
        varint::push(&mut payload, packed.len() as u64);
        payload.extend_from_slice(&packed);
    }
    payload.extend([0; 8]);
    assert!(Columns::unpack(&payload).is_none());
}

/// A loop that allocates and frees costs next to nothing but its times.
#[test]
fn what_repeats_is_small() {
    const EVENTS: u64 = 60_000;
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    let (process, thread) = (ProcessId(1), ThreadId(2));
    for number in 0..EVENTS {
        let time_ns = number * 1000 + number * number % 191;
        let address_avma = 0x5000 + number / 2 % 7 * 0x30;
        let event = if number % 2 == 0 {
            Event::Allocation {
                process,
                thread,
                time_ns,
                address_avma,
                size_bytes: 0x20,
                stack: StackId((number % 14) as u32),
                probe: ProbeId(3),
                interval_bytes: 0,
            }
        } else {
            let (probe, caller) = (Some(ProbeId(4)), FreeCaller::Program);
            Event::Free { process, thread, time_ns, address_avma, probe, caller }
        };
        writer.push(&Item::Event(event)).unwrap();
    }
    let before = writer.written_bytes();
    writer.flush().unwrap();
    let bytes = writer.written_bytes() - before;
    assert!(bytes < EVENTS * 3 / 2, "{bytes} bytes");
}

proptest! {
    #[test]
    fn any_columns_are_decoded_or_refused(
        tags in prop::collection::vec(any::<u8>(), 0..100),
        columns in prop::array::uniform8(prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..200)),
    ) {
        let [definitions, times_low, times_high, threads, distances, addresses, sizes, stacks] = columns;
        let columns = Columns {
            others: sizes.iter().rev().copied().collect(),
            tags, definitions, times_low, times_high, threads, distances, addresses, sizes, stacks,
        };
        let tags = columns.tags.len();
        prop_assert!(decode(&columns).0.len() <= tags);
    }

    #[test]
    fn any_payload_is_decoded_or_refused(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_items(&payload).0.len() <= payload.len());
    }
}
