//! Known leaks in the middle of much that is freed (C26).

use memscope_tests::{Figures, Variant, programs};
use serde_json::Value;

use crate::kit::{Scratch, number, run};

struct Leak {
    function: String,
    count: u64,
    bytes: u64,
    line: u64,
}

fn leaks_of(figures: &Figures) -> Vec<Leak> {
    let rows = figures.rows("leak");
    rows.iter()
        .map(|row| {
            let number = |column: usize| row[column].parse().unwrap();
            Leak {
                function: row[0].to_owned(),
                count: number(1),
                bytes: number(2),
                line: number(3),
            }
        })
        .collect()
}

fn frames(row: &Value) -> &[Value] {
    row["frames"].as_array().unwrap()
}

/// The innermost frame of the program or its plugin.
fn own_frame(row: &Value) -> Option<&Value> {
    frames(row).iter().find(|frame| {
        frame["file"].as_str().is_some_and(|f| f.ends_with("leaks.c") || f.ends_with("plugin.c"))
    })
}

/// What the C library keeps for itself: a thread's storage, a loaded library's description.
fn is_the_c_librarys_own(row: &Value) -> bool {
    frames(row)[0]["module"].as_str().is_some_and(|module| module.contains("/ld-linux"))
}

/// strdup has no frame pointer, and so hides its caller in this version.
fn is_strdup(row: &Value) -> bool {
    frames(row)[0]["function"].as_str().is_some_and(|function| function.contains("strdup"))
        && row["stack"] != "complete"
}

/// Blocks that forked children say they have leaked.
fn child_leaks_of(figures: &Figures) -> u64 {
    figures.rows("child_leak").iter().map(|row| row[2].parse::<u64>().unwrap()).sum()
}

fn assert_leaks(arguments: &[&str], kinds: usize) {
    let program = programs::build("leaks.c", Variant::FramePointers);
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&["--strict"], program, arguments));
    finished.assert_code(0);
    scratch.export().assert_complete();
    let figures = Figures::parse(&finished.stdout);
    let mut expected = leaks_of(&figures);
    assert_eq!(expected.len(), kinds);
    let report = scratch.report_json("leaks");
    let rows = report["rows"].as_array().unwrap();
    let (mut found, mut own) = (0, 0);
    // What a child leaks is its own.
    let (of_children, rows): (Vec<&Value>, Vec<&Value>) = rows
        .iter()
        .filter(|row| number(row, "live_blocks") > 0)
        .partition(|row| number(row, "process") != 0);
    let leaked_by_children: u64 = of_children.iter().map(|row| number(row, "live_blocks")).sum();
    assert_eq!(leaked_by_children, child_leaks_of(&figures), "{of_children:#?}");
    for row in rows {
        if is_the_c_librarys_own(row) {
            own += number(row, "live_blocks");
            continue;
        }
        let leak = expected.iter_mut().find(|leak| match own_frame(row) {
            _ if is_strdup(row) => leak.function == "leak_strdup",
            Some(frame) => leak.function == frame["function"] && leak.line == number(frame, "line"),
            None => false,
        });
        let leak = leak.unwrap_or_else(|| panic!("a false positive: {row}"));
        found += number(row, "live_blocks");
        leak.count = leak.count.checked_sub(number(row, "live_blocks")).unwrap();
        leak.bytes = leak.bytes.checked_sub(number(row, "live_bytes")).unwrap();
    }
    for leak in expected {
        assert_eq!((leak.count, leak.bytes), (0, 0), "missed of {}", leak.function);
    }
    assert_eq!(found + own + leaked_by_children, number(&report, "live_blocks"));
    eprintln!(
        "{arguments:?}: {found} leaked blocks found, none missed, {own} of the C library's own"
    );
}

#[test]
fn c26_all_seeded_leaks_are_found_and_nothing_else() {
    assert_leaks(&["3", "100000"], 8);
}

#[test]
fn c26_leaks_across_threads_and_beside_a_fork_are_found() {
    assert_leaks(&["3", "20000", "threads", "fork"], 9);
}

#[test]
fn c26_leaks_of_a_library_loaded_at_run_time_are_found() {
    let plugin = programs::plugin_library(Variant::FramePointers);
    let plugin = format!("plugin={}", plugin.display());
    assert_leaks(&["3", "20000", &plugin], 9);
    assert_leaks(&["3", "20000", &plugin, "unload"], 9);
}
