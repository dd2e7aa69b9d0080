//! The only place that writes to the ring buffer, and the only one that counts
//! what is lost.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use core::{
    arch::asm,
    ptr::{read_volatile, write_volatile},
};
use memscope_common::{
    control::{
        COUNTER_ATTEMPTED, COUNTER_COUNT, COUNTER_LOST_STACK, CpuCounters, CpuRing, SPARE_SLOTS,
        StackRecord,
    },
    record::{Header, KIND_LOSS, Loss, MAX_FRAMES, StackHeader},
};

use crate::{
    maps::{CONSUMER, COUNTERS, CPU_RINGS, EVENTS, SLOTS},
    settings,
};

/// The clock of all records.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds without losing increments to a task that preempts this one on its CPU.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, increment: u64) {
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
    unsafe {
        asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) counter, inout(reg) value)
    }
    value
}

/// The same value, of which LLVM knows nothing: so it makes no copies of what follows, one for each value, which the verifier
/// would have to follow each.
#[inline(always)]
pub(crate) fn opaque(mut value: u64) -> u64 {
    // SAFETY: it changes nothing. Not empty: two lines of the source cannot be at one instruction (`check_btf_line`).
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) }
    value
}

/// Takes the value and leaves another one, as one step.
#[inline(always)]
pub(crate) fn exchange(place: *mut u64, mut value: u64) -> u64 {
    // SAFETY: `place` points to an aligned u64 of a map value.
    unsafe { asm!("{1} = xchg_64({0} + 0, {1})", in(reg) place, inout(reg) value) }
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
fn cpu_ring() -> Option<*mut CpuRing> {
    // SAFETY: the helper takes nothing.
    CPU_RINGS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
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
        count_on(cpu, COUNTER_ATTEMPTED);
        note_loss(cpu, cause);
    }
}

#[inline(always)]
fn note_loss(cpu: *mut CpuCounters, cause: u32) {
    count_on(cpu, cause);
    if let Some(ring) = cpu_ring() {
        // SAFETY: an element of an array map, whose words are written whole.
        unsafe { write_volatile(&raw mut (*ring).has_untold_losses, 1) };
    }
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
    send_waking(record, cause, wake_up)
}

/// As [`send`], and wakes the reader at once: what it has to look at may be gone soon.
#[inline(always)]
pub(crate) fn send_urgent<T: 'static>(record: T, cause: u32) -> bool {
    send_waking(record, cause, || u64::from(BPF_RB_FORCE_WAKEUP))
}

#[inline(always)]
fn send_waking<T: 'static>(record: T, cause: u32, wake_up: impl FnOnce() -> u64) -> bool {
    let Some(cpu) = counters() else { return false };
    tell_losses(cpu);
    count_on(cpu, COUNTER_ATTEMPTED);
    let Some(mut place) = EVENTS.reserve::<T>(0) else {
        note_loss(cpu, cause);
        return false;
    };
    place.write(record);
    place.submit(wake_up());
    true
}

/// Puts a small record into a slot of this CPU, or counts its loss under `cause`; true if it
/// has one. That it was attempted is told by the head of the CPU's slots. Nothing is called and nothing locked:
/// this is where most of an event's cost would be.
#[inline(always)]
pub(crate) fn send_small(words: [u64; 3], cause: u32) -> bool {
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slots_log2 = settings::slots_log2() & 31;
    let Some(ring) = CPU_RINGS.get_ptr_mut(cpu) else { return false };
    // SAFETY: an element of an array map, whose words are read and written whole.
    let (taken, read, has_untold_losses) = unsafe {
        (
            read_volatile(&raw const (*ring).head),
            read_volatile(&raw const (*ring).tail),
            read_volatile(&raw const (*ring).has_untold_losses),
        )
    };
    if has_untold_losses != 0 {
        tell_losses_of_cpu();
    }
    let waiting = taken.wrapping_sub(read);
    if waiting + SPARE_SLOTS >= 1 << slots_log2 {
        lose(cause);
        return false;
    }
    // Another task can have come between; each gets a slot of its own.
    // SAFETY: as above.
    let number = next(unsafe { &raw mut (*ring).head });
    let Some(slot) = SLOTS.get_ptr_mut(slot_index(cpu, number)) else { return false };
    // SAFETY: as above. The sequence is written last: on x86-64 others see writes in order.
    unsafe {
        write_volatile(&raw mut (*slot).words[0], words[0]);
        write_volatile(&raw mut (*slot).words[1], words[1]);
        write_volatile(&raw mut (*slot).words[2], words[2]);
        write_volatile(&raw mut (*slot).sequence, number + 1);
    }
    wake_for_slots(waiting);
    true
}

