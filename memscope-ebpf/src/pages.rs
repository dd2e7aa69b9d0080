//! Page faults of the traced processes, and what became resident by them.
//!
//! The kernel counts what is resident of a process in `mm_struct.rss_stat`, and tells of each change
//! of a counter (`rss_stat`), but not by how much. So a counter is read there, while its CPU can do
//! nothing else with it: it is a sum, and what each CPU has yet to add to it, which is added when it
//! has become much (`percpu_counter_add_batch`). What this CPU's part, or the sum, has changed by
//! since the last look is what was counted now.
//!
//! The fault that it was for is told after it was handled, once (`mm_account_fault`), and has the
//! registers of the program. What becomes resident otherwise (`MAP_POPULATE`, `mlock`) is summed.

use core::{
    ffi::c_void,
    ptr::{self, read_volatile, write_volatile},
};

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
        generated::{bpf_loop, bpf_map_lookup_percpu_elem},
    },
    programs::{PerfEventContext, RawTracePointContext},
};
use memscope_common::{
    control::{
        COUNTER_LOST_PAGE_FAULT, MEMORY_COUNTERS, MemoryOnCpu, MemorySums, PageCpu, PageOffsets,
        ThreadState,
    },
    record::{
        KIND_PAGE_FAULT, PageFault, RESIDENT_ANONYMOUS, RESIDENT_FILE, RESIDENT_KINDS,
        RESIDENT_SHARED,
    },
};
use memscope_ebpf::counted_pages;

use crate::{
    emit,
    maps::{MEMORIES, MEMORY_CPUS, PAGE_CPUS},
    process,
    stack::CallerRegisters,
    threads,
};

/// Written by the loader.
#[unsafe(no_mangle)]
static PAGE_OFFSETS: PageOffsets = PageOffsets {
    task_memory: 0,
    task_flags: 0,
    task_minor_faults: 0,
    task_major_faults: 0,
    memory_counters: 0,
    counter_bytes: 0,
    counter_sum: 0,
    counter_of_cpus: 0,
    array_values: 0,
    batch: 0,
    known: 0,
    padding: 0,
};

/// `MM_SWAPENTS`: what it counts is not resident.
const SWAPPED_OUT: usize = 2;

/// `PF_KTHREAD`: the task is a thread of the kernel.
const IS_KERNEL_THREAD: u32 = 0x0020_0000;

/// More CPUs than any kernel has (`NR_CPUS`).
const MAX_CPUS: u32 = 1 << 13;

#[inline(always)]
fn offsets() -> PageOffsets {
    // SAFETY: a constant of the object, written before it was loaded.
    unsafe { read_volatile(&raw const PAGE_OFFSETS) }
}

/// Something of the kernel's memory; 0 if it cannot be read.
#[inline(always)]
fn kernel<T: Default>(avma: u64) -> T {
    // SAFETY: the helper fails on an address that cannot be read.
    unsafe { bpf_probe_read_kernel(avma as *const T) }.unwrap_or_default()
}

/// Where a counter of a process's memory is.
#[inline(always)]
fn counter_place(offsets: &PageOffsets, memory: u64, counter: usize) -> u64 {
    memory
        .wrapping_add(u64::from(offsets.memory_counters))
        .wrapping_add(counter as u64 * u64::from(offsets.counter_bytes))
}

/// What a CPU has yet to add to a counter.
#[inline(always)]
fn not_added(offsets: &PageOffsets, counter: u64, cpu: *mut PageCpu) -> i64 {
    let of_cpus: u64 = kernel(counter.wrapping_add(u64::from(offsets.counter_of_cpus)));
    i64::from(kernel::<i32>(of_cpus.wrapping_add(begin_of(offsets, cpu))))
}

/// Where the memory of a CPU begins: `cpu` lies in it where the map says.
#[inline(always)]
fn begin_of(offsets: &PageOffsets, cpu: *mut PageCpu) -> u64 {
    // SAFETY: a map value. What is written into one is a number when it is read again, which is
    // the only way to make one of these addresses that verifiers allow.
    let (own, map) = unsafe {
        let begin = read_volatile(&raw const (*cpu).begin);
        if begin != 0 {
            return begin;
        }
        write_volatile(&raw mut (*cpu).own, cpu as u64);
        write_volatile(&raw mut (*cpu).map, &raw const PAGE_CPUS as u64);
        (read_volatile(&raw const (*cpu).own), read_volatile(&raw const (*cpu).map))
    };
    let values: u64 = kernel(map.wrapping_add(u64::from(offsets.array_values)));
    let begin = own.wrapping_sub(values);
    // SAFETY: as above.
    unsafe { write_volatile(&raw mut (*cpu).begin, begin) };
    begin
}

