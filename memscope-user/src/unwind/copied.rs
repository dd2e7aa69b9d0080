//! Walks copies of stacks by call frame information, all of it: what the tables of the eBPF
//! side cannot say is said here too.
//!
//! Takes registers and a piece of stack memory, and from a [`MappedCode`] what is mapped
//! where; gives return addresses and why they end. Each step says by what it was made, so
//! that a stack is called complete only if unwind information led all the way.

mod functions;
mod registers;

use std::sync::Arc;

use gimli::{
    CfaRule, EvaluationResult, FrameDescriptionEntry, Location, RegisterRule, UnwindContext,
    UnwindExpression, UnwindTableRow, Value, X86_64,
};
use memscope_common::record::{
    COPY_PART_BYTES, MAX_FRAMES, STACK_BEGINS_IN_PROBE, STACK_BEGINS_INSIDE, StackCopy,
};

pub use self::functions::FrameInfo;
use self::{
    functions::{Entry, Found},
    registers::{Content, Registers},
};
use super::{cfi, rule::Slice};
use crate::model::StackOutcome;

/// Operations of an expression that are executed; real ones have some ten.
const MAX_OPERATIONS: u32 = 256;
/// Distance between two links of a chain of frame pointers from which the upper is taken
/// for something else, as on the eBPF side.
const MAX_FRAME_BYTES: u64 = 1 << 23;
/// `mov $15, %rax; syscall`, but for its last byte: what a signal handler returns to, told
/// from these bytes where no call frame information says so, as on the eBPF side.
const SIGRETURN_CODE: u64 = 0x0f00_0000_0fc0_c748;

/// What is mapped where in a process.
pub trait MappedCode {
    /// What is at an address.
    fn code_at(&mut self, avma: u64) -> CodeAt;

    /// Eight bytes of code; none if they cannot be read.
    fn word_at(&mut self, avma: u64) -> Option<u64>;
}

/// What is at an address.
#[derive(Clone, Debug)]
pub enum CodeAt {
    /// Nothing that is known.
    Unknown,
    /// Code without a file that could be read.
    WithoutFile,
    /// Code of a file.
    File {
        /// What the file says.
        info: Arc<FrameInfo>,
        /// What to add to the file's own numbering to get addresses of the process.
        bias_avma: u64,
    },
}

/// What came of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedWalk {
    /// Innermost first; at least one, at most [`MAX_FRAMES`]. One byte before each lies the
    /// instruction being executed: they are return addresses, or one more than where a
    /// signal came in.
    pub frames_avma: Vec<u64>,
    /// Why they end.
    pub outcome: StackOutcome,
    /// Whether at least one step followed the frame pointer, for want of unwind information.
    pub used_frame_pointers: bool,
    /// With [`StackOutcome::UnknownCode`], the address of which nothing is known.
    pub unknown_avma: Option<u64>,
}

/// Walks up a copied stack, of which parts of [`COPY_PART_BYTES`] are given; some can be shorter
/// or empty.
///
/// A register that is read from beyond the copy is not missed until something is
/// computed from it. A signal handler may have had a stack of its own; then the copy ends
/// with that.
///
/// If it begins in the midst of a probed function, that is no frame, nor is one that this has called, unless there is no other.
pub fn walk_copy(copy: &StackCopy, parts: &[Arc<[u8]>], code: &mut impl MappedCode) -> CopiedWalk {
    let mut walk = walk_all(copy, parts, code);
    let no_frames = [STACK_BEGINS_IN_PROBE, STACK_BEGINS_INSIDE]
        .iter()
        .filter(|flag| copy.flags & **flag != 0)
        .count();
    walk.frames_avma.drain(..no_frames.min(walk.frames_avma.len().saturating_sub(1)));
    walk
}

fn walk_all(copy: &StackCopy, parts: &[Arc<[u8]>], code: &mut impl MappedCode) -> CopiedWalk {
    let mut walk = Walk {
        memory: Memory { start_avma: copy.start_avma(), parts },
        registers: Registers::of_copy(copy),
        context: Box::default(),
        used_frame_pointers: false,
    };
    let mut frames_avma = Vec::new();
    while frames_avma.len() < MAX_FRAMES {
        let before = walk.registers.lookup_avma();
        let pc_avma = walk.registers.pc_avma;
        let result = walk.step(code);
        // Nothing was called just before what a signal handler returns to.
        let instruction_avma = if result == Ok(Through::Signal) { pc_avma } else { before };
        frames_avma.push(instruction_avma.wrapping_add(1));
        let Err(stop) = result else { continue };
        let unknown_avma = match stop {
            Stop::UnknownCode { avma } => Some(avma),
            _ => None,
        };
        let outcome = walk.outcome(stop);
        let used_frame_pointers = walk.used_frame_pointers;
        return CopiedWalk { frames_avma, outcome, used_frame_pointers, unknown_avma };
    }
    CopiedWalk {
        frames_avma,
        outcome: StackOutcome::DepthLimit,
        used_frame_pointers: walk.used_frame_pointers,
        unknown_avma: None,
    }
}

