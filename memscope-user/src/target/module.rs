use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
};

use object::{
    Object as _, ObjectSymbol as _, ObjectSymbolTable as _, ReadRef as _, RelocationTarget,
    SegmentFlags, SymbolKind, elf,
};

use super::{
    allocator::{AllocatorFunction, FunctionKind, Naming, find},
    blocks::Blocks,
    description::{Description, Descriptions, Place},
    endless::{KnownFunctions, endless_transfers},
    exits::{CodeView, ExitObstacle, Linked, exits_of, never_returns},
    extent::{length_of_function, lengths_of_functions},
    plan::is_of_interest,
    separate::{ElfFacts, Wanted, hexadecimal},
    site::judged_calls,
};

/// Largest file looked into.
const MAX_FILE_BYTES: u64 = 1 << 36;
/// Bytes of code that are read at once where it is followed.
const CODE_PAGE_BYTES: u64 = 1 << 12;
/// Most bytes of a function that are decoded.
const MAX_FUNCTION_BYTES: u64 = 1 << 16;

/// Most functions that one calls of which the code is kept.
const MAX_CALLED: usize = 4;

/// What is looked for in a file, and where beside it.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// The path of the file, as the process sees it.
    pub path: &'a str,
    /// The process's root directory, if it is not memscope's own.
    pub root: Option<&'a File>,
    /// Functions that somebody has described.
    pub descriptions: &'a Descriptions,
}

impl Search<'_> {
    /// The separate debug file of a file.
    fn debug_file(&self, file: &File) -> Option<File> {
        let facts = ElfFacts::read(file).ok()?;
        let found = self.wanted(&facts).find_in(self.root)?;
        found.facts.has_symbol_table.then_some(found.file)
    }

    fn wanted<'a>(&'a self, facts: &'a ElfFacts) -> Wanted<'a> {
        Wanted {
            build_id: &facts.build_id,
            debug_link: facts.debug_link.as_ref(),
            path: Path::new(self.path),
        }
    }

    /// Of a file in which there is no allocator: what symbols it has, and where those were looked
    /// for that were taken out of it.
    #[must_use]
    pub fn explain(&self, file: &File) -> String {
        let facts = match ElfFacts::read(file) {
            Ok(facts) => facts,
            Err(error) => return error.to_string(),
        };
        if facts.has_symbol_table {
            return "it has a symbol table, in which there is none".to_owned();
        }
        let build_id = if facts.build_id.is_empty() {
            "no build id".to_owned()
        } else {
            format!("build id {}", hexadecimal(&facts.build_id))
        };
        let paths: Vec<String> = self
            .wanted(&facts)
            .paths()
            .map(|path| Path::new("/").join(path).display().to_string())
            .collect();
        if paths.is_empty() {
            return format!(
                "it has no symbol table, {build_id} and no debug link by which a debug file could be found"
            );
        }
        let paths = paths.join(", ");
        format!("it has no symbol table, {build_id}, and no fitting debug file is at {paths}")
    }
}

/// Why a mapped file tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// It cannot be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// It is larger than the limit.
    #[error("the file has {bytes} bytes, the limit is {MAX_FILE_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It is no ELF file, or a damaged one.
    #[error("it is no intact ELF file")]
    NotElf(#[source] object::Error),
}

/// A part of a file that is loaded as code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSegment {
    /// Where it is in the file.
    pub file_offset: u64,
    /// How long it is in the file.
    pub length_bytes: u64,
    /// Where its first byte is in the file's own numbering.
    pub start_svma: u64,
}

impl CodeSegment {
    /// Whether a position in the file belongs to it.
    #[must_use]
    pub fn contains_file_offset(&self, file_offset: u64) -> bool {
        file_offset.wrapping_sub(self.file_offset) < self.length_bytes
    }

    /// Whether an address of the file's own numbering does.
    fn contains_svma(&self, svma: u64) -> bool {
        svma.wrapping_sub(self.start_svma) < self.length_bytes
    }
}

