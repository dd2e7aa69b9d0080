use std::io::Write;

use serde::Serialize;

use super::{
    CHUNK_DEFINITIONS_BYTES, ChunkHeader, ENCODING_PLAIN, FILE_HEADER_BYTES, KIND_CAPTURE,
    KIND_ENDING, KIND_ITEMS, MAGIC, MAJOR_VERSION, MAX_CHUNK_TAGS, MAX_DEFINITION_BYTES,
    MINOR_VERSION, StoreError, columns::Packer, encode::Encoder,
};
use crate::model::{Capture, Ending, Item};

/// Most tags that an event takes: its own, and one for a change of the sampling interval.
const MAX_EVENT_TAGS: usize = 2;

/// Writes a recording as it comes about. What was flushed stays readable whatever
/// happens to the writer.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    encoder: Encoder,
    packer: Packer,
    /// The chunk being written; kept for its memory.
    payload: Vec<u8>,
    /// The item being added; kept for its memory.
    encoded: Vec<u8>,
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
            encoder: Encoder::new(),
            packer: Packer::new().map_err(StoreError::Compress)?,
            payload: Vec::new(),
            encoded: Vec::new(),
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
            Item::Event(event) => self.encoder.event(event),
            definition => self.define(definition)?,
        }
        let full = self.encoder.tags() > MAX_CHUNK_TAGS - MAX_EVENT_TAGS
            || self.encoder.definition_bytes() >= CHUNK_DEFINITIONS_BYTES;
        if full { self.flush() } else { Ok(()) }
    }

    fn define(&mut self, item: &Item) -> Result<(), StoreError> {
        // Encoded apart, so that an item that cannot be written costs no other.
        let mut encoded = std::mem::take(&mut self.encoded);
        encoded.clear();
        self.encoded = postcard::to_extend(item, encoded).map_err(StoreError::Encode)?;
        let bytes = self.encoded.len();
        if bytes > MAX_DEFINITION_BYTES {
            return Err(StoreError::ItemTooLarge { bytes });
        }
        if self.encoder.definition_bytes() + bytes > MAX_DEFINITION_BYTES {
            self.flush()?;
        }
        self.encoder.definition(&self.encoded);
        Ok(())
    }

    /// Writes what has come together as a chunk.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        if self.encoder.tags() == 0 {
            return Ok(());
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let packed = self.encoder.pack(&mut self.packer, &mut payload);
        let written = packed
            .map_err(StoreError::Compress)
            .and_then(|()| self.write_chunk(KIND_ITEMS, &payload));
        self.payload = payload;
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
        // At most MAX_PAYLOAD_BYTES: definitions and tags have limits of their own.
        let bytes = payload.len() as u32;
        let header = ChunkHeader {
            kind,
            encoding: ENCODING_PLAIN,
            stored_bytes: bytes,
            payload_bytes: bytes,
            stored_crc32c: crc32c::crc32c(payload),
        };
        self.write(&header.to_bytes())?;
        self.write(payload)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.output.write_all(bytes).map_err(StoreError::Write)?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }
}
