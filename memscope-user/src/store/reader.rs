use std::io::{ErrorKind, Read, Seek, SeekFrom};

use super::{
    CHUNK_HEADER_BYTES, CHUNK_MAGIC, ChunkHeader, ENCODING_PLAIN, ENCODING_ZSTD, FILE_HEADER_BYTES,
    KIND_CAPTURE, KIND_CAPTURE_V1, KIND_ENDING, KIND_ITEMS, KIND_ITEMS_V1, MAGIC, MAJOR_VERSION,
    StoreError, decode, v1,
};
use crate::model::{Capture, Ending, Item};

/// Bytes searched at once for the next chunk after damage.
const SEARCH_BLOCK_BYTES: usize = 1 << 16;
/// Most damages described one by one.
const MAX_DAMAGES: usize = 1000;

/// What the next part of a recording is.
#[derive(Debug)]
pub enum Chunk {
    /// Items, in order.
    Items(Vec<Item>),
    /// The recording ends here, regularly.
    Ending(Ending),
    /// Something that a newer memscope added; skipped.
    Unknown {
        /// Its kind.
        kind: u16,
    },
}

/// A place where the file is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where in the file.
    pub file_offset: u64,
    /// How many bytes were passed over.
    pub skipped_bytes: u64,
    /// What is wrong there.
    pub what: &'static str,
}

/// How the file ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordingEnd {
    /// With its ending.
    Complete(Ending),
    /// Without: memscope was killed, the disk was full, or the file was cut.
    Truncated,
}

/// Reads a recording chunk by chunk; gives everything that is intact.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    position: u64,
    length: u64,
    capture: Capture,
    ending: Option<Ending>,
    damages: Vec<Damage>,
    damage_count: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens a recording.
    ///
    /// # Errors
    ///
    /// If it is none, is too new, or is damaged so early that nothing is left.
    pub fn new(mut input: R) -> Result<Self, StoreError> {
        let length = input.seek(SeekFrom::End(0)).map_err(StoreError::Read)?;
        let mut header = [0; FILE_HEADER_BYTES];
        input.seek(SeekFrom::Start(0)).map_err(StoreError::Read)?;
        match input.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(StoreError::NotARecording);
            }
            Err(error) => return Err(StoreError::Read(error)),
        }
        if header[0..8] != MAGIC {
            return Err(StoreError::NotARecording);
        }
        let [.., major0, major1, _, _, crc0, crc1, crc2, crc3] = header;
        let found = u16::from_le_bytes([major0, major1]);
        let intact = crc32c::crc32c(&header[0..12]) == u32::from_le_bytes([crc0, crc1, crc2, crc3]);
        if intact && found > MAJOR_VERSION {
            return Err(StoreError::TooNew { found });
        }
        let mut damages = Vec::new();
        if !intact {
            damages.push(Damage {
                file_offset: 0,
                skipped_bytes: 0,
                what: "the file's header is not as it was written",
            });
        }
        let position = FILE_HEADER_BYTES as u64;
        let capture = match read_chunk_at(&mut input, position, length)? {
            ChunkAt::Intact { header, payload, next } => {
                decode_capture(header.kind, &payload).map(|capture| (capture, next))
            }
            _ => None,
        };
        let (capture, position) = capture.ok_or(StoreError::NoCapture)?;
        let damage_count = damages.len() as u64;
        Ok(Self { input, position, length, capture, ending: None, damages, damage_count })
    }

    /// What the recording says of itself.
    #[must_use]
    pub fn capture(&self) -> &Capture {
        &self.capture
    }

    /// The next intact chunk; none at the end of the file.
    ///
    /// # Errors
    ///
    /// If the operating system refuses to read. Damage is no error, see
    /// [`Reader::damages`].
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, StoreError> {
        while self.position < self.length {
            if self.ending.is_some() {
                self.damage(self.length, "bytes after the recording's end");
                return Ok(None);
            }
            match read_chunk_at(&mut self.input, self.position, self.length)? {
                ChunkAt::Intact { header, payload, next } => {
                    let at = self.position;
                    self.position = next;
                    if let Some(chunk) = self.interpret(at, header, &payload) {
                        return Ok(Some(chunk));
                    }
                }
                ChunkAt::DamagedPayload { next, what } => self.damage(next, what),
                ChunkAt::CutOff => self.damage(self.length, "the file ends within a chunk"),
                ChunkAt::NoHeader => {
                    let next = self.find_chunk(self.position + 1)?;
                    self.damage(next, "no chunk begins where one should");
                }
            }
        }
        Ok(None)
    }

    fn interpret(&mut self, at: u64, header: ChunkHeader, payload: &[u8]) -> Option<Chunk> {
        match header.kind {
            KIND_ITEMS => Some(self.items(at, decode::decode_items(payload))),
            KIND_ITEMS_V1 => Some(self.items(at, v1::decode_items(payload))),
            KIND_ENDING => match postcard::from_bytes::<Ending>(payload) {
                Ok(ending) => {
                    self.ending = Some(ending.clone());
                    Some(Chunk::Ending(ending))
                }
                Err(_) => {
                    self.note(Damage {
                        file_offset: at,
                        skipped_bytes: 0,
                        what: "the ending cannot be decoded",
                    });
                    None
                }
            },
            kind => Some(Chunk::Unknown { kind }),
        }
    }

    fn items(&mut self, at: u64, (items, whole): (Vec<Item>, bool)) -> Chunk {
        if !whole {
            self.note(Damage {
                file_offset: at,
                skipped_bytes: 0,
                what: "an item cannot be decoded; the rest of its chunk is passed over",
            });
        }
        Chunk::Items(items)
    }

    /// Notes damage from the present position to `next` and goes on there.
    fn damage(&mut self, next: u64, what: &'static str) {
        let skipped_bytes = next - self.position;
        self.note(Damage { file_offset: self.position, skipped_bytes, what });
        self.position = next;
    }

    fn note(&mut self, damage: Damage) {
        self.damage_count += 1;
        if self.damages.len() < MAX_DAMAGES {
            self.damages.push(damage);
        }
    }

    /// Position of the next intact chunk header at or after `from`, or the file's length.
    fn find_chunk(&mut self, from: u64) -> Result<u64, StoreError> {
        let mut block = vec![0; SEARCH_BLOCK_BYTES];
        let mut start = from;
        while start < self.length {
            self.input.seek(SeekFrom::Start(start)).map_err(StoreError::Read)?;
            let bytes = read_up_to(&mut self.input, &mut block)?;
            let found = block.get(..bytes).unwrap_or_default();
            for (offset, window) in found.windows(CHUNK_HEADER_BYTES).enumerate() {
                if window.starts_with(&CHUNK_MAGIC)
                    && window.try_into().is_ok_and(|bytes| ChunkHeader::from_bytes(bytes).is_some())
                {
                    return Ok(start + offset as u64);
                }
            }
            if bytes < CHUNK_HEADER_BYTES {
                break;
            }
            // The next block begins with what could be the first part of a header.
            start += (bytes - CHUNK_HEADER_BYTES + 1) as u64;
        }
        Ok(self.length)
    }

    /// Where the file is not as it was written, in order; at most the first thousand.
    #[must_use]
    pub fn damages(&self) -> &[Damage] {
        &self.damages
    }

    /// How many places of damage there are.
    #[must_use]
    pub fn damage_count(&self) -> u64 {
        self.damage_count
    }

    /// How the file ended; to be asked once [`Reader::next_chunk`] has given none.
    #[must_use]
    pub fn end(&self) -> RecordingEnd {
        self.ending.clone().map_or(RecordingEnd::Truncated, RecordingEnd::Complete)
    }
}

