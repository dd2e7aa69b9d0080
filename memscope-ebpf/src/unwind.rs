//! One step from a function to its caller, and the search for the rule that says how.

use memscope_common::{
    record::{
        OUTCOME_COMPLETE, OUTCOME_FRAME_POINTER_BROKEN, OUTCOME_FRAME_POINTERS_ENDED,
        OUTCOME_NOT_UPWARD, OUTCOME_NULL_RETURN, OUTCOME_STACK_UNREADABLE,
        OUTCOME_UNSUPPORTED_RULE,
    },
    unwind::{
        CFA_BP, CFA_BX, CFA_DEREF_BP, CFA_DEREF_SP, CFA_END, CFA_NONE, CFA_PLT, CFA_R10,
        CFA_SIGNAL, CFA_SP, Frame, MAX_PAGE_ROWS, Rule, SAVED_AT_BP, SAVED_AT_CFA, Saved,
    },
};

/// Distance between two links of a chain of frame pointers from which the upper is
/// taken for something else, as a register in other use mostly points elsewhere.
pub const MAX_FRAME_BYTES: u64 = 1 << 23;

/// `mov $15, %rax; syscall`, but for its last byte: what a signal handler returns to
/// (`__NR_rt_sigreturn`), told by debuggers from these bytes where no table says so.
pub const SIGRETURN_CODE: u64 = 0x0f00_0000_0fc0_c748;

/// A word of the target's memory. Not an `Option`, whose value LLVM leaves undefined
/// where there is none, which the verifier refuses to see stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its value; 0 if it could not be read.
    pub value: u64,
    /// Whether it could be read.
    pub is_read: bool,
}

impl Word {
    /// A word that was read.
    #[must_use]
    #[inline(always)]
    pub const fn read(value: u64) -> Self {
        Self { value, is_read: true }
    }
    /// One that could not be.
    #[must_use]
    #[inline(always)]
    pub const fn unreadable() -> Self {
        Self { value: 0, is_read: false }
    }
}

/// What a word of the target's memory is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFor {
    /// The step.
    Step,
    /// Because it is the caller's `rbp`, which nothing may ever depend on.
    CallerBp,
}

/// Whether a step by this rule depends on `rbp`.
#[must_use]
#[inline(always)]
pub fn depends_on_bp(rule: &Rule) -> bool {
    matches!(rule.cfa, CFA_BP | CFA_DEREF_BP | CFA_NONE)
        || rule.rbp == SAVED_AT_BP
        || rule.rbx == SAVED_AT_BP
}

/// Whether a step by this rule depends on what `rbx` was where the walk began.
#[must_use]
#[inline(always)]
pub fn depends_on_first_bx(frame: &Frame, rule: &Rule) -> bool {
    rule.cfa == CFA_BX && frame.bx.place == Saved::VALUE
}

/// Positions in what the kernel pushes for a signal handler, from where the stack
/// pointer is when the handler has returned: `struct ucontext`, `uc_mcontext` at 40
/// (arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64).
mod ucontext {
    pub(super) const R10: u64 = 56;
    pub(super) const BP: u64 = 120;
    pub(super) const BX: u64 = 128;
    pub(super) const SP: u64 = 160;
    pub(super) const PC: u64 = 168;
}

/// Goes to the caller by a rule, or says why not: 0, or one of the `OUTCOME_` constants.
/// The frame is changed only if it goes.
///
/// `read` reads a word of the target's memory. It is called at few places, because each is
/// a copy of it that the verifier has to follow.
///
/// What a rule does not say is done as follows. [`CFA_NONE`] follows the chain of frame
/// pointers: a link is the caller's frame pointer and above it the return address, and
/// in the outermost frame they are 0 (System V ABI for x86-64, 3.2.2 and 3.4.1). At
/// [`CFA_SIGNAL`] all comes from the `ucontext`; the handler may have had a stack of its
/// own, so there is no order between the two stack pointers.
#[inline(always)]
pub fn step(frame: &mut Frame, rule: &Rule, read: impl FnMut(u64, ReadFor) -> Word) -> u16 {
    if is_plain(rule) { plain_step(frame, rule, read) } else { any_step(frame, rule, read) }
}

/// Whether a rule is what compilers make of nearly every call: a canonical frame address
/// that needs no memory, with registers saved at a distance from it.
#[inline(always)]
fn is_plain(rule: &Rule) -> bool {
    (rule.cfa == CFA_SP || rule.cfa == CFA_BP) && (rule.rbp | rule.rbx) <= SAVED_AT_CFA
}

