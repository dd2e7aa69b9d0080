//! The only place that writes to the ring buffer, and the only one that counts
//! what is lost.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_ns,
};
use core::arch::asm;
use memscope_common::{
    control::{
        COUNTER_COUNT, COUNTER_FREES, COUNTER_LOST_FREE, COUNTER_LOST_STACK, COUNTER_OTHERS,
        COUNTER_RETURNS, CpuCounters, StackRecord,
    },
    record::{Header, KIND_LOSS, Loss, MAX_FRAMES, StackHeader},
};

use crate::maps::{CONSUMER, COUNTERS, EVENTS};

/// The clock of all records.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds without losing increments to a task that preempts this one on its CPU.
#[inline(always)]
fn add(counter: *mut u64, increment: u64) {
    // Inline assembly, because `AtomicU64::fetch_add` does not exist for a target
    // without compare-and-swap.
    // SAFETY: `counter` points to an aligned u64 of a map value.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) increment) }
}

/// Adds 1 and gives the value from before, as one step.
#[inline(always)]
pub(crate) fn next(counter: *mut u64) -> u64 {
    let mut value: u64 = 1;
    // SAFETY: `counter` points to an aligned u64 of a map value.
    unsafe { asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) counter, inout(reg) value) }
    value
}

/// Takes the value and leaves 0, as one step.
#[inline(always)]
fn take(counter: *mut u64) -> u64 {
    let mut value: u64 = 0;
    // SAFETY: `counter` points to an aligned u64 of a map value.
    unsafe { asm!("{1} = xchg_64({0} + 0, {1})", in(reg) counter, inout(reg) value) }
    value
}

/// Writes 0. Of two zeros beside each other LLVM makes a call of `memset`, which goes byte
/// by byte.
#[inline(always)]
pub(crate) fn clear(word: &mut u64) {
    // SAFETY: a reference can be written to.
    unsafe { core::ptr::write_volatile(word, 0) }
}

#[inline(always)]
fn counters() -> Option<*mut CpuCounters> {
    COUNTERS.get_ptr_mut(0)
}

/// Counts one, by a `COUNTER_` constant.
#[inline(always)]
pub(crate) fn count(counter: u32) {
    if let Some(cpu) = counters() {
        count_on(cpu, counter);
    }
}

#[inline(always)]
fn count_on(cpu: *mut CpuCounters, counter: u32) {
    if counter < COUNTER_COUNT {
        // SAFETY: the index is below the array's length.
        add(unsafe { &raw mut (*cpu).values[counter as usize] }, 1);
    }
}

/// An event that could not become a record.
#[inline(always)]
pub(crate) fn lose(cause: u32) {
    if let Some(cpu) = counters() {
        count_on(cpu, COUNTER_OTHERS);
        note_loss(cpu, cause);
    }
}

#[inline(always)]
fn note_loss(cpu: *mut CpuCounters, cause: u32) {
    count_on(cpu, cause);
    // SAFETY: `cpu` points to this CPU's map value.
    unsafe {
        if (*cpu).untold_losses == 0 {
            (*cpu).first_untold_loss_ns = now_ns();
        }
        add(&raw mut (*cpu).untold_losses, 1);
    }
}

/// Sends one record, or counts its loss under `cause`; true if it was sent.
#[inline(always)]
pub(crate) fn send<T: 'static>(record: T, cause: u32) -> bool {
    send_waking((COUNTER_OTHERS, cause), wake_up, write(record))
}

/// As [`send`], for what is made at the return of a call that was counted at its entry.
#[inline(always)]
pub(crate) fn send_return<T: 'static>(record: T, cause: u32) -> bool {
    send_waking((COUNTER_RETURNS, cause), wake_up, write(record))
}

/// As [`send`], for a free.
#[inline(always)]
pub(crate) fn send_free<T: 'static>(record: T) -> bool {
    send_waking((COUNTER_FREES, COUNTER_LOST_FREE), wake_up, write(record))
}

/// As [`send`], and wakes the reader at once: what it has to look at may be gone soon.
#[inline(always)]
pub(crate) fn send_urgent<T: 'static>(record: T, cause: u32) -> bool {
    send_waking((COUNTER_OTHERS, cause), || u64::from(BPF_RB_FORCE_WAKEUP), write(record))
}