enum ChunkAt {
    Intact { header: ChunkHeader, payload: Vec<u8>, next: u64 },
    DamagedPayload { next: u64, what: &'static str },
    CutOff,
    NoHeader,
}

fn read_chunk_at<R: Read + Seek>(
    input: &mut R,
    position: u64,
    length: u64,
) -> Result<ChunkAt, StoreError> {
    let remaining = length - position;
    if remaining < CHUNK_HEADER_BYTES as u64 {
        return Ok(ChunkAt::CutOff);
    }
    input.seek(SeekFrom::Start(position)).map_err(StoreError::Read)?;
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    if read_up_to(input, &mut bytes)? < CHUNK_HEADER_BYTES {
        return Ok(ChunkAt::CutOff);
    }
    let Some(header) = ChunkHeader::from_bytes(&bytes) else {
        return Ok(ChunkAt::NoHeader);
    };
    // Checked against the bytes that are there before memory is reserved.
    if u64::from(header.stored_bytes) > remaining - CHUNK_HEADER_BYTES as u64 {
        return Ok(ChunkAt::CutOff);
    }
    let mut stored = vec![0; header.stored_bytes as usize];
    if read_up_to(input, &mut stored)? < stored.len() {
        return Ok(ChunkAt::CutOff);
    }
    let next = position + CHUNK_HEADER_BYTES as u64 + u64::from(header.stored_bytes);
    if crc32c::crc32c(&stored) != header.stored_crc32c {
        return Ok(ChunkAt::DamagedPayload { next, what: "a chunk's checksum does not match" });
    }
    let payload = match header.encoding {
        ENCODING_PLAIN => Some(stored),
        ENCODING_ZSTD => zstd::bulk::decompress(&stored, header.payload_bytes as usize).ok(),
        _ => None,
    };
    match payload {
        Some(payload) if payload.len() == header.payload_bytes as usize => {
            Ok(ChunkAt::Intact { header, payload, next })
        }
        _ => Ok(ChunkAt::DamagedPayload { next, what: "a chunk cannot be decompressed" }),
    }
}

/// Reads until the buffer is full or the input ends.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, StoreError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::Read(error)),
        }
    }
    Ok(filled)
}

/// Each format has a kind of its own, so that a chunk says itself how to read it.
fn decode_capture(kind: u16, payload: &[u8]) -> Option<Capture> {
    match kind {
        KIND_CAPTURE => postcard::from_bytes(payload).ok(),
        KIND_CAPTURE_V1 => postcard::from_bytes::<v1::Capture>(payload).ok().map(Capture::from),
        _ => None,
    }
}
