//! Call chains with their names and lines, against programs that print what they should be.

use std::fs;
use std::path::Path;
use std::process::Command;

use memscope_tests::{ExpectedChain, ExpectedFrame, Figures, TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, number, run};

/// The allocations of this chain: the site, of which there is one.
fn site_of<'a>(export: &'a Export, chain: &ExpectedChain) -> &'a Value {
    let of_size: Vec<_> =
        export.blocks().into_iter().filter(|block| block.size == chain.size).collect();
    assert_eq!(of_size.len() as u64, chain.count, "blocks of {} bytes", chain.size);
    assert!(of_size.iter().all(|block| block.site == of_size[0].site), "one call chain, one site");
    let site = export.list("sites").iter().find(|site| number(site, "site") == of_size[0].site);
    site.expect("each block's site is listed")
}

/// The frames of the program's own source, those of the libraries left out.
fn own_frames(site: &Value, source: &str) -> Vec<ExpectedFrame> {
    let frames = site["frames"].as_array().unwrap().iter();
    frames
        .filter(|frame| frame["file"].as_str().is_some_and(|file| file.ends_with(source)))
        .map(|frame| ExpectedFrame {
            function: frame["function"].as_str().unwrap().to_owned(),
            line: number(frame, "line") as u32,
            inlined: frame["inlined"].as_bool().unwrap(),
        })
        .collect()
}

fn through_the_library(site: &Value) -> bool {
    site["frames"][0]["module"].as_str().is_some_and(|module| module.contains("libstdc++"))
}

/// Exact functions, files, lines and inlined frames. A library function without frame pointer hides its
/// caller in this version; then that one frame is missing, nothing is wrong, and the chain is not called complete.
pub(crate) fn assert_chains(export: &Export, figures: &Figures, source: &str) -> usize {
    let chains = figures.chains();
    let mut exact = 0;
    for chain in &chains {
        let site = site_of(export, chain);
        let frames = own_frames(site, source);
        if frames == chain.frames {
            exact += 1;
            continue;
        }
        assert!(through_the_library(site), "{frames:#?} instead of {:#?}", chain.frames);
        assert_eq!(frames, chain.frames[1..], "only the caller of the library is missing");
        assert_ne!(site["stack"], "complete");
    }
    assert!(chains.len() >= 4, "the program has its chains");
    eprintln!("{source}: {exact} of {} chains exact", chains.len());
    exact
}

fn trace_chains(source: &str, variant: Variant) -> (Export, Figures) {
    trace_chains_of(source, variant, &[])
}

fn trace_chains_of(source: &str, variant: Variant, arguments: &[&str]) -> (Export, Figures) {
    let scratch = Scratch::new();
    let program = programs::build(source, variant);
    let finished = run(&mut scratch.trace_program(&[], program, arguments));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    (export, Figures::parse(&finished.stdout))
}

#[test]
fn c39_chains_in_c_are_exact_with_inlined_frames_and_lines() {
    for variant in [Variant::FramePointers, Variant::NoPie] {
        let (export, figures) = trace_chains("chain.c", variant);
        assert_eq!(assert_chains(&export, &figures, "chain.c"), 5, "{variant:?}");
    }
}

#[test]
fn c39_chains_in_cpp_are_exact_and_demangled() {
    let (export, figures) = trace_chains("chain.cpp", Variant::FramePointers);
    assert!(assert_chains(&export, &figures, "chain.cpp") >= 3);
}

#[test]
fn c39_chains_in_rust_are_exact_with_either_mangling() {
    for variant in [Variant::FramePointers, Variant::RustV0] {
        let (export, figures) = trace_chains("chain.rs", variant);
        assert_eq!(assert_chains(&export, &figures, "chain.rs"), 4, "{variant:?}");
    }
}

#[test]
fn c39_debug_information_is_found_by_debug_link() {
    let (export, figures) = trace_chains("chain.c", Variant::DebugLink);
    assert_eq!(assert_chains(&export, &figures, "chain.c"), 5);
}

