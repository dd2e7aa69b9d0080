//! Call frame information, entry by entry: the functions of a section with their rows.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, DebugFrame, EhFrame, FrameDescriptionEntry,
    LittleEndian, UnwindContext, UnwindOffset, UnwindSection,
};
use memscope_common::unwind::Rule;
use rustc_hash::FxHashMap;

use super::{
    FIRST_RULES, MAX_FILE_RULES, MAX_ROWS, Problems, RULE_UNSUPPORTED, UnwindRow,
    rule::{self, Slice, Unsupported},
};

/// Longest common entry that is read; real ones have some 24 bytes. Its instructions are
/// executed for each function that refers to it.
pub(super) const MAX_COMMON_ENTRY_BYTES: usize = 4096;

/// Most rows of one function; the rest is marked as unsupported.
const MAX_FUNCTION_ROWS: usize = 1 << 20;

/// Rules by number, each once.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) list: Vec<Rule>,
    numbers: FxHashMap<Rule, u32>,
}

impl Rules {
    pub(super) fn new() -> Self {
        let numbers = FIRST_RULES.into_iter().zip(0..).collect();
        Self { list: FIRST_RULES.to_vec(), numbers }
    }

    /// Its number; none if there are too many.
    pub(super) fn number(&mut self, rule: Rule) -> Option<u32> {
        if let Some(number) = self.numbers.get(&rule) {
            return Some(*number);
        }
        if self.list.len() == MAX_FILE_RULES {
            return None;
        }
        let number = u32::try_from(self.list.len()).ok()?;
        self.list.push(rule);
        self.numbers.insert(rule, number);
        Some(number)
    }
}

/// A function, as offsets from the table's base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) start: u32,
    pub(super) end: u32,
    /// Where its rows begin and end in the list of its part. The first begins with it.
    pub(super) rows: (u32, u32),
}

/// What a part of a section says.
#[derive(Debug)]
pub(super) struct Part {
    /// In the order of the section.
    pub(super) functions: Vec<Function>,
    pub(super) rows: Vec<UnwindRow>,
    pub(super) rules: Rules,
    pub(super) problems: Problems,
}

/// A kind of section.
pub(super) trait Frames<'data>: UnwindSection<Slice<'data>> {
    fn of(bytes: &'data [u8]) -> Self;
}

impl<'data> Frames<'data> for EhFrame<Slice<'data>> {
    fn of(bytes: &'data [u8]) -> Self {
        let mut section = Self::new(bytes, LittleEndian);
        section.set_address_size(8);
        section
    }
}

impl<'data> Frames<'data> for DebugFrame<Slice<'data>> {
    fn of(bytes: &'data [u8]) -> Self {
        let mut section = Self::new(bytes, LittleEndian);
        section.set_address_size(8);
        section
    }
}

/// What the parts of a file have in common.
pub(super) struct Scope<'file> {
    pub(super) base_svma: u64,
    pub(super) code: &'file [Range<u64>],
    pub(super) bases: BaseAddresses,
    /// Rows that may still be made, in all parts.
    pub(super) rows_left: &'file AtomicUsize,
    /// Whether a function, by offsets, needs no rows.
    pub(super) is_known: &'file (dyn Fn(u32, u32) -> bool + Sync),
}

/// More rows than the limit.
#[derive(Debug)]
pub(super) struct TooManyRows;

/// Limits rows in memory, whatever the number of parts.
pub(super) fn rows_limit() -> AtomicUsize {
    AtomicUsize::new(MAX_ROWS)
}

type CommonEntry<'data> = CommonInformationEntry<Slice<'data>>;
type Entry<'data> = FrameDescriptionEntry<Slice<'data>>;

struct Evaluation<'data, 'file, S> {
    bytes: &'data [u8],
    section: S,
    scope: &'file Scope<'file>,
    context: Box<UnwindContext<usize>>,
    /// The last one used: neighbours mostly share it.
    common: Option<(usize, CommonEntry<'data>)>,
    last_rule: (Rule, u32),
    part: Part,
}

/// Reads the entries that begin in a range of a section.
pub(super) fn read<'data, S: Frames<'data>>(
    bytes: &'data [u8],
    share: &Range<usize>,
    scope: &Scope<'_>,
) -> Result<Part, TooManyRows> {
    let section = S::of(bytes);
    let rules = Rules::new();
    let part =
        Part { functions: Vec::new(), rows: Vec::new(), rules, problems: Problems::default() };
    let mut evaluation = Evaluation {
        bytes,
        section: section.clone(),
        scope,
        context: Box::default(),
        common: None,
        last_rule: (FIRST_RULES[0], 0),
        part,
    };
    let mut entries = section.entries(&scope.bases);
    loop {
        match entries.next() {
            Ok(Some(CieOrFde::Cie(_))) => {}
            Ok(Some(CieOrFde::Fde(entry))) => {
                if entry.offset() >= share.end {
                    break;
                }
                if !share.contains(&entry.offset()) {
                    continue;
                }
                let found = entry.parse(|_, bases, offset| {
                    evaluation.common_entry(bases, UnwindOffset::into(offset))
                });
                match found {
                    Ok(entry) => evaluation.function(&entry)?,
                    Err(_) => evaluation.part.problems.unreadable_entries += 1,
                }
            }
            Ok(None) => break,
            Err(_) => {
                // Each part that reaches it sees it; the last one counts it.
                if share.end >= bytes.len() {
                    evaluation.part.problems.broken_sections += 1;
                }
                break;
            }
        }
    }
    Ok(evaluation.part)
}

impl<'data, S: Frames<'data>> Evaluation<'data, '_, S> {
    fn common_entry(
        &mut self,
        bases: &BaseAddresses,
        offset: usize,
    ) -> gimli::Result<CommonEntry<'data>> {
        if let Some((known, entry)) = &self.common
            && *known == offset
        {
            return Ok(entry.clone());
        }
        // A longer one looks cut off.
        let end = offset.saturating_add(MAX_COMMON_ENTRY_BYTES).min(self.bytes.len());
        let near = S::of(self.bytes.get(..end).unwrap_or_default());
        let entry = near.cie_from_offset(bases, S::Offset::from(offset))?;
        self.common = Some((offset, entry.clone()));
        Ok(entry)
    }

