//! JSON against the contract, against its own documentation, and against itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use serde_json::Value;

use super::RICH;
use crate::{
    export::{ExportError, FIELDS, Origin, export_json},
    model::{Ending, EndingReason, Item, StackOutcome},
    reports::{
        BlockFate, analyze, replay_blocks,
        testing::{
            ENDED_AT_NS, FAULTS, MAPPED, MISMATCHED, STARTED_AT_NS, analysis, capture, items,
        },
    },
    store::{Reader, StoreError, Writer},
};

/// What a file of these items would give.
fn recording(items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &capture()).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    let ending = Ending { ended_at_ns: ENDED_AT_NS, reason: EndingReason::TargetsEnded };
    writer.finish(&ending).unwrap()
}

pub(super) fn json(text: &str, with_blocks: bool) -> Value {
    let bytes = recording(&items(text));
    let reader = || Reader::new(io::Cursor::new(&bytes)).unwrap();
    let analysis = analyze(reader()).unwrap();
    let mut out = Vec::new();
    let mut source =
        |each: &mut dyn FnMut(BlockFate<'_>)| replay_blocks(reader(), each).map(|_| ());
    export_json(&analysis, with_blocks.then_some(&mut source), &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn a_recording_read_from_a_file_is_the_one_that_was_made() {
    let mut out = Vec::new();
    export_json(&analysis(RICH), None, &mut out).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), json(RICH, false));
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
        Value::Array(array) => {
            array.iter().for_each(|value| paths(value, &format!("{path}[]"), found))
        }
        Value::Null => drop(found.entry(path.to_owned()).or_default().insert('?')),
        Value::Bool(_) => drop(found.entry(path.to_owned()).or_default().insert('b')),
        Value::String(_) => drop(found.entry(path.to_owned()).or_default().insert('s')),
        Value::Number(number) => {
            assert!(number.is_u64() || number.is_i64(), "{path} is no integer");
            found.entry(path.to_owned()).or_default().insert('n');
        }
    }
}

const SAMPLED: &str = "
    !exact 9 12 3600
    every 1000
    1 malloc 300 = 0x10 @a
    1 malloc 300 = 0x20 @a
    1 malloc 50000 = 0x30 @b
    1 free 0x10";

const LIMITED: &str = "
    every 1000
    1 malloc 300 = 0x10 @a
    1 malloc 50000 = 0x30 @b
    window 10 0 1
    1 malloc 300 = 0x10 @a
    window 10 90 1";

const MEMORY: &str = "
    !late
    !process 2 worker
    memory 1 anon 4000 file 900 shmem 90 pss 3000 swap 0 peak 5000 group 7000 brk 600 mapped 4000
    1 malloc 300 = 0x10 @a
    memory 1 anon 5000 file 900 shmem 90 swap 10 peak 5990 group 8000";

#[test]
fn json_of_memory_over_time() {
    let json = json(MEMORY, true);
    let memory = &json["processes"][0]["memory"];
    assert_eq!(json["processes"][1]["memory"], Value::Null);
    assert_eq!((&memory["reading_count"], &memory["peak_rss_bytes"]), (&2.into(), &5990.into()));
    let (first, last) = (&memory["points"][0], &memory["points"][1]);
    assert_eq!(first["rss_bytes"], serde_json::json!({"anon": 4000, "file": 900, "shmem": 90}));
    assert_eq!((&first["live_bytes"], &last["live_bytes"]), (&0.into(), &300.into()));
    assert_eq!((&last["pss_bytes"], &last["pss_time_ns"]), (&3000.into(), &first["time_ns"]));
    let group = serde_json::json!({"path": "/system.slice/server", "bytes": 8000});
    assert_eq!((&last["cgroup"], &last["swap_bytes"]), (&group, &10.into()));
    assert_eq!(memory["explained"]["rss_bytes"], 5990);
    assert_eq!(memory["explained"]["live_bytes"], 300);
    assert_eq!(memory["at_attach"]["anonymous_resident_bytes"], 2000);
}

#[test]
fn what_was_counted_of_lost_allocations_is_in_the_sums_and_never_live() {
    let json =
        json("!counted a 10 640\n!lost ring_full_allocation 12\n1 malloc 64 = 0x10 @a", true);
    let (totals, site) = (&json["totals"], &json["sites"][0]);
    for of in [totals, site] {
        assert_eq!((&of["allocations"], &of["allocated_bytes"]), (&11.into(), &704.into()));
        assert_eq!((&of["live_blocks"], &of["live_bytes"]), (&1.into(), &64.into()));
    }
    assert_eq!(json["loss"]["counted_allocations"], 10);
    assert_eq!(totals["live_blocks_at_most"], 13);
    let trust = json["trust"].as_str().unwrap();
    assert!(
        trust.contains("10 of the lost allocations are in their sites' sums all the same"),
        "{trust}"
    );
    assert!(!trust.contains("was not seen"), "{trust}");
}

