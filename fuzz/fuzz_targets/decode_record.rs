//! Bytes of the ring: any are a record or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = memscope::collect::decode(bytes) {
        std::hint::black_box(record.time_ns());
    }
});