/// A function that is defined in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCode {
    /// Name of its symbol, without a version.
    pub name: String,
    /// Position of its first instruction.
    pub file_offset: u64,
    /// Its machine code, as far as its symbol says it reaches.
    pub code: Vec<u8>,
    /// Whether no other module can call it by this name.
    pub is_local: bool,
    /// Its calls and jumps to other functions that never return, by their distances from its first instruction. Known of
    /// the C library's that give blocks and call no others that do.
    pub never_return: BTreeSet<u64>,
    /// Functions that it calls and whose results it looks at, as far as they are known. Of the same ones.
    pub called: Vec<CalledCode>,
}

/// A function that another one calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalledCode {
    /// Where it begins, as a distance from the first instruction of the one that calls it.
    pub distance: i64,
    /// Its machine code, as far as its call frame information says it reaches.
    pub code: Vec<u8>,
    /// As in [`FunctionCode`].
    pub never_return: BTreeSet<u64>,
}

/// A function of a file that somebody has described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedCode {
    /// Which of the descriptions.
    pub description: usize,
    /// What it does.
    pub function: AllocatorFunction,
    /// Which allocator it is said to be of.
    pub allocator: Option<&'static str>,
    /// Where it is.
    pub code: FunctionCode,
}

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// GNU build id; empty if it has none.
    pub build_id: Vec<u8>,
    /// What is loaded as code.
    pub code: Vec<CodeSegment>,
    /// Those of the wanted functions that it defines, in the order of their positions.
    pub functions: Vec<FunctionCode>,
    /// What it has of the functions that were described.
    pub described: Vec<DescribedCode>,
    /// For those that can throw, by position: where they return.
    pub exits: BTreeMap<u64, Result<Vec<u64>, ExitObstacle>>,
    /// Whether it is a dynamic loader: it has an allocator of its own for its first
    /// steps, whose blocks nobody can free.
    pub is_loader: bool,
    /// Whether it is the C library, or has it in it.
    pub is_c_library: bool,
    /// Where it says what it is about to do, if it is a dynamic loader: `_r_debug`
    /// (glibc `<link.h>`), in the file's own numbering.
    pub loader_state_svma: Option<u64>,
}

impl ModuleFacts {
    /// Looks into an ELF file for the functions whose names are wanted.
    ///
    /// # Errors
    ///
    /// If it is none, or cannot be read.
    pub fn read(file: &File, wanted: impl Fn(&str) -> bool) -> Result<Self, ModuleError> {
        Self::read_described(file, &wanted, &[], &|| None)
    }

    /// Looks into an ELF file for all that may be probed, and for what is described of it. If
    /// symbols were taken out of a program, those of its debug file count, if there is one.
    ///
    /// # Errors
    ///
    /// If it is none, or cannot be read.
    pub fn search(file: &File, search: &Search<'_>) -> Result<Self, ModuleError> {
        let described: Vec<(usize, &Description)> =
            search.descriptions.of_file(search.path).collect();
        let symbols_elsewhere = || search.debug_file(file);
        Self::read_described(file, &is_of_interest, &described, &symbols_elsewhere)
    }

