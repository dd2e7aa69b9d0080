//! Round trips, and what is left of a recording that was cut, damaged or forged.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use proptest::prelude::*;

use super::{
    CHUNK_HEADER_BYTES, Chunk, ChunkHeader, ENCODING_PLAIN, FILE_HEADER_BYTES, MAGIC,
    MAJOR_VERSION, MAX_PAYLOAD_BYTES, Reader, RecordingEnd, StoreError, Writer, testing,
};
use crate::model::{
    Capture, Ending, EndingReason, Event, FreeCaller, Item, Module, ModuleId, ProbeId, ProcessId,
    StackMode, ThreadId,
};

mod columns;
mod damage;

fn capture() -> Capture {
    Capture {
        memscope_version: "1.2.3".to_owned(),
        started_at_unix_seconds: 1_700_000_000,
        started_at_unix_nanoseconds: 17,
        started_at_ns: 1000,
        kernel: "6.12".to_owned(),
        arch: "x86_64".to_owned(),
        command: None,
        ring_bytes: 4096,
        sampling_interval_bytes: None,
        stacks: StackMode::Full,
    }
}

fn ending() -> Ending {
    Ending { ended_at_ns: 99, reason: EndingReason::Duration }
}

fn free(number: u64) -> Item {
    Item::Event(Event::Free {
        process: ProcessId(1),
        thread: ThreadId(2),
        time_ns: number * 10,
        address_avma: number * 0x1001,
        probe: Some(ProbeId(number as u32 % 2)),
        caller: FreeCaller::Program,
    })
}

/// A recording with a chunk of items for each list, and the positions at which its
/// chunks begin, the capture first; the last one is the end of the file.
fn recording(chunks: &[Vec<Item>]) -> (Vec<u8>, Vec<usize>) {
    let mut starts = vec![FILE_HEADER_BYTES];
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    for items in chunks {
        starts.push(writer.written_bytes() as usize);
        items.iter().for_each(|item| writer.push(item).unwrap());
        writer.flush().unwrap();
    }
    starts.push(writer.written_bytes() as usize);
    let bytes = writer.finish(&ending()).unwrap();
    starts.push(bytes.len());
    (bytes, starts)
}

/// Four chunks of five items.
fn small() -> (Vec<u8>, Vec<usize>) {
    recording(
        &(0..4)
            .map(|chunk| (0..5).map(|item| free(chunk * 5 + item)).collect())
            .collect::<Vec<_>>(),
    )
}

struct Content {
    items: Vec<Item>,
    unknown_kinds: Vec<u16>,
    end: RecordingEnd,
    damage: Vec<&'static str>,
}

fn read(bytes: &[u8]) -> Result<Content, StoreError> {
    let mut reader = Reader::new(Cursor::new(bytes))?;
    let (mut items, mut unknown_kinds) = (Vec::new(), Vec::new());
    while let Some(chunk) = reader.next_chunk()? {
        match chunk {
            Chunk::Items(more) => items.extend(more),
            Chunk::Ending(_) => {}
            Chunk::Unknown { kind } => unknown_kinds.push(kind),
        }
    }
    assert_eq!(reader.damage_count(), reader.damages().len() as u64);
    let damage = reader.damages().iter().map(|damage| damage.what).collect();
    Ok(Content { items, unknown_kinds, end: reader.end(), damage })
}

fn is_intact(content: &Content) -> bool {
    content.end == RecordingEnd::Complete(ending()) && content.damage.is_empty()
}

/// A chunk as the writer would make it, of any content.
fn chunk(kind: u16, encoding: u16, stored: &[u8], payload_bytes: u32) -> Vec<u8> {
    let header = ChunkHeader {
        kind,
        encoding,
        stored_bytes: stored.len() as u32,
        payload_bytes,
        stored_crc32c: crc32c::crc32c(stored),
    };
    [header.to_bytes().as_slice(), stored].concat()
}

/// The small recording with other bytes between its second and its third chunk.
fn with_inserted(inserted: &[u8]) -> Vec<u8> {
    let (bytes, starts) = small();
    let (before, after) = bytes.split_at(starts[2]);
    [before, inserted, after].concat()
}

proptest! {
    #[test]
    fn what_is_written_is_read(chunks in prop::collection::vec(prop::collection::vec(testing::item(), 1..20), 0..5)) {
        let (bytes, _) = recording(&chunks);
        let content = read(&bytes).unwrap();
        prop_assert!(is_intact(&content));
        prop_assert_eq!(content.items, chunks.concat());
    }

    #[test]
    fn a_chunk_of_anything_is_read_or_told(payload in prop::collection::vec(any::<u8>(), 0..300), kind in 0..7_u16, encoding in 0..3_u16, claimed in any::<u32>()) {
        let claimed = if claimed % 2 == 0 { payload.len() as u32 } else { claimed };
        let content = read(&with_inserted(&chunk(kind, encoding, &payload, claimed))).unwrap();
        prop_assert!(content.items.len() >= 5);
    }

    #[test]
    fn anything_is_refused_or_told(mut bytes in prop::collection::vec(any::<u8>(), 0..400), headed in any::<bool>()) {
        if headed {
            let (recording, starts) = small();
            bytes.splice(0..0, recording[..starts[1]].to_vec());
        }
        if let Ok(content) = read(&bytes) {
            prop_assert!(!is_intact(&content));
        }
    }

    #[test]
    fn several_bytes_wrong_are_told(wrong in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..20)) {
        let (mut bytes, _) = small();
        let original = bytes.clone();
        for (index, with) in &wrong {
            let index = index.index(bytes.len());
            bytes[index] ^= with;
        }
        if let Ok(content) = read(&bytes) {
            prop_assert!(bytes == original || !is_intact(&content));
        }
    }
}

