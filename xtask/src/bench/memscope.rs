//! memscope as a tracer under measurement: attached to a waiting program, and judged by what it recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::process::Process;
use super::results::{BudgetFigures, MemscopeFigures};
use crate::process::output;

/// All of the work was observed.
const ALL_PPM: u64 = 1_000_000;
const ATTACH_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes between samples, where there are any.
pub(super) const SAMPLE: &str = "512KiB";
/// What tracing may cost, where that is limited.
pub(super) const BUDGET: &str = "5%";

/// How memscope traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Full,
    /// Only the allocator's caller: no stack is walked.
    Caller,
    Sampled,
    /// In windows of time, so that it costs no more than a share.
    Limited,
    /// With probes in all processes of the machine.
    Everywhere,
    /// What is mapped by system calls as well.
    Mappings,
}

impl Mode {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Mode::Full => &[],
            Mode::Caller => &["--stacks", "caller"],
            Mode::Sampled => &["--sample", SAMPLE],
            Mode::Limited => &["--max-overhead", BUDGET],
            Mode::Everywhere => &["--probes", "host"],
            Mode::Mappings => &["--mappings"],
        }
    }

    /// The option that this memscope lacks, going by its help.
    pub(super) fn missing(self, trace_help: &str) -> Option<&'static str> {
        self.arguments().first().copied().filter(|option| {
            !trace_help.split_whitespace().any(|word| word.trim_end_matches(',') == *option)
        })
    }
}

/// memscope, recording a program.
pub(super) struct Tracing {
    memscope: PathBuf,
    process: Process,
    recording: PathBuf,
    mode: Mode,
}

impl Tracing {
    pub(super) fn attach(memscope: &Path, mode: Mode, pid: u32, folder: &Path) -> Result<Self> {
        let recording = folder.join("recording.mscope");
        let mut command = Command::new(memscope);
        command.arg("trace").args(mode.arguments()).arg("-o").arg(&recording);
        command.args(["--pid", &pid.to_string()]);
        let process = Process::spawn(&mut command, folder.join("memscope-stderr"))?;
        let tracing = Self { memscope: memscope.to_owned(), process, recording, mode };
        tracing.wait_until_recording()?;
        Ok(tracing)
    }

    /// The first counters are saved when everything is attached and switched on.
    fn wait_until_recording(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if self.process.has_ended() || begun.elapsed() > ATTACH_DEADLINE {
                bail!("memscope records nothing: {}", self.process.said());
            }
            let mut dump = Command::new(&self.memscope);
            // Before its first bytes are written there is no recording.
            let dumped = output(dump.arg("dump").arg(&self.recording)).unwrap_or_default();
            if dumped.lines().any(|line| line.starts_with("counters ")) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end, which the program's is; says how many allocations it has seen, and what it cost.
    pub(super) fn finish(self, at_least: u64) -> Result<(u64, MemscopeFigures)> {
        let ended = self.process.finish()?.ended;
        let mut export = Command::new(&self.memscope);
        let json = self.recording.with_extension("json");
        export.arg("export").arg(&self.recording).args(["--format", "json", "-o"]).arg(&json);
        output(&mut export)?;
        let recording_bytes =
            fs::metadata(&self.recording).context("the recording is there")?.len();
        let json = fs::File::open(&json).context("the export is there")?;
        let export: Export = serde_json::from_reader(std::io::BufReader::new(json))
            .context("memscope exported something else than its JSON")?;
        let seen = export.judge(self.mode, at_least)?;
        let totals = &export.totals;
        let figures = MemscopeFigures {
            cpu_ns: ended.cpu_ns,
            peak_rss_bytes: ended.peak_rss_bytes,
            lost_events: export.loss.lost_events,
            recording_bytes,
            // A reallocation is one event, which both others count.
            events: matches!(self.mode, Mode::Full | Mode::Caller).then(|| {
                (totals.allocations + totals.frees + totals.unknown_frees)
                    .saturating_sub(totals.reallocations)
            }),
            complete_stacks: export.stacks.complete,
            truncated_stacks: export.stacks.truncated,
            budget: export.budget.as_ref().map(Budget::figures),
        };
        Ok((seen, figures))
    }
}

/// memscope, recording another program in a way that all processes notice.
pub(super) struct TracingElsewhere {
    tracing: Tracing,
    other: Process,
}

impl TracingElsewhere {
    pub(super) fn attach(memscope: &Path, mode: Mode, folder: &Path) -> Result<Self> {
        let mut command = Command::new("sleep");
        let other = Process::spawn(command.arg("infinity"), folder.join("other-stderr"))?;
        let tracing = Tracing::attach(memscope, mode, other.pid(), folder)?;
        Ok(Self { tracing, other })
    }

