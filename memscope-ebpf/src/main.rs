//! Entry points of memscope's eBPF programs.

#![no_std]
#![no_main]
// Inline assembly for BPF is what atomic additions are made of; see `emit`.
#![feature(asm_experimental_arch)]

mod alloc;
mod copy;
mod cost;
mod emit;
mod hit;
mod mappings;
mod maps;
mod memo;
mod overflow;
mod pages;
mod process;
mod registers;
mod sample;
mod sent;
mod session;
mod settings;
mod stack;
mod threads;

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::bpf_get_attach_cookie,
    macros::{btf_tracepoint, fentry, fexit, perf_event, raw_tracepoint, uprobe, uretprobe},
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, PerfEventContext, ProbeContext,
        RawTracePointContext, RetProbeContext,
    },
};
use memscope_common::{CONTRACT_VERSION, control::Cookie};

/// Read from the object by the loader.
#[unsafe(no_mangle)]
static MEMSCOPE_CONTRACT_VERSION: u32 = CONTRACT_VERSION;

/// The kernel lends its tracing helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Entry and return of malloc and its like, where the kernel has uprobe sessions. At the
/// entry, 1 means that the return is of no interest, and costs nothing. No macro makes this
/// one, because theirs give 0 always; the collector loads it, as aya knows no sessions.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn allocation_session(context: *mut c_void) -> u32 {
    let state = threads::find(context);
    // Another process's: without this, what follows would be its return's as well.
    let Some(target) = hit::target_of(state) else { return 1 };
    let begun_ns = cost::begin();
    if settings::samples() == 0 {
        emit::foresee_small();
    }
    let entry = ProbeContext::new(context);
    let spot = alloc::spot_of(&entry);
    let is_return = alloc::is_return(&entry, state, &spot);
    let followed =
        if is_return { state } else { alloc::entered::<false>(&entry, target, state, &spot) };
    // Of which call, the stack pointer tells: a session sees no returns but of outermost ones.
    let cookie = alloc::entered_cookie(followed);
    let ends = is_return || cookie.gives_at_once();
    let gives_at_once = emit::opaque(u64::from(!is_return)) != 0;
    if emit::opaque(u64::from(ends)) != 0 {
        alloc::returned(&RetProbeContext::new(context), followed, cookie, gives_at_once);
    }
    // What it says at a return, nobody asks. Alike on both ways, so that the verifier need not follow all of it twice.
    let result = u32::from(ends || followed.is_none() || cookie.notes());
    cost::end(begun_ns);
    result
}

/// Entry of malloc and its like.
#[uprobe]
fn allocation_entered(context: ProbeContext) -> u32 {
    let state = threads::find(context.as_ptr());
    let Some(target) = hit::target_of(state) else { return 0 };
    let begun_ns = cost::begin();
    alloc::entered::<false>(&context, target, state, &alloc::spot_of(&context));
    cost::end(begun_ns);
    0
}

/// Return of malloc and its like.
#[uretprobe]
fn allocation_returned(context: RetProbeContext) -> u32 {
    let begun_ns = cost::begin();
    // SAFETY: the helper reads the cookie of the link that called this program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(context.as_ptr()) });
    alloc::returned(&context, threads::find(context.as_ptr()), cookie, false);
    cost::end(begun_ns);
    0
}

/// Entry of operator new and its like, which an exception can leave. They have no return probe,
/// as the unwinder of exceptions finds no way through the kernel's return address.
#[uprobe]
fn throwing_entered(context: ProbeContext) -> u32 {
    let state = threads::find(context.as_ptr());
    let Some(target) = hit::target_of(state) else { return 0 };
    let begun_ns = cost::begin();
    alloc::entered::<true>(&context, target, state, &alloc::spot_of(&context));
    cost::end(begun_ns);
    0
}

/// An instruction by which these return.
#[uprobe]
fn throwing_exited(context: ProbeContext) -> u32 {
    let begun_ns = cost::begin();
    alloc::exited(&context);
    cost::end(begun_ns);
    0
}

