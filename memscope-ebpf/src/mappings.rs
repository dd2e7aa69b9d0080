//! What the traced processes have mapped, as far as they say it themselves: `mmap`, `munmap`, `mremap`
//! and `brk`, whoever in the process calls them.
//!
//! The programs run in the kernel's functions of these system calls, which have the program's
//! registers as their only argument (`__x64_sys_`, arch/x86/include/asm/syscall_wrapper.h). Where the
//! kernel lets none run there, they run at the entry and exit of all system calls.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::pt_regs, helpers::bpf_get_current_pid_tgid};
use memscope_common::{
    control::{COUNTER_LOST_MAPPING, Cookie, ThreadState},
    record::{
        Header, KIND_MAPPING_CHANGE, MAPPING_BY_ALLOCATOR, MAPPING_BY_UNKNOWN,
        MAPPING_CHANGE_BREAK, MAPPING_CHANGE_MAPPED, MAPPING_CHANGE_MOVED, MAPPING_CHANGE_UNMAPPED,
        MAPPING_KEEPS_OLD, MAPPING_OF_FILE, MAPPING_SHARED, MappingChange,
    },
    unwind::Epoch,
};
use memscope_ebpf::{hugetlb_bytes, is_error, rounded_up};

use crate::{emit, process, settings, stack::CallerRegisters, threads};

/// include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const MAP_ANONYMOUS: u64 = 0x20;
const MREMAP_DONTUNMAP: u64 = 4;
const PAGE_BYTES: u64 = 4096;

/// arch/x86/entry/syscalls/syscall_64.tbl
pub(crate) const MMAP: u64 = 9;
pub(crate) const MUNMAP: u64 = 11;
pub(crate) const BRK: u64 = 12;
pub(crate) const MREMAP: u64 = 25;

/// A system call of a process whose mappings are recorded.
struct Call {
    registers: *const pt_regs,
    target: u32,
    epoch: *mut Epoch,
}

impl Call {
    #[inline(always)]
    fn current() -> Option<Self> {
        let (target, epoch) = process::current_target()?;
        if !process::is_enabled(target) {
            return None;
        }
        Some(Self { registers: threads::task_registers(), target, epoch })
    }

    /// Arguments in order, up to the fourth.
    #[inline(always)]
    fn arguments(&self) -> [u64; 4] {
        // SAFETY: the registers of the current task, which is in the kernel.
        unsafe {
            [
                read_volatile(&raw const (*self.registers).rdi),
                read_volatile(&raw const (*self.registers).rsi),
                read_volatile(&raw const (*self.registers).rdx),
                read_volatile(&raw const (*self.registers).r10),
            ]
        }
    }

    #[inline(always)]
    fn header(&self) -> Header {
        process::header(KIND_MAPPING_CHANGE, self.target, self.epoch)
    }

    /// Who has made the call, and from where.
    ///
    /// What is to be recorded of the call itself is read after this: verifiers before Linux 6.12
    /// count what is kept meanwhile as well against the 512 bytes of stack.
    #[inline(always)]
    fn origin(&self, state: &mut ThreadState) -> Origin {
        // SAFETY: the registers of the current task, which is in the kernel.
        let caller = unsafe { CallerRegisters::of_task(self.registers, true) };
        let mut header = self.header();
        // Where blocks are sampled, calls without one are not followed to their end.
        let flags = if settings::samples() != 0 {
            MAPPING_BY_UNKNOWN
        } else if state.cookie != 0 && caller.sp_avma < state.sp_avma {
            header.probe = Cookie(state.cookie).probe();
            MAPPING_BY_ALLOCATOR
        } else {
            0
        };
        Origin { header, flags, stack: caller.stack(state, header) }
    }

    #[inline(always)]
    fn mapped(&self, origin: &Origin, result: u64) -> MappingChange {
        let [_, size_bytes, _, flags] = self.arguments();
        let mut record = record(origin, MAPPING_CHANGE_MAPPED);
        record.size_bytes = rounded_up(size_bytes, hugetlb_bytes(flags).unwrap_or(PAGE_BYTES));
        if !is_error(result) {
            record.address_avma = result;
        }
        if flags & MAP_ANONYMOUS == 0 {
            record.flags |= MAPPING_OF_FILE;
        }
        if flags & MAP_TYPE != MAP_PRIVATE {
            record.flags |= MAPPING_SHARED;
        }
        record
    }