    fn read_described(
        file: &File,
        wanted: &dyn Fn(&str) -> bool,
        descriptions: &[(usize, &Description)],
        symbols_elsewhere: &dyn Fn() -> Option<File>,
    ) -> Result<Self, ModuleError> {
        let bytes = file.metadata().map_err(ModuleError::Read)?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(ModuleError::TooLarge { bytes });
        }
        let blocks = Blocks::of(file);
        let elf = object::File::parse(&blocks).map_err(ModuleError::NotElf)?;
        let code: Vec<CodeSegment> =
            elf.segments().filter_map(|segment| code_segment(&segment)).collect();
        let by_name = |name: &str| {
            let mut all = descriptions.iter();
            wanted(name) || all.any(|(_, description)| description.is_called(name))
        };
        let mut symbols = Symbols::default();
        symbols.take(elf.dynamic_symbols().chain(elf.symbols()), &by_name);
        // Libraries have none either, but they have the names that others call them by.
        let is_stripped_program = elf.entry() != 0 && elf.symbols().next().is_none();
        if is_stripped_program
            && symbols.found.is_empty()
            && let Some(file) = symbols_elsewhere()
        {
            symbols.take_of_file(&file, &by_name);
        }
        let parsed = Parsed { elf: &elf, blocks: &blocks, code: &code };
        let found: Vec<FunctionCode> = symbols
            .found
            .iter()
            .filter_map(|((svma, name), (size, is_local))| {
                parsed.function(name, *svma, *size, *is_local)
            })
            .collect();
        let mut described = parsed.described(&found, descriptions);
        let mut functions: Vec<FunctionCode> =
            found.into_iter().filter(|function| wanted(&function.name)).collect();
        let mut exits = exits(&parsed, &mut functions, &described, &symbols);
        if is_go(&elf) {
            for found in &mut described {
                if found.function.kind == FunctionKind::Allocates {
                    found.function.can_throw = true;
                    exits.insert(found.code.file_offset, Err(ExitObstacle::StackMoves));
                }
            }
        }
        let loader_state = elf
            .dynamic_symbols()
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok("_r_debug"));
        Ok(Self {
            loader_state_svma: loader_state.map(|symbol| symbol.address()),
            build_id: elf.build_id().ok().flatten().unwrap_or_default().to_vec(),
            is_loader: elf
                .dynamic_symbols()
                .any(|symbol| symbol.is_definition() && symbol.name() == Ok("_rtld_global")),
            is_c_library: symbols.is_of_c_library(),
            code,
            functions,
            described,
            exits,
        })
    }

    /// The machine code of the function that begins at a position, if it was looked for or one of those calls it.
    #[must_use]
    pub fn code_at(&self, file_offset: u64) -> Option<&[u8]> {
        let own = self.function_at(file_offset).map(|found| found.code.as_slice());
        own.or_else(|| {
            let all = self
                .functions
                .iter()
                .flat_map(|found| found.called.iter().map(|called| (found.file_offset, called)));
            let begins = |(from, called): &(u64, &CalledCode)| {
                from.checked_add_signed(called.distance) == Some(file_offset)
            };
            all.into_iter().find(begins).map(|(_, called)| called.code.as_slice())
        })
    }

    /// The function that begins at a position, if it is one of those that were looked for.
    #[must_use]
    pub fn function_at(&self, file_offset: u64) -> Option<&FunctionCode> {
        let described = self.described.iter().map(|found| &found.code);
        described.chain(&self.functions).find(|function| function.file_offset == file_offset)
    }
}

/// Whether the Go compiler has made it, which leaves these sections even in a stripped file.
fn is_go<'data>(elf: &impl object::Object<'data>) -> bool {
    [".go.buildinfo", ".gopclntab"].iter().any(|name| elf.section_by_name(name).is_some())
}

/// What symbols say of functions.
#[derive(Default)]
struct Symbols {
    /// Of the wanted ones, by position and name: how long, and whether local.
    found: BTreeMap<(u64, String), (u64, bool)>,
    /// Where all functions begin.
    starts: BTreeSet<u64>,
    /// Where those begin whose names say that they never return.
    never_return: BTreeSet<u64>,
    /// Whether there is `__libc_start_main`, which calls `main` in glibc and musl. Libraries that
    /// intercept it have it, too.
    starts_programs: bool,
    /// Whether there is `exit`, which it calls then.
    ends_programs: bool,
}

impl Symbols {
    fn is_of_c_library(&self) -> bool {
        self.starts_programs && self.ends_programs
    }

