//! Copies of stacks that could not be walked here, for the collector to walk. They cost
//! the target microseconds and the ring much room, so they are rationed.

use core::{
    ffi::c_void,
    mem::offset_of,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::{
        bpf_get_smp_processor_id,
        generated::{
            bpf_probe_read_kernel as read_kernel_bytes, bpf_probe_read_user as read_user_bytes,
        },
    },
};
use memscope_common::{
    control::{COPIES_PER_CPU, COUNTER_LOST_STACK},
    record::{
        COPY_PART_BYTES, CopiedParts, Header, KIND_STACK_COPY, MAX_COPY_BYTES, MAX_COPY_PARTS,
        OUTCOME_NO_TABLES, OUTCOME_TABLES_REPLACED, OUTCOME_UNKNOWN_CODE, OUTCOME_UNSUPPORTED_RULE,
        PART_UNREADABLE, STACK_TABLES_OLD, StackCopy, copied_place,
    },
};
use memscope_ebpf::mix;

use crate::{
    emit,
    maps::{CONSUMER, COPIED, COPIES, COPY_TIMES, EVENTS},
    stack::CallerRegisters,
};

/// What is read or cannot be read as a whole.
const PAGE_BYTES: u64 = 4096;
/// Copies per target: one each this often in the long run …
const INTERVAL_NS: u64 = 400_000;
/// … and this many at once: what is allocated while a library's tables are being made.
const BURST: u64 = 8192;

/// Room for a copy while it is made.
#[repr(C)]
pub(crate) struct NewCopy {
    /// 1 while somebody uses it.
    in_use: u64,
    /// How many parts there are up to the last that was read.
    part_count: u64,
    /// How many of them are to be sent.
    sent_count: u64,
    record: CopyRecord,
}

/// [`StackCopy`] as it is sent, but for the parts that are not.
#[repr(C)]
struct CopyRecord {
    copy: StackCopy,
    parts: CopiedParts,
    bytes: [u8; MAX_COPY_BYTES],
}

/// Whether the collector could walk what could not be walked here: with tables that are not
/// here yet, or by what the file says in full. Where there is no unwind information, or the
/// stack itself is at fault, it could do no better.
///
/// `walked_bytes` of the stack were walked: if that led beyond what would be copied, its
/// frames are more than a copy would give. But by old tables it may have led anywhere.
#[inline(always)]
pub(crate) fn is_wanted(outcome: u16, flags: u16, walked_bytes: u64) -> bool {
    match outcome {
        // None of its frames can be used.
        OUTCOME_TABLES_REPLACED => true,
        _ if flags & STACK_TABLES_OLD != 0 => true,
        OUTCOME_NO_TABLES | OUTCOME_UNKNOWN_CODE | OUTCOME_UNSUPPORTED_RULE => {
            walked_bytes < (MAX_COPY_BYTES - COPY_PART_BYTES) as u64
        }
        _ => false,
    }
}

/// Whether a target's ration allows for another copy now, and the ring has room for it
/// besides what must not be lost.
#[inline(always)]
pub(crate) fn is_allowed(target: u32, now_ns: u64) -> bool {
    let (Some(consumer), Some(next)) = (CONSUMER.get_ptr(0), COPY_TIMES.get_ptr_mut(target)) else {
        return false;
    };
    // SAFETY: elements of array maps, which are never removed. Two threads at once may
    // take one ration twice.
    unsafe {
        let due_ns = *next;
        if (*consumer).copy_limit_bytes == 0
            || due_ns > now_ns + BURST * INTERVAL_NS
            || EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > u64::from((*consumer).copy_limit_bytes)
        {
            return false;
        }
        *next = due_ns.max(now_ns) + INTERVAL_NS;
    }
    true
}

/// Sends the upper part of the stack; true if it was sent.
#[inline(always)]
pub(crate) fn send(
    caller: &CallerRegisters,
    header: Header,
    stack: u64,
    outcome: u16,
    flags: u16,
) -> bool {
    let Some((index, new)) = take_room() else { return false };
    let start = StackCopy {
        header: Header { kind: KIND_STACK_COPY, ..header },
        stack,
        return_avma: caller.return_avma,
        sp_avma: caller.sp_avma,
        rbp: caller.rbp,
        rbx: caller.rbx,
        r12_to_r15: caller.r12_to_r15,
        outcome,
        flags,
        byte_count: 0,
    };
    // SAFETY: an element of an array map, which is never removed, and is this program's until it
    // is given back.
    unsafe {
        (*new).record.copy = start;
        let is_sent = fill_and_send(index) != 0;
        write_volatile(&raw mut (*new).in_use, 0);
        is_sent
    }
}

/// Room on this CPU that nobody uses. A task stays on its CPU while a program runs, but can be
/// preempted.
#[inline(always)]
fn take_room() -> Option<(u32, *mut NewCopy)> {
    const { assert!(COPIES_PER_CPU == 2) };
    // SAFETY: the helper takes nothing.
    let first = unsafe { bpf_get_smp_processor_id() } * COPIES_PER_CPU;
    // No loop: of one that begins at an unknown number, verifiers see no end.
    take_if_free(first).or_else(|| take_if_free(first + 1))
}

