//! What happens to the traced processes: exec, end of a thread, new code.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_probe_read_user},
    programs::{BtfTracePointContext, ProbeContext},
};
use aya_log_ebpf::debug;
use memscope_common::{
    control::{COUNTER_LOST_PROCESS, Cookie},
    record::{
        CodeChanged, Header, KIND_CODE_CHANGED, KIND_EXEC, KIND_THREAD_EXIT, ProcessExec,
        ThreadExit,
    },
    unwind::Epoch,
};
use memscope_ebpf::may_unmap;

use crate::{
    emit,
    maps::{EPOCHS, PROCESSES, TARGETS},
    pages, threads,
};

/// The traced process that the current thread belongs to, if any, and what has changed
/// in it.
#[inline(always)]
pub(crate) fn current_target() -> Option<(u32, *mut Epoch)> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the map's values are written by the collector and never freed while
    // the program reads them (RCU).
    let target = *unsafe { PROCESSES.get(process) }?;
    Some((target, EPOCHS.get_ptr_mut(target)?))
}

#[inline(always)]
pub(crate) fn header(kind: u8, target: u32, epoch: *const Epoch) -> Header {
    Header {
        kind,
        padding: 0,
        probe: 0,
        // SAFETY: points to an element of an array map, which is never removed.
        image: unsafe { (*epoch).image } as u16,
        target: target as u16,
        time_ns: emit::now_ns(),
    }
}

/// `sched_process_exec`: the old image is gone, the new one has run nothing yet.
#[inline(always)]
pub(crate) fn exec(context: &BtfTracePointContext) -> Option<()> {
    threads::forget(context);
    let (target, epoch) = current_target()?;
    // SAFETY: as above; exec leaves one thread, so nobody else writes it.
    unsafe { (*epoch).image += 1 };
    pages::replaced();
    let old_thread: i32 = context.arg(1);
    let leader = (bpf_get_current_pid_tgid() >> 32) as i32;
    let record = ProcessExec {
        header: header(KIND_EXEC, target, epoch),
        leader_replaced: u32::from(old_thread != leader),
        padding: 0,
    };
    debug!(context, "target {} is now image {}", target, record.header.image);
    emit::send_urgent(record, COUNTER_LOST_PROCESS);
    Some(())
}

/// `sched_process_exit`, which runs once per thread, on that thread.
#[inline(always)]
pub(crate) fn thread_exit(context: &BtfTracePointContext) -> Option<()> {
    threads::forget(context);
    let (target, epoch) = current_target()?;
    let record = ThreadExit {
        header: header(KIND_THREAD_EXIT, target, epoch),
        thread: bpf_get_current_pid_tgid() as u32,
        padding: 0,
    };
    emit::send(record, COUNTER_LOST_PROCESS);
    Some(())
}

/// The dynamic loader tells debuggers, by calling an empty function, that it has
/// changed what is mapped; here it tells us.
#[inline(always)]
pub(crate) fn code_changed(context: &ProbeContext) -> Option<()> {
    // SAFETY: the helper reads the cookie of the link that called this program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) });
    let target = u32::from(cookie.target());
    let epoch = EPOCHS.get_ptr_mut(target)?;
    // SAFETY: points to an element of an array map, which is never removed.
    let state_avma = unsafe { (*TARGETS.get_ptr(target)?).loader_state_avma };
    let says = if state_avma == 0 {
        LOADER_STATE_UNKNOWN
    } else {
        // SAFETY: the helper checks the user address and fails on an unreadable one.
        unsafe { bpf_probe_read_user((state_avma + R_STATE) as *const u32) }
            .unwrap_or(LOADER_STATE_UNKNOWN)
    };
    // SAFETY: as above. Two threads cannot both be here: the loader holds its lock.
    unsafe {
        if may_unmap((*epoch).loader_state, says) {
            (*epoch).removals += 1;
        }
        (*epoch).loader_state = says;
    }
    let record = CodeChanged { header: header(KIND_CODE_CHANGED, target, epoch) };
    debug!(context, "the loader of target {} has changed its code", target);
    emit::send_urgent(record, COUNTER_LOST_PROCESS);
    Some(())
}

/// Position of `r_state` in `struct r_debug` (glibc `<link.h>`, the same in musl).
const R_STATE: u64 = 24;
/// None of the loader's own.
const LOADER_STATE_UNKNOWN: u32 = u32::MAX;
