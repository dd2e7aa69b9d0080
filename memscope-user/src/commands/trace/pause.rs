//! Targets that are stopped while memscope catches up (`--on-overflow pause`), and what lets
//! them go on, whatever happens.
//!
//! The eBPF side stops a target before the room for records is full. The draining thread lets
//! it go on when it has taken what there was. A process of its own, the guard, does so if
//! memscope is gone: it notices by the end of the pipe that memscope holds.

use std::{
    io::{BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use procfs::process::Process;

use super::modules::SharedProcesses;
use crate::{cli::GUARD_COMMAND, kernel::Pauses};

/// Said by memscope as it ends, if it has stopped nothing: what is stopped then, others have.
const NOTHING_TO_DO: &str = "nothing";
/// How long the guard looks for targets that are stopped: probes of a process that is gone
/// stop working only when the kernel has closed its files.
const GUARD_PATIENCE: Duration = Duration::from_secs(3);
const GUARD_INTERVAL: Duration = Duration::from_millis(20);
/// Most targets that the guard knows.
const MAX_GUARDED: usize = 4096;

/// Lets targets go on.
pub(super) struct Resumer {
    pauses: Pauses,
    processes: SharedProcesses,
    has_paused: Arc<AtomicBool>,
}

impl Resumer {
    pub(super) fn new(
        pauses: Pauses,
        processes: SharedProcesses,
        has_paused: Arc<AtomicBool>,
    ) -> Self {
        Self { pauses, processes, has_paused }
    }

    /// To be called when all that the rings held was taken.
    pub(super) fn resume(&self) {
        self.pauses.take(|target| {
            self.has_paused.store(true, Ordering::Release);
            let Some(process) = self.processes.get(target) else { return };
            if let Err(error) = kill(Pid::from_raw(process.pid().cast_signed()), Signal::SIGCONT) {
                log::debug!("process {} does not go on: {error}", process.pid());
            }
        });
    }
}

/// The guard, as memscope sees it.
pub(super) struct Guard {
    _process: Child,
    orders: ChildStdin,
    has_paused: Arc<AtomicBool>,
}

impl Guard {
    /// Starts it. It is not in memscope's process group, so that what ends memscope does not
    /// end it.
    pub(super) fn start(has_paused: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg(GUARD_COMMAND)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start what lets stopped targets go on if memscope is killed")?;
        let orders = process.stdin.take().context("the guard has no standard input")?;
        Ok(Self { _process: process, orders, has_paused })
    }

    /// From now on it lets this process go on.
    pub(super) fn watch(&mut self, pid: u32, start_ticks: u64) -> anyhow::Result<()> {
        writeln!(self.orders, "{pid} {start_ticks}").context("the guard has ended")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.has_paused.load(Ordering::Acquire)
            && let Err(error) = writeln!(self.orders, "{NOTHING_TO_DO}")
        {
            log::debug!("the guard has ended: {error}");
        }
    }
}

/// A process that the guard watches: its number, and its start, by which it is told from
/// another one that gets its number.
type Watched = (i32, u64);

/// What the guard does: waits until memscope is gone, and then lets its targets go on.
///
/// # Errors
///
/// If what memscope says cannot be read.
pub fn run_guard() -> anyhow::Result<()> {
    let mut watched: Vec<Watched> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read what memscope says")?;
        if line == NOTHING_TO_DO {
            return Ok(());
        }
        if watched.len() < MAX_GUARDED {
            watched.extend(parse(&line));
        }
    }
    let begun = Instant::now();
    while begun.elapsed() < GUARD_PATIENCE {
        for (pid, start_ticks) in &watched {
            if is_stopped(*pid, *start_ticks)
                && let Err(error) = kill(Pid::from_raw(*pid), Signal::SIGCONT)
            {
                log::debug!("process {pid} does not go on: {error}");
            }
        }
        std::thread::sleep(GUARD_INTERVAL);
    }
    Ok(())
}

fn parse(line: &str) -> Option<Watched> {
    let (pid, start_ticks) = line.split_once(' ')?;
    Some((pid.parse().ok().filter(|pid| *pid > 1)?, start_ticks.parse().ok()?))
}

fn is_stopped(pid: i32, start_ticks: u64) -> bool {
    Process::new(pid)
        .and_then(|process| process.stat())
        .is_ok_and(|stat| stat.starttime == start_ticks && stat.state == 'T')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_orders_are_followed() {
        assert_eq!(parse("12 345"), Some((12, 345)));
        for line in ["", "12", "12 ", " 345", "-1 5", "0 5", "1 5", "12 345 6", "a b"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        let own = Process::myself().unwrap().stat().unwrap();
        assert!(!is_stopped(own.pid, own.starttime));
    }
}
