//! What the end-to-end tests share: the ground-truth programs and their compilation, running them in step with a
//! test, and the oracle that says what a program really asked of its allocator.
//!
//! `tests/programs/README.md` lists the programs with their arguments and output.

#![allow(
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a kit for tests: a broken invariant ends the test, and most names say all there is to say"
)]

#[cfg(test)]
mod agreement;
pub mod floor;
mod mappings;
pub mod oracle;
pub mod process;
pub mod programs;
pub mod resources;
pub mod stacks;
pub mod verifier;

pub use mappings::compare_mappings;
pub use oracle::{OracleCall, OracleCounts, OracleFunction, OracleImage, OracleTotals};
pub use process::{ExpectedChain, ExpectedFrame, Figures, TestProgram};
pub use programs::{Variant, memscope_binary};
