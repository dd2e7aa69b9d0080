//! Machine code: the chosen site is an instruction of the function.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memscope::target::{ProbeNeed, choose_site};

fuzz_target!(|code: &[u8]| {
    for need in [ProbeNeed::EveryCall, ProbeNeed::CallsWithBlock] {
        let site = choose_site(code, need);
        assert!(site.offset == 0 || (site.offset as usize) < code.len());
    }
});
