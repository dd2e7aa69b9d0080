use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use prost::Message as _;

use super::RICH;
use crate::{
    export::{
        export_pprof,
        pprof::proto::{Label, Profile},
    },
    reports::{
        Analysis,
        testing::{FAULTS, analysis},
    },
};

fn profile(analysis: &Analysis) -> Profile {
    let mut zipped = Vec::new();
    export_pprof(analysis, &mut zipped).unwrap();
    let mut bytes = Vec::new();
    GzDecoder::new(zipped.as_slice()).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

impl Profile {
    fn string(&self, index: i64) -> &str {
        &self.string_table[usize::try_from(index).unwrap()]
    }

    /// Function names of a location, innermost first.
    fn names(&self, location_id: u64) -> Vec<&str> {
        let location = self.location.iter().find(|location| location.id == location_id).unwrap();
        let name =
            |id| self.string(self.function.iter().find(|function| function.id == id).unwrap().name);
        location.line.iter().map(|line| name(line.function_id)).collect()
    }
}

#[test]
fn page_faults_have_values_of_their_own() {
    let profile = profile(&analysis(FAULTS));
    let types: Vec<_> =
        profile.sample_type.iter().map(|value| profile.string(value.r#type)).collect();
    assert_eq!(types, ["page_faults", "resident_space"]);
    let values: Vec<_> = profile.sample.iter().map(|sample| sample.value.clone()).collect();
    assert_eq!(values, [[2, (2 << 20) + 4096], [3, 65_536 + 4096]]);
}

#[test]
fn values_sum_to_the_totals() {
    let analysis = analysis(RICH);
    let profile = profile(&analysis);
    let types: Vec<_> = profile
        .sample_type
        .iter()
        .map(|value| (profile.string(value.r#type), profile.string(value.unit)))
        .collect();
    assert_eq!(
        types,
        [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes")
        ]
    );
    assert_eq!(profile.string(profile.default_sample_type), "inuse_space");
    let sums: Vec<i64> =
        (0..4).map(|index| profile.sample.iter().map(|sample| sample.value[index]).sum()).collect();
    let totals = &analysis.totals;
    let expected =
        [totals.allocations, totals.allocated_bytes, totals.live_blocks, totals.live_bytes];
    assert_eq!(sums, expected.map(|total| total as i64));
    assert_eq!(
        (profile.time_nanos, profile.duration_nanos),
        (1_700_000_000_000_000_000, 1_000_000)
    );
    assert!(profile.string(profile.comment[0]).starts_with("INCOMPLETE: "));
}

#[test]
fn chains_are_innermost_first_with_their_inlined_functions() {
    let profile = profile(&analysis(RICH));
    let chains: Vec<Vec<Vec<&str>>> = profile
        .sample
        .iter()
        .map(|sample| sample.location_id.iter().map(|id| profile.names(*id)).collect())
        .collect();
    assert_eq!(
        chains,
        [
            vec![vec!["operator new(unsigned long)"], vec!["inner", "outer"], vec!["main"]],
            vec![vec!["server+0x400"], vec!["deep"], vec!["[callers unknown: depth limit]"]],
            vec![vec!["[frames lost]"]],
            vec![vec!["[unknown]+0x7fff0000"], vec!["main"]],
        ]
    );
}

#[test]
fn references_are_whole_and_ids_are_unique() {
    let profile = profile(&analysis(RICH));
    assert_eq!(profile.string_table[0], "");
    let locations: BTreeMap<_, _> =
        profile.location.iter().map(|location| (location.id, location)).collect();
    assert_eq!(locations.len(), profile.location.len());
    assert!(!locations.contains_key(&0));
    for sample in &profile.sample {
        assert_eq!(sample.value.len(), profile.sample_type.len());
        assert!(sample.location_id.iter().all(|id| locations.contains_key(id)));
    }
    for location in &profile.location {
        let mapping = profile.mapping.iter().find(|mapping| mapping.id == location.mapping_id);
        match mapping {
            Some(mapping) => assert!(location.address < mapping.memory_limit),
            None => assert_eq!(location.mapping_id, 0),
        }
        assert!(location.line.iter().all(|line| {
            profile.function.iter().any(|function| function.id == line.function_id)
        }));
    }
}

#[test]
fn mappings_have_build_ids_and_say_whether_they_have_names() {
    let one = profile(&analysis(RICH));
    let [mapping] = one.mapping.as_slice() else { panic!("{:?}", one.mapping) };
    assert_eq!(one.string(mapping.filename), "/usr/bin/server");
    assert_eq!(one.string(mapping.build_id), "abcd");
    assert!(!mapping.has_functions, "a frame of it has no name");
    assert!(mapping.has_filenames && mapping.has_line_numbers && mapping.has_inline_frames);
    let named = profile(&analysis("1 malloc 1 = 0x10 @a"));
    assert!(named.mapping[0].has_functions && !named.mapping[0].has_inline_frames);
}

#[test]
fn samples_say_whose_they_are() {
    let profile = profile(&analysis(RICH));
    let label = |label: &Label| {
        (profile.string(label.key).to_owned(), profile.string(label.str).to_owned(), label.num)
    };
    let labels: Vec<_> = profile.sample[3].label.iter().map(label).collect();
    assert_eq!(
        labels,
        [("pid".to_owned(), String::new(), 1002), ("comm".to_owned(), "worker".to_owned(), 0)]
    );
}

#[test]
fn an_empty_recording_is_an_empty_profile() {
    let profile = profile(&analysis(""));
    assert_eq!((profile.sample.len(), profile.sample_type.len()), (0, 4));
}
