//! Tables of made-up files, of files of this machine, and of damaged ones.

mod cache;
mod copied;
mod image;
mod readelf;

use gimli::{
    Register, X86_64,
    write::{CallFrameInstruction as Cfi, Expression},
};
use image::{Image, cfa_expression, frames};
use memscope_common::unwind::{
    CFA_BP, CFA_BX, CFA_DEREF_BP, CFA_DEREF_SP, CFA_END, CFA_NONE, CFA_PLT, CFA_R10, CFA_SIGNAL,
    CFA_SP, CFA_UNSUPPORTED, Rule, SAVED_AT_BP, SAVED_AT_CFA,
};
use proptest::prelude::*;

use super::*;

const RBP: Register = X86_64::RBP;
const RBX: Register = X86_64::RBX;
const RSP: Register = X86_64::RSP;

fn sp(cfa_offset: i32) -> Rule {
    Rule { cfa_offset, ..Rule::of_kind(CFA_SP) }
}

fn kind(table: &UnwindTable, svma: u64) -> u8 {
    table.rule_at(svma).cfa
}

/// What the type promises.
fn assert_valid(table: &UnwindTable) {
    assert_eq!(table.base_svma % 4096, 0);
    assert_eq!(table.rules[..3], FIRST_RULES);
    for pair in table.rows.windows(2) {
        assert!(pair[0].offset < pair[1].offset && pair[0].rule != pair[1].rule, "{pair:?}");
    }
    assert!(table.rows.iter().all(|row| (row.rule as usize) < table.rules.len()));
}

fn read(image: &Image) -> UnwindTable {
    let table = UnwindTable::from_elf(&image.bytes()).unwrap();
    assert_valid(&table);
    table
}

fn eh_frame(functions: &[image::Function]) -> Image {
    Image { eh_frame: frames(functions, false, false), ..Image::default() }
}

/// The rule of a function that says this from its first instruction on.
fn rule_of(instructions: &[Cfi], is_signal_frame: bool) -> (Rule, Problems) {
    let function = (0x1100, 0x10, instructions.iter().map(|said| (0, said.clone())).collect());
    let eh_frame = frames(&[function], is_signal_frame, false);
    let table = read(&Image { eh_frame, ..Image::default() });
    assert_eq!(table.rule_at(0x110f), table.rule_at(0x1100));
    (table.rule_at(0x1100), table.problems)
}

#[test]
fn a_function_with_a_frame_pointer() {
    let table = read(&eh_frame(&[(
        0x1100,
        0x40,
        vec![
            (1, Cfi::CfaOffset(16)),
            (1, Cfi::Offset(RBP, -16)),
            (4, Cfi::CfaRegister(RBP)),
            (9, Cfi::Offset(RBX, -24)),
            (0x3f, Cfi::Cfa(RSP, 8)),
        ],
    )]));
    assert_eq!(table.base_svma, 0x1000);
    let pushed = Rule { rbp: SAVED_AT_CFA, rbp_offset: -16, ..sp(16) };
    let framed = Rule { cfa: CFA_BP, ..pushed };
    let both = Rule { rbx: SAVED_AT_CFA, rbx_offset: -24, ..framed };
    for (svma, rule) in [
        (0x10ff, Rule::of_kind(CFA_NONE)),
        (0x1100, sp(8)),
        (0x1101, pushed),
        (0x1103, pushed),
        (0x1104, framed),
        (0x1109, both),
        (0x113e, both),
        (0x113f, Rule { cfa: CFA_SP, cfa_offset: 8, ..both }),
        (0x1140, Rule::of_kind(CFA_NONE)),
        (0, Rule::of_kind(CFA_NONE)),
        (u64::MAX, Rule::of_kind(CFA_NONE)),
    ] {
        assert_eq!(table.rule_at(svma), rule, "{svma:#x}");
    }
    assert_eq!(table.problems, Problems::default());
    assert_eq!(table.problems.to_string(), "none");
}

#[test]
fn frame_addresses_from_registers() {
    for (register, offset, expected) in [
        (RSP, 8, CFA_SP),
        (RSP, 13, CFA_SP),
        (RSP, 600_000, CFA_SP),
        (RBP, 16, CFA_BP),
        (RBX, 56, CFA_BX),
        (X86_64::R10, 0, CFA_R10),
        (X86_64::RAX, 8, CFA_UNSUPPORTED),
        (X86_64::R11, 8, CFA_UNSUPPORTED),
    ] {
        let (rule, problems) = rule_of(&[Cfi::Cfa(register, offset)], false);
        assert_eq!(rule.cfa, expected, "{register:?}");
        if expected == CFA_UNSUPPORTED {
            assert_eq!(problems.unsupported_frame_addresses, 1);
        } else {
            assert_eq!(rule.cfa_offset, offset);
        }
    }
}