    /// To be called when the program has ended, which must not have been recorded.
    pub(super) fn finish(self) -> Result<MemscopeFigures> {
        // Dropped, it is killed, and the trace ends with it.
        drop(self.other);
        let (seen, figures) = self.tracing.finish(0)?;
        if seen > 0 {
            bail!("memscope recorded {seen} blocks or mappings of a program that sleeps");
        }
        Ok(figures)
    }
}

/// What is read of the JSON export.
#[derive(Deserialize)]
struct Export {
    capture: Capture,
    totals: Totals,
    loss: Loss,
    stacks: Stacks,
    /// What is counted however few blocks are recorded.
    exact: Option<Exact>,
    /// If what it may cost is limited.
    budget: Option<Budget>,
    /// If they were observed.
    mappings: Option<Mappings>,
}

#[derive(Deserialize)]
struct Mappings {
    mappings: u64,
}

#[derive(Deserialize)]
struct Budget {
    spent_ppm: Option<u64>,
    observed_ppm: u64,
    window_count: u64,
    collector_cpu_ns: u64,
}

impl Budget {
    fn figures(&self) -> BudgetFigures {
        BudgetFigures {
            spent_ppm: self.spent_ppm.unwrap_or(0),
            observed_ppm: self.observed_ppm,
            windows: self.window_count,
            collector_cpu_ns: self.collector_cpu_ns,
        }
    }
}

#[derive(Deserialize)]
struct Exact {
    calls: u64,
}

#[derive(Deserialize)]
struct Capture {
    mode: String,
    complete: bool,
}

#[derive(Deserialize)]
struct Totals {
    allocations: u64,
    frees: u64,
    reallocations: u64,
    unknown_frees: u64,
}

#[derive(Deserialize)]
struct Loss {
    lost_events: u64,
    by_cause: Causes,
}

/// A cause of which nothing was lost may not be named.
#[derive(Deserialize)]
struct Causes {
    #[serde(default)]
    return_not_seen: u64,
}

#[derive(Deserialize)]
struct Stacks {
    complete: u64,
    truncated: u64,
}

impl Export {
    /// How many allocations it has seen, or mappings; an error if that cannot be all.
    fn judge(&self, mode: Mode, at_least: u64) -> Result<u64> {
        if mode == Mode::Limited {
            return self.judge_limited(at_least);
        }
        let (expected_mode, seen) = match mode {
            Mode::Full | Mode::Caller | Mode::Everywhere => ("full", Some(self.totals.allocations)),
            Mode::Mappings => ("full", self.mappings.as_ref().map(|mappings| mappings.mappings)),
            // Totals are estimates then.
            Mode::Sampled | Mode::Limited => {
                ("sampled", self.exact.as_ref().map(|exact| exact.calls))
            }
        };
        if self.capture.mode != expected_mode {
            bail!("memscope recorded in mode {}, not {expected_mode}", self.capture.mode);
        }
        if self.loss.lost_events > 0 || !self.capture.complete {
            bail!("memscope lost {} events", self.loss.lost_events);
        }
        let seen = seen.context("memscope does not say what it counted")?;
        if seen < at_least {
            bail!("memscope saw {seen} of at least {at_least}");
        }
        Ok(seen)
    }

