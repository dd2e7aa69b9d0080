//! `test`: the offline tests as plain `cargo test` runs them, then the live
//! ones. Compilers run as the user, only the live test program runs as root.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{as_root, find_in_path, is_root, output, run as run_command, show};
use crate::{setup, workspace};

/// The words by which a test says that it could not test.
const SKIPPED: &str = "SKIPPED: ";
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// What a test program said that the summary repeats.
#[derive(Default)]
struct Summary {
    results: Vec<String>,
    skipped: Vec<String>,
    failed: Vec<String>,
}

/// Returns what was skipped. Neither flag means both.
pub(crate) fn run(offline: bool, live: bool, args: &[String]) -> Result<Vec<String>> {
    let both = offline == live;
    let mut summary = Summary::default();
    if both || offline {
        run_offline(&mut summary)?;
    }
    if both || live {
        match cannot_trace() {
            Some(reason) => summary.skipped.push(format!("the live tests — {reason}")),
            None => {
                // The offline results have to be told all the same.
                if let Err(error) = run_live(&mut summary, args) {
                    summary.failed.push(format!("live ({error:#})"));
                }
            }
        }
    }
    println!("\nran:");
    for line in &summary.results {
        println!("  {line}");
    }
    for line in &summary.skipped {
        println!("{SKIPPED}{line}");
    }
    if !summary.failed.is_empty() {
        bail!("failed: {}", summary.failed.join(", "));
    }
    Ok(summary.skipped)
}

fn run_offline(summary: &mut Summary) -> Result<()> {
    let mut workspace = cargo(&["test", "--workspace"]);
    // Programs that fail must not hide the results of those after them.
    watch(workspace.arg("--no-fail-fast"), "offline", summary)?;
    let ebpf = workspace::root().join(workspace::EBPF_MANIFEST);
    if ebpf.with_file_name("src").join("lib.rs").exists() {
        let mut host = cargo(&["test", "--lib", "--manifest-path", workspace::EBPF_MANIFEST]);
        host.args(["--target-dir", workspace::EBPF_HOST_TARGET_DIR, "--target"])
            .arg(host_triple()?);
        watch(&mut host, "memscope-ebpf on the host", summary)?;
    }
    Ok(())
}

fn run_live(summary: &mut Summary, args: &[String]) -> Result<()> {
    let missing = setup::install(setup::Parts::TEST, false);
    summary.skipped.extend(missing.into_iter().map(|tool| format!("tests that need {tool}")));
    run_command(&mut cargo(&["build", "--release", "-p", "memscope"]))?;
    let program = build_live_tests()?;
    let package = workspace::root().join("tests");
    let itself = std::env::current_exe().context("cannot find this program")?;
    // As cargo would run it: in the package, and with the user's PATH.
    let mut live = as_root("env")?;
    live.current_dir(&package)
        .arg(format!("PATH={}", std::env::var("PATH").unwrap_or_default()))
        .arg(format!("CARGO_MANIFEST_DIR={}", package.display()))
        .arg(format!("XTASK={}", itself.display()))
        .arg(program)
        .args(["--test-threads=1", "--nocapture"])
        .args(args);
    watch(&mut live, "live", summary)
}

fn build_live_tests() -> Result<PathBuf> {
    let mut build = cargo(&["test", "--release", "-p", "memscope-tests", "--features", "live"]);
    build.args(["--test", "live", "--no-run", "--message-format=json-render-diagnostics"]);
    eprintln!("$ {}", show(&build));
    let messages = output(build.stderr(Stdio::inherit()))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|message| message["target"]["name"] == "live" && message["executable"].is_string())
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no test program `live` in memscope-tests")
}

/// Runs tests, passes on all they print and notes results and skips.
fn watch(command: &mut Command, name: &str, summary: &mut Summary) -> Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    // The command holds two ends for writing; open, they would hide the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut stdout = io::stdout();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("cannot read the output of `{shown}`"))?;
        stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n")).context("cannot print")?;
        summary.note(name, &String::from_utf8_lossy(&line));
    }
    if !child.wait().with_context(|| format!("cannot wait for `{shown}`"))?.success() {
        summary.failed.push(name.to_owned());
    }
    Ok(())
}

impl Summary {
    fn note(&mut self, name: &str, line: &str) {
        // The harness may have begun a line with the test's name.
        if let Some((_, what)) = line.split_once(SKIPPED) {
            self.skipped.push(what.trim_end().to_owned());
        } else if line.starts_with("test result: ") && !line.contains(" 0 passed; 0 failed") {
            self.results.push(format!("{name}: {line}"));
        }
    }
}

/// Why no program can be traced here.
fn cannot_trace() -> Option<String> {
    for (path, what) in [
        ("/sys/kernel/btf/vmlinux", "BTF"),
        ("/sys/bus/event_source/devices/uprobe/type", "uprobes"),
    ] {
        if !Path::new(path).exists() {
            return Some(format!("this kernel has no {what} ({path} is missing)"));
        }
    }
    if is_root() {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        return (!may_load_bpf(&status)).then(|| "root here has no CAP_BPF".to_owned());
    }
    if find_in_path("sudo").is_none() {
        return Some("they need root, and there is no sudo".to_owned());
    }
    // Without a terminal, sudo could only fail to ask for a password.
    let asks = output(Command::new("sudo").args(["--non-interactive", "true"])).is_err();
    (asks && !io::stdin().is_terminal())
        .then(|| "they need root, and sudo wants a password".to_owned())
}

fn may_load_bpf(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0)
}

fn host_triple() -> Result<String> {
    let verbose = output(Command::new("rustc").arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_repeats_results_and_skips() {
        let mut summary = Summary::default();
        for line in [
            "test redis::load ... SKIPPED: redis — not installed",
            "SKIPPED: jemalloc — no such library",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "test result: ok. 0 passed; 0 failed; 0 ignored",
            "running 3 tests",
        ] {
            summary.note("live", line);
        }
        assert_eq!(summary.skipped, ["redis — not installed", "jemalloc — no such library"]);
        assert_eq!(summary.results, ["live: test result: ok. 3 passed; 0 failed; 0 ignored"]);
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert!(may_load_bpf("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_load_bpf("Name:\tx\nCapEff:\t00000000a80425fb\n"));
        assert!(!may_load_bpf(""));
    }
}