/// As [`send`], for a record that is too large to be made elsewhere first: `fill` makes it
/// in its place.
#[inline(always)]
pub(crate) fn send_filled<T: 'static>(cause: u32, fill: impl FnOnce(*mut T)) -> bool {
    send_waking((COUNTER_OTHERS, cause), wake_up, fill)
}

#[inline(always)]
fn write<T>(record: T) -> impl FnOnce(*mut T) {
    // SAFETY: it is called with room for a record, reserved in the ring.
    move |place| unsafe { place.write(record) }
}

#[inline(always)]
fn send_waking<T: 'static>(
    (attempts, cause): (u32, u32),
    wake_up: impl FnOnce() -> u64,
    fill: impl FnOnce(*mut T),
) -> bool {
    let Some(cpu) = counters() else { return false };
    tell_losses(cpu);
    count_on(cpu, attempts);
    let Some(mut place) = EVENTS.reserve::<T>(0) else {
        note_loss(cpu, cause);
        return false;
    };
    fill(place.as_mut_ptr());
    place.submit(wake_up());
    true
}

/// Sends a record that can be done without if there is no room for it: then it was never
/// attempted. True if it was sent.
#[inline(always)]
pub(crate) fn send_if_room<T: 'static>(record: T) -> bool {
    let Some(cpu) = counters() else { return false };
    let Some(mut place) = EVENTS.reserve::<T>(0) else { return false };
    place.write(record);
    place.submit(u64::from(BPF_RB_NO_WAKEUP));
    count_on(cpu, COUNTER_OTHERS);
    true
}

/// Sends the frames of a stack; true if they were sent.
#[inline(always)]
pub(crate) fn send_stack(stack: *const StackRecord, frame_count: u32) -> bool {
    let Some(cpu) = counters() else { return false };
    tell_losses(cpu);
    count_on(cpu, COUNTER_OTHERS);
    let frame_count = (frame_count as usize).min(MAX_FRAMES);
    // SAFETY: header and frames lie together in a StackRecord, whose frames array
    // has MAX_FRAMES elements.
    let bytes = unsafe {
        core::slice::from_raw_parts(
            stack.cast::<u8>(),
            size_of::<StackHeader>() + frame_count * size_of::<u64>(),
        )
    };
    if EVENTS.output::<[u8]>(bytes, wake_up()).is_err() {
        note_loss(cpu, COUNTER_LOST_STACK);
        return false;
    }
    true
}

/// Puts a marker into the stream where records of this CPU are missing.
#[inline(always)]
fn tell_losses(cpu: *mut CpuCounters) {
    // SAFETY: `cpu` points to this CPU's map value.
    if unsafe { (*cpu).untold_losses } == 0 {
        return;
    }
    let Some(mut place) = EVENTS.reserve::<Loss>(0) else {
        return;
    };
    // SAFETY: as above.
    let (first_lost_ns, lost_count) =
        unsafe { ((*cpu).first_untold_loss_ns, take(&raw mut (*cpu).untold_losses)) };
    place.write(Loss {
        header: Header {
            kind: KIND_LOSS,
            padding: 0,
            probe: 0,
            image: 0,
            target: 0,
            time_ns: now_ns(),
        },
        first_lost_ns,
        lost_count,
    });
    place.submit(u64::from(BPF_RB_NO_WAKEUP));
    count_on(cpu, COUNTER_OTHERS);
}

/// A wake-up costs more than all the rest of a record, so it is spent only on a
/// reader that sleeps while much waits for it; it also wakes by itself in time.
#[inline(always)]
fn wake_up() -> u64 {
    let quiet = u64::from(BPF_RB_NO_WAKEUP);
    let Some(consumer) = CONSUMER.get_ptr_mut(0) else {
        return quiet;
    };
    // SAFETY: points to the map's only element, whose fields are plain integers;
    // a race with the reader costs at most one wake-up too many or too late.
    unsafe {
        if (*consumer).waiting == 0
            || EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) < u64::from((*consumer).watermark_bytes)
        {
            return quiet;
        }
        (*consumer).waiting = 0;
    }
    u64::from(BPF_RB_FORCE_WAKEUP)
}
