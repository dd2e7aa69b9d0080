//! A machine for functions that save registers at their begin, which knows nothing of how places in their midst are chosen.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{OLD, machine::after_zero_jump};
use crate::target::{
    CalledCode,
    site::{ArgumentSet, Calls, Inner, Midst, ProbeNeed, ProbeSite, choose_sites},
};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RBX: u8 = 3;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// Those that calls do not leave as they are.
const CLOBBERED: [u8; 5] = [RAX, RCX, 2, RSI, RDI];
/// By the number of an argument's place: those that carry arguments, and those that calls leave as they are.
const PLACES: [u8; 8] = [RDI, RSI, 2, RCX, 8, 9, RBX, RBP];
/// Most steps that are taken, over all ways together.
const MAX_STEPS: usize = 20_000;

#[derive(Clone, Copy, Debug)]
enum Piece {
    Nop,
    Move {
        to: u8,
        from: u8,
    },
    Clear(u8),
    Test(u8),
    /// From memory that nobody knows.
    Load(u8),
    Push(u8),
    Pop(u8),
    Lower,
    Raise,
    /// To the word above the lowest one of the stack, and from there.
    Spill(u8),
    Fill(u8),
    /// Whether it never returns.
    Call(bool),
    /// Of a function whose code is known: see [`called`].
    CallKnown,
    Jump(usize),
    JumpIfZero(bool, usize),
    JumpIfSign(usize),
    Return,
    /// To another function, in place of a call.
    Leave,
}

/// Where jumps lead, from the end of a function's midst on: to its end, to where it gives nothing, and to where it aborts.
const ENDS: [Piece; 7] = [
    Piece::Raise,
    Piece::Pop(RBX),
    Piece::Pop(RBP),
    Piece::Return,
    Piece::Clear(RAX),
    Piece::Jump(0),
    Piece::Call(true),
];

/// Behind them, where it is looked for elsewhere.
const SLOW: [Piece; 4] =
    [Piece::Call(false), Piece::Test(RAX), Piece::JumpIfZero(true, 14), Piece::Jump(0)];

/// Behind these, where another function does it.
const LEAVES: [Piece; 4] = [Piece::Raise, Piece::Pop(RBX), Piece::Pop(RBP), Piece::Leave];

/// Pieces that mostly come in this order.
fn group() -> impl Strategy<Value = Vec<Piece>> {
    let register = || prop::sample::select(&[RAX, RCX, RBX, RBP, RSI, RDI][..]);
    let place = || 0_usize..40;
    let piece = prop_oneof![
        2 => Just(Piece::Nop),
        4 => (register(), register()).prop_map(|(to, from)| Piece::Move { to, from }),
        1 => Just(Piece::Move { to: RBX, from: RDI }),
        1 => register().prop_map(Piece::Clear),
        4 => register().prop_map(Piece::Test),
        3 => Just(Piece::Test(RAX)),
        2 => register().prop_map(Piece::Load),
        3 => Just(Piece::Load(RAX)),
        1 => register().prop_map(Piece::Spill),
        1 => Just(Piece::Spill(RAX)),
        1 => register().prop_map(Piece::Fill),
        1 => Just(Piece::Fill(RAX)),
        2 => Just(Piece::Call(false)),
        2 => Just(Piece::CallKnown),
        1 => Just(Piece::Call(true)),
        2 => place().prop_map(Piece::Jump),
        6 => (any::<bool>(), place()).prop_map(|(if_zero, to)| Piece::JumpIfZero(if_zero, to)),
        2 => place().prop_map(Piece::JumpIfSign),
    ];
    // What is called is mostly told the size, and its result is looked at.
    let judged = (register(), any::<bool>(), place()).prop_map(|(from, if_zero, to)| {
        let passes = Piece::Move { to: RSI, from };
        vec![passes, Piece::CallKnown, Piece::Test(RAX), Piece::JumpIfZero(if_zero, to)]
    });
    let passed = (any::<bool>(), place()).prop_map(|(if_zero, to)| {
        let passes = Piece::Move { to: RSI, from: RDI };
        vec![passes, Piece::CallKnown, Piece::Test(RAX), Piece::JumpIfZero(if_zero, to)]
    });
    // Or another way leads to where it is looked at: the third piece behind the jump.
    let met = (any::<bool>(), place()).prop_map(|(if_zero, to)| {
        let way = [Piece::Load(RAX), Piece::JumpIfSign(30), Piece::Move { to: RSI, from: RDI }];
        let call = [Piece::CallKnown, Piece::Test(RAX), Piece::JumpIfZero(if_zero, to)];
        way.into_iter().chain(call).collect()
    });
    // Or it is looked for elsewhere, if nothing was found.
    let again = [
        Piece::Move { to: RBX, from: RDI },
        Piece::Move { to: RSI, from: RDI },
        Piece::CallKnown,
        Piece::Test(RAX),
        Piece::JumpIfZero(true, 22),
        Piece::Jump(0),
    ];
    prop_oneof![
        12 => piece.prop_map(|piece| vec![piece]),
        1 => judged,
        2 => passed,
        1 => met,
        1 => Just(again.to_vec()),
    ]
}

