//! The part of the eBPF programs that needs no map and no helper, so that it can
//! be tested on the host.

#![no_std]

pub mod unwind;

use memscope_common::control::{
    Cookie, GAP_STEPS, Gaps, InnerCalls, MAX_INNER_CALLS, ProbeSurroundings,
};

/// What an entry probe has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A call by the program: follow it to its return.
    Outermost,
    /// A call by an allocator function to another one: no event.
    Nested,
    /// Like `Nested`, by a jump in place of a call; to be remembered.
    TailCall,
    /// A call by the program; the one remembered from before will never return.
    OutermostAfterLostReturn,
    /// A call by the program; an exception has left the one remembered from before.
    OutermostAfterException,
}

/// Decides what an entry is, given the outermost call that was seen to begin on
/// this thread (`outer`, 0 if none) and the stack pointers at both entries. `is_left`: the
/// outer call's return address is no longer where it was.
///
/// The stack grows down, so what runs inside the outer call has a lower stack
/// pointer. The same stack pointer is a tail call (glibc's `reallocarray` jumps to
/// `realloc`) unless it is the same function, or the same tail call once more:
/// then the outer call was abandoned (longjmp) and its place is used again.
///
/// A call that an exception can leave is left if its return address is gone, or if another call
/// is made from where it was or above.
///
/// Known weakness: after another call was abandoned, calls from deeper in the stack are
/// taken for nested until one comes from the abandoned depth or above.
#[must_use]
#[inline(always)]
pub fn classify_entry(
    outer: Cookie,
    outer_sp_avma: u64,
    tail_probe: u64,
    entered: Cookie,
    sp_avma: u64,
    is_left: bool,
) -> Entry {
    if outer.0 == 0 {
        return Entry::Outermost;
    }
    if is_left {
        return Entry::OutermostAfterException;
    }
    if sp_avma < outer_sp_avma {
        return Entry::Nested;
    }
    // A call that is told in its midst has its registers there, and jumps nowhere else.
    let same_place = sp_avma == outer_sp_avma && !outer.notes();
    if same_place && outer.probe() != entered.probe() && tail_probe != u64::from(entered.probe()) {
        return Entry::TailCall;
    }
    if outer.can_throw() {
        return Entry::OutermostAfterException;
    }
    Entry::OutermostAfterLostReturn
}

/// Whether a return belongs to the outermost call, if there is one: the same probe, and the stack
/// pointer just above the slot that held the return address.
#[must_use]
#[inline(always)]
pub fn is_return_of(outer: Cookie, outer_sp_avma: u64, returned: Cookie, sp_avma: u64) -> bool {
    outer.0 != 0 && outer.0 == returned.0 && sp_avma == outer_sp_avma.wrapping_add(8)
}

/// Whether an instruction by which functions return that can throw ends the outermost call: the
/// return address that is on top of the stack there is where that call's was.
#[must_use]
#[inline(always)]
pub fn is_exit_of(outer: Cookie, outer_sp_avma: u64, sp_avma: u64) -> bool {
    outer.can_throw() && sp_avma == outer_sp_avma
}

/// Whether a function that catches an exception is called by one that an exception can only have
/// reached by leaving the outermost call.
#[must_use]
#[inline(always)]
pub fn is_caught_outside(outer: Cookie, outer_sp_avma: u64, sp_avma: u64) -> bool {
    outer.can_throw() && sp_avma >= outer_sp_avma
}

/// A call of a function that ends a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeCall {
    /// Which block.
    pub block_avma: u64,
    /// By which function.
    pub cookie: Cookie,
    /// Stack pointer at its entry.
    pub sp_avma: u64,
    /// Where it returns to.
    pub return_avma: u64,
}

impl FreeCall {
    /// Whether the call before has handed its block on to this one: by a call from inside itself,
    /// or by a jump in place of one.
    #[must_use]
    #[inline(always)]
    pub fn is_part_of(&self, before: &Self) -> bool {
        let is_inside = self.sp_avma < before.sp_avma;
        let is_jump = self.sp_avma == before.sp_avma && self.return_avma == before.return_avma;
        self.block_avma == before.block_avma
            && self.cookie != before.cookie
            && (is_inside || is_jump)
    }
}

