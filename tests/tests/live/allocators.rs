//! Other allocators than the C library's, by all their names: each call of the program counts once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use memscope_tests::{
    Figures, Variant, programs,
    stacks::{self, Compiler},
};

use crate::kit::{Export, Scratch, is_installed, number, run, skip};
use crate::rungs::ways;

const ROUNDS: &str = "200";
/// What a site has of what the program counts.
const COUNTED: [&str; 7] = [
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "failed_allocations",
    "live_blocks",
    "live_bytes",
];

/// What allocates on its own account as an exception is thrown.
const OF_EXCEPTIONS: [&str; 2] = ["__cxa_allocate_exception", "_Unwind_RaiseException"];

/// How a program comes by an allocator.
#[derive(Clone, Copy)]
enum By {
    Preload,
    Linking,
}

/// Where the program's function `work` is among the callers. Allocators and the libraries around them
/// allocate on their own account too, before main and after it, and what makes exceptions.
fn sites_of_work(export: &Export) -> impl Iterator<Item = &serde_json::Value> {
    export.sites_of(0).filter(|site| {
        let frames = site["frames"].as_array().unwrap();
        let names = || frames.iter().filter_map(|frame| frame["function"].as_str());
        names().any(|name| name == "work" || name.starts_with("work("))
            && !names().any(|name| OF_EXCEPTIONS.contains(&name))
    })
}

/// Traces it from its first instruction. What is preloaded, memscope has too, and does not mind.
fn trace(options: &[&str], program: &Path, variable: Option<(&str, &OsStr)>) -> (Figures, Export) {
    let scratch = Scratch::new();
    let mut command = scratch.trace_program(&[&["--strict"], options].concat(), program, &[ROUNDS]);
    command.envs(variable);
    let finished = run(&mut command);
    finished.assert_code(0);
    (Figures::parse(&finished.stdout), scratch.export())
}

/// The same, with all stacks complete.
fn assert_exact(what: &str, figures: &Figures, export: &Export) {
    assert_counts_once(what, figures, export);
    let stacks = &export.0["stacks"];
    assert_eq!(number(stacks, "truncated"), 0, "{what}: {stacks}");
}

fn assert_counts_once(what: &str, figures: &Figures, export: &Export) {
    export.assert_complete();
    for key in COUNTED {
        let recorded: u64 = sites_of_work(export).map(|site| number(site, key)).sum();
        assert_eq!(recorded, figures.number(key), "{key} of {what}");
    }
    assert!(figures.number("allocations") > 500, "{what} did something");
    // No site has these, but what they give has a past.
    let sites: Vec<u64> = sites_of_work(export).map(|site| number(site, "site")).collect();
    let blocks = export.blocks();
    let reallocated = blocks.iter().filter(|block| {
        sites.contains(&block.site) && block.chain_allocated_ns < block.allocated_ns
    });
    assert_eq!(reallocated.count() as u64, figures.number("reallocations"), "{what}");
    assert_eq!(export.total("unknown_frees"), 0, "{what}");
    assert_eq!(export.total("unseen_ends"), 0, "{what}");
    eprintln!(
        "{what}: {} allocations of {} bytes, {} frees, {} reallocations, {} failed: equal",
        figures.number("allocations"),
        figures.number("allocated_bytes"),
        figures.number("frees"),
        figures.number("reallocations"),
        figures.number("failed_allocations"),
    );
}

/// `names`: whose own functions the C program is to find.
fn assert_allocator(source: &str, file: &str, how: By, names: Option<&str>) {
    assert_allocator_traced(&[], source, file, how, names);
}

fn assert_allocator_traced(
    options: &[&str],
    source: &str,
    file: &str,
    how: By,
    names: Option<&str>,
) {
    let what = format!(
        "{source}, {} {file}",
        if matches!(how, By::Preload) { "preloading" } else { "linked to" }
    );
    let Some(library) = programs::find_library(file) else {
        return skip(&what, "it is not installed");
    };
    let (program, variable): (PathBuf, _) = match how {
        By::Preload => {
            (programs::build(source, Variant::Default), Some(("LD_PRELOAD", library.as_os_str())))
        }
        By::Linking => (programs::build_with_allocator(source, &library), None),
    };
    let (figures, export) = trace(options, &program, variable);
    if let Some(names) = names {
        assert_eq!(figures.text("names"), names, "{what}");
    }
    assert_exact(&what, &figures, &export);
}

fn assert_in_c_and_cpp(file: &str, how: By, names: &str) {
    assert_allocator("allocators.c", file, how, Some(names));
    assert_allocator("allocators.cpp", file, how, None);
}

#[test]
fn the_c_librarys_own() {
    for source in ["allocators.c", "allocators.cpp"] {
        let (figures, export) = trace(&[], &programs::build(source, Variant::Default), None);
        // libstdc++'s nothrow operators make an exception of a failure, which is a block.
        if source.ends_with(".c") {
            assert_exact(source, &figures, &export);
        }
        let probed = export.0["processes"][0]["allocators"].as_array().unwrap();
        assert_eq!(probed.len(), 1, "libstdc++'s operators are not probed: {probed:?}");
    }
}

#[test]
fn jemalloc_preloaded() {
    assert_in_c_and_cpp("libjemalloc.so.2", By::Preload, "jemalloc");
}

#[test]
fn jemalloc_linked() {
    assert_in_c_and_cpp("libjemalloc.so.2", By::Linking, "jemalloc");
}

#[test]
fn jemalloc_in_the_program() {
    assert_in_c_and_cpp("libjemalloc.a", By::Linking, "jemalloc");
}

