//! Which calls never return.
//!
//! Compilers know it of functions that end the program, and put other code behind their calls. It is seen in the code of
//! what is called: no way leads from its entry to a return, as all end where a function is called whose name says that it
//! never returns. glibc's `__libc_message` aborts if its first argument says so; so the constants that registers hold are
//! followed (Wegman and Zadeck 1991), into what is called as well.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::{
    exits::CodeView,
    site::{Effects, OF_CALLER},
};

/// Most instructions followed for one function, those of what it calls among them.
const MAX_STEPS: usize = 1 << 14;
/// Most calls within each other that are followed.
const MAX_CALLS: usize = 4;

/// The calls and jumps of a function by which it never goes on, by their positions. It is so long.
pub(super) fn endless_transfers(
    start_svma: u64,
    length_bytes: u64,
    code: &CodeView<'_>,
    known: &mut KnownFunctions,
) -> BTreeSet<u64> {
    let mut following = Following { code, known, steps_left: MAX_STEPS };
    let mut found = BTreeMap::new();
    let outermost = Outermost { start_svma, length_bytes, found: &mut found };
    match following.returns(start_svma, Constants::default(), MAX_CALLS, Some(outermost)) {
        Some(_) => found.into_iter().filter(|(_, ends)| *ends).map(|(svma, _)| svma).collect(),
        None => BTreeSet::new(),
    }
}

/// Whether functions return, by where they begin and what is known of their first argument.
pub(super) type KnownFunctions = BTreeMap<(u64, Option<u64>), bool>;

/// The function whose transfers are asked for.
struct Outermost<'a> {
    start_svma: u64,
    length_bytes: u64,
    /// Whether it never goes on by one.
    found: &'a mut BTreeMap<u64, bool>,
}

/// What registers hold, by their numbers, and what the zero flag is, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Constants {
    registers: [Option<u64>; 16],
    zero: Option<bool>,
}

impl Constants {
    fn of_first_argument(value: Option<u64>) -> Self {
        let mut constants = Self::default();
        constants.set(Register::RDI, value);
        constants
    }

    /// Of a register, or its lower half.
    fn of(&self, register: Register) -> Option<u64> {
        let value = (*self.registers.get(register.full_register().number())?)?;
        match register {
            _ if register.is_gpr64() => Some(value),
            _ if register.is_gpr32() => Some(value & u64::from(u32::MAX)),
            _ => None,
        }
    }

    fn set(&mut self, register: Register, value: Option<u64>) {
        let is_half = register.is_gpr32();
        let value = value.map(|value| if is_half { value & u64::from(u32::MAX) } else { value });
        if let Some(held) = self.registers.get_mut(register.full_register().number()) {
            *held = value.filter(|_| is_half || register.is_gpr64());
        }
    }

    /// What is known whichever of two ways was taken.
    fn joined(mut self, other: &Self) -> Self {
        for (value, other) in self.registers.iter_mut().zip(other.registers) {
            *value = value.filter(|value| Some(*value) == other);
        }
        self.zero = self.zero.filter(|zero| Some(*zero) == other.zero);
        self
    }

    fn after(mut self, instruction: &Instruction) -> Self {
        let first = instruction.op0_register();
        let of_register = instruction.op0_kind() == OpKind::Register;
        let second = match instruction.op1_kind() {
            OpKind::Register => self.of(instruction.op1_register()),
            // As long as the register: comparisons to -1 are of its half if that is what is compared.
            _ => instruction.try_immediate(1).ok().map(|value| match first {
                _ if first.is_gpr32() => value & u64::from(u32::MAX),
                _ => value,
            }),
        };
        let before = self.of(first).filter(|_| of_register);
        let both = before.zip(second);
        let is_self = of_register
            && instruction.op1_kind() == OpKind::Register
            && first == instruction.op1_register();
        let (result, written) = match instruction.mnemonic() {
            Mnemonic::Mov if of_register => (second, second),
            Mnemonic::And => (both.map(|(one, other)| one & other), both.map(|(a, b)| a & b)),
            Mnemonic::Xor if is_self => (Some(0), Some(0)),
            Mnemonic::Test => (both.map(|(one, other)| one & other), None),
            Mnemonic::Cmp => (both.map(|(one, other)| one.wrapping_sub(other)), None),
            _ => (None, None),
        };
        for register in Effects::of(instruction).written_registers() {
            self.set(register, None);
        }
        if written.is_some() {
            self.set(first, written);
        }
        if instruction.rflags_modified() & RflagsBits::ZF != 0 {
            let is_whole = first.is_gpr64() || first.is_gpr32();
            self.zero = result.map(|result| result == 0).filter(|_| is_whole);
        }
        self
    }

