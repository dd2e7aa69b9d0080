//! Files that hold what was taken out of others: their symbols and debug information.

mod debug_file;
mod elf_facts;
mod foreign_file;

pub(crate) use self::{
    debug_file::{DebugFile, Wanted, hexadecimal},
    elf_facts::ElfFacts,
    foreign_file::{open_in_directory, open_in_root},
};

use std::io;

/// Why a file gives no names.
#[derive(Debug, thiserror::Error)]
pub enum DebugFileError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is a device, a pipe or the like.
    #[error("it is no regular file")]
    NoRegularFile,
    /// It is larger than the limit.
    #[error("it has {bytes} bytes, more than memscope looks into")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It is no ELF file, or a damaged one.
    #[error("it is no intact ELF file")]
    NotElf(#[source] object::Error),
    /// A section would unpack to more than the limit.
    #[error("a section of it unpacks to {bytes} bytes or more, which memscope refuses")]
    Expansion {
        /// How many it says, or how many there were when memscope gave up.
        bytes: u64,
    },
    /// It is the debug file of another build.
    #[error("it belongs to another file: build id or checksum differ")]
    OtherFile,
    /// It has neither.
    #[error("it has neither a symbol table nor debug information")]
    NoSymbols,
}
