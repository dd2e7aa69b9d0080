//! What happens while the collector cannot keep up.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    helpers::{bpf_get_smp_processor_id, bpf_send_signal_thread},
};
use core::ptr::{read_volatile, write_volatile};

use memscope_common::control::{Overflow, OverflowKey};

use crate::{
    emit,
    hit::Hit,
    maps::{CPU_RINGS, EVENTS, OVERFLOWS, PAUSED},
    settings,
};

/// Counts an allocation whose record was lost, so that the sums of its stack stay exact.
#[inline(always)]
pub(crate) fn count(key: OverflowKey, size_bytes: u64) {
    if OVERFLOWS.get_ptr(&key).is_none()
        && OVERFLOWS.insert(&key, &Overflow::default(), u64::from(BPF_NOEXIST)).is_err()
        && OVERFLOWS.get_ptr(&key).is_none()
    {
        return;
    }
    if let Some(overflow) = OVERFLOWS.get_ptr_mut(&key) {
        // SAFETY: a map value, which is never removed.
        unsafe {
            emit::add(&raw mut (*overflow).allocations, 1);
            emit::add(&raw mut (*overflow).bytes, size_bytes);
        }
    }
}

/// Only if there is none yet (`include/uapi/linux/bpf.h`).
const BPF_NOEXIST: u32 = 1;
/// `SIGSTOP` on x86-64.
const STOP: u32 = 19;

/// Stops the current process if half of the room is taken, here or in the ring buffer. The
/// collector lets it go on when it has caught up.
///
/// The signal is this thread's own, and stops all of the process (`do_signal_stop`, kernel/signal.c). One to the process would
/// be ignored while another thread's waits (`legacy_queue`), which has to run before it is stopped; until then this one would go on.
///
/// The signal comes first and the note after it: so what the collector finds noted is already
/// stopped, or will have been told to stop before it is told to go on.
#[inline(always)]
pub(crate) fn pause_if_needed(hit: &Hit) {
    if settings::pauses() == 0 || !hit.may_stop() || !is_half_full() {
        return;
    }
    // SAFETY: the helper sends a signal to the current thread, which is one that is traced.
    if unsafe { bpf_send_signal_thread(STOP) } != 0 {
        return;
    }
    if let Some(paused) = PAUSED.get_ptr_mut(u32::from(hit.index)) {
        // SAFETY: an element of an array map, which is never removed.
        unsafe { write_volatile(paused, 1) };
    }
    emit::wake();
}

#[inline(always)]
fn is_half_full() -> bool {
    let half = EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2;
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > half {
        return true;
    }
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(ring) = CPU_RINGS.get_ptr(cpu) else { return false };
    // SAFETY: an element of an array map, whose words are read whole.
    let waiting = unsafe {
        read_volatile(&raw const (*ring).head).wrapping_sub(read_volatile(&raw const (*ring).tail))
    };
    waiting > 1 << (settings::slots_log2() & 31) >> 1
}
