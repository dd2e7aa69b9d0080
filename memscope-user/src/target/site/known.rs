//! What is known at an instruction: what registers and saved words hold, as far as it is what they held at the function's
//! entry, and where the stack pointer is.

use std::collections::BTreeMap;

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::arguments::{
    ARGUMENT_COUNT, ARGUMENT_REGISTERS, ArgumentPlaces, ArgumentSet, Effects, OF_CALLER,
    moved_register, tested_for_zero,
};

/// Largest distance between the stack pointer and where it was at the entry.
const MAX_DEPTH_BYTES: i64 = 1 << 20;

/// Registers that calls do not leave as they are (System V ABI for x86-64, 3.2.1).
const CLOBBERED: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Values are told apart, and nothing else is known of them: but which those of the registers at the entry are, by the
/// registers' numbers, and addresses in the stack.
pub(super) type Value = u32;
/// Values that come about at one instruction: one for each register, and one where ways meet.
const VALUES_OF_INSTRUCTION: u32 = 32;
/// From here on: addresses in the stack.
const STACK_ADDRESS: Value = 1 << 30;

fn entry_value(register: Register) -> Value {
    register.number() as u32
}

fn stack_address(depth: i64) -> Value {
    STACK_ADDRESS + depth as u32
}

fn depth_of(value: Value) -> Option<i64> {
    value.checked_sub(STACK_ADDRESS).map(i64::from)
}

/// A value that comes about at an instruction of this number.
fn value_of(at: usize, which: usize) -> Value {
    16 + at as u32 * VALUES_OF_INSTRUCTION + which as u32
}

/// What is known before an instruction, on whatever way it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    registers: [Value; 16],
    /// How far below the return address the stack pointer is.
    pub(super) depth: i64,
    /// Words of the stack, by how far below the return address they are: pushed ones and those that were moved there.
    pushed: BTreeMap<i64, Value>,
    moved: BTreeMap<i64, Value>,
    /// The register that is 0 exactly if the zero flag is set.
    pub(super) zero_flag_of: Option<u8>,
}

impl Known {
    pub(super) fn at_entry() -> Self {
        let mut registers = [0; 16];
        for (value, number) in registers.iter_mut().zip(0..) {
            *value = number;
        }
        Self {
            registers,
            depth: 0,
            pushed: BTreeMap::new(),
            moved: BTreeMap::new(),
            zero_flag_of: None,
        }
    }

    /// What the register of a number holds.
    pub(super) fn in_register(&self, number: u8) -> Option<Value> {
        self.registers.get(usize::from(number)).copied()
    }

    /// The number of a register that holds this.
    pub(super) fn holding(&self, value: Value) -> Option<u8> {
        self.registers.iter().position(|held| *held == value).map(|number| number as u8)
    }

    fn register(&self, register: Register) -> Option<Value> {
        self.registers.get(register.number()).copied().filter(|_| register.is_gpr64())
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(held) = self.registers.get_mut(register.number()) {
            *held = value;
        }
        if self.zero_flag_of == Some(register.number() as u8) {
            self.zero_flag_of = None;
        }
    }

    /// Whether a register holds what one held at the entry.
    pub(super) fn holds(&self, register: Register, at_entry: Register) -> bool {
        self.register(register) == Some(entry_value(at_entry))
    }

    /// Whether a register holds an address of the stack.
    pub(super) fn is_of_stack(&self, register: Register) -> bool {
        register == Register::RSP
            || self.register(register).is_some_and(|value| depth_of(value).is_some())
    }

    /// How far below the return address it lies on the stack what a register held at the entry; none if it does not.
    pub(super) fn saved(&self, at_entry: Register) -> Option<i64> {
        let is = |(_, value): &(&i64, &Value)| **value == entry_value(at_entry);
        self.pushed.iter().chain(&self.moved).find(is).map(|(depth, _)| *depth)
    }