/// As [`any_step`], with less to ask: this is where the time goes.
#[inline(always)]
fn plain_step(frame: &mut Frame, rule: &Rule, mut read: impl FnMut(u64, ReadFor) -> Word) -> u16 {
    let base = if rule.cfa == CFA_SP { frame.sp_avma } else { frame.bp };
    let cfa_avma = base.wrapping_add(rule.cfa_offset as i64 as u64);
    if cfa_avma <= frame.sp_avma {
        return OUTCOME_NOT_UPWARD;
    }
    let mut caller_bp = frame.bp;
    if rule.rbp == SAVED_AT_CFA {
        let bp_slot_avma = cfa_avma.wrapping_add(rule.rbp_offset as i64 as u64);
        let word = read(bp_slot_avma, ReadFor::CallerBp);
        if !word.is_read {
            return OUTCOME_STACK_UNREADABLE;
        }
        caller_bp = word.value;
    }
    let return_address = read(cfa_avma.wrapping_sub(8), ReadFor::Step);
    if !return_address.is_read {
        return OUTCOME_STACK_UNREADABLE;
    }
    if return_address.value == 0 {
        return OUTCOME_NULL_RETURN;
    }
    if rule.rbx == SAVED_AT_CFA {
        frame.bx = Saved::at(cfa_avma.wrapping_add(rule.rbx_offset as i64 as u64));
    }
    frame.r10.place = Saved::UNKNOWN;
    frame.bp = caller_bp;
    frame.sp_avma = cfa_avma;
    frame.pc_avma = return_address.value;
    frame.returns = 1;
    0
}

#[inline(always)]
fn any_step(frame: &mut Frame, rule: &Rule, mut read: impl FnMut(u64, ReadFor) -> Word) -> u16 {
    let (by_frame_pointer, by_signal) = (rule.cfa == CFA_NONE, rule.cfa == CFA_SIGNAL);
    let base = base_of(frame, rule);
    if base.outcome != 0 {
        return base.outcome;
    }
    let mut cfa_avma = base.word;
    if base.is_slot {
        let word = read(base.word, ReadFor::Step);
        if !word.is_read {
            return OUTCOME_STACK_UNREADABLE;
        }
        cfa_avma = word.value.wrapping_add(base.addend);
    }
    // A return address was pushed below the caller's frame, or nothing was called.
    if cfa_avma <= frame.sp_avma && !by_signal {
        return OUTCOME_NOT_UPWARD;
    }
    let bp_slot_avma = bp_slot(frame, rule, cfa_avma);
    let mut caller_bp = frame.bp;
    // The lower word first, so that one window of the stack holds both.
    if bp_slot_avma != 0 {
        let word = read(bp_slot_avma, ReadFor::CallerBp);
        if !word.is_read {
            return unreadable(by_frame_pointer);
        }
        caller_bp = word.value;
    }
    let return_slot_avma =
        if by_signal { frame.sp_avma.wrapping_add(ucontext::PC) } else { cfa_avma.wrapping_sub(8) };
    let return_address = read(return_slot_avma, ReadFor::Step);
    if !return_address.is_read {
        return unreadable(by_frame_pointer);
    }
    if return_address.value == 0 {
        return if by_frame_pointer { OUTCOME_FRAME_POINTERS_ENDED } else { OUTCOME_NULL_RETURN };
    }
    go_to_caller(frame, rule, cfa_avma);
    frame.bp = caller_bp;
    frame.sp_avma = cfa_avma;
    frame.pc_avma = return_address.value;
    frame.returns = if by_signal { 0 } else { 1 };
    0
}

/// What the canonical frame address is made from.
struct Base {
    /// The address itself, or where a word lies that is it but for the addend.
    word: u64,
    is_slot: bool,
    addend: u64,
    /// Not 0 if there is none.
    outcome: u16,
}

impl Base {
    #[inline(always)]
    const fn address(word: u64) -> Self {
        Self { word, is_slot: false, addend: 0, outcome: 0 }
    }
    #[inline(always)]
    const fn slot(word: u64, addend: u64) -> Self {
        Self { word, is_slot: true, addend, outcome: 0 }
    }
    #[inline(always)]
    const fn none(outcome: u16) -> Self {
        Self { word: 0, is_slot: false, addend: 0, outcome }
    }
}

#[inline(always)]
fn base_of(frame: &Frame, rule: &Rule) -> Base {
    let offset = rule.cfa_offset as i64 as u64;
    let addend = u64::from(rule.addend_words) * 8;
    let Frame { pc_avma, sp_avma, bp, .. } = *frame;
    match rule.cfa {
        CFA_SP => Base::address(sp_avma.wrapping_add(offset)),
        CFA_BP => Base::address(bp.wrapping_add(offset)),
        CFA_NONE if bp == 0 => Base::none(OUTCOME_FRAME_POINTERS_ENDED),
        CFA_NONE if bp.wrapping_sub(sp_avma) > MAX_FRAME_BYTES || bp & 7 != 0 => {
            Base::none(OUTCOME_FRAME_POINTER_BROKEN)
        }
        CFA_NONE => Base::address(bp.wrapping_add(16)),
        CFA_SIGNAL => Base::slot(sp_avma.wrapping_add(ucontext::SP), 0),
        CFA_PLT => {
            let pushed = if pc_avma & 15 >= offset { 8 } else { 0 };
            Base::address(sp_avma.wrapping_add(8 + pushed))
        }
        CFA_DEREF_SP => Base::slot(sp_avma.wrapping_add(offset), addend),
        CFA_DEREF_BP => Base::slot(bp.wrapping_add(offset), addend),
        CFA_BX | CFA_R10 => {
            let register = if rule.cfa == CFA_BX { frame.bx } else { frame.r10 };
            match register.place {
                Saved::VALUE => Base::address(register.word.wrapping_add(offset)),
                Saved::IN_MEMORY => Base::slot(register.word, offset),
                _ => Base::none(OUTCOME_UNSUPPORTED_RULE),
            }
        }
        CFA_END => Base::none(OUTCOME_COMPLETE),
        _ => Base::none(OUTCOME_UNSUPPORTED_RULE),
    }
}

