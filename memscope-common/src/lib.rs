//! The contract between the eBPF programs and the collector.
//!
//! Everything here is plain data: fixed-width integers, explicit padding, no
//! `bool`, `Option`, `usize` or enum fields, because the two sides are built by
//! different compilers for different targets. Each struct has its size asserted
//! beside it.
//!
//! Rules for changing it: ids are append-only and never reused; any change of a
//! layout or a meaning raises [`CONTRACT_VERSION`], which the loader compares
//! with the one in the object.

#![no_std]

pub mod control;
pub mod record;
pub mod unwind;

/// Raised with every change of layout or meaning in this crate.
pub const CONTRACT_VERSION: u32 = 21;
