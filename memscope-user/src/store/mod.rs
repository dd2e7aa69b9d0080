//! The recording: a file of checksummed chunks, readable up to where it is whole.
//!
//! `docs/file-format.md` says what is in it, byte by byte. This stage turns
//! [`crate::model::Item`]s into bytes and back; it interprets none of them.

mod columns;
mod context;
mod decode;
mod encode;
mod reader;
mod v1;
mod varint;
mod writer;

use std::io;

pub use reader::{Chunk, Damage, Reader, RecordingEnd};
pub use writer::Writer;

/// What a recording begins with.
pub const MAGIC: [u8; 8] = *b"MEMSCOPE";
/// Raised when older readers cannot read newer files.
pub const MAJOR_VERSION: u16 = 2;
/// Raised when something was added that older readers can skip.
pub const MINOR_VERSION: u16 = 0;

/// Bytes of the file's header: magic, major, minor, CRC32C of these twelve bytes.
const FILE_HEADER_BYTES: usize = 16;
/// What a chunk begins with.
const CHUNK_MAGIC: [u8; 4] = *b"chnk";
/// Bytes of a chunk's header, see [`ChunkHeader`].
const CHUNK_HEADER_BYTES: usize = 24;

/// Most bytes of a chunk's payload, before and after compression. A reader refuses
/// larger ones before it reserves memory for them.
const MAX_PAYLOAD_BYTES: u32 = 1 << 24;
/// Most items of a chunk, changes of the sampling interval among them: a few bytes can
/// say so many, so a reader refuses more before it reserves memory for them.
const MAX_CHUNK_TAGS: usize = 1 << 16;
/// Most bytes that an item which is no event may take. It leaves room for as many events as
/// a chunk can have.
const MAX_DEFINITION_BYTES: usize = 1 << 23;
/// The writer closes a chunk when what is no event has become so large in it.
const CHUNK_DEFINITIONS_BYTES: usize = 1 << 18;

/// A capture of format 1.
const KIND_CAPTURE_V1: u16 = 1;
/// Items of format 1.
const KIND_ITEMS_V1: u16 = 2;
const KIND_ENDING: u16 = 3;
const KIND_CAPTURE: u16 = 4;
const KIND_ITEMS: u16 = 5;

/// Payload as it is.
const ENCODING_PLAIN: u16 = 0;
/// Payload compressed by zstd, as one frame.
const ENCODING_ZSTD: u16 = 1;

/// Why a recording could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused to write.
    #[error("cannot write the recording")]
    Write(#[source] io::Error),
    /// The operating system refused to read.
    #[error("cannot read the recording")]
    Read(#[source] io::Error),
    /// It is another kind of file.
    #[error("this is not a memscope recording: it does not begin with \"MEMSCOPE\"")]
    NotARecording,
    /// A newer memscope wrote it.
    #[error(
        "the recording has format {found}, this memscope reads up to format {MAJOR_VERSION}; use a newer memscope"
    )]
    TooNew {
        /// Major version in the file.
        found: u16,
    },
    /// It holds not even the chunk that says what it is.
    #[error("the recording is damaged before its first data: nothing in it can be read")]
    NoCapture,
    /// An item is too large for a chunk.
    #[error("an item of {bytes} bytes is too large: {MAX_DEFINITION_BYTES} is the limit")]
    ItemTooLarge {
        /// Its encoded size.
        bytes: usize,
    },
    /// Encoding failed.
    #[error("cannot encode an item")]
    Encode(#[source] postcard::Error),
    /// Compression failed.
    #[error("cannot compress a chunk")]
    Compress(#[source] io::Error),
}

/// Fixed part of a chunk, little-endian:
///
/// ```text
///  0  magic "chnk"      4  kind u16     6  encoding u16
///  8  stored length u32             12  payload length u32
/// 16  CRC32C of the stored payload  20  CRC32C of bytes 0..20
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkHeader {
    kind: u16,
    encoding: u16,
    stored_bytes: u32,
    payload_bytes: u32,
    stored_crc32c: u32,
}

impl ChunkHeader {
    fn to_bytes(self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&CHUNK_MAGIC);
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.encoding.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.stored_crc32c.to_le_bytes());
        let own_crc32c = crc32c::crc32c(&bytes[0..20]);
        bytes[20..24].copy_from_slice(&own_crc32c.to_le_bytes());
        bytes
    }

    /// None if these bytes are no intact header within the limits.
    fn from_bytes(bytes: &[u8; CHUNK_HEADER_BYTES]) -> Option<Self> {
        let [
            m0,
            m1,
            m2,
            m3,
            k0,
            k1,
            e0,
            e1,
            s0,
            s1,
            s2,
            s3,
            p0,
            p1,
            p2,
            p3,
            c0,
            c1,
            c2,
            c3,
            o0,
            o1,
            o2,
            o3,
        ] = *bytes;
        let own_crc32c = u32::from_le_bytes([o0, o1, o2, o3]);
        if [m0, m1, m2, m3] != CHUNK_MAGIC || crc32c::crc32c(&bytes[0..20]) != own_crc32c {
            return None;
        }
        let header = Self {
            kind: u16::from_le_bytes([k0, k1]),
            encoding: u16::from_le_bytes([e0, e1]),
            stored_bytes: u32::from_le_bytes([s0, s1, s2, s3]),
            payload_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
            stored_crc32c: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        let within =
            header.stored_bytes <= MAX_PAYLOAD_BYTES && header.payload_bytes <= MAX_PAYLOAD_BYTES;
        within.then_some(header)
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
