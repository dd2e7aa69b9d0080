//! Stacks that the kernel side has no tables for yet, and copies.

use std::fs;

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::kit::{Scratch, number, run};

/// Innermost first, from the allocator's caller to the constructor.
const CHAIN: [&str; 6] = [
    "copies_small",
    "copies_large",
    "copies_unknown",
    "copies_realigned",
    "copies_both",
    "copies_constructor",
];
const LIBRARIES: usize = 4;

fn name(frame: &Value) -> &str {
    frame["function"].as_str().unwrap_or("?")
}

/// The number in memscope's message of what it has copied.
fn walked_from_copies(stderr: &str) -> u64 {
    let line = stderr.lines().find(|line| line.contains("stacks were walked from copies"));
    let line = line.unwrap_or_else(|| panic!("nothing said of copies: {stderr}"));
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

/// What a constructor allocates is allocated before anybody can have read its library.
#[test]
fn stacks_of_code_that_is_new_are_complete() {
    for variant in [Variant::Default, Variant::FramePointers, Variant::Unoptimised] {
        let scratch = Scratch::new();
        let library = programs::copies_library(variant);
        let libraries: Vec<String> = (0..LIBRARIES)
            .map(|number| {
                let copy = scratch.path(&format!("libcopies{number}.so"));
                fs::copy(&library, &copy).unwrap();
                copy.to_str().unwrap().to_owned()
            })
            .collect();
        let arguments: Vec<&str> = libraries.iter().map(String::as_str).collect();

        let program = programs::build("copies.c", variant);
        let finished = run(&mut scratch.trace_program(&["-v"], program, &arguments));
        finished.assert_code(0);
        let figures = Figures::parse(&finished.stdout);
        let loaded = figures.rows("library");
        assert_eq!(loaded.len(), LIBRARIES);
        let (count, bytes): (u64, u64) =
            (loaded[0][0].parse().unwrap(), loaded[0][1].parse().unwrap());
        let export = scratch.export();
        export.assert_complete();
        let blocks = export.blocks();
        let (mut exact, mut modules) = (0, Vec::new());
        for site in export.list("sites") {
            let id = number(site, "site");
            let of_site = blocks.iter().filter(|block| block.size == bytes && block.site == id);
            let of_site = of_site.count() as u64;
            if of_site == 0 {
                continue;
            }
            let frames: Vec<&Value> = site["frames"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|frame| !frame["inlined"].as_bool().unwrap())
                .collect();
            assert_eq!(site["stack"], "complete", "{variant:?}: {site:#}");
            let names: Vec<&str> = frames.iter().map(|frame| name(frame)).collect();
            assert_eq!(names[..CHAIN.len()], CHAIN, "{variant:?}: {site:#}");
            let load = names.iter().position(|name| *name == "load").unwrap();
            let between = &frames[CHAIN.len()..load];
            assert!(!between.is_empty(), "the loader calls constructors: {site:#}");
            for frame in between {
                let module = frame["module"].as_str().unwrap();
                let module = module.rsplit('/').next().unwrap();
                assert!(module.starts_with("ld-") || module.starts_with("libc"), "{site:#}");
            }
            assert_eq!(names[load + 1], "main", "{site:#}");
            assert_eq!(*names.last().unwrap(), "_start", "{site:#}");
            exact += of_site;
            modules.push(frames[0]["module"].as_str().unwrap().to_owned());
        }
        assert_eq!(exact, count * LIBRARIES as u64, "{variant:?}");
        modules.sort();
        assert_eq!(modules, libraries, "{variant:?}: the same chain is one site");
        let copied = walked_from_copies(&finished.stderr);
        eprintln!("{variant:?}: {exact} exact, {copied} of all stacks from copies");
    }
}
