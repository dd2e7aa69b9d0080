//! Items that no memscope wrote: a recording of them is read as it was written, and whatever they say is analyzed,
//! reported and exported.
#![no_main]

use std::io::{Cursor, sink};

use libfuzzer_sys::fuzz_target;
use memscope::{
    export::{Format, Weight, export},
    model::{Capture, Ending, EndingReason, Item, StackMode},
    reports::{Detail, View, analyze},
    store::{Chunk, Reader, Writer},
};

const MAX_ITEMS: usize = 2000;

fn items_of(mut bytes: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    while items.len() < MAX_ITEMS
        && let Ok((item, rest)) = postcard::take_from_bytes::<Item>(bytes)
    {
        items.push(item);
        bytes = rest;
    }
    items
}

fn recording_of(items: &[Item]) -> Vec<u8> {
    let capture = Capture {
        memscope_version: "0".to_owned(),
        started_at_unix_seconds: 0,
        started_at_unix_nanoseconds: 0,
        started_at_ns: 0,
        kernel: "6".to_owned(),
        arch: "x86_64".to_owned(),
        command: None,
        ring_bytes: 4096,
        sampling_interval_bytes: None,
        stacks: StackMode::Full,
    };
    let mut writer = Writer::new(Vec::new(), &capture).expect("memory can be written to");
    for item in items {
        writer.push(item).expect("an item of an input fits");
    }
    let ending = Ending { ended_at_ns: u64::MAX, reason: EndingReason::TargetsEnded };
    writer.finish(&ending).expect("memory can be written to")
}

fuzz_target!(|bytes: &[u8]| {
    let items = items_of(bytes);
    let recording = recording_of(&items);
    let mut reader = Reader::new(Cursor::new(&recording)).expect("it was just written");
    let mut read = Vec::new();
    while let Some(chunk) = reader.next_chunk().expect("memory can be read") {
        if let Chunk::Items(items) = chunk {
            read.extend(items);
        }
    }
    assert_eq!(reader.damage_count(), 0);
    assert_eq!(read, items);
    let reader = Reader::new(Cursor::new(&recording)).expect("it was just written");
    let Ok(mut analysis) = analyze(reader) else { return };
    for view in View::ALL {
        for detail in [Detail::Folded, Detail::All] {
            std::hint::black_box(view.report(&analysis, "fuzz", Some(10), detail).text());
        }
    }
    // Forged counters contradict each other, and exports refuse what does.
    analysis.counters = None;
    for format in Format::ALL {
        let weights = Weight::ALL.into_iter().filter(|weight| weight.check(&analysis).is_ok());
        for weight in weights {
            export(format, &analysis, weight, None, &mut sink()).expect("all else is computed");
        }
    }
});
