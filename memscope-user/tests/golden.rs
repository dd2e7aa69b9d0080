//! Recordings of every version of the format are read for ever, and give the same
//! numbers.
//!
//! `tests/golden/vN.memscope` was written by the memscope that introduced major
//! version N. Such a file is made once, by the test below when it is asked to, and never again;
//! that of the present version when that is released.

#![expect(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

use std::{fs, path::PathBuf};

use memscope::{
    export::export_json,
    model::{
        Capture, Counters, EndReason, Ending, EndingReason, Event, Frame, FrameId, FrameSymbols,
        FreeCaller, Item, Location, LossCause, Module, ModuleId, Probe, ProbeId, Process,
        ProcessEnd, ProcessId, SourceFunction, Stack, StackId, StackMode, StackOutcome, ThreadId,
    },
    reports::{analyze, replay_blocks},
    store::{MAJOR_VERSION, Reader, Writer},
};

fn golden(version: u16, extension: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    directory.join(format!("v{version}.{extension}"))
}

fn open(path: &PathBuf) -> Reader<fs::File> {
    Reader::new(fs::File::open(path).unwrap()).unwrap()
}

fn json_of(path: &PathBuf) -> serde_json::Value {
    let analysis = analyze(open(path)).unwrap();
    let mut blocks = |each: &mut dyn FnMut(memscope::reports::BlockFate<'_>)| {
        replay_blocks(open(path), each).map(|_| ())
    };
    let mut out = Vec::new();
    export_json(&analysis, Some(&mut blocks), &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

/// Whatever `expected` has, `found` has too; newer exports may have more keys.
#[track_caller]
fn check_contains(found: &serde_json::Value, expected: &serde_json::Value, path: &str) {
    use serde_json::Value;
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (key, expected) in expected {
                let found = found.get(key).unwrap_or_else(|| panic!("{path}.{key} is missing"));
                check_contains(found, expected, &format!("{path}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{path}");
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                check_contains(found, expected, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(found, expected, "{path}"),
    }
}

#[test]
fn recordings_of_all_versions_are_read() {
    for version in 1..=MAJOR_VERSION {
        if version == MAJOR_VERSION && !golden(version, "memscope").exists() {
            continue;
        }
        let expected = fs::read(golden(version, "json")).unwrap();
        let expected = serde_json::from_slice(&expected).unwrap();
        check_contains(&json_of(&golden(version, "memscope")), &expected, &format!("v{version}"));
    }
}

/// Every kind of item and of event.
fn definitions() -> Vec<Item> {
    let process = ProcessId(1);
    let function = |name: &str, inlined| SourceFunction {
        name: name.to_owned(),
        file: Some("/src/main.c".to_owned()),
        line: Some(12),
        inlined,
    };
    vec![
        Item::Process(Process {
            id: process,
            pid: 4711,
            start_ticks: 100,
            image: 0,
            observed_from_ns: 1_000,
            comm: "golden".to_owned(),
            exe: "/usr/bin/golden".to_owned(),
            allocators: vec!["libc.so.6".to_owned()],
            from_start: true,
            probed_late: false,
        }),
        Item::Module(Module {
            id: ModuleId(1),
            path: "/usr/bin/golden".to_owned(),
            build_id: vec![1, 2, 3],
        }),
        Item::Probe(Probe {
            id: ProbeId(1),
            function: "malloc".to_owned(),
            module: ModuleId(1),
            file_offset: 64,
            emulated: true,
        }),
        Item::Frame(Frame {
            id: FrameId(1),
            location: Location::Module { module: ModuleId(1), file_offset: 0x1234 },
        }),
        Item::Frame(Frame {
            id: FrameId(2),
            location: Location::Unmapped { process, address_avma: 0x7f00 },
        }),
        Item::Symbols(FrameSymbols {
            frame: FrameId(1),
            functions: vec![function("inner", true), function("main", false)],
        }),
        Item::Stack(Stack {
            id: StackId(1),
            process,
            outcome: StackOutcome::Complete,
            frames: vec![FrameId(2), FrameId(1)],
        }),
        Item::Stack(Stack {
            id: StackId(2),
            process,
            outcome: StackOutcome::DepthLimit,
            frames: vec![FrameId(1)],
        }),
    ]
}

fn events() -> Vec<Event> {
    let (process, thread, probe) = (ProcessId(1), ThreadId(4711), ProbeId(1));
    let allocation = |time_ns, address_avma, size_bytes, stack| Event::Allocation {
        process,
        thread,
        time_ns,
        address_avma,
        size_bytes,
        stack: StackId(stack),
        probe,
        interval_bytes: 0,
    };
    vec![
        allocation(2_000, 0x5000, 100, 1),
        allocation(3_000, 0x6000, 200, 2),
        Event::Free {
            process,
            thread,
            time_ns: 4_000,
            address_avma: 0x6000,
            probe: Some(probe),
            caller: FreeCaller::Program,
        },
        Event::ReallocationBegin {
            process,
            thread,
            time_ns: 5_000,
            old_address_avma: 0x5000,
            probe: Some(probe),
        },
        Event::ReallocationEnd {
            process,
            thread,
            time_ns: 5_500,
            old_address_avma: 0x5000,
            new_address_avma: 0x7000,
            size_bytes: 150,
            stack: StackId(1),
            probe,
            interval_bytes: 4096,
        },
        Event::Loss { first_lost_ns: 5_600, time_ns: 5_800, lost_count: 2 },
        allocation(6_000, 0x7000, 50, 2),
        allocation(7_000, 0, 999, 2),
        Event::Free {
            process,
            thread,
            time_ns: 8_000,
            address_avma: 0x9000,
            probe: Some(probe),
            caller: FreeCaller::AllocatorModule,
        },
        Event::ThreadExit { process, thread, time_ns: 9_000 },
    ]
}

/// Set to make the golden file of a new major version; only once per version, because
/// the file stands for all the recordings that users have of it.
const MAKE: &str = "MEMSCOPE_MAKE_GOLDEN";

#[test]
fn make_golden() {
    if std::env::var_os(MAKE).is_none() {
        return;
    }
    let path = golden(MAJOR_VERSION, "memscope");
    assert!(!path.exists(), "the golden file of this version was made already");
    let capture = Capture {
        memscope_version: "0.1.0".to_owned(),
        started_at_unix_seconds: 1_700_000_000,
        started_at_unix_nanoseconds: 123,
        started_at_ns: 1_000,
        kernel: "6.12.0".to_owned(),
        arch: "x86_64".to_owned(),
        command: Some(vec!["golden".to_owned(), "--once".to_owned()]),
        ring_bytes: 1 << 20,
        sampling_interval_bytes: Some(4096),
        stacks: StackMode::Full,
    };
    let mut writer = Writer::new(fs::File::create(&path).unwrap(), &capture).unwrap();
    definitions().iter().for_each(|item| writer.push(item).unwrap());
    writer.flush().unwrap();
    events().into_iter().for_each(|event| writer.push(&Item::Event(event)).unwrap());
    let end =
        ProcessEnd { process: ProcessId(1), time_ns: 9_500, reason: EndReason::Exit(Some(0)) };
    writer.push(&Item::ProcessEnd(end)).unwrap();
    let counters = Counters {
        attempted: 11,
        recorded: 9,
        nested: 3,
        hits: 20,
        malformed: 0,
        in_flight: 0,
        lost: vec![(LossCause::RingFullFree, 2)],
    };
    writer.push(&Item::Counters(counters)).unwrap();
    writer.finish(&Ending { ended_at_ns: 10_000, reason: EndingReason::TargetsEnded }).unwrap();
    let mut json = json_of(&path);
    // Its wording may change.
    json.as_object_mut().unwrap().remove("trust");
    let json = serde_json::to_string_pretty(&json).unwrap();
    fs::write(golden(MAJOR_VERSION, "json"), json + "\n").unwrap();
}
