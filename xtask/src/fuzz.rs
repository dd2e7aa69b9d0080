//! `fuzz`: runs the fuzz targets, each for a while. What they have found interesting stays in `target/fuzz/corpus`, for
//! the next time; an input by which one fails, in `target/fuzz/failed`.
//!
//! The instructions that libFuzzer counts by are made by LLVM, which every compiler has; so no nightly one is needed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::run as run_command;
use crate::workspace;

const FOLDER: &str = "target/fuzz";
/// Named, so that flags are not for what runs while it is built.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Edges are counted and comparisons reported, and sums that overflow fail.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "--cfg=fuzzing",
];
/// An input that takes so long, or so much memory, is a fault.
const LIMITS: &[&str] = &["-timeout=20", "-rss_limit_mb=4096", "-max_len=65536"];

/// Options of the task.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Only these; all if none is named
    targets: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace::root();
    let known = targets(&root)?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("no target is named {unknown}; there are {}", known.join(", "));
    }
    let folder = root.join(FOLDER);
    let mut build = Command::new(workspace::cargo());
    build.current_dir(&root).env("RUSTFLAGS", FLAGS.join(" "));
    build.args(["build", "--release", "--manifest-path", workspace::FUZZ_MANIFEST]);
    run_command(build.args(["--target", TRIPLE, "--target-dir"]).arg(&folder))?;
    let chosen =
        known.iter().filter(|name| options.targets.is_empty() || options.targets.contains(name));
    let mut failed = Vec::new();
    for name in chosen {
        let (corpus, found) = (folder.join("corpus").join(name), folder.join("failed").join(name));
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut target = Command::new(folder.join(TRIPLE).join("release").join(name));
        target.args(LIMITS).arg(format!("-max_total_time={}", options.seconds));
        target.arg(format!("-artifact_prefix={}/", found.display())).arg(&corpus);
        if let Err(error) = run_command(&mut target) {
            failed.push(format!("{error:#}"));
        }
    }
    if !failed.is_empty() {
        bail!("{}\nthe inputs are in {FOLDER}/failed", failed.join("\n"));
    }
    Ok(())
}

/// The names of all targets: those of their files.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let files =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file.with_context(|| format!("cannot read {}", folder.display()))?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
