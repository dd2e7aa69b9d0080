//! Where and when a recording was made: processes and times.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Analysis;
use crate::{
    model::{Capture, EndingReason, ProcessId},
    store::RecordingEnd,
    text,
};

/// Last second of the year 9999, after which RFC 3339 has no dates.
const MAX_UNIX_SECONDS: u64 = 253_402_300_799;

/// Enough of a process to tell it from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessName<'a> {
    /// Its id in the recording.
    pub process: u32,
    /// Its process id; none if its definition is missing from the recording.
    pub pid: Option<u32>,
    /// Name of its main thread. Untrusted text.
    pub comm: Option<&'a str>,
}

impl<'a> ProcessName<'a> {
    /// What is known of a process.
    #[must_use]
    pub fn of(analysis: &'a Analysis, process: ProcessId) -> Self {
        let defined = analysis.definitions.processes.get(&process);
        Self {
            process: process.0,
            pid: defined.map(|process| process.pid),
            comm: defined.map(|process| process.comm.as_str()),
        }
    }

    /// `comm (pid N)`. Harmless to a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        match (self.comm, self.pid) {
            (Some(comm), Some(pid)) => format!("{} (pid {pid})", text::harmless(comm)),
            _ => format!("[unknown process {}]", self.process),
        }
    }
}

/// When recording began, as RFC 3339 in UTC with nanoseconds. A date after the
/// year 9999, which only a forged recording has, becomes the last one before.
#[must_use]
pub fn started_at(capture: &Capture) -> String {
    let seconds = capture.started_at_unix_seconds.min(MAX_UNIX_SECONDS);
    let nanoseconds = capture.started_at_unix_nanoseconds.min(999_999_999);
    let moment = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    humantime::format_rfc3339_nanos(moment).to_string()
}

/// Why recording ended, for people.
pub(super) const fn ending_text(end: &RecordingEnd) -> &'static str {
    match end {
        RecordingEnd::Complete(ending) => match ending.reason {
            EndingReason::TargetsEnded => "until the target ended",
            EndingReason::Duration => "as long as asked for",
            EndingReason::Interrupted => "until interrupted",
        },
        RecordingEnd::Truncated => "cut off before its end",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::testing;

    #[test]
    fn times_are_rfc3339_whatever_the_file_says() {
        let mut capture = testing::capture();
        capture.started_at_unix_seconds = 1_700_000_000;
        capture.started_at_unix_nanoseconds = 5;
        assert_eq!(started_at(&capture), "2023-11-14T22:13:20.000000005Z");
        capture.started_at_unix_seconds = u64::MAX;
        capture.started_at_unix_nanoseconds = u32::MAX;
        assert_eq!(started_at(&capture), "9999-12-31T23:59:59.999999999Z");
    }
}
