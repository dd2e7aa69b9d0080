//! Unwind tables: for each instruction of an ELF file, how to find the caller of the
//! function it is in.
//!
//! Takes ELF files, all of them hostile; gives rows in the form that the eBPF side
//! searches (`memscope_common::unwind`), and the count of what could not be said in it.
//!
//! ```text
//! file ─▶ elf ──────▶ cfi ────────────▶ layout ─▶ UnwindTable
//!         sections,   rows of each      order,     ▲
//!         code        function, rule    gaps       │
//!                     by rule                      │
//!           └── digest ──▶ cache (a file per table)┘
//! ```

mod cache;
mod cfi;
mod copied;
mod elf;
mod layout;
mod rule;
mod tables;

#[cfg(test)]
mod tests;

use std::fmt;

pub use copied::{CodeAt, CopiedWalk, FrameInfo, MappedCode, walk_copy};
use memscope_common::unwind::{CFA_END, CFA_NONE, CFA_UNSUPPORTED, Rule};

pub use cache::{CacheError, TableCache};
pub use tables::{TableCounts, Tables};

/// Largest section of call frame information that is read, uncompressed. The largest
/// known, of browsers and of compilers, have some 30 MiB.
const MAX_SECTION_BYTES: u64 = 1 << 28;
/// Most that is read of one file, all its parts together.
const MAX_READ_BYTES: u64 = 1 << 30;
/// Most rows of a file; all of a compiler with its LLVM are under four million.
const MAX_ROWS: usize = 1 << 24;
/// Most rules of a file: half of what the kernel side holds for all files. Large
/// programs have some hundreds.
const MAX_FILE_RULES: usize = memscope_common::unwind::MAX_RULES / 2;
/// Offsets count from a multiple of this.
const PAGE_BYTES: u64 = 1 << memscope_common::unwind::PAGE_SHIFT;
/// In every table, the rule for what cannot be said.
const RULE_UNSUPPORTED: u32 = 2;

/// Why a file has no unwind table.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// It cannot be read.
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// It is no ELF file, or a damaged one.
    #[error("it is no intact ELF file")]
    NotElf(#[source] object::Error),
    /// It is for a processor that this cannot unwind for.
    #[error(
        "its machine code is for ELF machine {machine}, class {class}; only 64-bit x86-64 is known"
    )]
    Machine {
        /// `e_machine`.
        machine: u16,
        /// `EI_CLASS`: 1 for 32 bits, 2 for 64.
        class: u8,
    },
    /// A section with call frame information is larger than the limit.
    #[error("a section has {bytes} bytes, the limit is {MAX_SECTION_BYTES}")]
    SectionTooLarge {
        /// Its size, uncompressed.
        bytes: u64,
    },
    /// There would be more rows than the limit.
    #[error("more than {MAX_ROWS} rows of unwind information")]
    TooManyRows,
}

/// A row: from `offset` on, until the next row's offset, this rule holds.
#[repr(C)]
#[derive(
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
)]
pub struct UnwindRow {
    /// Bytes from the table's `base_svma`.
    pub offset: u32,
    /// Index into the table's `rules`.
    pub rule: u32,
}

/// The unwind rules of a file, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnwindTable {
    /// Where offsets count from, in the file's own numbering: a multiple of the page size.
    pub base_svma: u64,
    /// In ascending order of offsets, no two the same; neighbours have different rules.
    pub rows: Vec<UnwindRow>,
    /// No two the same. The first is that of gaps (`CFA_NONE`), the second that of
    /// outermost functions (`CFA_END`), the third that of what cannot be said
    /// (`CFA_UNSUPPORTED`).
    pub rules: Vec<Rule>,
    /// What is missing.
    pub problems: Problems,
}

impl UnwindTable {
    /// Reads the call frame information of an ELF file, or of the vDSO's image.
    ///
    /// Entries that are broken are counted and left out.
    ///
    /// # Errors
    ///
    /// If it is no ELF file, for another machine, or over a limit.
    pub fn from_elf(data: &[u8]) -> Result<Self, UnwindError> {
        layout::table(&elf::CallFrames::read(data)?)
    }

