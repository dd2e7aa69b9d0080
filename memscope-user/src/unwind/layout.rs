//! Functions in order of their addresses, with what lies between them.

use std::{num::NonZero, ops::Range, thread};

use gimli::{DebugFrame, EhFrame};
use memscope_common::unwind::{RULE_END, RULE_NONE};

use super::{
    MAX_ROWS, PAGE_BYTES, Problems, RULE_UNSUPPORTED, UnwindError, UnwindRow, UnwindTable,
    cfi::{self, Frames, Part, Rules, Scope, TooManyRows},
    elf::{self, CallFrames},
};

/// How far the code that a program begins with reaches, if nothing says it: the longest
/// known, of glibc's dynamic loader, has 70 bytes up to its jump into the program.
pub(super) const MAX_ENTRY_BYTES: u32 = 128;
/// Call frame information that is worth another thread: some ten milliseconds.
const MIN_SHARE_BYTES: usize = 1 << 18;
/// Threads for one file at most.
const MAX_SHARES: usize = 16;

/// A range of a function: what of it no other one hides.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u32,
    end: u32,
    part: usize,
    rows: (u32, u32),
}

/// Makes a table of all that a file says.
pub(super) fn table(file: &CallFrames<'_>) -> Result<UnwindTable, UnwindError> {
    let base_svma = file.code.first().map_or(0, |code| code.start & !(PAGE_BYTES - 1));
    let rows_left = cfi::rows_limit();
    let scope = |section: &elf::Frames<'_>| Scope {
        base_svma,
        code: &file.code,
        bases: file.bases(section),
        rows_left: &rows_left,
        is_known: &|_, _| false,
    };
    let mut problems =
        Problems { broken_sections: file.unreadable_sections, ..Problems::default() };
    let mut parts = Vec::new();
    for section in &file.eh_frame {
        parts.extend(shares::<EhFrame<_>>(&section.bytes, &scope(section))?);
    }
    let mut extents = visible(extents(&parts, 0), &mut problems);
    let preferred = parts.len();
    let covered = covered(&extents);
    for section in &file.debug_frame {
        let is_known = |start, end| is_covered(&covered, start, end);
        let scope = Scope { is_known: &is_known, ..scope(section) };
        parts.extend(shares::<DebugFrame<_>>(&section.bytes, &scope)?);
    }
    let others = visible(self::extents(&parts, preferred), &mut problems);
    let others =
        others.into_iter().flat_map(|extent| outside(extent, &extents)).collect::<Vec<_>>();
    extents.extend(others);
    extents.sort_unstable_by_key(|extent| extent.start);

    let mut rules = Rules::new();
    let numbers: Vec<Vec<u32>> =
        parts.iter().map(|part| merge(part, &mut rules, &mut problems)).collect();
    let end_svma = file.code.last().map_or(0, |code| code.end);
    let mut writer = Writer { rows: Vec::new(), entry: entry(file, base_svma) };
    let mut reached = 0;
    for extent in &extents {
        writer.gap(reached, extent.start);
        if let (Some(part), Some(numbers)) = (parts.get(extent.part), numbers.get(extent.part)) {
            writer.function(extent, part, numbers);
        }
        reached = extent.end;
    }
    let end = u32::try_from(end_svma.saturating_sub(base_svma)).unwrap_or(u32::MAX);
    writer.gap(reached, end);
    writer.push(end.max(reached), RULE_NONE);
    if writer.rows.len() > MAX_ROWS {
        return Err(UnwindError::TooManyRows);
    }
    Ok(UnwindTable { base_svma, rows: writer.rows, rules: rules.list, problems })
}

/// Offset of the first instruction, if that lies in the code.
fn entry(file: &CallFrames<'_>, base_svma: u64) -> Option<u32> {
    let svma = file.entry_svma?;
    if !file.code.iter().any(|code| code.contains(&svma)) {
        return None;
    }
    u32::try_from(svma.checked_sub(base_svma)?).ok()
}

/// Reads a section on as many threads as there are processors and it is worth.
fn shares<'data, S: Frames<'data>>(
    bytes: &'data [u8],
    scope: &Scope<'_>,
) -> Result<Vec<Part>, UnwindError> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let count = (bytes.len() / MIN_SHARE_BYTES).clamp(1, processors.min(MAX_SHARES));
    let length = bytes.len().div_ceil(count);
    let share = |number: usize| {
        let start = number.saturating_mul(length);
        let end = if number + 1 == count { usize::MAX } else { start.saturating_add(length) };
        cfi::read::<S>(bytes, &(start..end), scope)
    };
    let parts: Result<Vec<Part>, TooManyRows> = thread::scope(|threads| {
        let others: Vec<_> = (1..count)
            .map(|number| {
                thread::Builder::new()
                    .name("memscope-unwind".to_owned())
                    .spawn_scoped(threads, move || share(number))
            })
            .collect();
        let first = share(0);
        let others = others.into_iter().zip(1..).map(|(other, number)| match other {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // No thread could be had: then it is done here.
            Err(_) => share(number),
        });
        std::iter::once(first).chain(others.collect::<Vec<_>>()).collect()
    });
    parts.map_err(|TooManyRows| UnwindError::TooManyRows)
}

