use std::{
    fs::File,
    io::{self, Read as _},
};

use gimli::{EndianSlice, RunTimeEndian, UnitType};
use object::{
    CompressionFormat, Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache, SectionKind,
    SymbolKind,
};

use super::DebugFileError;

/// Largest file looked into.
const MAX_FILE_BYTES: u64 = 1 << 36;
/// Most bytes that a compressed section may say it has.
const MAX_SECTION_BYTES: u64 = 1 << 32;
/// How much larger than its compressed bytes a section may say it is: more than zlib can
/// do, and far more than debug information does.
const MAX_EXPANSION: u64 = 1100;
/// Most bytes that a compressed symbol table (`.gnu_debugdata`) may have, unpacked; those
/// of distributions have less than a hundredth.
const MAX_DEBUG_DATA_BYTES: u64 = 256 << 20;
/// How much of `.debug_info` and `.debug_abbrev` is searched for split units.
const MAX_SPLIT_SEARCH_BYTES: u64 = 64 << 20;
/// How many compilation units are.
const MAX_SPLIT_SEARCH_UNITS: usize = 4096;

/// What an ELF file has that names can come from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ElfFacts {
    /// GNU build id; empty if it has none.
    pub(crate) build_id: Vec<u8>,
    /// Name and checksum of its separate debug file, as `.gnu_debuglink` says.
    pub(crate) debug_link: Option<(String, u32)>,
    /// Whether there is DWARF in it.
    pub(crate) has_debug_info: bool,
    /// Whether it has functions in a `.symtab`.
    pub(crate) has_symbol_table: bool,
    /// Whether its DWARF has units that are in `.dwo` or `.dwp` files for the most part.
    pub(crate) is_split: bool,
}

impl ElfFacts {
    /// Looks into a file, and refuses one that would unpack to more than there is room for.
    pub(crate) fn read(file: &File) -> Result<Self, DebugFileError> {
        let metadata = file.metadata().map_err(DebugFileError::Read)?;
        if !metadata.is_file() {
            return Err(DebugFileError::NoRegularFile);
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(DebugFileError::TooLarge { bytes: metadata.len() });
        }
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(DebugFileError::NotElf)?;
        for section in elf.sections() {
            check_compression(&section)?;
        }
        let has_symbol_table = elf.symbols().any(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0
        });
        if !has_symbol_table && let Some(section) = elf.section_by_name(".gnu_debugdata") {
            check_debug_data(&section)?;
        }
        let debug_link = elf.gnu_debuglink().ok().flatten();
        Ok(Self {
            build_id: elf.build_id().ok().flatten().unwrap_or_default().to_vec(),
            debug_link: debug_link.and_then(|(name, checksum)| Some((link_name(name)?, checksum))),
            has_debug_info: elf.section_by_name(".debug_info").is_some_and(|section| {
                section.kind() != SectionKind::UninitializedData && has_bytes(&section)
            }),
            has_symbol_table,
            is_split: has_split_units(&elf),
        })
    }
}

/// The name alone, as the format wants it: one with a path would lead to other folders.
fn link_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    plain.then(|| name.to_owned())
}

fn has_bytes<'data>(section: &impl object::ObjectSection<'data>) -> bool {
    section.file_range().is_some_and(|(_, length)| length > 0)
}

/// What is unpacked is reserved at the size that the file claims.
fn check_compression<'data>(
    section: &impl object::ObjectSection<'data>,
) -> Result<(), DebugFileError> {
    let range = section.compressed_file_range().map_err(DebugFileError::NotElf)?;
    let most = range.compressed_size.saturating_mul(MAX_EXPANSION).min(MAX_SECTION_BYTES);
    if range.format != CompressionFormat::None && range.uncompressed_size > most {
        return Err(DebugFileError::Expansion { bytes: range.uncompressed_size });
    }
    Ok(())
}

/// xz does not say at its beginning how much it holds, so it is unpacked once for nothing.
fn check_debug_data<'data>(
    section: &impl object::ObjectSection<'data>,
) -> Result<(), DebugFileError> {
    let packed = section.data().map_err(DebugFileError::NotElf)?;
    let unpacked = xz2::read::XzDecoder::new(packed).take(MAX_DEBUG_DATA_BYTES + 1);
    // What cannot be unpacked has no names; whoever needs it will say so.
    match io::copy(&mut { unpacked }, &mut io::sink()) {
        Ok(bytes) if bytes > MAX_DEBUG_DATA_BYTES => Err(DebugFileError::Expansion { bytes }),
        _ => Ok(()),
    }
}

/// Whether there are skeleton units: DWARF 5 marks them in the unit's header, DWARF 4 as
/// GNU extended it has the name of the other file in the first entry.
fn has_split_units<'data>(elf: &impl object::Object<'data>) -> bool {
    let bytes = |name| {
        let section = elf.section_by_name(name)?;
        let plain = section
            .compressed_file_range()
            .is_ok_and(|range| range.format == CompressionFormat::None);
        let length = section.size().min(MAX_SPLIT_SEARCH_BYTES);
        plain.then(|| section.data_range(section.address(), length).ok().flatten()).flatten()
    };
    let (Some(info), Some(abbreviations)) = (bytes(".debug_info"), bytes(".debug_abbrev")) else {
        return false;
    };
    let endian = if elf.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let abbreviations = gimli::DebugAbbrev::from(EndianSlice::new(abbreviations, endian));
    let mut units = gimli::DebugInfo::from(EndianSlice::new(info, endian)).units();
    for _ in 0..MAX_SPLIT_SEARCH_UNITS {
        let Ok(Some(unit)) = units.next() else { return false };
        if matches!(unit.type_(), UnitType::Skeleton(_)) {
            return true;
        }
        if unit.version() < 5
            && let Ok(abbreviations) = unit.abbreviations(&abbreviations)
            && let Ok(root) = unit.entry(&abbreviations, unit.root_offset())
            && root.attr(gimli::DW_AT_GNU_dwo_name).is_some()
        {
            return true;
        }
    }
    false
}
