//! The exports of small recordings, with exact numbers, and against each other.

use std::{collections::BTreeSet, io};

use serde_json::Value;

use super::{ExportError, Format, Weight, export, export_collapsed, export_flamegraph};
use crate::{
    model::{Item, StackOutcome},
    reports::{
        Analysis,
        testing::{FAULTS, analysis, analysis_of, items, regular_end},
    },
};

mod forged;
mod json;
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

#[test]
fn an_empty_recording_exports_as_nothing() {
    let analysis = analysis("");
    let empty = json::json("", false);
    assert_eq!(empty["sites"], serde_json::json!([]));
    assert_eq!(empty["totals"]["peak_time_monotonic_ns"], Value::Null);
    assert_eq!(empty["capture"]["complete"], true);
    for weight in Weight::ALL.into_iter().filter(|weight| weight.check(&analysis).is_ok()) {
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
        let sum: u64 =
            text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
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
            function.name =
                if function.name == "a" { "f<[u8; 4]>\n;g 9".to_owned() } else { String::new() };
        }
    }
    let analysis = analysis_of(&items, regular_end());
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

/// One stack in twenty thousand is not complete, and no function's name is without markup.
#[test]
fn text_in_a_picture_is_no_markup() {
    for (weight, name) in [(Weight::LiveBytes, ""), (Weight::Allocations, "f&lt;int&gt;&amp;")] {
        let mut analysis = analysis("1 malloc 1 = 0x10 @a\n1 free 0x10");
        for functions in analysis.definitions.symbols.values_mut() {
            functions.iter_mut().for_each(|function| function.name = "f<int>&".to_owned());
        }
        analysis.stack_outcomes.insert(StackOutcome::Complete, 20_000);
        analysis.stack_outcomes.insert(StackOutcome::DepthLimit, 1);
        let picture = text_of(|out| export_flamegraph(&analysis, weight, out));
        assert!(picture.contains("&lt;0.01 % depth limit") && picture.contains(name), "{picture}");
        assert!(!picture.contains("<0.01") && !picture.contains("<int"), "{picture}");
    }
}

#[test]
fn what_a_recording_cannot_have_is_not_exported_as_nothing() {
    let (blocks, faults) = (analysis(RICH), analysis(FAULTS));
    for weight in Weight::ALL {
        let of_faults = matches!(weight, Weight::ResidentBytes | Weight::PageFaults);
        for (analysis, has_it) in [(&blocks, !of_faults), (&faults, of_faults)] {
            for format in [Format::Collapsed, Format::Flamegraph] {
                let mut out = Vec::new();
                match export(format, analysis, weight, None, &mut out) {
                    Ok(()) => assert!(has_it && !out.is_empty(), "{weight:?}"),
                    Err(ExportError::NotObserved { weight: refused }) => {
                        assert!(!has_it && out.is_empty() && refused == weight, "{weight:?}");
                    }
                    Err(other) => panic!("{weight:?}: {other}"),
                }
            }
        }
    }
    let told = Weight::ResidentBytes.check(&blocks).unwrap_err().to_string();
    assert!(told.starts_with("the recording has no resident-bytes: "), "{told}");
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
fn page_faults_weigh_what_became_resident_by_them() {
    let analysis = analysis(FAULTS);
    assert_eq!(Weight::usual(&analysis), Weight::ResidentBytes);
    for (weight, expected) in [
        (Weight::ResidentBytes, "main;fill 2101248\nmain;read 69632\n"),
        (Weight::PageFaults, "main;fill 2\nmain;read 3\n"),
    ] {
        let mut out = Vec::new();
        export_collapsed(&analysis, weight, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{}", weight.name());
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    for format in Format::ALL {
        match export(format, &analysis(RICH), Weight::AllocatedBytes, None, &mut Full) {
            Err(ExportError::Write(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{format:?}")
            }
            other => panic!("{format:?}: {other:?}"),
        }
    }
}
