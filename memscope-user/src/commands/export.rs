//! `memscope export`: a recording in another format.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;

use super::{open_recording, warn_of_damage};
use crate::{
    cli::ExportOptions,
    export::{BlockSource, Weight, export},
    reports::{BlockFate, ReadError, analyze, replay_blocks},
    store::{Reader, RecordingEnd, StoreError},
};

/// Runs the command.
///
/// # Errors
///
/// If the recording cannot be read, or the export not be written.
pub fn run(options: &ExportOptions) -> anyhow::Result<ExitCode> {
    let analysis = analyze(open_recording(&options.file)?)?;
    warn_of_damage(&options.file, analysis.damage_count, analysis.end == RecordingEnd::Truncated);
    let mut out: Box<dyn Write> = if options.output == Path::new("-") {
        Box::new(BufWriter::new(io::stdout().lock()))
    } else {
        let file = File::create(&options.output)
            .with_context(|| format!("cannot write to {}", options.output.display()))?;
        Box::new(BufWriter::new(file))
    };
    // The blocks are not kept in memory: the recording is read once more for them.
    let mut again = |each: &mut dyn FnMut(BlockFate<'_>)| -> Result<(), ReadError> {
        let file = File::open(&options.file).map_err(StoreError::Read)?;
        replay_blocks(Reader::new(BufReader::new(file))?, each).map(drop)
    };
    let blocks: Option<BlockSource<'_>> = if options.blocks { Some(&mut again) } else { None };
    export(
        options.format,
        &analysis,
        options.weight.unwrap_or_else(|| Weight::usual(&analysis)),
        blocks,
        &mut out,
    )?;
    out.flush().context("cannot write the export")?;
    Ok(ExitCode::SUCCESS)
}
