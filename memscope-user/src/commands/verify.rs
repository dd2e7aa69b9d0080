//! `memscope verify`: is a recording whole, undamaged and consistent?

use std::process::ExitCode;

use super::open_recording;
use crate::{
    cli::FileOptions,
    reports::{analyze, check},
    store::RecordingEnd,
    text,
};

/// Exit code of a recording that is not as it was written.
const EXIT_DAMAGED: u8 = 3;

/// Runs the command: 0 for a sound recording, 3 for any other.
///
/// # Errors
///
/// If the file cannot be read, or is no recording.
pub fn run(options: &FileOptions) -> anyhow::Result<ExitCode> {
    let analysis = analyze(open_recording(&options.file)?)?;
    let mut sound = true;
    for damage in &analysis.damages {
        sound = false;
        println!(
            "damaged at byte {}: {} ({} bytes passed over)",
            damage.file_offset, damage.what, damage.skipped_bytes
        );
    }
    let untold = analysis.damage_count.saturating_sub(analysis.damages.len() as u64);
    if untold > 0 {
        println!("and at {untold} more places");
    }
    if analysis.end == RecordingEnd::Truncated {
        sound = false;
        println!("truncated: it has no ending, so what came after the last whole chunk is missing");
    }
    if let Err(contradiction) = check(&analysis) {
        sound = false;
        println!("inconsistent: {contradiction}");
    }
    let totals = analysis.totals;
    println!(
        "{}: {} allocations, {} frees, {} lost events",
        if sound { "sound" } else { "not sound" },
        text::count(totals.allocations),
        text::count(totals.frees),
        analysis.lost_events().map_or_else(|| "an unknown number of".to_owned(), text::count),
    );
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DAMAGED) })
}
