//! The functions of a file with their call frame information, held in memory.

use std::{fs::File, ops::Range};

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, FrameDescriptionEntry,
    UnwindOffset,
};

use super::super::{
    UnwindError,
    cfi::{self, MAX_COMMON_ENTRY_BYTES},
    elf::{self, CallFrames, Parts},
    layout::MAX_ENTRY_BYTES,
    rule::Slice,
};

/// Most functions of a file; browsers and compilers have half a million.
const MAX_FUNCTIONS: usize = 1 << 23;
/// Longest entry that is executed; those of the largest functions have some 30 KiB.
const MAX_FUNCTION_ENTRY_BYTES: usize = 1 << 18;

/// Call frame information of a file, in order of addresses.
#[derive(Debug, Default)]
pub struct FrameInfo {
    code: Vec<Range<u64>>,
    entry_svma: Option<u64>,
    base_svma: u64,
    sections: Vec<Section>,
    /// Those of `.eh_frame`, and of `.debug_frame` for where there are none of the others.
    functions: [Vec<Function>; 2],
}

#[derive(Debug)]
struct Section {
    is_eh_frame: bool,
    bases: BaseAddresses,
    bytes: Vec<u8>,
}

/// A function, as offsets from the base, and where its entry begins.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u32,
    end: u32,
    section: u32,
    entry_offset: u32,
}

/// What a file says of an address.
pub(super) enum Found<'info> {
    /// No function is there.
    Nothing,
    /// No function is there, but what the program begins with: nobody calls it.
    Start,
    EhFrame(Entry<'info, EhFrame<Slice<'info>>>),
    DebugFrame(Entry<'info, DebugFrame<Slice<'info>>>),
    /// A function whose entry cannot be read.
    Unreadable,
}

/// A function's entry in a section.
pub(super) struct Entry<'info, S> {
    pub(super) section: S,
    pub(super) bases: &'info BaseAddresses,
    pub(super) function: FrameDescriptionEntry<Slice<'info>>,
}

impl FrameInfo {
    /// Reads what an open file says. It is read, not mapped: who cuts a mapped file short
    /// kills the one who reads it.
    ///
    /// # Errors
    ///
    /// If it is no ELF file, for another machine, or over a limit.
    pub fn from_file(file: &File) -> Result<Self, UnwindError> {
        let parts = Parts::of(file);
        Self::of(CallFrames::read(&parts)?)
    }

    /// Reads an ELF file, or the vDSO's image.
    ///
    /// # Errors
    ///
    /// As of [`Self::from_file`].
    pub fn from_elf(data: &[u8]) -> Result<Self, UnwindError> {
        Self::of(CallFrames::read(data)?)
    }

