//! Counts what probes cost, if the trace has a budget: how often their programs ran, and, of
//! one in 64 runs, how long.

use core::ptr::read_volatile;

use memscope_common::control::{CostCounters, Cookie, MAX_TIMED_NS, TIMED_RUNS_LOG2};

use crate::{emit, maps::COSTS};

/// A program begins: when, if this run is timed, else 0.
#[inline(always)]
pub(crate) fn begin() -> u64 {
    if emit::settings().counts_cost == 0 {
        return 0;
    }
    let Some(cpu) = COSTS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's map value.
    let run = emit::next(unsafe { &raw mut (*cpu).runs });
    // Read, so that for the verifier both values of it are alike, and it need not follow the
    // program once for each.
    // SAFETY: as above.
    let not_timed = unsafe { read_volatile(&raw const (*cpu).zero) };
    if is_timed(run) { emit::now_ns() } else { not_timed }
}

/// Runs are timed at distances that no pattern of calls can follow: those whose number times
/// the golden ratio is near to a whole number (Weyl 1916).
#[inline(always)]
fn is_timed(run: u64) -> bool {
    run.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TIMED_RUNS_LOG2) == 0
}

/// The program ends.
#[inline(always)]
pub(crate) fn end(begun_ns: u64) {
    if emit::settings().counts_cost == 0 || begun_ns == 0 {
        return;
    }
    let taken_ns = emit::now_ns().wrapping_sub(begun_ns).min(MAX_TIMED_NS);
    count(|cpu| {
        // SAFETY: this CPU's map value.
        let (runs, ns) = unsafe { (&raw mut (*cpu).timed_runs, &raw mut (*cpu).timed_ns) };
        emit::add(runs, 1);
        emit::add(ns, taken_ns);
    });
}

/// The program runs at an entry.
#[inline(always)]
pub(crate) fn at_entry(cookie: Cookie) {
    if cookie.is_stepped() {
        // SAFETY: this CPU's map value.
        count(|cpu| emit::add(unsafe { &raw mut (*cpu).stepped }, 1));
    }
}

/// The program runs at a return.
#[inline(always)]
pub(crate) fn at_return() {
    // SAFETY: this CPU's map value.
    count(|cpu| emit::add(unsafe { &raw mut (*cpu).returns }, 1));
}

#[inline(always)]
fn count(add: impl FnOnce(*mut CostCounters)) {
    if emit::settings().counts_cost != 0
        && let Some(cpu) = COSTS.get_ptr_mut(0)
    {
        add(cpu);
    }
}
