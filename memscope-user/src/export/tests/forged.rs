//! Recordings that no memscope wrote: any items in any order. They may be refused,
//! but nothing may panic, and no control character may come through.

use proptest::prelude::*;

use crate::{
    export::{Format, Weight, export},
    reports::{
        Detail, View,
        testing::{analysis_of, regular_end},
    },
    store::{RecordingEnd, testing::item},
};

proptest! {
    #[test]
    fn any_items_can_be_reported_and_exported(items in prop::collection::vec(item(), 0..60), cut: bool, weight in 0..Weight::ALL.len()) {
        let end = if cut { RecordingEnd::Truncated } else { regular_end() };
        let mut analysis = analysis_of(&items, end);
        for view in View::ALL {
            let text = view.report(&analysis, "r", Some(3), Detail::Folded).text();
            prop_assert!(!text.contains(|character: char| character.is_control() && character != '\n'), "{:?}", text);
        }
        // Forged counters contradict each other; the rest is computed.
        analysis.counters = None;
        let asked = Weight::ALL[weight];
        let weight = if asked.check(&analysis).is_ok() { asked } else { Weight::usual(&analysis) };
        for format in Format::ALL {
            let mut out = Vec::new();
            export(format, &analysis, weight, None, &mut out).unwrap();
            if format == Format::Json {
                serde_json::from_slice::<serde_json::Value>(&out).unwrap();
            }
            if format == Format::Collapsed {
                let text = String::from_utf8(out).unwrap();
                for line in text.lines() {
                    prop_assert!(line.rsplit_once(' ').is_some_and(|(_, weight)| weight.parse::<u64>().is_ok()), "{:?}", line);
                }
            }
        }
    }
}