fn function() -> impl Strategy<Value = Vec<Piece>> {
    prop::collection::vec(group(), 1..8).prop_map(|midst| {
        let mut midst = midst.concat();
        // Jumps reach as far as a byte says.
        midst.truncate(16);
        let begin = [Piece::Push(RBP), Piece::Push(RBX), Piece::Lower];
        let end = begin.len() + midst.len();
        // Of the places most are ends, or lie ahead.
        let resolve = |at: usize, to: usize| match to {
            0..14 => end,
            14..19 => end + 4,
            19..22 => end + 6,
            22..26 => end + ENDS.len(),
            26..29 => end + ENDS.len() + SLOW.len(),
            _ => (at + 1 + to % 7).min(end),
        };
        let pieces = begin.into_iter().chain(midst).chain(ENDS).chain(SLOW).chain(LEAVES);
        let mut pieces: Vec<Piece> = pieces.collect();
        for (at, piece) in pieces.iter_mut().enumerate() {
            if let Piece::Jump(to) | Piece::JumpIfZero(_, to) | Piece::JumpIfSign(to) = piece {
                *to = resolve(at, *to);
            }
        }
        pieces
    })
}

fn length(piece: Piece) -> usize {
    match piece {
        Piece::Nop | Piece::Push(_) | Piece::Pop(_) | Piece::Return => 1,
        Piece::Clear(_) | Piece::Jump(_) | Piece::JumpIfZero(..) | Piece::JumpIfSign(_) => 2,
        Piece::Move { .. } | Piece::Test(_) | Piece::Load(_) => 3,
        Piece::Lower | Piece::Raise => 4,
        Piece::Spill(_) | Piece::Fill(_) | Piece::Call(_) | Piece::CallKnown | Piece::Leave => 5,
    }
}

fn start(pieces: &[Piece], position: usize) -> usize {
    pieces.iter().take(position).copied().map(length).sum()
}

fn assemble(pieces: &[Piece]) -> Vec<u8> {
    let mut code: Vec<u8> = Vec::new();
    for &piece in pieces {
        let end = code.len() + length(piece);
        let distance = |to: usize| {
            i8::try_from(start(pieces, to) as i64 - end as i64).unwrap().cast_unsigned()
        };
        match piece {
            Piece::Nop => code.push(0x90),
            Piece::Move { to, from } => code.extend([0x48, 0x89, 0xc0 | from << 3 | to]),
            Piece::Clear(register) => code.extend([0x31, 0xc0 | register << 3 | register]),
            Piece::Test(register) => code.extend([0x48, 0x85, 0xc0 | register << 3 | register]),
            // mov (%rdx),…
            Piece::Load(register) => code.extend([0x48, 0x8b, register << 3 | 2]),
            Piece::Push(register) => code.push(0x50 | register),
            Piece::Pop(register) => code.push(0x58 | register),
            Piece::Lower => code.extend([0x48, 0x83, 0xec, 0x10]),
            Piece::Raise => code.extend([0x48, 0x83, 0xc4, 0x10]),
            Piece::Spill(register) => code.extend([0x48, 0x89, 0x44 | register << 3, 0x24, 8]),
            Piece::Fill(register) => code.extend([0x48, 0x8b, 0x44 | register << 3, 0x24, 8]),
            Piece::Call(_) => code.extend([0xe8, 0, 1, 0, 0]),
            Piece::CallKnown => {
                code.push(0xe8);
                code.extend((CALLED_AT as i32 - end as i32).to_le_bytes());
            }
            Piece::Leave => code.extend([0xe9, 0, 1, 0, 0]),
            Piece::Jump(to) => code.extend([0xeb, distance(to)]),
            Piece::JumpIfZero(true, to) => code.extend([0x74, distance(to)]),
            Piece::JumpIfZero(false, to) => code.extend([0x75, distance(to)]),
            Piece::JumpIfSign(to) => code.extend([0x78, distance(to)]),
            Piece::Return => code.push(0xc3),
        }
    }
    code
}