/// Whether a probed function was called by its own module.
#[must_use]
#[inline(always)]
pub const fn is_internal_call(
    surroundings: &ProbeSurroundings,
    probe_avma: u64,
    return_avma: u64,
) -> bool {
    let start_avma = probe_avma.wrapping_sub(surroundings.before_bytes as u64);
    let length_bytes = surroundings.before_bytes as u64 + surroundings.after_bytes as u64;
    return_avma.wrapping_sub(start_avma) < length_bytes
}

/// What a hit is, inside of a function that the one of interest calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerHit {
    /// Of a call that is told there.
    Told,
    /// Of one that is not: by another function, or to be tried again.
    PassedBy,
    /// It cannot be said whose it is, as the return address is not one of the module.
    Unknown,
}

/// Tells the calls of a function that are told inside of it from the others, by where they return to.
#[must_use]
#[inline(always)]
pub const fn inner_hit(
    surroundings: &ProbeSurroundings,
    probe_avma: u64,
    return_avma: u64,
    fails: bool,
) -> InnerHit {
    let InnerCalls { return_distances, tell_failures, .. } = surroundings.inner;
    let mut number = 0;
    while number < MAX_INNER_CALLS {
        let distance = return_distances[number] as i64 as u64;
        if distance != 0 && return_avma.wrapping_sub(probe_avma) == distance {
            let is_told = !fails || tell_failures >> number & 1 != 0;
            return if is_told { InnerHit::Told } else { InnerHit::PassedBy };
        }
        number += 1;
    }
    if is_internal_call(surroundings, probe_avma, return_avma) {
        InnerHit::PassedBy
    } else {
        InnerHit::Unknown
    }
}

/// Whether a condition of conditional jumps holds, by its number (Intel SDM, volume 2, table B-10), for these flags (volume 1,
/// 3.4.3).
#[must_use]
#[inline(always)]
pub const fn condition_holds(condition: u8, flags: u64) -> bool {
    let (carry, parity, zero) = (flags & 1, flags >> 2 & 1, flags >> 6 & 1);
    let (sign, overflow) = (flags >> 7 & 1, flags >> 11 & 1);
    let holds = match condition >> 1 {
        0 => overflow,
        1 => carry,
        2 => zero,
        3 => carry | zero,
        4 => sign,
        5 => parity,
        6 => sign ^ overflow,
        _ => zero | (sign ^ overflow),
    };
    holds != condition as u64 & 1
}

/// `size` times `count`; `u64::MAX` if that overflows, as no block can be so large.
#[must_use]
#[inline(always)]
pub fn product_bytes(size: u64, count: u64) -> u64 {
    // By halves: LLVM turns checked_mul, and a test by division, into a 128-bit
    // multiplication, which BPF has not.
    let (small, large) = if size < count { (size, count) } else { (count, size) };
    if small >> 32 != 0 {
        return u64::MAX;
    }
    let high = (large >> 32) * small;
    if high >> 32 != 0 {
        return u64::MAX;
    }
    let low = (large & 0xffff_ffff) * small;
    let sum = (high << 32).wrapping_add(low);
    if sum < low { u64::MAX } else { sum }
}

/// The next random number of a thread (xorshift64, Marsaglia 2003). The state is never 0.
#[must_use]
#[inline(always)]
pub fn next_random(state: u64) -> u64 {
    let mut next = if state == 0 { 0x9e37_79b9_7f4a_7c15 } else { state };
    next ^= next << 13;
    next ^= next >> 7;
    next ^= next << 17;
    next
}

/// Where the random numbers of a thread begin, of which `before` others had begun before it.
#[must_use]
#[inline(always)]
pub fn random_seed(seed: u32, before: u64) -> u64 {
    mix(mix(u64::from(seed) << 32 ^ 0x6d65_6d73_636f_7065, before), before)
}

