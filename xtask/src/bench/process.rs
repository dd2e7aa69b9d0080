//! A program under measurement, or one that traces it: told what to do by lines, and read line by line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memscope_tests::resources::{self, Ended};

use crate::process::show;

/// Longer than the slowest workload takes under the slowest tracer: what waits longer is stuck.
const DEADLINE: Duration = Duration::from_secs(180);
/// What is read of a stream at most. A program that says more is not one of ours.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;

/// Killed when dropped, unless it has ended.
pub(super) struct Process {
    shown: String,
    /// None once it was waited for.
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stdout: String,
    stderr: PathBuf,
    /// The traced process, if the command is a script that starts it.
    pub(super) inner: Option<u32>,
}

/// How a process ended and what it said.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) ended: Ended,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Process {
    /// Starts the command; what it says on stderr goes into that file.
    pub(super) fn spawn(command: &mut Command, stderr: PathBuf) -> Result<Self> {
        let shown = show(command);
        let file =
            File::create(&stderr).with_context(|| format!("cannot create {}", stderr.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a piped stdout is there")?;
        let (sender, lines) = channel();
        // A thread, because a pipe cannot be read with a deadline.
        thread::spawn(move || {
            for line in BufReader::new(stdout.take(MAX_OUTPUT_BYTES)).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let stdout = String::new();
        Ok(Self { shown, child: Some(child), stdin, lines, stdout, stderr, inner: None })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Without waiting for it, which would lose what it has used.
    pub(super) fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
    }

    pub(super) fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .with_context(|| format!("`{}` does not read its stdin", self.shown))
    }

    /// The next line; none at the end.
    fn next_line(&mut self) -> Result<Option<String>> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.stdout.push_str(&line);
                self.stdout.push('\n');
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` said nothing for {DEADLINE:?}", self.shown)
            }
        }
    }

    /// Reads up to the line that begins so; returns the rest of it.
    pub(super) fn wait_for(&mut self, beginning: &str) -> Result<String> {
        while let Some(line) = self.next_line()? {
            if let Some(rest) = line.strip_prefix(beginning) {
                return Ok(rest.to_owned());
            }
        }
        bail!("`{}` ended before it said `{beginning}`: {}", self.shown, self.said())
    }

    /// What it has said so far.
    pub(super) fn said(&self) -> String {
        let stderr = fs::read(&self.stderr).unwrap_or_default();
        format!("{}\n{}", self.stdout.trim_end(), String::from_utf8_lossy(&stderr).trim_end())
    }

    /// Closes its stdin and waits for its end, which must be a success.
    pub(super) fn finish(mut self) -> Result<Output> {
        self.stdin = None;
        while self.next_line()?.is_some() {}
        let child = self.child.as_mut().context("it was waited for")?;
        let ended = resources::wait(child, DEADLINE).context("cannot wait for a child")?;
        let ended = ended.with_context(|| format!("`{}` does not end", self.shown))?;
        self.child = None;
        self.inner = None;
        if ended.code != Some(0) {
            let how = ended.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
            bail!("`{}` ended with {how}: {}", self.shown, self.said());
        }
        let stderr = File::open(&self.stderr).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let stderr = stderr.with_context(|| format!("cannot read {}", self.stderr.display()))?;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(Output { ended, stdout: std::mem::take(&mut self.stdout), stderr })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(inner) = self.inner
            && let Err(error) = resources::kill(inner)
        {
            eprintln!("cannot end process {inner} of `{}`: {error}", self.shown);
        }
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            eprintln!("cannot end `{}`: {error}", self.shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let scratch = tempfile::tempdir().unwrap();
        let stderr = scratch.path().join("stderr");
        let process = Process::spawn(Command::new("sh").args(["-c", script]), stderr).unwrap();
        (scratch, process)
    }

    #[test]
    fn a_process_is_led_by_lines_and_keeps_all_it_said() {
        let (_scratch, mut process) =
            shell("echo noise; echo ready 12; read line; echo got $line; echo bad >&2; cat");
        assert_eq!(process.wait_for("ready ").unwrap(), "12");
        process.send("go\n").unwrap();
        assert_eq!(process.wait_for("got ").unwrap(), "go");
        let output = process.finish().unwrap();
        assert_eq!(output.stdout, "noise\nready 12\ngot go\n");
        assert_eq!(output.stderr, "bad\n");
    }

    #[test]
    fn a_failure_says_what_the_process_said() {
        let (_scratch, mut process) = shell("echo one; echo two >&2; exit 3");
        let error = process.wait_for("ready ").unwrap_err().to_string();
        assert!(error.contains("one") && error.contains("two"), "{error}");
        let error = process.finish().unwrap_err().to_string();
        assert!(error.contains("code 3"), "{error}");
    }
}
