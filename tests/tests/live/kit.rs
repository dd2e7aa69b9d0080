//! Runs the shipped binary, and reads what it exports.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memscope_tests::memscope_binary;
use serde_json::Value;
use tempfile::TempDir;

/// A command that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often a condition that nothing announces is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) const NOBODY: u32 = 65534;

/// The shipped binary, run as whoever runs the tests.
pub(crate) fn memscope() -> Command {
    let mut command = Command::new(memscope_binary());
    command.env_remove("SUDO_UID").env_remove("SUDO_GID");
    command
}

/// Says what is not tested here, in the form that `cargo xtask test` collects.
pub(crate) fn skip(what: &str, why: &str) {
    eprintln!("SKIPPED: {what} — {why}");
}

pub(crate) fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// Waits until a condition holds that nothing announces.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(LOOK);
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; none after a signal.
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn assert_code(&self, code: i32) -> &Finished {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// Runs a command to its end with nothing to read.
pub(crate) fn run(command: &mut Command) -> Finished {
    Running::spawn(command).finish()
}

/// A running command whose output goes to files, so that it is never held up. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    output: TempDir,
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Running {
        let output = tempfile::tempdir().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Running { child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&self) -> String {
        self.read("stdout")
    }

    pub(crate) fn stderr(&self) -> String {
        self.read("stderr")
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.output.path().join(name)).unwrap()).into_owned()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: kill has no memory effects; the child is not reaped, so the number is its own.
        let result = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        assert_eq!(result, 0, "a child that was not reaped can be signalled");
    }

    /// Asks it to end and waits for that.
    pub(crate) fn end_by(self, signal: i32) -> Finished {
        self.signal(signal);
        self.finish()
    }

    pub(crate) fn finish(mut self) -> Finished {
        assert!(
            wait_for_exit(self.child.id()),
            "still running after {DEADLINE:?}: {}",
            self.stderr()
        );
        let status = self.child.wait().unwrap();
        let (stdout, stderr) = (self.read("stdout"), self.read("stderr"));
        Finished { code: status.code(), signal: status.signal(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both succeed on a child that has ended, reaped or not.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end process {}: {error}", self.child.id());
        }
    }
}

fn wait_for_exit(pid: u32) -> bool {
    // SAFETY: pidfd_open takes two numbers and makes a descriptor.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(descriptor >= 0, "process {pid}: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made, and nobody else has it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: it points to one pollfd, as the 1 says.
    unsafe { libc::poll(&raw mut poll, 1, DEADLINE.as_millis() as i32) == 1 }
}

/// A folder for a recording and what else a test leaves, removed with it.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn recording(&self) -> PathBuf {
        self.path("t.mscope")
    }

    /// `memscope trace -o RECORDING …`
    pub(crate) fn trace(&self, options: &[&str]) -> Command {
        let mut command = memscope();
        command.arg("trace").arg("-o").arg(self.recording()).args(options).current_dir(&self.0);
        command
    }

    /// `memscope trace -o RECORDING … -- PROGRAM ARGUMENTS…`
    pub(crate) fn trace_program(
        &self,
        options: &[&str],
        program: impl AsRef<OsStr>,
        arguments: &[&str],
    ) -> Command {
        let mut command = self.trace(options);
        command.arg("--").arg(program).args(arguments);
        command
    }

    /// Traces running processes; returns once they are recorded.
    pub(crate) fn attach(&self, options: &[&str], pids: &[u32]) -> Running {
        let mut command = self.trace(options);
        for pid in pids {
            command.arg("--pid").arg(pid.to_string());
        }
        let mut memscope = Running::spawn(&mut command);
        // The first counters are saved when everything is attached and switched on.
        wait_until("memscope records its targets", || {
            assert!(!memscope.has_ended(), "memscope ended: {}", memscope.stderr());
            self.dump().lines().any(|line| line.starts_with("counters "))
        });
        memscope
    }

    pub(crate) fn dump(&self) -> String {
        run(memscope().arg("dump").arg(self.recording())).stdout
    }

    /// What is recorded, every block included; the laws that hold for every recording are checked.
    pub(crate) fn export(&self) -> Export {
        export(&self.recording())
    }

    /// `memscope report --view VIEW`, as text.
    pub(crate) fn report(&self, view: &str) -> Finished {
        let report = run(memscope().arg("report").arg(self.recording()).args(["--view", view]));
        report.assert_code(0);
        report
    }

    pub(crate) fn report_json(&self, view: &str) -> Value {
        let mut command = memscope();
        command
            .arg("report")
            .arg(self.recording())
            .args(["--view", view, "--json", "--top", "1000000"]);
        serde_json::from_str(&run(&mut command).assert_code(0).stdout).unwrap()
    }

    /// The exit code of `memscope verify`.
    pub(crate) fn verify(&self) -> Option<i32> {
        run(memscope().arg("verify").arg(self.recording())).code
    }
}

