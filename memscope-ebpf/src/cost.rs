//! Counts what probes cost, if the trace has a budget: how often their programs ran, and, of
//! one in 64 runs, how long. And samples, as a profiler does, whether the targets are at work
//! or in a probe.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
    programs::PerfEventContext,
};
use memscope_common::control::{Cookie, CostCounters, MAX_TIMED_NS, TIMED_RUNS_LOG2};

use crate::{emit, hit, maps::COSTS, settings};

/// Two bits of `cs` that are 0 in the kernel.
const USER_MODE: u64 = 3;
/// The longest instruction.
const MAX_INSTRUCTION_BYTES: u64 = 15;
/// `orig_rax` of a thread that has come into the kernel by a breakpoint, or has been taken back
/// from a function's end by the kernel's own system call for that (`sys_uretprobe` in
/// arch/x86/kernel/uprobes.c, Linux 6.11).
const BREAKPOINT: u64 = u64::MAX;
const SYS_URETPROBE: u64 = 335;

/// A program begins: when, if this run is timed, else 0.
#[inline(always)]
pub(crate) fn begin() -> u64 {
    if settings::counts_cost() == 0 {
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
    if settings::counts_cost() == 0 || begun_ns == 0 {
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

/// The program runs at an entry, at this instruction.
#[inline(always)]
pub(crate) fn at_entry(cookie: Cookie, registers: *const pt_regs) {
    count(|cpu| {
        note_place(cpu, registers);
        if cookie.is_stepped() {
            // SAFETY: this CPU's map value.
            emit::add(unsafe { &raw mut (*cpu).stepped }, 1);
        }
    });
}

/// The program runs at a return, to this instruction.
#[inline(always)]
pub(crate) fn at_return(registers: *const pt_regs) {
    count(|cpu| {
        note_place(cpu, registers);
        // SAFETY: this CPU's map value.
        emit::add(unsafe { &raw mut (*cpu).returns }, 1);
    });
}

#[inline(always)]
fn note_place(cpu: *mut CostCounters, registers: *const pt_regs) {
    // SAFETY: the context of a uprobe is the thread's registers; this CPU's map value.
    unsafe { write_volatile(&raw mut (*cpu).hit_avma, read_volatile(&raw const (*registers).rip)) };
}

/// A sample: a processor is at this place now.
#[inline(always)]
pub(crate) fn sample(context: &PerfEventContext) -> Option<()> {
    hit::current_target()?;
    let cpu = COSTS.get_ptr_mut(0)?;
    // SAFETY: the context of a perf event begins with the registers at that place.
    let (cs, rip) = unsafe {
        let registers = &raw const (*context.ctx).regs;
        (read_volatile(&raw const (*registers).cs), read_volatile(&raw const (*registers).rip))
    };
    let is_in_probe =
        if cs & USER_MODE == 0 { has_come_by_probe() } else { is_behind_hit(cpu, rip) };
    // SAFETY: this CPU's map value.
    let counter = unsafe {
        if is_in_probe { &raw mut (*cpu).probe_samples } else { &raw mut (*cpu).work_samples }
    };
    emit::add(counter, 1);
    Some(())
}

/// Whether the current thread has come into the kernel because of a probe.
#[inline(always)]
fn has_come_by_probe() -> bool {
    // SAFETY: helpers that take what they are given here, and that check the address.
    let reason = unsafe {
        let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
        bpf_probe_read_kernel(&raw const (*registers).orig_rax)
    };
    reason.is_ok_and(|reason| reason == BREAKPOINT || reason == SYS_URETPROBE)
}

/// A sample that is due while the kernel lets nothing interrupt it, on its way out of a probe, is
/// taken at the first instruction behind it.
#[inline(always)]
fn is_behind_hit(cpu: *const CostCounters, rip: u64) -> bool {
    // SAFETY: this CPU's map value.
    let hit_avma = unsafe { read_volatile(&raw const (*cpu).hit_avma) };
    hit_avma != 0 && rip.wrapping_sub(hit_avma) <= MAX_INSTRUCTION_BYTES
}

#[inline(always)]
fn count(add: impl FnOnce(*mut CostCounters)) {
    if settings::counts_cost() != 0
        && let Some(cpu) = COSTS.get_ptr_mut(0)
    {
        add(cpu);
    }
}
