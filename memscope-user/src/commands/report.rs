//! `memscope report`: a recording, one question, one answer.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use super::{open_recording, warn_of_damage};
use crate::{
    cli::ReportOptions,
    reports::{Detail, analyze, check},
    store::RecordingEnd,
};

/// Runs the command.
///
/// # Errors
///
/// If the recording cannot be read or contradicts itself, or the answer not be written.
pub fn run(options: &ReportOptions) -> anyhow::Result<ExitCode> {
    let analysis = analyze(open_recording(&options.file)?)?;
    check(&analysis).with_context(|| format!("{} cannot be trusted", options.file.display()))?;
    warn_of_damage(&options.file, analysis.damage_count, analysis.end == RecordingEnd::Truncated);
    let path = options.file.to_string_lossy();
    // Programs that read JSON get every frame and every site.
    let detail = if options.json || options.show_wrappers { Detail::All } else { Detail::Folded };
    let report = options.view.report(&analysis, &path, Some(options.top), detail);
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report).context("cannot write the report")?;
        writeln!(out)?;
    } else {
        write!(out, "{}", report.text())?;
    }
    Ok(ExitCode::SUCCESS)
}