#[test]
fn frame_addresses_from_expressions() {
    let plt = |pushed| {
        cfa_expression(|said| {
            said.op_breg(RSP, 8);
            said.op_breg(X86_64::RA, 0);
            said.op_constu(15);
            said.op(gimli::DW_OP_and);
            said.op_constu(pushed);
            said.op(gimli::DW_OP_ge);
            said.op_constu(3);
            said.op(gimli::DW_OP_shl);
            said.op(gimli::DW_OP_plus);
        })
    };
    let deref = |register, offset, addend| {
        cfa_expression(move |said| {
            said.op_breg(register, offset);
            said.op_deref();
            if addend != 0 {
                said.op_plus_uconst(addend);
            }
        })
    };
    let of =
        |cfa, cfa_offset, addend_words| Rule { cfa_offset, addend_words, ..Rule::of_kind(cfa) };
    let unsupported = Rule::of_kind(CFA_UNSUPPORTED);
    for (said, rule) in [
        (plt(11), of(CFA_PLT, 11, 0)),
        (plt(10), of(CFA_PLT, 10, 0)),
        (plt(16), unsupported),
        (deref(RBP, -8, 0), of(CFA_DEREF_BP, -8, 0)),
        (deref(RBP, -16, 16), of(CFA_DEREF_BP, -16, 2)),
        (deref(RSP, 152, 8), of(CFA_DEREF_SP, 152, 1)),
        (deref(RSP, 152, 4), unsupported),
        (deref(RSP, 152, 8 * 256), unsupported),
        (deref(RSP, 1 << 33, 8), unsupported),
        (deref(X86_64::RAX, 8, 8), unsupported),
        (
            cfa_expression(|said| {
                said.op_breg(RSP, 24);
                said.op_deref();
                said.op_constu(8);
                said.op(gimli::DW_OP_plus);
            }),
            of(CFA_DEREF_SP, 24, 1),
        ),
        (cfa_expression(|said| said.op_breg(RSP, 40)), sp(40)),
        // An array's element: what `n` is cannot be said.
        (
            cfa_expression(|said| {
                said.op_breg(RSP, 8);
                said.op_breg(X86_64::R9, 0);
                said.op_constu(8);
                said.op(gimli::DW_OP_mul);
                said.op(gimli::DW_OP_plus);
                said.op_deref();
            }),
            unsupported,
        ),
        (cfa_expression(|said| said.op(gimli::DW_OP_plus)), unsupported),
        (cfa_expression(|_| ()), unsupported),
        (cfa_expression(|said| (0..99).for_each(|_| said.op_breg(RSP, 0))), unsupported),
    ] {
        assert_eq!(rule_of(std::slice::from_ref(&said), false).0, rule, "{said:?}");
    }
}

#[test]
fn places_of_registers() {
    let at = |register, offset| {
        let mut said = Expression::new();
        said.op_breg(register, offset);
        said
    };
    let (rule, _) = rule_of(
        &[Cfi::CfaOffset(32), Cfi::Expression(RBP, at(RBP, 0)), Cfi::Expression(RBX, at(RBP, -40))],
        false,
    );
    let expected = Rule { rbp: SAVED_AT_BP, rbx: SAVED_AT_BP, rbx_offset: -40, ..sp(32) };
    assert_eq!(rule, expected);

    // A place by the stack pointer is one by the frame address.
    let (rule, _) = rule_of(&[Cfi::CfaOffset(32), Cfi::Expression(RBX, at(RSP, 8))], false);
    assert_eq!(rule, Rule { rbx: SAVED_AT_CFA, rbx_offset: -24, ..sp(32) });

    for said in [
        Cfi::Register(RBP, X86_64::R9),
        Cfi::ValOffset(RBX, 8),
        Cfi::Undefined(RBP),
        Cfi::Expression(RBX, at(X86_64::RAX, 0)),
    ] {
        let (rule, problems) = rule_of(&[said], false);
        assert_eq!(rule.cfa, CFA_UNSUPPORTED);
        assert_eq!(problems.unsupported_registers, 1);
    }
    // Other registers do not matter.
    assert_eq!(rule_of(&[Cfi::Register(X86_64::R12, X86_64::R9)], false).0, sp(8));
}

