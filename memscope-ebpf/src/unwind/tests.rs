extern crate std;

use std::{
    collections::{HashMap, HashSet},
    vec::Vec,
};

use memscope_common::unwind::{
    CACHE_WORDS, CFA_END, CFA_UNSUPPORTED, RULE_FRAME_POINTER, SAVED_NOT,
};

use super::*;

const PC: u64 = 0x40_1005;
const RETURN: u64 = 0x40_2010;
const SP: u64 = 0x7000;
const BP: u64 = 0x7100;
/// What a saved `rbp` is found to be.
const CALLER_BP: u64 = 0x7fe0;

/// Words of memory by address; others cannot be read.
struct Memory(HashMap<u64, u64>);

impl Memory {
    fn of(words: &[(u64, u64)]) -> Self {
        Self(words.iter().copied().collect())
    }

    fn read(&self, avma: u64) -> Word {
        self.0.get(&avma).map_or(Word::unreadable(), |word| Word::read(*word))
    }

    fn step(&self, frame: &mut Frame, rule: &Rule) -> u16 {
        step(frame, rule, |avma, _| self.read(avma))
    }
}

fn frame() -> Frame {
    Frame {
        pc_avma: PC,
        returns: 1,
        sp_avma: SP,
        bp: BP,
        bx: Saved::value(0x7200),
        r10: Saved::unknown(),
    }
}

fn rule(cfa: u8, cfa_offset: i32) -> Rule {
    Rule { cfa_offset, ..Rule::of_kind(cfa) }
}

/// The step goes to `RETURN` with this stack pointer and `rbp`.
fn assert_goes(words: &[(u64, u64)], from: Frame, rule: &Rule, sp_avma: u64, bp: u64) -> Frame {
    let mut frame = from;
    assert_eq!(Memory::of(words).step(&mut frame, rule), 0, "{rule:?}");
    assert_eq!((frame.pc_avma, frame.sp_avma, frame.bp), (RETURN, sp_avma, bp), "{rule:?}");
    frame
}

/// It does not, says so, and leaves the frame as it was.
fn assert_stops(words: &[(u64, u64)], from: Frame, rule: &Rule, outcome: u16) {
    let mut frame = from;
    assert_eq!(Memory::of(words).step(&mut frame, rule), outcome, "{rule:?}");
    assert_eq!(frame, from, "{rule:?}");
}

#[test]
fn the_frame_address_is_found_by_every_kind_of_rule() {
    let r10 = Frame { r10: Saved::value(0x7400), ..frame() };
    let bx_saved = Frame { bx: Saved::at(0x70f8), ..frame() };
    let r10_saved = Frame { r10: Saved::at(0x70f0), ..frame() };
    let in_plt = |pc_avma| Frame { pc_avma, returns: 0, ..frame() };
    let addend = |rule: Rule, addend_words| Rule { addend_words, ..rule };
    let cases = [
        (frame(), rule(CFA_SP, 8), 0x7008),
        (frame(), rule(CFA_SP, 0x2000), 0x9000),
        (frame(), rule(CFA_BP, 16), 0x7110),
        (frame(), rule(CFA_BP, -0x20), 0x70e0),
        (frame(), rule(CFA_BX, 24), 0x7218),
        (bx_saved, rule(CFA_BX, -8), 0x7ff8),
        (r10, rule(CFA_R10, 0), 0x7400),
        (r10_saved, rule(CFA_R10, 8), 0x8808),
        (frame(), rule(CFA_DEREF_SP, 0xf8), 0x8000),
        (frame(), addend(rule(CFA_DEREF_SP, 0xf8), 2), 0x8010),
        (frame(), rule(CFA_DEREF_BP, -8), 0x8000),
        (frame(), addend(rule(CFA_DEREF_BP, -16), 255), 0x8ff8),
        (in_plt(0x40_1000), rule(CFA_PLT, 11), 0x7008),
        (in_plt(0x40_100a), rule(CFA_PLT, 11), 0x7008),
        (in_plt(0x40_100b), rule(CFA_PLT, 11), 0x7010),
        (in_plt(0x40_101f), rule(CFA_PLT, 11), 0x7010),
    ];
    for (from, rule, cfa_avma) in cases {
        let words = [(0x70f8, 0x8000), (0x70f0, 0x8800), (cfa_avma - 8, RETURN)];
        let to = assert_goes(&words, from, &rule, cfa_avma, BP);
        assert_eq!(to.returns, 1, "{rule:?}");
        assert_eq!(to.bx, from.bx, "what is not saved is in the register still");
        assert_eq!(to.r10.place, Saved::UNKNOWN, "calls do not preserve it");
    }
}

