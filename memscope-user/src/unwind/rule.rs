//! From a row of call frame information to a [`Rule`].

use gimli::{
    CfaRule, EndianSlice, LittleEndian, Operation, Register, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow, X86_64,
};
use memscope_common::unwind::{
    CFA_BP, CFA_BX, CFA_DEREF_BP, CFA_DEREF_SP, CFA_END, CFA_PLT, CFA_R10, CFA_SIGNAL, CFA_SP,
    Rule, SAVED_AT_BP, SAVED_AT_CFA, SAVED_NOT,
};

pub(super) type Slice<'data> = EndianSlice<'data, LittleEndian>;

/// Operations of an expression that are looked at; the longest understood one has 8.
const MAX_OPERATIONS: usize = 16;
/// Bytes of a word on the stack.
const WORD_BYTES: i64 = 8;
/// Where the x86-64 kernel puts registers in the `ucontext` of a signal frame
/// (`arch/x86/include/uapi/asm/sigcontext.h`, `struct sigcontext_64`, after 40 bytes of
/// `struct ucontext`).
const UCONTEXT_RBP: i64 = 120;
const UCONTEXT_RBX: i64 = 128;
const UCONTEXT_RSP: i64 = 160;
const UCONTEXT_RIP: i64 = 168;

/// What of a row cannot be said in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsupported {
    FrameAddress,
    ReturnAddress,
    Register,
}

/// The rule that says the same as a row.
pub(super) fn rule<'data, S: UnwindSection<Slice<'data>>>(
    row: &UnwindTableRow<usize>,
    section: &S,
    encoding: gimli::Encoding,
    is_signal_frame: bool,
) -> Result<Rule, Unsupported> {
    let value = |expression: &UnwindExpression<usize>| {
        let operations = operations(expression, section, encoding)?;
        evaluate(&operations)
    };
    if matches!(row.register(X86_64::RA), Some(RegisterRule::Undefined)) {
        return Ok(Rule::of_kind(CFA_END));
    }
    if is_signal_frame {
        return signal(row, value);
    }
    let mut rule = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            frame_address(Value { base: Base::Register(*register), addend: *offset })
        }
        CfaRule::Expression(expression) => {
            operations(expression, section, encoding).and_then(|operations| {
                plt(&operations).or_else(|| frame_address(evaluate(&operations)?))
            })
        }
    }
    .ok_or(Unsupported::FrameAddress)?;
    let place = |register| saved(row.register(register), &rule, value);
    if place(X86_64::RA) != Some((SAVED_AT_CFA, -8)) {
        return Err(Unsupported::ReturnAddress);
    }
    let rbp = place(X86_64::RBP).ok_or(Unsupported::Register)?;
    let rbx = place(X86_64::RBX).ok_or(Unsupported::Register)?;
    (rule.rbp, rule.rbp_offset) = rbp;
    (rule.rbx, rule.rbx_offset) = rbx;
    Ok(rule)
}

/// A signal handler returns to code whose caller's registers the kernel has saved. They
/// must be where it puts them: the rule says nothing else.
fn signal(
    row: &UnwindTableRow<usize>,
    value: impl Fn(&UnwindExpression<usize>) -> Option<Value>,
) -> Result<Rule, Unsupported> {
    let in_ucontext = |offset| Value { base: Base::Register(X86_64::RSP), addend: offset };
    let CfaRule::Expression(expression) = row.cfa() else {
        return Err(Unsupported::FrameAddress);
    };
    let saved_sp = Value { base: Base::Memory(X86_64::RSP, UCONTEXT_RSP), addend: 0 };
    if value(expression) != Some(saved_sp) {
        return Err(Unsupported::FrameAddress);
    }
    let is_at = |register, offset| {
        matches!(row.register(register), Some(RegisterRule::Expression(expression))
            if value(&expression) == Some(in_ucontext(offset)))
    };
    if !is_at(X86_64::RA, UCONTEXT_RIP) {
        return Err(Unsupported::ReturnAddress);
    }
    if !is_at(X86_64::RBP, UCONTEXT_RBP) || !is_at(X86_64::RBX, UCONTEXT_RBX) {
        return Err(Unsupported::Register);
    }
    Ok(Rule::of_kind(CFA_SIGNAL))
}