    /// In which registers the needed arguments are; none if one is not in any that a program can read.
    pub(super) fn places(&self, needed: ArgumentSet) -> Option<ArgumentPlaces> {
        let mut places = [0; ARGUMENT_COUNT];
        for (argument, (place, passed)) in places.iter_mut().zip(ARGUMENT_REGISTERS).enumerate() {
            *place = argument as u8;
            let is_in = |register: &Register| self.holds(*register, passed);
            if needed.contains(argument) && !is_in(&passed) {
                let mut all = ARGUMENT_REGISTERS.iter().chain(&OF_CALLER);
                *place = all.position(is_in)? as u8;
            }
        }
        Some(ArgumentPlaces::at(places))
    }

    /// The argument that a conditional jump tests for 0, and whether it jumps if it is 0.
    pub(super) fn zero_test(&self, jump: &Instruction) -> Option<(u8, bool)> {
        let if_zero = match jump.mnemonic() {
            Mnemonic::Je => true,
            Mnemonic::Jne => false,
            _ => return None,
        };
        let tested = self.in_register(self.zero_flag_of?)?;
        let argument =
            ARGUMENT_REGISTERS.iter().position(|passed| entry_value(*passed) == tested)?;
        Some((argument as u8, if_zero))
    }

    /// Where in the stack an operand is that is the word at a register and a distance; none if it is not in the stack, or that
    /// is not known.
    pub(super) fn slot(&self, instruction: &Instruction) -> Option<i64> {
        if instruction.segment_prefix() != Register::None {
            return None;
        }
        let base = match instruction.memory_base() {
            Register::RSP => self.depth,
            base => depth_of(self.register(base)?)?,
        };
        let is_plain = instruction.memory_index() == Register::None;
        is_plain.then(|| base.wrapping_sub(instruction.memory_displacement64().cast_signed()))
    }

    fn move_stack_pointer(&mut self, depth: i64) -> Option<()> {
        self.depth = Some(depth).filter(|depth| (0..=MAX_DEPTH_BYTES).contains(depth))?;
        self.pushed.retain(|slot, _| *slot <= depth);
        self.moved.retain(|slot, _| *slot <= depth);
        Some(())
    }

    /// Joined with what is known on another way, before the instruction of this number; none if the stack pointer is not at the
    /// same place.
    pub(super) fn join(&mut self, other: &Self, at: usize) -> Option<bool> {
        if self.depth != other.depth {
            return None;
        }
        let before = self.clone();
        for (number, value) in self.registers.iter_mut().enumerate() {
            if other.registers.get(number) != Some(value) {
                *value = value_of(at, 16 + number);
            }
        }
        self.pushed.retain(|slot, value| other.pushed.get(slot) == Some(value));
        self.moved.retain(|slot, value| other.moved.get(slot) == Some(value));
        if self.zero_flag_of != other.zero_flag_of {
            self.zero_flag_of = None;
        }
        Some(*self != before)
    }

    /// What is known after an instruction of this number that is no call and does not return, but for what it writes to
    /// memory other than by pushing; none if it cannot be said where the stack pointer is then.
    pub(super) fn after(
        &self,
        at: usize,
        instruction: &Instruction,
        effects: &Effects,
    ) -> Option<Self> {
        let mut after = self.clone();
        if instruction.rflags_modified() & RflagsBits::ZF != 0 {
            let tested = tested_for_zero(instruction);
            after.zero_flag_of = tested.map(|register| register.number() as u8);
        }
        if effects.moves_stack_pointer() {
            self.follow_stack(at, instruction, &mut after)?;
            return Some(after);
        }
        let value = self.value_moved(instruction);
        for register in effects.written_registers() {
            after.set(register, value.unwrap_or_else(|| value_of(at, register.number())));
        }
        Some(after)
    }

