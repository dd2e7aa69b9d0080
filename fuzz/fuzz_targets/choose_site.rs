//! Machine code: the chosen sites are instructions of the function.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memscope::target::{ArgumentSet, EmulatedForms, ProbeNeed, choose_site, choose_sites};

fuzz_target!(|code: &[u8]| {
    for long_nops in [false, true] {
        for block in [None, Some(0)] {
            let need = ProbeNeed { arguments: ArgumentSet::of([0, 1]), block };
            let site = choose_site(code, need, EmulatedForms { long_nops });
            assert!(site.offset == 0 || (site.offset as usize) < code.len());
        }
        let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
        // Whichever calls and jumps never return.
        let first = code.first().copied().unwrap_or(0);
        let never_returns = |at: u64| first >> (at & 7) & 1 != 0;
        for never_returns in [None, Some(&never_returns as &dyn Fn(u64) -> bool)] {
            let sites = choose_sites(code, need, EmulatedForms { long_nops }, never_returns);
            assert!(!sites.is_empty());
            for site in sites {
                assert!(site.offset == 0 || (site.offset as usize) < code.len());
            }
        }
    }
});