#[test]
fn x01_frames_without_symbols_have_a_module_and_an_offset_and_no_name() {
    let (export, figures) = trace_chains("chain.c", Variant::Stripped);
    for chain in figures.chains() {
        let site = site_of(&export, &chain);
        let frames = site["frames"].as_array().unwrap().iter();
        let own: Vec<&Value> =
            frames.filter(|frame| frame["module"].as_str().unwrap().ends_with("chain-c")).collect();
        let called = chain.frames.iter().filter(|frame| !frame.inlined).count();
        assert_eq!(own.len(), called + 1, "each function called is a frame, and _start: {site}");
        for frame in own {
            assert!(frame["function"].is_null() && frame["line"].is_null(), "{frame}");
            assert_ne!(frame["offset"], "0x0");
        }
    }
}

#[test]
fn a_chain_deeper_than_the_limit_says_that_it_was_cut() {
    let (export, figures) = trace_chains_of("chain.c", Variant::FramePointers, &["3", "400"]);
    let deep = &figures.rows("deep")[0];
    let (size, depth): (u64, usize) = (deep[0].parse().unwrap(), deep[1].parse().unwrap());
    let chain = ExpectedChain { size, count: 1, frames: Vec::new() };
    let site = site_of(&export, &chain);
    let frames = site["frames"].as_array().unwrap();
    assert!(frames.iter().all(|frame| frame["function"] == "descend"));
    assert!((256..depth).contains(&frames.len()), "{} frames", frames.len());
    assert_eq!(site["stack"], "depth_limit");
}

/// As in a container that is gone, or after an upgrade.
#[test]
fn c39_names_survive_the_files_they_came_from() {
    let scratch = Scratch::new();
    let copy = scratch.path("chain-copy");
    fs::copy(programs::build("chain.c", Variant::FramePointers), &copy).unwrap();
    let finished = run(&mut scratch.trace_program(&[], &copy, &[]));
    finished.assert_code(0);
    fs::remove_file(&copy).unwrap();
    let figures = Figures::parse(&finished.stdout);
    assert_eq!(assert_chains(&scratch.export(), &figures, "chain.c"), 5);
    let report = scratch.report("leaks").stdout;
    for function in ["alpha_step", "outer_inline", "zeroed_step"] {
        assert!(report.contains(function), "{function} in {report}");
    }
}

/// The running process still has the file, whatever its folder says.
#[test]
fn c39_a_program_deleted_before_the_attach_is_named_all_the_same() {
    let scratch = Scratch::new();
    let copy = scratch.path("chain-copy");
    fs::copy(programs::build("chain.c", Variant::FramePointers), &copy).unwrap();
    let mut program = TestProgram::spawn(Command::new(&copy).arg("wait"));
    let pid = program.wait_ready();
    fs::remove_file(&copy).unwrap();
    let memscope = scratch.attach(&[], &[pid]);
    program.go();
    let (figures, _) = program.finish();
    memscope.finish().assert_code(0);
    assert_eq!(assert_chains(&scratch.export(), &figures, "chain.c"), 5);
}

/// A command may end before anybody could look at it from outside.
#[test]
fn a_command_that_ends_at_once_has_its_frames_placed() {
    for _ in 0..3 {
        let scratch = Scratch::new();
        run(&mut scratch.trace_program(&[], "/bin/ls", &["/"])).assert_code(0);
        let export = scratch.export();
        assert!(export.total("allocations") > 0);
        for site in export.list("sites") {
            let module = site["frames"][0]["module"].as_str();
            assert!(module.is_some_and(|module| Path::new(module).is_absolute()), "{site}");
        }
    }
}

/// Stacks are remembered by the words of which they were found, up to so many: whatever that is, none is another one's.
#[test]
fn stacks_that_differ_in_one_function_are_told_apart_at_each_depth() {
    for variant in [Variant::FramePointers, Variant::Default] {
        let program = programs::build("alternating.c", variant);
        let scratch = Scratch::new();
        let traced = run(&mut scratch.trace_program(&["--strict"], program, &[]));
        traced.assert_code(0);
        let (export, figures) = (scratch.export(), Figures::parse(&traced.stdout));
        for function in ["left", "right"] {
            let is_of = |site: &&Value| site["frames"][1]["function"] == function;
            let sites = export.list("sites").iter().filter(is_of);
            let allocations: u64 = sites.map(|site| number(site, "allocations")).sum();
            assert_eq!(allocations, figures.number(function), "{variant:?}: {function}");
        }
    }
}
