//! Copies of stacks that could not be walked here, for the collector to walk. They cost
//! the target microseconds and the ring much room, so they are rationed.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA, helpers::generated::bpf_probe_read_user as read_user_bytes,
};
use memscope_common::{
    control::COUNTER_LOST_STACK,
    record::{
        COPY_PART_BYTES, Header, KIND_STACK_COPY, MAX_COPY_BYTES, OUTCOME_NO_TABLES,
        OUTCOME_TABLES_REPLACED, OUTCOME_UNKNOWN_CODE, OUTCOME_UNSUPPORTED_RULE, STACK_TABLES_OLD,
        StackCopy,
    },
};

use crate::{
    emit,
    maps::{CONSUMER, COPY_TIMES, EVENTS},
    stack::CallerRegisters,
};

/// Copies per target: one each this often in the long run …
const INTERVAL_NS: u64 = 400_000;
/// … and this many at once: what is allocated while a library's tables are being made.
const BURST: u64 = 8192;

/// [`StackCopy`] with room for the stack.
#[repr(C)]
struct CopyRecord {
    copy: StackCopy,
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
    emit::send_filled::<CopyRecord>(COUNTER_LOST_STACK, |record| {
        let mut byte_count = 0;
        for part in 0..MAX_COPY_BYTES / COPY_PART_BYTES {
            let offset = part * COPY_PART_BYTES;
            // SAFETY: the part lies in the record; the helper checks the user address.
            let failed = unsafe {
                read_user_bytes(
                    (&raw mut (*record).bytes).cast::<u8>().add(offset).cast::<c_void>(),
                    COPY_PART_BYTES as u32,
                    start.start_avma().wrapping_add(offset as u64) as *const c_void,
                )
            };
            if failed != 0 {
                break;
            }
            byte_count = (offset + COPY_PART_BYTES) as u32;
        }
        // SAFETY: `record` is reserved for this.
        unsafe {
            (*record).copy = StackCopy { byte_count, ..start };
        }
    })
}