#[inline(always)]
fn take_if_free(index: u32) -> Option<(u32, *mut NewCopy)> {
    let new = COPIES.get_ptr_mut(index)?;
    // SAFETY: an element of an array map, which is never removed.
    let was_in_use = emit::exchange(unsafe { &raw mut (*new).in_use }, 1);
    (was_in_use == 0).then_some((index, new))
}

/// Reads the stack that the room at `index` says, and sends what the collector does not know of
/// it. 1 if it was sent.
///
/// A function with a name of its own, which the verifier looks at once, whatever calls it. Counts
/// are kept in the map, where the verifier does not follow what they are: else it would look at
/// what comes after a loop once for each number of its rounds.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fill_and_send(index: u32) -> u32 {
    let (Some(new), Some(known)) = (COPIES.get_ptr_mut(index), COPIED.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: an element of an array map, which is never removed.
    let copy = unsafe { (*new).record.copy };
    let word_of = |part: usize| {
        // SAFETY: a place is one of the array's.
        unsafe { known.cast::<u64>().add(copied_place(copy.header.target, copy.part_avma(part))) }
    };
    // SAFETY: `new` and `known` point to elements of array maps, which are never removed; the
    // first is this program's until it is given back, words of the second are read and written
    // whole. Parts lie in the array of bytes. The helpers check the addresses they are given.
    unsafe {
        let record = &raw mut (*new).record;
        let first_part = (&raw mut (*record).bytes).cast::<u8>();
        let part_at = |part: usize| first_part.add(part * COPY_PART_BYTES).cast::<c_void>();
        read_parts(index, new, &copy, part_at);
        let part_count = read_volatile(&raw const (*new).part_count);
        write_volatile(&raw mut (*new).sent_count, 0);
        (*record).parts.sent = 0;
        for part in 0..MAX_COPY_PARTS {
            if part as u64 >= part_count {
                break;
            }
            let hash = (*record).parts.hashes[part];
            if hash == PART_UNREADABLE || read_volatile(word_of(part)) == hash {
                continue;
            }
            let sent_count = read_volatile(&raw const (*new).sent_count) as usize;
            if sent_count >= MAX_COPY_PARTS {
                break;
            }
            if sent_count != part {
                let to = part_at(sent_count);
                read_kernel_bytes(to, COPY_PART_BYTES as u32, part_at(part));
            }
            write_volatile(&raw mut (*new).sent_count, sent_count as u64 + 1);
            (*record).parts.sent |= 1 << part;
        }
        (*record).copy.byte_count = (part_count as usize * COPY_PART_BYTES) as u32;
        let sent_count = read_volatile(&raw const (*new).sent_count) as usize;
        let bytes = core::slice::from_raw_parts(
            record.cast::<u8>(),
            offset_of!(CopyRecord, bytes) + sent_count.min(MAX_COPY_PARTS) * COPY_PART_BYTES,
        );
        if !emit::send_bytes(bytes, COUNTER_LOST_STACK) {
            return 0;
        }
        // Only now: what was not sent is not known.
        for part in 0..MAX_COPY_PARTS {
            if (*record).parts.sent & 1 << part != 0 {
                write_volatile(word_of(part), (*record).parts.hashes[part]);
            }
        }
    }
    1
}

/// Reads the parts that can be read to their places, and says what they contain.
///
/// # Safety
///
/// `new` is the room at `index`, and this program's; `part_at` gives places in it.
#[inline(always)]
unsafe fn read_parts(
    index: u32,
    new: *mut NewCopy,
    copy: &StackCopy,
    part_at: impl Fn(usize) -> *mut c_void,
) {
    // SAFETY: as the caller says; the helper checks the addresses it is given.
    unsafe {
        let record = &raw mut (*new).record;
        write_volatile(&raw mut (*new).part_count, 0);
        let mut unreadable_page = 0;
        for part in 0..MAX_COPY_PARTS {
            let from_avma = copy.part_avma(part);
            let page = from_avma / PAGE_BYTES;
            let to = part_at(part);
            // A function's frame can have pages that were never touched, and the stack goes on behind them.
            if page == unreadable_page
                || read_user_bytes(to, COPY_PART_BYTES as u32, from_avma as *const c_void) != 0
            {
                unreadable_page = page;
                (*record).parts.hashes[part] = PART_UNREADABLE;
                continue;
            }
            (*record).parts.hashes[part] = hash_part(index, part as u32);
            write_volatile(&raw mut (*new).part_count, part as u64 + 1);
        }
    }
}

const PART_WORDS: usize = COPY_PART_BYTES / 8;

/// What a part contains, in a word; never [`PART_UNREADABLE`]. Four at once, as each step waits for the one before.
/// A function as the one above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hash_part(index: u32, part: u32) -> u64 {
    let Some(new) = COPIES.get_ptr(index) else { return 0 };
    // It changes nothing, but tells the verifier so.
    let part = part as usize & (MAX_COPY_PARTS - 1);
    let mut lanes = [1, 2, 3, 4];
    // SAFETY: an element of an array map, which is never removed; the part is one of its parts.
    unsafe {
        let bytes = (&raw const (*new).record.bytes).cast::<u8>();
        let words = bytes.add(part * COPY_PART_BYTES).cast::<u64>();
        for four in 0..PART_WORDS / 4 {
            for (lane, hash) in lanes.iter_mut().enumerate() {
                *hash = mix(*hash, *words.add(four * 4 + lane));
            }
        }
    }
    mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3])) | 1
}