#[test]
fn jemalloc_as_rusts_global_allocator() {
    assert_allocator("allocators.rs", "libjemalloc.so.2", By::Linking, None);
}

#[test]
fn mimalloc_preloaded() {
    assert_in_c_and_cpp("libmimalloc.so.2", By::Preload, "mimalloc");
}

#[test]
fn mimalloc_linked() {
    assert_in_c_and_cpp("libmimalloc.so.2", By::Linking, "mimalloc");
}

#[test]
fn tcmalloc_preloaded() {
    assert_in_c_and_cpp("libtcmalloc_minimal.so.4", By::Preload, "tcmalloc");
}

#[test]
fn tcmalloc_linked() {
    assert_in_c_and_cpp("libtcmalloc_minimal.so.4", By::Linking, "tcmalloc");
}

#[test]
fn tcmalloc_in_the_program() {
    assert_in_c_and_cpp("libtcmalloc_minimal.a", By::Linking, "tcmalloc");
}

const SCUDO: &str = "libclang_rt.scudo_standalone-x86_64.so";

#[test]
fn scudo_preloaded() {
    assert_in_c_and_cpp(SCUDO, By::Preload, "none");
}

#[test]
fn scudo_linked() {
    assert_in_c_and_cpp(SCUDO, By::Linking, "none");
}

/// Compiled by clang with scudo in the program.
fn assert_scudo(how: &str, flags: &[&str]) {
    // Older compilers know the sized forms of operator delete only if told.
    for (source, further) in
        [("allocators.c", &[][..]), ("allocators.cpp", &["-fsized-deallocation"])]
    {
        let flags = [flags, further].concat();
        let what = format!("{source}, {how}");
        let program = stacks::build(source, Compiler::Clang, &flags);
        // Without it the scudo of older compilers ends a program that asks for too much.
        let variable = ("SCUDO_OPTIONS", OsStr::new("allocator_may_return_null=1"));
        let (figures, export) = trace(&[], &program, Some(variable));
        assert_exact(&what, &figures, &export);
    }
}

#[test]
fn scudo_in_the_program() {
    let archives = ["scudo_standalone", "scudo_standalone_cxx"]
        .map(|name| programs::find_library(&format!("libclang_rt.{name}-x86_64.a")));
    let [Some(of_c), Some(of_cpp)] = archives else {
        return skip("scudo in the program", "clang's runtime is not installed");
    };
    let (of_c, of_cpp) = (of_c.to_string_lossy(), of_cpp.to_string_lossy());
    let flags = ["-Wl,--whole-archive", &of_c, &of_cpp, "-Wl,--no-whole-archive"];
    assert_scudo("scudo's archives linked in", &flags);
}

#[test]
fn scudo_as_clang_adds_it() {
    if programs::find_library(SCUDO).is_none() {
        return skip("-fsanitize=scudo", "clang's runtime is not installed");
    }
    assert_scudo("-fsanitize=scudo", &["-fsanitize=scudo"]);
}

/// A Rust program whose global allocator a crate brings.
fn assert_crate(program: &str, feature: &str) {
    let what = format!("{program}.rs, feature {feature}");
    match programs::build_with_crate(program, feature) {
        Ok(program) => {
            let (figures, export) = trace(&[], &program, None);
            assert_exact(&what, &figures, &export);
        }
        Err(reason) => skip(&what, &reason),
    }
}

#[test]
fn the_crate_tikv_jemallocator() {
    assert_crate("jemalloc", "jemalloc");
}

/// In place of the C library's.
#[test]
fn the_crate_tikv_jemallocator_without_a_prefix() {
    assert_crate("jemalloc", "jemalloc-unprefixed");
}

#[test]
fn the_crate_mimalloc() {
    assert_crate("mimalloc", "mimalloc");
}

#[test]
fn the_crate_mimalloc_of_version_2() {
    assert_crate("mimalloc", "mimalloc-v2");
}

#[test]
fn the_crate_snmalloc() {
    assert_crate("snmalloc", "snmalloc");
}

/// A handler is found through the frames of an operator that is probed. mimalloc, built as C, aborts where
/// others throw.
fn assert_throws(file: &str, how: By) {
    for way in ways() {
        assert_allocator_traced(&["--attach-by", way], "throws.cpp", file, how, None);
    }
}

#[test]
fn exceptions_pass_jemalloc() {
    assert_throws("libjemalloc.so.2", By::Preload);
    assert_throws("libjemalloc.a", By::Linking);
}

#[test]
fn exceptions_pass_tcmalloc() {
    assert_throws("libtcmalloc_minimal.so.4", By::Preload);
    assert_throws("libtcmalloc_minimal.a", By::Linking);
}

/// Found by the symbol table of the program.
#[test]
fn the_c_librarys_own_in_a_static_program() {
    for source in ["allocators.c", "throws.cpp"] {
        let (figures, export) = trace(&[], &programs::build(source, Variant::Static), None);
        assert_exact(&format!("{source}, static"), &figures, &export);
    }
}

#[test]
fn musls_own_in_a_static_program() {
    let what = "allocators.c, static, with musl";
    if !is_installed(Compiler::Musl.program()) {
        return skip(what, "musl-gcc is not installed");
    }
    let program = stacks::build("allocators.c", Compiler::Musl, &["-static", "-fno-builtin"]);
    let (figures, export) = trace(&[], &program, None);
    // No stack is complete: this C library has no unwind information about its own start.
    assert_counts_once(what, &figures, &export);
}

#[test]
fn exceptions_pass_the_c_librarys_own() {
    let (figures, export) = trace(&[], &programs::build("throws.cpp", Variant::Default), None);
    assert_exact("throws.cpp", &figures, &export);
}