    /// Those of another file, which fits.
    fn take_of_file(&mut self, file: &File, wanted: &dyn Fn(&str) -> bool) {
        let blocks = Blocks::of(file);
        match object::File::parse(&blocks) {
            Ok(elf) => self.take(elf.symbols(), wanted),
            Err(error) => log::debug!("no symbols from a debug file: {error}"),
        }
    }

    fn take<'data>(
        &mut self,
        symbols: impl Iterator<Item = impl object::ObjectSymbol<'data>>,
        wanted: &dyn Fn(&str) -> bool,
    ) {
        for symbol in symbols {
            if symbol.kind() != SymbolKind::Text || !symbol.is_definition() {
                continue;
            }
            self.starts.insert(symbol.address());
            let Ok(name) = symbol.name() else { continue };
            // .symtab writes the version into the name.
            let name = name.split('@').next().unwrap_or(name);
            if never_returns(name) {
                self.never_return.insert(symbol.address());
            }
            self.starts_programs |= name == "__libc_start_main";
            self.ends_programs |= name == "exit";
            if wanted(name) {
                let (size, is_local) = self
                    .found
                    .entry((symbol.address(), name.to_owned()))
                    .or_insert((symbol.size(), true));
                *size = symbol.size();
                *is_local &= symbol.is_local();
            }
        }
    }
}

/// What is read of a file.
struct Parsed<'a, 'file> {
    elf: &'a object::File<'a, &'a Blocks<'file>>,
    blocks: &'a Blocks<'file>,
    code: &'a [CodeSegment],
}

