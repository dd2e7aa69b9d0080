//! In which registers the arguments of a call are, as its instructions go on.

use iced_x86::{
    Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

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

/// What registers hold: values that are told apart, and nothing else of them.
#[derive(Clone)]
pub(super) struct Registers {
    /// By the number of the register. At the entry each holds the value of its own number.
    values: [u32; 16],
    next: u32,
}

impl Registers {
    pub(super) fn at_entry() -> Self {
        let mut values = [0; 16];
        for (value, number) in values.iter_mut().zip(0..) {
            *value = number;
        }
        Self { values, next: 16 }
    }

    pub(super) fn in_register(&self, number: u8) -> Option<u32> {
        self.values.get(usize::from(number)).copied()
    }

    /// A register with this value.
    pub(super) fn holding(&self, value: u32) -> Option<u8> {
        self.values.iter().position(|held| *held == value).map(|number| number as u8)
    }

    pub(super) fn is_as_at_entry(&self, register: Register) -> bool {
        self.values.get(register.number()).is_some_and(|held| *held == register.number() as u32)
    }

    /// What an instruction changes.
    pub(super) fn follow(&mut self, instruction: &Instruction, effects: &Effects) {
        let moved = moved_register(instruction).and_then(|from| self.values.get(from.number()));
        let moved = moved.copied();
        for register in effects.written.iter().filter(|register| register.is_gpr64()) {
            if let Some(value) = self.values.get_mut(register.number()) {
                *value = moved.unwrap_or(self.next);
                self.next = self.next.wrapping_add(1);
            }
        }
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

/// Which register holds which argument, and what the flags tell of one.
#[derive(Clone)]
pub(super) struct Arguments {
    /// An argument is the value that the register has at the entry by which it is passed.
    pub(super) registers: Registers,
    /// The argument that is 0 exactly if the zero flag is set.
    zero_flag_of: Option<u8>,
}

impl Arguments {
    pub(super) fn at_entry() -> Self {
        Self { registers: Registers::at_entry(), zero_flag_of: None }
    }

    fn in_register(&self, register: Register) -> Option<u8> {
        let value = self.registers.in_register(u8::try_from(register.number()).ok()?)?;
        let passed = |by: &Register| by.number() as u32 == value;
        let argument = ARGUMENT_REGISTERS.iter().position(passed)?;
        register.is_gpr64().then_some(argument as u8)
    }

    /// Where the needed arguments are; none if one of them is in no register that carries
    /// arguments.
    pub(super) fn places(&self, needed: ArgumentSet) -> Option<ArgumentPlaces> {
        let mut places = ArgumentPlaces::AS_PASSED;
        for (argument, place) in places.0.iter_mut().enumerate() {
            let is_in = |register: &Register| self.in_register(*register) == Some(argument as u8);
            let as_passed = ARGUMENT_REGISTERS.get(argument).is_some_and(is_in);
            if needed.contains(argument) && !as_passed {
                *place = ARGUMENT_REGISTERS.iter().position(is_in)? as u8;
            }
        }
        Some(places)
    }

    /// The argument that a conditional jump tests for 0, and whether it jumps if it is 0.
    pub(super) fn zero_test(&self, jump: &Instruction) -> Option<(u8, bool)> {
        let if_zero = match jump.mnemonic() {
            Mnemonic::Je => true,
            Mnemonic::Jne => false,
            _ => return None,
        };
        Some((self.zero_flag_of?, if_zero))
    }

    /// What an instruction changes.
    pub(super) fn follow(&mut self, instruction: &Instruction, effects: &Effects) {
        if instruction.rflags_modified() & RflagsBits::ZF != 0 {
            let tested = tested_for_zero(instruction);
            self.zero_flag_of = tested.and_then(|register| self.in_register(register));
        }
        self.registers.follow(instruction, effects);
    }
}