#[test]
fn saved_registers_are_found_by_every_kind_of_place() {
    let saved = |rbp, rbp_offset, rbx, rbx_offset| Rule {
        rbp,
        rbp_offset,
        rbx,
        rbx_offset,
        ..rule(CFA_SP, 0x40)
    };
    let words = [(0x7038, RETURN), (0x7030, CALLER_BP), (BP - 24, CALLER_BP)];
    let bx_of = |rule: Rule, bp| assert_goes(&words, frame(), &rule, 0x7040, bp).bx;
    assert_eq!(bx_of(saved(SAVED_NOT, 0, SAVED_NOT, 0), BP), frame().bx);
    assert_eq!(bx_of(saved(SAVED_AT_CFA, -16, SAVED_AT_CFA, -24), CALLER_BP), Saved::at(0x7028));
    assert_eq!(bx_of(saved(SAVED_AT_BP, -24, SAVED_AT_BP, -8), CALLER_BP), Saved::at(BP - 8));
    let unreadable = saved(SAVED_AT_CFA, -0x38, SAVED_NOT, 0);
    assert_stops(&words, frame(), &unreadable, OUTCOME_STACK_UNREADABLE);
}

/// Saved by one function and needed two further up: it is read only then.
#[test]
fn rbx_is_read_where_it_was_saved_frames_ago() {
    let saves = Rule { rbx: SAVED_AT_CFA, rbx_offset: -16, ..rule(CFA_SP, 0x20) };
    let words =
        [(0x7018, RETURN), (0x7010, 0x7800), (0x7038, RETURN), (0x7818, RETURN), (0x7808, 1)];
    let first = assert_goes(&words[..1], frame(), &saves, 0x7020, BP);
    let second = assert_goes(&words, first, &rule(CFA_SP, 0x20), 0x7040, BP);
    assert_eq!(second.bx, Saved::at(0x7010));
    let third = assert_goes(&words, second, &rule(CFA_BX, 0x20), 0x7820, BP);
    assert_eq!(third.bx, Saved::at(0x7010));
    assert_stops(&words[2..], second, &rule(CFA_BX, 0x20), OUTCOME_STACK_UNREADABLE);
}

#[test]
fn a_signal_frame_gives_the_interrupted_registers() {
    // `uc_mcontext` begins at 40: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    let words: Vec<(u64, u64)> = (0..17)
        .map(|index| (SP + 40 + index * 8, 0x1_0000 + index * 0x100))
        .chain([(SP + 168, RETURN)])
        .collect();
    let (r10, bp, bx, sp) = (2, 10, 11, 15);
    let value = |index| 0x1_0000 + index * 0x100;
    let to = assert_goes(&words, frame(), &rule(CFA_SIGNAL, 0), value(sp), value(bp));
    assert_eq!(to.returns, 0, "it was interrupted there");
    assert_eq!(to.bx, Saved::at(SP + 40 + bx * 8));
    assert_eq!(to.r10, Saved::at(SP + 40 + r10 * 8));
    // A prologue that realigns the stack, interrupted.
    let cfa_avma = value(r10) + 8;
    let mut more = words.clone();
    more.push((cfa_avma - 8, RETURN));
    let interrupted = Frame { sp_avma: value(r10) - 0x40, ..to };
    let next = assert_goes(&more, interrupted, &rule(CFA_R10, 8), cfa_avma, value(bp));
    assert_eq!(next.r10.place, Saved::UNKNOWN);
    assert_eq!(next.returns, 1);
    // The handler had a stack of its own, above the other.
    let own = Frame { sp_avma: 0x9_0000, ..frame() };
    let moved: Vec<(u64, u64)> =
        words.iter().map(|(avma, word)| (avma + 0x9_0000 - SP, *word)).collect();
    let to = assert_goes(&moved, own, &rule(CFA_SIGNAL, 0), value(sp), value(bp));
    assert!(to.sp_avma < own.sp_avma);
    for missing in [sp, bp, 16] {
        let avma = SP + 40 + missing * 8;
        let words: Vec<(u64, u64)> =
            words.iter().copied().filter(|(known, _)| *known != avma).collect();
        assert_stops(&words, frame(), &rule(CFA_SIGNAL, 0), OUTCOME_STACK_UNREADABLE);
    }
}