#[test]
fn json_of_a_sampled_recording() {
    let json = json(SAMPLED, true);
    assert_eq!(json["capture"]["mode"], "sampled");
    // 1/p = 1/(1 − exp(−0.3)) = 3.858…
    let totals = &json["totals"];
    assert_eq!((&totals["allocations"], &totals["frees"]), (&8.into(), &3.into()));
    assert_eq!((&totals["allocated_bytes"], &totals["live_bytes"]), (&52314.into(), &51157.into()));
    let of_all = &totals["estimate"];
    assert_eq!(of_all["sampled_blocks"], 3);
    assert_eq!(
        (&of_all["freed_sampled_blocks"], &of_all["live_sampled_blocks"]),
        (&1.into(), &2.into())
    );
    let bounds = |of: &Value, key: &str| {
        let bound = |side: &str| of[key][side].as_u64().unwrap();
        (bound("low"), bound("high"))
    };
    let (low, high) = bounds(of_all, "live_bytes");
    assert!(50_300 == low && high > 51_157 && high < 60_000, "{low} {high}");
    let (a, b) = (&json["sites"][0], &json["sites"][1]);
    let (low, high) = bounds(&a["estimate"], "allocated_bytes");
    assert!((600..700).contains(&low) && (4_000..16_000).contains(&high), "{low} {high}");
    // Such a large block is never missed.
    assert_eq!(bounds(&b["estimate"], "allocated_bytes"), (50_000, 50_000));
    let blocks = json["blocks"].as_array().unwrap();
    assert_eq!(sum(&json["blocks"], |block| block["weight"].as_u64().unwrap()), 8);
    assert_eq!(sum(&json["blocks"], |block| block["weight_bytes"].as_u64().unwrap()), 52314);
    assert_eq!((blocks.len(), &totals["live_blocks_at_most"]), (3, &Value::Null));
    let exact = &json["exact"];
    assert_eq!((&exact["calls"], &exact["bytes"]), (&12.into(), &3600.into()));
    assert_eq!(exact["size_classes"][0]["up_to_bytes"], 511);
    assert_eq!(self::json(RICH, false)["exact"], Value::Null);
    assert_eq!(self::json(RICH, false)["totals"]["estimate"], Value::Null);
    assert_eq!(self::json(RICH, false)["sites"][0]["estimate"], Value::Null);
}

#[test]
fn json_of_a_limited_recording() {
    let json = json(LIMITED, true);
    assert_eq!(json["capture"]["complete"], false);
    let budget = &json["budget"];
    // 18 ms of 108 ms of work were observed.
    assert_eq!(budget["scale_ppm"], 6_000_000);
    assert_eq!((&budget["window_count"], &budget["limit_ppm"]), (&2.into(), &50_000.into()));
    assert_eq!(budget["windows"][1]["missed_cpu_ns"], 90_000_000);
    assert_eq!(json["sites"][1]["allocated_bytes"], 300_000);
    assert_eq!(json["totals"]["live_blocks"], 0);
    assert_eq!(json["totals"]["estimate"]["live_blocks"]["high"], Value::Null);
    assert_eq!(self::json(RICH, false)["budget"], Value::Null);
}

