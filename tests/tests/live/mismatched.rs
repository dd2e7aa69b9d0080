//! Blocks of one allocator that a function of another is to free: each is told, with what gave it, and
//! nothing else is. That nothing is where all is right, all other tests see, see `kit::export`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use memscope_tests::programs::{self, Variant};
use memscope_tests::{
    Figures, TestProgram,
    stacks::{self, Compiler},
};

use crate::kit::{Export, Scratch, export_any, number, run, skip};

const ROUNDS: &str = "25";
const CHILDREN: &str = "3";
/// The functions of the pool in `foreign.c`.
const POOL: [&str; 3] = [
    "{name='pool_alloc', kind='allocates', size=0, allocator='pool'}",
    "{name='pool_resize', kind='reallocates', size=1, block=0, allocator='pool'}",
    "{name='pool_free', kind='frees', block=0, allocator='pool'}",
];

/// Frees and bytes by: who asked for the blocks, which function gave them, and which one was to free them,
/// these with their files.
type Found = BTreeMap<(String, String, String), (u64, u64)>;

fn found(export: &Export) -> Found {
    let name = |function: &serde_json::Value| {
        let module = Path::new(function["module"].as_str().unwrap()).file_name().unwrap();
        format!("{} {}", function["function"].as_str().unwrap(), module.display())
    };
    let mut found = Found::new();
    for mismatch in export.list("mismatches") {
        let site = &export.list("sites")[number(mismatch, "site") as usize];
        let caller = site["frames"][0]["function"].as_str().unwrap().to_owned();
        let key = (caller, name(&mismatch["allocated_by"]), name(&mismatch["freed_by"]));
        let sums = found.entry(key).or_default();
        sums.0 += number(mismatch, "frees");
        sums.1 += number(mismatch, "bytes");
    }
    let all: u64 = found.values().map(|(frees, _)| frees).sum();
    assert_eq!(export.total("mismatched_frees"), all);
    found
}

/// What the program says that it did, of blocks of so many bytes.
fn expected(figures: &Figures, ways: &[Way]) -> Found {
    let way = |(caller, bytes, given_by, freed_by): &Way| {
        let times = figures.number(caller);
        assert!(times > 0, "{caller}");
        let key = (*caller).to_owned();
        ((key, (*given_by).to_owned(), (*freed_by).to_owned()), (times, times * bytes))
    };
    ways.iter().map(way).collect()
}

type Way = (&'static str, u64, &'static str, &'static str);

/// What `main` has the pool do, as a program of this name.
fn by_the_pool(malloc: &'static str, functions: [&'static str; 2]) -> [Way; 2] {
    [("to_the_pool", 48, malloc, functions[0]), ("resized_by_the_pool", 56, malloc, functions[1])]
}

const OF_LIBC: &str = "malloc libc.so.6";
const OF_PROGRAM: [&str; 2] = ["pool_free foreign-c", "pool_resize foreign-c"];

fn described() -> Vec<&'static str> {
    POOL.iter().flat_map(|function| ["--allocator", *function]).collect()
}

fn trace(options: &[&str], program: &Path) -> (Figures, Export, Scratch) {
    let scratch = Scratch::new();
    let options = [&["--strict"], options].concat();
    let finished = run(&mut scratch.trace_program(&options, program, &[ROUNDS, CHILDREN]));
    finished.assert_code(0);
    let export = export_any(&scratch.recording());
    assert_eq!(export.lost(), 0);
    (Figures::parse(&finished.stdout), export, scratch)
}

#[test]
fn a_described_pool_is_given_what_is_mallocs() {
    for (variant, malloc) in [(Variant::Default, OF_LIBC), (Variant::Static, "malloc foreign-c")] {
        let program = programs::build("foreign.c", variant);
        let (figures, export, scratch) = trace(&described(), &program);
        export.assert_complete();
        assert_eq!(
            found(&export),
            expected(&figures, &by_the_pool(malloc, OF_PROGRAM)),
            "{variant:?}"
        );

        let report = scratch.report("mismatched").stdout;
        let line = format!("{ROUNDS} times, 1.17 KiB: allocated by malloc [");
        assert!(report.contains(&line) && report.contains("], freed by pool_free ["), "{report}");
        assert!(report.contains("to_the_pool  foreign.c:"), "{report}");
        let summary = scratch.report("summary").stdout;
        assert!(summary.contains("mismatched 38 frees by another allocator"), "{summary}");
    }
}