#[test]
fn frame_pointers_are_followed_until_they_end_or_break() {
    let none = Rule::of_kind(CFA_NONE);
    let chain = [(BP, CALLER_BP), (BP + 8, RETURN)];
    let to = assert_goes(&chain, frame(), &none, BP + 16, CALLER_BP);
    assert_eq!(to.bx.place, Saved::UNKNOWN, "who was passed may have saved it anywhere");
    let with = |bp| Frame { bp, ..frame() };
    let ended = [(BP, 0), (BP + 8, 0)];
    assert_stops(&chain, with(0), &none, OUTCOME_FRAME_POINTERS_ENDED);
    assert_stops(&ended, frame(), &none, OUTCOME_FRAME_POINTERS_ENDED);
    let far = SP + MAX_FRAME_BYTES;
    let words = [(far, 0), (far + 8, RETURN), (SP, 0), (SP + 8, RETURN)];
    assert_goes(&words, with(far), &none, far + 16, 0);
    assert_goes(&words, with(SP), &none, SP + 16, 0);
    for broken in [SP - 8, far + 8, BP + 4, 1, u64::MAX] {
        let readable = [(broken, 0), (broken.wrapping_add(8), RETURN)];
        assert_stops(&readable, with(broken), &none, OUTCOME_FRAME_POINTER_BROKEN);
    }
    assert_stops(&words, with(BP + 0x40), &none, OUTCOME_FRAME_POINTER_BROKEN);
    assert_stops(&chain[..1], frame(), &none, OUTCOME_FRAME_POINTER_BROKEN);
}

#[test]
fn a_step_that_leads_nowhere_says_why() {
    let sp8 = rule(CFA_SP, 8);
    let slot = SP;
    assert_stops(&[(slot, RETURN)], frame(), &Rule::of_kind(CFA_END), OUTCOME_COMPLETE);
    for cfa in CFA_UNSUPPORTED..=u8::MAX {
        let rule = rule(cfa, 8);
        assert_stops(&[(slot, RETURN)], frame(), &rule, OUTCOME_UNSUPPORTED_RULE);
    }
    let nothing_known = Frame { bx: Saved::unknown(), ..frame() };
    assert_stops(&[], nothing_known, &rule(CFA_BX, 8), OUTCOME_UNSUPPORTED_RULE);
    assert_stops(&[], frame(), &rule(CFA_R10, 8), OUTCOME_UNSUPPORTED_RULE);
    assert_stops(&[], frame(), &sp8, OUTCOME_STACK_UNREADABLE);
    assert_stops(&[(slot, 0)], frame(), &sp8, OUTCOME_NULL_RETURN);
    for rule in [rule(CFA_SP, 0), rule(CFA_SP, -8), rule(CFA_BP, -0x100)] {
        assert_stops(&[(slot, RETURN)], frame(), &rule, OUTCOME_NOT_UPWARD);
    }
    let words = [(0x70f8, 0x6000), (0x5ff8, RETURN)];
    assert_stops(&words, frame(), &rule(CFA_DEREF_SP, 0xf8), OUTCOME_NOT_UPWARD);
    assert_stops(&[], frame(), &rule(CFA_DEREF_BP, 0), OUTCOME_STACK_UNREADABLE);
}

/// A rule of any kind, also of those that there are not.
fn any_rule(next: &mut impl FnMut(u64) -> u64) -> Rule {
    let offset = |random: u64| (random as i32 - 8) * 8;
    Rule {
        cfa: next(12) as u8,
        rbp: next(3) as u8,
        rbx: next(3) as u8,
        addend_words: next(4) as u8,
        cfa_offset: offset(next(32)),
        rbp_offset: offset(next(16)),
        rbx_offset: offset(next(16)),
    }
}

/// There are two ways to take the most frequent steps.
#[test]
fn the_short_way_leads_where_the_long_way_does() {
    let mut state = 0x9abc_def1_1234_5678;
    let (mut plain, mut gone) = (0, 0);
    for _ in 0..200_000 {
        let mut next = |limit| random(&mut state) % limit;
        let rule = any_rule(&mut next);
        let from = Frame { bp: SP + next(64) * 8, ..frame() };
        let mut words = Vec::new();
        for word in 0..64 {
            let value = if next(8) == 0 { 0 } else { RETURN + word };
            if next(8) != 0 {
                words.push((SP - 128 + word * 8, value));
            }
        }
        let memory = Memory::of(&words);
        let (mut by_step, mut by_long_way) = (from, from);
        let outcome = memory.step(&mut by_step, &rule);
        let expected = any_step(&mut by_long_way, &rule, |avma, _| memory.read(avma));
        assert_eq!(outcome, expected, "{rule:?} {from:?}");
        // What is not known has no value.
        by_step.r10.word = by_long_way.r10.word;
        assert_eq!(by_step, by_long_way, "{rule:?} {from:?}");
        plain += u32::from(is_plain(&rule));
        gone += u32::from(is_plain(&rule) && outcome == 0);
    }
    assert!(plain > 10_000 && gone > 2_000, "{gone} of {plain}");
}

