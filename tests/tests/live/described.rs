//! Allocators that the table does not know: described, or found by a separate debug file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memscope_tests::programs::{self, Variant};
use memscope_tests::{Figures, TestProgram};

use crate::attach::start;
use crate::kit::{Export, Scratch, is_installed, run, skip};

const ROUNDS: &str = "500";
const COUNTED: [&str; 6] =
    ["allocations", "allocated_bytes", "frees", "freed_bytes", "live_blocks", "failed_allocations"];
/// The functions of `pool.c`, and their arguments.
const POOL: [(&str, &str); 4] = [
    ("pool_alloc", "kind = 'allocates'\nsize = 1"),
    ("pool_take", "kind = 'allocates'\nsize = 3\ncount = 2\nresult_slot = 0"),
    ("pool_resize", "kind = 'reallocates'\nsize = 1\nblock = 2"),
    ("pool_free", "kind = 'frees'\nblock = 1"),
];

/// A description of the pool; `place` says of each function where it is.
fn describe(scratch: &Scratch, place: impl Fn(&str) -> String) -> String {
    let text: String = POOL
        .iter()
        .map(|(name, rest)| format!("[[function]]\n{}\n{rest}\n\n", place(name)))
        .collect();
    let path = scratch.path("pool.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn assert_pool(what: &str, figures: &Figures, export: &Export) {
    export.assert_complete();
    for key in COUNTED {
        assert_eq!(export.total(key), figures.number(key), "{key} of {what}");
    }
    assert!(figures.number("chunks") > 1, "it called malloc more than once");
    assert_eq!(export.total("unknown_frees"), 0, "{what}");
    eprintln!(
        "{what}: {} allocations, {} frees, {} failed, over {} of malloc: equal",
        figures.number("allocations"),
        figures.number("frees"),
        figures.number("failed_allocations"),
        figures.number("chunks"),
    );
}

fn trace(scratch: &Scratch, options: &[&str], program: &Path) -> (Figures, Export, String) {
    let mut command = scratch.trace_program(&[&["--strict"], options].concat(), program, &[ROUNDS]);
    let finished = run(&mut command);
    finished.assert_code(0);
    (Figures::parse(&finished.stdout), scratch.export(), finished.stderr)
}

/// Without symbols, as `strip` makes it.
fn stripped(scratch: &Scratch, program: &Path) -> PathBuf {
    let path = scratch.path("stripped");
    let status = Command::new("strip").arg("-o").arg(&path).arg(program).status().unwrap();
    assert!(status.success());
    path
}

/// Address of a function in a program's own numbering.
fn svma_of(program: &Path, function: &str) -> String {
    let output = Command::new("nm").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.ends_with(&format!(" {function}"))).unwrap();
    format!("0x{}", line.split(' ').next().unwrap())
}

#[test]
fn a_pool_is_described_by_names() {
    let scratch = Scratch::new();
    let program = programs::build("pool.c", Variant::Default);
    let file = describe(&scratch, |name| format!("name = '{name}'\nfile = 'pool-c'"));
    let (figures, export, stderr) = trace(&scratch, &["--allocator", &file], &program);
    assert_pool("a pool by names", &figures, &export);
    assert!(!stderr.contains("is in no file"), "{stderr}");
    let undescribed = Scratch::new();
    let (figures, export, _) = trace(&undescribed, &[], &program);
    assert_eq!(export.total("allocations"), figures.number("chunks"), "else malloc counts");
}

#[test]
fn a_stripped_pool_is_described_by_places() {
    if !is_installed("strip") || !is_installed("nm") {
        return skip("a stripped pool", "binutils are not installed");
    }
    for variant in [Variant::Default, Variant::Static] {
        let scratch = Scratch::new();
        let program = programs::build("pool.c", variant);
        let stripped = stripped(&scratch, &program);
        let file = describe(&scratch, |name| {
            format!("svma = {}\nfile = 'stripped'\nname = '{name}'", svma_of(&program, name))
        });
        let (figures, export, _) = trace(&scratch, &["--allocator", &file], &stripped);
        assert_pool(&format!("a stripped pool, {variant:?}"), &figures, &export);
    }
    // One byte beside, nothing is probed and nothing breaks.
    let scratch = Scratch::new();
    let program = programs::build("pool.c", Variant::Default);
    let stripped = stripped(&scratch, &program);
    let file = describe(&scratch, |name| {
        let svma = svma_of(&program, name);
        let beside = u64::from_str_radix(svma.trim_start_matches("0x"), 16).unwrap() + 1;
        format!("svma = {beside}\nfile = 'stripped'\nname = '{name}'")
    });
    let (figures, export, stderr) = trace(&scratch, &["--allocator", &file], &stripped);
    assert_eq!(export.total("allocations"), figures.number("chunks"), "malloc's");
    assert_eq!(stderr.matches("no function begins there").count(), 4, "{stderr}");
}

