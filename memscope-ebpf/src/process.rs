//! What happens to the traced processes: exec, end of a thread, new code.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task_btf,
        bpf_probe_read_kernel, bpf_probe_read_user, generated::bpf_get_current_ancestor_cgroup_id,
    },
    programs::{BtfTracePointContext, ProbeContext},
};
use aya_log_ebpf::debug;
use memscope_common::{
    control::{
        COMM_BYTES, COMM_EXCLUDED, COMM_SELECTED, COUNTER_LOST_PROCESS, EXCLUDE_COMM, MAX_GROUPS,
        MAX_TARGETS, PROCESS_BORROWS, PROCESS_TARGET, SELECT_ALL, SELECT_COMM, SELECT_GROUP,
        Target, TaskOffsets,
    },
    record::{
        BEGUN_BY_CHILD_EXEC, BEGUN_BY_EXEC, BEGUN_BY_FORK, CodeChanged, Header, KIND_CODE_CHANGED,
        KIND_EXEC, KIND_PROCESS_BEGIN, KIND_PROCESS_EXIT, KIND_THREAD_EXIT, NO_STATUS,
        ProcessBegin, ProcessExec, ProcessExit, ThreadExit,
    },
    unwind::Epoch,
};
use memscope_ebpf::{may_unmap, wait_status};

use crate::{
    emit, hit,
    maps::{
        COMMS, EPOCHS, GROUPS, NEW_TARGET, NUMBER_OF_TARGETS, NUMBERS, PROCESSES, SPACES, TARGETS,
    },
    pages, settings, threads,
};

/// Written by the loader.
#[unsafe(no_mangle)]
static TASK_OFFSETS: TaskOffsets = TaskOffsets {
    tgid: 0,
    memory: 0,
    exit_code: 0,
    leader: 0,
    signal: 0,
    live: 0,
    flags: 0,
    group_exit_code: 0,
    system_call_status: 0,
    known: 0,
};

#[inline(always)]
fn offsets() -> TaskOffsets {
    // SAFETY: a constant of the object, written before it was loaded.
    unsafe { read_volatile(&raw const TASK_OFFSETS) }
}

/// A field of one of the kernel's structs.
#[inline(always)]
fn field<T>(of: *const c_void, offset: u32) -> Option<T> {
    let place = of.cast::<u8>().wrapping_add(offset as usize).cast::<T>();
    // SAFETY: the helper checks the address and fails on an unreadable one.
    unsafe { bpf_probe_read_kernel(place) }.ok()
}

#[inline(always)]
fn current_process() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The system call was made in the way of 32-bit programs, whose numbers mean others
/// (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;

/// Whether the system call that the current thread is in was made so. Where the kernel's memory may not
/// be read it is not known, and taken to be.
#[inline(always)]
pub(crate) fn calls_as_32_bit() -> bool {
    let offsets = offsets();
    if offsets.known == 0 {
        return true;
    }
    // SAFETY: the helper gives the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const c_void;
    field::<u32>(task, offsets.system_call_status).is_none_or(|status| status & TS_COMPAT != 0)
}

/// What is known of a process, if it is traced.
#[inline(always)]
fn word_of(process: u32) -> Option<u32> {
    // SAFETY: the map's values are words, and not freed while the program reads them (RCU).
    unsafe { PROCESSES.get(process) }.copied().filter(|word| !is_over(word & PROCESS_TARGET))
}

/// Whether its recording has ended. Then nothing is told, as nobody would take it.
#[inline(always)]
fn is_over(target: u32) -> bool {
    // SAFETY: an element of an array map, which is never removed.
    TARGETS.get_ptr(target).is_none_or(|target| unsafe { (*target).is_over != 0 })
}

/// The traced process that the current thread belongs to, if any, and what has changed
/// in it.
#[inline(always)]
pub(crate) fn current_target() -> Option<(u32, *mut Epoch)> {
    let target = u32::from(hit::current_target()?);
    if is_over(target) {
        return None;
    }
    Some((target, EPOCHS.get_ptr_mut(target)?))
}

