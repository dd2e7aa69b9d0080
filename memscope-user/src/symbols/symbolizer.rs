use std::{
    cell::{OnceCell, RefCell},
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use blazesym::symbolize::{
    CodeInfo, Input, Reason, Sym, Symbolized, Symbolizer as Blazesym,
    source::{Elf, Source},
};

use super::{MAX_NAME_CHARS, debuginfod::Debuginfod, demangle::demangle};
use crate::{
    model::SourceFunction,
    target::{CodeSegment, DebugFile, ElfFacts, Wanted, path_of_open},
};

/// A file whose symbols are wanted.
#[derive(Debug)]
pub struct SymbolSource {
    /// Open, so that it is this very file even if its path is gone.
    pub file: File,
    /// Where the target sees it; its separate debug information is looked for beside it.
    pub path: PathBuf,
    /// What of it is code.
    pub code: Vec<CodeSegment>,
    /// The root of the file system in which the target has that path, if it is not
    /// memscope's own.
    pub root: Option<File>,
    /// What names are taken from, once that has been found out.
    names: OnceCell<NameFiles>,
}

/// The files that names are taken from.
#[derive(Debug, Default)]
struct NameFiles {
    /// The file itself, unless it is not fit to be read.
    own: Option<Readable>,
    /// Its separate debug file.
    separate: Option<Readable>,
}

/// A file as blazesym is to read it.
#[derive(Debug)]
struct Readable {
    path: PathBuf,
    has_debug_info: bool,
    /// Keeps the path valid.
    _file: Option<File>,
}

impl SymbolSource {
    /// An open file, the path under which the target has it mapped, what of it is code,
    /// and the target's root directory if that is not memscope's own.
    #[must_use]
    pub fn new(file: File, path: PathBuf, code: Vec<CodeSegment>, root: Option<File>) -> Self {
        Self { file, path, code, root, names: OnceCell::new() }
    }

    /// Where a position in the file is in the file's own numbering.
    fn svma(&self, file_offset: u64) -> Option<u64> {
        let segment = self.code.iter().find(|segment| segment.contains_file_offset(file_offset))?;
        segment.start_svma.checked_add(file_offset - segment.file_offset)
    }

    /// Debug information of functions that the linker has thrown away says that they
    /// begin at 0 or another place where no code is (DWARF 5 calls none; linkers write
    /// such "tombstones"), and can reach into what is really there.
    fn can_begin_function(&self, start_svma: u64) -> bool {
        self.code
            .iter()
            .any(|segment| start_svma.wrapping_sub(segment.start_svma) < segment.length_bytes)
    }

    /// A path that leads to this very file: its own if that still does, because what
    /// belongs to it (`.dwp`, dwz) is found beside it; else the open descriptor.
    fn readable_path(&self) -> PathBuf {
        let same = |path: &Path| {
            let (found, held) = (std::fs::metadata(path).ok()?, self.file.metadata().ok()?);
            Some((found.dev(), found.ino()) == (held.dev(), held.ino()))
        };
        if same(&self.path) == Some(true) { self.path.clone() } else { path_of_open(&self.file) }
    }

    /// Finds out what names can be taken from. Debug information in the file itself comes
    /// first, then a separate file: in the target's view, in memscope's, from a server.
    fn find_names(&self, debuginfod: Option<&RefCell<Debuginfod>>) -> NameFiles {
        let shown = self.path.display();
        let facts = match ElfFacts::read(&self.file) {
            Ok(facts) => facts,
            Err(error) => {
                log::debug!("no names from {shown}: {error}");
                return NameFiles::default();
            }
        };
        let separate = if facts.has_debug_info { None } else { self.separate(&facts, debuginfod) };
        let debug_facts = separate.as_ref().map_or(&facts, |separate| &separate.facts);
        if debug_facts.is_split {
            log::debug!(
                "the debug information of {shown} is in .dwo or .dwp files for the most part: without \
                 {shown}.dwp, functions come from the symbol table and inlined ones are missing"
            );
        }
        let own = Readable {
            path: self.readable_path(),
            has_debug_info: facts.has_debug_info,
            _file: None,
        };
        let separate = separate.map(|DebugFile { file, facts }| Readable {
            path: path_of_open(&file),
            has_debug_info: facts.has_debug_info,
            _file: Some(file),
        });
        NameFiles { own: Some(own), separate }
    }

    fn separate(
        &self,
        facts: &ElfFacts,
        debuginfod: Option<&RefCell<Debuginfod>>,
    ) -> Option<DebugFile> {
        let wanted = Wanted {
            build_id: &facts.build_id,
            debug_link: facts.debug_link.as_ref(),
            path: &self.path,
        };
        wanted.find_in(self.root.as_ref()).or_else(|| {
            let file = debuginfod?.borrow_mut().fetch(wanted.usable_build_id()?)?;
            wanted
                .accept(file)
                .inspect_err(|error| {
                    log::debug!(
                        "not taking what a server sent for {}: {error}",
                        self.path.display()
                    );
                })
                .ok()
        })
    }
}

/// Looks names up; keeps what it has parsed of each file. Stays on one thread.
#[derive(Debug)]
pub struct Symbolizer {
    blazesym: Blazesym,
    debuginfod: Option<RefCell<Debuginfod>>,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Symbolizer {
    /// With inlined functions and source lines; asks servers for debug information that
    /// is not here, if it is given any.
    #[must_use]
    pub fn new(debuginfod: Option<Debuginfod>) -> Self {
        let blazesym = Blazesym::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_demangling(false)
            .build();
        Self { blazesym, debuginfod: debuginfod.map(RefCell::new) }
    }

    /// The functions at return addresses of one file, in the order of the positions
    /// given. Innermost inlined function first; empty where nothing is known.
    #[must_use]
    pub fn functions(
        &self,
        source: &SymbolSource,
        return_file_offsets: &[u64],
    ) -> Vec<Vec<SourceFunction>> {
        let files = source.names.get_or_init(|| source.find_names(self.debuginfod.as_ref()));
        // A return address is that of the instruction after the call.
        let calls: Vec<Option<u64>> =
            return_file_offsets.iter().map(|offset| source.svma(offset.checked_sub(1)?)).collect();
        let known: Vec<u64> = calls.iter().copied().flatten().collect();
        let readable = || [&files.separate, &files.own].into_iter().flatten();
        let debug: Vec<_> = readable()
            .filter(|file| file.has_debug_info)
            .map(|file| self.symbolize(source, &file.path, true, &known))
            .collect();
        let tables: Vec<_> =
            readable().map(|file| self.symbolize(source, &file.path, false, &known)).collect();
        let mut found = (0..known.len()).map(|position| {
            let at = |answers: &[Vec<Symbolized<'_>>]| -> Vec<Covering> {
                let answers = answers.iter().filter_map(|answers| answers.get(position));
                answers.filter_map(|answer| Covering::of(source, answer)).collect()
            };
            functions_of(at(&debug), at(&tables))
        });
        calls.iter().map(|call| call.and_then(|_| found.next()).unwrap_or_default()).collect()
    }

    fn symbolize(
        &self,
        source: &SymbolSource,
        path: &Path,
        debug_syms: bool,
        calls_svma: &[u64],
    ) -> Vec<Symbolized<'_>> {
        let elf = Elf { debug_syms, ..Elf::new(path) };
        match self.blazesym.symbolize(&Source::Elf(elf), Input::VirtOffset(calls_svma)) {
            Ok(symbolized) => symbolized,
            Err(error) => {
                log::debug!("nothing from {}: {error:#}", source.path.display());
                calls_svma.iter().map(|_| Symbolized::Unknown(Reason::MissingSyms)).collect()
            }
        }
    }
}

/// A function that covers a place.
#[derive(Debug)]
struct Covering {
    start_svma: u64,
    name: String,
    /// From the innermost inlined function to the one that contains the code.
    functions: Vec<SourceFunction>,
}

impl Covering {
    fn of(source: &SymbolSource, symbolized: &Symbolized<'_>) -> Option<Self> {
        let Symbolized::Sym(Sym { name, addr, offset, size, code_info, inlined, .. }) = symbolized
        else {
            return None;
        };
        // A symbol without a size is given for all that comes after it.
        let covers = size.is_some_and(|size| *offset < size);
        if !covers || !source.can_begin_function(*addr) {
            return None;
        }
        // blazesym gives the containing function first, each with the line it had reached.
        // The names of those that dwz has moved into a shared file it does not find; what
        // is left is right without them.
        let mut functions: Vec<SourceFunction> = inlined
            .iter()
            .rev()
            .filter(|function| !function.name.is_empty())
            .map(|function| source_function(&function.name, function.code_info.as_ref(), true))
            .collect();
        functions.push(source_function(name, code_info.as_deref(), false));
        Some(Self { start_svma: *addr, name: name.clone().into_owned(), functions })
    }
}

/// From what debug information says of a place, and what symbol tables say.
fn functions_of(debug: Vec<Covering>, tables: Vec<Covering>) -> Vec<SourceFunction> {
    let mut tables: Vec<Covering> =
        tables.into_iter().filter(|table| !table.name.is_empty()).collect();
    // The one with the closest beginning knows most.
    tables.sort_by_key(|table| std::cmp::Reverse(table.start_svma));
    if let Some(best) = debug.into_iter().next() {
        let mut functions = best.functions;
        // Debug information has only the last part of the name (`operator()`) for what is
        // local to a file; the symbol table has all of it.
        let table = tables.iter().find(|table| table.start_svma == best.start_svma);
        if let (Some(table), Some(function)) = (table, functions.last_mut()) {
            function.name = shown_name(&table.name);
        }
        if functions.last().is_some_and(|function| !function.name.is_empty()) {
            return functions;
        }
    }
    tables.into_iter().next().map(|table| table.functions).unwrap_or_default()
}

fn shown_name(name: &str) -> String {
    demangle(name).chars().take(MAX_NAME_CHARS).collect()
}

fn source_function(name: &str, code: Option<&CodeInfo<'_>>, inlined: bool) -> SourceFunction {
    SourceFunction {
        name: shown_name(name),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line),
        inlined,
    }
}