#[test]
fn return_addresses() {
    let undefined = rule_of(&[Cfi::Undefined(X86_64::RA), Cfi::Cfa(X86_64::RAX, 0)], false);
    assert_eq!(undefined, (Rule::of_kind(CFA_END), Problems::default()));
    for said in [Cfi::Register(X86_64::RA, X86_64::RDI), Cfi::Offset(X86_64::RA, -16)] {
        let (rule, problems) = rule_of(&[said], false);
        assert_eq!(rule.cfa, CFA_UNSUPPORTED);
        assert_eq!(problems.unsupported_return_addresses, 1);
    }
}

#[test]
fn signal_frames() {
    let at = |offset| {
        let mut said = Expression::new();
        said.op_breg(RSP, offset);
        said
    };
    let usual = |rbx| {
        vec![
            cfa_expression(|said| {
                said.op_breg(RSP, 160);
                said.op_deref();
            }),
            Cfi::Expression(X86_64::RA, at(168)),
            Cfi::Expression(RBP, at(120)),
            Cfi::Expression(RBX, at(rbx)),
        ]
    };
    assert_eq!(rule_of(&usual(128), true).0, Rule::of_kind(CFA_SIGNAL));
    assert_eq!(rule_of(&usual(136), true).0.cfa, CFA_UNSUPPORTED);
    assert_eq!(rule_of(&[Cfi::CfaOffset(16)], true).0.cfa, CFA_UNSUPPORTED);
    // The mark is what makes it one.
    assert_eq!(rule_of(&usual(128), false).0.cfa, CFA_UNSUPPORTED);
}

#[test]
fn of_functions_that_overlap_the_one_that_begins_last_holds() {
    let said = |offset| vec![(0, Cfi::CfaOffset(offset))];
    let table = read(&eh_frame(&[
        (0x1140, 0x10, said(32)),
        (0x1100, 0x80, said(16)),
        (0x1140, 0x20, said(48)),
        (0x1200, 0x10, said(64)),
    ]));
    assert_eq!(table.rule_at(0x113f), sp(16));
    assert_eq!(table.rule_at(0x1140), sp(32), "of those that begin together, the first");
    assert_eq!(kind(&table, 0x1150), CFA_NONE);
    assert_eq!(table.rule_at(0x1200), sp(64));
    assert_eq!(table.problems, Problems { overlapping_functions: 2, ..Problems::default() });
}

#[test]
fn what_does_not_lie_in_the_code_is_dropped() {
    let said = |offset| vec![(0, Cfi::CfaOffset(offset))];
    let functions = [
        (0, 0x1200, said(16)),
        (0xff8, 0x10, said(24)),
        (0x1ff8, 0x10, said(32)),
        (0x1_0000_0000_2000, 0x10, said(40)),
        (u64::MAX - 4, 0x10, said(48)),
        (0x1100, 0x10, said(56)),
    ];
    let table = read(&eh_frame(&functions));
    assert_eq!(table.rows.len(), 2, "{:?}", table.rows);
    assert_eq!(table.rule_at(0x1100), sp(56));
    assert_eq!(table.problems, Problems { functions_outside_code: 5, ..Problems::default() });

    // Code that begins with the file's own headers has no function there.
    let eh_frame = frames(&functions, false, false);
    let table = read(&Image { eh_frame, code: 0..0x2000, code_file_offset: 0, ..Image::default() });
    assert_eq!(kind(&table, 8), CFA_NONE);
    assert_eq!(table.rule_at(0x1100), sp(56));
}

#[test]
fn debug_frame_fills_what_eh_frame_leaves() {
    let said = |offset| vec![(0, Cfi::CfaOffset(offset)), (0x20, Cfi::CfaOffset(offset + 8))];
    let table = read(&Image {
        eh_frame: frames(&[(0x1100, 0x40, said(16)), (0x1180, 0x40, said(32))], false, false),
        debug_frame: frames(
            &[(0x1100, 0x40, said(160)), (0x1130, 0x60, said(48)), (0x1200, 0x40, said(64))],
            false,
            true,
        ),
        ..Image::default()
    });
    for (svma, rule) in [
        (0x1100, sp(16)),
        (0x113f, sp(24)),
        (0x1140, sp(48)),
        (0x1150, sp(56)),
        (0x117f, sp(56)),
        (0x1180, sp(32)),
        (0x1200, sp(64)),
    ] {
        assert_eq!(table.rule_at(svma), rule, "{svma:#x}");
    }
    assert_eq!(kind(&table, 0x11c0), CFA_NONE);
}