    fn after_call(self) -> Self {
        let mut after = Self::default();
        for register in OF_CALLER {
            after.set(register, self.of(register));
        }
        after
    }
}

struct Following<'a, 'code> {
    code: &'a CodeView<'code>,
    known: &'a mut KnownFunctions,
    steps_left: usize,
}

impl Following<'_, '_> {
    /// Whether a function never returns. False if that cannot be said.
    fn never_returns(
        &mut self,
        start_svma: u64,
        first_argument: Option<u64>,
        calls: usize,
    ) -> bool {
        if self.code.never_return_at.contains(&start_svma) {
            return true;
        }
        let key = (start_svma, first_argument);
        if let Some(returns) = self.known.get(&key) {
            return !returns;
        }
        let Some(calls) = calls.checked_sub(1) else { return false };
        // Until it is known, a call of itself is taken for one that returns.
        self.known.insert(key, true);
        let constants = Constants::of_first_argument(first_argument);
        let returns = self.returns(start_svma, constants, calls, None) != Some(false);
        self.known.insert(key, returns);
        !returns
    }

    /// Whether a way leads from an entry to a return; none if that cannot be said. Of the outermost function all ways are
    /// followed.
    fn returns(
        &mut self,
        start_svma: u64,
        constants: Constants,
        calls: usize,
        mut outermost: Option<Outermost<'_>>,
    ) -> Option<bool> {
        let mut returns = false;
        let mut before = BTreeMap::from([(start_svma, constants)]);
        let mut open = vec![start_svma];
        while let Some(svma) = open.pop() {
            self.steps_left = self.steps_left.checked_sub(1)?;
            let instruction = self.code.decode(svma)?;
            let known = *before.get(&svma)?;
            let target = instruction.near_branch_target();
            let is_outside = |outermost: &Option<Outermost<'_>>| {
                outermost.as_ref().is_some_and(|outermost| {
                    target.wrapping_sub(outermost.start_svma) >= outermost.length_bytes
                })
            };
            let mut after = known.after(&instruction);
            let (mut goes_on, mut jumps) = (false, false);
            match instruction.flow_control() {
                FlowControl::Next => goes_on = true,
                FlowControl::Exception => {}
                FlowControl::Call | FlowControl::IndirectCall => {
                    let is_direct = instruction.op0_kind() == OpKind::NearBranch64;
                    let ends = self.code.never_returns(&instruction)
                        || is_direct && self.never_returns(target, known.of(Register::RDI), calls);
                    if let Some(outermost) = &mut outermost {
                        outermost.found.insert(svma, ends);
                    }
                    goes_on = !ends;
                    after = after.after_call();
                }
                FlowControl::UnconditionalBranch => jumps = true,
                FlowControl::ConditionalBranch => {
                    let equal = match instruction.mnemonic() {
                        Mnemonic::Je => known.zero,
                        Mnemonic::Jne => known.zero.map(|zero| !zero),
                        _ => None,
                    };
                    (jumps, goes_on) = (equal != Some(false), equal != Some(true));
                }
                FlowControl::Return => {
                    returns = true;
                    if outermost.is_none() {
                        return Some(true);
                    }
                }
                _ => return None,
            }
            if jumps && is_outside(&outermost) {
                let ends = self.never_returns(target, known.of(Register::RDI), calls);
                if let Some(outermost) = &mut outermost {
                    outermost.found.insert(svma, ends);
                }
                (returns, jumps) = (returns || !ends, false);
            }
            let next = goes_on.then(|| instruction.next_ip());
            for to in next.into_iter().chain(jumps.then_some(target)) {
                let joined = before.get(&to).map_or(after, |others| after.joined(others));
                if before.insert(to, joined) != Some(joined) {
                    open.push(to);
                }
            }
        }
        Some(returns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;

    /// Of the code at the base, which is one function up to `length_bytes`, by distances from there; `abort` is at 0x80.
    fn endless(code: &[u8], length_bytes: u64) -> Vec<u64> {
        let read = |svma: u64, length: u64| {
            let from = usize::try_from(svma.checked_sub(BASE)?).ok()?;
            code.get(from..code.len().min(from + length as usize)).filter(|code| !code.is_empty())
        };
        let view = CodeView {
            read: &read,
            linked: &BTreeMap::new(),
            starts: &BTreeSet::new(),
            never_return_at: &BTreeSet::from([BASE + 0x80]),
            returns_seen: &|_| false,
            returns_seen_at: &BTreeSet::new(),
        };
        let found = endless_transfers(BASE, length_bytes, &view, &mut KnownFunctions::new());
        found.iter().map(|svma| svma - BASE).collect()
    }

    /// Pieces of code, each at its position.
    fn code(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut code = Vec::new();
        for (at, bytes) in pieces {
            code.resize(*at, 0x90);
            code.extend(*bytes);
        }
        code
    }

    #[test]
    fn what_only_leads_to_abort_never_returns() {
        // call 0x20; ret; at 0x20: test %rdi,%rdi; je +5; call abort; call abort
        let calls: &[u8] = &[0xe8, 0x1b, 0, 0, 0, 0xc3];
        let aborts: &[u8] = &[0x48, 0x85, 0xff, 0x74, 5, 0xe8, 0x56, 0, 0, 0, 0xe8, 0x51, 0, 0, 0];
        assert_eq!(endless(&code(&[(0, calls), (0x20, aborts)]), 6), [0]);
        // call abort; ret
        assert_eq!(endless(&[0xe8, 0x7b, 0, 0, 0, 0xc3], 6), [0]);
        // jmp abort
        assert_eq!(endless(&[0xe9, 0x7b, 0, 0, 0], 5), [0]);
        // ret in place of the second call
        let returns = &aborts[..10];
        assert_eq!(endless(&code(&[(0, calls), (0x20, returns), (0x2a, &[0xc3])]), 6), [0_u64; 0]);
        // jmp *%rax there: nobody knows
        let jumps = code(&[(0, calls), (0x20, returns), (0x2a, &[0xff, 0xe0])]);
        assert_eq!(endless(&jumps, 6), [0_u64; 0]);
        // It calls itself, and returns.
        let itself: &[u8] = &[0xe8, 0xfb, 0xff, 0xff, 0xff, 0xc3];
        assert_eq!(endless(&code(&[(0, calls), (0x20, itself)]), 6), [0_u64; 0]);
    }

    /// As glibc's `__libc_message`.
    #[test]
    fn what_aborts_if_its_first_argument_says_so_is_asked_with_it() {
        // and $1,%edi; mov %edi,%r15d; call 0x60; test %r15d,%r15d; jne +1; ret; call abort; at 0x60: ret
        let message: &[u8] = &[
            0x83, 0xe7, 1, 0x41, 0x89, 0xff, 0xe8, 0x35, 0, 0, 0, 0x45, 0x85, 0xff, 0x75, 1, 0xc3,
            0xe8, 0x4a, 0, 0, 0,
        ];
        let with = |call: &[u8]| {
            let pieces = [(0, call), (0x20, message), (0x60, &[0xc3][..])];
            endless(&code(&pieces), call.len() as u64)
        };
        // mov $1,%edi; call 0x20; ret
        assert_eq!(with(&[0xbf, 1, 0, 0, 0, 0xe8, 0x16, 0, 0, 0, 0xc3]), [5]);
        // mov $2,%edi
        assert_eq!(with(&[0xbf, 2, 0, 0, 0, 0xe8, 0x16, 0, 0, 0, 0xc3]), [0_u64; 0]);
        // Whatever it is given.
        assert_eq!(with(&[0xe8, 0x1b, 0, 0, 0, 0xc3]), [0_u64; 0]);
        // mov $-1,%eax; cmp $-1,%eax; jne +5; call abort; ret: it aborts
        let halves =
            [0xb8, 0xff, 0xff, 0xff, 0xff, 0x83, 0xf8, 0xff, 0x75, 5, 0xe8, 0x71, 0, 0, 0, 0xc3];
        assert_eq!(endless(&halves, 16), [10], "a comparison of halves");
        // test %rsi,%rsi; je +5; mov $1,%edi; call 0x20; ret: on one of two ways
        let joined = [0x48, 0x85, 0xf6, 0x74, 5, 0xbf, 1, 0, 0, 0, 0xe8, 0x11, 0, 0, 0, 0xc3];
        assert_eq!(with(&joined), [0_u64; 0]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer(code: Vec<u8>) {
            for transfer in endless(&code, code.len() as u64) {
                proptest::prop_assert!(transfer < code.len() as u64);
            }
        }
    }
}