/// Bytes until the next one that is drawn: an exponentially distributed number with the mean
/// `interval_bytes`, by the inverse of the distribution, linear between its quantiles. At
/// least 1.
#[must_use]
#[inline(always)]
pub fn gap_bytes(gaps: &Gaps, random: u64, interval_bytes: u64) -> u64 {
    let step = (random >> 52) as usize & (GAP_STEPS - 1);
    let fraction = random >> 36 & 0xffff;
    let (low, high) = (u64::from(gaps.quantiles[step]), u64::from(gaps.quantiles[step + 1]));
    let quantile = low + (high.wrapping_sub(low).wrapping_mul(fraction) >> 16);
    // By halves, as the product of the whole can have more than 64 bits.
    let whole = (interval_bytes >> 16) * quantile;
    let rest = ((interval_bytes & 0xffff) * quantile) >> 16;
    whole + rest + 1
}

/// Start value of a stack's identity; makes stacks of different address spaces differ,
/// and those of one in which something else may have come to lie at the same address.
#[must_use]
#[inline(always)]
pub fn stack_seed(target: u16, image: u16, removals: u32) -> u64 {
    let space = u64::from(target) << 16 | u64::from(image) | u64::from(removals) << 32;
    mix(0x6d65_6d73_636f_7065, space)
}

/// What the dynamic loader's notice means, from what it has said before and now
/// (`r_state`, glibc `<link.h>`): whether something was or will be unmapped. It calls
/// with 1 before it adds, with 2 before it removes, and with 0 afterwards. A 0 that
/// follows nothing speaks of another namespace (`dlmopen`), whose state is not known.
#[must_use]
#[inline(always)]
pub fn may_unmap(said_before: u32, says: u32) -> bool {
    const CONSISTENT: u32 = 0;
    const ADD: u32 = 1;
    !(says == ADD || says == CONSISTENT && said_before == ADD)
}

/// Folds one more value into a stack's identity. Multiply and shift, after
/// Fowler/Noll/Vo with a 64-bit golden-ratio multiplier.
#[must_use]
#[inline(always)]
pub fn mix(hash: u64, value: u64) -> u64 {
    let product = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 29
}

/// Whether a system call has failed (`IS_ERR_VALUE`, include/linux/err.h).
#[must_use]
#[inline(always)]
pub const fn is_error(result: u64) -> bool {
    result > u64::MAX - 4095
}

/// The next multiple of a power of two; 0 if there is none.
#[must_use]
#[inline(always)]
pub const fn rounded_up(size_bytes: u64, unit_bytes: u64) -> u64 {
    size_bytes.wrapping_add(unit_bytes - 1) & !(unit_bytes - 1)
}

/// The size of the pages that `mmap`'s flags ask for, if these are huge ones; without a size those
/// of 2 MiB, the usual default (`hugetlb_get_unmapped_area` and `HUGETLB_FLAG_ENCODE_SHIFT`).
#[must_use]
#[inline(always)]
pub const fn hugetlb_bytes(flags: u64) -> Option<u64> {
    const MAP_HUGETLB: u64 = 0x4_0000;
    if flags & MAP_HUGETLB == 0 {
        return None;
    }
    match flags >> 26 & 0x3f {
        0 => Some(2 << 20),
        log2 => Some(1 << log2),
    }
}

/// How a process has ended, as wait(2) gives it: by what all its threads were told to end with, or
/// by what its first thread has ended with (`wait_task_zombie` in kernel/exit.c).
#[must_use]
#[inline(always)]
pub const fn wait_status(signal_flags: u32, group_exit_code: u32, leader_exit_code: u32) -> u32 {
    /// `SIGNAL_GROUP_EXIT` (include/linux/sched/signal.h)
    const GROUP_EXIT: u32 = 4;
    if signal_flags & GROUP_EXIT != 0 { group_exit_code } else { leader_exit_code }
}

/// Pages that one step of the kernel makes resident, or takes away, at most: those that one page
/// table has (`PTRS_PER_PTE`).
pub const MAX_PAGES_AT_ONCE: i64 = 512;

/// What was counted on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// By how many pages a counter of memory was changed.
    pub pages: i64,
    /// What this CPU has added to the sum for it, and for what it counted before.
    pub added: i64,
}