/// How a caller was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    Call,
    Signal,
}

/// Why a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Outermost,
    FramePointersEnded,
    FramePointerBroken,
    UnknownCode { avma: u64 },
    Unsupported,
    NotCopied,
    NotUpward,
    NullReturn,
}

struct Memory<'copy> {
    start_avma: u64,
    parts: &'copy [Arc<[u8]>],
}

impl Memory<'_> {
    fn word(&self, avma: u64) -> Content {
        self.value(avma, 8)
    }

    /// An integer of 1 to 8 bytes.
    fn value(&self, avma: u64, size: u8) -> Content {
        let mut word = [0; 8];
        let offset =
            avma.checked_sub(self.start_avma).and_then(|offset| usize::try_from(offset).ok());
        let read = offset.zip(word.get_mut(..usize::from(size))).and_then(|(offset, word)| {
            for (byte, offset) in word.iter_mut().zip(offset..) {
                let part = self.parts.get(offset / COPY_PART_BYTES)?;
                *byte = *part.get(offset % COPY_PART_BYTES)?;
            }
            Some(())
        });
        match read {
            Some(()) => Content::Known(u64::from_le_bytes(word)),
            None => Content::NotCopied,
        }
    }
}

struct Walk<'copy> {
    memory: Memory<'copy>,
    registers: Registers,
    context: Box<UnwindContext<usize>>,
    used_frame_pointers: bool,
}

impl Walk<'_> {
    fn outcome(&self, stop: Stop) -> StackOutcome {
        match stop {
            Stop::Outermost if self.used_frame_pointers => StackOutcome::WithFramePointers,
            Stop::Outermost => StackOutcome::Complete,
            Stop::FramePointersEnded => StackOutcome::WithFramePointers,
            Stop::FramePointerBroken => StackOutcome::FramePointerBroken,
            Stop::UnknownCode { .. } => StackOutcome::UnknownCode,
            Stop::Unsupported => StackOutcome::UnsupportedRule,
            Stop::NotCopied => StackOutcome::CopyTooShort,
            Stop::NotUpward => StackOutcome::NotUpward,
            Stop::NullReturn => StackOutcome::NullReturn,
        }
    }

    /// Goes to the caller.
    fn step(&mut self, code: &mut impl MappedCode) -> Result<Through, Stop> {
        let avma = self.registers.lookup_avma();
        match code.code_at(avma) {
            CodeAt::Unknown => Err(Stop::UnknownCode { avma }),
            CodeAt::WithoutFile => self.without_information(code),
            CodeAt::File { info, bias_avma } => {
                let svma = avma.wrapping_sub(bias_avma);
                match info.find(svma) {
                    Found::Nothing => self.without_information(code),
                    Found::Start => Err(Stop::Outermost),
                    Found::Unreadable => Err(Stop::Unsupported),
                    Found::EhFrame(entry) => self.by_entry(&entry, svma, bias_avma),
                    Found::DebugFrame(entry) => self.by_entry(&entry, svma, bias_avma),
                }
            }
        }
    }

    fn without_information(&mut self, code: &mut impl MappedCode) -> Result<Through, Stop> {
        if code.word_at(self.registers.pc_avma) == Some(SIGRETURN_CODE) {
            self.registers.leave_signal(|avma| self.memory.word(avma))?;
            return Ok(Through::Signal);
        }
        self.used_frame_pointers = true;
        self.by_frame_pointer()?;
        Ok(Through::Call)
    }

    /// A link of the chain is the caller's frame pointer and above it the return address;
    /// in the outermost frame they are 0 (System V ABI for x86-64, 3.2.2 and 3.4.1).
    fn by_frame_pointer(&mut self) -> Result<(), Stop> {
        let (sp_avma, bp) = (self.registers.sp()?, self.registers.get(X86_64::RBP)?);
        if bp == 0 {
            return Err(Stop::FramePointersEnded);
        }
        if bp.wrapping_sub(sp_avma) > MAX_FRAME_BYTES || bp & 7 != 0 {
            return Err(Stop::FramePointerBroken);
        }
        let caller_bp = self.memory.word(bp).known()?;
        let return_avma = self.memory.word(bp.wrapping_add(8)).known()?;
        if return_avma == 0 {
            return Err(Stop::FramePointersEnded);
        }
        self.registers = Registers::by_frame_pointer(return_avma, bp.wrapping_add(16), caller_bp);
        Ok(())
    }

    fn by_entry<'info, S: cfi::Frames<'info>>(
        &mut self,
        entry: &Entry<'info, S>,
        svma: u64,
        bias_avma: u64,
    ) -> Result<Through, Stop> {
        let Entry { section, bases, function } = entry;
        let row = function
            .unwind_info_for_address(section, bases, &mut self.context, svma)
            .or(Err(Stop::Unsupported))?;
        let caller =
            Row { section, function, row, memory: &self.memory, registers: &self.registers }
                .caller(bias_avma)?;
        self.registers = caller;
        let is_signal = function.is_signal_trampoline();
        Ok(if is_signal { Through::Signal } else { Through::Call })
    }
}

