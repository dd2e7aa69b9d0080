//! What the kernel holds for all tracers, as `bpftool` lists it.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::kit::{is_installed, number, skip, wait_until};

/// Numbers of all programs and links.
pub(crate) struct Held {
    programs: BTreeSet<u64>,
    links: BTreeSet<u64>,
}

impl Held {
    fn now() -> Held {
        Held { programs: list("prog"), links: list("link") }
    }
}

/// None where there is no bpftool, which is then said.
pub(crate) fn held() -> Option<Held> {
    if !is_installed("bpftool") {
        skip("programs and links before = after", "bpftool is not installed");
        return None;
    }
    Some(Held::now())
}

fn list(what: &str) -> BTreeSet<u64> {
    let output = Command::new("bpftool").args(["--json", what, "show"]).output().unwrap();
    // One that goes while it is listed makes bpftool fail.
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    listed.as_array().into_iter().flatten().map(|one| number(one, "id")).collect()
}

/// While memscope traces, its own are there: else this test would test nothing.
pub(crate) fn assert_more_than(before: &Option<Held>) {
    let Some(before) = before else { return };
    let now = Held::now();
    assert!(now.programs.difference(&before.programs).count() > 0, "programs are listed");
    assert!(now.links.difference(&before.links).count() > 0, "and what they are attached to");
}

/// What was removed goes after a grace period of the kernel. Another tracer may have ended meanwhile.
pub(crate) fn assert_back_to(before: Option<Held>) {
    let Some(before) = before else { return };
    let mut after = Held::now();
    wait_until("the kernel holds nothing more than before", || {
        after = Held::now();
        after.programs.is_subset(&before.programs) && after.links.is_subset(&before.links)
    });
    eprintln!(
        "bpftool before and after: {} and {} programs, {} and {} links",
        before.programs.len(),
        after.programs.len(),
        before.links.len(),
        after.links.len()
    );
}