    /// What is known after a call. `others_write`: whether others can write to the stack.
    pub(super) fn after_call(&self, at: usize, others_write: bool) -> Option<Self> {
        let mut after = self.clone();
        for register in CLOBBERED {
            after.set(register, value_of(at, register.number()));
        }
        after.move_stack_pointer(self.depth)?;
        if others_write {
            after.moved.clear();
        }
        after.zero_flag_of = None;
        Some(after)
    }

    /// What writing to memory changes, other than by pushing.
    pub(super) fn follow_write(
        &self,
        instruction: &Instruction,
        others_write: bool,
        after: &mut Self,
    ) -> Option<()> {
        let in_stack = self.is_of_stack(instruction.memory_base());
        if !in_stack || instruction.op0_kind() != OpKind::Memory {
            if others_write {
                after.moved.clear();
            }
            return Some(());
        }
        let slot = self.slot(instruction)?;
        let bytes = instruction.memory_size().size() as i64;
        // The lowest word that is not touched begins above its last byte.
        let is_touched = |word: &i64| *word > slot - bytes && *word < slot + 8;
        if is_touched(&0) || slot < 0 || after.pushed.keys().any(is_touched) {
            return None;
        }
        after.moved.retain(|word, _| !is_touched(word));
        if let (true, Some(value)) =
            (is_move(instruction), self.register(instruction.op1_register()))
        {
            after.moved.insert(slot, value);
        }
        Some(())
    }

    /// What an instruction does that moves the stack pointer.
    fn follow_stack(&self, at: usize, instruction: &Instruction, after: &mut Self) -> Option<()> {
        let (first, second) = (instruction.op0_register(), instruction.op1_register());
        let pop = |after: &mut Self, depth: i64, register: Register| {
            let lies_there = self.pushed.get(&depth).or_else(|| self.moved.get(&depth)).copied();
            after.set(register, lies_there.unwrap_or_else(|| value_of(at, register.number())));
            after.move_stack_pointer(depth - 8)
        };
        match instruction.mnemonic() {
            Mnemonic::Push => {
                let depth = self.depth + 8;
                after.move_stack_pointer(depth)?;
                after.moved.remove(&depth);
                if let Some(value) = self.register(first) {
                    after.pushed.insert(depth, value);
                }
                (instruction.stack_pointer_increment() == -8).then_some(())
            }
            Mnemonic::Pop if first.is_gpr64() && first != Register::RSP => {
                pop(after, self.depth, first)
            }
            Mnemonic::Leave => pop(after, depth_of(self.register(Register::RBP)?)?, Register::RBP),
            Mnemonic::Sub | Mnemonic::Add if first == Register::RSP => {
                let bytes = instruction.try_immediate(1).ok()?.cast_signed();
                let raises = instruction.mnemonic() == Mnemonic::Add;
                let lower = if raises { bytes.checked_neg()? } else { bytes };
                after.move_stack_pointer(self.depth.checked_add(lower)?)
            }
            Mnemonic::Mov if first == Register::RSP => {
                after.move_stack_pointer(depth_of(self.register(second)?)?)
            }
            Mnemonic::Lea if first == Register::RSP => {
                after.move_stack_pointer(self.slot(instruction)?)
            }
            _ => None,
        }
    }

    /// The value that a register is given, if it is one that is known already.
    fn value_moved(&self, instruction: &Instruction) -> Option<Value> {
        if let Some(from) = moved_register(instruction) {
            let of_stack = from == Register::RSP;
            return if of_stack { Some(stack_address(self.depth)) } else { self.register(from) };
        }
        let loads = is_move(instruction)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Memory;
        let slot = self.slot(instruction).filter(|_| loads)?;
        self.pushed.get(&slot).or_else(|| self.moved.get(&slot)).copied()
    }
}

/// Whether an instruction copies a whole register or word.
pub(super) fn is_move(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && [instruction.op0_register(), instruction.op1_register()]
            .iter()
            .all(|register| *register == Register::None || register.is_gpr64())
        && instruction.op1_kind() != OpKind::Immediate32to64
}
