//! Which instruction of a function to probe.
//!
//! A uprobe replaces an instruction by a breakpoint. Some instructions the kernel then
//! emulates; any other it copies elsewhere and single-steps, which costs several times
//! as much. So the probe goes on an emulated instruction, if one near the entry does
//! as well as the first.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// Most instructions looked at for a site.
const MAX_STEPS: usize = 8;

/// What a probe's program will want to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeNeed {
    /// Arguments as they were passed, and the return address on top of the stack.
    EveryCall,
    /// The same, but a call whose first argument is 0 does not matter.
    CallsWithBlock,
}

/// Where to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// Distance from the function's first instruction.
    pub offset: u64,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
    /// Why there.
    pub reason: &'static str,
}

/// Chooses the site in a function's machine code (x86-64).
///
/// Walks from the entry over instructions that change neither memory nor stack nor
/// the argument registers, up to the first emulated one. Gives the entry itself if
/// there is none, or if the function jumps back into what was walked over: a site
/// there would be reached more often than the function is called.
#[must_use]
pub fn choose_site(code: &[u8], need: ProbeNeed) -> ProbeSite {
    let entry = |reason| ProbeSite { offset: 0, emulated: false, reason };
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut found = None;
    let mut after_test = false;
    for _ in 0..MAX_STEPS {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        let offset = instruction.ip();
        if after_test && is_jump_if_zero(&instruction) {
            // What goes on after this jump has a block. If the next instruction is
            // emulated as well, the probe there is not even reached without one.
            let next = decoder.decode();
            if is_emulated(&next) {
                found = Some((next.ip(), "emulated, and not reached without a block"));
                break;
            }
        }
        if is_emulated(&instruction) {
            let reason = if offset == 0 {
                "the entry is emulated"
            } else {
                "emulated, and nothing that matters is before it"
            };
            found = Some((offset, reason));
            break;
        }
        if !is_harmless(&instruction) {
            return entry("nothing emulated comes before the arguments change");
        }
        after_test = need == ProbeNeed::CallsWithBlock && is_test_of_first_argument(&instruction);
    }
    match found {
        None => entry("no emulated instruction near the entry"),
        Some((0, reason)) => ProbeSite { offset: 0, emulated: true, reason },
        Some((offset, _)) if jumps_into(code, offset) => {
            entry("the function jumps back to where the probe would be")
        }
        Some((offset, reason)) => ProbeSite { offset, emulated: true, reason },
    }
}

/// Instructions that `arch/x86/kernel/uprobes.c` emulates (`branch_setup_xol_ops`,
/// `push_setup_xol_ops`): near jumps and calls with an immediate, conditional jumps,
/// one-byte nop, and pushes of a 64-bit general register. They hold for 5.15 to 6.18.
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push => {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64()
        }
        Mnemonic::Nop => instruction.len() == 1,
        _ => {
            matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
        ) && matches!(instruction.op0_kind(), OpKind::NearBranch64)
            // These two are no 7x or 0f 8x jumps.
            && !matches!(instruction.mnemonic(), Mnemonic::Jrcxz | Mnemonic::Jecxz | Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne)
        }
    }
}

/// Registers that carry arguments (System V ABI for x86-64, 3.2.3), and the stack pointer.
const KEPT: [Register; 7] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
    Register::RSP,
];

/// Whether the probe's program finds everything as at the entry after this instruction.
fn is_harmless(instruction: &Instruction) -> bool {
    if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
        return false;
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let writes = |access: OpAccess| {
        !matches!(
            access,
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        )
    };
    let clobbers = info
        .used_registers()
        .iter()
        .any(|used| writes(used.access()) && KEPT.contains(&used.register().full_register()));
    let stores = info.used_memory().iter().any(|used| writes(used.access()));
    !clobbers && !stores
}

fn is_test_of_first_argument(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Test
        && instruction.op0_register() == Register::RDI
        && instruction.op1_register() == Register::RDI
}

fn is_jump_if_zero(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Je && instruction.op0_kind() == OpKind::NearBranch64
}

/// Whether any branch of the function leads behind its entry up to the site.
fn jumps_into(code: &[u8], site: u64) -> bool {
    let decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    decoder.into_iter().any(|instruction| {
        let target = instruction.near_branch_target();
        instruction.op0_kind() == OpKind::NearBranch64 && target > 0 && target <= site
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: &[u8], need: ProbeNeed, offset: u64, emulated: bool) {
        let site = choose_site(code, need);
        assert_eq!((site.offset, site.emulated), (offset, emulated), "{}", site.reason);
    }

    #[test]
    fn glibc_2_36() {
        // malloc: push %r12
        check(&[0x41, 0x54, 0x55, 0x53], ProbeNeed::EveryCall, 0, true);
        // free: test %rdi,%rdi; je +0xbf; push %rbp; lea -0x10(%rdi),%rsi; ret
        let free =
            [0x48, 0x85, 0xff, 0x0f, 0x84, 0xbf, 0, 0, 0, 0x55, 0x48, 0x8d, 0x77, 0xf0, 0xc3];
        check(&free, ProbeNeed::CallsWithBlock, 9, true);
        check(&free, ProbeNeed::EveryCall, 3, true);
        // posix_memalign: cmpb $0x0,0x140201(%rip); push %r12
        let posix_memalign = [0x80, 0x3d, 0x01, 0x02, 0x14, 0, 0, 0x41, 0x54, 0xc3];
        check(&posix_memalign, ProbeNeed::EveryCall, 7, true);
        // memalign: cmpb $0x0,0x140e71(%rip); je +7; jmp
        let memalign = [0x80, 0x3d, 0x71, 0x0e, 0x14, 0, 0, 0x74, 7, 0xe9, 0, 0, 0, 0];
        check(&memalign, ProbeNeed::EveryCall, 7, true);
        // reallocarray: mov %rsi,%rax; mul %rdx (clobbers rdx)
        let reallocarray = [0x48, 0x89, 0xf0, 0x48, 0xf7, 0xe2, 0x48, 0x89, 0xc6, 0x70, 5];
        check(&reallocarray, ProbeNeed::EveryCall, 0, false);
    }

    #[test]
    fn what_matters_is_never_walked_over() {
        // endbr64; push %rbp
        check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55], ProbeNeed::EveryCall, 4, true);
        // sub $8,%rsp; push %rbx: the return address is no longer on top
        check(&[0x48, 0x83, 0xec, 8, 0x53], ProbeNeed::EveryCall, 0, false);
        // mov %rsi,%rdi; push %rbx: an argument is gone
        check(&[0x48, 0x89, 0xf7, 0x53], ProbeNeed::EveryCall, 0, false);
        // mov %rax,(%rsi); push %rbx: a store
        check(&[0x48, 0x89, 0x06, 0x53], ProbeNeed::EveryCall, 0, false);
        // mov %edi,%edi (clears the upper half); push %rbx
        check(&[0x89, 0xff, 0x53], ProbeNeed::EveryCall, 0, false);
        // xor %eax,%eax; push %rbx; jmp -3 (back to the push)
        check(&[0x31, 0xc0, 0x53, 0xeb, 0xfd], ProbeNeed::EveryCall, 0, false);
        // ret at once
        check(&[0xc3], ProbeNeed::EveryCall, 0, false);
        check(&[], ProbeNeed::EveryCall, 0, false);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_site_within_them(code: Vec<u8>) {
            for need in [ProbeNeed::EveryCall, ProbeNeed::CallsWithBlock] {
                let site = choose_site(&code, need);
                proptest::prop_assert!(site.offset == 0 || (site.offset as usize) < code.len());
            }
        }
    }
}