/// Walks are recognised by what is said to matter, see `memo`.
#[test]
fn a_step_depends_on_nothing_but_what_it_says() {
    let mut state = 0x9abc_def1_1234_5678;
    let (mut without_bp, mut without_bx, mut saved) = (0, 0, 0);
    for _ in 0..200_000 {
        let mut next = |limit| random(&mut state) % limit;
        let rule = any_rule(&mut next);
        let places =
            [Saved::value(SP + next(64) * 8), Saved::at(SP + next(64) * 8), Saved::unknown()];
        let from = Frame {
            bp: SP + next(64) * 8,
            bx: places[next(3) as usize],
            r10: places[next(3) as usize],
            ..frame()
        };
        let words: Vec<(u64, u64)> =
            (0..96).map(|word| (SP - 128 + word * 8, SP + next(64) * 8)).collect();
        let memory = Memory::of(&words);
        let mut caller_bp_avma = 0;
        let mut walked = from;
        let outcome = step(&mut walked, &rule, |avma, read_for| {
            if read_for == ReadFor::CallerBp {
                caller_bp_avma = avma;
            }
            memory.read(avma)
        });
        let went_to = |memory: &Memory, mut from: Frame| {
            let outcome = memory.step(&mut from, &rule);
            (outcome, from.pc_avma, from.sp_avma, from.returns)
        };
        let expected = (outcome, walked.pc_avma, walked.sp_avma, walked.returns);
        if !depends_on_bp(&rule) {
            without_bp += 1;
            let other = Frame { bp: SP + next(64) * 8, ..from };
            assert_eq!(went_to(&memory, other), expected, "{rule:?} {from:?}");
            let mut other_walked = other;
            memory.step(&mut other_walked, &rule);
            assert_eq!(other_walked.bx, walked.bx, "{rule:?} {from:?}");
        }
        if !depends_on_first_bx(&from, &rule) && from.bx.place == Saved::VALUE {
            without_bx += 1;
            let other = Frame { bx: Saved::value(SP + next(64) * 8), ..from };
            assert_eq!(went_to(&memory, other), expected, "{rule:?} {from:?}");
        }
        let is_read_otherwise = caller_bp_avma == walked.sp_avma.wrapping_sub(8);
        if caller_bp_avma != 0 && outcome == 0 && !is_read_otherwise && rule.cfa <= CFA_BP {
            saved += 1;
            let mut other = words.clone();
            other
                .iter_mut()
                .filter(|(avma, _)| *avma == caller_bp_avma)
                .for_each(|word| word.1 ^= 8);
            assert_eq!(went_to(&Memory::of(&other), from), expected, "{rule:?} {from:?}");
        }
    }
    assert!(without_bp > 10_000 && without_bx > 10_000 && saved > 5_000);
}

/// Registers can hold anything.
#[test]
fn no_value_overflows() {
    let everywhere = |value| move |_avma, _| Word::read(value);
    let values = [0, 1, 7, 8, SP, i64::MAX as u64, 1 << 63, u64::MAX - 7, u64::MAX];
    for cfa in 0..=CFA_UNSUPPORTED {
        for offset in [0, 8, -8, i32::MAX, i32::MIN] {
            for value in values {
                for place in [Saved::value(value), Saved::at(value), Saved::unknown()] {
                    for saved in [SAVED_NOT, SAVED_AT_CFA, SAVED_AT_BP, 77] {
                        let rule = Rule {
                            rbp: saved,
                            rbx: saved,
                            rbp_offset: offset,
                            rbx_offset: offset,
                            addend_words: 255,
                            ..rule(cfa, offset)
                        };
                        let mut frame = Frame {
                            sp_avma: value,
                            bp: value,
                            bx: place,
                            r10: place,
                            pc_avma: value,
                            returns: 1,
                        };
                        let before = frame;
                        if step(&mut frame, &rule, everywhere(value)) != 0 {
                            assert_eq!(frame, before);
                        } else if cfa != CFA_SIGNAL {
                            assert!(frame.sp_avma > before.sp_avma, "{rule:?} {before:?}");
                        }
                    }
                }
            }
        }
    }
}

