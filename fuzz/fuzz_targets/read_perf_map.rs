//! A map of generated code: any bytes are one, and its names are found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memscope::symbols::perf_map::PerfMap;

fuzz_target!(|input: (u64, &[u8])| {
    let (address_avma, text) = input;
    let map = PerfMap::parse(text);
    assert!(map.name_at(address_avma).is_none_or(|name| !name.is_empty()));
});