    /// Memory that it takes up.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let functions: usize = self.functions.iter().map(Vec::len).sum();
        let sections: usize = self.sections.iter().map(|section| section.bytes.len()).sum();
        functions.saturating_mul(size_of::<Function>()).saturating_add(sections)
    }

    fn of(file: CallFrames<'_>) -> Result<Self, UnwindError> {
        let mut info = Self {
            base_svma: file.code.first().map_or(0, |code| code.start),
            entry_svma: file.entry_svma,
            code: file.code.clone(),
            ..Self::default()
        };
        let bases: Vec<BaseAddresses> = file
            .eh_frame
            .iter()
            .chain(&file.debug_frame)
            .map(|section| file.bases(section))
            .collect();
        let eh_frames = file.eh_frame.len();
        let sections = file.eh_frame.into_iter().chain(file.debug_frame);
        for (number, (elf::Frames { bytes, .. }, bases)) in sections.zip(bases).enumerate() {
            let is_eh_frame = number < eh_frames;
            let section = Section { is_eh_frame, bases, bytes: bytes.into_owned() };
            let place = u32::try_from(number).or(Err(UnwindError::TooManyRows))?;
            if is_eh_frame {
                let view = section.view::<EhFrame<_>>();
                info.collect(0, &view, &section.bases, place)?;
            } else {
                let view = section.view::<DebugFrame<_>>();
                info.collect(1, &view, &section.bases, place)?;
            }
            info.sections.push(section);
        }
        for functions in &mut info.functions {
            // Of those that begin together the first holds, as in the tables.
            functions.sort_by_key(|function| function.start);
            functions.dedup_by_key(|function| function.start);
            functions.shrink_to_fit();
        }
        Ok(info)
    }

    /// Notes the functions of a section.
    fn collect<'data, S: cfi::Frames<'data>>(
        &mut self,
        list: usize,
        section: &S,
        bases: &BaseAddresses,
        place: u32,
    ) -> Result<(), UnwindError> {
        let mut common: Option<(usize, CommonInformationEntry<Slice<'data>>)> = None;
        let mut entries = section.entries(bases);
        // What comes after a broken entry cannot be found.
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(entry) = entry else { continue };
            let entry = entry.parse(|_, bases, offset| {
                let offset = UnwindOffset::into(offset);
                if let Some((known, entry)) = &common
                    && *known == offset
                {
                    return Ok(entry.clone());
                }
                let entry = common_entry(section, bases, offset)?;
                common = Some((offset, entry.clone()));
                Ok(entry)
            });
            let Some(function) = entry.ok().and_then(|entry| self.function(&entry, place)) else {
                continue;
            };
            let Some(functions) = self.functions.get_mut(list) else { return Ok(()) };
            if functions.len() == MAX_FUNCTIONS {
                return Err(UnwindError::TooManyRows);
            }
            functions.push(function);
        }
        Ok(())
    }

    /// None for one that is not in the code.
    fn function(&self, entry: &FrameDescriptionEntry<Slice<'_>>, section: u32) -> Option<Function> {
        let start_svma = entry.initial_address();
        let end_svma = start_svma.checked_add(entry.len())?;
        let at = self.code.partition_point(|code| code.start <= start_svma).checked_sub(1)?;
        if entry.len() == 0 || end_svma > self.code.get(at)?.end {
            return None;
        }
        let offset = |svma: u64| u32::try_from(svma.checked_sub(self.base_svma)?).ok();
        Some(Function {
            start: offset(start_svma)?,
            end: offset(end_svma)?,
            section,
            entry_offset: u32::try_from(entry.offset()).ok()?,
        })
    }

    /// What it says of an address of its own numbering.
    pub(super) fn find(&self, svma: u64) -> Found<'_> {
        let offset = svma.checked_sub(self.base_svma).and_then(|offset| u32::try_from(offset).ok());
        let Some(offset) = offset else { return Found::Nothing };
        let [preferred, others] = &self.functions;
        let function = function_at(preferred, offset).or_else(|| function_at(others, offset));
        let Some(function) = function else {
            return if self.is_start(offset) { Found::Start } else { Found::Nothing };
        };
        let section =
            usize::try_from(function.section).ok().and_then(|place| self.sections.get(place));
        section.and_then(|section| section.entry(function)).unwrap_or(Found::Unreadable)
    }

    /// Whether in a gap between functions the program begins, not far before.
    fn is_start(&self, offset: u32) -> bool {
        let Some(entry) = self
            .entry_svma
            .filter(|svma| self.code.iter().any(|code| code.contains(svma)))
            .and_then(|svma| u32::try_from(svma.checked_sub(self.base_svma)?).ok())
        else {
            return false;
        };
        let is_between = |functions: &[Function]| {
            functions
                .get(functions.partition_point(|function| function.start < entry))
                .is_some_and(|function| function.start <= offset)
        };
        (entry..entry.saturating_add(MAX_ENTRY_BYTES)).contains(&offset)
            && !self.functions.iter().any(|functions| is_between(functions))
    }
}

/// The one that begins last at an offset or before, if it reaches so far: as in the tables,
/// one that begins inside another cuts it short.
fn function_at(functions: &[Function], offset: u32) -> Option<Function> {
    let after = functions.partition_point(|function| function.start <= offset);
    let function = functions.get(after.checked_sub(1)?)?;
    (offset < function.end).then_some(*function)
}

/// One that is too long looks cut off.
fn common_entry<'data, S: cfi::Frames<'data>>(
    section: &S,
    bases: &BaseAddresses,
    offset: usize,
) -> gimli::Result<CommonInformationEntry<Slice<'data>>> {
    let bytes = section.section().slice();
    let end = offset.saturating_add(MAX_COMMON_ENTRY_BYTES).min(bytes.len());
    S::of(bytes.get(..end).unwrap_or_default()).cie_from_offset(bases, S::Offset::from(offset))
}

impl Section {
    fn view<'data, S: cfi::Frames<'data>>(&'data self) -> S {
        S::of(&self.bytes)
    }

    fn entry(&self, function: Function) -> Option<Found<'_>> {
        let offset = usize::try_from(function.entry_offset).ok()?;
        Some(if self.is_eh_frame {
            Found::EhFrame(self.parse(offset)?)
        } else {
            Found::DebugFrame(self.parse(offset)?)
        })
    }

    fn parse<'info, S: cfi::Frames<'info>>(&'info self, offset: usize) -> Option<Entry<'info, S>> {
        let end = offset.saturating_add(MAX_FUNCTION_ENTRY_BYTES).min(self.bytes.len());
        let near = S::of(self.bytes.get(..end)?);
        let function = near
            .fde_from_offset(&self.bases, S::Offset::from(offset), |section, bases, offset| {
                common_entry(section, bases, UnwindOffset::into(offset))
            })
            .ok()?;
        Some(Entry { section: self.view(), bases: &self.bases, function })
    }
}
