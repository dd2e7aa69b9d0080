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
        let sites = choose_sites(code, need, EmulatedForms { long_nops });
        assert!(!sites.is_empty());
        for site in sites {
            assert!(site.offset == 0 || (site.offset as usize) < code.len());
        }
    }
});
