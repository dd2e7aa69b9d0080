//! What the kernel holds for all tracers, as `bpftool` counts it.

use std::process::Command;

use serde_json::Value;

use crate::kit::{is_installed, skip, wait_until};

/// How many programs and links there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    programs: usize,
    links: usize,
}

/// None where there is no bpftool, which is then said.
pub(crate) fn held() -> Option<Held> {
    if !is_installed("bpftool") {
        skip("programs and links before = after", "bpftool is not installed");
        return None;
    }
    Some(Held { programs: count("prog"), links: count("link") })
}

fn count(what: &str) -> usize {
    let output = Command::new("bpftool").args(["--json", what, "show"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    listed.as_array().map_or(0, Vec::len)
}

/// What was removed goes after a grace period of the kernel.
pub(crate) fn assert_back_to(before: Option<Held>) {
    let Some(before) = before else { return };
    let mut after = before;
    wait_until("the kernel holds no more than before", || {
        after = Held { programs: count("prog"), links: count("link") };
        after == before
    });
    eprintln!("bpftool before = after: {after:?}");
}
