//! A file that is read in blocks, so that its many names are not read one by one.

use std::{fs::File, ops::Range};

use object::{ReadCache, ReadRef};

/// What is read at once of a file's names.
const BLOCK_BYTES: u64 = 1 << 16;

/// An open file. Strings, of which symbol tables have thousands, are looked for in blocks
/// that are read once: a system call and two pieces of memory for each would take ten
/// times as long.
#[derive(Debug)]
pub(super) struct Blocks<'file> {
    cache: ReadCache<&'file File>,
}

impl<'file> Blocks<'file> {
    pub(super) fn of(file: &'file File) -> Self {
        Self { cache: ReadCache::new(file) }
    }
}

impl<'blocks> ReadRef<'blocks> for &'blocks Blocks<'_> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'blocks [u8], ()> {
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'blocks [u8], ()> {
        let begin = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = begin.saturating_add(BLOCK_BYTES).min(self.len()?);
        let block = self.read_bytes_at(begin, end.checked_sub(begin).ok_or(())?)?;
        let inside = |offset: u64| usize::try_from(offset.checked_sub(begin)?).ok();
        let rest = inside(range.start)
            .zip(inside(range.end.min(end)))
            .and_then(|(start, end)| block.get(start..end))
            .ok_or(())?;
        match rest.iter().position(|byte| *byte == delimiter) {
            Some(length) => rest.get(..length).ok_or(()),
            // It goes on behind the block, or is not there.
            None => (&self.cache).read_bytes_at_until(range, delimiter),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn strings_are_found_wherever_they_lie() {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![b'x'; 2 * block + 100];
        // Within a block, up to its last byte, across two, at the end of the file.
        for end in [10, block - 1, block + 5, 2 * block + 99] {
            bytes[end] = 0;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let blocks = Blocks::of(&file);
        let until = |start: usize, end: usize| {
            (&blocks).read_bytes_at_until(start as u64..end as u64, 0).map(<[u8]>::len)
        };
        assert_eq!(until(0, bytes.len()), Ok(10));
        assert_eq!(until(10, bytes.len()), Ok(0));
        assert_eq!(until(block - 20, bytes.len()), Ok(19));
        assert_eq!(until(block, bytes.len()), Ok(5));
        assert_eq!(until(2 * block - 7, bytes.len()), Ok(106));
        assert_eq!(until(2 * block + 50, bytes.len()), Ok(49));
        // Not there, beyond the limit, beyond the file.
        assert_eq!(until(block + 6, block + 100), Err(()));
        assert_eq!(until(0, 10), Err(()));
        assert_eq!(until(bytes.len() + 1, bytes.len() + 2), Err(()));
        assert_eq!(until(3 * block, 3 * block + 2), Err(()));
    }
}
