//! Names from files as compilers and distributions make them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use object::{Object as _, ObjectSymbol as _};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Debuginfod, SymbolSource, Symbolizer};
use crate::{
    model::SourceFunction,
    target::{DebugFileError, ElfFacts, ModuleFacts, hexadecimal},
};

/// A place with a known name, line and inlining: what returns to just after `the_place`
/// was called in `inlined_piece`, which is merged into `function_around`.
const SOURCE: &str = r#"
static inline __attribute__((always_inline)) int inlined_piece(int x) {
    __asm__ volatile(".globl the_place\nthe_place: nop"); // line 3
    return x + 1;
}
#ifndef LINKAGE
#define LINKAGE static
#endif
__attribute__((noinline)) LINKAGE int function_around(int x) {
    return inlined_piece(x) * 2; // line 10
}
int main(int count, char **arguments) {
    (void)arguments;
    return function_around(count);
}
"#;

/// What is said of the place with line information, and without.
const WITH_LINES: &[(&str, Option<u32>, bool)] =
    &[("inlined_piece", Some(3), true), ("function_around", Some(10), false)];
const WITHOUT_LINES: &[(&str, Option<u32>, bool)] = &[("function_around", None, false)];
/// What is said of it where only the innermost line is known.
const NAME_AND_LINE: &[(&str, Option<u32>, bool)] = &[("function_around", Some(3), false)];
/// What is said of it where the name of the inlined function cannot be read.
const WITHOUT_INLINED: &[(&str, Option<u32>, bool)] = &[("function_around", Some(10), false)];

fn run(program: &str, arguments: &[impl AsRef<OsStr>]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether the tools are there; says so if not, as `cargo xtask test` wants it.
fn have(what: &str, tools: &[&str]) -> bool {
    let found = |tool: &&str| {
        std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
        })
    };
    let missing: Vec<_> = tools.iter().filter(|tool| !found(tool)).collect();
    if !missing.is_empty() {
        // Not by `eprintln`, which the harness keeps to itself when a test passes.
        writeln!(std::io::stderr(), "SKIPPED: {what} — not installed: {missing:?}").unwrap();
    }
    missing.is_empty()
}

/// A program in a folder of its own.
struct Built {
    folder: TempDir,
    program: PathBuf,
    /// What calls at the place return to, in the file's own numbering.
    return_svma: u64,
}

