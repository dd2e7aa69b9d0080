//! Walks the stack of the current thread and gives it an identity.
//!
//! This is the door behind which stacks are made: [`capture`] takes the registers
//! at a call's return and gives an identity whose frames have been sent.

use aya_ebpf::helpers::bpf_probe_read_user;
use memscope_common::{
    control::ThreadState,
    record::{
        Header, KIND_STACK, MAX_FRAMES, OUTCOME_DEPTH_LIMIT, OUTCOME_FRAME_POINTER_BROKEN,
        OUTCOME_FRAME_POINTERS_ENDED, StackHeader,
    },
};
use memscope_ebpf::{FramePointerStep, follow_frame_pointer, mix, stack_seed};

use crate::{emit, maps::SENT_STACKS};

/// Registers of the caller, just after the call returned to it.
pub(crate) struct CallerRegisters {
    /// Where the call returned to.
    pub(crate) return_avma: u64,
    pub(crate) sp_avma: u64,
    pub(crate) frame_pointer_avma: u64,
}

/// Walks, sends the frames if they were not sent before, and gives the identity.
#[inline(always)]
pub(crate) fn capture(state: *mut ThreadState, registers: &CallerRegisters, header: Header) -> u64 {
    let mut hash = mix(stack_seed(header.target, header.image), registers.return_avma);
    let mut frame_pointer_avma = registers.frame_pointer_avma;
    let mut lowest_avma = registers.sp_avma;
    let mut outcome = OUTCOME_DEPTH_LIMIT;
    let mut frame_count = 1;
    // SAFETY: `state` is a live map value; the index is below MAX_FRAMES throughout.
    unsafe { (*state).stack.frames_avma[0] = registers.return_avma };
    for index in 1..MAX_FRAMES {
        // SAFETY: the helper checks the user address and fails on an unreadable one.
        let read =
            |link_avma: u64| unsafe { bpf_probe_read_user(link_avma as *const [u64; 2]) }.ok();
        match follow_frame_pointer(frame_pointer_avma, lowest_avma, read) {
            FramePointerStep::Caller { frame_pointer_avma: next_avma, return_avma } => {
                // SAFETY: as above.
                unsafe { (*state).stack.frames_avma[index] = return_avma };
                hash = mix(hash, return_avma);
                lowest_avma = frame_pointer_avma + 16;
                frame_pointer_avma = next_avma;
                frame_count = index as u32 + 1;
            }
            FramePointerStep::Ended => {
                outcome = OUTCOME_FRAME_POINTERS_ENDED;
                break;
            }
            FramePointerStep::Broken => {
                outcome = OUTCOME_FRAME_POINTER_BROKEN;
                break;
            }
        }
    }
    let stack = mix(hash, u64::from(outcome));
    if SENT_STACKS.get_ptr(stack).is_none() {
        // SAFETY: as above.
        unsafe {
            (*state).stack.header = StackHeader {
                header: Header { kind: KIND_STACK, ..header },
                stack,
                outcome,
                frame_count,
            };
        }
        // Marked as sent only once it was.
        // SAFETY: as above.
        if emit::send_stack(unsafe { &raw const (*state).stack }, frame_count) {
            // A full map forgets an older entry; failing to remember costs a second send.
            SENT_STACKS.insert(stack, 1, 0).ok();
        }
    }
    stack
}
