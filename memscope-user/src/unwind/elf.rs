//! Where an ELF file keeps its call frame information, and where its code is.

use std::{borrow::Cow, cell::Cell, fs::File, ops::Range};

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::{
    Endianness, FileKind, Object as _, ObjectSection as _, ReadCache, ReadRef, elf as constants,
    read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _},
};
use sha2::{Digest as _, Sha256};

use super::{MAX_READ_BYTES, MAX_SECTION_BYTES, UnwindError};

/// Sections with one name that are read; a file has one, or two of different types.
const MAX_SAME_SECTIONS: usize = 4;

/// A section of call frame information.
#[derive(Debug)]
pub(super) struct Frames<'data> {
    pub(super) svma: u64,
    pub(super) bytes: Cow<'data, [u8]>,
}

/// All that a table is made from.
#[derive(Debug, Default)]
pub(super) struct CallFrames<'data> {
    /// What is loaded as code, in ascending order, apart from each other.
    pub(super) code: Vec<Range<u64>>,
    /// The first instruction of a program, if the file is one.
    pub(super) entry_svma: Option<u64>,
    /// `.eh_frame`.
    pub(super) eh_frame: Vec<Frames<'data>>,
    /// `.debug_frame`.
    pub(super) debug_frame: Vec<Frames<'data>>,
    text_svma: Option<u64>,
    got_svma: Option<u64>,
}

impl<'data> CallFrames<'data> {
    /// Finds what an ELF file says.
    pub(super) fn read<R: ReadRef<'data>>(data: R) -> Result<Self, UnwindError> {
        let elf = parse(data)?;
        let (endian, header) = (elf.endian(), elf.elf_header());
        let machine = header.e_machine(endian);
        if machine != constants::EM_X86_64 || endian != Endianness::Little {
            return Err(UnwindError::Machine {
                machine: machine.0,
                class: header.e_ident().class.0,
            });
        }
        let mut found = Self { code: code(&elf), ..Self::default() };
        found.entry_svma = entry(&elf, data);
        for section in elf.sections() {
            match section.name_bytes() {
                Ok(b".eh_frame") => push(&mut found.eh_frame, &section)?,
                Ok(b".debug_frame" | b".zdebug_frame") => push(&mut found.debug_frame, &section)?,
                Ok(b".text") => found.text_svma = Some(section.address()),
                Ok(b".got") => found.got_svma = Some(section.address()),
                _ => {}
            }
        }
        if found.eh_frame.is_empty() {
            found.eh_frame.extend(by_program_header(&elf, data));
        }
        Ok(found)
    }

    /// What pointers in a section may be relative to.
    pub(super) fn bases(&self, section: &Frames<'_>) -> BaseAddresses {
        let mut bases = BaseAddresses::default().set_eh_frame(section.svma);
        if let Some(svma) = self.text_svma {
            bases = bases.set_text(svma);
        }
        if let Some(svma) = self.got_svma {
            bases = bases.set_got(svma);
        }
        bases
    }

    /// How much call frame information there is.
    pub(super) fn bytes(&self) -> usize {
        self.eh_frame.iter().chain(&self.debug_frame).map(|section| section.bytes.len()).sum()
    }

    /// Tells apart all that gives different tables.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, number: u64| hash.update(number.to_le_bytes());
        number(&mut hash, self.code.len() as u64);
        for range in &self.code {
            number(&mut hash, range.start);
            number(&mut hash, range.end);
        }
        for svma in [self.entry_svma, self.text_svma, self.got_svma] {
            number(&mut hash, u64::from(svma.is_some()));
            number(&mut hash, svma.unwrap_or_default());
        }
        for sections in [&self.eh_frame, &self.debug_frame] {
            number(&mut hash, sections.len() as u64);
            for section in sections {
                number(&mut hash, section.svma);
                number(&mut hash, section.bytes.len() as u64);
                hash.update(&section.bytes);
            }
        }
        hash.finalize().into()
    }
}

type Elf<'data, R> = ElfFile64<'data, Endianness, R>;

fn parse<'data, R: ReadRef<'data>>(data: R) -> Result<Elf<'data, R>, UnwindError> {
    if FileKind::parse(data).map_err(UnwindError::NotElf)? == FileKind::Elf32 {
        let header =
            constants::FileHeader32::<Endianness>::parse(data).map_err(UnwindError::NotElf)?;
        let machine = header.e_machine(header.endian().map_err(UnwindError::NotElf)?);
        return Err(UnwindError::Machine { machine: machine.0, class: header.e_ident.class.0 });
    }
    ElfFile64::parse(data).map_err(UnwindError::NotElf)
}