/// `rss_stat`: a counter of a process's memory has changed, on this CPU.
#[inline(always)]
pub(crate) fn counted(context: &RawTracePointContext) -> Option<()> {
    let offsets = offsets();
    if offsets.known == 0 {
        return None;
    }
    let memory: u64 = context.arg(0);
    let counter = context.arg::<i32>(1) as usize;
    if counter >= MEMORY_COUNTERS || counter == SWAPPED_OUT {
        return None;
    }
    let Some(on_cpu) = MEMORY_CPUS.get_ptr_mut(memory) else {
        return begin(memory, &offsets);
    };
    let cpu = PAGE_CPUS.get_ptr_mut(0)?;
    let place = counter_place(&offsets, memory, counter);
    let now = not_added(&offsets, place, cpu);
    // SAFETY: a map value of this CPU; the index is below the array's length.
    let before = unsafe {
        if (*on_cpu).known == 0 {
            return None;
        }
        core::mem::replace(&mut (*on_cpu).not_added[counter & (MEMORY_COUNTERS - 1)], now)
    };
    let mut pages = now.wrapping_sub(before);
    if now == 0 {
        // Perhaps it has added its part.
        let sums = MEMORIES.get_ptr_mut(memory)?;
        let sum: i64 = kernel(place.wrapping_add(u64::from(offsets.counter_sum)));
        // SAFETY: a map value; the index is below the array's length.
        let known = unsafe { &raw mut (*sums).sums[counter & (MEMORY_COUNTERS - 1)] };
        // SAFETY: as above.
        let changed = sum.wrapping_sub(unsafe { read_volatile(known) });
        if changed != 0 {
            let counted = counted_pages(before, now, changed, i64::from(offsets.batch));
            emit::add(known.cast(), counted.added as u64);
            pages = counted.pages;
        }
    }
    let kind = match counter {
        0 => RESIDENT_FILE,
        1 => RESIDENT_ANONYMOUS,
        _ => RESIDENT_SHARED,
    };
    changed(cpu, memory, &offsets, kind, pages)
}

/// What is resident of a process's memory has changed.
#[inline(always)]
fn changed(
    cpu: *mut PageCpu,
    memory: u64,
    offsets: &PageOffsets,
    kind: usize,
    pages: i64,
) -> Option<()> {
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let of_task: u64 = kernel(task.wrapping_add(u64::from(offsets.task_memory)));
    let target = process::current_target();
    let is_own = of_task == memory && target.is_some();
    if !is_own {
        // What other processes change of it they do as they begin or end, and it can be the memory of
        // another process by now.
        let flags: u32 = kernel(task.wrapping_add(u64::from(offsets.task_flags)));
        if flags & IS_KERNEL_THREAD == 0 {
            return None;
        }
    }
    if pages < 0 {
        // SAFETY: a map value of this CPU; the index is below the array's length.
        emit::add(unsafe { &raw mut (*cpu).gone_pages[kind] }, pages.unsigned_abs());
        return None;
    }
    if !is_own || !process::is_enabled(target?.0) {
        add_elsewhere(cpu, kind, pages as u64);
        return None;
    }
    let Some(state) = threads::of_task(threads::task_registers()) else {
        add_elsewhere(cpu, kind, pages as u64);
        return None;
    };
    let faults = faults_of(offsets, task);
    if state.faults_before != faults {
        leave(state, cpu);
        state.faults_before = faults;
    }
    state.resident_pages[kind] += pages as u64;
    Some(())
}

/// Page faults of a task, until now.
#[inline(always)]
fn faults_of(offsets: &PageOffsets, task: u64) -> u64 {
    let count = |offset: u32| kernel::<u64>(task.wrapping_add(u64::from(offset)));
    count(offsets.task_minor_faults).wrapping_add(count(offsets.task_major_faults))
}

/// What no page fault has told of became resident elsewhere.
#[inline(always)]
fn leave(state: &mut ThreadState, cpu: *mut PageCpu) {
    for kind in 0..RESIDENT_KINDS {
        add_elsewhere(cpu, kind, state.resident_pages[kind]);
        emit::clear(&mut state.resident_pages[kind]);
    }
}

#[inline(always)]
fn add_elsewhere(cpu: *mut PageCpu, kind: usize, pages: u64) {
    // SAFETY: a map value of this CPU; the index is below the array's length.
    emit::add(unsafe { &raw mut (*cpu).elsewhere_pages[kind] }, pages);
}