impl<'a> Parsed<'a, '_> {
    /// A function and its code; none if no code is there.
    fn function(&self, name: &str, svma: u64, size: u64, is_local: bool) -> Option<FunctionCode> {
        Some(FunctionCode {
            name: name.to_owned(),
            file_offset: self.file_offset_of(svma)?,
            code: self.code_of(svma, size)?,
            is_local,
            never_return: BTreeSet::new(),
            called: Vec::new(),
        })
    }

    /// The code of a function that is so long.
    fn code_of(&self, svma: u64, size: u64) -> Option<Vec<u8>> {
        let file_offset = self.file_offset_of(svma)?;
        let segment = self.code.iter().find(|segment| segment.contains_file_offset(file_offset))?;
        let inside = file_offset - segment.file_offset;
        let length = size.min(segment.length_bytes - inside).min(MAX_FUNCTION_BYTES);
        Some(self.blocks.read_bytes_at(file_offset, length).ok()?.to_vec())
    }

    /// What was described and is there. A place counts only if a function begins there: a probe
    /// inside an instruction would break the program.
    fn described(
        &self,
        found: &[FunctionCode],
        descriptions: &[(usize, &Description)],
    ) -> Vec<DescribedCode> {
        let of = |(number, description): &(usize, &Description)| -> Vec<DescribedCode> {
            let function = description.function;
            let at = |svma| {
                let length = length_of_function(self.elf, svma)?;
                self.function(function.name, svma, length, false)
            };
            let code = match description.place {
                Place::Name => found
                    .iter()
                    .filter(|found| description.is_called(&found.name))
                    .cloned()
                    .collect(),
                Place::Svma(svma) => Vec::from_iter(at(svma)),
                Place::FileOffset(offset) => Vec::from_iter(self.svma_of(offset).and_then(at)),
            };
            let allocator = description.allocator;
            let described =
                |code| DescribedCode { description: *number, function, allocator, code };
            code.into_iter().map(described).collect()
        };
        descriptions.iter().flat_map(of).collect()
    }

    /// What a function calls and looks at the result of, in the same part of the file.
    fn called(
        &self,
        found: &FunctionCode,
        start_svma: u64,
        view: &CodeView<'_>,
        known: &mut KnownFunctions,
    ) -> Vec<CalledCode> {
        let segment = self.code.iter().find(|segment| segment.contains_svma(start_svma));
        let is_beside = |svma: &u64| segment.is_some_and(|segment| segment.contains_svma(*svma));
        let targets: BTreeSet<u64> = judged_calls(&found.code)
            .map(|distance| start_svma.wrapping_add_signed(distance))
            .filter(is_beside)
            .take(MAX_CALLED)
            .collect();
        if targets.is_empty() {
            return Vec::new();
        }
        let of = |(svma, length): (u64, u64)| {
            let code = self.code_of(svma, length)?;
            let endless = endless_transfers(svma, code.len() as u64, view, known);
            let never_return = endless.iter().map(|at| at - svma).collect();
            let distance = svma.wrapping_sub(start_svma).cast_signed();
            Some(CalledCode { distance, code, never_return })
        };
        lengths_of_functions(self.elf, &targets).into_iter().filter_map(of).collect()
    }

    fn svma_of(&self, file_offset: u64) -> Option<u64> {
        let segment = self.code.iter().find(|segment| segment.contains_file_offset(file_offset))?;
        Some(segment.start_svma.wrapping_add(file_offset - segment.file_offset))
    }

    fn file_offset_of(&self, svma: u64) -> Option<u64> {
        let segment = self.code.iter().find(|segment| segment.contains_svma(svma))?;
        segment.file_offset.checked_add(svma - segment.start_svma)
    }

    /// Up to so many bytes of code; read by pages, as a function is asked for byte by byte.
    fn read(&self, svma: u64, length: u64) -> Option<&'a [u8]> {
        let file_offset = self.file_offset_of(svma)?;
        let segment = self.code.iter().find(|segment| segment.contains_file_offset(file_offset))?;
        let end = segment.file_offset.saturating_add(segment.length_bytes);
        let page = file_offset & !(CODE_PAGE_BYTES - 1);
        let page_end = page.saturating_add(CODE_PAGE_BYTES + length).min(end);
        let bytes = self.blocks.read_bytes_at(page, page_end.checked_sub(page)?).ok()?;
        let inside = bytes.get(usize::try_from(file_offset - page).ok()?..)?;
        inside.get(..inside.len().min(usize::try_from(length).ok()?))
    }

    /// The symbols that the dynamic loader looks up, by where it puts their addresses.
    fn linked(&self) -> BTreeMap<u64, Linked> {
        let (Some(relocations), Some(symbols)) =
            (self.elf.dynamic_relocations(), self.elf.dynamic_symbol_table())
        else {
            return BTreeMap::new();
        };
        let linked = relocations.filter_map(|(slot, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else { return None };
            let symbol = symbols.symbol_by_index(index).ok()?;
            let name = symbol.name().ok()?.to_owned();
            let svma = symbol.is_definition().then(|| symbol.address());
            Some((slot, Linked { name, svma }))
        });
        linked.collect()
    }
}