#[test]
fn an_unknown_kind_of_chunk_is_skipped() {
    let content = read(&with_inserted(&chunk(77, ENCODING_PLAIN, b"from the future", 15))).unwrap();
    assert!(is_intact(&content));
    assert_eq!((content.items.len(), content.unknown_kinds), (20, vec![77]));
}

#[test]
fn a_recording_of_nothing_is_complete() {
    let (bytes, _) = recording(&[]);
    let content = read(&bytes).unwrap();
    assert!(is_intact(&content) && content.items.is_empty());
    assert_eq!(Reader::new(Cursor::new(&bytes)).unwrap().capture(), &capture());
}

#[test]
fn many_items_make_several_chunks() {
    let items: Vec<_> = (0..100_000).map(free).collect();
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    let before_the_end = writer.written_bytes();
    assert!(before_the_end > 0);
    let bytes = writer.finish(&ending()).unwrap();
    assert!(bytes.len() < items.len() * 4, "{} bytes", bytes.len());
    let mut reader = Reader::new(Cursor::new(&bytes)).unwrap();
    let mut chunks = 0;
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks += usize::from(matches!(chunk, Chunk::Items(_)));
    }
    assert!(chunks > 1);
    assert_eq!(read(&bytes).unwrap().items, items);
}

fn file_header(major: u16, minor: u16) -> Vec<u8> {
    let start = [MAGIC.as_slice(), &major.to_le_bytes(), &minor.to_le_bytes()].concat();
    let own_crc32c = crc32c::crc32c(&start);
    [start.as_slice(), &own_crc32c.to_le_bytes()].concat()
}

fn with_file_header(header: &[u8]) -> Vec<u8> {
    let (bytes, _) = small();
    [header, &bytes[FILE_HEADER_BYTES..]].concat()
}

#[test]
fn a_newer_minor_version_is_read() {
    let content = read(&with_file_header(&file_header(MAJOR_VERSION, 999))).unwrap();
    assert!(is_intact(&content));
}

#[test]
fn a_newer_major_version_is_refused() {
    let failed = read(&with_file_header(&file_header(MAJOR_VERSION + 1, 0)));
    let Err(error @ StoreError::TooNew { found }) = failed else { panic!() };
    assert_eq!(found, MAJOR_VERSION + 1);
    assert!(error.to_string().contains("use a newer memscope"));
}

#[test]
fn another_kind_of_file_is_refused() {
    for bytes in [b"".as_slice(), b"MEMSCOPE", b"\x7fELF but long enough for a header"] {
        assert!(matches!(read(bytes), Err(StoreError::NotARecording)));
    }
}

#[test]
fn a_recording_without_its_first_chunk_is_refused() {
    let (mut bytes, starts) = small();
    bytes[starts[0] + CHUNK_HEADER_BYTES] ^= 1;
    assert!(matches!(read(&bytes), Err(StoreError::NoCapture)));
}

#[test]
fn an_item_too_large_is_refused_and_the_rest_is_kept() {
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    writer.push(&free(1)).unwrap();
    let path = "x".repeat(MAX_PAYLOAD_BYTES as usize);
    let large = Item::Module(Module { id: ModuleId(1), path, build_id: vec![] });
    let Err(StoreError::ItemTooLarge { bytes }) = writer.push(&large) else { panic!() };
    assert!(bytes > MAX_PAYLOAD_BYTES as usize);
    writer.push(&free(2)).unwrap();
    let bytes = writer.finish(&ending()).unwrap();
    assert_eq!(read(&bytes).unwrap().items, [free(1), free(2)]);
}

/// Takes some bytes and gives some bytes, then fails.
struct Failing {
    bytes: Cursor<Vec<u8>>,
    left: usize,
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::PermissionDenied)?;
        self.bytes.read(buffer)
    }
}

impl Seek for Failing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

#[test]
fn a_full_disk_is_told_and_what_was_written_is_read() {
    let (bytes, starts) = small();
    let mut refused = 0;
    for left in 0..bytes.len() {
        let failing = Failing { bytes: Cursor::new(Vec::new()), left };
        let mut writer = match Writer::new(failing, &capture()) {
            Ok(writer) => writer,
            Err(error) => {
                assert!(matches!(error, StoreError::Write(_)));
                continue;
            }
        };
        let mut write = || {
            for number in 0..20 {
                writer.push(&free(number))?;
                if number % 5 == 4 {
                    writer.flush()?;
                }
            }
            Ok(())
        };
        let error = match write() {
            Err(error) => error,
            Ok(()) => writer.finish(&ending()).map(|_| ()).unwrap_err(),
        };
        assert!(
            matches!(&error, StoreError::Write(source) if source.kind() == io::ErrorKind::StorageFull)
        );
        refused += 1;
    }
    assert_eq!(refused, bytes.len() - starts[1]);
}

#[test]
fn a_refused_read_is_told_and_is_no_damage() {
    let (bytes, _) = small();
    for left in 0..12 {
        let mut failing = Failing { bytes: Cursor::new(bytes.clone()), left };
        let mut failed = false;
        match Reader::new(&mut failing) {
            Err(error) => {
                assert!(matches!(error, StoreError::Read(_)), "{error}");
                failed = true;
            }
            Ok(mut reader) => loop {
                match reader.next_chunk() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        assert!(matches!(error, StoreError::Read(_)), "{error}");
                        assert_eq!(reader.damage_count(), 0);
                        failed = true;
                        break;
                    }
                }
            },
        }
        assert!(failed, "{left} reads are not enough");
    }
}
