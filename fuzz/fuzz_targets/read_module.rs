//! A mapped file: any bytes give facts, or an error.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;
use memscope::{
    model::AttachMethod,
    target::{ModuleFacts, SiteRules, plan_probes},
};

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(bytes).expect("and written");
    if let Ok(facts) = ModuleFacts::read(&file, |_| true) {
        let rules = SiteRules::of_this_kernel(AttachMethod::Session, false);
        std::hint::black_box(plan_probes(&facts, rules));
    }
});