/// Where the function of [`Piece::CallKnown`] begins.
const CALLED_AT: i64 = 0x1000;
/// How far below its return address it has saved `%rbx`.
const CALLED_SAVES_RBX: u16 = 8;

/// A function that gives what is found with its second argument.
fn called() -> CalledCode {
    // push %rbx; mov %rsi,%rbx; mov (%rdi),%rax; test %rax,%rax; je +0; pop %rbx; ret
    let code = [0x53, 0x48, 0x89, 0xf3, 0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x74, 0x00, 0x5b, 0xc3];
    CalledCode { distance: CALLED_AT, code: code.to_vec(), never_return: BTreeSet::new() }
}

/// A way, as far as it has come.
#[derive(Clone)]
struct Machine {
    at: usize,
    registers: [u64; 16],
    /// How far below the return address the stack pointer is.
    depth: u16,
    /// By how far below the return address they are.
    stack: BTreeMap<u16, u64>,
    zero: Option<bool>,
    /// The next value that is not known.
    next: u64,
    noted: u32,
    told: Vec<u64>,
    steps: usize,
}

const SIZE: u64 = 107;

impl Machine {
    fn has_size(&self, site: &ProbeSite) -> bool {
        self.registers[usize::from(PLACES[usize::from(site.places.of(0))])] == SIZE
    }
}

/// What is wrong with places that are to be probed in the entry's stead, on any way through the code.
fn objection(pieces: &[Piece], sites: &[ProbeSite]) -> Option<&'static str> {
    let mut registers = [0; 16];
    for (register, value) in registers.iter_mut().zip(100..) {
        *register = value;
    }
    let first = Machine {
        at: 0,
        registers,
        depth: 0,
        stack: BTreeMap::new(),
        zero: None,
        next: 1000,
        noted: 0,
        told: Vec::new(),
        steps: 0,
    };
    let mut open = vec![first];
    for _step in 0..MAX_STEPS {
        let Some(machine) = open.pop() else { break };
        let Some(&piece) = pieces.get(machine.at) else { continue };
        if machine.steps > 60 {
            continue;
        }
        let here = start(pieces, machine.at) as u64;
        let site = sites.iter().find(|site| site.inner.is_none() && site.offset == here);
        if matches!(piece, Piece::Return) {
            if machine.depth != 0 {
                return Some("the function is none");
            }
            if machine.told != [machine.registers[usize::from(RAX)]] {
                return Some("it returns, and another result or none was told, or several");
            }
            continue;
        }
        if matches!(piece, Piece::Leave) {
            let is_begin = |site: &ProbeSite| site.midst.is_none() && machine.has_size(site);
            if machine.depth != 0 || !machine.told.is_empty() || !site.is_some_and(is_begin) {
                return Some("another function goes on, and is not seen to begin");
            }
            continue;
        }
        for (mut next, condition) in after(&machine, piece) {
            if matches!(piece, Piece::CallKnown)
                && let Err(objection) = tell_inside(&machine, &mut next, sites, here)
            {
                return Some(objection);
            }
            if let Some(site) = site
                && let Err(objection) = tell(&machine, &mut next, site, condition)
            {
                return Some(objection);
            }
            open.push(next);
        }
    }
    None
}

