//! `memscope export`: a recording in another format.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};

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
    let weight = options.weight.unwrap_or_else(|| Weight::usual(&analysis));
    weight.check(&analysis)?;
    refuse_same_file(&options.file, &options.output)?;
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
    export(options.format, &analysis, weight, blocks, &mut out)?;
    out.flush().context("cannot write the export")?;
    Ok(ExitCode::SUCCESS)
}

/// An export in place of its own recording would be the end of that: opening a file for writing
/// empties it. By whatever path or link it is called.
fn refuse_same_file(recording: &Path, output: &Path) -> anyhow::Result<()> {
    // What cannot be looked at cannot be opened either, and is refused where that is tried.
    let (Ok(from), Ok(to)) = (fs::metadata(recording), fs::metadata(output)) else {
        return Ok(());
    };
    if (from.dev(), from.ino()) == (to.dev(), to.ino()) {
        bail!(
            "{} is the recording itself: writing there would destroy it; choose another place with -o",
            output.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_not_overwritten_by_its_export_whatever_it_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("r.mscope"), "recording").unwrap();
        fs::write(path("other"), "").unwrap();
        fs::hard_link(path("r.mscope"), path("hard")).unwrap();
        std::os::unix::fs::symlink("r.mscope", path("link")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        for same in ["r.mscope", "hard", "link", "folder/../r.mscope"] {
            refuse_same_file(&path("r.mscope"), &path(same)).unwrap_err();
        }
        for other in ["other", "new"] {
            refuse_same_file(&path("r.mscope"), &path(other)).unwrap();
        }
        refuse_same_file(&path("r.mscope"), Path::new("-")).unwrap();
    }
}
