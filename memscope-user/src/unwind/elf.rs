//! Where an ELF file keeps its call frame information, and where its code is.

use std::{borrow::Cow, cell::Cell, fs::File, ops::Range, os::unix::fs::FileExt as _};

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::{
    Endianness, FileKind, Object as _, ObjectSection as _, ReadCache, ReadCacheOps, ReadRef, elf,
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
    /// Sections that are there and cannot be read.
    pub(super) unreadable_sections: u64,
    text_svma: Option<u64>,
    got_svma: Option<u64>,
}

impl<'data> CallFrames<'data> {
    /// Finds what an ELF file says.
    pub(super) fn read<R: ReadRef<'data>>(data: R) -> Result<Self, UnwindError> {
        let file = Program::read(data)?;
        let mut found = Self { code: file.code(), entry_svma: file.entry(), ..Self::default() };
        let mut has_eh_frame = false;
        // Nothing that runs needs section headers, so they may be damaged, or none.
        match ElfFile64::<Endianness, R>::parse(data) {
            Ok(elf) => {
                for section in elf.sections() {
                    has_eh_frame |= section.name_bytes() == Ok(b".eh_frame");
                    found.section(&section)?;
                }
            }
            Err(_) => found.unreadable_sections += 1,
        }
        if !has_eh_frame {
            found.eh_frame.extend(file.eh_frame());
        }
        Ok(found)
    }

    /// Takes what a section has to say.
    fn section(&mut self, section: &impl object::ObjectSection<'data>) -> Result<(), UnwindError> {
        self.unreadable_sections += match section.name_bytes() {
            Ok(b".eh_frame") => push(&mut self.eh_frame, section)?,
            Ok(b".debug_frame" | b".zdebug_frame") => push(&mut self.debug_frame, section)?,
            Ok(b".text") => {
                self.text_svma = Some(section.address());
                0
            }
            Ok(b".got") => {
                self.got_svma = Some(section.address());
                0
            }
            _ => 0,
        };
        Ok(())
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
        number(&mut hash, self.unreadable_sections);
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

/// What is known of a file by what the kernel loads it by.
struct Program<'data, R> {
    data: R,
    header: &'data elf::FileHeader64<Endianness>,
    segments: &'data [elf::ProgramHeader64<Endianness>],
}

/// Of x86-64.
const ENDIAN: Endianness = Endianness::Little;