#[test]
fn json_of_blocks_freed_by_another_allocator() {
    let json = json(MISMATCHED, true);
    assert_eq!(json["totals"]["mismatched_frees"], 3);
    assert_eq!(
        (&json["totals"]["frees"], &json["sites"][0]["mismatched_frees"]),
        (&4.into(), &2.into())
    );
    let module = "/usr/bin/server";
    let function = |function: &str| serde_json::json!({ "function": function, "module": module });
    assert_eq!(
        json["mismatches"],
        serde_json::json!([
            { "site": 0, "allocated_by": function("malloc"), "freed_by": function("pool_free"), "frees": 2, "bytes": 300 },
            { "site": 1, "allocated_by": function("malloc"), "freed_by": function("pool_resize"), "frees": 1, "bytes": 50 },
        ])
    );
    assert_eq!(self::json(RICH, false)["mismatches"], serde_json::json!([]));
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
    paths(&json(SAMPLED, true), "", &mut found);
    paths(&json(LIMITED, true), "", &mut found);
    paths(&json(MEMORY, true), "", &mut found);
    paths(&json(FAULTS, true), "", &mut found);
    paths(&json(MAPPED, true), "", &mut found);
    paths(&json(MISMATCHED, true), "", &mut found);
    let known: BTreeMap<_, _> = FIELDS.iter().map(|field| (field.path, field.origin)).collect();
    assert_eq!(known.len(), FIELDS.len(), "a path is listed twice");
    for (path, kinds) in &found {
        let parent = path.rsplit_once('.').map(|(parent, _)| format!("{parent}.*"));
        let origin = known.get(path.as_str()).or_else(|| known.get(parent?.as_str()));
        match origin {
            // An object or list that is absent as a whole is null.
            None => assert!(
                kinds.contains(&'?') && known.keys().any(|known| known.starts_with(path)),
                "{path} has no documented origin"
            ),
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
    assert_eq!(json["loss"]["by_cause"].as_object().unwrap().len(), 13);
    assert_eq!(json["loss"]["windows"][0]["lost_events"], 3);
    assert_eq!(json["stacks"]["complete"], 5);
    assert_eq!(json["stacks"]["truncated"], 2);
    assert_eq!(json["stacks"]["by_reason"]["frames_lost"], 1);
    let reasons = json["stacks"]["by_reason"].as_object().unwrap();
    let names = StackOutcome::ALL.iter().map(|outcome| outcome.name());
    let of_all: BTreeSet<&str> = names.filter(|name| *name != "complete").collect();
    assert_eq!(reasons.keys().map(String::as_str).collect::<BTreeSet<_>>(), of_all);
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
        json["counters"]["recorded"].as_u64().unwrap()
            + json["loss"]["lost_events"].as_u64().unwrap()
    );
    for key in [
        "allocations",
        "allocated_bytes",
        "frees",
        "freed_bytes",
        "live_blocks",
        "live_bytes",
        "temporary_allocations",
        "failed_allocations",
        "unseen_ends",
    ] {
        assert_eq!(sum(&json["sites"], |site| site[key].as_u64().unwrap()), total(key), "{key}");
    }
    assert_eq!(
        sum(&json["sites"], |site| site["at_peak_bytes"].as_u64().unwrap()),
        total("peak_live_bytes")
    );

    let blocks = &json["blocks"];
    let count = |end: &str| sum(blocks, |block| u64::from(block["end"] == end));
    assert_eq!(blocks.as_array().unwrap().len() as u64, total("allocations"));
    assert_eq!(
        (count("freed"), count("live"), count("unseen")),
        (total("frees"), total("live_blocks"), total("unseen_ends"))
    );
    assert_eq!(sum(blocks, |block| block["size"].as_u64().unwrap()), total("allocated_bytes"));
    for block in blocks.as_array().unwrap() {
        assert_eq!(block["freed_ns"].is_u64(), block["end"] == "freed");
        assert_eq!(block["freed_by_thread"].is_u64(), block["end"] == "freed");
        assert_eq!(block["ended_before_ns"].is_u64(), block["end"] == "unseen");
    }
    let moved = blocks.as_array().unwrap().iter().find(|block| block["address"] == "0x30").unwrap();
    assert_eq!(
        (&moved["thread"], &moved["freed_by_thread"], &moved["process"]),
        (&9.into(), &8.into(), &2.into())
    );
    assert!(moved["chain_allocated_ns"].as_u64() < moved["allocated_ns"].as_u64());
}

#[test]
fn blocks_come_only_when_asked_for() {
    assert_eq!(json(RICH, false).get("blocks"), None);
    assert_eq!(json("", true)["blocks"], serde_json::json!([]));
}

#[test]
fn json_of_page_faults() {
    let json = json(FAULTS, false);
    assert_eq!(json["capture"]["events"], "pages");
    assert_eq!(json["totals"]["allocations"], 0);
    let pages = &json["pages"];
    assert_eq!((&pages["faults"], &pages["major_faults"]), (&5.into(), &1.into()));
    assert_eq!(pages["resident"]["bytes"], (2 << 20) + 4096 + 65_536 + 4096);
    assert_eq!(pages["resident"]["shared_bytes"], 4096);
    assert_eq!(pages["elsewhere"]["bytes"], 8192);
    assert_eq!(pages["gone"]["anonymous_bytes"], 4096);
    assert_eq!(pages["chains"][0]["resident_bytes"], (2 << 20) + 4096);
    assert_eq!(json["stacks"]["complete"], 5);
}

#[test]
fn json_of_mappings() {
    assert_eq!(json(RICH, false)["mappings"], Value::Null);
    let json = json(MAPPED, false);
    let mappings = &json["mappings"];
    assert_eq!((&mappings["mappings"], &mappings["failed_mappings"]), (&4.into(), &1.into()));
    assert_eq!(
        (&mappings["live_mappings"], &mappings["live_bytes"]),
        (&5.into(), &(183 * 4096).into())
    );
    assert_eq!(mappings["unmapped_bytes"], 50 * 4096);
    assert_eq!(mappings["peak_bytes"], 200 * 4096);
    let by =
        |chain: usize| (&mappings["chains"][chain]["by"], &mappings["chains"][chain]["allocator"]);
    assert_eq!(by(0), (&"program".into(), &Value::Null));
    assert_eq!(by(1), (&"allocator".into(), &"malloc".into()));
    assert_eq!(mappings["chains"][0]["frames"][0]["function"], "mmap");
}

#[test]
fn a_recording_that_cannot_be_read_again_is_told() {
    let mut source = |_: &mut dyn FnMut(BlockFate<'_>)| {
        Err(StoreError::Read(io::ErrorKind::PermissionDenied.into()).into())
    };
    let failed = export_json(&analysis(RICH), Some(&mut source), &mut Vec::new());
    assert!(matches!(failed, Err(ExportError::Blocks(_))), "{failed:?}");
}