/// Nothing that it traces frees blocks by another allocator than their own.
pub(crate) fn export(recording: &Path) -> Export {
    let export = export_any(recording);
    assert_eq!(export.total("mismatched_frees"), 0, "{}", export.0["mismatches"]);
    export
}

/// The same, of what may do so.
pub(crate) fn export_any(recording: &Path) -> Export {
    let mut command = memscope();
    command.arg("export").arg(recording).args(["--format", "json", "--blocks"]);
    let export = Export(serde_json::from_str(&run(&mut command).assert_code(0).stdout).unwrap());
    super::laws::assert_conserved(&export);
    export
}

/// The JSON export.
pub(crate) struct Export(pub(crate) Value);

/// One lifetime, as exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) process: u64,
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// For how many blocks it stands, and for how many bytes.
    pub(crate) weight: u64,
    pub(crate) weight_bytes: u64,
    pub(crate) site: u64,
    pub(crate) thread: u64,
    pub(crate) allocated_ns: u64,
    pub(crate) freed_ns: Option<u64>,
    pub(crate) freed_by: Option<u64>,
    pub(crate) chain_allocated_ns: u64,
}

/// A number of a JSON object; it must be there.
pub(crate) fn number(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {object}"))
}

impl Export {
    pub(crate) fn total(&self, key: &str) -> u64 {
        number(&self.0["totals"], key)
    }

    pub(crate) fn list(&self, key: &str) -> &[Value] {
        self.0[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
    }

    pub(crate) fn lost(&self) -> u64 {
        number(&self.0["loss"], "lost_events")
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.0["capture"]["complete"].as_bool().unwrap()
    }

    pub(crate) fn assert_complete(&self) {
        assert_eq!(self.lost(), 0, "{}", self.0["loss"]);
        assert!(self.is_complete(), "{}", self.0["trust"]);
    }

    /// The entries of `processes` with this pid, in order.
    pub(crate) fn processes_of(&self, pid: u64) -> Vec<&Value> {
        self.list("processes").iter().filter(|process| number(process, "pid") == pid).collect()
    }

    pub(crate) fn sites_of(&self, process: u64) -> impl Iterator<Item = &Value> {
        self.list("sites").iter().filter(move |site| number(site, "process") == process)
    }

    /// What one process has of a number that sites have.
    pub(crate) fn sum_of(&self, process: u64, key: &str) -> u64 {
        self.sites_of(process).map(|site| number(site, key)).sum()
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        self.list("blocks")
            .iter()
            .map(|block| Block {
                process: number(block, "process"),
                address: hexadecimal(&block["address"]),
                size: number(block, "size"),
                weight: number(block, "weight"),
                weight_bytes: number(block, "weight_bytes"),
                site: number(block, "site"),
                thread: number(block, "thread"),
                allocated_ns: number(block, "allocated_ns"),
                freed_ns: block["freed_ns"].as_u64(),
                freed_by: block["freed_by_thread"].as_u64(),
                chain_allocated_ns: number(block, "chain_allocated_ns"),
            })
            .collect()
    }
}

pub(crate) fn hexadecimal(value: &Value) -> u64 {
    let digits = value.as_str().unwrap().strip_prefix("0x").unwrap();
    u64::from_str_radix(digits, 16).unwrap()
}

/// How often each value occurs.
pub(crate) fn counted<T: std::hash::Hash + Eq>(
    values: impl IntoIterator<Item = T>,
) -> HashMap<T, u64> {
    let mut counts = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}
