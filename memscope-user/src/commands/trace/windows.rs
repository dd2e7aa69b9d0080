//! Keeps a trace within its budget: measures what it uses, and observes its targets in windows
//! of time.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use procfs::process::Process;
use rustc_hash::FxHashMap;

use super::{
    budget::{Action, Budget, Overhead, Used},
    monotonic_ns,
};
use crate::{
    kernel::{HitCosts, Kernel, KernelError, causes},
    model::Window,
};

/// How long calls that are under way when a window ends are waited for. Those that have not
/// returned by then are lost, and counted.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_millis(5);
/// When it is tried again if probes cannot be attached.
const NOT_OPENED_WAIT: Duration = Duration::from_millis(250);
const IN_FLIGHT_INTERVAL: Duration = Duration::from_micros(200);

/// A target, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) index: u16,
    pub(super) pid: u32,
}

/// The budget of a trace, and what is measured for it.
pub(super) struct Windowed {
    budget: Budget,
    meter: Meter,
    /// Calls recorded when the window began.
    calls_before: u64,
    /// Whether it was said that a window could not begin.
    has_failed: bool,
}

struct Meter {
    costs: HitCosts,
    /// Processor time of each target, as last read: of those that have ended it stays.
    target_cpu_ns: FxHashMap<u16, u64>,
}

impl Meter {
    fn used(&mut self, kernel: &Kernel, targets: &[Observed]) -> Result<Used, KernelError> {
        for target in targets {
            if let Some(cpu_ns) = process_cpu_ns(target.pid) {
                self.target_cpu_ns.insert(target.index, cpu_ns);
            }
        }
        Ok(Used {
            now_ns: monotonic_ns(),
            target_cpu_ns: self.target_cpu_ns.values().sum(),
            probes: kernel.probe_cost(&self.costs)?,
            collector_cpu_ns: clock_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0),
        })
    }
}

fn clock_ns(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    Some(time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
}

/// The number of the clock of a process: the complement of its id, and which clock
/// (`CPUCLOCK_SCHED`, include/linux/posix-timers_types.h).
const CLOCK_BITS: i32 = 3;
const CPU_CLOCK: i32 = 2;

/// Of all threads of a process, those that have ended included; none if it is gone.
fn process_cpu_ns(pid: u32) -> Option<u64> {
    clock_ns(ClockId::from_raw(!pid.cast_signed() << CLOCK_BITS | CPU_CLOCK))
}

impl Windowed {
    /// Recording has begun.
    pub(super) fn begin(
        limit: &Limit,
        kernel: &mut Kernel,
        targets: &[Observed],
    ) -> Result<Self, KernelError> {
        kernel.sample_work()?;
        let mut meter = Meter { costs: limit.costs, target_cpu_ns: FxHashMap::default() };
        let used = meter.used(kernel, targets)?;
        let budget = Budget::new(limit.ppm, limit.interval_bytes, limit.seed, used);
        Ok(Self { budget, meter, calls_before: 0, has_failed: false })
    }

    /// Whether what blocks come from is probed now.
    pub(super) fn is_open(&self) -> bool {
        self.budget.is_open()
    }

    /// Does what is to be done now, given the targets that have not ended and how many calls
    /// were recorded; a window, if one has ended, and when to look again.
    pub(super) fn step(
        &mut self,
        kernel: &mut Kernel,
        targets: &[Observed],
        calls: u64,
    ) -> Result<(Option<Window>, Duration), KernelError> {
        let step = self.budget.step(&self.meter.used(kernel, targets)?);
        let mut window = None;
        match step.action {
            Action::None => {}
            Action::Draw(interval_bytes) => kernel.set_sampling_interval(interval_bytes)?,
            Action::Close => {
                for target in targets {
                    kernel.set_enabled(target.index, false);
                }
                let begun = Instant::now();
                while kernel.calls_in_flight()? > 0 && begun.elapsed() < IN_FLIGHT_PATIENCE {
                    std::thread::sleep(IN_FLIGHT_INTERVAL);
                }
                kernel.close_window();
                let interval_bytes = self.budget.interval_bytes();
                window = Some(self.budget.closed(&self.meter.used(kernel, targets)?));
                if self.budget.interval_bytes() != interval_bytes {
                    kernel.set_sampling_interval(self.budget.interval_bytes())?;
                }
            }
            Action::Open => {
                if let Err(error) = kernel.open_window(calls.saturating_sub(self.calls_before)) {
                    self.not_opened(&error, targets);
                    return Ok((None, NOT_OPENED_WAIT));
                }
                self.calls_before = calls;
                self.budget.opened(&self.meter.used(kernel, targets)?);
                for target in targets {
                    kernel.set_enabled(target.index, true);
                }
            }
        }
        Ok((window, step.wait))
    }

    /// The targets may just have ended.
    fn not_opened(&mut self, error: &KernelError, targets: &[Observed]) {
        let runs = |target: &&Observed| {
            let process = Process::new(target.pid.cast_signed()).and_then(|process| process.stat());
            process.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
        };
        if targets.iter().any(|target| runs(&target)) && !self.has_failed {
            self.has_failed = true;
            log::warn!("targets are not observed for a while: {}", causes(error));
        }
    }

    /// Reads what targets have used, before one that has ended is gone.
    pub(super) fn note(&mut self, kernel: &Kernel, targets: &[Observed]) {
        if let Err(error) = self.meter.used(kernel, targets) {
            log::debug!("what a target has used is not known: {error}");
        }
    }

    /// What is spent now.
    pub(super) fn overhead(
        &mut self,
        kernel: &Kernel,
        targets: &[Observed],
    ) -> Result<Overhead, KernelError> {
        Ok(self.budget.overhead(&self.meter.used(kernel, targets)?))
    }

    /// The trace ends: its last window.
    pub(super) fn finish(
        mut self,
        kernel: &Kernel,
        targets: &[Observed],
    ) -> Result<Window, KernelError> {
        Ok(self.budget.finish(&self.meter.used(kernel, targets)?))
    }
}

/// What may be spent, and how it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Of the targets' work, in millionths.
    pub(super) ppm: u32,
    /// Mean bytes between two samples, at least.
    pub(super) interval_bytes: u64,
    pub(super) seed: u32,
    /// What hits cost on this kernel.
    pub(super) costs: HitCosts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_a_process_is_read_and_of_none_is_not() {
        let before = process_cpu_ns(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while process_cpu_ns(std::process::id()).unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
        // No process has a number from 2^22 on (`PID_MAX_LIMIT`).
        assert_eq!(process_cpu_ns(1 << 22), None);
    }
}