    /// It has seen a part of the work, says how large a part, and has lost no more than calls that were under way when
    /// a window ended. What the part stands for is an estimate.
    fn judge_limited(&self, at_least: u64) -> Result<u64> {
        let budget = self.budget.as_ref().context("memscope does not say what it has spent")?;
        if budget.spent_ppm.is_none() || budget.window_count == 0 || self.totals.allocations == 0 {
            bail!("memscope has seen nothing in {} windows", budget.window_count);
        }
        let (lost, under_way) = (self.loss.lost_events, self.loss.by_cause.return_not_seen);
        if lost > under_way {
            bail!("memscope lost {} events", lost - under_way);
        }
        let seen = self.exact.as_ref().map(|exact| exact.calls);
        let seen = seen.context("memscope does not say what it counted")?;
        if budget.observed_ppm == ALL_PPM && seen < at_least {
            bail!("memscope saw {seen} allocations of at least {at_least}");
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(mode: &str, allocations: u64, lost: u64) -> Export {
        let exact = (mode == "sampled").then_some(serde_json::json!({ "calls": 100, "bytes": 1 }));
        let json = serde_json::json!({
            "schema": "memscope.export",
            "capture": { "mode": mode, "complete": lost == 0, "arch": "x86_64" },
            "totals": { "allocations": allocations, "frees": 1, "reallocations": 0, "unknown_frees": 2 },
            "loss": { "lost_events": lost, "by_cause": {} },
            "stacks": { "complete": 3, "truncated": 0, "by_reason": {} },
            "sites": [{ "site": 1 }],
            "exact": exact,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_recording_must_have_all_of_the_work() {
        assert_eq!(export("full", 100, 0).judge(Mode::Full, 100).unwrap(), 100);
        assert!(export("full", 99, 0).judge(Mode::Full, 100).is_err());
        assert!(export("full", 100, 1).judge(Mode::Full, 100).is_err());
        assert!(export("sampled", 100, 0).judge(Mode::Full, 100).is_err());
        assert!(export("full", 100, 0).judge(Mode::Sampled, 100).is_err());
        // Of sampled blocks the totals are estimates, and what is counted is exact.
        assert_eq!(export("sampled", 90, 0).judge(Mode::Sampled, 100).unwrap(), 100);
        assert!(export("sampled", 110, 0).judge(Mode::Sampled, 101).is_err());
    }

    #[test]
    fn mappings_are_counted_where_they_are_observed() {
        let mut export = export("full", 100, 0);
        assert!(export.judge(Mode::Mappings, 1).is_err(), "it says nothing of mappings");
        export.mappings = Some(Mappings { mappings: 7 });
        assert_eq!(export.judge(Mode::Mappings, 7).unwrap(), 7);
        assert!(export.judge(Mode::Mappings, 8).is_err());
    }

    #[test]
    fn with_a_budget_a_part_is_seen_and_how_large_it_is_is_told() {
        let mut limited = export("sampled", 100_000, 0);
        assert!(limited.judge(Mode::Limited, 1).is_err(), "it says nothing of a budget");
        let told = |spent_ppm, observed_ppm, window_count| {
            Some(Budget { spent_ppm, observed_ppm, window_count, collector_cpu_ns: 5 })
        };
        limited.budget = told(Some(50_000), 900, 3);
        assert_eq!(limited.judge(Mode::Limited, 100_000).unwrap(), 100);
        limited.loss.lost_events = 2;
        assert!(limited.judge(Mode::Limited, 1).is_err());
        limited.loss.by_cause.return_not_seen = 2;
        assert_eq!(limited.judge(Mode::Limited, 1).unwrap(), 100);
        limited.budget = told(Some(9_000), ALL_PPM, 1);
        assert!(limited.judge(Mode::Limited, 101).is_err(), "observed all the time");
        limited.budget = told(None, ALL_PPM, 0);
        assert!(limited.judge(Mode::Limited, 1).is_err());
    }

    #[test]
    fn an_option_is_there_if_the_help_names_it() {
        let help = "  -o, --output <FILE>\n      --stacks <WHICH>  What to record of a stack\n";
        assert_eq!(Mode::Full.missing(help), None);
        assert_eq!(Mode::Caller.missing(help), None);
        assert_eq!(Mode::Sampled.missing(help), Some("--sample"));
        assert_eq!(Mode::Caller.missing("--stacks-of <X>"), Some("--stacks"));
    }
}