/// Whether what it does is recorded.
#[inline(always)]
pub(crate) fn is_enabled(target: u32) -> bool {
    // SAFETY: an element of an array map, which is never removed.
    TARGETS.get_ptr(target).is_some_and(|target| unsafe { (*target).enabled != 0 })
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

/// `sched_process_fork`, on the parent's thread; the child has run nothing yet.
#[inline(always)]
pub(crate) fn fork(context: &BtfTracePointContext) -> Option<()> {
    if settings::follows() == 0 {
        return None;
    }
    let parent = word_of(current_process())?;
    let offsets = offsets();
    let child: *const c_void = context.arg(1);
    let process: u32 = field(child, offsets.tgid)?;
    if process == current_process() {
        // A thread.
        return None;
    }
    // SAFETY: the helper gives the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const c_void;
    let (own, childs): (u64, u64) = (field(task, offsets.memory)?, field(child, offsets.memory)?);
    if own == childs {
        // What it does until its exec, it does to its parent's blocks.
        if PROCESSES.insert(process, parent | PROCESS_BORROWS, 0).is_err() {
            emit::lose(COUNTER_LOST_PROCESS);
        }
        return None;
    }
    pages::forked(childs);
    begin(process, Some(parent & PROCESS_TARGET), BEGUN_BY_FORK)
}

/// Begins to trace a process.
#[inline(always)]
fn begin(process: u32, parent: Option<u32>, begun_by: u32) -> Option<()> {
    let begun = new_target(process, parent, begun_by);
    if begun.is_none() {
        emit::lose(COUNTER_LOST_PROCESS);
        // Else it would stay in its parent's name.
        PROCESSES.remove(process).ok();
    }
    begun
}

#[inline(always)]
fn new_target(process: u32, parent: Option<u32>, begun_by: u32) -> Option<()> {
    let target = emit::next(NUMBERS.get_ptr_mut(NUMBER_OF_TARGETS)?);
    if target >= u64::from(MAX_TARGETS) {
        return None;
    }
    let target = target as u32;
    let (block, epoch) = (TARGETS.get_ptr_mut(target)?, EPOCHS.get_ptr_mut(target)?);
    let is_copy = begun_by == BEGUN_BY_FORK;
    let (of, parent_epoch) = match parent {
        Some(parent) => (TARGETS.get_ptr(parent)?, EPOCHS.get_ptr(parent)?),
        None => (NEW_TARGET.get_ptr(0)?, epoch.cast_const()),
    };
    // SAFETY: elements of array maps, which are never removed; the new one is in nobody else's
    // hands yet.
    let parent_image = unsafe {
        *block = Target { may_stop: 0, ..*of };
        if is_copy {
            *epoch = *parent_epoch;
        }
        (*parent_epoch).image as u16
    };
    if is_copy {
        let (from, to) = (SPACES.get_ptr(parent?)?, SPACES.get_ptr_mut(target)?);
        // SAFETY: as above; the word is read and written whole.
        unsafe { *to = read_volatile(from) };
    }
    PROCESSES.insert(process, target, 0).ok()?;
    let record = ProcessBegin {
        header: header(KIND_PROCESS_BEGIN, target, epoch),
        pid: process,
        begun_by,
        parent_target: parent.unwrap_or(PROCESS_TARGET) as u16,
        parent_image,
        padding: 0,
        comm: comm(),
    };
    if !emit::send_urgent(record, COUNTER_LOST_PROCESS) {
        // What it does would be nobody's. Its loss is counted.
        PROCESSES.remove(process).ok();
    }
    Some(())
}

#[inline(always)]
fn comm() -> [u8; COMM_BYTES] {
    bpf_get_current_comm().unwrap_or_default()
}

/// `sched_process_exec`: the old image is gone, the new one has run nothing yet.
#[inline(always)]
pub(crate) fn exec(context: &BtfTracePointContext) -> Option<()> {
    threads::forget(context);
    let process = current_process();
    let Some(word) = word_of(process) else {
        if !is_selected() {
            return None;
        }
        pages::replaced();
        return begin(process, None, BEGUN_BY_EXEC);
    };
    if is_excluded() {
        return leave(process, word);
    }
    pages::replaced();
    if word & PROCESS_BORROWS != 0 {
        return begin(process, Some(word & PROCESS_TARGET), BEGUN_BY_CHILD_EXEC);
    }
    let target = word & PROCESS_TARGET;
    let epoch = EPOCHS.get_ptr_mut(target)?;
    // SAFETY: as above; exec leaves one thread, so nobody else writes it.
    unsafe { (*epoch).image += 1 };
    let old_thread: i32 = context.arg(1);
    let record = ProcessExec {
        header: header(KIND_EXEC, target, epoch),
        leader_replaced: u32::from(old_thread != process as i32),
        padding: 0,
        comm: comm(),
    };
    debug!(context, "target {} is now image {}", target, record.header.image);
    emit::send_urgent(record, COUNTER_LOST_PROCESS);
    Some(())
}

/// A traced process executes a program that is not to be traced.
#[inline(always)]
fn leave(process: u32, word: u32) -> Option<()> {
    PROCESSES.remove(process).ok();
    if word & PROCESS_BORROWS == 0 {
        tell_exit(word & PROCESS_TARGET, NO_STATUS)?;
    }
    Some(())
}

#[inline(always)]
fn tell_exit(target: u32, wait_status: u32) -> Option<()> {
    let epoch = EPOCHS.get_ptr(target)?;
    let header = header(KIND_PROCESS_EXIT, target, epoch);
    emit::send_urgent(ProcessExit { header, wait_status, padding: 0 }, COUNTER_LOST_PROCESS);
    // Nobody is left to walk by it, and the collector may use its place again.
    if let Some(space) = SPACES.get_ptr_mut(target) {
        // SAFETY: an element of an array map, whose words are written whole.
        unsafe { *space = 0 };
    }
    Some(())
}

/// Whether the program that was just executed is one to be traced.
#[inline(always)]
fn is_selected() -> bool {
    let selects = settings::selects();
    // SAFETY: an element of an array map, which is never removed.
    let is_on = NEW_TARGET.get_ptr(0).is_some_and(|new| unsafe { (*new).enabled } != 0);
    if selects == 0 || !is_on || is_excluded() {
        return false;
    }
    selects & SELECT_ALL != 0
        || selects & SELECT_COMM != 0 && comm_means(COMM_SELECTED)
        || selects & SELECT_GROUP != 0 && is_in_group()
}

#[inline(always)]
fn is_excluded() -> bool {
    settings::selects() & EXCLUDE_COMM != 0 && comm_means(COMM_EXCLUDED)
}

#[inline(always)]
fn comm_means(meaning: u32) -> bool {
    // SAFETY: written before the programs run.
    unsafe { COMMS.get(comm()) }.is_some_and(|means| *means == meaning)
}

#[inline(always)]
fn is_in_group() -> bool {
    for index in 0..MAX_GROUPS as u32 {
        let Some(group) = GROUPS.get(index).filter(|group| group.id != 0) else { return false };
        // SAFETY: the helper takes any level, and gives 0 where there is no group.
        if unsafe { bpf_get_current_ancestor_cgroup_id(group.level as i32) } == group.id {
            return true;
        }
    }
    false
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
        comm: comm(),
    };
    emit::send(record, COUNTER_LOST_PROCESS);
    process_exit(target)
}

/// If that was the last thread.
#[inline(always)]
fn process_exit(target: u32) -> Option<()> {
    let offsets = offsets();
    if offsets.known == 0 {
        return None;
    }
    // SAFETY: the helper gives the current task.
    let task = unsafe { bpf_get_current_task_btf() } as *const c_void;
    let signal: u64 = field(task, offsets.signal)?;
    let signal = signal as *const c_void;
    let live: u32 = field(signal, offsets.live)?;
    if live != 0 {
        return None;
    }
    let process = current_process();
    let word = word_of(process)?;
    PROCESSES.remove(process).ok();
    if word & PROCESS_BORROWS != 0 {
        return None;
    }
    let leader: u64 = field(task, offsets.leader)?;
    let status = wait_status(
        field(signal, offsets.flags)?,
        field(signal, offsets.group_exit_code)?,
        field(leader as *const c_void, offsets.exit_code)?,
    );
    tell_exit(target, status)
}

/// The dynamic loader tells debuggers, by calling an empty function, that it has
/// changed what is mapped; here it tells us.
#[inline(always)]
pub(crate) fn code_changed(context: &ProbeContext) -> Option<()> {
    let (target, epoch) = current_target()?;
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
