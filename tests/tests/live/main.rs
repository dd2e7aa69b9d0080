//! The shipped binary against real processes. Takes root; `cargo xtask test` runs it.

mod attach;
mod contract;
mod images;
mod kit;
mod laws;
mod oracle;
mod ring;
