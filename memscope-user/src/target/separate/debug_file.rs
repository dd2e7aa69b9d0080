//! Where distributions and compilers put debug information that is not in the file itself:
//! <https://sourceware.org/gdb/current/onlinedocs/gdb.html/Separate-Debug-Files.html>.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{DebugFileError, elf_facts::ElfFacts, foreign_file::open_in_root};

/// Where distributions put it.
const DEBUG_DIRECTORY: &str = "usr/lib/debug";
/// A build id is a hash of 16 or 20 bytes; one much shorter could fit anything.
const MIN_BUILD_ID_BYTES: usize = 8;
/// Longest build id that is looked for.
const MAX_BUILD_ID_BYTES: usize = 64;
/// Bytes of a file that are summed at once.
const CHECKSUM_BUFFER_BYTES: usize = 1 << 16;

/// A separate debug file, and what is in it.
#[derive(Debug)]
pub(crate) struct DebugFile {
    pub(crate) file: File,
    pub(crate) facts: ElfFacts,
}

/// What is looked for.
pub(crate) struct Wanted<'a> {
    /// The file's own, which the debug file has too; empty if it has none.
    pub(crate) build_id: &'a [u8],
    /// What the file says of its debug file.
    pub(crate) debug_link: Option<&'a (String, u32)>,
    /// Path of the file in the target's view.
    pub(crate) path: &'a Path,
}

impl Wanted<'_> {
    /// As [`Self::find`], in the target's view of the file systems, if that is another, and in
    /// memscope's.
    pub(crate) fn find_in(&self, root: Option<&File>) -> Option<DebugFile> {
        let own_root = File::open("/").ok();
        [root, own_root.as_ref()].into_iter().flatten().find_map(|root| self.find(root))
    }

    /// Looks in the usual places below a root of the file system: by build id first, then
    /// by the link's name beside the file, in `.debug` there, and under the same path in
    /// the debug directory.
    fn find(&self, root: &File) -> Option<DebugFile> {
        self.paths().find_map(|path| self.open(root, &path))
    }

    /// Where that is, in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.by_build_id().into_iter().chain(self.by_link())
    }

    /// The build id, if it is long enough to identify anything.
    pub(crate) fn usable_build_id(&self) -> Option<&[u8]> {
        (MIN_BUILD_ID_BYTES..=MAX_BUILD_ID_BYTES)
            .contains(&self.build_id.len())
            .then_some(self.build_id)
    }

    fn by_build_id(&self) -> Option<PathBuf> {
        let (first, rest) = self.usable_build_id()?.split_first()?;
        let name = format!(".build-id/{first:02x}/{}.debug", hexadecimal(rest));
        Some(Path::new(DEBUG_DIRECTORY).join(name))
    }

    fn by_link(&self) -> impl Iterator<Item = PathBuf> {
        let folder = self.path.parent().filter(|folder| folder.is_absolute());
        let link = self.debug_link.zip(folder);
        link.into_iter().flat_map(|((name, _), folder)| {
            let below = folder.strip_prefix("/").unwrap_or(folder);
            [
                folder.join(name),
                folder.join(".debug").join(name),
                Path::new(DEBUG_DIRECTORY).join(below).join(name),
            ]
        })
    }

    fn open(&self, root: &File, path: &Path) -> Option<DebugFile> {
        let file = open_in_root(root, path).ok()?;
        self.accept(file)
            .inspect_err(|error| {
                log::debug!("not taking debug information from {}: {error}", path.display());
            })
            .ok()
    }

    /// Whether an open file is the one wanted: it has the same build id or, where one of
    /// the two has none, the checksum that the link gives.
    pub(crate) fn accept(&self, file: File) -> Result<DebugFile, DebugFileError> {
        let facts = ElfFacts::read(&file)?;
        let belongs = if self.build_id.is_empty() || facts.build_id.is_empty() {
            let expected = self.debug_link.map(|(_, checksum)| *checksum);
            expected == Some(checksum(&file).map_err(DebugFileError::Read)?)
        } else {
            self.build_id == facts.build_id
        };
        if !belongs {
            return Err(DebugFileError::OtherFile);
        }
        if !facts.has_debug_info && !facts.has_symbol_table {
            return Err(DebugFileError::NoSymbols);
        }
        Ok(DebugFile { file, facts })
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// That of `.gnu_debuglink`, over the whole file.
fn checksum(mut file: &File) -> io::Result<u32> {
    // Whoever looked into it has moved the position.
    file.seek(SeekFrom::Start(0))?;
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHECKSUM_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finalize()),
            count => sum.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}
