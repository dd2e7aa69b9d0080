//! Registers of a function that has called another, as far as they are known.

use gimli::{Register, X86_64};
use memscope_common::record::StackCopy;

use super::Stop;

/// General registers, numbered as in DWARF (System V ABI for x86-64, figure 3.36).
const GENERAL: usize = 16;

/// Registers that a call leaves as they were.
const PRESERVED: [Register; 6] =
    [X86_64::RBX, X86_64::RBP, X86_64::R12, X86_64::R13, X86_64::R14, X86_64::R15];

/// Where the kernel puts registers for a signal handler, from where the stack pointer is
/// when the handler has returned: `struct ucontext`, `uc_mcontext` at 40
/// (arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64).
const UCONTEXT: [(Register, u64); GENERAL] = [
    (X86_64::R8, 40),
    (X86_64::R9, 48),
    (X86_64::R10, 56),
    (X86_64::R11, 64),
    (X86_64::R12, 72),
    (X86_64::R13, 80),
    (X86_64::R14, 88),
    (X86_64::R15, 96),
    (X86_64::RDI, 104),
    (X86_64::RSI, 112),
    (X86_64::RBP, 120),
    (X86_64::RBX, 128),
    (X86_64::RDX, 136),
    (X86_64::RAX, 144),
    (X86_64::RCX, 152),
    (X86_64::RSP, 160),
];
const UCONTEXT_PC: u64 = 168;

/// Of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Known(u64),
    /// Nothing says what it was.
    Unknown,
    /// It lies in memory that was not copied.
    NotCopied,
}

impl Content {
    /// The value, which the walk cannot go on without.
    pub(super) fn known(self) -> Result<u64, Stop> {
        match self {
            Self::Known(value) => Ok(value),
            Self::Unknown => Err(Stop::Unsupported),
            Self::NotCopied => Err(Stop::NotCopied),
        }
    }
}

/// Of a function that is being executed.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    general: [Content; GENERAL],
    /// Where it goes on.
    pub(super) pc_avma: u64,
    /// Whether that is a return address, so that the call before it is what is looked up.
    returns: bool,
}

impl Registers {
    /// Those of the caller of the allocator.
    pub(super) fn of_copy(copy: &StackCopy) -> Self {
        let mut registers = Self::unknown(copy.return_avma, copy.sp_avma);
        let [r12, r13, r14, r15] = copy.r12_to_r15;
        let preserved = [copy.rbx, copy.rbp, r12, r13, r14, r15];
        for (register, value) in PRESERVED.into_iter().zip(preserved) {
            registers.set(register, Content::Known(value));
        }
        registers
    }

    /// Whoever was passed may have saved any other register anywhere.
    pub(super) fn by_frame_pointer(return_avma: u64, sp_avma: u64, bp: u64) -> Self {
        let mut registers = Self::unknown(return_avma, sp_avma);
        registers.set(X86_64::RBP, Content::Known(bp));
        registers
    }

    fn unknown(pc_avma: u64, sp_avma: u64) -> Self {
        let mut registers = Self { general: [Content::Unknown; GENERAL], pc_avma, returns: true };
        registers.set(X86_64::RSP, Content::Known(sp_avma));
        registers
    }

    /// What is still there in the caller, for all that its call frame information does not
    /// speak of. `pc_avma` is still that of the function.
    pub(super) fn after_return(&self, cfa_avma: u64, returns: bool) -> Self {
        let mut caller = Self::unknown(self.pc_avma, cfa_avma);
        caller.returns = returns;
        for register in PRESERVED {
            caller.set(register, self.content(register));
        }
        caller
    }

    /// Goes to where a signal has interrupted.
    pub(super) fn leave_signal(&mut self, word: impl Fn(u64) -> Content) -> Result<(), Stop> {
        let context_avma = self.sp()?;
        let pc_avma = word(context_avma.wrapping_add(UCONTEXT_PC)).known()?;
        if pc_avma == 0 {
            return Err(Stop::NullReturn);
        }
        for (register, offset) in UCONTEXT {
            self.set(register, word(context_avma.wrapping_add(offset)));
        }
        self.pc_avma = pc_avma;
        self.returns = false;
        Ok(())
    }

    /// The address whose function is being executed.
    pub(super) fn lookup_avma(&self) -> u64 {
        self.pc_avma.wrapping_sub(u64::from(self.returns))
    }

    pub(super) fn sp(&self) -> Result<u64, Stop> {
        self.get(X86_64::RSP)
    }

    pub(super) fn get(&self, register: Register) -> Result<u64, Stop> {
        self.content(register).known()
    }

    pub(super) fn content(&self, register: Register) -> Content {
        if register == X86_64::RA {
            return Content::Known(self.pc_avma);
        }
        self.general.get(usize::from(register.0)).copied().unwrap_or(Content::Unknown)
    }

    /// Registers other than the general ones are not followed.
    pub(super) fn set(&mut self, register: Register, content: Content) {
        if let Some(place) = self.general.get_mut(usize::from(register.0)) {
            *place = content;
        }
    }
}
