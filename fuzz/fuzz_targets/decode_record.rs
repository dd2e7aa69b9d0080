//! What the kernel side writes: any words and any bytes are a record or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memscope::collect::Decoder;

fuzz_target!(|input: (Vec<Vec<u8>>, [u64; 3])| {
    let (records, words) = input;
    let mut decoder = Decoder::default();
    for bytes in &records {
        if let Ok(Some(record)) = decoder.decode(bytes) {
            std::hint::black_box(record.time_ns());
        }
    }
    if let Ok(record) = decoder.decode_small(words) {
        assert_eq!(record.time_ns(), words[0] >> 4);
    }
});
