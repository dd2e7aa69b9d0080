//! `demo`: from a fresh clone to a report, with every command shown.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{as_root, run as run_command};
use crate::{setup, workspace};

const RECORDING: &str = "target/demo.mscope";

/// Keeps a dictionary, throws most of the rest away: something to see in each
/// of the reports.
const WORKLOAD: &str = "import json
kept = {}
for i in range(2000):
    record = {'id': i, 'name': 'item %d' % i, 'values': list(range(i % 50))}
    kept[i] = json.loads(json.dumps(record)) if i % 10 == 0 else None
print(sum(value is not None for value in kept.values()), 'records kept')";

pub(crate) fn run(command: Vec<String>) -> Result<()> {
    let root = workspace::root();
    let command = if command.is_empty() {
        if let [problem, ..] = setup::install_tools(&[("python3", &["python3"])]).as_slice() {
            bail!(
                "the demo traces python3, which is missing ({problem}); name another program after `--`"
            );
        }
        ["python3", "-c", WORKLOAD].map(str::to_owned).to_vec()
    } else {
        command
    };
    run_command(Command::new(workspace::cargo()).current_dir(&root).args([
        "build",
        "--release",
        "-p",
        "memscope",
    ]))?;
    let memscope = workspace::release_binary("memscope");
    run_command(
        as_root(&memscope)?.current_dir(&root).args(["trace", "-o", RECORDING, "--"]).args(command),
    )?;
    for view in ["sites", "leaks", "peak"] {
        run_command(
            Command::new(&memscope)
                .current_dir(&root)
                .args(["report", RECORDING, "--view", view, "--top", "5"]),
        )?;
    }
    Ok(())
}
