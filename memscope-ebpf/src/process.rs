//! What happens to the traced processes: exec, end of a thread, new code.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    programs::{BtfTracePointContext, ProbeContext},
};
use aya_log_ebpf::debug;
use memscope_common::{
    control::{COUNTER_LOST_PROCESS, COUNTER_RETURN_NOT_SEEN, Cookie},
    record::{
        CodeChanged, Header, KIND_CODE_CHANGED, KIND_EXEC, KIND_THREAD_EXIT, ProcessExec,
        ThreadExit,
    },
};

use crate::{
    emit,
    maps::{IMAGES, PROCESSES, THREADS},
};

/// The traced process that the current thread belongs to, if any, and the count of
/// its images.
#[inline(always)]
fn current_target() -> Option<(u32, *mut u32)> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the map's values are written by the collector and never freed while
    // the program reads them (RCU).
    let target = *unsafe { PROCESSES.get(process) }?;
    Some((target, IMAGES.get_ptr_mut(target)?))
}

#[inline(always)]
fn header(kind: u8, target: u32, image: *const u32) -> Header {
    Header {
        kind,
        padding: 0,
        probe: 0,
        // SAFETY: points to an element of an array map, which is never removed.
        image: unsafe { *image } as u16,
        target: target as u16,
        time_ns: emit::now_ns(),
    }
}

/// `sched_process_exec`: the old image is gone, the new one has run nothing yet.
#[inline(always)]
pub(crate) fn exec(context: &BtfTracePointContext) -> Option<()> {
    let (target, image) = current_target()?;
    // SAFETY: as above; exec leaves one thread, so nobody else writes it.
    unsafe { *image += 1 };
    let old_thread: i32 = context.arg(1);
    let leader = (bpf_get_current_pid_tgid() >> 32) as i32;
    let record = ProcessExec {
        header: header(KIND_EXEC, target, image),
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
    let pid_tgid = bpf_get_current_pid_tgid();
    if let Some(state) = THREADS.get_ptr(pid_tgid) {
        // SAFETY: this thread's own map value.
        if unsafe { (*state).cookie } != 0 {
            emit::lose(COUNTER_RETURN_NOT_SEEN);
            debug!(context, "thread {} ended inside an allocator call", pid_tgid as u32);
        }
        // It was there a moment ago, and only this thread removes it.
        THREADS.remove(pid_tgid).ok();
    }
    let (target, image) = current_target()?;
    let record = ThreadExit {
        header: header(KIND_THREAD_EXIT, target, image),
        thread: pid_tgid as u32,
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
    let record = CodeChanged { header: header(KIND_CODE_CHANGED, target, IMAGES.get_ptr(target)?) };
    debug!(context, "the loader of target {} has changed its code", target);
    emit::send_urgent(record, COUNTER_LOST_PROCESS);
    Some(())
}