/// Tells what a probe finds there, if the condition is the one that it asks for.
fn tell(
    machine: &Machine,
    next: &mut Machine,
    site: &ProbeSite,
    condition: Option<u8>,
) -> Result<(), &'static str> {
    let register = |number: u8| machine.registers[usize::from(number)];
    if site.frame.depth_bytes != machine.depth {
        return Err("the return address is elsewhere");
    }
    let saved = |at: u16| machine.stack.get(&at).copied();
    let frame = site.frame;
    for (number, depth_bytes) in [(RBP, frame.rbp_depth_bytes), (RBX, frame.rbx_depth_bytes)] {
        let found = depth_bytes.map_or(Some(register(number)), saved);
        if found != Some(100 + u64::from(number)) {
            return Err("a register of the caller is elsewhere");
        }
    }
    let has_size = machine.has_size(site);
    match site.midst {
        None => return Err("it is in no midst"),
        Some(Midst::Notes) if !has_size => return Err("another size is noted"),
        Some(Midst::Notes) => next.noted += 1,
        Some(Midst::Gives { condition: wanted, .. })
            if wanted.is_some_and(|it| Some(it) != condition) => {}
        Some(Midst::Gives { register: block, was_noted, .. }) => {
            if was_noted != (machine.noted == 1) || !was_noted && !has_size {
                return Err("what it was given is not known");
            }
            next.told.push(block.map_or(0, register));
        }
    }
    if next.noted > 1 { Err("it is noted twice") } else { Ok(()) }
}

/// Tells what is told inside of a call, if anything is: what it has given, which is in `next`.
fn tell_inside(
    machine: &Machine,
    next: &mut Machine,
    sites: &[ProbeSite],
    here: u64,
) -> Result<(), &'static str> {
    let block = next.registers[usize::from(RAX)];
    let Some((site, inner)) = sites.iter().find_map(|site| Some((site, site.inner?))) else {
        return Ok(());
    };
    let returns_to = here as i64 + length(Piece::CallKnown) as i64;
    let distance = returns_to - inner.distance - site.offset as i64;
    let mut calls = inner.calls.iter().flatten();
    let Some(call) = calls.find(|call| i64::from(call.return_distance) == distance) else {
        return Ok(());
    };
    if inner.depth_bytes != machine.depth + 8
        || site.frame.depth_bytes != machine.depth + 8 + CALLED_SAVES_RBX
    {
        return Err("the return address is elsewhere");
    }
    let register = |number: u8| machine.registers[usize::from(number)];
    for (number, depth_bytes) in
        [(RBP, site.frame.rbp_depth_bytes), (RBX, site.frame.rbx_depth_bytes)]
    {
        let found = match depth_bytes {
            Some(at) if at > machine.depth => {
                (at == machine.depth + 8 + CALLED_SAVES_RBX && number == RBX).then(|| register(RBX))
            }
            Some(at) => machine.stack.get(&at).copied(),
            None => (number == RBP).then(|| register(RBP)),
        };
        if found != Some(100 + u64::from(number)) {
            return Err("a register of the caller is elsewhere");
        }
    }
    // Behind `mov %rsi,%rbx`, in the place of an argument or in that of the first register that is kept.
    let holds_size = match site.places.of(0) {
        argument @ 0..6 => PLACES[usize::from(argument)],
        6 => RSI,
        _ => return Err("what it was given is in no register"),
    };
    if register(holds_size) != SIZE {
        return Err("what it was given is not known");
    }
    if block != 0 || call.tells_failure {
        next.told.push(block);
    }
    Ok(())
}

