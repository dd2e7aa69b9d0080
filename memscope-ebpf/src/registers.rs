//! What registers hold that a cookie names: arguments, and the block that a call gives.

use core::{arch::asm, mem::offset_of, ptr::read_volatile};

use aya_ebpf::{bindings::pt_regs, programs::ProbeContext};
use memscope_common::control::{ArgumentIndex, FIRST_KEPT, NO_ARGUMENT};

/// Value of an argument; 0 for one that the function does not have.
#[inline(always)]
pub(crate) fn argument(context: &ProbeContext, index: ArgumentIndex) -> u64 {
    match index {
        // Most are the first, or none.
        0 => first_argument(context),
        NO_ARGUMENT => 0,
        _ => later_argument(context, index),
    }
}

/// In inline assembly, which LLVM does not merge with the loads of the others.
#[inline(always)]
fn first_argument(context: &ProbeContext) -> u64 {
    let value: u64;
    // SAFETY: the context of a uprobe is the thread's registers.
    unsafe {
        asm!(
            "{value} = *(u64 *)({registers} + {place})",
            value = out(reg) value,
            registers = in(reg) context.regs,
            place = const offset_of!(pt_regs, rdi),
            options(readonly, nostack, preserves_flags)
        );
    }
    value
}

#[inline(always)]
fn later_argument(context: &ProbeContext, index: ArgumentIndex) -> u64 {
    let registers = context.regs;
    // Volatile, because LLVM would merge the loads into one at a computed distance from
    // the context, which the verifier refuses ("dereference of modified ctx", 6.18).
    // SAFETY: the context of a uprobe is the thread's registers.
    let values = unsafe {
        [
            read_volatile(&raw const (*registers).rsi),
            read_volatile(&raw const (*registers).rdx),
            read_volatile(&raw const (*registers).rcx),
            read_volatile(&raw const (*registers).r8),
            read_volatile(&raw const (*registers).r9),
            read_volatile(&raw const (*registers).rbx),
            read_volatile(&raw const (*registers).rbp),
            read_volatile(&raw const (*registers).r12),
            read_volatile(&raw const (*registers).r13),
            read_volatile(&raw const (*registers).r14),
            read_volatile(&raw const (*registers).r15),
        ]
    };
    const { assert!(FIRST_KEPT == 6) };
    match index {
        1 => values[0],
        2 => values[1],
        3 => values[2],
        4 => values[3],
        5 => values[4],
        6 => values[5],
        7 => values[6],
        8 => values[7],
        9 => values[8],
        10 => values[9],
        11 => values[10],
        _ => 0,
    }
}

/// What is in a register, by its number; 0 for the stack pointer's.
#[inline(always)]
pub(crate) fn block_in_register(registers: *const pt_regs, register: u8) -> u64 {
    // Volatile, as in `later_argument`.
    // SAFETY: the context of a uprobe is the thread's registers.
    let values = unsafe {
        [
            read_volatile(&raw const (*registers).rax),
            read_volatile(&raw const (*registers).rcx),
            read_volatile(&raw const (*registers).rdx),
            read_volatile(&raw const (*registers).rbx),
            read_volatile(&raw const (*registers).rbp),
            read_volatile(&raw const (*registers).rsi),
            read_volatile(&raw const (*registers).rdi),
            read_volatile(&raw const (*registers).r8),
            read_volatile(&raw const (*registers).r9),
            read_volatile(&raw const (*registers).r10),
            read_volatile(&raw const (*registers).r11),
            read_volatile(&raw const (*registers).r12),
            read_volatile(&raw const (*registers).r13),
            read_volatile(&raw const (*registers).r14),
            read_volatile(&raw const (*registers).r15),
        ]
    };
    match register {
        0 => values[0],
        1 => values[1],
        2 => values[2],
        3 => values[3],
        5 => values[4],
        6 => values[5],
        7 => values[6],
        8 => values[7],
        9 => values[8],
        10 => values[9],
        11 => values[10],
        12 => values[11],
        13 => values[12],
        14 => values[13],
        15 => values[14],
        _ => 0,
    }
}
