//! Names for places in files, from their symbol tables and debug information, and for
//! generated code, from what its compiler says of it.
//!
//! Takes open files and positions in them; gives functions with source lines, inlined
//! ones included. What no symbol covers has no name: nothing is guessed. `docs/symbols.md`
//! has the places where names are looked for, in order.

mod debug_file;
mod debuginfod;
mod demangle;
mod elf_facts;
mod foreign_file;
mod jit;
pub mod perf_map;
mod symbolizer;

pub use debuginfod::{Debuginfod, DebuginfodError};
pub use jit::{GeneratedCode, GeneratedCodeError};
pub use symbolizer::{SymbolSource, Symbolizer};

use std::io;

/// Longest name kept; demangled C++ can be far longer than anyone reads.
const MAX_NAME_CHARS: usize = 4096;

/// Why a file gives no names.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
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

#[cfg(test)]
mod tests;