/// By how many pages a counter of memory was changed on a CPU, given what this CPU had and has yet
/// to add to the sum, and by what the sum has changed that no CPU was found to have added. The CPU
/// adds its part when it has become `batch`; another CPU may have done so in the same moment, and
/// finds its own here when it looks.
#[must_use]
#[inline(always)]
pub const fn counted_pages(before: i64, now: i64, changed: i64, batch: i64) -> Counted {
    let all = now.wrapping_sub(before).wrapping_add(changed);
    let pages = if before > 0
        && batch > 0
        && changed > batch
        && (changed as u64).is_multiple_of(batch as u64)
    {
        // Of single pages each part that is added is one batch.
        batch.wrapping_sub(before)
    } else if all > MAX_PAGES_AT_ONCE {
        MAX_PAGES_AT_ONCE
    } else if all < -MAX_PAGES_AT_ONCE {
        -MAX_PAGES_AT_ONCE
    } else {
        all
    };
    Counted { pages, added: pages.wrapping_add(before).wrapping_sub(now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memscope_common::{
        control::{
            ALLOCATOR_CALL_WORDS, Arguments, NO_ARGUMENT, UNKNOWN_COOKIE, allocator_call_bit,
        },
        unwind::{CFA_SP, Rule},
    };

    fn cookie(probe: u16) -> Cookie {
        Cookie::new(
            probe,
            Arguments { size: 0, count: NO_ARGUMENT, block: NO_ARGUMENT, result_slot: NO_ARGUMENT },
        )
    }

    #[test]
    fn cookie_returns_what_was_packed() {
        let arguments = Arguments { size: 2, count: NO_ARGUMENT, block: 5, result_slot: 0 };
        let packed = Cookie::new(65_535, arguments);
        assert_eq!(packed.probe(), 65_535);
        assert_eq!(packed.arguments(), arguments);
    }

    #[test]
    fn a_cookie_says_whose_function_it_is() {
        assert_eq!(cookie(7).allocator(), 0);
        let of_last = cookie(7).of_leaf().of_allocator(255);
        assert_eq!((of_last.allocator(), of_last.probe()), (255, 7));
        assert!(of_last.is_leaf() && !of_last.is_stepped() && !of_last.can_throw());
        assert_eq!(of_last.arguments(), cookie(7).arguments());
    }

    #[test]
    fn each_two_allocators_have_a_bit() {
        let bits = (0..=255).flat_map(|outer| (0..=255).map(move |inner| (outer, inner)));
        let mut words = [0_u64; ALLOCATOR_CALL_WORDS as usize];
        for (outer, inner) in bits {
            let (word, bit) = allocator_call_bit(outer, inner);
            assert_eq!(words[word as usize] & bit, 0, "{outer} and {inner}");
            words[word as usize] |= bit;
        }
        assert!(words.iter().all(|word| *word == u64::MAX));
    }

    #[test]
    fn a_process_ends_with_what_all_threads_were_told() {
        assert_eq!(wait_status(4, 9, 0x100), 9);
        assert_eq!(wait_status(0x10, 9, 0x100), 0x100);
    }

    #[test]
    fn entries_are_classified_by_depth() {
        let none = Cookie(0);
        let (malloc, realloc) = (cookie(1), cookie(2));
        let cases = [
            (none, 0, 0, malloc, 0x7000, Entry::Outermost),
            (malloc, 0x7000, 0, realloc, 0x6ff8, Entry::Nested),
            (malloc, 0x7000, 0, malloc, 0x6ff8, Entry::Nested),
            (malloc, 0x7000, 0, realloc, 0x7000, Entry::TailCall),
            (malloc, 0x7000, 2, realloc, 0x7000, Entry::OutermostAfterLostReturn),
            (malloc.of_noting(), 0x7000, 0, realloc, 0x7000, Entry::OutermostAfterLostReturn),
            (malloc.of_noting(), 0x7000, 0, realloc, 0x6ff8, Entry::Nested),
            (malloc, 0x7000, 0, malloc, 0x7000, Entry::OutermostAfterLostReturn),
            (malloc, 0x7000, 0, realloc, 0x7008, Entry::OutermostAfterLostReturn),
        ];
        for (outer, outer_sp, tail, entered, sp, expected) in cases {
            assert_eq!(
                classify_entry(outer, outer_sp, tail, entered, sp, false),
                expected,
                "outer {outer:?}@{outer_sp:#x} tail {tail}, entered {entered:?}@{sp:#x}"
            );
        }
    }

    #[test]
    fn a_call_that_an_exception_has_left_is_over() {
        let (new, free) = (cookie(1).of_throwing(), cookie(2));
        let entry = |sp, is_left| classify_entry(new, 0x7000, 0, free, sp, is_left);
        assert_eq!(entry(0x6f00, false), Entry::Nested);
        assert_eq!(entry(0x6f00, true), Entry::OutermostAfterException, "deeper than it was");
        assert_eq!(entry(0x7000, false), Entry::TailCall);
        assert_eq!(entry(0x7000, true), Entry::OutermostAfterException, "another call from there");
        assert_eq!(entry(0x7008, false), Entry::OutermostAfterException);
        let again = classify_entry(new, 0x7000, 0, new, 0x7000, false);
        assert_eq!(again, Entry::OutermostAfterException, "in a loop");
        assert!(is_caught_outside(new, 0x7000, 0x7000) && is_caught_outside(new, 0x7000, 0x7100));
        assert!(!is_caught_outside(new, 0x7000, 0x6ff8), "by the allocator itself");
        assert!(!is_caught_outside(free, 0x7000, 0x7000) && !is_caught_outside(Cookie(0), 0, 0));
    }

    #[test]
    fn an_exit_ends_the_call_whose_return_address_it_finds() {
        let new = cookie(1).of_throwing();
        assert!(is_exit_of(new, 0x7000, 0x7000));
        assert!(!is_exit_of(new, 0x7000, 0x6ff0), "of an inner call");
        assert!(!is_exit_of(cookie(1), 0x7000, 0x7000), "it has a return probe");
        assert!(!is_exit_of(Cookie(0), 0, 0), "none is under way");
    }

    #[test]
    fn a_free_is_handed_on_from_inside_another_only() {
        let (block_avma, sp_avma, return_avma) = (0x1000, 0x7000, 0x400);
        let first = FreeCall { block_avma, cookie: cookie(1), sp_avma, return_avma };
        let called = FreeCall { cookie: cookie(2), sp_avma: 0x6ff0, return_avma: 0x500, ..first };
        assert!(called.is_part_of(&first));
        let jumped = FreeCall { cookie: cookie(2), ..first };
        assert!(jumped.is_part_of(&first));
        let later = FreeCall { cookie: cookie(2), return_avma: 0x410, ..first };
        assert!(!later.is_part_of(&first), "another thread has handed the address back");
        assert!(!FreeCall { sp_avma: 0x7010, ..called }.is_part_of(&first), "from above");
        assert!(!FreeCall { block_avma: 0x2000, ..called }.is_part_of(&first));
        assert!(!FreeCall { cookie: cookie(1), ..called }.is_part_of(&first));
    }

    #[test]
    fn ranges_are_whole_pages_and_errors_are_none() {
        assert_eq!([0, 1, 4096, 4097].map(|bytes| rounded_up(bytes, 4096)), [0, 4096, 4096, 8192]);
        assert_eq!(rounded_up(u64::MAX, 4096), 0, "as the kernel sees it");
        assert!(is_error(u64::MAX) && is_error(u64::MAX - 4094) && !is_error(u64::MAX - 4095));
        let (anonymous, huge) = (0x22, 0x4_0022);
        assert_eq!(hugetlb_bytes(anonymous), None);
        assert_eq!(hugetlb_bytes(huge), Some(2 << 20));
        assert_eq!(hugetlb_bytes(huge | 30 << 26), Some(1 << 30));
    }

    #[test]
    fn a_return_matches_its_own_entry_only() {
        assert!(is_return_of(cookie(1), 0x7000, cookie(1), 0x7008));
        assert!(!is_return_of(cookie(1), 0x7000, cookie(1), 0x7000), "of an inner call");
        assert!(!is_return_of(cookie(1), 0x7000, cookie(2), 0x7008), "of a tail call");
        assert!(!is_return_of(Cookie(0), 0x7000, Cookie(0), 0x7008), "none is under way");
    }

    #[test]
    fn conditions_are_those_of_the_flags() {
        let (carry, zero, sign, overflow) = (1, 1 << 6, 1 << 7, 1 << 11);
        // o, b, e, be, s, p, l, le: each with flags for which it holds, and for which it does not.
        for (condition, holds, does_not) in [
            (0, overflow, carry),
            (2, carry, zero),
            (4, zero, carry),
            (6, zero, sign),
            (6, carry, overflow),
            (8, sign, overflow),
            (10, 1 << 2, zero),
            (12, sign, sign | overflow),
            (14, zero, sign | overflow),
            (14, overflow, 0),
        ] {
            // With flags that no jump asks for.
            let (holds, does_not) = (holds | 0x200, does_not | 0x202);
            assert!(condition_holds(condition, holds) && !condition_holds(condition, does_not));
            let contrary = condition | 1;
            assert!(!condition_holds(contrary, holds) && condition_holds(contrary, does_not));
        }
    }

    #[test]
    fn cookies_say_where_a_block_is_known() {
        let cookie = cookie(7);
        assert!(!cookie.gives_at_once());
        let always = cookie.of_giving(Some(11), None);
        assert_eq!((always.register(), always.condition()), (11, None));
        let with = cookie.of_allocator(255).of_giving(Some(2), Some(5));
        assert_eq!((with.register(), with.condition()), (2, Some(5)));
        assert_eq!(
            (with.allocator(), with.probe(), with.arguments()),
            (255, 7, cookie.arguments())
        );
        assert!(with.gives_at_once() && with != UNKNOWN_COOKIE);
        assert!(!with.notes() && !with.was_noted() && with.depth_bytes() == 0);
        let noted = with.of_noted().of_depth(40);
        assert!(noted.was_noted() && noted.gives_at_once() && !noted.notes());
        assert_eq!((noted.depth_bytes(), noted.register(), noted.probe()), (40, 2, 7));
        let noting = cookie.of_noting().of_depth(248);
        assert!(noting.notes() && !noting.gives_at_once() && !noting.was_noted());
        assert_eq!((noting.depth_bytes(), noting.probe()), (248, 7));
        let failing = cookie.of_giving(None, None);
        assert_eq!((failing.register(), failing.gives_at_once()), (4, true), "the stack pointer");
    }

    #[test]
    fn calls_from_within_the_code_around_the_probe_are_internal() {
        let to_caller = Rule::of_kind(CFA_SP);
        let inner = InnerCalls::default();
        let around =
            ProbeSurroundings { before_bytes: 0x100, after_bytes: 0x200, to_caller, inner };
        for (return_avma, expected) in [
            (0x8eff, false),
            (0x8f00, true),
            (0x9000, true),
            (0x91ff, true),
            (0x9200, false),
            (0, false),
        ] {
            assert_eq!(
                is_internal_call(&around, 0x9000, return_avma),
                expected,
                "{return_avma:#x}"
            );
        }
        let unknown = ProbeSurroundings { before_bytes: 0, after_bytes: 0, to_caller, inner };
        assert!(!is_internal_call(&unknown, 0x9000, 0x9000));
    }

    #[test]
    fn of_a_function_that_many_call_the_calls_of_one_are_told() {
        let inner = InnerCalls {
            return_distances: [0x1080, -0x40, 0, 0],
            depth_bytes: 48,
            tell_failures: 0b10,
        };
        let to_caller = Rule::of_kind(CFA_SP);
        let around =
            ProbeSurroundings { before_bytes: 0x100, after_bytes: 0x2000, to_caller, inner };
        let hit = |return_avma, fails| inner_hit(&around, 0x9000, return_avma, fails);
        assert_eq!(hit(0xa080, false), InnerHit::Told);
        assert_eq!(hit(0xa080, true), InnerHit::PassedBy, "it is tried again");
        assert_eq!((hit(0x8fc0, false), hit(0x8fc0, true)), (InnerHit::Told, InnerHit::Told));
        assert_eq!(hit(0x9000, false), InnerHit::PassedBy, "none is there");
        assert_eq!(hit(0xa000, false), InnerHit::PassedBy, "another function's");
        assert_eq!(hit(0x7fff_ffff_f000, false), InnerHit::Unknown);
        assert_eq!(hit(0, false), InnerHit::Unknown, "it could not be read");
    }

    #[test]
    fn products_saturate() {
        assert_eq!(product_bytes(3, 5), 15);
        assert_eq!(product_bytes(0, u64::MAX), 0);
        assert_eq!(product_bytes(u64::MAX, 0), 0);
        assert_eq!(product_bytes(1 << 32, 1 << 32), u64::MAX);
        assert_eq!(product_bytes(u64::MAX, 1), u64::MAX);
        assert_eq!(product_bytes((1 << 32) + 7, 11), (11 << 32) + 77);
        assert_eq!(product_bytes(0xffff_ffff, 0x1_0000_0001), u64::MAX);
        assert_eq!(product_bytes(0xffff_ffff, 0x1_0000_0002), u64::MAX, "overflow by carry");
    }

    #[test]
    fn identities_differ_by_space_and_order() {
        assert_ne!(stack_seed(1, 0, 0), stack_seed(0, 1, 0));
        assert_ne!(stack_seed(0, 0, 0), stack_seed(0, 0, 1));
        let seed = stack_seed(0, 0, 0);
        assert_ne!(mix(mix(seed, 1), 2), mix(mix(seed, 2), 1));
    }

    #[test]
    fn only_what_surely_adds_unmaps_nothing() {
        let (consistent, add, delete, unknown) = (0, 1, 2, u32::MAX);
        assert!(!may_unmap(consistent, add));
        assert!(!may_unmap(add, consistent));
        assert!(may_unmap(consistent, delete));
        assert!(may_unmap(delete, consistent), "what was read before may be gone by now");
        assert!(may_unmap(consistent, consistent), "another namespace");
        assert!(may_unmap(add, unknown) && may_unmap(unknown, consistent));
    }

    /// How `percpu_counter_add_batch` counts, for each of several CPUs.
    struct Counter {
        sum: i64,
        parts: [i64; 3],
        /// What was seen of them.
        known_sum: i64,
        known_parts: [i64; 3],
    }

    impl Counter {
        const BATCH: i64 = 32;

        fn new() -> Self {
            Self { sum: 0, parts: [0; 3], known_sum: 0, known_parts: [0; 3] }
        }

        fn count(&mut self, cpu: usize, pages: i64) {
            let part = self.parts[cpu] + pages;
            if part.abs() >= Self::BATCH {
                self.sum += part;
                self.parts[cpu] = 0;
            } else {
                self.parts[cpu] = part;
            }
        }

        fn look(&mut self, cpu: usize) -> i64 {
            let now = self.parts[cpu];
            let before = core::mem::replace(&mut self.known_parts[cpu], now);
            let changed = if now == 0 { self.sum - self.known_sum } else { 0 };
            let counted = counted_pages(before, now, changed, Self::BATCH);
            self.known_sum += counted.added;
            counted.pages
        }
    }

    #[test]
    fn what_was_counted_is_found_whatever_it_does_to_the_sum() {
        let mut counter = Counter::new();
        let others = [512, -512, 16, -3, 1, 1, 512, 512, -40, -512, 31, 1, -32, 64, -64];
        for pages in [1; 100].into_iter().chain(others) {
            counter.count(0, pages);
            assert_eq!(counter.look(0), pages);
        }
    }

    #[test]
    fn cpus_that_count_in_the_same_moment_find_their_own() {
        for pages in [1, 16, 512] {
            let mut counter = Counter::new();
            for _ in 0..1000 {
                (0..3).for_each(|cpu| counter.count(cpu, pages));
                for cpu in [1, 2, 0] {
                    assert_eq!(counter.look(cpu), pages);
                }
            }
        }
    }
}
