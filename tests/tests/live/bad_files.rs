//! Files that are no recordings, or not whole ones.

use std::fs;
use std::path::Path;

use memscope_tests::{Variant, programs};

use crate::kit::{Finished, Scratch, memscope, run};

const READERS: [&[&str]; 5] = [
    &["report"],
    &["report", "--json", "--view", "leaks"],
    &["export", "--format", "json", "--blocks"],
    &["dump"],
    &["verify"],
];

fn read(words: &[&str], file: &Path) -> Finished {
    let finished = run(memscope().args(words).arg(file));
    assert_eq!(finished.signal, None, "{words:?}: {finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{words:?}: {finished:?}");
    finished
}

#[test]
fn c20_what_is_no_recording_is_refused_by_every_reader() {
    let scratch = Scratch::new();
    let (empty, text) = (scratch.path("empty"), scratch.path("text"));
    fs::write(&empty, "").unwrap();
    fs::write(&text, "Some text that is longer than the header of a recording.\n".repeat(20))
        .unwrap();
    for (file, mentions) in [
        (scratch.path("missing"), "No such file"),
        (scratch.path(""), "directory"),
        (empty, "not a memscope recording"),
        (text, "not a memscope recording"),
    ] {
        for words in READERS {
            let finished = read(words, &file);
            finished.assert_code(1);
            assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
            assert!(finished.stderr.starts_with("memscope: cannot read "), "{finished:?}");
            assert!(finished.stderr.contains(mentions), "{mentions}: {finished:?}");
        }
    }
}

fn some_recording() -> (Scratch, Vec<u8>) {
    let scratch = Scratch::new();
    let program = programs::build("mix.c", Variant::Default);
    run(&mut scratch.trace_program(&[], program, &["1", "2000"])).assert_code(0);
    let bytes = fs::read(scratch.recording()).unwrap();
    (scratch, bytes)
}

#[test]
fn c15_a_cut_recording_is_read_as_far_as_it_goes_and_says_so() {
    let (scratch, whole) = some_recording();
    let cut = scratch.path("cut.mscope");
    for part in 1..12 {
        fs::write(&cut, &whole[..whole.len() * part / 12]).unwrap();
        assert_eq!(read(&["verify"], &cut).code, Some(3), "{part}/12");
        for words in READERS.iter().filter(|words| words[0] != "verify") {
            let finished = read(words, &cut);
            finished.assert_code(0);
            assert!(finished.stderr.contains("has no ending"), "{finished:?}");
        }
    }
    fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(read(&["verify"], &cut).code, Some(3), "the last byte alone");
}

#[test]
fn c15_flipped_bits_are_noticed() {
    let (scratch, mut bytes) = some_recording();
    let flipped = scratch.path("flipped.mscope");
    let distance = bytes.len() / 40;
    for place in (0..bytes.len()).step_by(distance) {
        let bit = 1 << (place % 8);
        bytes[place] ^= bit;
        fs::write(&flipped, &bytes).unwrap();
        let verified = read(&["verify"], &flipped).code;
        // In the header it may be no recording any more.
        assert!(matches!(verified, Some(3 | 1)), "byte {place}: {verified:?}");
        assert!(place < 16 || verified == Some(3), "byte {place}: {verified:?}");
        for words in READERS.iter().filter(|words| words[0] != "verify") {
            let finished = read(words, &flipped);
            assert!(matches!(finished.code, Some(0 | 1)), "byte {place}: {finished:?}");
            assert!(
                !finished.stderr.is_empty(),
                "byte {place} of {words:?} is not passed over in silence"
            );
        }
        bytes[place] ^= bit;
    }
}
