//! Names for places in files, from their symbol tables and debug information, and for
//! generated code, from what its compiler says of it.
//!
//! Takes open files and positions in them; gives functions with source lines, inlined
//! ones included. What no symbol covers has no name: nothing is guessed. `docs/symbols.md`
//! has the places where names are looked for, in order.

mod debuginfod;
mod demangle;
mod jit;
pub mod perf_map;
mod symbolizer;

pub use debuginfod::{Debuginfod, DebuginfodError};
pub use jit::{GeneratedCode, GeneratedCodeError};
pub use symbolizer::{SymbolSource, Symbolizer};

/// Longest name kept; demangled C++ can be far longer than anyone reads.
const MAX_NAME_CHARS: usize = 4096;

#[cfg(test)]
mod tests;