    #[inline(always)]
    fn moved(&self, origin: &Origin, result: u64, began_ns: u64) -> MappingChange {
        let [old_address_avma, old_size_bytes, size_bytes, flags] = self.arguments();
        let mut record = record(origin, MAPPING_CHANGE_MOVED);
        record.address_avma = result;
        record.size_bytes = rounded_up(size_bytes, PAGE_BYTES);
        record.old_address_avma = old_address_avma;
        record.old_size_bytes = rounded_up(old_size_bytes, PAGE_BYTES);
        record.began_ns = began_ns;
        if flags & MREMAP_DONTUNMAP != 0 || old_size_bytes == 0 {
            record.flags |= MAPPING_KEEPS_OLD;
        }
        record
    }
}

/// Where a call comes from.
struct Origin {
    header: Header,
    flags: u16,
    stack: u32,
}

/// A record of which the rest is to be said.
#[inline(always)]
fn record(origin: &Origin, change: u16) -> MappingChange {
    MappingChange {
        header: origin.header,
        address_avma: 0,
        size_bytes: 0,
        old_address_avma: 0,
        old_size_bytes: 0,
        began_ns: 0,
        stack: origin.stack,
        thread: bpf_get_current_pid_tgid() as u32,
        change,
        flags: origin.flags,
        padding: 0,
    }
}

/// `brk` gives the new end of the heap; the old one if it has changed nothing.
#[inline(always)]
fn broken(origin: &Origin, result: u64) -> MappingChange {
    let mut record = record(origin, MAPPING_CHANGE_BREAK);
    record.address_avma = rounded_up(result, PAGE_BYTES);
    record
}

/// `munmap` is entered. What it will refuse is no change.
#[inline(always)]
pub(crate) fn unmapping() -> Option<()> {
    let call = Call::current()?;
    let [address_avma, size_bytes, _, _] = call.arguments();
    if address_avma % PAGE_BYTES != 0 || size_bytes == 0 {
        return None;
    }
    let origin = Origin { header: call.header(), flags: 0, stack: 0 };
    let mut record = record(&origin, MAPPING_CHANGE_UNMAPPED);
    record.address_avma = address_avma;
    record.size_bytes = rounded_up(size_bytes, PAGE_BYTES);
    emit::send(record, COUNTER_LOST_MAPPING);
    Some(())
}

/// `mremap` is entered.
#[inline(always)]
pub(crate) fn moving() -> Option<()> {
    let call = Call::current()?;
    threads::of_recorded_task(call.registers)?.remap_began_ns = emit::now_ns();
    Some(())
}

/// `mmap`, `mremap` or `brk` returns.
#[inline(always)]
pub(crate) fn returned(number: u64, result: u64) -> Option<()> {
    if number == MREMAP && is_error(result) {
        return None;
    }
    let call = Call::current()?;
    let state = threads::of_recorded_task(call.registers)?;
    let origin = call.origin(state);
    let record = match number {
        MMAP => call.mapped(&origin, result),
        MREMAP => call.moved(&origin, result, state.remap_began_ns),
        _ => broken(&origin, result),
    };
    emit::send(record, COUNTER_LOST_MAPPING);
    Some(())
}

/// Any system call is entered.
#[inline(always)]
pub(crate) fn any_entered(number: u64) -> Option<()> {
    if !matches!(number, MUNMAP | MREMAP) || process::calls_as_32_bit() {
        return None;
    }
    if number == MUNMAP { unmapping() } else { moving() }
}

/// Any system call returns.
#[inline(always)]
pub(crate) fn any_returned(number: u64, result: u64) -> Option<()> {
    if !matches!(number, MMAP | MREMAP | BRK) || process::calls_as_32_bit() {
        return None;
    }
    returned(number, result)
}
