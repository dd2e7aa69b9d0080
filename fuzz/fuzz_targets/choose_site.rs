//! Machine code: the chosen sites are instructions of the function.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;

use memscope::target::{
    ArgumentSet, CalledCode, Calls, EmulatedForms, ProbeNeed, choose_site, choose_sites,
};

fuzz_target!(|code: &[u8]| {
    for long_nops in [false, true] {
        for block in [None, Some(0)] {
            let need = ProbeNeed { arguments: ArgumentSet::of([0, 1]), block };
            let site = choose_site(code, need, EmulatedForms { long_nops });
            assert!(site.offset == 0 || (site.offset as usize) < code.len());
        }
        let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
        // Whichever calls and jumps never return, and with the last part of it as what the first calls.
        let first = code.first().copied().unwrap_or(0);
        let never_return: BTreeSet<u64> =
            (0..code.len() as u64).filter(|at| first >> (at & 7) & 1 != 0).collect();
        let (distance, never_return_called) = (code.len() as i64 / 2, never_return.clone());
        let called = [CalledCode {
            distance,
            code: code.get(code.len() / 2..).unwrap_or_default().to_vec(),
            never_return: never_return_called,
        }];
        let calls = Calls { never_return: &never_return, called: &called };
        for calls in [None, Some(calls)] {
            let sites = choose_sites(code, need, EmulatedForms { long_nops }, calls);
            assert!(!sites.is_empty());
            for site in sites {
                assert!(site.offset == 0 || (site.offset as usize) < code.len());
            }
        }
    }
});
