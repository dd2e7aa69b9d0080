//! memscope: a memory tracer for unmodified Linux processes.
//!
//! The modules below stand in the order in which data flows. A stage imports only
//! stages above it (`cargo xtask tidy` checks that); only [`commands`] joins them.
//! `ARCHITECTURE.md` has the picture.

pub mod model;
pub mod text;

pub mod collect;
pub mod export;
pub mod kernel;
pub mod lifetimes;
pub mod reports;
pub mod store;
pub mod symbols;
pub mod target;
pub mod unwind;

pub mod cli;
pub mod commands;