/// Rows of `words` from number 100 on.
fn found(words: &[(u32, u32)], offset: u32) -> u32 {
    let count = words.len() as u32;
    rule_among(100, count, offset, |number| {
        assert!((100..100 + count.max(1)).contains(&number), "row {number} of {count}");
        let word = words.get(number as usize - 100);
        word.map_or(0, |(offset, rule)| u64::from(*offset) | u64::from(*rule) << 32)
    })
}

#[test]
fn the_last_row_that_begins_before_is_found() {
    assert_eq!(found(&[], 5), 0, "no rows");
    assert_eq!(found(&[(0, 7)], 0), 7);
    assert_eq!(found(&[(0, 7)], u32::MAX), 7);
    assert_eq!(found(&[(10, 7)], 5), 7, "the first is taken to begin early enough");
    let ends = [(0, 1), (0x7fff_ffff, 2), (0x8000_0000, 3), (u32::MAX, 4)];
    for (offset, rule) in
        [(0x7fff_fffe, 1), (0x7fff_ffff, 2), (0x8000_0000, 3), (u32::MAX - 1, 3), (u32::MAX, 4)]
    {
        assert_eq!(found(&ends, offset), rule, "{offset:#x}");
    }
    // All numbers of rows that a page can have, with every place among them.
    for count in (1..40).chain([1023, 1024, 1025, 4095, 4096, MAX_PAGE_ROWS]) {
        let rows: Vec<(u32, u32)> = (0..count).map(|row| (row * 2 + 10, row + 1)).collect();
        for row in 0..count {
            assert_eq!(found(&rows, row * 2 + 10), row + 1, "{count} rows");
            assert_eq!(found(&rows, row * 2 + 11), row + 1, "{count} rows");
        }
    }
}

/// xorshift64*: the same numbers each time.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

const LARGEST: u64 = (1 << CACHE_ADDRESS_BITS) - 1;

/// Addresses near each other, with all bits set, and anywhere.
fn addresses() -> HashSet<u64> {
    let mut state = 0x1234_5678_9abc_def1;
    let anywhere = (0..200_000).map(|_| random(&mut state) & LARGEST);
    let near = (0..70_000).map(|offset| 0x7f12_3456_0000 + offset);
    let powers = (0..CACHE_ADDRESS_BITS).flat_map(|bit| [1 << bit, LARGEST ^ 1 << bit]);
    let ends = (0..70_000).flat_map(|offset| [offset, LARGEST - offset]);
    anywhere.collect::<Vec<_>>().into_iter().chain(near).chain(powers).chain(ends).collect()
}

#[test]
fn no_two_addresses_have_the_same_place_and_key() {
    let mut places = HashSet::new();
    for avma in addresses() {
        let place = CachePlace::of(avma, 3).unwrap();
        assert!((place.index as usize) < CACHE_WORDS, "{avma:#x}");
        assert!(places.insert((place.index, place.key)), "{avma:#x}");
    }
}

#[test]
fn a_word_is_that_of_its_address_and_generation_only() {
    let addresses: Vec<u64> = addresses().into_iter().take(2000).collect();
    for (number, avma) in addresses.iter().enumerate() {
        let place = CachePlace::of(*avma, 7).unwrap();
        for rule in [1, RULE_FRAME_POINTER, 0x4000, 0x7fff] {
            let word = place.word(rule);
            assert_eq!(place.rule(word), rule, "{avma:#x}");
            for generation in [0, 6, 8, 0x8007, 0xffff] {
                let other = CachePlace::of(*avma, generation).unwrap();
                assert_eq!(other.index, place.index, "{avma:#x}");
                assert_eq!(other.rule(word), 0, "{avma:#x}, generation {generation}");
            }
            let next = addresses[(number + 1) % addresses.len()];
            assert_eq!(CachePlace::of(next, 7).unwrap().rule(word), 0, "{avma:#x} {next:#x}");
        }
        assert_eq!(place.rule(0), 0, "an empty word");
        assert_eq!(place.rule(place.word(0)), 0);
    }
    assert_eq!(CachePlace::of(5, 7), CachePlace::of(5, 0x1_0007), "16 bits of generation");
}

#[test]
fn addresses_that_cannot_be_told_apart_have_no_place() {
    assert!(CachePlace::of(LARGEST, 0).is_some());
    for avma in [LARGEST + 1, 0xffff_ffff_ff60_0000, u64::MAX] {
        assert_eq!(CachePlace::of(avma, 0), None, "{avma:#x}");
    }
}
