use std::{collections::HashSet, fmt::Write as _, path::Path};

use super::*;
use crate::target::is_of_interest;

/// Set, the test writes the document instead of comparing it.
const UPDATE: &str = "MEMSCOPE_UPDATE_DOCS";
const BEGIN: &str = "<!-- the table of functions begins -->\n";
const END: &str = "<!-- the table of functions ends -->\n";

fn all_rows() -> impl Iterator<Item = &'static AllocatorFunction> {
    ALLOCATORS.iter().flat_map(Allocator::functions)
}

#[test]
fn rows_are_distinct_and_make_sense() {
    let mut names = HashSet::new();
    for function in all_rows() {
        let name = function.name;
        assert!(names.insert(name), "{name} is listed twice");
        match function.kind {
            FunctionKind::Allocates => assert!(function.size.is_some(), "{name}"),
            FunctionKind::Frees => assert!(function.block.is_some(), "{name}"),
            _ => panic!("{name} is no allocator function"),
        }
        let arguments = [function.size, function.count, function.block, function.result_slot];
        let given: Vec<u8> = arguments.into_iter().flatten().collect();
        assert!(given.iter().all(|argument| *argument <= 5), "{name}");
        let distinct: HashSet<u8> = given.iter().copied().collect();
        assert_eq!(distinct.len(), given.len(), "{name}: an argument has one meaning");
    }
}

#[test]
fn each_row_is_found_by_its_name_and_nothing_else_is() {
    for allocator in ALLOCATORS {
        for function in allocator.functions() {
            let row = find(function.name).unwrap();
            assert_eq!((row.naming, row.function), (allocator.naming, function));
            assert!(is_of_interest(function.name));
            for other in [format!("{}_", function.name), format!("_{}", function.name)] {
                let is_row = all_rows().any(|row| row.name == other);
                assert_eq!(is_of_interest(&other), is_row, "{other}");
            }
        }
    }
    assert!(is_of_interest("_dl_debug_state"));
    for name in ["", "mallo", "xallocx", "je_", "strdup", &"m".repeat(1000)] {
        assert!(!is_of_interest(name), "{name}");
    }
}

/// A million symbols, as a large program has, that are nobody's.
#[test]
fn a_million_symbols_are_asked_for_in_a_moment() {
    let names: Vec<String> = (0..1000).map(|n| format!("_ZN4core3ops8function{n}E")).collect();
    let begun = std::time::Instant::now();
    for _ in 0..1000 {
        assert!(!names.iter().any(|name| std::hint::black_box(is_of_interest(name))));
    }
    // Tens of milliseconds if optimised.
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

fn table_of(allocator: &Allocator) -> String {
    let mut text = format!("\n### {}\n\n", allocator.name);
    text += "| function | size | times | existing block | result |\n";
    text += "| --- | --- | --- | --- | --- |\n";
    for row in allocator.functions() {
        let shown = |argument: Option<u8>| argument.map_or(String::new(), |n| format!(" {n}"));
        let result = match (row.kind, row.result_slot) {
            (FunctionKind::Frees, _) => String::new(),
            (_, None) if row.can_throw => " return value, or an exception".to_owned(),
            (_, None) => " return value".to_owned(),
            (_, Some(slot)) => format!(" stored where argument {slot} points, if it returns 0"),
        };
        let (size, count, block) = (shown(row.size), shown(row.count), shown(row.block));
        writeln!(text, "| `{}` |{size} |{count} |{block} |{result} |", row.name).unwrap();
    }
    text
}

#[test]
fn the_document_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/allocators.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let tables: String = ALLOCATORS.iter().map(table_of).collect();
    let expected = format!("{before}{BEGIN}{tables}\n{END}{after}");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, expected).unwrap();
    } else {
        let command = format!("{UPDATE}=1 cargo test -p memscope --lib allocator");
        assert!(document == expected, "docs/allocators.md differs: `{command}` writes it");
    }
}