/// A row of call frame information, and what it is applied to.
struct Row<'row, 'info, S> {
    section: &'row S,
    function: &'row FrameDescriptionEntry<Slice<'info>>,
    row: &'row UnwindTableRow<usize>,
    memory: &'row Memory<'row>,
    registers: &'row Registers,
}

impl<'info, S: cfi::Frames<'info>> Row<'_, 'info, S> {
    /// The caller's registers.
    fn caller(&self, bias_avma: u64) -> Result<Registers, Stop> {
        let return_register = self.function.cie().return_address_register();
        let return_rule = self.row.register(return_register);
        if matches!(return_rule, Some(RegisterRule::Undefined)) {
            return Err(Stop::Outermost);
        }
        let is_signal = self.function.is_signal_trampoline();
        let cfa_avma = match self.row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.registers.get(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => {
                self.evaluate(expression, None, bias_avma)?.known()?
            }
        };
        // A return address was pushed below the caller's frame; but a signal handler may
        // have a stack of its own.
        if cfa_avma <= self.registers.sp()? && !is_signal {
            return Err(Stop::NotUpward);
        }
        let restore = |rule: &RegisterRule<usize>, now: Content| {
            Ok(match rule {
                RegisterRule::Undefined | RegisterRule::Architectural => Content::Unknown,
                RegisterRule::SameValue => now,
                RegisterRule::Offset(offset) => {
                    self.memory.word(cfa_avma.wrapping_add_signed(*offset))
                }
                RegisterRule::ValOffset(offset) => {
                    Content::Known(cfa_avma.wrapping_add_signed(*offset))
                }
                RegisterRule::Register(register) => self.registers.content(*register),
                RegisterRule::Expression(expression) => {
                    match self.evaluate(expression, Some(cfa_avma), bias_avma)? {
                        Content::Known(avma) => self.memory.word(avma),
                        unknown => unknown,
                    }
                }
                RegisterRule::ValExpression(expression) => {
                    self.evaluate(expression, Some(cfa_avma), bias_avma)?
                }
                RegisterRule::Constant(value) => Content::Known(*value),
            })
        };
        let mut caller = self.registers.after_return(cfa_avma, !is_signal);
        for (register, rule) in self.row.registers() {
            if *register != return_register {
                let content = restore(rule, self.registers.content(*register))?;
                caller.set(*register, content);
            }
        }
        let return_rule = return_rule.ok_or(Stop::Unsupported)?;
        caller.pc_avma = restore(&return_rule, self.registers.content(return_register))?.known()?;
        if caller.pc_avma == 0 {
            return Err(Stop::NullReturn);
        }
        Ok(caller)
    }

    /// What an expression computes, from registers and the copied memory.
    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        initial: Option<u64>,
        bias_avma: u64,
    ) -> Result<Content, Stop> {
        let unsupported = |_| Stop::Unsupported;
        let expression = expression.get(self.section).map_err(unsupported)?;
        let mut evaluation = expression.evaluation(self.function.cie().encoding());
        evaluation.set_max_iterations(MAX_OPERATIONS);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate().map_err(unsupported)?;
        loop {
            let next = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, base_type } if base_type.0 == 0 => {
                    match self.registers.content(register) {
                        Content::Known(value) => {
                            evaluation.resume_with_register(Value::Generic(value))
                        }
                        unknown => return Ok(unknown),
                    }
                }
                EvaluationResult::RequiresMemory { address, size, space: None, base_type }
                    if base_type.0 == 0 =>
                {
                    match self.memory.value(address, size) {
                        Content::Known(value) => {
                            evaluation.resume_with_memory(Value::Generic(value))
                        }
                        unknown => return Ok(unknown),
                    }
                }
                EvaluationResult::RequiresRelocatedAddress(svma) => {
                    evaluation.resume_with_relocated_address(svma.wrapping_add(bias_avma))
                }
                _ => return Err(Stop::Unsupported),
            };
            state = next.map_err(unsupported)?;
        }
        match evaluation.as_result() {
            [piece] => match piece.location {
                Location::Address { address } => Ok(Content::Known(address)),
                Location::Value { value } => {
                    value.to_u64(u64::MAX).map(Content::Known).map_err(unsupported)
                }
                _ => Err(Stop::Unsupported),
            },
            _ => Err(Stop::Unsupported),
        }
    }
}
