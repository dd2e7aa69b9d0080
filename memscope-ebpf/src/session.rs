//! What only programs of uprobe sessions can ask, which run at a function's entry and at its
//! return (Linux 6.13, `BPF_TRACE_UPROBE_SESSION`).

use core::{arch::asm, ffi::c_void};

use memscope_common::control::SESSION_IS_RETURN;

/// Whether the program runs at a function's return.
///
/// The kernel has a function for it that helper numbers do not reach (`bpf_session_is_return`,
/// kernel/trace/bpf_trace.c), and the compiler cannot yet describe such a function. So this
/// calls a number that no helper has; before the program is loaded the collector puts the
/// kernel's function in its place. From Linux 7.0 on it takes the context; before, it takes
/// nothing and ignores it.
#[inline(always)]
pub(crate) fn is_return(context: *mut c_void) -> bool {
    let result: u64;
    // SAFETY: a call as any other: it takes r1, gives r0 and may change r1 to r5.
    unsafe {
        asm!(
            "call {function}",
            function = const SESSION_IS_RETURN,
            out("r0") result,
            inout("r1") context => _,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
        );
    }
    // Of a bool only the lowest byte is given.
    result & 0xff != 0
}
