//! How arguments are passed, and what instructions do to registers.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

/// Registers that are the caller's still when a function returns, besides the stack pointer (System V ABI for x86-64, 3.2.1).
pub(in crate::target) const OF_CALLER: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// How many arguments are passed in registers.
pub(super) const ARGUMENT_COUNT: usize = 6;

/// Registers that carry arguments at the entry, in their order (System V ABI for x86-64,
/// 3.2.3).
pub(super) const ARGUMENT_REGISTERS: [Register; ARGUMENT_COUNT] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Arguments of a function, by their positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArgumentSet(u8);

impl ArgumentSet {
    /// Those at the given positions.
    #[must_use]
    pub fn of(positions: impl IntoIterator<Item = u8>) -> Self {
        let known =
            positions.into_iter().filter(|position| usize::from(*position) < ARGUMENT_COUNT);
        Self(known.fold(0, |set, position| set | 1 << position))
    }

    pub(super) fn contains(self, position: usize) -> bool {
        self.0 >> position & 1 != 0
    }
}

/// For each argument the position of the register that holds it at the site: among those that carry arguments or, behind
/// these, those that calls leave as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgumentPlaces([u8; ARGUMENT_COUNT]);

impl ArgumentPlaces {
    /// Each where it was passed.
    pub(super) const AS_PASSED: Self = Self([0, 1, 2, 3, 4, 5]);

    /// Each in the register of this position.
    pub(super) const fn at(places: [u8; ARGUMENT_COUNT]) -> Self {
        Self(places)
    }

    /// That of each argument.
    pub(super) const fn all(self) -> [u8; ARGUMENT_COUNT] {
        self.0
    }

    /// Where an argument is.
    #[must_use]
    pub fn of(self, argument: u8) -> u8 {
        self.0.get(usize::from(argument)).copied().unwrap_or(argument)
    }
}

/// What an instruction does that matters here.
pub(in crate::target) struct Effects {
    written: Vec<Register>,
    pub(super) writes_memory: bool,
}

impl Effects {
    pub(in crate::target) fn of(instruction: &Instruction) -> Self {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        let writes = |access: OpAccess| {
            !matches!(
                access,
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            )
        };
        let written = info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()))
            .map(|used| used.register().full_register())
            .collect();
        let writes_memory = info.used_memory().iter().any(|used| writes(used.access()));
        Self { written, writes_memory }
    }

    /// The registers that it writes, or parts of which.
    pub(in crate::target) fn written_registers(&self) -> impl Iterator<Item = Register> + '_ {
        self.written.iter().copied().filter(|register| register.is_gpr64())
    }

    pub(super) fn moves_stack_pointer(&self) -> bool {
        self.written.contains(&Register::RSP)
    }
}

/// The whole register that an instruction copies to another one, if that is all it does.
pub(super) fn moved_register(instruction: &Instruction) -> Option<Register> {
    let is_move = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64();
    is_move.then(|| instruction.op1_register()).filter(|from| from.is_gpr64())
}

/// The register whose being 0 the zero flag says after an instruction that changes it.
pub(super) fn tested_for_zero(instruction: &Instruction) -> Option<Register> {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let of_register = instruction.op0_kind() == OpKind::Register && first.is_gpr64();
    let tests_itself = instruction.mnemonic() == Mnemonic::Test
        && instruction.op1_kind() == OpKind::Register
        && first == second;
    let compares_to_zero = instruction.mnemonic() == Mnemonic::Cmp
        && instruction.try_immediate(1).is_ok_and(|value| value == 0);
    (of_register && (tests_itself || compares_to_zero)).then_some(first)
}