/// Where the caller's `rbp` lies; 0 if it is in the register.
#[inline(always)]
fn bp_slot(frame: &Frame, rule: &Rule, cfa_avma: u64) -> u64 {
    let offset = rule.rbp_offset as i64 as u64;
    match rule.rbp {
        SAVED_AT_CFA => cfa_avma.wrapping_add(offset),
        SAVED_AT_BP => frame.bp.wrapping_add(offset),
        _ if rule.cfa == CFA_NONE => frame.bp,
        _ if rule.cfa == CFA_SIGNAL => frame.sp_avma.wrapping_add(ucontext::BP),
        _ => 0,
    }
}

/// What led nowhere was no frame pointer.
#[inline(always)]
fn unreadable(by_frame_pointer: bool) -> u16 {
    if by_frame_pointer { OUTCOME_FRAME_POINTER_BROKEN } else { OUTCOME_STACK_UNREADABLE }
}

/// Where the caller's registers lie that are not read at once.
#[inline(always)]
fn go_to_caller(frame: &mut Frame, rule: &Rule, cfa_avma: u64) {
    let context_avma = frame.sp_avma;
    if rule.cfa == CFA_SIGNAL {
        frame.bx = Saved::at(context_avma.wrapping_add(ucontext::BX));
        frame.r10 = Saved::at(context_avma.wrapping_add(ucontext::R10));
        return;
    }
    // Not as a whole, which LLVM does by a loop over bytes.
    frame.r10.place = Saved::UNKNOWN;
    if rule.cfa == CFA_NONE {
        // Whoever was passed may have saved it anywhere.
        frame.bx.place = Saved::UNKNOWN;
        return;
    }
    let offset = rule.rbx_offset as i64 as u64;
    if rule.rbx == SAVED_AT_CFA {
        frame.bx = Saved::at(cfa_avma.wrapping_add(offset));
    } else if rule.rbx == SAVED_AT_BP {
        frame.bx = Saved::at(frame.bp.wrapping_add(offset));
    }
}

/// Halvings that bring [`MAX_PAGE_ROWS`] rows down to one.
const PAGE_STEPS: u32 = u32::BITS - (MAX_PAGE_ROWS - 1).leading_zeros();

/// The last of `count` ascending rows, from `first` on, that begins at an offset or
/// before; its rule, or 0. `row` gives a row's word, 0 if there is none; the first is
/// taken to begin early enough.
#[inline(always)]
pub fn rule_among(first: u32, count: u32, offset: u32, mut row: impl FnMut(u32) -> u64) -> u32 {
    let (mut low, mut high) = (first, first.wrapping_add(count));
    for _ in 0..PAGE_STEPS {
        if high.wrapping_sub(low) <= 1 {
            break;
        }
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
        if row(middle) as u32 <= offset {
            low = middle;
        } else {
            high = middle;
        }
    }
    (row(low) >> 32) as u32
}

/// Bits of an address that the cache can tell apart; with larger ones it is not asked.
const CACHE_ADDRESS_BITS: u32 = 47;
const CACHE_INDEX_BITS: u32 = 14;
const CACHE_REST_BITS: u32 = CACHE_ADDRESS_BITS - CACHE_INDEX_BITS;

/// The place of an address in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlace {
    /// Which word.
    pub index: u32,
    /// What the word must begin with: the rest of the address and the generation.
    key: u64,
}

impl CachePlace {
    /// None for an address that is too large.
    #[must_use]
    #[inline(always)]
    pub fn of(avma: u64, generation: u32) -> Option<Self> {
        if avma >> CACHE_ADDRESS_BITS != 0 {
            return None;
        }
        // Odd, so that the product modulo a power of two is a permutation.
        let product = avma.wrapping_mul(0x9e37_79b9_7f4a_7c15) & ((1 << CACHE_ADDRESS_BITS) - 1);
        let rest = product & ((1 << CACHE_REST_BITS) - 1);
        Some(Self {
            index: (product >> CACHE_REST_BITS) as u32,
            key: rest << 31 | u64::from(generation & 0xffff) << 15,
        })
    }

    /// The rule in a word, if it is that of the address, or 0, which is kept of none: an
    /// empty word says the same.
    #[must_use]
    #[inline(always)]
    pub fn rule(self, word: u64) -> u32 {
        if word & !0x7fff == self.key { (word & 0x7fff) as u32 } else { 0 }
    }

    /// The word to keep.
    #[must_use]
    #[inline(always)]
    pub fn word(self, rule: u32) -> u64 {
        self.key | u64::from(rule & 0x7fff)
    }
}

#[cfg(test)]
mod tests;
