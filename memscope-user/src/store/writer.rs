use std::io::Write;

use serde::Serialize;

use super::{
    CHUNK_TARGET_BYTES, ChunkHeader, ENCODING_PLAIN, ENCODING_ZSTD, FILE_HEADER_BYTES,
    KIND_CAPTURE, KIND_ENDING, KIND_ITEMS, MAGIC, MAJOR_VERSION, MAX_PAYLOAD_BYTES, MINOR_VERSION,
    StoreError, delta::Delta,
};
use crate::model::{Capture, Ending, Item};

/// Fast rather than small: the writer shares its core with the collector.
const ZSTD_LEVEL: i32 = 1;

/// Writes a recording as it comes about. What was flushed stays readable whatever
/// happens to the writer.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    payload: Vec<u8>,
    /// The item being added; kept for its memory.
    encoded: Vec<u8>,
    delta: Delta,
    written_bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a recording.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn new(output: W, capture: &Capture) -> Result<Self, StoreError> {
        let mut writer = Self {
            output,
            payload: Vec::new(),
            encoded: Vec::new(),
            delta: Delta::default(),
            written_bytes: 0,
        };
        let mut header = [0; FILE_HEADER_BYTES];
        header[0..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&MAJOR_VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&MINOR_VERSION.to_le_bytes());
        let own_crc32c = crc32c::crc32c(&header[0..12]);
        header[12..16].copy_from_slice(&own_crc32c.to_le_bytes());
        writer.write(&header)?;
        writer.write_single(KIND_CAPTURE, capture)?;
        Ok(writer)
    }

    /// Adds an item; writes a chunk whenever enough has come together.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn push(&mut self, item: &Item) -> Result<(), StoreError> {
        match item {
            Item::Event(event) => {
                let event = self.delta.encode(event);
                self.append(&Item::Event(event))?;
            }
            other => self.append(other)?,
        }
        if self.payload.len() >= CHUNK_TARGET_BYTES { self.flush() } else { Ok(()) }
    }

    fn append(&mut self, item: &Item) -> Result<(), StoreError> {
        // Encoded apart, so that an item that cannot be written costs no other.
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        self.encoded = postcard::to_extend(item, encoded).map_err(StoreError::Encode)?;
        let bytes = self.encoded.len();
        if bytes > MAX_PAYLOAD_BYTES as usize {
            return Err(StoreError::ItemTooLarge { bytes });
        }
        // Never for an event, whose differences would be wrong in another chunk: events
        // are small, and a chunk is closed long before it is full.
        if self.payload.len() + bytes > MAX_PAYLOAD_BYTES as usize {
            self.flush()?;
        }
        self.payload.extend_from_slice(&self.encoded);
        Ok(())
    }

    /// Writes what has come together as a chunk.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        if self.payload.is_empty() {
            return Ok(());
        }
        let payload = std::mem::take(&mut self.payload);
        self.delta = Delta::default();
        let written = self.write_chunk(KIND_ITEMS, &payload);
        self.payload = payload;
        self.payload.clear();
        written
    }

    /// Ends the recording: what has no ending was cut off.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn finish(mut self, ending: &Ending) -> Result<W, StoreError> {
        self.flush()?;
        self.write_single(KIND_ENDING, ending)?;
        self.output.flush().map_err(StoreError::Write)?;
        Ok(self.output)
    }

    /// How large the recording is so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn write_single(&mut self, kind: u16, value: &impl Serialize) -> Result<(), StoreError> {
        let payload = postcard::to_stdvec(value).map_err(StoreError::Encode)?;
        self.write_chunk(kind, &payload)
    }

    fn write_chunk(&mut self, kind: u16, payload: &[u8]) -> Result<(), StoreError> {
        let compressed = zstd::bulk::compress(payload, ZSTD_LEVEL).map_err(StoreError::Compress)?;
        let (encoding, stored) = if compressed.len() < payload.len() {
            (ENCODING_ZSTD, compressed.as_slice())
        } else {
            (ENCODING_PLAIN, payload)
        };
        // Both lengths are at most MAX_PAYLOAD_BYTES: `append` sees to it.
        let header = ChunkHeader {
            kind,
            encoding,
            stored_bytes: stored.len() as u32,
            payload_bytes: payload.len() as u32,
            stored_crc32c: crc32c::crc32c(stored),
        };
        self.write(&header.to_bytes())?;
        self.write(stored)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.output.write_all(bytes).map_err(StoreError::Write)?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}