/// Where those of the functions return that can throw. Of the C library's that give blocks and call no others that do, it is
/// noted which calls never return.
fn exits(
    file: &Parsed<'_, '_>,
    functions: &mut [FunctionCode],
    described: &[DescribedCode],
    symbols: &Symbols,
) -> BTreeMap<u64, Result<Vec<u64>, ExitObstacle>> {
    let row_of = |found: &FunctionCode| find(&found.name).map(|row| row.function);
    let can_throw = |found: &FunctionCode| row_of(found).is_some_and(|row| row.can_throw);
    let is_c_library = symbols.is_of_c_library();
    let may_be_told_in_midst = |found: &FunctionCode| {
        let gives = |row: &AllocatorFunction| row.kind == FunctionKind::Allocates && row.is_leaf;
        is_c_library && row_of(found).is_some_and(gives)
    };
    let described: Vec<&FunctionCode> = described
        .iter()
        .filter(|found| found.function.can_throw)
        .map(|found| &found.code)
        .collect();
    let is_followed = |found: &FunctionCode| can_throw(found) || may_be_told_in_midst(found);
    if described.is_empty() && !functions.iter().any(is_followed) {
        return BTreeMap::new();
    }
    // These have return probes, wherever they are; others may be left alone for handing on.
    let returns_seen = |name: &str| {
        find(name).is_some_and(|row| {
            row.naming == Naming::Shared && row.function.kind == FunctionKind::Allocates
        })
    };
    let view = CodeView {
        read: &|svma, length| file.read(svma, length),
        linked: &file.linked(),
        starts: &symbols.starts,
        never_return_at: &symbols.never_return,
        returns_seen: &returns_seen,
        returns_seen_at: &functions
            .iter()
            .filter(|found| returns_seen(&found.name) && !found.is_local)
            .filter_map(|found| file.svma_of(found.file_offset))
            .collect(),
    };
    let mut known = KnownFunctions::new();
    for found in functions.iter_mut().filter(|found| may_be_told_in_midst(found)) {
        let Some(start_svma) = file.svma_of(found.file_offset) else { continue };
        let endless = endless_transfers(start_svma, found.code.len() as u64, &view, &mut known);
        found.never_return = endless.iter().map(|svma| svma - start_svma).collect();
        if row_of(found).is_some_and(|row| row.count.is_none()) {
            found.called = file.called(found, start_svma, &view, &mut known);
        }
    }
    let of = |found: &FunctionCode| {
        let exits = exits_of(file.svma_of(found.file_offset)?, &view);
        let exits =
            exits.map(|exits| exits.iter().filter_map(|svma| file.file_offset_of(*svma)).collect());
        Some((found.file_offset, exits))
    };
    let throwing = functions.iter().filter(|found| can_throw(found)).chain(described);
    throwing.filter_map(of).collect()
}

fn code_segment<'data>(segment: &impl object::ObjectSegment<'data>) -> Option<CodeSegment> {
    let SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
        return None;
    };
    if !p_flags.contains(elf::PF_X) {
        return None;
    }
    let (file_offset, length_bytes) = segment.file_range();
    Some(CodeSegment { file_offset, length_bytes, start_svma: segment.address() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn libc() -> File {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().find_map(|line| {
            line.split_whitespace().nth(5).filter(|path| path.contains("libc.so"))
        });
        File::open(path.expect("the tests run with a shared libc")).unwrap()
    }

    #[test]
    fn libc_defines_its_allocator() {
        let facts = ModuleFacts::read(&libc(), |name| matches!(name, "malloc" | "free")).unwrap();
        let names: Vec<&str> =
            facts.functions.iter().map(|function| function.name.as_str()).collect();
        assert!(names.contains(&"malloc") && names.contains(&"free"), "{names:?}");
        assert!(!facts.is_loader);
        assert!(!facts.build_id.is_empty());
        for function in &facts.functions {
            assert!(!function.code.is_empty());
            assert!(
                facts.code.iter().any(|segment| segment.contains_file_offset(function.file_offset))
            );
        }
    }

    #[test]
    fn what_is_no_elf_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(matches!(ModuleFacts::read(&file, |_| true), Err(ModuleError::NotElf(_))));
        file.write_all(b"\x7fELF\x02\x01\x01 and nothing more").unwrap();
        assert!(matches!(ModuleFacts::read(&file, |_| true), Err(ModuleError::NotElf(_))));
    }

    #[test]
    fn a_cut_file_never_panics() {
        let mut whole = Vec::new();
        std::io::Read::read_to_end(&mut libc(), &mut whole).unwrap();
        for part in [64, 1000, 4096, whole.len() / 2, whole.len() - 1] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&whole[..part]).unwrap();
            if let Ok(facts) = ModuleFacts::read(&file, |_| true) {
                assert!(
                    facts
                        .functions
                        .iter()
                        .all(|function| function.file_offset < whole.len() as u64)
                );
            }
        }
    }
}
