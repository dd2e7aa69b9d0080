//! `lint`: what must hold before a change is worth testing.

use std::process::Command;

use anyhow::Result;

use crate::process::run as run_command;
use crate::steps::Steps;
use crate::{tidy, workspace};

pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    add_steps(&mut steps);
    steps.finish()
}

pub(crate) fn add_steps(steps: &mut Steps) {
    steps.run("format", || {
        cargo(&["fmt", "--all", "--check"])?;
        cargo(&["fmt", "--manifest-path", workspace::EBPF_MANIFEST, "--check"])?;
        cargo(&["fmt", "--manifest-path", workspace::TEST_CRATES_MANIFEST, "--check"])?;
        cargo(&["fmt", "--manifest-path", workspace::FUZZ_MANIFEST, "--check"])
    });
    steps.run("clippy", || {
        cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-Dwarnings"])
    });
    steps.run("clippy memscope-ebpf", || {
        // The part that also compiles for the host; programs and maps do not.
        let mut words = vec!["clippy", "--manifest-path", workspace::EBPF_MANIFEST, "--lib"];
        words.extend(["--target-dir", workspace::EBPF_HOST_TARGET_DIR, "--", "-Dwarnings"]);
        cargo(&words)
    });
    steps.run("clippy fuzz", || {
        let mut words = vec!["clippy", "--manifest-path", workspace::FUZZ_MANIFEST];
        words.extend(["--target-dir", workspace::FUZZ_CHECK_TARGET_DIR, "--", "-Dwarnings"]);
        cargo(&words)
    });
    steps.run("documentation", || {
        let mut command = command(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
        run_command(command.env("RUSTDOCFLAGS", "-Dwarnings"))?;
        Ok(Vec::new())
    });
    steps.run("tidy", || tidy::run().map(|()| Vec::new()));
}

fn cargo(words: &[&str]) -> Result<Vec<String>> {
    run_command(&mut command(words))?;
    Ok(Vec::new())
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(words);
    command
}