    /// The rule that holds at an address of the file's own numbering.
    #[must_use]
    pub fn rule_at(&self, svma: u64) -> Rule {
        let none = Rule::of_kind(CFA_NONE);
        let Some(offset) =
            svma.checked_sub(self.base_svma).and_then(|offset| u32::try_from(offset).ok())
        else {
            return none;
        };
        let after = self.rows.partition_point(|row| row.offset <= offset);
        after
            .checked_sub(1)
            .and_then(|at| self.rows.get(at))
            .and_then(|row| self.rules.get(usize::try_from(row.rule).ok()?))
            .copied()
            .unwrap_or(none)
    }

    /// Rows that say that the caller cannot be found.
    #[must_use]
    pub fn rows_not_followed(&self) -> u64 {
        let unsupported = self.rows.iter().filter(|row| self.cfa_of(row) == CFA_UNSUPPORTED);
        unsupported.count() as u64
    }

    /// How many bytes of a range, in the file's own numbering, rows speak of.
    #[must_use]
    pub fn covered_bytes(&self, range: &std::ops::Range<u64>) -> u64 {
        let svma_of = |row: &UnwindRow| self.base_svma.saturating_add(row.offset.into());
        let after = self.rows.partition_point(|row| svma_of(row) <= range.start);
        let rows = self.rows.get(after.saturating_sub(1)..).unwrap_or_default();
        let ends = rows.iter().skip(1).map(svma_of).chain([u64::MAX]);
        rows.iter()
            .zip(ends)
            .take_while(|(row, _)| svma_of(row) < range.end)
            .filter(|(row, _)| self.cfa_of(row) != CFA_NONE)
            .map(|(row, end)| end.min(range.end).saturating_sub(svma_of(row).max(range.start)))
            .sum()
    }

    fn cfa_of(&self, row: &UnwindRow) -> u8 {
        usize::try_from(row.rule)
            .ok()
            .and_then(|rule| self.rules.get(rule))
            .map_or(CFA_NONE, |rule| rule.cfa)
    }
}

/// The rules every table begins with.
const FIRST_RULES: [Rule; 3] =
    [Rule::of_kind(CFA_NONE), Rule::of_kind(CFA_END), Rule::of_kind(CFA_UNSUPPORTED)];

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $text:literal,)+) => {
        /// What a table lacks, counted by cause.
        #[repr(C)]
        #[derive(
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::Immutable,
            zerocopy::KnownLayout,
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
        )]
        pub struct Problems {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Problems {
            fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)+
            }

            fn named(&self) -> impl Iterator<Item = (u64, &'static str)> {
                [$((self.$name, $text)),+].into_iter().filter(|(count, _)| *count != 0)
            }
        }
    };
}

problems! {
    /// Sections whose entries could not be followed to the end: what came after is
    /// missing.
    broken_sections: "broken sections",
    /// Entries, or ends of entries, that could not be read.
    unreadable_entries: "unreadable entries",
    /// Functions that do not lie in the file's code: what a linker left of code that it
    /// removed.
    functions_outside_code: "functions outside of the code",
    /// Functions cut short by another that begins inside them, or hidden by one that
    /// begins where they do.
    overlapping_functions: "overlapping functions",
    /// Rows whose canonical frame address no rule can express.
    unsupported_frame_addresses: "rows with an unsupported frame address",
    /// Rows whose return address is not where it always is.
    unsupported_return_addresses: "rows with an unsupported return address",
    /// Rows in which `rbp` or `rbx` is somewhere that no rule can express.
    unsupported_registers: "rows with an unsupported place of rbp or rbx",
    /// Rows whose rules were too many.
    rows_over_rule_limit: "rows over the limit of rules",
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (count, text) in self.named() {
            write!(formatter, "{separator}{count} {text}")?;
            separator = ", ";
        }
        if separator.is_empty() { formatter.write_str("none") } else { Ok(()) }
    }
}
