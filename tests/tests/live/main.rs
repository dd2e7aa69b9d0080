//! The shipped binary against real processes. Takes root; `cargo xtask test` runs it.

mod attach;
mod bad_files;
mod bad_input;
mod bpf;
mod chains;
mod contract;
mod cost;
mod harm;
mod images;
mod kit;
mod laws;
mod leaks;
mod oracle;
mod ring;
mod valgrind;