/// The states that can follow, and the number of the condition that a jump then had.
fn after(machine: &Machine, piece: Piece) -> Vec<(Machine, Option<u8>)> {
    let mut next = Machine { at: machine.at + 1, steps: machine.steps + 1, ..machine.clone() };
    let jumped = |to: usize| Machine { at: to, ..next.clone() };
    let unknown = |register: u8, next: &Machine| {
        let mut zero = next.clone();
        zero.registers[usize::from(register)] = 0;
        let mut other = next.clone();
        other.registers[usize::from(register)] = next.next;
        other.next += 1;
        vec![(zero, None), (other, None)]
    };
    match piece {
        Piece::Nop => {}
        Piece::Move { to, from } => {
            next.registers[usize::from(to)] = machine.registers[usize::from(from)];
        }
        Piece::Clear(register) => {
            next.registers[usize::from(register)] = 0;
            next.zero = Some(true);
        }
        Piece::Test(register) => next.zero = Some(machine.registers[usize::from(register)] == 0),
        Piece::Load(register) => return unknown(register, &next),
        Piece::Push(register) => {
            next.depth += 8;
            next.stack.insert(next.depth, machine.registers[usize::from(register)]);
        }
        Piece::Pop(register) => {
            let word = machine.stack.get(&machine.depth).copied().unwrap_or(1);
            next.registers[usize::from(register)] = word;
            next.depth -= 8;
        }
        Piece::Lower | Piece::Raise => {
            let lowers = matches!(piece, Piece::Lower);
            next.depth = if lowers { machine.depth + 16 } else { machine.depth - 16 };
            next.zero = None;
        }
        Piece::Spill(register) => {
            next.stack.insert(machine.depth - 8, machine.registers[usize::from(register)]);
        }
        Piece::Fill(register) => {
            next.registers[usize::from(register)] =
                machine.stack.get(&(machine.depth - 8)).copied().unwrap_or(1);
        }
        Piece::Call(true) | Piece::Return | Piece::Leave => return Vec::new(),
        Piece::Call(false) | Piece::CallKnown => {
            for register in CLOBBERED {
                next.registers[usize::from(register)] = next.next;
                next.next += 1;
            }
            next.zero = None;
            return unknown(RAX, &next);
        }
        Piece::Jump(to) => return vec![(jumped(to), None)],
        Piece::JumpIfZero(if_zero, to) => {
            return after_zero_jump(machine.zero, if_zero, jumped(to), next);
        }
        Piece::JumpIfSign(to) => return vec![(jumped(to), Some(8)), (next, Some(9))],
    }
    vec![(next, None)]
}

#[test]
fn a_machine_that_runs_the_code_is_told_once_of_what_it_gives() {
    let config = Config { cases: 3000, failure_persistence: None, ..Config::default() };
    let (told, noted, left) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let (inside, tried_again) = (Cell::new(0), Cell::new(0));
    let called = [called()];
    let check = |pieces: Vec<Piece>| {
        let position = |(at, piece): (usize, &Piece)| {
            matches!(piece, Piece::Call(true)).then(|| start(&pieces, at) as u64)
        };
        let endless: BTreeSet<u64> = pieces.iter().enumerate().filter_map(position).collect();
        let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
        let calls = Calls { never_return: &endless, called: &called };
        let sites = choose_sites(&assemble(&pieces), need, OLD, Some(calls));
        let is_in_midst = |site: &ProbeSite| site.midst.is_some() && site.frame.depth_bytes > 0;
        if sites.iter().any(is_in_midst) {
            let notes = sites.iter().any(|site| site.midst == Some(Midst::Notes));
            told.set(told.get() + 1);
            noted.set(noted.get() + u32::from(notes));
            left.set(left.get() + u32::from(sites.iter().any(|site| site.midst.is_none())));
            let calls: Vec<_> = sites.iter().filter_map(|site| site.inner).collect();
            let again =
                |inner: &Inner| inner.calls.iter().flatten().any(|call| !call.tells_failure);
            inside.set(inside.get() + u32::from(!calls.is_empty()));
            tried_again.set(tried_again.get() + u32::from(calls.iter().any(again)));
            prop_assert_eq!(objection(&pieces, &sites), None);
        }
        Ok(())
    };
    TestRunner::new(config).run(&function(), check).unwrap();
    let often = [told.get(), noted.get(), left.get()];
    assert!(often[0] > 100 && often[1] > 10 && often[2] > 10, "{often:?}");
    let often = [inside.get(), tried_again.get()];
    assert!(often[0] > 30 && often[1] > 5, "{often:?}");
}
