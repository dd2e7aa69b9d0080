//! The exports of small recordings, with exact numbers, and against each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use serde_json::Value;

use super::{
    ExportError, FIELDS, Format, Origin, Weight, export, export_collapsed, export_flamegraph,
    export_json,
};
use crate::{
    model::{Ending, EndingReason, Item},
    reports::{
        Analysis, analyze, replay_blocks,
        testing::{ENDED_AT_NS, STARTED_AT_NS, analysis, capture, items},
    },
    store::{Reader, Writer},
};

mod pprof;

/// Two processes, losses, every kind of stack, every end of a block.
pub(super) const RICH: &str = "
    !process 2 worker
    !stack a complete operator_new(unsigned_long) inner<outer main
    !stack b depth_limit ? deep
    !stack c frames_lost
    !stack d complete ?? main
    !stack f complete fail main
    !lost ring_full_free 3
    !exit 1 7
    +1990
    1 malloc 100 = 0x10 @a
    1 free 0x10
    1 malloc 200 = 0x10 @a
    1 malloc 300 = 0x10 @b
    1 malloc 50 = 0x20 @c
    2:9 malloc 77 = 0x10 @d
    2:9 realloc 0x10 80 = 0x30 @d
    2:8 free 0x30
    1 malloc 5 = null @f
    1 free 0x99
    lost 3";

/// What a file of these items would give.
fn recording(items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    let ending = Ending { ended_at_ns: ENDED_AT_NS, reason: EndingReason::TargetsEnded };
    writer.finish(&ending).unwrap()
}