#[test]
fn the_entry_point_of_a_program_is_outermost() {
    let said = || vec![(0, Cfi::CfaOffset(16))];
    let functions = [(0x1100, 0x10, said()), (0x1200, 0x10, said()), (0x1220, 0x10, said())];
    let table = |entry, needs_library| {
        let image = Image {
            entry,
            needs_library,
            eh_frame: frames(&functions, false, false),
            ..Image::default()
        };
        read(&image)
    };
    let at = |entry, svmas: [u64; 4]| svmas.map(|svma| kind(&table(entry, false), svma));
    assert_eq!(
        at(0x1120, [0x111f, 0x1120, 0x119f, 0x11a0]),
        [CFA_NONE, CFA_END, CFA_END, CFA_NONE]
    );
    assert_eq!(at(0x1210, [0x120f, 0x1210, 0x121f, 0x1220]), [CFA_SP, CFA_END, CFA_END, CFA_SP]);
    assert_eq!(
        at(0x1010, [0x100f, 0x1010, 0x108f, 0x1090]),
        [CFA_NONE, CFA_END, CFA_END, CFA_NONE]
    );
    assert_eq!(
        at(0x1ff0, [0x1fef, 0x1ff0, 0x1fff, 0x2000]),
        [CFA_NONE, CFA_END, CFA_END, CFA_NONE]
    );
    // What is known is not overridden; what is no code is no entry.
    assert_eq!(at(0x1208, [0x1207, 0x1208, 0x120f, 0x1210]), [CFA_SP, CFA_SP, CFA_SP, CFA_NONE]);
    assert_eq!(at(0x3000, [0x2fff, 0x3000, 0, 0x1000]), [CFA_NONE; 4]);
    assert_eq!(kind(&table(0x1120, true), 0x1120), CFA_NONE, "a library's entry means nothing");
}

#[test]
fn a_file_without_section_headers() {
    let functions = [(0x1100, 0x10, vec![(0, Cfi::CfaOffset(24))])];
    let image = Image { has_sections: false, ..eh_frame(&functions) };
    assert_eq!(read(&image).rule_at(0x1100), sp(24));
}

#[test]
fn the_vdso_is_read_from_memory() {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("a kernel with a vDSO");
    let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
    let mut image = vec![0; usize::try_from(end - start).unwrap()];
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut image, start).unwrap();
    let table = Tables::default().load_image(&image).unwrap();
    assert_valid(&table);
    assert!(table.rules.contains(&sp(8)), "{:?}", table.rules);
    assert_eq!(table.problems, Problems::default());
}

#[test]
fn many_functions_are_read_on_several_threads() {
    let function = |number: u64| {
        let offset = 16 + 8 * i32::try_from(number % 64).unwrap();
        (0x1000 + 16 * number, 16, vec![(4, Cfi::CfaOffset(offset))])
    };
    let functions: Vec<_> = (0..40_000).map(function).collect();
    let table = read(&Image { code: 0x1000..0x10_0000, ..eh_frame(&functions) });
    assert_eq!(table.rows.len(), 80_001);
    for (start, _, _) in functions {
        let offset = i32::try_from((start - 0x1000) / 16 % 64).unwrap() * 8 + 16;
        assert_eq!(table.rule_at(start), sp(8));
        assert_eq!(table.rule_at(start + 4), sp(offset));
    }
}

#[test]
fn what_is_broken_is_counted_and_the_rest_is_used() {
    let nested: Vec<(u32, Cfi)> = (0..20).map(|_| (1, Cfi::RememberState)).collect();
    let table = read(&eh_frame(&[
        (0x1100, 0x10, nested),
        (0x1200, 0x10, vec![(4, Cfi::CfaOffset(24)), (0x20, Cfi::CfaOffset(32))]),
        (0x1300, 0x10, vec![(4, Cfi::CfaOffset(40))]),
    ]));
    assert_eq!(table.problems, Problems { unreadable_entries: 2, ..Problems::default() });
    assert_eq!(table.rule_at(0x1100), sp(8), "what came before the error is good");
    assert_eq!(kind(&table, 0x1101), CFA_UNSUPPORTED);
    assert_eq!(table.rule_at(0x120f), sp(24));
    assert_eq!(table.rule_at(0x1304), sp(40));

    // The length of the second entry reaches past the end.
    let mut image = eh_frame(&[(0x1100, 0x10, vec![]), (0x1200, 0x10, vec![])]);
    let length = u32::from_le_bytes(image.eh_frame[..4].try_into().unwrap()) as usize;
    let second = length
        + 4
        + 4
        + u32::from_le_bytes(image.eh_frame[length + 4..][..4].try_into().unwrap()) as usize;
    image.eh_frame[second..second + 4].copy_from_slice(&0x00ff_ffff_u32.to_le_bytes());
    let table = read(&image);
    assert_eq!(table.problems, Problems { broken_sections: 1, ..Problems::default() });
    assert_eq!(table.rule_at(0x1100), sp(8));
    assert_eq!(table.problems.to_string(), "1 broken sections");
}

