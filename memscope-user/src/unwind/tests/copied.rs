//! Walks of copied stacks, with what the tables cannot say.

use std::sync::Arc;

use gimli::{
    Register, X86_64,
    write::{CallFrameInstruction as Cfi, Expression},
};
use memscope_common::record::{
    COPY_PART_BYTES, Header, KIND_STACK_COPY, MAX_FRAMES, STACK_BEGINS_IN_PROBE, StackCopy,
};
use proptest::prelude::*;

use super::image::{Function, Image, cfa_expression, frames};
use crate::{
    model::StackOutcome,
    unwind::{CodeAt, CopiedWalk, FrameInfo, MappedCode, walk_copy},
};

const BIAS: u64 = 0x7f00_0000_0000;
const SP: u64 = 0x7ffc_0000_0000;
/// Code without a file.
const JIT: u64 = 0x6000_0000;
const SIGRETURN: u64 = 0x0f00_0000_0fc0_c748;

struct Code {
    info: Arc<FrameInfo>,
    /// Where a signal handler returns to.
    sigreturn_avma: u64,
}

impl MappedCode for Code {
    fn code_at(&mut self, avma: u64) -> CodeAt {
        match avma {
            _ if (BIAS + 0x1000..BIAS + 0x2000).contains(&avma) => {
                CodeAt::File { info: Arc::clone(&self.info), bias_avma: BIAS }
            }
            _ if (JIT..JIT + 0x1000).contains(&avma) => CodeAt::WithoutFile,
            _ => CodeAt::Unknown,
        }
    }

    fn word_at(&mut self, avma: u64) -> Option<u64> {
        Some(if avma == self.sigreturn_avma { SIGRETURN } else { 0 })
    }
}

/// Called from inside the function that begins at an offset.
fn inside(offset: u64) -> u64 {
    BIAS + 0x1000 + offset + 8
}

fn copy(return_avma: u64) -> StackCopy {
    let header =
        Header { kind: KIND_STACK_COPY, padding: 0, probe: 0, image: 0, target: 0, time_ns: 0 };
    StackCopy {
        header,
        stack: 0,
        return_avma,
        sp_avma: SP,
        rbp: SP + 0x80,
        rbx: SP + 0x100,
        r12_to_r15: [SP + 0x40, SP + 0x48, 0, 0],
        outcome: 0,
        flags: 0,
        byte_count: 0,
    }
}