fn json(text: &str, with_blocks: bool) -> Value {
    let bytes = recording(&items(text));
    let reader = || Reader::new(io::Cursor::new(&bytes)).unwrap();
    let analysis = analyze(reader()).unwrap();
    let mut out = Vec::new();
    let mut source = |each: &mut dyn FnMut(crate::reports::BlockFate<'_>)| {
        replay_blocks(reader(), each).map(|_| ())
    };
    export_json(&analysis, with_blocks.then_some(&mut source), &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn text_of(write: impl FnOnce(&mut dyn io::Write) -> Result<(), ExportError>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn collapsed(analysis: &Analysis, weight: Weight) -> String {
    text_of(|out| export_collapsed(analysis, weight, out))
}

#[test]
fn formats_and_weights_have_unique_names_and_are_described() {
    let formats: BTreeSet<_> = Format::ALL.iter().map(|format| format.name()).collect();
    assert_eq!(formats.len(), Format::ALL.len());
    for format in Format::ALL {
        assert_eq!(Format::from_name(format.name()), Some(format));
        assert!(format.description().len() > 10);
    }
    let weights: BTreeSet<_> = Weight::ALL.iter().map(|weight| weight.name()).collect();
    assert_eq!(weights.len(), Weight::ALL.len());
    for weight in Weight::ALL {
        assert_eq!(Weight::from_name(weight.name()), Some(weight));
        assert!(weight.description().len() > 10);
    }
}

/// Every key of the contract with the type of its value: `n` a number, `s` a
/// string, `b` a boolean, `?` or null.
const CONTRACT: &[(&str, &str)] = &[
    ("schema", "s"),
    ("version", "n"),
    ("capture.started_at", "s"),
    ("capture.duration_ns", "n"),
    ("capture.kernel", "s"),
    ("capture.arch", "s"),
    ("capture.mode", "s"),
    ("capture.sampling_interval_bytes", "n?"),
    ("capture.command[]", "s"),
    ("capture.complete", "b"),
    ("processes[].process", "n"),
    ("processes[].pid", "n"),
    ("processes[].comm", "s"),
    ("processes[].exe", "s"),
    ("processes[].allocators[]", "s"),
    ("processes[].exit_status", "n?"),
    ("totals.allocations", "n"),
    ("totals.allocated_bytes", "n"),
    ("totals.frees", "n"),
    ("totals.freed_bytes", "n"),
    ("totals.reallocations", "n"),
    ("totals.failed_allocations", "n"),
    ("totals.live_blocks", "n"),
    ("totals.live_bytes", "n"),
    ("totals.peak_live_blocks", "n"),
    ("totals.peak_live_bytes", "n"),
    ("totals.temporary_allocations", "n"),
    ("totals.unknown_frees", "n"),
    ("loss.lost_events", "n"),
    ("loss.by_cause.ring_full_free", "n"),
    ("stacks.complete", "n"),
    ("stacks.truncated", "n"),
    ("stacks.by_reason.depth_limit", "n"),
    ("sites[].site", "n"),
    ("sites[].process", "n"),
    ("sites[].frames[].function", "s?"),
    ("sites[].frames[].module", "s?"),
    ("sites[].frames[].offset", "s"),
    ("sites[].frames[].file", "s?"),
    ("sites[].frames[].line", "n?"),
    ("sites[].frames[].inlined", "b"),
    ("sites[].type", "?"),
    ("sites[].allocations", "n"),
    ("sites[].allocated_bytes", "n"),
    ("sites[].frees", "n"),
    ("sites[].freed_bytes", "n"),
    ("sites[].live_blocks", "n"),
    ("sites[].live_bytes", "n"),
    ("sites[].at_peak_bytes", "n"),
    ("sites[].temporary_allocations", "n"),
    ("sites[].lifetime_ns.min", "n"),
    ("sites[].lifetime_ns.p50", "n"),
    ("sites[].lifetime_ns.p90", "n"),
    ("sites[].lifetime_ns.p99", "n"),
    ("sites[].lifetime_ns.max", "n"),
    ("blocks[].process", "n"),
    ("blocks[].address", "s"),
    ("blocks[].size", "n"),
    ("blocks[].site", "n"),
    ("blocks[].thread", "n"),
    ("blocks[].allocated_ns", "n"),
    ("blocks[].freed_ns", "n?"),
    ("blocks[].freed_by_thread", "n?"),
];

/// All paths to values, with the kinds of value seen there.
fn paths(value: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<char>>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                paths(value, &format!("{path}{dot}{key}"), found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| paths(value, &format!("{path}[]"), found)),
        Value::Null => drop(found.entry(path.to_owned()).or_default().insert('?')),
        Value::Bool(_) => drop(found.entry(path.to_owned()).or_default().insert('b')),
        Value::String(_) => drop(found.entry(path.to_owned()).or_default().insert('s')),
        Value::Number(number) => {
            assert!(number.is_u64() || number.is_i64(), "{path} is no integer");
            found.entry(path.to_owned()).or_default().insert('n');
        }
    }
}

#[test]
fn json_has_every_key_of_the_contract() {
    let mut found = BTreeMap::new();
    paths(&json(RICH, true), "", &mut found);
    for (path, kinds) in CONTRACT {
        let seen = found.get(*path).unwrap_or_else(|| panic!("{path} is missing"));
        assert!(seen.iter().all(|kind| kinds.contains(*kind)), "{path} is {seen:?}, not {kinds}");
    }
}

/// C3: each field is measured, derived by a documented formula, or unknown.
#[test]
fn every_key_of_json_says_where_its_value_comes_from() {
    let mut found = BTreeMap::new();
    paths(&json(RICH, true), "", &mut found);
    let known: BTreeMap<_, _> = FIELDS.iter().map(|field| (field.path, field.origin)).collect();
    assert_eq!(known.len(), FIELDS.len(), "a path is listed twice");
    for (path, kinds) in &found {
        let parent = path.rsplit_once('.').map(|(parent, _)| format!("{parent}.*"));
        let origin = known.get(path.as_str()).or_else(|| known.get(parent?.as_str()));
        // An object or list that is absent as a whole is null.
        let absent = kinds.len() == 1 && known.keys().any(|known| known.starts_with(&format!("{path}.")));
        match origin {
            None => assert!(absent || kinds.contains(&'?') && known.keys().any(|known| known.starts_with(path)), "{path} has no documented origin"),
            Some(Origin::Unknown) => assert_eq!(kinds, &BTreeSet::from(['?']), "{path}"),
            Some(Origin::Derived(formula)) => assert!(!formula.is_empty()),
            Some(Origin::Measured) => {}
        }
    }
    let listed = |field: &&&str| !field.contains('*') && !field.starts_with("file.damage[]");
    for path in known.keys().filter(listed) {
        assert!(found.contains_key(*path), "{path} is documented and does not exist");
    }
}

#[test]
fn json_of_a_rich_recording() {
    let json = json(RICH, true);
    assert_eq!(json["schema"], "memscope.export");
    assert_eq!(json["version"], 1);
    let capture = &json["capture"];
    assert_eq!(capture["started_at"], "2023-11-14T22:13:20.000000000Z");
    assert_eq!(capture["duration_ns"], ENDED_AT_NS - STARTED_AT_NS);
    assert_eq!(capture["command"], serde_json::json!(["server", "--fast"]));
    assert_eq!((&capture["mode"], &capture["complete"]), (&"full".into(), &false.into()));
    assert_eq!(json["processes"][0]["exit_status"], 7);
    assert_eq!(json["processes"][0]["end"], "exit");
    assert_eq!(json["processes"][1]["exit_status"], Value::Null);
    let totals = &json["totals"];
    for (key, expected) in [
        ("allocations", 6),
        ("allocated_bytes", 100 + 200 + 300 + 50 + 77 + 80),
        ("frees", 3),
        ("freed_bytes", 100 + 77 + 80),
        ("reallocations", 1),
        ("failed_allocations", 1),
        ("live_blocks", 2),
        ("live_bytes", 350),
        ("peak_live_blocks", 3),
        ("peak_live_bytes", 430),
        ("temporary_allocations", 2),
        ("unknown_frees", 1),
        ("unseen_ends", 1),
        ("live_blocks_at_least", 0),
        ("live_blocks_at_most", 2),
    ] {
        assert_eq!(totals[key], expected, "{key}");
    }
    assert_eq!(json["loss"]["lost_events"], 3);
    assert_eq!(json["loss"]["by_cause"]["ring_full_free"], 3);
    assert_eq!(json["loss"]["by_cause"]["thread_table_full"], 0);
    assert_eq!(json["loss"]["by_cause"].as_object().unwrap().len(), 10);
    assert_eq!(json["loss"]["windows"][0]["lost_events"], 3);
    assert_eq!(json["stacks"]["complete"], 5);
    assert_eq!(json["stacks"]["truncated"], 2);
    assert_eq!(json["stacks"]["by_reason"]["frames_lost"], 1);
    let frames = &json["sites"][0]["frames"];
    assert_eq!(frames[1]["function"], "inner");
    assert_eq!((&frames[1]["inlined"], &frames[2]["inlined"]), (&true.into(), &false.into()));
    assert_eq!(json["sites"][1]["frames"][0]["function"], Value::Null);
    assert_eq!(json["sites"][1]["frames"][0]["module"], "/usr/bin/server");
    assert_eq!(json["sites"][1]["frames"][0]["offset"], "0x400");
    assert_eq!(json["sites"][3]["frames"][0]["module"], Value::Null);
    assert_eq!(json["sites"][3]["frames"][0]["offset"], "0x7fff0000");
    assert_eq!(json["sites"][4]["failed_allocations"], 1);
}

fn sum<'a>(list: &'a Value, number: impl Fn(&'a Value) -> u64) -> u64 {
    list.as_array().unwrap().iter().map(number).sum()
}

#[test]
fn json_adds_up() {
    let json = json(RICH, true);
    let totals = &json["totals"];
    let total = |key: &str| totals[key].as_u64().unwrap();
    assert_eq!(total("allocations"), total("frees") + total("unseen_ends") + total("live_blocks"));
    assert_eq!(
        json["counters"]["attempted"].as_u64().unwrap(),
        json["counters"]["recorded"].as_u64().unwrap() + json["loss"]["lost_events"].as_u64().unwrap()
    );
    for key in ["allocations", "allocated_bytes", "frees", "freed_bytes", "live_blocks", "live_bytes", "temporary_allocations", "failed_allocations", "unseen_ends"] {
        assert_eq!(sum(&json["sites"], |site| site[key].as_u64().unwrap()), total(key), "{key}");
    }
    assert_eq!(sum(&json["sites"], |site| site["at_peak_bytes"].as_u64().unwrap()), total("peak_live_bytes"));

    let blocks = &json["blocks"];
    let count = |end: &str| sum(blocks, |block| u64::from(block["end"] == end));
    assert_eq!(blocks.as_array().unwrap().len() as u64, total("allocations"));
    assert_eq!((count("freed"), count("live"), count("unseen")), (total("frees"), total("live_blocks"), total("unseen_ends")));
    assert_eq!(sum(blocks, |block| block["size"].as_u64().unwrap()), total("allocated_bytes"));
    for block in blocks.as_array().unwrap() {
        assert_eq!(block["freed_ns"].is_u64(), block["end"] == "freed");
        assert_eq!(block["freed_by_thread"].is_u64(), block["end"] == "freed");
        assert_eq!(block["ended_before_ns"].is_u64(), block["end"] == "unseen");
    }
    let moved = blocks.as_array().unwrap().iter().find(|block| block["address"] == "0x30").unwrap();
    assert_eq!((&moved["thread"], &moved["freed_by_thread"], &moved["process"]), (&9.into(), &8.into(), &2.into()));
    assert!(moved["chain_allocated_ns"].as_u64() < moved["allocated_ns"].as_u64());
}

#[test]
fn blocks_come_only_when_asked_for() {
    assert_eq!(json(RICH, false).get("blocks"), None);
    assert_eq!(json("", true)["blocks"], serde_json::json!([]));
}

#[test]
fn an_empty_recording_exports_as_nothing() {
    let analysis = analysis("");
    let empty = json("", false);
    assert_eq!(empty["sites"], serde_json::json!([]));
    assert_eq!(empty["totals"]["peak_time_monotonic_ns"], Value::Null);
    assert_eq!(empty["capture"]["complete"], true);
    for weight in Weight::ALL {
        assert_eq!(collapsed(&analysis, weight), "");
        let picture = text_of(|out| export_flamegraph(&analysis, weight, out));
        assert!(picture.contains("<svg") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(!picture.contains("ERROR"));
    }
}

#[test]
fn collapsed_is_outermost_first() {
    assert_eq!(
        collapsed(&analysis(RICH), Weight::AllocatedBytes),
        "server (pid 1001);[callers unknown: depth limit];deep;server+0x400 300\n\
         server (pid 1001);[frames lost] 50\n\
         server (pid 1001);main;outer;inner;operator new(unsigned long) 300\n\
         worker (pid 1002);main;[unknown]+0x7fff0000 157\n"
    );
    assert_eq!(collapsed(&analysis("1 malloc 7 = 0x10 @f"), Weight::LiveBlocks), "main;f 1\n");
}

#[test]
fn collapsed_weights_sum_to_the_totals() {
    let analysis = analysis(RICH);
    let totals = &analysis.totals;
    for (weight, expected) in [
        (Weight::LiveBytes, totals.live_bytes),
        (Weight::LiveBlocks, totals.live_blocks),
        (Weight::PeakBytes, totals.peak_live_bytes),
        (Weight::AllocatedBytes, totals.allocated_bytes),
        (Weight::Allocations, totals.allocations),
        (Weight::Temporary, totals.temporary_allocations),
    ] {
        let text = collapsed(&analysis, weight);
        let sum: u64 = text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, expected, "{weight:?}");
    }
}

#[test]
fn names_cannot_break_the_lines_of_collapsed() {
    let mut items = items("1 malloc 1 = 0x10 @a\n1 malloc 2 = 0x20 @b");
    for item in &mut items {
        if let Item::Symbols(symbols) = item
            && let Some(function) = symbols.functions.first_mut()
            && function.name != "main"
        {
            function.name = if function.name == "a" { "f<[u8; 4]>\n;g 9".to_owned() } else { String::new() };
        }
    }
    let analysis = crate::reports::testing::analysis_of(&items, crate::reports::testing::regular_end());
    assert_eq!(
        collapsed(&analysis, Weight::AllocatedBytes),
        "main;[no name] 2\nmain;f<[u8: 4]>\\u{a}:g 9 1\n"
    );
}

#[test]
fn a_flamegraph_needs_nothing_from_outside() {
    let picture = text_of(|out| export_flamegraph(&analysis(RICH), Weight::AllocatedBytes, out));
    assert!(picture.contains("memscope: bytes allocated in all, 807 B"), "{picture}");
    assert!(picture.contains("operator new(unsigned long)"));
    assert!(picture.contains("INCOMPLETE: 3 of"));
    for outside in ["href=\"http", "src=\"http", "url(http", "@import", "<script src", "<link"] {
        assert!(!picture.contains(outside), "{outside}");
    }
    let again = text_of(|out| export_flamegraph(&analysis(RICH), Weight::AllocatedBytes, out));
    assert_eq!(picture, again);
}

#[test]
fn contradicting_numbers_are_not_exported() {
    let mut wrong = analysis(RICH);
    wrong.totals.live_bytes += 1;
    for format in Format::ALL {
        let mut out = Vec::new();
        let failed = export(format, &wrong, Weight::LiveBytes, None, &mut out);
        assert!(matches!(failed, Err(ExportError::Inconsistent(_))), "{format:?}");
        assert!(out.is_empty());
    }
}

struct Full;

impl io::Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    for format in Format::ALL {
        match export(format, &analysis(RICH), Weight::AllocatedBytes, None, &mut Full) {
            Err(ExportError::Write(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{format:?}"),
            other => panic!("{format:?}: {other:?}"),
        }
    }
}

#[test]
fn a_recording_that_cannot_be_read_again_is_told() {
    let mut source = |_: &mut dyn FnMut(crate::reports::BlockFate<'_>)| {
        Err(crate::store::StoreError::Read(io::ErrorKind::PermissionDenied.into()).into())
    };
    let failed = export_json(&analysis(RICH), Some(&mut source), &mut Vec::new());
    assert!(matches!(failed, Err(ExportError::Blocks(_))), "{failed:?}");
}
