//! The commands: the only code that joins stages, and the only one that talks to the
//! user.

pub mod doctor;
pub mod dump;
pub mod export;
pub mod report;
pub mod trace;
pub mod verify;

use std::{
    fs::File,
    io::{self, BufReader},
    path::Path,
};

use anyhow::Context as _;

use crate::store::Reader;

/// Opens a recording for reading.
fn open_recording(path: &Path) -> anyhow::Result<Reader<BufReader<File>>> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(what)?;
    if file.metadata().with_context(what)?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory)).with_context(what);
    }
    Reader::new(BufReader::new(file)).with_context(what)
}

/// Tells on standard error what of a recording could not be read.
fn warn_of_damage(path: &Path, damage_count: u64, truncated: bool) {
    let path = path.display();
    if damage_count > 0 {
        let places = if damage_count == 1 { "one place" } else { "several places" };
        eprintln!("memscope: {path} is damaged at {places}; `memscope verify` shows where");
    }
    if truncated {
        eprintln!(
            "memscope: {path} has no ending: memscope was killed, or the file was cut. What was saved is shown"
        );
    }
}