/// Looks at the slot that the next small record goes into. What a program has written must be in the processor's cache
/// before it can return to the traced code (IRET waits for that), and this slot was used last by the reader's processor, or so long
/// ago that it is in no cache. So it comes while there is other work to do, and not when there is none.
#[inline(always)]
pub(crate) fn foresee_small() {
    // SAFETY: the helper takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(ring) = CPU_RINGS.get_ptr(cpu) else { return };
    // SAFETY: as in `send_small`.
    let number = unsafe { read_volatile(&raw const (*ring).head) };
    if let Some(slot) = SLOTS.get_ptr(slot_index(cpu, number)) {
        // SAFETY: as in `send_small`; what is there does not matter.
        unsafe { read_volatile(&raw const (*slot).sequence) };
    }
}

/// Where a record of that number is among the slots of all CPUs.
#[inline(always)]
fn slot_index(cpu: u32, number: u64) -> u32 {
    let slots_log2 = settings::slots_log2() & 31;
    cpu << slots_log2 | number as u32 & ((1 << slots_log2) - 1)
}

/// Wakes a reader that sleeps while many slots wait for it.
#[inline(always)]
fn wake_for_slots(waiting: u64) {
    let Some(consumer) = CONSUMER.get_ptr_mut(0) else { return };
    // SAFETY: as in `wake_up`.
    unsafe {
        if (*consumer).waiting == 0 || waiting < u64::from((*consumer).watermark_slots) {
            return;
        }
        (*consumer).waiting = 0;
    }
    wake();
}

/// Wakes the reader. Only the ring buffer can; a record that is given up does it as well.
#[inline(always)]
pub(crate) fn wake() {
    if let Some(place) = EVENTS.reserve::<u64>(0) {
        place.discard(u64::from(BPF_RB_FORCE_WAKEUP));
    }
}

/// Sends a record that can be done without if there is no room for it: then it was never
/// attempted. True if it was sent.
#[inline(always)]
pub(crate) fn send_if_room<T: 'static>(record: T) -> bool {
    let Some(cpu) = counters() else { return false };
    let Some(mut place) = EVENTS.reserve::<T>(0) else { return false };
    place.write(record);
    place.submit(u64::from(BPF_RB_NO_WAKEUP));
    count_on(cpu, COUNTER_ATTEMPTED);
    true
}

/// Sends the frames of a stack; true if they were sent.
#[inline(always)]
pub(crate) fn send_stack(stack: *const StackRecord) -> bool {
    // SAFETY: a record that its owner has made.
    let frame_count = unsafe { (*stack).header.frame_count as usize }.min(MAX_FRAMES);
    // SAFETY: header and frames lie together in a StackRecord, whose frames array
    // has MAX_FRAMES elements.
    let bytes = unsafe {
        core::slice::from_raw_parts(
            stack.cast::<u8>(),
            size_of::<StackHeader>() + frame_count * size_of::<u64>(),
        )
    };
    send_bytes(bytes, COUNTER_LOST_STACK)
}

/// Sends a stack of one frame; true if it was sent.
#[inline(always)]
pub(crate) fn send_caller(header: StackHeader, frame_avma: u64) -> bool {
    let record = CallerRecord { header, frame_avma };
    // SAFETY: all of it, which is integers without padding.
    send_bytes(
        unsafe {
            core::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<CallerRecord>())
        },
        COUNTER_LOST_STACK,
    )
}

/// A stack's record with one frame.
#[repr(C)]
struct CallerRecord {
    header: StackHeader,
    frame_avma: u64,
}

/// Sends a record that lies somewhere else, or counts its loss under `cause`; true if it was sent.
#[inline(always)]
pub(crate) fn send_bytes(bytes: &[u8], cause: u32) -> bool {
    let Some(cpu) = counters() else { return false };
    tell_losses(cpu);
    count_on(cpu, COUNTER_ATTEMPTED);
    if EVENTS.output::<[u8]>(bytes, wake_up()).is_err() {
        note_loss(cpu, cause);
        return false;
    }
    true
}

/// The same as [`tell_losses`]. Never inlined, as it is rare.
#[inline(never)]
fn tell_losses_of_cpu() -> u32 {
    counters().map_or(0, |cpu| {
        tell_losses(cpu);
        1
    })
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
    // Before they are taken: what is lost from now on is told of the next time.
    if let Some(ring) = cpu_ring() {
        // SAFETY: as in `note_loss`.
        unsafe { write_volatile(&raw mut (*ring).has_untold_losses, 0) };
    }
    // SAFETY: as above.
    let (first_lost_ns, lost_count) =
        unsafe { ((*cpu).first_untold_loss_ns, exchange(&raw mut (*cpu).untold_losses, 0)) };
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
    count_on(cpu, COUNTER_ATTEMPTED);
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