/// The functions of all parts from one on, in the order of the file.
fn extents(parts: &[Part], from: usize) -> Vec<Extent> {
    let of_part = |(number, part): (usize, &Part)| {
        let extent = move |function: &cfi::Function| Extent {
            start: function.start,
            end: function.end,
            part: number,
            rows: function.rows,
        };
        part.functions.iter().map(extent).collect::<Vec<_>>()
    };
    parts.iter().enumerate().skip(from).flat_map(of_part).collect()
}

/// Orders functions and cuts them so that none overlaps another. The one that begins
/// last holds, and of those that begin together the first in the file, as in the search
/// table that linkers make and the language runtimes unwind by.
fn visible(mut functions: Vec<Extent>, problems: &mut Problems) -> Vec<Extent> {
    functions.sort_by_key(|function| function.start);
    functions.dedup_by(|next, before| {
        let hidden = next.start == before.start;
        let overlaps = next.start < before.end;
        if overlaps {
            problems.overlapping_functions += 1;
        }
        if overlaps && !hidden {
            before.end = next.start;
        }
        hidden
    });
    functions
}

/// The last of those that begin at an offset or before it.
fn at_or_before(extents: &[Extent], offset: u32) -> usize {
    extents.partition_point(|extent| extent.start <= offset).saturating_sub(1)
}

/// Where there are functions without a gap.
fn covered(extents: &[Extent]) -> Vec<Range<u32>> {
    let mut covered: Vec<Range<u32>> = Vec::new();
    for extent in extents {
        match covered.last_mut() {
            Some(last) if last.end == extent.start => last.end = extent.end,
            _ => covered.push(extent.start..extent.end),
        }
    }
    covered
}

fn is_covered(covered: &[Range<u32>], start: u32, end: u32) -> bool {
    let after = covered.partition_point(|range| range.start <= start);
    let range = after.checked_sub(1).and_then(|at| covered.get(at));
    range.is_some_and(|range| end <= range.end)
}

/// What of a function lies outside of others.
fn outside(function: Extent, others: &[Extent]) -> Vec<Extent> {
    let mut outside = Vec::new();
    let mut reached = function.start;
    for other in others.iter().skip(at_or_before(others, function.start)) {
        if other.start >= function.end {
            break;
        }
        if other.start > reached {
            outside.push(Extent { start: reached, end: other.start, ..function });
        }
        reached = reached.max(other.end);
    }
    if reached < function.end {
        outside.push(Extent { start: reached, ..function });
    }
    outside
}

/// Numbers of a part's rules among those of the file.
fn merge(part: &Part, rules: &mut Rules, problems: &mut Problems) -> Vec<u32> {
    problems.add(&part.problems);
    let mut over = false;
    let mut numbers = Vec::with_capacity(part.rules.list.len());
    for rule in &part.rules.list {
        let number = rules.number(*rule);
        over |= number.is_none();
        numbers.push(number.unwrap_or(RULE_UNSUPPORTED));
    }
    if over {
        let is_over = |row: &&UnwindRow| {
            row.rule != RULE_UNSUPPORTED && number_of(&numbers, row.rule) == RULE_UNSUPPORTED
        };
        problems.rows_over_rule_limit += part.rows.iter().filter(is_over).count() as u64;
    }
    numbers
}

fn number_of(numbers: &[u32], rule: u32) -> u32 {
    let number = usize::try_from(rule).ok().and_then(|rule| numbers.get(rule));
    number.copied().unwrap_or(RULE_UNSUPPORTED)
}

struct Writer {
    rows: Vec<UnwindRow>,
    entry: Option<u32>,
}

impl Writer {
    /// Appends a row; offsets do not descend.
    fn push(&mut self, offset: u32, rule: u32) {
        if self.rows.last().is_some_and(|last| last.offset == offset) {
            self.rows.pop();
        }
        // Before the first row, too, nothing is known.
        if self.rows.last().map_or(RULE_NONE, |last| last.rule) != rule {
            self.rows.push(UnwindRow { offset, rule });
        }
    }

    /// No function lies here. What a program begins with often has no call frame
    /// information; nobody calls it.
    fn gap(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        self.push(start, RULE_NONE);
        if let Some(entry) = self.entry.filter(|entry| (start..end).contains(entry)) {
            self.push(entry, RULE_END);
            let after = entry.saturating_add(MAX_ENTRY_BYTES);
            if after < end {
                self.push(after, RULE_NONE);
            }
        }
    }

    fn function(&mut self, extent: &Extent, part: &Part, numbers: &[u32]) {
        let index = |row: u32| usize::try_from(row).unwrap_or(usize::MAX);
        let rows = part.rows.get(index(extent.rows.0)..index(extent.rows.1)).unwrap_or_default();
        let before = rows.partition_point(|row| row.offset <= extent.start).saturating_sub(1);
        for row in rows.iter().skip(before) {
            if row.offset >= extent.end {
                break;
            }
            self.push(row.offset.max(extent.start), number_of(numbers, row.rule));
        }
    }
}
