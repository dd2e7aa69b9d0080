//! What is shown while tracing: one line that is drawn over on a terminal, a plain
//! line from time to time elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{budget::Overhead, pipeline::Progress};
use crate::{model::Counters, text};

/// Plain lines are for logs, which want few.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct StatusLine {
    line: Option<ProgressBar>,
    started: Instant,
    shown_plain: Instant,
    shown: Instant,
    events: u64,
}

impl StatusLine {
    /// `may_draw` is false while a command writes to the same terminal.
    pub(super) fn new(may_draw: bool) -> Self {
        let line = (may_draw && std::io::stderr().is_terminal()).then(|| {
            let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            match ProgressStyle::with_template("memscope: {elapsed} {wide_msg}") {
                Ok(style) => line.with_style(style),
                Err(_) => line,
            }
        });
        let now = Instant::now();
        Self { line, started: now, shown_plain: now, shown: now, events: 0 }
    }

    pub(super) fn show(
        &mut self,
        counters: &Counters,
        progress: &Progress,
        overhead: Option<&Overhead>,
    ) {
        let seconds = self.shown.elapsed().as_secs_f64();
        let rate =
            if seconds > 0.0 { (progress.events - self.events) as f64 / seconds } else { 0.0 };
        let amount = match progress.faulted_bytes {
            Some(bytes) => format!("{} made resident", text::bytes(bytes)),
            None => format!("{} live", text::bytes(progress.resident_bytes)),
        };
        let message = format!(
            "{} events/s, {}, {} lost, {} written{} (Ctrl-C ends)",
            text::count(rate as u64),
            amount,
            text::count(counters.lost_total()),
            text::bytes(progress.written_bytes),
            overhead.map_or_else(String::new, cost_text),
        );
        (self.shown, self.events) = (Instant::now(), progress.events);
        match &self.line {
            Some(line) => line.set_message(message),
            None if self.shown_plain.elapsed() >= PLAIN_INTERVAL => {
                self.shown_plain = Instant::now();
                eprintln!("memscope: {} s: {message}", self.started.elapsed().as_secs());
            }
            None => {}
        }
    }

    pub(super) fn say(&self, message: &str) {
        match &self.line {
            Some(line) => line.println(format!("memscope: {message}")),
            None => eprintln!("memscope: {message}"),
        }
    }

    pub(super) fn clear(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// `, costs 4.8 % (limit 5 %), 12 % observed`
fn cost_text(overhead: &Overhead) -> String {
    let Overhead { now, budget, observed } = *overhead;
    format!(
        ", costs {:.1} % (limit {:.1} %), {:.1} % observed",
        100.0 * now,
        100.0 * budget,
        100.0 * observed
    )
}
