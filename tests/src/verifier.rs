//! What the verifier has to do for each eBPF program: what is recorded for each kernel in
//! `memscope-ebpf/verifier.json`, and whether a kernel still does about as much.
//!
//! The verifier walks through every path of a program and refuses it above a number of instructions. That number
//! depends on the kernel as much as on the program, so a program that loads here need not load elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file, seen from the root of the repository.
pub const FILE: &str = "memscope-ebpf/verifier.json";
/// No program may need more on any kernel: half of what kernels allow (`BPF_COMPLEXITY_LIMIT_INSNS`, one million), so
/// that a kernel nobody tried has room to do more.
pub const BUDGET: u64 = 500_000;
/// By how much a program may exceed what is recorded before somebody has to look and record it anew.
pub const TOLERANCE_PERCENT: u64 = 20;

/// How much of the verifier's words is passed on.
const ERROR_LINES: usize = 12;

/// What is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// By series of the kernel, as in `6.12`.
    pub kernels: BTreeMap<String, RecordedKernel>,
}

/// What is recorded for one series of kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedKernel {
    /// The kernel that was measured.
    pub release: String,
    /// Which object it was given.
    pub object_sha256: String,
    /// Instructions that the verifier processed, by program.
    pub verified_instructions: BTreeMap<String, u64>,
}

/// The part of `memscope doctor --json` that is about the programs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Diagnosis {
    /// Release of the running kernel.
    pub kernel: String,
    /// Why the programs could not be loaded; none if they could.
    pub programs_error: Option<String>,
    /// The loaded programs.
    pub programs: Vec<Program>,
    /// Memory of their maps.
    pub map_bytes: Option<u64>,
}

/// One loaded program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    pub name: String,
    pub verified_instructions: Option<u64>,
    pub translated_bytes: Option<u64>,
    pub machine_code_bytes: Option<u64>,
}

/// `6.12` of `6.12.117+deb12-cloud-amd64`: releases of one series differ in repairs only.
pub fn series(release: &str) -> Option<String> {
    let mut parts = release.split(['.', '-', '+']);
    let (major, minor): (u32, u32) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(format!("{major}.{minor}"))
}

impl Diagnosis {
    /// What would be recorded of this.
    pub fn to_record(&self, object_sha256: String) -> RecordedKernel {
        let known =
            |program: &Program| Some((program.name.clone(), program.verified_instructions?));
        RecordedKernel {
            release: self.kernel.clone(),
            object_sha256,
            verified_instructions: self.programs.iter().filter_map(known).collect(),
        }
    }

    /// What is wrong whatever is recorded.
    pub fn problems(&self) -> Vec<String> {
        if let Some(error) = &self.programs_error {
            // The verifier tells all it has walked through, at the end where it stopped and why.
            let lines: Vec<&str> = error.lines().collect();
            let end = lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n");
            return vec![format!("the kernel refused the programs: {end}")];
        }
        if self.programs.is_empty() {
            return vec!["the kernel says nothing about the programs".to_owned()];
        }
        self.programs.iter().filter_map(Program::problem).collect()
    }
}

impl Program {
    fn problem(&self) -> Option<String> {
        let name = &self.name;
        match self.verified_instructions {
            None => {
                Some(format!("{name}: the kernel does not say how many instructions it verified"))
            }
            Some(now) if now > BUDGET => {
                Some(format!("{name}: {now} instructions to verify, the budget is {BUDGET}"))
            }
            Some(_) => None,
        }
    }
}

impl RecordedKernel {
    /// What this kernel, of the same series, does otherwise than recorded. Fewer instructions are no problem.
    pub fn problems(&self, diagnosis: &Diagnosis) -> Vec<String> {
        let mut problems = Vec::new();
        for program in &diagnosis.programs {
            let name = &program.name;
            let Some(now) = program.verified_instructions else { continue };
            match self.verified_instructions.get(name) {
                None => problems.push(format!("{name}: nothing is recorded for it")),
                Some(recorded) if now * 100 > recorded * (100 + TOLERANCE_PERCENT) => problems.push(format!(
                    "{name}: {now} instructions to verify, more than {TOLERANCE_PERCENT} % above the recorded {recorded}"
                )),
                Some(_) => {}
            }
        }
        for name in self.verified_instructions.keys() {
            if !diagnosis.programs.iter().any(|program| program.name == *name) {
                problems.push(format!("{name}: recorded, but there is no such program"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(programs: &[(&str, Option<u64>)]) -> Diagnosis {
        let program = |&(name, verified_instructions): &(&str, _)| Program {
            name: str::to_owned(name),
            verified_instructions,
            translated_bytes: None,
            machine_code_bytes: None,
        };
        Diagnosis {
            kernel: "6.1.0-56-cloud-amd64".to_owned(),
            programs_error: None,
            programs: programs.iter().map(program).collect(),
            map_bytes: None,
        }
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        for (release, expected) in [
            ("6.12.117+deb12-cloud-amd64", Some("6.12")),
            ("6.1.0-56-cloud-amd64", Some("6.1")),
            ("6.18", Some("6.18")),
            ("6.19-rc3", Some("6.19")),
            ("7", None),
            ("x.y", None),
            ("", None),
        ] {
            assert_eq!(series(release).as_deref(), expected, "{release}");
        }
    }

    #[test]
    fn a_fifth_more_than_recorded_is_the_limit() {
        let recorded = diagnosis(&[("a", Some(100)), ("b", Some(10))]).to_record(String::new());
        let problems = |programs: &[_]| recorded.problems(&diagnosis(programs));
        assert_eq!(problems(&[("a", Some(120)), ("b", Some(1))]), [""; 0]);
        assert_eq!(
            problems(&[("a", Some(121)), ("b", Some(10))]),
            ["a: 121 instructions to verify, more than 20 % above the recorded 100"]
        );
        assert_eq!(
            problems(&[("a", Some(100)), ("c", Some(1))]),
            ["c: nothing is recorded for it", "b: recorded, but there is no such program"]
        );
    }

    #[test]
    fn what_is_refused_silent_or_over_the_budget_is_a_problem_without_any_record() {
        let fine = diagnosis(&[("a", Some(BUDGET))]);
        assert_eq!(fine.problems(), [""; 0]);
        assert_eq!(diagnosis(&[("a", Some(BUDGET + 1))]).problems().len(), 1);
        assert_eq!(diagnosis(&[("a", None)]).problems().len(), 1);
        assert_eq!(diagnosis(&[]).problems().len(), 1);
        let refused = Diagnosis { programs_error: Some("too large".to_owned()), ..fine };
        assert_eq!(refused.problems(), ["the kernel refused the programs: too large"]);
        let log = "walked\n".repeat(ERROR_LINES) + "too large";
        let refused = Diagnosis { programs_error: Some(log), ..refused };
        assert_eq!(refused.problems()[0].lines().count(), ERROR_LINES);
        assert!(refused.problems()[0].ends_with("too large"));
    }
}