impl Built {
    fn new(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("place.c");
        fs::write(&source, SOURCE).unwrap();
        let program = folder.path().join("program");
        let mut arguments: Vec<&OsStr> = ["-O2", "-Wl,--build-id"].map(OsStr::new).to_vec();
        arguments.extend(flags.iter().map(OsStr::new));
        arguments.extend([source.as_os_str(), OsStr::new("-o"), program.as_os_str()]);
        run("cc", &arguments);
        let bytes = fs::read(&program).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let place = elf.symbols().find(|symbol| symbol.name() == Ok("the_place")).unwrap();
        let return_svma = place.address() + 1;
        Self { folder, program, return_svma }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Moves debug information and local symbols into `program.debug`, and links to it.
    fn split(&self, objcopy_flags: &[&str]) -> PathBuf {
        let debug = self.path("program.debug");
        let program = self.program.as_os_str();
        run("objcopy", &[OsStr::new("--only-keep-debug"), program, debug.as_os_str()]);
        let flags = objcopy_flags.iter().map(|flag| flag.replace("DEBUG", debug.to_str().unwrap()));
        let mut arguments: Vec<_> = flags.map(Into::into).collect();
        arguments.extend([OsStr::new("--strip-all").to_owned(), program.to_owned()]);
        run("objcopy", &arguments);
        debug
    }

    fn source(&self, path: PathBuf, root: Option<&Path>) -> SymbolSource {
        let file = File::open(&self.program).unwrap();
        let code = ModuleFacts::read(&file, |_| false).unwrap().code;
        SymbolSource::new(file, path, code, root.map(|root| File::open(root).unwrap()))
    }

    fn names_of(&self, source: &SymbolSource, symbolizer: &Symbolizer) -> Vec<SourceFunction> {
        let segment = source.code.iter().find(|segment| {
            self.return_svma.wrapping_sub(segment.start_svma) < segment.length_bytes
        });
        let segment = segment.expect("the place is code");
        let offset = self.return_svma - segment.start_svma + segment.file_offset;
        // The position of the ELF header, of no instruction, is in the way on purpose.
        let mut found = symbolizer.functions(source, &[1, offset, u64::MAX]);
        assert!(found[0].is_empty() && found[2].is_empty(), "{found:?}");
        found.swap_remove(1)
    }

    fn assert(&self, expected: &[(&str, Option<u32>, bool)]) {
        let source = self.source(self.program.clone(), None);
        assert_names(&self.names_of(&source, &Symbolizer::default()), expected);
    }

    /// As seen by a target for which this folder is the root of all files.
    fn assert_in_root(&self, path: &str, expected: &[(&str, Option<u32>, bool)]) {
        let source = self.source(path.into(), Some(self.folder.path()));
        assert_names(&self.names_of(&source, &Symbolizer::default()), expected);
    }

    fn build_id(&self) -> Vec<u8> {
        ElfFacts::read(&File::open(&self.program).unwrap()).unwrap().build_id
    }

    fn build_id_path(&self) -> PathBuf {
        let digits = hexadecimal(&self.build_id());
        self.path(&format!("usr/lib/debug/.build-id/{}/{}.debug", &digits[..2], &digits[2..]))
    }
}

fn assert_names(found: &[SourceFunction], expected: &[(&str, Option<u32>, bool)]) {
    let told: Vec<_> = found
        .iter()
        .map(|function| (function.name.as_str(), function.line, function.inlined))
        .collect();
    assert_eq!(told, expected);
    let lines = found.iter().filter(|function| function.line.is_some());
    for function in lines {
        assert!(function.file.as_ref().unwrap().ends_with("place.c"), "{function:?}");
    }
}

#[test]
fn debug_information_in_the_file_gives_inlined_functions_and_lines() {
    for flags in [&["-g"][..], &["-g", "-gz"], &["-gdwarf-4"], &["-g", "-no-pie", "-fno-pie"]] {
        Built::new(flags).assert(WITH_LINES);
    }
}

#[test]
fn the_symbol_table_gives_names() {
    Built::new(&[]).assert(WITHOUT_LINES);
}

#[test]
fn the_dynamic_symbol_table_gives_the_names_of_what_is_exported() {
    let shared = ["-shared", "-fPIC", "-s", "-DLINKAGE="];
    // Stripped by the compiler, the place itself is still in the dynamic table.
    let built = Built::new(&shared[..2]);
    run("strip", &[OsStr::new("--strip-all"), built.program.as_os_str()]);
    built.assert(&[]);
    let built = Built::new(&["-shared", "-fPIC", "-DLINKAGE="]);
    run("strip", &[OsStr::new("--strip-all"), built.program.as_os_str()]);
    built.assert(WITHOUT_LINES);
}

#[test]
fn a_stripped_program_has_no_names() {
    let built = Built::new(&["-g"]);
    run("strip", &[OsStr::new("--strip-all"), built.program.as_os_str()]);
    built.assert(&[]);
}

#[test]
fn the_compressed_symbol_table_in_the_file_gives_names() {
    if !have("names from .gnu_debugdata", &["xz"]) {
        return;
    }
    let built = Built::new(&["-g"]);
    let debug = built.split(&[]);
    let small = built.path("small");
    let keep = "--keep-symbol=function_around";
    run("objcopy", &[OsStr::new("-S"), OsStr::new(keep), debug.as_os_str(), small.as_os_str()]);
    fs::remove_file(&debug).unwrap();
    run("xz", &[&small]);
    let section = format!(".gnu_debugdata={}.xz", small.display());
    let program = built.program.as_os_str();
    run("objcopy", &[OsStr::new("--add-section"), OsStr::new(&section), program]);
    built.assert(WITHOUT_LINES);
}

#[test]
fn a_linked_debug_file_is_found_beside_in_dot_debug_and_in_the_debug_directory() {
    for place in
        ["opt/program.debug", "opt/.debug/program.debug", "usr/lib/debug/opt/program.debug"]
    {
        for linker in ["-Wl,--build-id", "-Wl,--build-id=none"] {
            let built = Built::new(&["-g", linker]);
            let debug = built.split(&["--add-gnu-debuglink=DEBUG"]);
            fs::rename(debug, built.path(place)).unwrap();
            built.assert(&[]);
            built.assert_in_root("/opt/program", WITH_LINES);
            // The target has deleted it, or replaced it by a newer one.
            built.assert_in_root("/opt/program (deleted)", WITH_LINES);
        }
    }
    let built = Built::new(&["-g"]);
    built.split(&["--add-gnu-debuglink=DEBUG"]);
    built.assert(WITH_LINES);
}

#[test]
fn a_debug_file_is_found_by_build_id_alone() {
    let built = Built::new(&["-g"]);
    let debug = built.split(&[]);
    fs::rename(debug, built.build_id_path()).unwrap();
    built.assert_in_root("/somewhere/else", WITH_LINES);
    built.assert_in_root("relative", WITH_LINES);
}

#[test]
fn the_debug_file_of_another_build_is_not_taken() {
    for linker in ["-Wl,--build-id", "-Wl,--build-id=none"] {
        let built = Built::new(&["-g", linker]);
        built.split(&["--add-gnu-debuglink=DEBUG"]);
        let other = Built::new(&["-g", "-O1", "-DLINKAGE=", linker]);
        let debug = other.split(&[]);
        fs::copy(&debug, built.path("program.debug")).unwrap();
        built.assert(&[]);
        if linker == "-Wl,--build-id" {
            fs::copy(&debug, built.build_id_path()).unwrap();
            built.assert_in_root("/program", &[]);
        }
        // Neither is one that is no debug file, or nothing to be read.
        fs::write(built.path("program.debug"), "\x7fELF and no more").unwrap();
        built.assert(&[]);
    }
}

#[test]
fn a_debug_file_shortened_by_dwz_gives_no_wrong_names() {
    if !have("names from debug files shortened by dwz", &["dwz"]) {
        return;
    }
    let built = Built::new(&["-g"]);
    let debug = built.split(&["--add-gnu-debuglink=DEBUG"]);
    let twin = built.path("twin.debug");
    fs::copy(&debug, &twin).unwrap();
    let shared = built.path("shared.dwz");
    let arguments = [OsStr::new("-r"), OsStr::new("-m"), shared.as_os_str()];
    run("dwz", &[&arguments[..], &[debug.as_os_str(), twin.as_os_str()]].concat());
    let bytes = fs::read(&debug).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    assert!(elf.gnu_debugaltlink().unwrap().is_some(), "dwz has found something to share");
    // dwz changes the file after the checksum was taken: the build id tells that it is the one.
    // The inlined function itself is now in the shared file, where blazesym does not follow.
    built.assert(WITHOUT_INLINED);
    fs::remove_file(&shared).unwrap();
    built.assert(WITHOUT_INLINED);
}

#[test]
fn split_dwarf_gives_the_symbol_tables_names_and_no_others() {
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let built = Built::new(&["-g", version, "-gsplit-dwarf"]);
        let facts = ElfFacts::read(&File::open(&built.program).unwrap()).unwrap();
        assert!(facts.is_split, "{version}");
        built.assert(NAME_AND_LINE);
        let whole = Built::new(&["-g", version]);
        assert!(!ElfFacts::read(&File::open(&whole.program).unwrap()).unwrap().is_split);
    }
}