/// Words at offsets from the stack pointer; the rest is zeros.
fn stack(length: usize, words: &[(usize, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (offset, word) in words {
        bytes[*offset..*offset + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn parts(bytes: &[u8]) -> Vec<Arc<[u8]>> {
    bytes.chunks(COPY_PART_BYTES).map(Arc::from).collect()
}

fn walk(image: &Image, start: &StackCopy, bytes: &[u8]) -> CopiedWalk {
    let info = FrameInfo::from_elf(&image.bytes()).unwrap();
    walk_copy(start, &parts(bytes), &mut Code { info: Arc::new(info), sigreturn_avma: JIT + 0x10 })
}

/// 64 bytes at an offset, with what is said of them from their beginning.
fn function(offset: u64, said: &[Cfi]) -> Function {
    (0x1000 + offset, 64, said.iter().map(|said| (0, said.clone())).collect())
}

const OUTERMOST: u64 = 0x800;

#[test]
fn the_function_that_a_walk_begins_in_the_midst_of_is_no_frame() {
    let said = [Cfi::Cfa(X86_64::RSP, 0x48)];
    let image = image(&[function(0, &said)]);
    let mut copy = copy(inside(0));
    copy.flags = STACK_BEGINS_IN_PROBE;
    let frames = |words: &[(usize, u64)]| walk(&image, &copy, &stack(0x400, words)).frames_avma;
    assert_eq!(frames(&[(0x40, inside(OUTERMOST))]), [inside(OUTERMOST)]);
    assert_eq!(frames(&[]), [inside(0)], "there is no other");
}

/// These functions, and one that nobody has called.
fn image(functions: &[Function]) -> Image {
    let mut functions = functions.to_vec();
    functions.push(function(OUTERMOST, &[Cfi::Undefined(X86_64::RA)]));
    Image { eh_frame: frames(&functions, false, false), ..Image::default() }
}

/// From a function of which this is said, with the stack so, to the outermost.
fn assert_complete(said: &[Cfi], words: &[(usize, u64)]) {
    let walk = walk(&image(&[function(0, said)]), &copy(inside(0)), &stack(0x400, words));
    let expected = CopiedWalk {
        frames_avma: vec![inside(0), inside(OUTERMOST)],
        outcome: StackOutcome::Complete,
        used_frame_pointers: false,
        unknown_avma: None,
    };
    assert_eq!(walk, expected, "{said:?}");
}

fn assert_ends(said: &[Cfi], words: &[(usize, u64)], outcome: StackOutcome) {
    let walk = walk(&image(&[function(0, said)]), &copy(inside(0)), &stack(0x400, words));
    assert_eq!((walk.frames_avma, walk.outcome), (vec![inside(0)], outcome), "{said:?}");
}

fn expression(of: impl FnOnce(&mut Expression)) -> Expression {
    let mut expression = Expression::new();
    of(&mut expression);
    expression
}

#[test]
fn frame_addresses_of_all_kinds_are_computed() {
    let end = inside(OUTERMOST);
    assert_complete(&[], &[(0, end)]);
    assert_complete(&[Cfi::Cfa(X86_64::RSP, 0x48)], &[(0x40, end)]);
    assert_complete(&[Cfi::Cfa(X86_64::RBP, 16)], &[(0x88, end)]);
    assert_complete(&[Cfi::Cfa(X86_64::RBX, 8)], &[(0x100, end)]);
    assert_complete(&[Cfi::Cfa(X86_64::R13, 8)], &[(0x48, end)]);
    let through_memory = cfa_expression(|expression| {
        expression.op_breg(X86_64::R12, 8);
        expression.op_deref();
        expression.op_plus_uconst(16);
    });
    assert_complete(&[through_memory], &[(0x48, SP + 0x60), (0x68, end)]);
}

#[test]
fn return_addresses_and_registers_are_found_wherever_they_are_said_to_be() {
    let end = inside(OUTERMOST);
    assert_complete(&[Cfi::Offset(X86_64::RA, 0x10)], &[(0x18, end)]);
    let at_bp = expression(|expression| expression.op_breg(X86_64::RBP, 24));
    assert_complete(&[Cfi::Expression(X86_64::RA, at_bp)], &[(0x98, end)]);
    let value = expression(|expression| {
        expression.op_breg(X86_64::RBP, 32);
        expression.op_deref();
    });
    assert_complete(&[Cfi::ValExpression(X86_64::RA, value)], &[(0xa0, end)]);
    // Each is needed by the caller, whose frame address is relative to it.
    let callers: [(Cfi, Register, u64); 6] = [
        (Cfi::Offset(X86_64::R14, 0x18), X86_64::R14, SP + 0x200),
        (Cfi::ValOffset(X86_64::R15, 0x1f8), X86_64::R15, SP + 0x200),
        (Cfi::Register(X86_64::R14, X86_64::RBX), X86_64::R14, SP + 0x100),
        (Cfi::SameValue(X86_64::RBX), X86_64::RBX, SP + 0x100),
        // Not said at all: it is preserved.
        (Cfi::RememberState, X86_64::RBP, SP + 0x80),
        (
            Cfi::ValExpression(X86_64::RBX, expression(|it| it.op_breg(X86_64::RBX, 0x20))),
            X86_64::RBX,
            SP + 0x120,
        ),
    ];
    for (said, register, is_there) in callers {
        let image = image(&[
            function(0, std::slice::from_ref(&said)),
            function(0x100, &[Cfi::Cfa(register, 8)]),
        ]);
        let offset = usize::try_from(is_there - SP).unwrap();
        let words = [(0, inside(0x100)), (0x20, SP + 0x200), (offset, inside(OUTERMOST))];
        let walk = walk(&image, &copy(inside(0)), &stack(0x400, &words));
        let frames = vec![inside(0), inside(0x100), inside(OUTERMOST)];
        assert_eq!((walk.frames_avma, walk.outcome), (frames, StackOutcome::Complete), "{said:?}");
    }
}

#[test]
fn what_cannot_be_followed_says_why() {
    let end = [(0, inside(OUTERMOST))];
    assert_ends(&[], &[], StackOutcome::NullReturn);
    assert_ends(&[Cfi::Cfa(X86_64::RSP, 0)], &end, StackOutcome::NotUpward);
    assert_ends(&[Cfi::Cfa(X86_64::RSP, 0x409)], &end, StackOutcome::CopyTooShort);
    // Calls do not preserve it.
    assert_ends(&[Cfi::Cfa(X86_64::RAX, 8)], &end, StackOutcome::UnsupportedRule);
    assert_ends(
        &[Cfi::SameValue(Register(17)), Cfi::Cfa(Register(17), 8)],
        &end,
        StackOutcome::UnsupportedRule,
    );
    assert_ends(&[Cfi::Register(X86_64::RA, X86_64::RCX)], &end, StackOutcome::UnsupportedRule);
    let endless = cfa_expression(|expression| {
        let again = expression.next_index();
        expression.op(gimli::DW_OP_nop);
        let skip = expression.op_skip();
        expression.set_target(skip, again);
    });
    assert_ends(&[endless], &end, StackOutcome::UnsupportedRule);
    let beyond = cfa_expression(|expression| {
        expression.op_breg(X86_64::RSP, 0x3fc);
        expression.op_deref();
    });
    assert_ends(&[beyond], &end, StackOutcome::CopyTooShort);
    let nothing = copy(0x1234);
    let walk = walk(&image(&[]), &nothing, &stack(0x400, &[]));
    assert_eq!((walk.outcome, walk.unknown_avma), (StackOutcome::UnknownCode, Some(0x1233)));
}

/// A register that lies beyond the copy ends the walk only if it is needed.
#[test]
fn what_was_not_copied_is_missed_when_it_is_needed() {
    let saves = function(0, &[Cfi::Offset(X86_64::RBX, 0x4000)]);
    let words = [(0, inside(0x100)), (8, inside(OUTERMOST))];
    let of_sp = image(&[saves.clone(), function(0x100, &[])]);
    let found = walk(&of_sp, &copy(inside(0)), &stack(0x400, &words));
    assert_eq!((found.frames_avma.len(), found.outcome), (3, StackOutcome::Complete));
    let of_bx = image(&[saves, function(0x100, &[Cfi::Cfa(X86_64::RBX, 8)])]);
    let found = walk(&of_bx, &copy(inside(0)), &stack(0x400, &words));
    assert_eq!((found.frames_avma.len(), found.outcome), (2, StackOutcome::CopyTooShort));
}

#[test]
fn code_without_information_is_passed_by_frame_pointers_and_never_called_complete() {
    let words = [(0, 0), (0x80, SP + 0x90), (0x88, inside(0)), (0x90, inside(OUTERMOST))];
    let functions = image(&[function(0, &[])]);
    for start in [JIT + 0x100, inside(0x300)] {
        let found = walk(&functions, &copy(start), &stack(0x400, &words));
        assert_eq!(found.frames_avma, [start, inside(0), inside(OUTERMOST)]);
        assert_eq!(found.outcome, StackOutcome::WithFramePointers);
        assert!(found.used_frame_pointers);
    }
    let outcome = |rbp, words: &[(usize, u64)]| {
        let start = StackCopy { rbp, ..copy(JIT + 0x100) };
        walk(&functions, &start, &stack(0x400, words)).outcome
    };
    assert_eq!(outcome(0, &[]), StackOutcome::WithFramePointers);
    assert_eq!(outcome(SP + 0x80, &[]), StackOutcome::WithFramePointers);
    assert_eq!(outcome(SP + 0x84, &words), StackOutcome::FramePointerBroken);
    assert_eq!(outcome(SP - 8, &words), StackOutcome::FramePointerBroken);
    assert_eq!(outcome(SP + (1 << 24), &words), StackOutcome::FramePointerBroken);
    assert_eq!(outcome(SP + 0x3f8, &words), StackOutcome::CopyTooShort);
}

/// What is pushed for a handler begins where the stack pointer is when it has returned; there
/// `rbp` is at 120, `rsp` at 160, `rip` at 168.
#[test]
fn signal_frames_lead_to_where_the_signal_came_in() {
    let said = |offset| expression(move |it| it.op_breg(X86_64::RSP, offset));
    let cfa = cfa_expression(|expression| {
        expression.op_breg(X86_64::RSP, 160);
        expression.op_deref();
    });
    let rows = [
        cfa,
        Cfi::Expression(X86_64::RA, said(168)),
        Cfi::Expression(X86_64::RAX, said(144)),
        Cfi::Expression(X86_64::RBP, said(120)),
    ];
    let handler_returns = frames(&[function(0, &rows)], true, false);
    // It came in at the first instruction of a function, of which the address is in rax.
    let begun = function(0x100, &[Cfi::Cfa(X86_64::RAX, 8)]);
    let others = image(&[begun]).eh_frame;
    let mut section = handler_returns;
    section.extend_from_slice(&others);
    let with_rows = Image { eh_frame: others.clone(), debug_frame: Vec::new(), ..Image::default() };
    let words =
        [(160, SP + 0x200), (168, BIAS + 0x1100), (144, SP + 0x210), (0x210, inside(OUTERMOST))];
    let bytes = stack(0x400, &words);
    let expected = [BIAS + 0x1101, inside(OUTERMOST)];
    let by_code = walk(&with_rows, &copy(JIT + 0x10), &bytes);
    assert_eq!(by_code.frames_avma, [&[JIT + 0x11][..], &expected].concat());
    assert_eq!(by_code.outcome, StackOutcome::Complete);
    let with_rows = Image { eh_frame: section, ..with_rows };
    let by_rows = walk(&with_rows, &copy(inside(0)), &bytes);
    assert_eq!(by_rows.frames_avma, [&[inside(0) + 1][..], &expected].concat());
    assert_eq!(by_rows.outcome, StackOutcome::Complete);
}

#[test]
fn where_a_program_begins_nobody_has_called() {
    let program = Image { entry: 0x1900, ..image(&[function(0, &[])]) };
    let found = walk(&program, &copy(inside(0)), &stack(0x400, &[(0, BIAS + 0x1910)]));
    assert_eq!((found.frames_avma.len(), found.outcome), (2, StackOutcome::Complete));
    for elsewhere in [0x1900, 0x1981] {
        let found = walk(&program, &copy(inside(0)), &stack(0x400, &[(0, BIAS + elsewhere)]));
        assert_ne!(found.outcome, StackOutcome::Complete, "{elsewhere:#x}");
    }
    let other = Image { entry: 0x18f0, ..image(&[function(0, &[]), function(0x8f8, &[])]) };
    let found = walk(&other, &copy(inside(0)), &stack(0x400, &[(0, BIAS + 0x1940)]));
    assert_ne!(found.outcome, StackOutcome::Complete, "behind another function");
}

#[test]
fn debug_frame_is_used_where_eh_frame_says_nothing() {
    let end = [(0, inside(OUTERMOST)), (8, inside(OUTERMOST))];
    let debug_frame = frames(
        &[function(0, &[Cfi::Cfa(X86_64::RSP, 0)]), function(0x100, &[Cfi::Cfa(X86_64::RSP, 16)])],
        false,
        true,
    );
    let both = Image { debug_frame, ..image(&[function(0, &[])]) };
    for start in [inside(0), inside(0x100)] {
        let found = walk(&both, &copy(start), &stack(0x400, &end));
        assert_eq!(found.frames_avma, [start, inside(OUTERMOST)]);
        assert_eq!(found.outcome, StackOutcome::Complete);
    }
}

#[test]
fn deep_stacks_are_cut_at_the_limit() {
    let recursive = image(&[function(0, &[])]);
    let words: Vec<(usize, u64)> = (0..MAX_FRAMES).map(|depth| (depth * 8, inside(0))).collect();
    let found = walk(&recursive, &copy(inside(0)), &stack(MAX_FRAMES * 8, &words));
    assert_eq!((found.frames_avma.len(), found.outcome), (MAX_FRAMES, StackOutcome::DepthLimit));
}

/// One that would take long to be executed is not.
#[test]
fn an_entry_of_excessive_length_is_not_executed() {
    let nothing = [Cfi::RememberState, Cfi::RestoreState];
    let long: Vec<Cfi> = nothing.iter().cycle().take(1 << 19).cloned().collect();
    assert_ends(&long, &[(0, inside(OUTERMOST))], StackOutcome::UnsupportedRule);
}

/// Something of everything.
fn rich() -> Image {
    let memory = cfa_expression(|expression| {
        expression.op_breg(X86_64::RBP, -8);
        expression.op_deref();
    });
    let saved = Cfi::Offset(X86_64::RBP, -16);
    let debug_frame = frames(&[function(0x200, &[Cfi::Cfa(X86_64::RBX, 16)])], false, true);
    let functions = [function(0, &[saved, Cfi::Cfa(X86_64::RSP, 32)]), function(0x100, &[memory])];
    Image { debug_frame, entry: 0x1900, ..image(&functions) }
}

#[test]
fn a_file_cut_anywhere_never_panics() {
    let bytes = rich().bytes();
    let words: Vec<(usize, u64)> =
        (0..0x60).map(|at| (at * 8, inside(at as u64 % 4 * 0x100))).collect();
    let memory = stack(0x400, &words);
    for length in 0..bytes.len() {
        let Ok(info) = FrameInfo::from_elf(&bytes[..length]) else { continue };
        let mut code = Code { info: Arc::new(info), sigreturn_avma: JIT };
        for start in [inside(0), inside(0x100), inside(0x200), inside(OUTERMOST)] {
            assert!(!walk_copy(&copy(start), &parts(&memory), &mut code).frames_avma.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn other_bytes_anywhere_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        words in prop::collection::vec(prop_oneof![
            (0_u64..0x1000).prop_map(|offset| BIAS + 0x1000 + offset),
            (0_u64..0x400).prop_map(|offset| SP + offset),
            any::<u64>(),
        ], 128),
        start in 0_u64..0x1000,
    ) {
        let mut bytes = rich().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(info) = FrameInfo::from_elf(&bytes) {
            let memory: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut code = Code { info: Arc::new(info), sigreturn_avma: words[0] };
            let found = walk_copy(&copy(BIAS + 0x1000 + start), &parts(&memory), &mut code);
            prop_assert!((1..=MAX_FRAMES).contains(&found.frames_avma.len()));
        }
    }
}
