//! Which instructions the kernel emulates under a uprobe, on x86-64.

/// NOPs of two to eight bytes as compilers and assemblers write them (`x86_nops` in
/// `arch/x86/kernel/alternative.c`).
const LONG_NOPS: [&[u8]; 7] = [
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// What a kernel emulates beyond what all of them do.
///
/// Linux 6.19 adds moves of a register to itself and the like (`insn_is_nop`), which no
/// compiler writes into a function. `endbr64`, tests, comparisons and moves are
/// single-stepped by all kernels up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatedForms {
    /// NOPs of more than one byte: Linux 6.18. Before 6.2, kernels without a certain
    /// fix even refuse a probe on the one of two bytes.
    pub long_nops: bool,
}

impl EmulatedForms {
    /// Those of a kernel version.
    #[must_use]
    pub fn of_kernel(major: u8, minor: u8) -> Self {
        Self { long_nops: (major, minor) >= (6, 18) }
    }

    /// Those of the running kernel; if it does not say its version, what all have.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        procfs::sys::kernel::Version::current().map_or(Self { long_nops: false }, |version| {
            Self::of_kernel(version.major, version.minor)
        })
    }

    /// Whether a probe on the instruction with these bytes is emulated: `branch_setup_xol_ops`
    /// and `push_setup_xol_ops` in `arch/x86/kernel/uprobes.c`.
    ///
    /// No prefixes: with most of them, these kernels refuse the probe.
    pub(super) fn emulate(self, instruction: &[u8]) -> bool {
        match instruction {
            // push of a 64-bit register; nop; jcc and jmp of 8 and 32 bits; call
            [0x50..=0x57]
            | [0x41, 0x50..=0x57]
            | [0x90]
            | [0x70..=0x7f | 0xeb, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
            | [0xe8 | 0xe9, _, _, _, _] => true,
            _ => self.long_nops && LONG_NOPS.contains(&instruction),
        }
    }
}

/// Whether the kernel writes to the process's stack when it emulates this instruction (`emulate_push_stack` in
/// `arch/x86/kernel/uprobes.c`): a trap takes longer by a twelfth then, see docs/allocators.md.
pub(super) fn writes_stack(instruction: &[u8]) -> bool {
    matches!(instruction, [0x50..=0x57] | [0x41, 0x50..=0x57] | [0xe8, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_the_kernel_sources() {
        let (old, new) = (EmulatedForms::of_kernel(5, 17), EmulatedForms::of_kernel(6, 18));
        assert_eq!(old, EmulatedForms::of_kernel(6, 17));
        assert_eq!(new, EmulatedForms::of_kernel(7, 0));
        let by_all: [&[u8]; 9] = [
            &[0x55],                   // push %rbp
            &[0x41, 0x57],             // push %r15
            &[0x90],                   // nop
            &[0x74, 0x10],             // je
            &[0x0f, 0x8f, 0, 1, 0, 0], // jg
            &[0xeb, 0x10],             // jmp
            &[0xe9, 0, 1, 0, 0],       // jmp
            &[0xe8, 0, 1, 0, 0],       // call
            &[0x7f, 0x80],             // jg, backwards
        ];
        let by_none: [&[u8]; 13] = [
            &[],
            &[0xf3, 0x0f, 0x1e, 0xfa], // endbr64
            &[0x48, 0x55],             // push %rbp with a prefix it does not need
            &[0x40, 0x55],             // the same
            &[0xff, 0x37],             // push (%rdi)
            &[0x6a, 0x00],             // push $0
            &[0x41, 0x90],             // xchg %r8,%rax
            &[0xf3, 0x90],             // pause
            &[0xe3, 0x10],             // jrcxz
            &[0xe2, 0x10],             // loop
            &[0x2e, 0x74, 0x10],       // je with a hint
            &[0xff, 0xe0],             // jmp *%rax
            &[0xc3],                   // ret
        ];
        for forms in [old, new] {
            assert!(by_all.iter().all(|bytes| forms.emulate(bytes)));
            assert!(!by_none.iter().any(|bytes| forms.emulate(bytes)));
        }
        let pushing: [&[u8]; 3] = [&[0x55], &[0x41, 0x57], &[0xe8, 0, 1, 0, 0]];
        for bytes in by_all {
            assert_eq!(writes_stack(bytes), pushing.contains(&bytes), "{bytes:x?}");
        }
        for nop in LONG_NOPS {
            assert!(new.emulate(nop) && !old.emulate(nop), "{nop:?}");
        }
    }
}