#[test]
fn a_package_of_split_dwarf_beside_the_program_gives_all() {
    if !have("names from .dwp files", &["dwp"]) {
        return;
    }
    let built = Built::new(&["-g", "-gdwarf-4", "-gsplit-dwarf"]);
    let package = built.path("program.dwp");
    let program = built.program.as_os_str();
    run("dwp", &[OsStr::new("-e"), program, OsStr::new("-o"), package.as_os_str()]);
    built.assert(WITH_LINES);
}

#[test]
fn a_deleted_file_keeps_its_names() {
    let built = Built::new(&["-g"]);
    let source = built.source(format!("{} (deleted)", built.program.display()).into(), None);
    fs::remove_file(&built.program).unwrap();
    assert_names(&built.names_of(&source, &Symbolizer::default()), WITH_LINES);
}

#[test]
fn another_file_at_the_same_path_gives_no_names() {
    let built = Built::new(&["-g"]);
    let source = built.source(built.program.clone(), None);
    fs::rename(&built.program, built.path("moved")).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &built.program).unwrap();
    assert_names(&built.names_of(&source, &Symbolizer::default()), WITH_LINES);
}

#[test]
fn a_file_without_symbols_has_no_names() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = SymbolSource::new(file.reopen().unwrap(), file.path().to_owned(), vec![], None);
    assert_eq!(Symbolizer::default().functions(&source, &[10, 20]), [vec![], vec![]]);
}