#[test]
fn a_running_pool_is_described_in_words() {
    let scratch = Scratch::new();
    let mut program = start("pool.c", &[ROUNDS, "wait"]);
    let pid = program.wait_ready();
    let words = [
        "{name='pool_alloc', kind='allocates', size=1}",
        "{name='pool_take', kind='allocates', size=3, count=2, result_slot=0}",
        "{name='pool_resize', kind='reallocates', size=1, block=2}",
        "{name='pool_free', kind='frees', block=1}",
        "{name='no_such_function', kind='frees', block=0}",
    ];
    let options: Vec<&str> = words.iter().flat_map(|words| ["--allocator", words]).collect();
    let memscope = scratch.attach(&options, &[pid]);
    program.go();
    let (figures, status) = program.finish();
    assert!(status.success());
    let finished = memscope.finish();
    finished.assert_code(0);
    assert_pool("a running pool", &figures, &scratch.export());
    let missing = finished.stderr.matches("is in no file of a traced process").count();
    assert_eq!(missing, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("no_such_function"), "{}", finished.stderr);
}

/// Splits a static program into what runs and a debug file beside it.
fn split(scratch: &Scratch, program: &Path) -> (PathBuf, PathBuf) {
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    let debug = scratch.path("pool.debug");
    let split = stripped(scratch, program);
    run(Command::new("objcopy").arg("--only-keep-debug").arg(program).arg(&debug));
    run(Command::new("objcopy")
        .arg(format!("--add-gnu-debuglink={}", debug.display()))
        .arg(&split));
    (split, debug)
}

#[test]
fn a_stripped_static_program_is_known_by_its_debug_file() {
    if !is_installed("objcopy") {
        return skip("a separate debug file", "binutils are not installed");
    }
    let scratch = Scratch::new();
    let arguments = ["3", "1000"];
    let original = programs::build("leaks.c", Variant::Static);
    let (program, debug) = split(&scratch, &original);
    run(&mut scratch.trace_program(&["--strict"], &program, &arguments)).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    assert!(export.total("allocations") > 500, "the noise is there");
    let whole = Scratch::new();
    // The C library keeps the path's folder, in a block: it must be as long.
    let unsplit = scratch.path("original");
    fs::copy(&original, &unsplit).unwrap();
    run(&mut whole.trace_program(&["--strict"], &unsplit, &arguments)).assert_code(0);
    let whole = whole.export();
    for key in COUNTED {
        assert_eq!(export.total(key), whole.total(key), "{key}, as with its symbols");
    }

    // With one of another program, and with none, it is refused, and said why.
    let other = programs::build("pairs.c", Variant::Static);
    for is_there in [true, false] {
        if is_there {
            fs::copy(&other, &debug).unwrap();
        } else {
            fs::remove_file(&debug).unwrap();
        }
        let mut waiting = TestProgram::spawn(Command::new(&program).args(arguments).arg("wait"));
        let pid = waiting.wait_ready().to_string();
        let refused = Scratch::new();
        let finished = run(&mut refused.trace(&["--pid", &pid]));
        finished.assert_code(1);
        for part in ["no known allocator", "--allocator", "no symbol table", "pool.debug"] {
            assert!(finished.stderr.contains(part), "{part} in {}", finished.stderr);
        }
        waiting.finish();
    }
}

/// Go leaves a section by which its programs are known; here one has nothing else of Go.
#[test]
fn returns_of_go_functions_are_not_probed() {
    if !is_installed("objcopy") {
        return skip("a program of Go", "binutils are not installed");
    }
    let scratch = Scratch::new();
    let mark = scratch.path("mark");
    fs::write(&mark, "go").unwrap();
    let program = scratch.path("go");
    let mut objcopy = Command::new("objcopy");
    objcopy.arg(format!("--add-section=.go.buildinfo={}", mark.display()));
    objcopy.arg(programs::build("pool.c", Variant::Default)).arg(&program);
    assert!(objcopy.status().unwrap().success());
    let file = describe(&scratch, |name| format!("name = '{name}'"));
    let finished = run(&mut scratch.trace_program(&["--allocator", &file], &program, &[ROUNDS]));
    finished.assert_code(0);
    for name in ["pool_alloc", "pool_take", "pool_resize"] {
        let refused = format!("blocks of {name} in ");
        assert!(finished.stderr.contains(&refused), "{name}: {}", finished.stderr);
    }
    assert_eq!(finished.stderr.matches("a Go program").count(), 3, "{}", finished.stderr);
    let figures = Figures::parse(&finished.stdout);
    assert_eq!(scratch.export().total("allocations"), figures.number("chunks"), "malloc's");
}

#[test]
fn wrong_descriptions_are_refused() {
    let scratch = Scratch::new();
    let file = describe(&scratch, |name| format!("nam = '{name}'"));
    let finished = run(&mut scratch.trace_program(&["--allocator", &file], "true", &[]));
    finished.assert_code(2);
    assert!(finished.stderr.contains("pool.toml:2: unknown field `nam`"), "{}", finished.stderr);
    assert!(!scratch.recording().exists(), "nothing is left behind");
}