/// Entry of what makes C++ exceptions.
#[uprobe]
fn exception_thrown(context: ProbeContext) -> u32 {
    alloc::thrown(&context);
    0
}

/// Entry of what every handler of a C++ exception calls first.
#[uprobe]
fn exception_caught(context: ProbeContext) -> u32 {
    alloc::caught(&context);
    0
}

/// Entry of what the C library calls as a thread ends.
#[uprobe]
fn thread_ending(context: ProbeContext) -> u32 {
    alloc::thread_ends(&context);
    0
}

/// Entry of free and its like.
#[uprobe]
fn free_entered(context: ProbeContext) -> u32 {
    let begun_ns = cost::begin();
    alloc::freed(&context);
    cost::end(begun_ns);
    0
}

/// From time to time on each processor, while a budget is kept.
#[perf_event]
fn work_sampled(context: PerfEventContext) -> u32 {
    cost::sample(&context);
    0
}

/// A new process or thread.
#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(context: BtfTracePointContext) -> i32 {
    process::fork(&context);
    0
}

/// A counter of a process's memory has changed.
#[raw_tracepoint(tracepoint = "rss_stat")]
fn memory_counted(context: RawTracePointContext) -> i32 {
    pages::counted(&context);
    0
}

/// A page fault that had not to wait was handled.
#[perf_event]
fn minor_fault(context: PerfEventContext) -> u32 {
    pages::faulted(&context, false);
    0
}

/// A page fault that had to wait was handled.
#[perf_event]
fn major_fault(context: PerfEventContext) -> u32 {
    pages::faulted(&context, true);
    0
}

/// Behind the only argument of a system call's function, the registers, is what it returns.
const RESULT: usize = 1;

/// `mmap` returns.
#[fexit(function = "__x64_sys_mmap")]
fn memory_mapped(context: FExitContext) -> i32 {
    mappings::returned(mappings::MMAP, context.arg(RESULT));
    0
}

/// `munmap` is entered.
#[fentry(function = "__x64_sys_munmap")]
fn memory_unmapping(_context: FEntryContext) -> i32 {
    mappings::unmapping();
    0
}

/// `mremap` is entered.
#[fentry(function = "__x64_sys_mremap")]
fn memory_moving(_context: FEntryContext) -> i32 {
    mappings::moving();
    0
}

/// `mremap` returns.
#[fexit(function = "__x64_sys_mremap")]
fn memory_moved(context: FExitContext) -> i32 {
    mappings::returned(mappings::MREMAP, context.arg(RESULT));
    0
}

/// `brk` returns.
#[fexit(function = "__x64_sys_brk")]
fn heap_resized(context: FExitContext) -> i32 {
    mappings::returned(mappings::BRK, context.arg(RESULT));
    0
}

/// Any system call of any process is entered.
#[btf_tracepoint(function = "sys_enter")]
fn system_call_entered(context: BtfTracePointContext) -> i32 {
    mappings::any_entered(context.arg(1));
    0
}

/// Any system call of any process returns.
#[btf_tracepoint(function = "sys_exit")]
fn system_call_returned(context: BtfTracePointContext) -> i32 {
    let registers: *const pt_regs = context.arg(0);
    // SAFETY: the registers of the current task, which is in the kernel.
    let number = unsafe { read_volatile(&raw const (*registers).orig_rax) };
    mappings::any_returned(number, context.arg(1));
    0
}

/// exec.
#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(context: BtfTracePointContext) -> i32 {
    process::exec(&context);
    0
}

/// End of a thread.
#[btf_tracepoint(function = "sched_process_exit")]
fn thread_exit(context: BtfTracePointContext) -> i32 {
    process::thread_exit(&context);
    0
}

/// The dynamic loader has mapped or unmapped libraries.
#[uprobe]
fn code_changed(context: ProbeContext) -> u32 {
    process::code_changed(&context);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}