/// A section that says that it unpacks to more than there can be.
#[test]
fn a_compressed_section_cannot_claim_what_it_likes() {
    let built = Built::new(&["-g", "-gz=zlib"]);
    let mut bytes = fs::read(&built.program).unwrap();
    let (offset, _) = {
        use object::ObjectSection as _;
        let elf = object::File::parse(&*bytes).unwrap();
        let section = elf.section_by_name(".debug_info").unwrap();
        section.file_range().unwrap()
    };
    // `Elf64_Chdr`: type, reserved, size.
    bytes[offset as usize + 8..][..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let forged = built.path("forged");
    fs::write(&forged, &bytes).unwrap();
    let file = File::open(&forged).unwrap();
    let refused = ElfFacts::read(&file);
    assert!(matches!(refused, Err(DebugFileError::Expansion { .. })), "{refused:?}");
    let code = ModuleFacts::read(&file, |_| false).unwrap().code;
    let source = SymbolSource::new(file, forged, code, None);
    assert!(built.names_of(&source, &Symbolizer::default()).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_file_gives_facts_or_an_error(changes: Vec<(prop::sample::Index, u8)>) {
        let mut bytes = fs::read("/proc/self/exe").unwrap();
        bytes.truncate(1 << 20);
        for (position, byte) in changes {
            let position = position.index(4096);
            bytes[position] = byte;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(facts) = ElfFacts::read(&file) {
            prop_assert!(facts.debug_link.is_none_or(|(name, _)| !name.contains('/')));
        }
    }
}

/// Answers one request as a debuginfod server does; gives back its first line.
fn serve_once(listener: TcpListener, body: Vec<u8>) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the client has closed");
        request.extend_from_slice(&part[..count]);
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    String::from_utf8_lossy(&request).lines().next().unwrap().to_owned()
}

#[test]
fn a_server_is_asked_for_what_is_not_here_and_believed_if_it_fits() {
    if !have("debug information from a server", &["debuginfod-find"]) {
        return;
    }
    let built = Built::new(&["-g"]);
    let debug = built.split(&[]);
    let right = fs::read(&debug).unwrap();
    fs::remove_file(&debug).unwrap();
    let other = Built::new(&["-g", "-O1"]);
    let wrong = fs::read(other.split(&[])).unwrap();
    for (body, expected) in [(right, WITH_LINES), (wrong, &[][..])] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cache = tempfile::tempdir().unwrap();
        let client = Debuginfod::at(&url, cache.path());
        let server = std::thread::spawn(move || serve_once(listener, body));
        let source = built.source(built.program.clone(), None);
        let symbolizer = Symbolizer::new(Some(client));
        assert_names(&built.names_of(&source, &symbolizer), expected);
        // Asked once, whatever the answer: nobody listens any more.
        assert_names(&built.names_of(&source, &symbolizer), expected);
        let asked = format!("GET /buildid/{}/debuginfo HTTP", hexadecimal(&built.build_id()));
        let request = server.join().unwrap();
        assert!(request.starts_with(&asked), "{request}");
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    if !have("a debuginfod server that hangs", &["debuginfod-find"]) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let mut client = Debuginfod::at(&url, cache.path());
    let begun = std::time::Instant::now();
    client.limit_patience(std::time::Duration::from_millis(300));
    assert!(client.fetch(&[0xab; 20]).is_none());
    assert!(client.fetch(&[0xcd; 20]).is_none());
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    drop(listener);
}

/// A name without a path, or it leads to files that have nothing to do with the program.
#[test]
fn a_debug_link_leads_nowhere_else() {
    let built = Built::new(&["-g"]);
    let debug = built.split(&[]);
    let mut section = b"sub/program.debug\0".to_vec();
    section.resize(section.len().next_multiple_of(4), 0);
    section.extend_from_slice(&crc32fast::hash(&fs::read(&debug).unwrap()).to_le_bytes());
    fs::write(built.path("link"), section).unwrap();
    fs::rename(&debug, built.path("sub/program.debug")).unwrap();
    let flag = format!(".gnu_debuglink={}", built.path("link").display());
    run("objcopy", &[OsStr::new("--add-section"), OsStr::new(&flag), built.program.as_os_str()]);
    built.assert(&[]);
    run("readelf", &[OsStr::new("-n"), built.program.as_os_str()]);
}
