//! A recording: any bytes give an analysis whose laws hold, or an error.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use memscope::{
    reports::{Detail, View, analyze},
    store::Reader,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(reader) = Reader::new(Cursor::new(bytes)) else { return };
    let Ok(analysis) = analyze(reader) else { return };
    for view in View::ALL {
        std::hint::black_box(view.report(&analysis, "fuzz", Some(10), Detail::Folded).text());
    }
});