#[test]
fn attached_to_a_running_program_it_is_told_as_well() {
    for way in crate::rungs::ways() {
        let scratch = Scratch::new();
        let program = programs::build("foreign.c", Variant::Default);
        let mut program =
            TestProgram::spawn(Command::new(program).args([ROUNDS, CHILDREN, "wait"]));
        let pid = program.wait_ready();
        let memscope = scratch.attach(&[&["--attach-by", way], &described()[..]].concat(), &[pid]);
        program.go();
        let (figures, status) = program.finish();
        assert!(status.success());
        memscope.finish().assert_code(0);
        let export = export_any(&scratch.recording());
        assert_eq!(found(&export), expected(&figures, &by_the_pool(OF_LIBC, OF_PROGRAM)), "{way}");
    }
}

/// Then it can be anything, also a function that hands on what it is given.
#[test]
fn of_a_pool_that_nobody_says_to_be_an_allocator_nothing_is_known() {
    let program = programs::build("foreign.c", Variant::Default);
    let unsaid = POOL.map(|function| function.replace(", allocator='pool'", ""));
    let options: Vec<&str> = unsaid.iter().flat_map(|function| ["--allocator", function]).collect();
    let (_, export, _) = trace(&options, &program);
    assert_eq!(found(&export), Found::new());
}

/// Of sampled blocks another one can have taken the place without being seen.
#[test]
fn of_sampled_blocks_nothing_is_known() {
    let program = programs::build("foreign.c", Variant::Default);
    let (_, export, scratch) = trace(&[&["--sample", "1"], &described()[..]].concat(), &program);
    assert_eq!(found(&export), Found::new());
    let report = scratch.report("mismatched").stdout;
    assert!(report.contains("Of sampled blocks it is not known"), "{report}");
}

/// Linked behind the C library, so that `malloc` is that one's.
fn linked_to(library: &Path) -> PathBuf {
    let (library, folder) = (library.display().to_string(), library.parent().unwrap().display());
    let rpath = format!("-Wl,-rpath,{folder}");
    stacks::build(
        "foreign.c",
        Compiler::Gcc,
        &["-fno-builtin", "-Wl,--no-as-needed", "-lc", &library, &rpath],
    )
}

#[test]
fn two_allocators_are_given_each_others_blocks() {
    // Of the names of one function the best known is shown. mimalloc looks for what it knows of a block in memory
    // that is not there, before the instruction that is probed: that the program ended so is not told.
    for (file, gives, frees) in [
        ("libmimalloc.so.2", "malloc libmimalloc.so.2.0", None),
        ("libjemalloc.so.2", "mallocx libjemalloc.so.2", Some("dallocx libjemalloc.so.2")),
    ] {
        let Some(library) = programs::find_library(file) else {
            skip(&format!("blocks of {file} and the C library"), "it is not installed");
            continue;
        };
        let program = linked_to(&library);
        let to_the_other = frees.map(|frees| ("to_the_other", 70, OF_LIBC, frees));
        let from_the_other = ("from_the_other", 80, gives, "free libc.so.6");
        let ways: Vec<Way> = to_the_other.into_iter().chain([from_the_other]).collect();
        let (figures, export, _) = trace(&[], &program);
        assert_eq!(found(&export), expected(&figures, &ways), "{file}");
        let pool = by_the_pool(OF_LIBC, ["pool_free foreign", "pool_resize foreign"]);
        let (figures, export, _) = trace(&described(), &program);
        assert_eq!(
            found(&export),
            expected(&figures, &[&pool, &ways[..]].concat()),
            "{file}, and a pool"
        );
    }
}