#[test]
fn what_is_no_file_for_this_machine_is_an_error() {
    let error = |image: Image| UnwindTable::from_elf(&image.bytes()).unwrap_err();
    let other = error(Image { machine: object::elf::EM_AARCH64, ..Image::default() });
    assert!(matches!(other, UnwindError::Machine { machine: 183, class: 2 }), "{other}");
    assert!(matches!(UnwindTable::from_elf(b"").unwrap_err(), UnwindError::NotElf(_)));
    assert!(matches!(UnwindTable::from_elf(b"#!/bin/sh\n").unwrap_err(), UnwindError::NotElf(_)));
    let large = error(Image { compressed_debug_frame: Some(1 << 40), ..Image::default() });
    assert!(matches!(large, UnwindError::SectionTooLarge { bytes: 0x100_0000_0000 }), "{large}");
    // A compressed section that is not what it says.
    let table = read(&Image { compressed_debug_frame: Some(1000), ..Image::default() });
    assert_eq!(table.problems, Problems { broken_sections: 1, ..Problems::default() });
}

/// A file in which everything occurs.
fn rich() -> Image {
    let said = |offset| {
        vec![
            (0, Cfi::CfaOffset(offset)),
            (2, Cfi::RememberState),
            (3, Cfi::Offset(RBP, -16)),
            (5, Cfi::RestoreState),
        ]
    };
    let plt = cfa_expression(|said| {
        said.op_breg(RBP, -8);
        said.op_deref();
    });
    Image {
        entry: 0x1300,
        eh_frame: frames(&[(0x1100, 0x40, said(16)), (0x1180, 0x40, vec![(0, plt)])], false, false),
        debug_frame: frames(&[(0x1140, 0x10, said(48))], false, true),
        ..Image::default()
    }
}

#[test]
fn a_file_cut_anywhere_never_panics() {
    for image in [rich(), Image { has_sections: false, ..rich() }] {
        let whole = image.bytes();
        let mut good = 0;
        for length in 0..whole.len() {
            if let Ok(table) = UnwindTable::from_elf(&whole[..length]) {
                assert_valid(&table);
                good += 1;
            }
        }
        assert!(good > 0);
    }
}

proptest! {
    #[test]
    fn a_file_with_other_bytes_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        has_sections: bool,
    ) {
        let mut bytes = Image { has_sections, ..rich() }.bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(table) = UnwindTable::from_elf(&bytes) {
            assert_valid(&table);
        }
    }

    #[test]
    fn any_call_frame_information_gives_a_table(
        eh_frame in proptest::collection::vec(any::<u8>(), 0..400),
        at in 0_usize..100,
        with_entry: bool,
    ) {
        let mut section = rich().eh_frame;
        if with_entry {
            let at = section.len().saturating_sub(at);
            section.splice(at.., eh_frame);
        } else {
            section = eh_frame;
        }
        read(&Image { eh_frame: section, ..Image::default() });
    }
}

#[test]
fn what_rows_speak_of_is_counted() {
    let row = |offset, rule| UnwindRow { offset, rule };
    let cfa_sp = Rule { cfa_offset: 8, ..Rule::of_kind(CFA_SP) };
    let mut rules = FIRST_RULES.to_vec();
    rules.push(cfa_sp);
    let table = UnwindTable {
        base_svma: 0x1000,
        rows: vec![row(0x10, 3), row(0x40, 0), row(0x80, RULE_UNSUPPORTED), row(0xa0, 1)],
        rules,
        problems: Problems::default(),
    };
    assert_eq!(table.rows_not_followed(), 1);
    for (range, covered) in [
        (0..0x1010, 0),
        (0x1000..0x1040, 0x30),
        (0x1020..0x1030, 0x10),
        (0x1038..0x1090, 0x8 + 0x10),
        (0x1040..0x1080, 0),
        (0x1000..0x1100, 0x30 + 0x20 + 0x60),
        (0x2000..0x2008, 8),
        (0x1020..0x1020, 0),
        (0..u64::MAX, 0x30 + (u64::MAX - 0x1080)),
    ] {
        assert_eq!(table.covered_bytes(&range), covered, "{range:x?}");
        // The slow way.
        if range.end < 0x3000 {
            let known = range.clone().filter(|svma| table.rule_at(*svma).cfa != CFA_NONE);
            assert_eq!(known.count() as u64, covered, "{range:x?}");
        }
    }
    assert_eq!(UnwindTable::default().covered_bytes(&(0..0x1000)), 0);
}
