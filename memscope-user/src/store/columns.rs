//! A chunk's items as columns: what is alike stands together, so that each column can be
//! compressed by its own statistics.

use std::io;

use super::{MAX_CHUNK_TAGS, MAX_PAYLOAD_BYTES, varint};

/// Fast rather than small: the writer shares its core with the collector.
const ZSTD_LEVEL: i32 = 1;
/// Shorter columns gain nothing.
const MIN_COMPRESSED_BYTES: usize = 64;
/// In a column's head: its data is compressed.
const COMPRESSED: u64 = 1;

/// Declares the columns and their order in a payload.
macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// The columns of a chunk. `T` is how the bytes of one are held.
        #[derive(Clone, Debug, Default)]
        pub(super) struct Columns<T> {
            $($(#[$doc])* pub(super) $name: T,)*
        }

        impl<T> Columns<T> {
            fn all(&self) -> [&T; COLUMNS] {
                [$(&self.$name),*]
            }

            fn all_mut(&mut self) -> [&mut T; COLUMNS] {
                [$(&mut self.$name),*]
            }

            /// The same in another form.
            fn map<'a, U>(&'a self, form: impl Fn(&'a T) -> U) -> Columns<U> {
                Columns { $($name: form(&self.$name)),* }
            }
        }

        const COLUMNS: usize = [$(stringify!($name)),*].len();
    };
}

columns! {
    /// A byte for each item: its kind, and what needs no bytes in other columns.
    tags
    /// Items that are no events, in postcard.
    definitions
    /// Low byte of the time since the event before.
    times_low
    /// The rest of it.
    times_high
    /// Who, where it is not the thread of the event before.
    threads
    /// How many addresses ago the address was seen last.
    distances
    /// Addresses not seen in this chunk.
    addresses
    /// Sizes, where they are not those that the stack had last.
    sizes
    /// Ids of stacks.
    stacks
    /// What is rare.
    others
}

impl Columns<Vec<u8>> {
    pub(super) fn clear(&mut self) {
        self.all_mut().into_iter().for_each(Vec::clear);
    }

    /// Appends all to a payload.
    pub(super) fn pack(&self, packer: &mut Packer, payload: &mut Vec<u8>) -> io::Result<()> {
        self.all().into_iter().try_for_each(|column| packer.pack(column, payload))
    }

    /// The columns of a payload; none if it is not made so, or beyond the limits.
    pub(super) fn unpack(mut payload: &[u8]) -> Option<Self> {
        let mut columns = Self::default();
        let mut room_bytes = MAX_PAYLOAD_BYTES as usize;
        for column in columns.all_mut() {
            *column = unpack(&mut payload, room_bytes)?;
            room_bytes -= column.len();
        }
        (payload.is_empty() && columns.tags.len() <= MAX_CHUNK_TAGS).then_some(columns)
    }

    pub(super) fn as_slices(&self) -> Columns<&[u8]> {
        self.map(Vec::as_slice)
    }
}

impl Columns<&[u8]> {
    /// Whether everything was taken.
    pub(super) fn are_empty(&self) -> bool {
        self.all().into_iter().all(|column| column.is_empty())
    }
}

/// Compresses columns; keeps what it needs for that.
pub(super) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?, compressed: Vec::new() })
    }

    fn pack(&mut self, column: &[u8], payload: &mut Vec<u8>) -> io::Result<()> {
        let head = (column.len() as u64) << 1;
        if column.len() >= MIN_COMPRESSED_BYTES {
            self.compressed.clear();
            self.compressed.reserve(zstd::zstd_safe::compress_bound(column.len()));
            let bytes = self.compressor.compress_to_buffer(column, &mut self.compressed)?;
            if bytes < column.len() {
                varint::push(payload, head | COMPRESSED);
                varint::push(payload, bytes as u64);
                payload.extend_from_slice(&self.compressed);
                return Ok(());
            }
        }
        varint::push(payload, head);
        payload.extend_from_slice(column);
        Ok(())
    }
}

/// Takes a column of at most so many bytes off the beginning of a payload.
fn unpack(payload: &mut &[u8], room_bytes: usize) -> Option<Vec<u8>> {
    let head = varint::take(payload)?;
    let column_bytes = usize::try_from(head >> 1).ok().filter(|bytes| *bytes <= room_bytes)?;
    if head & COMPRESSED == 0 {
        let (column, rest) = payload.split_at_checked(column_bytes)?;
        *payload = rest;
        return Some(column.to_vec());
    }
    let stored_bytes = usize::try_from(varint::take(payload)?).ok()?;
    let (stored, rest) = payload.split_at_checked(stored_bytes)?;
    *payload = rest;
    let column = zstd::bulk::decompress(stored, column_bytes).ok()?;
    (column.len() == column_bytes).then_some(column)
}
