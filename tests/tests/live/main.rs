//! The shipped binary against real processes. Takes root; `cargo xtask test` runs it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests: a broken expectation ends the test, in what they share as in themselves"
)]

mod allocators;
mod attach;
mod attach_time;
mod bad_files;
mod bad_input;
mod bench;
mod bpf;
mod budget;
mod chains;
mod contract;
mod copies;
mod cost;
mod described;
mod harm;
mod images;
mod kit;
mod late;
mod laws;
mod leaks;
mod mappings;
mod memory;
mod mismatched;
mod mmaps;
mod oracle;
mod overflow;
mod pages;
mod peers_stacks;
mod processes;
mod real_programs;
mod ring;
mod rungs;
mod sampling;
mod sites;
mod stacks;
mod stacks_kit;
mod stacks_many;
mod symbols;
mod threads;
mod unwind_cost;
mod valgrind;
mod verifier;
