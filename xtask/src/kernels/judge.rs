//! Whether memscope did its work in an emulated machine: from what it printed there.

use anyhow::{Context, Result};
use memscope_tests::compare_mappings;
use memscope_tests::verifier::Diagnosis;
use serde_json::Value;

use super::Traced;
use super::guest::{Section, section};

/// Numbers that a program prints and the export has under the same name.
const FIGURES: &[&str] = &[
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "reallocations",
    "failed_allocations",
    "live_blocks",
    "live_bytes",
];

/// What happened in one machine.
pub(super) struct Judged {
    pub(super) diagnosis: Diagnosis,
    traces: Vec<Trace>,
}

/// One traced program.
#[derive(Debug, Default)]
struct Trace {
    name: String,
    allocations: u64,
    lost: u64,
    /// Allocations whose call chain is complete, of all that have one.
    complete_stacks: u64,
    stacks: u64,
    /// Chains the program told, and how many of them were recorded exactly.
    chains: usize,
    exact_chains: usize,
    /// What it told to have mapped, and how much of that was recorded exactly.
    mappings: usize,
    exact_mappings: usize,
    problems: Vec<String>,
}

/// Reads what the machine printed.
///
/// # Errors
///
/// If it ended early or memscope said what nobody can read.
pub(super) fn judge(printed: &str, traced: &[Traced]) -> Result<Judged> {
    // A serial line ends its lines as a teleprinter does.
    let printed = printed.replace("\r\n", "\n");
    let doctor = section(&printed, "doctor")?;
    let diagnosis = serde_json::from_str(doctor.text)
        .context("memscope doctor printed something else than its JSON")?;
    let traces = traced
        .iter()
        .map(|Traced { name, source, .. }| {
            let part = |what| section(&printed, &format!("{what}-{name}"));
            let (trace, verify, export) = (part("trace")?, part("verify")?, part("export")?);
            Ok(Trace::judge(name, source, &trace, &verify, &export))
        })
        .collect::<Result<_>>()?;
    Ok(Judged { diagnosis, traces })
}

impl Judged {
    /// Prints one line for each trace; returns what is wrong.
    pub(super) fn report(&self) -> Vec<String> {
        let release = &self.diagnosis.kernel;
        println!("\nLinux {release}");
        println!(
            "  {:<11} {:>12} {:>6} {:>16} {:>13} {:>14}",
            "traced", "allocations", "lost", "complete stacks", "exact chains", "exact mappings"
        );
        let mut problems = Vec::new();
        for trace in &self.traces {
            println!(
                "  {:<11} {:>12} {:>6} {:>16} {:>13} {:>14}",
                trace.name,
                trace.allocations,
                trace.lost,
                format!("{} of {}", trace.complete_stacks, trace.stacks),
                format!("{} of {}", trace.exact_chains, trace.chains),
                format!("{} of {}", trace.exact_mappings, trace.mappings)
            );
            let name = &trace.name;
            problems.extend(
                trace.problems.iter().map(|what| format!("Linux {release}: {name}: {what}")),
            );
        }
        problems
    }
}

impl Trace {
    fn judge(
        name: &str,
        source: &str,
        trace: &Section,
        verify: &Section,
        export: &Section,
    ) -> Self {
        let mut judged = Self { name: name.to_owned(), ..Self::default() };
        for (what, section) in [("trace", trace), ("verify", verify), ("export", export)] {
            if section.status != 0 {
                judged.problems.push(format!("memscope {what} ended with {}", section.status));
            }
        }
        match serde_json::from_str(export.text) {
            Ok(export) => {
                judged.compare_totals(trace.text, &export);
                judged.compare_chains(trace.text, &export, source);
                let (said, problems) = compare_mappings(trace.text, &export);
                judged.mappings = said;
                judged.exact_mappings = said - problems.len();
                judged.problems.extend(problems);
            }
            Err(error) => judged.problems.push(format!("its export is no JSON: {error}")),
        }
        judged
    }

    fn compare_totals(&mut self, said: &str, export: &Value) {
        let number = |key: &str| {
            said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        };
        // The C library allocates one block for each thread, of a size of its own.
        let threads: u64 = number("threads_created").unwrap_or(0);
        for &key in FIGURES {
            if threads > 0 && key.ends_with("_bytes") {
                continue;
            }
            let hidden = if matches!(key, "allocations" | "live_blocks") { threads } else { 0 };
            let expected: Option<u64> = number(key).map(|said: u64| said + hidden);
            let found = export["totals"][key].as_u64();
            if expected.is_none() || found != expected {
                self.problems.push(format!(
                    "{key}: the program says {expected:?}, memscope recorded {found:?}"
                ));
            }
        }
        self.allocations = export["totals"]["allocations"].as_u64().unwrap_or(0);
        self.complete_stacks = export["stacks"]["complete"].as_u64().unwrap_or(0);
        let truncated = export["stacks"]["truncated"].as_u64().unwrap_or(0);
        self.stacks = self.complete_stacks + truncated;
        // New tables can come while a stack is being walked, which then says so.
        let replaced = export["stacks"]["by_reason"]["tables_replaced"].as_u64().unwrap_or(0);
        if truncated != replaced || self.complete_stacks == 0 {
            let reasons = &export["stacks"]["by_reason"];
            self.problems.push(format!("{truncated} stacks are not complete: {reasons}"));
        }
        match export["loss"]["lost_events"].as_u64() {
            Some(0) => {}
            Some(lost) => {
                self.lost = lost;
                self.problems.push(format!("{lost} events were lost"));
            }
            None => self.problems.push("its export does not say what was lost".to_owned()),
        }
        if export["capture"]["complete"] != Value::Bool(true) {
            self.problems.push("the recording is not complete".to_owned());
        }
    }