impl<'data, R: ReadRef<'data>> Program<'data, R> {
    fn read(data: R) -> Result<Self, UnwindError> {
        if FileKind::parse(data).map_err(UnwindError::NotElf)? == FileKind::Elf32 {
            let header =
                elf::FileHeader32::<Endianness>::parse(data).map_err(UnwindError::NotElf)?;
            let machine = header.e_machine(header.endian().map_err(UnwindError::NotElf)?).0;
            return Err(UnwindError::Machine { machine, class: elf::ELFCLASS32.0 });
        }
        let header = elf::FileHeader64::<Endianness>::parse(data).map_err(UnwindError::NotElf)?;
        let endian = header.endian().map_err(UnwindError::NotElf)?;
        let machine = header.e_machine(endian);
        if machine != elf::EM_X86_64 || endian != ENDIAN {
            return Err(UnwindError::Machine { machine: machine.0, class: elf::ELFCLASS64.0 });
        }
        let segments = header.program_headers(ENDIAN, data).map_err(UnwindError::NotElf)?;
        Ok(Self { data, header, segments })
    }

    fn of_type(
        &self,
        kind: elf::ProgramType,
    ) -> impl Iterator<Item = &'data elf::ProgramHeader64<Endianness>> {
        self.segments.iter().filter(move |segment| segment.p_type(ENDIAN) == kind)
    }

    /// Executable segments without the file's own headers, which no function lies in: what
    /// a linker has removed often is left with the address 0.
    fn code(&self) -> Vec<Range<u64>> {
        let table = self.header.e_phoff(ENDIAN);
        let table_bytes = size_of_val(self.segments) as u64;
        let headers =
            [0..size_of_val(self.header) as u64, table..table.saturating_add(table_bytes)];
        let mut ranges: Vec<Range<u64>> = self
            .of_type(elf::PT_LOAD)
            .filter(|segment| segment.p_flags(ENDIAN).contains(elf::PF_X))
            .filter_map(|segment| {
                let start = segment.p_vaddr(ENDIAN);
                let end = start.checked_add(segment.p_filesz(ENDIAN))?;
                let mut skipped = 0;
                for headers in &headers {
                    let file_offset = segment.p_offset(ENDIAN).saturating_add(skipped);
                    if headers.contains(&file_offset) {
                        skipped += headers.end - file_offset;
                    }
                }
                Some(start.saturating_add(skipped)..end)
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
    /// accident of some linkers; they need other libraries and name no interpreter, which
    /// tells them apart.
    fn entry(&self) -> Option<u64> {
        let needs_libraries = || {
            self.segments
                .iter()
                .filter_map(|segment| segment.dynamic(ENDIAN, self.data).ok().flatten())
                .flatten()
                .any(|entry| entry.d_tag(ENDIAN) == elf::DT_NEEDED)
        };
        let is_program = self.header.e_type(ENDIAN) == elf::ET_EXEC
            || self.of_type(elf::PT_INTERP).next().is_some()
            || !needs_libraries();
        is_program.then(|| self.header.e_entry(ENDIAN)).filter(|entry| *entry != 0)
    }

    /// `.eh_frame` in a file without section headers: its header is a segment and says
    /// where it begins. It ends with a zero.
    fn eh_frame(&self) -> Option<Frames<'data>> {
        let segment = self.of_type(elf::PT_GNU_EH_FRAME).next()?;
        if segment.p_filesz(ENDIAN) > MAX_SECTION_BYTES {
            return None;
        }
        let bytes = segment.data(ENDIAN, self.data).ok()?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(segment.p_vaddr(ENDIAN));
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
        let Pointer::Direct(svma) = header.eh_frame_ptr() else { return None };
        self.of_type(elf::PT_LOAD).find_map(|segment| {
            let inside = svma.checked_sub(segment.p_vaddr(ENDIAN))?;
            let length = segment.p_filesz(ENDIAN).checked_sub(inside)?.min(MAX_SECTION_BYTES);
            let file_offset = segment.p_offset(ENDIAN).checked_add(inside)?;
            let bytes = self.data.read_bytes_at(file_offset, length).ok()?;
            Some(Frames { svma, bytes: Cow::Borrowed(bytes) })
        })
    }
}

/// Gives how many sections could not be read.
fn push<'data>(
    found: &mut Vec<Frames<'data>>,
    section: &impl object::ObjectSection<'data>,
) -> Result<u64, UnwindError> {
    let Ok(range) = section.compressed_file_range() else { return Ok(1) };
    let bytes = range.uncompressed_size.max(range.compressed_size);
    if bytes > MAX_SECTION_BYTES {
        return Err(UnwindError::SectionTooLarge { bytes });
    }
    if found.len() == MAX_SAME_SECTIONS {
        return Ok(1);
    }
    let Ok(bytes) = section.compressed_data().and_then(object::CompressedData::decompress) else {
        return Ok(1);
    };
    if !bytes.is_empty() {
        found.push(Frames { svma: section.address(), bytes });
    }
    Ok(0)
}

/// A file that is read in parts, as far as the limits allow. It is not mapped: who cuts a
/// mapped file short kills the one who reads it.
#[derive(Debug)]
pub(super) struct Parts<'file> {
    cache: ReadCache<Position<'file>>,
    left_bytes: Cell<u64>,
}

impl<'file> Parts<'file> {
    pub(super) fn of(file: &'file File) -> Self {
        let cache = ReadCache::new(Position { file, offset: 0 });
        Self { cache, left_bytes: Cell::new(MAX_READ_BYTES) }
    }

    fn take(&self, bytes: u64) -> Result<(), ()> {
        self.left_bytes.set(self.left_bytes.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'parts> ReadRef<'parts> for &'parts Parts<'_> {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'parts [u8], ()> {
        self.take(size)?;
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'parts [u8], ()> {
        // What the cache reads of a string at most.
        self.take(4096)?;
        (&self.cache).read_bytes_at_until(range, delimiter)
    }
}

/// A place in a file. The descriptor's own position, which others may share, stays.
#[derive(Debug)]
struct Position<'file> {
    file: &'file File,
    offset: u64,
}

impl ReadCacheOps for Position<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(drop)
    }

    fn seek(&mut self, offset: u64) -> Result<u64, ()> {
        self.offset = offset;
        Ok(offset)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ()> {
        let read = self.file.read_at(bytes, self.offset).map_err(drop)?;
        self.offset = self.offset.checked_add(read as u64).ok_or(())?;
        Ok(read)
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ()> {
        self.file.read_exact_at(bytes, self.offset).map_err(drop)?;
        self.offset = self.offset.checked_add(bytes.len() as u64).ok_or(())?;
        Ok(())
    }
}
