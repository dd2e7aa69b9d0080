//! Recordings that were cut, overwritten or forged.

use super::{chunk, ending, read, small, with_inserted};
use crate::{
    model::{Item, Module, ModuleId},
    store::{
        CHUNK_HEADER_BYTES, ChunkHeader, ENCODING_PLAIN, ENCODING_ZSTD, FILE_HEADER_BYTES,
        KIND_ITEMS, KIND_ITEMS_V1, MAX_PAYLOAD_BYTES, RecordingEnd, StoreError,
        columns::{Columns, Packer},
        context::{OTHER, OTHER_ITEM},
    },
};

#[test]
fn cut_anywhere_what_was_whole_is_read() {
    let (bytes, starts) = small();
    let all = read(&bytes).unwrap().items;
    for length in 0..bytes.len() {
        let whole = starts.iter().filter(|start| **start <= length).count();
        let content = match read(&bytes[..length]) {
            Err(StoreError::NotARecording) => {
                assert!(length < FILE_HEADER_BYTES);
                continue;
            }
            Err(StoreError::NoCapture) => {
                assert!(length < starts[1]);
                continue;
            }
            Err(error) => panic!("cut at {length}: {error}"),
            Ok(content) => content,
        };
        // Of the chunks that begin before the cut, all but the last are whole.
        let items = whole.saturating_sub(2).min(4) * 5;
        assert_eq!(content.items, all[..items], "cut at {length}");
        assert_eq!(content.end, RecordingEnd::Truncated, "cut at {length}");
        let between_chunks = starts.contains(&length);
        assert_eq!(content.damage.is_empty(), between_chunks, "cut at {length}");
    }
}

#[test]
fn every_single_flipped_bit_is_detected() {
    let (bytes, _) = small();
    let flips = bytes.len() * 8;
    assert!(flips >= 2000, "{flips}");
    for flip in 0..flips {
        let mut bytes = bytes.clone();
        bytes[flip / 8] ^= 1 << (flip % 8);
        if let Ok(content) = read(&bytes) {
            assert!(!content.damage.is_empty(), "bit {flip}");
            assert!(content.items.len() >= 15, "bit {flip} costs more than its chunk");
        }
    }
}

#[test]
fn a_damaged_chunk_costs_only_itself() {
    let (bytes, starts) = small();
    let all = read(&bytes).unwrap().items;
    for (place, what) in [
        (starts[2], "no chunk begins where one should"),
        (starts[2] + 9, "no chunk begins where one should"),
        (starts[2] + CHUNK_HEADER_BYTES, "a chunk's checksum does not match"),
        (starts[3] - 1, "a chunk's checksum does not match"),
    ] {
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x40;
        let content = read(&bytes).unwrap();
        assert_eq!(content.items, [&all[..5], &all[10..]].concat());
        assert_eq!(content.damage, [what]);
        assert_eq!(content.end, RecordingEnd::Complete(ending()));
    }
}

#[test]
fn a_stretch_of_other_bytes_is_passed_over() {
    for length in [1, 23, 24, 25, 70_000, 200_000] {
        let content = read(&with_inserted(&vec![b'c'; length])).unwrap();
        assert_eq!((content.items.len(), content.damage.len()), (20, 1), "{length}");
    }
}

#[test]
fn a_lost_stretch_costs_only_what_was_in_it() {
    let (bytes, starts) = small();
    let all = read(&bytes).unwrap().items;
    let without = [&bytes[..starts[2] + 3], &bytes[starts[3] - 2..]].concat();
    let content = read(&without).unwrap();
    assert_eq!(content.items, [&all[..5], &all[10..]].concat());
    assert_eq!(content.damage.len(), 1);
}

#[test]
fn an_unknown_encoding_is_damage() {
    let content = read(&with_inserted(&chunk(KIND_ITEMS, 9, b"x", 1))).unwrap();
    assert_eq!((content.items.len(), content.damage), (20, vec!["a chunk cannot be decompressed"]));
}

#[test]
fn lengths_are_refused_before_memory_is_reserved() {
    let (bytes, starts) = small();
    let forged = |stored_bytes, payload_bytes| {
        let header = ChunkHeader {
            kind: KIND_ITEMS,
            encoding: ENCODING_ZSTD,
            stored_bytes,
            payload_bytes,
            stored_crc32c: 0,
        };
        [&bytes[..starts[2]], header.to_bytes().as_slice(), &bytes[starts[2]..]].concat()
    };
    // Beyond the limit: no header at all, whatever its checksum says.
    for (stored, payload) in
        [(MAX_PAYLOAD_BYTES + 1, 1), (u32::MAX, u32::MAX), (10, MAX_PAYLOAD_BYTES + 1)]
    {
        let content = read(&forged(stored, payload)).unwrap();
        assert_eq!(
            (content.items.len(), content.damage),
            (20, vec!["no chunk begins where one should"])
        );
    }
    // Within the limit, beyond the file.
    let content = read(&forged(MAX_PAYLOAD_BYTES, 1)).unwrap();
    assert_eq!((content.items.len(), content.damage), (5, vec!["the file ends within a chunk"]));
}

#[test]
fn a_payload_that_unpacks_to_another_length_is_damage() {
    let packed = zstd::bulk::compress(&[0; 5000], 1).unwrap();
    for claimed in [4999, 5001, 0] {
        let content =
            read(&with_inserted(&chunk(KIND_ITEMS, ENCODING_ZSTD, &packed, claimed))).unwrap();
        assert_eq!(
            (content.items.len(), content.damage),
            (20, vec!["a chunk cannot be decompressed"]),
            "{claimed}"
        );
    }
}

#[test]
fn an_item_that_cannot_be_decoded_costs_the_rest_of_its_chunk() {
    let module = Module { id: ModuleId(1), path: "p".to_owned(), build_id: vec![] };
    let mut definition = postcard::to_stdvec(&Item::Module(module)).unwrap();
    let mut payload = Vec::new();
    let columns = Columns {
        tags: vec![OTHER_ITEM, OTHER | 31 << 3, OTHER_ITEM],
        definitions: definition.repeat(2),
        ..Columns::default()
    };
    columns.pack(&mut Packer::new().unwrap(), &mut payload).unwrap();
    definition.extend([250, 1, 2]);
    for (kind, payload) in [(KIND_ITEMS, payload), (KIND_ITEMS_V1, definition)] {
        let forged = chunk(kind, ENCODING_PLAIN, &payload, payload.len() as u32);
        let content = read(&with_inserted(&forged)).unwrap();
        assert_eq!(content.items.len(), 21);
        assert_eq!(
            content.damage,
            ["an item cannot be decoded; the rest of its chunk is passed over"]
        );
    }
}

#[test]
fn bytes_after_the_end_are_damage() {
    let (mut bytes, _) = small();
    bytes.push(0);
    let content = read(&bytes).unwrap();
    assert_eq!(
        (content.end, content.damage),
        (RecordingEnd::Complete(ending()), vec!["bytes after the recording's end"])
    );
}