fn frame_address(value: Value) -> Option<Rule> {
    let (cfa, cfa_offset, addend) = match value.base {
        Base::Register(X86_64::RSP) => (CFA_SP, value.addend, 0),
        Base::Register(X86_64::RBP) => (CFA_BP, value.addend, 0),
        Base::Register(X86_64::RBX) => (CFA_BX, value.addend, 0),
        Base::Register(X86_64::R10) => (CFA_R10, value.addend, 0),
        Base::Memory(X86_64::RSP, offset) => (CFA_DEREF_SP, offset, value.addend),
        Base::Memory(X86_64::RBP, offset) => (CFA_DEREF_BP, offset, value.addend),
        _ => return None,
    };
    if addend % WORD_BYTES != 0 {
        return None;
    }
    Some(Rule {
        cfa_offset: i32::try_from(cfa_offset).ok()?,
        addend_words: u8::try_from(addend / WORD_BYTES).ok()?,
        ..Rule::of_kind(cfa)
    })
}

/// Where a row says that the caller's value of a register is.
fn saved(
    row: Option<RegisterRule<usize>>,
    rule: &Rule,
    value: impl Fn(&UnwindExpression<usize>) -> Option<Value>,
) -> Option<(u8, i32)> {
    let (kind, offset) = match row {
        None | Some(RegisterRule::SameValue) => (SAVED_NOT, 0),
        Some(RegisterRule::Offset(offset)) => (SAVED_AT_CFA, offset),
        Some(RegisterRule::Expression(expression)) => match value(&expression)? {
            Value { base: Base::Register(X86_64::RBP), addend } => (SAVED_AT_BP, addend),
            Value { base: Base::Register(X86_64::RSP), addend } if rule.cfa == CFA_SP => {
                (SAVED_AT_CFA, addend.checked_sub(i64::from(rule.cfa_offset))?)
            }
            _ => return None,
        },
        Some(_) => return None,
    };
    Some((kind, i32::try_from(offset).ok()?))
}

/// An address that an expression computes: a base plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    base: Base,
    addend: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Zero,
    Register(Register),
    /// The word at this register plus this offset.
    Memory(Register, i64),
}

fn operations<'data, S: UnwindSection<Slice<'data>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
    encoding: gimli::Encoding,
) -> Option<Vec<Operation<Slice<'data>>>> {
    let mut left = expression.get(section).ok()?.operations(encoding);
    let mut operations = Vec::new();
    while let Some(operation) = left.next().ok()? {
        if operations.len() == MAX_OPERATIONS {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

/// What linkers write for the entries of a procedure linkage table, all alike and 16
/// bytes long: `rsp + 8 + ((rip & 15) >= pushed ? 8 : 0)`.
fn plt(operations: &[Operation<Slice<'_>>]) -> Option<Rule> {
    use Operation::{And, Ge, Plus, RegisterOffset, Shl, UnsignedConstant};
    match *operations {
        [
            RegisterOffset { register: X86_64::RSP, offset: 8, .. },
            RegisterOffset { register: X86_64::RA, offset: 0, .. },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: pushed @ 0..=15 },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] => Some(Rule { cfa_offset: i32::try_from(pushed).ok()?, ..Rule::of_kind(CFA_PLT) }),
        _ => None,
    }
}

/// Computes with what is not known yet, as far as the result stays a [`Value`].
fn evaluate(operations: &[Operation<Slice<'_>>]) -> Option<Value> {
    let mut stack: Vec<Value> = Vec::new();
    for operation in operations {
        let value = match *operation {
            Operation::RegisterOffset { register, offset, base_type } if base_type.0 == 0 => {
                Value { base: Base::Register(register), addend: offset }
            }
            Operation::UnsignedConstant { value } => {
                Value { base: Base::Zero, addend: i64::try_from(value).ok()? }
            }
            Operation::SignedConstant { value } => Value { base: Base::Zero, addend: value },
            Operation::PlusConstant { value } => {
                plus(stack.pop()?, Value { base: Base::Zero, addend: i64::try_from(value).ok()? })?
            }
            Operation::Plus => plus(stack.pop()?, stack.pop()?)?,
            Operation::Minus => {
                let subtrahend = stack.pop()?;
                let addend = subtrahend.addend.checked_neg()?;
                match subtrahend.base {
                    Base::Zero => plus(stack.pop()?, Value { addend, ..subtrahend })?,
                    _ => return None,
                }
            }
            Operation::Deref { base_type, size: 8, space: false } if base_type.0 == 0 => {
                let Value { base: Base::Register(register), addend } = stack.pop()? else {
                    return None;
                };
                Value { base: Base::Memory(register, addend), addend: 0 }
            }
            Operation::Nop => continue,
            _ => return None,
        };
        stack.push(value);
    }
    stack.pop()
}

fn plus(one: Value, other: Value) -> Option<Value> {
    let addend = one.addend.checked_add(other.addend)?;
    match (one.base, other.base) {
        (base, Base::Zero) | (Base::Zero, base) => Some(Value { base, addend }),
        _ => None,
    }
}