/// A page fault was handled.
#[inline(always)]
pub(crate) fn faulted(context: &PerfEventContext, is_major: bool) -> Option<()> {
    let offsets = offsets();
    if offsets.known == 0 {
        return None;
    }
    let (target, epoch) = process::current_target()?;
    if !process::is_enabled(target) {
        return None;
    }
    let registers = threads::task_registers();
    let state = threads::of_recorded_task(registers)?;
    // SAFETY: the helper takes nothing.
    let faults = faults_of(&offsets, unsafe { bpf_get_current_task() });
    // This one is among them.
    if state.faults_before.wrapping_add(1) != faults {
        leave(state, PAGE_CPUS.get_ptr_mut(0)?);
    }
    let mut resident_pages = [0u16; RESIDENT_KINDS];
    for kind in 0..RESIDENT_KINDS {
        resident_pages[kind] = state.resident_pages[kind] as u16;
        emit::clear(&mut state.resident_pages[kind]);
    }
    let header = process::header(KIND_PAGE_FAULT, target, epoch);
    // SAFETY: the registers of the current task, which is in the kernel.
    let stack = unsafe { CallerRegisters::of_task(registers, false) }.stack(state, header);
    let record = PageFault {
        header,
        // SAFETY: the context of a perf event.
        address_avma: unsafe { read_volatile(&raw const (*context.ctx).addr) },
        stack,
        thread: bpf_get_current_pid_tgid() as u32,
        resident_pages,
        is_major: u16::from(is_major),
    };
    if !emit::send(record, COUNTER_LOST_PAGE_FAULT) {
        let cpu = PAGE_CPUS.get_ptr_mut(0)?;
        for kind in 0..RESIDENT_KINDS {
            add_elsewhere(cpu, kind, u64::from(resident_pages[kind]));
        }
    }
    Some(())
}

/// The current thread ends, or what is left of it runs another image.
#[inline(always)]
pub(crate) fn forget(state: &mut ThreadState) {
    if offsets().known != 0
        && let Some(cpu) = PAGE_CPUS.get_ptr_mut(0)
    {
        leave(state, cpu);
    }
}

/// The current process, which is traced, runs a new image, in new memory.
#[inline(always)]
pub(crate) fn replaced() {
    let offsets = offsets();
    if offsets.known != 0 {
        // Where its counters are, another process's may have been.
        follow(memory_of_task(&offsets), &offsets);
    }
}

/// A traced process has begun a copy of itself, whose memory this is.
#[inline(always)]
pub(crate) fn forked(memory: u64) {
    let offsets = offsets();
    if offsets.known != 0 {
        follow(memory, &offsets);
    }
}

#[inline(always)]
fn memory_of_task(offsets: &PageOffsets) -> u64 {
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    kernel(task.wrapping_add(u64::from(offsets.task_memory)))
}

/// Begins to follow the counters of a process's memory, if it is traced. What is being counted now
/// is not known yet.
#[inline(always)]
fn begin(memory: u64, offsets: &PageOffsets) -> Option<()> {
    process::current_target()?;
    if memory_of_task(offsets) == memory { follow(memory, offsets) } else { None }
}

/// Follows the counters of a process's memory from now on.
#[inline(always)]
fn follow(memory: u64, offsets: &PageOffsets) -> Option<()> {
    let mut sums = MemorySums { sums: [0; MEMORY_COUNTERS] };
    for counter in 0..MEMORY_COUNTERS {
        let place = counter_place(offsets, memory, counter);
        sums.sums[counter] = kernel(place.wrapping_add(u64::from(offsets.counter_sum)));
    }
    MEMORIES.insert(memory, sums, 0).ok()?;
    let unknown = MemoryOnCpu { not_added: [0; MEMORY_COUNTERS], known: 0 };
    MEMORY_CPUS.insert(memory, unknown, 0).ok()?;
    let mut memory = memory;
    // SAFETY: the callback is given what it expects, which outlives the loop.
    unsafe {
        bpf_loop(MAX_CPUS, look_at_cpu as *mut c_void, (&raw mut memory).cast::<c_void>(), 0);
    }
    None
}

/// Reads what a CPU has yet to add; 1 ends the loop.
///
/// # Safety
///
/// `memory` is what [`begin`] gives to the loop.
unsafe extern "C" fn look_at_cpu(number: u32, memory: *mut u64) -> i64 {
    let offsets = offsets();
    let key = 0u32;
    // SAFETY: the helpers give the value on a CPU, or null if there is none; see above.
    let (cpu, on_cpu, memory) = unsafe {
        (
            bpf_map_lookup_percpu_elem(
                (&raw const PAGE_CPUS).cast_mut().cast(),
                ptr::from_ref(&key).cast(),
                number,
            )
            .cast::<PageCpu>(),
            bpf_map_lookup_percpu_elem(
                (&raw const MEMORY_CPUS).cast_mut().cast(),
                memory.cast_const().cast(),
                number,
            )
            .cast::<MemoryOnCpu>(),
            *memory,
        )
    };
    if cpu.is_null() || on_cpu.is_null() {
        return 1;
    }
    for counter in 0..MEMORY_COUNTERS {
        let place = counter_place(&offsets, memory, counter);
        // SAFETY: a map value.
        unsafe { (*on_cpu).not_added[counter] = not_added(&offsets, place, cpu) };
    }
    // SAFETY: as above.
    unsafe { (*on_cpu).known = 1 };
    0
}
