//! Names for places in files, from their symbol tables and debug information.
//!
//! Takes open files and positions in them; gives functions with source lines, inlined
//! ones included. What no symbol covers has no name: nothing is guessed.

use std::{
    borrow::Cow,
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use blazesym::symbolize::{
    CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer as Blazesym,
    source::{Elf, Source},
};

use crate::{model::SourceFunction, target::CodeSegment};

/// Longest name kept; demangled C++ can be far longer than anyone reads.
const MAX_NAME_CHARS: usize = 4096;

/// A file whose symbols are wanted.
#[derive(Debug)]
pub struct SymbolSource {
    file: File,
    /// Where the target sees it; its separate debug information is looked for beside it.
    path: PathBuf,
    code: Vec<CodeSegment>,
}

impl SymbolSource {
    /// An open file, the path under which the target has it mapped, and what of it is
    /// code.
    #[must_use]
    pub fn new(file: File, path: PathBuf, code: Vec<CodeSegment>) -> Self {
        Self { file, path, code }
    }

    /// Debug information of functions that the linker has thrown away says that they
    /// begin at 0 or another place where no code is (DWARF 5 calls none; linkers write
    /// such "tombstones"), and can reach into what is really there.
    fn can_begin_function(&self, start_svma: u64) -> bool {
        self.code
            .iter()
            .any(|segment| start_svma.wrapping_sub(segment.start_svma) < segment.length_bytes)
    }

    /// A path that leads to this very file: its own if that still does, because debug
    /// links are relative to it; else the open descriptor.
    fn readable_path(&self) -> PathBuf {
        let same = |path: &Path| {
            let (found, held) = (std::fs::metadata(path).ok()?, self.file.metadata().ok()?);
            Some((found.dev(), found.ino()) == (held.dev(), held.ino()))
        };
        if same(&self.path) == Some(true) {
            return self.path.clone();
        }
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Looks names up; keeps what it has parsed of each file. Stays on one thread.
#[derive(Debug)]
pub struct Symbolizer {
    blazesym: Blazesym,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    /// With inlined functions and source lines.
    #[must_use]
    pub fn new() -> Self {
        let blazesym = Blazesym::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(false)
            .build();
        Self { blazesym }
    }

    /// The functions at return addresses of one file, in the order of the positions
    /// given. Innermost inlined function first; empty where nothing is known.
    #[must_use]
    pub fn functions(
        &self,
        source: &SymbolSource,
        return_file_offsets: &[u64],
    ) -> Vec<Vec<SourceFunction>> {
        // A return address is that of the instruction after the call.
        let calls: Vec<u64> =
            return_file_offsets.iter().map(|offset| offset.saturating_sub(1)).collect();
        let elf = Elf::new(source.readable_path());
        let table = self.symbolize(source, Elf { debug_syms: false, ..elf.clone() }, &calls);
        let debug = self.symbolize(source, elf, &calls);
        debug.iter().zip(&table).map(|(debug, table)| functions_of(source, debug, table)).collect()
    }

    fn symbolize(&self, source: &SymbolSource, elf: Elf, calls: &[u64]) -> Vec<Symbolized<'_>> {
        let unknown = || Symbolized::Unknown(Reason::MissingSyms);
        match self.blazesym.symbolize(&Source::Elf(elf), Input::FileOffset(calls)) {
            Ok(symbolized) => symbolized,
            Err(error) => {
                log::debug!("no symbols for {}: {error:#}", source.path.display());
                calls.iter().map(|_| unknown()).collect()
            }
        }
    }
}

/// From what debug information says of a place, and what the symbol table says.
fn functions_of(
    source: &SymbolSource,
    debug: &Symbolized<'_>,
    table: &Symbolized<'_>,
) -> Vec<SourceFunction> {
    let Symbolized::Sym(Sym { name, addr, code_info, inlined, .. }) = debug else {
        return Vec::new();
    };
    if !source.can_begin_function(*addr) {
        return Vec::new();
    }
    // Debug information has only the last part of the name (`operator()`) for what is
    // local to a file; the symbol table has all of it.
    let name = match table {
        Symbolized::Sym(symbol) if symbol.addr == *addr => &symbol.name,
        _ => name,
    };
    // blazesym gives the containing function first, each with the line it had reached.
    let mut functions: Vec<SourceFunction> = inlined
        .iter()
        .rev()
        .map(|function| source_function(&function.name, function.code_info.as_ref(), true))
        .collect();
    functions.push(source_function(name, code_info.as_deref(), false));
    functions
}

/// A name as in the source, if it is mangled. Only what is marked as such is: to a C++
/// demangler the C function `f` is the type `float`.
fn demangle(name: &str) -> Cow<'_, str> {
    if !["_R", "_Z", "__Z", "___Z"].iter().any(|mark| name.starts_with(mark)) {
        return Cow::Borrowed(name);
    }
    if name.starts_with("_R") || is_legacy_rust(name) {
        return rustc_demangle::try_demangle(name)
            .map_or(Cow::Borrowed(name), |name| Cow::Owned(format!("{name:#}")));
    }
    cpp_demangle::Symbol::new(name)
        .ok()
        .and_then(|name| name.demangle().ok())
        .map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Rust's first mangling looks like C++, but its last part is a hash: `17h`, 16 digits.
fn is_legacy_rust(name: &str) -> bool {
    name.rsplit_once("17h").is_some_and(|(_, hash)| {
        // Compilers append `.llvm.` and the like.
        let Some((digits, rest)) = hash.split_at_checked(16) else { return false };
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && rest.starts_with('E')
    })
}

fn source_function(name: &str, code: Option<&CodeInfo<'_>>, inlined: bool) -> SourceFunction {
    SourceFunction {
        name: demangle(name).chars().take(MAX_NAME_CHARS).collect(),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line),
        inlined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function with a name of its own, to be found in this test's executable.
    #[inline(never)]
    fn a_place_with_a_name() -> u64 {
        std::hint::black_box(4)
    }

    #[test]
    fn functions_have_names_and_lines_and_other_places_have_none() {
        a_place_with_a_name();
        let exe = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&exe).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
        let symbol = elf
            .symbols()
            .find(|symbol| symbol.name().is_ok_and(|name| name.contains("a_place_with_a_name")))
            .unwrap();
        let segment = elf
            .segments()
            .find(|segment| {
                (segment.address()..segment.address() + segment.size()).contains(&symbol.address())
            })
            .unwrap();
        let file_offset = symbol.address() - segment.address() + segment.file_range().0;
        let file = File::open(&exe).unwrap();
        let code = crate::target::ModuleFacts::read(&file, |_| false).unwrap().code;
        let source = SymbolSource::new(file, exe, code);
        let found = Symbolizer::new().functions(&source, &[file_offset + 1, 1]);
        let outer = found[0].last().expect("the function is in the symbol table");
        assert!(outer.name.ends_with("a_place_with_a_name"), "{found:?}");
        assert!(
            outer.file.as_ref().is_some_and(|file| file.ends_with("symbols/mod.rs")),
            "{found:?}"
        );
        assert_eq!(found[1], [], "the ELF header is no function");
    }

    #[test]
    fn only_mangled_names_are_demangled() {
        let cases = [
            ("f", "f"),
            ("a", "a"),
            ("main", "main"),
            ("_ZN3foo3barEi", "foo::bar(int)"),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvC7mycrate3foo", "mycrate::foo"),
            ("_Zwhatever", "_Zwhatever"),
        ];
        for (mangled, expected) in cases {
            assert_eq!(demangle(mangled), expected);
        }
    }

    #[test]
    fn a_file_without_symbols_has_no_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = SymbolSource::new(file.reopen().unwrap(), file.path().to_owned(), vec![]);
        assert_eq!(Symbolizer::new().functions(&source, &[10, 20]), [vec![], vec![]]);
    }
}