    fn function(&mut self, entry: &Entry<'data>) -> Result<(), TooManyRows> {
        if entry.len() == 0 {
            return Ok(());
        }
        let Some((start, end)) = self.offsets(entry) else {
            self.part.problems.functions_outside_code += 1;
            return Ok(());
        };
        if (self.scope.is_known)(start, end) {
            return Ok(());
        }
        let first = self.part.rows.len();
        self.rows(entry, start, end);
        let made = self.part.rows.len().saturating_sub(first);
        let less = |left: usize| left.checked_sub(made);
        self.scope
            .rows_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .or(Err(TooManyRows))?;
        let number = |rows: usize| u32::try_from(rows).or(Err(TooManyRows));
        let rows = (number(first)?, number(self.part.rows.len())?);
        self.part.functions.push(Function { start, end, rows });
        Ok(())
    }

    /// Where a function is, if that is in the code.
    fn offsets(&self, entry: &Entry<'data>) -> Option<(u32, u32)> {
        let start_svma = entry.initial_address();
        let end_svma = start_svma.checked_add(entry.len())?;
        let code = self.scope.code;
        let at = code.partition_point(|range| range.start <= start_svma).checked_sub(1)?;
        if end_svma > code.get(at)?.end {
            return None;
        }
        let offset = |svma: u64| u32::try_from(svma.checked_sub(self.scope.base_svma)?).ok();
        Some((offset(start_svma)?, offset(end_svma)?))
    }

    /// Appends a function's rows. What cannot be read has the rule for what cannot be said.
    fn rows(&mut self, entry: &Entry<'data>, start: u32, end: u32) {
        let is_signal_frame = entry.is_signal_trampoline();
        let encoding = entry.cie().encoding();
        let is_usual = entry.cie().return_address_register() == gimli::X86_64::RA;
        // The first row may come late in a broken entry.
        let first = self.part.rows.len();
        let mut context = std::mem::take(&mut self.context);
        let mut reached = start;
        let mut broken = true;
        if let Ok(mut rows) = entry.rows(&self.section, &self.scope.bases, &mut context) {
            broken = loop {
                let row = match rows.next_row() {
                    Ok(Some(row)) => row,
                    Ok(None) => break false,
                    Err(_) => break true,
                };
                let offset = row.start_address().wrapping_sub(self.scope.base_svma);
                let row_end = row.end_address().wrapping_sub(self.scope.base_svma);
                let Ok(offset) = u32::try_from(offset) else { break true };
                if self.part.rows.len().saturating_sub(first) >= MAX_FUNCTION_ROWS {
                    break true;
                }
                if offset >= end {
                    // Rows that begin just at the end hold nowhere.
                    break offset > end;
                }
                if row_end <= u64::from(offset) {
                    continue;
                }
                let said = if is_usual {
                    rule::rule(row, &self.section, encoding, is_signal_frame)
                } else {
                    Err(Unsupported::ReturnAddress)
                };
                let rule = self.part.number(said, &mut self.last_rule);
                self.part.push(first, UnwindRow { offset, rule });
                reached = u32::try_from(row_end).map_or(end, |row_end| row_end.min(end));
            };
        }
        self.context = context;
        if broken {
            self.part.problems.unreadable_entries += 1;
        }
        if reached < end {
            self.part.push(first, UnwindRow { offset: reached, rule: RULE_UNSUPPORTED });
        }
    }
}

impl Part {
    fn number(&mut self, said: Result<Rule, Unsupported>, last: &mut (Rule, u32)) -> u32 {
        let counter = match said {
            Ok(rule) if rule == last.0 => return last.1,
            Ok(rule) => match self.rules.number(rule) {
                Some(number) => {
                    *last = (rule, number);
                    return number;
                }
                None => &mut self.problems.rows_over_rule_limit,
            },
            Err(Unsupported::FrameAddress) => &mut self.problems.unsupported_frame_addresses,
            Err(Unsupported::ReturnAddress) => &mut self.problems.unsupported_return_addresses,
            Err(Unsupported::Register) => &mut self.problems.unsupported_registers,
        };
        *counter += 1;
        RULE_UNSUPPORTED
    }

    /// Appends a row of the function whose rows begin at `first`.
    fn push(&mut self, first: usize, row: UnwindRow) {
        let of_function = self.rows.get(first..).unwrap_or_default();
        if of_function.last().is_none_or(|last| last.rule != row.rule) {
            self.rows.push(row);
        }
    }
}