    /// Each line `chain <size> <count> <function> @<line>[ inlined] <- …` must be the
    /// frames of one site, those of libraries left out.
    fn compare_chains(&mut self, said: &str, export: &Value, source: &str) {
        let sites = export["sites"].as_array().map(Vec::as_slice).unwrap_or_default();
        let recorded: Vec<String> = sites.iter().map(|site| own_frames(site, source)).collect();
        for line in said.lines().filter_map(|line| line.strip_prefix("chain ")) {
            let chain = line.splitn(3, ' ').nth(2).unwrap_or_default();
            self.chains += 1;
            if recorded.iter().any(|frames| frames == chain) {
                self.exact_chains += 1;
            } else {
                self.problems.push(format!("no site has the chain {chain}"));
            }
        }
    }
}

/// The frames in this source, written as the program writes them.
fn own_frames(site: &Value, source: &str) -> String {
    let frames = site["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = frames
        .iter()
        .filter(|frame| frame["file"].as_str().is_some_and(|file| file.ends_with(source)));
    let shown: Vec<String> = own
        .map(|frame| {
            let function = frame["function"].as_str().unwrap_or("?");
            let inlined = if frame["inlined"] == Value::Bool(true) { " inlined" } else { "" };
            format!("{function} @{}{inlined}", frame["line"])
        })
        .collect();
    shown.join(" <- ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "chain 1001 3 allocate @34 <- main @120\nallocations 7\nallocated_bytes 70\n\
                        frees 2\nfreed_bytes 20\nreallocations 0\nfailed_allocations 0\n\
                        live_blocks 5\nlive_bytes 50\ndone 1\n";

    fn export() -> Value {
        serde_json::json!({
            "capture": { "complete": true },
            "totals": { "allocations": 7, "allocated_bytes": 70, "frees": 2, "freed_bytes": 20,
                "reallocations": 0, "failed_allocations": 0, "live_blocks": 5, "live_bytes": 50 },
            "loss": { "lost_events": 0 },
            "stacks": { "complete": 7, "truncated": 0 },
            "sites": [{ "frames": [
                { "function": "allocate", "file": "/x/chain.c", "line": 34, "inlined": false },
                { "function": "main", "file": "/x/chain.c", "line": 120, "inlined": false },
                { "function": "start", "file": "/y/libc-start.c", "line": 1, "inlined": false },
            ] }],
        })
    }

    fn judged(said: &str, export: &Value, status: i32) -> Vec<String> {
        let text = export.to_string();
        let section = |text| Section { status: 0, text };
        let trace = Section { status, text: said };
        Trace::judge("chain", "chain.c", &trace, &section(""), &section(&text)).problems
    }

    #[test]
    fn a_trace_that_agrees_with_its_program_is_right() {
        assert_eq!(judged(SAID, &export(), 0), [""; 0]);
    }

    #[test]
    fn threads_have_a_block_each_of_unknown_size() {
        let mut export = export();
        export["totals"]["allocations"] = 9.into();
        export["totals"]["live_blocks"] = 7.into();
        export["totals"]["live_bytes"] = 700.into();
        assert_eq!(judged(&format!("{SAID}threads_created 2\n"), &export, 0), [""; 0]);
        assert_eq!(judged(SAID, &export, 0).len(), 3);
    }

    #[test]
    fn each_difference_is_told() {
        for (pointer, value) in [
            ("/totals/frees", 3.into()),
            ("/totals/live_bytes", Value::Null),
            ("/loss/lost_events", 1.into()),
            ("/stacks/truncated", 1.into()),
            ("/stacks/complete", 0.into()),
            ("/capture/complete", false.into()),
            ("/sites/0/frames/0/line", 35.into()),
        ] {
            let mut export = export();
            *export.pointer_mut(pointer).unwrap() = value;
            assert_eq!(judged(SAID, &export, 0).len(), 1, "{pointer}");
        }
        assert_eq!(judged(SAID, &export(), 139), ["memscope trace ended with 139"]);
        // A program that was cut off has not said what to compare with.
        assert_eq!(judged("chain 1 1 allocate @34 <- main @120\n", &export(), 0).len(), 8);
    }
}
