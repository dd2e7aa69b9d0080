//! Several checks in a row: all of them run, and a timed summary closes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

#[derive(Default)]
pub(crate) struct Steps {
    finished: Vec<(&'static str, Duration, Result<Vec<String>>)>,
}

impl Steps {
    /// Runs one step, which returns what it had to skip.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<Vec<String>>) {
        eprintln!("\n==== {name}");
        let start = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        self.finished.push((name, start.elapsed(), result));
    }

    /// Prints the summary; fails if a step did.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\nsummary:");
        let mut failed = Vec::new();
        for (name, duration, result) in self.finished {
            let outcome = match &result {
                Ok(_) => "ok",
                Err(_) => "FAILED",
            };
            println!("  {name:<22} {outcome:<6} {:>7.1} s", duration.as_secs_f64());
            match result {
                Ok(skipped) => skipped.iter().for_each(|what| println!("    SKIPPED: {what}")),
                Err(error) => {
                    println!("    {}", format!("{error:#}").replace('\n', "\n    "));
                    failed.push(name);
                }
            }
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}