/// Executable segments without the file's own headers, which no function lies in: what a
/// linker has removed often is left with the address 0.
fn code<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Vec<Range<u64>> {
    let endian = elf.endian();
    let header = elf.elf_header();
    let headers_bytes = u64::from(header.e_phnum(endian))
        .saturating_mul(u64::from(header.e_phentsize(endian)))
        .saturating_add(header.e_phoff(endian));
    let mut ranges: Vec<Range<u64>> = elf
        .elf_program_headers()
        .iter()
        .filter(|segment| {
            segment.p_type(endian) == constants::PT_LOAD
                && segment.p_flags(endian).contains(constants::PF_X)
        })
        .filter_map(|segment| {
            let start = segment.p_vaddr(endian);
            let end = start.checked_add(segment.p_filesz(endian))?;
            let after_headers = headers_bytes.saturating_sub(segment.p_offset(endian));
            Some(start.saturating_add(after_headers)..end)
        })
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges.dedup_by(|next, before| {
        let joined = next.start <= before.end;
        if joined {
            before.end = before.end.max(next.end);
        }
        joined
    });
    ranges
}

/// Where a program or a dynamic loader begins. Libraries have an entry point too, by
/// accident of some linkers; they need other libraries and are not asked for by an
/// interpreter's name, which tells them apart.
fn entry<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, data: R) -> Option<u64> {
    let (endian, header) = (elf.endian(), elf.elf_header());
    let has = |kind| elf.elf_program_headers().iter().any(|part| part.p_type(endian) == kind);
    let needs_libraries = || {
        elf.elf_program_headers()
            .iter()
            .filter_map(|part| part.dynamic(endian, data).ok().flatten())
            .flatten()
            .any(|entry| entry.d_tag(endian) == constants::DT_NEEDED)
    };
    let is_program = header.e_type(endian) == constants::ET_EXEC
        || has(constants::PT_INTERP)
        || !needs_libraries();
    is_program.then(|| header.e_entry(endian)).filter(|entry| *entry != 0)
}

fn push<'data>(
    found: &mut Vec<Frames<'data>>,
    section: &impl object::ObjectSection<'data>,
) -> Result<(), UnwindError> {
    if found.len() == MAX_SAME_SECTIONS {
        return Ok(());
    }
    let Ok(range) = section.compressed_file_range() else { return Ok(()) };
    let bytes = range.uncompressed_size.max(range.compressed_size);
    if bytes > MAX_SECTION_BYTES {
        return Err(UnwindError::SectionTooLarge { bytes });
    }
    if let Ok(bytes) = section.compressed_data().and_then(object::CompressedData::decompress) {
        found.push(Frames { svma: section.address(), bytes });
    }
    Ok(())
}

/// `.eh_frame` in a file without section headers: its header is a segment and says where
/// it begins. It ends with a zero.
fn by_program_header<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    data: R,
) -> Option<Frames<'data>> {
    let endian = elf.endian();
    let segment = elf
        .elf_program_headers()
        .iter()
        .find(|segment| segment.p_type(endian) == constants::PT_GNU_EH_FRAME)?;
    let header_svma = segment.p_vaddr(endian);
    if segment.p_filesz(endian) > MAX_SECTION_BYTES {
        return None;
    }
    let bytes = segment.data(endian, data).ok()?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header_svma);
    let header = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
    let Pointer::Direct(svma) = header.eh_frame_ptr() else { return None };
    elf.elf_program_headers().iter().find_map(|segment| {
        if segment.p_type(endian) != constants::PT_LOAD {
            return None;
        }
        let inside = svma.checked_sub(segment.p_vaddr(endian))?;
        let length = segment.p_filesz(endian).checked_sub(inside)?.min(MAX_SECTION_BYTES);
        let file_offset = segment.p_offset(endian).checked_add(inside)?;
        let bytes = data.read_bytes_at(file_offset, length).ok()?;
        Some(Frames { svma, bytes: Cow::Borrowed(bytes) })
    })
}

/// A file that is read in parts, as far as the limits allow. It is not mapped: who cuts a
/// mapped file short kills the one who reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'file> {
    cache: &'file ReadCache<&'file File>,
    left_bytes: &'file Cell<u64>,
}

impl<'file> Parts<'file> {
    pub(super) fn limit() -> Cell<u64> {
        Cell::new(MAX_READ_BYTES)
    }

    pub(super) fn new(cache: &'file ReadCache<&'file File>, left_bytes: &'file Cell<u64>) -> Self {
        Self { cache, left_bytes }
    }

    fn take(self, bytes: u64) -> Result<(), ()> {
        self.left_bytes.set(self.left_bytes.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'file> ReadRef<'file> for Parts<'file> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'file [u8], ()> {
        self.take(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'file [u8], ()> {
        // What the cache reads of a string at most.
        self.take(4096)?;
        self.cache.read_bytes_at_until(range, delimiter)
    }
}
