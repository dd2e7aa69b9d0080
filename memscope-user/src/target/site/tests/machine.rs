//! A machine for a handful of instructions, which knows nothing of how sites are chosen.

use proptest::prelude::*;

use super::given;
use crate::target::site::ProbeSite;

/// Numbers of `rdi`, `rsi`, `rdx` and `rcx`, the first four arguments, and of `rax`.
const REGISTERS: [u8; 5] = [7, 6, 2, 1, 0];
/// Most steps that are taken, over all ways together.
const MAX_STEPS: usize = 2000;

/// One instruction; jumps lead to the start of another one, by its position.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    EndBranch,
    Nop,
    Move {
        to: u8,
        from: u8,
    },
    Clear(u8),
    Test(u8),
    Push(u8),
    LowerStack,
    Store,
    Jump(usize),
    /// If the zero flag is set, or if it is not.
    JumpIfZero(bool, usize),
    /// If the sign flag is set, which is not known here.
    JumpIfSign(usize),
    Return,
}

pub(super) fn piece() -> impl Strategy<Value = Piece> {
    let register = || prop::sample::select(&REGISTERS[..]);
    let place = || 0_usize..24;
    prop_oneof![
        2 => Just(Piece::EndBranch),
        1 => Just(Piece::Nop),
        4 => (register(), register()).prop_map(|(to, from)| Piece::Move { to, from }),
        2 => register().prop_map(Piece::Clear),
        4 => register().prop_map(Piece::Test),
        4 => register().prop_map(Piece::Push),
        1 => Just(Piece::LowerStack),
        1 => Just(Piece::Store),
        1 => place().prop_map(Piece::Jump),
        4 => (any::<bool>(), place()).prop_map(|(if_zero, to)| Piece::JumpIfZero(if_zero, to)),
        2 => place().prop_map(Piece::JumpIfSign),
        2 => Just(Piece::Return),
    ]
}

fn length(piece: &Piece) -> usize {
    match piece {
        Piece::EndBranch | Piece::LowerStack => 4,
        Piece::Move { .. } | Piece::Test(_) | Piece::Store => 3,
        Piece::Clear(_) | Piece::Jump(_) | Piece::JumpIfZero(..) | Piece::JumpIfSign(_) => 2,
        Piece::Nop | Piece::Push(_) | Piece::Return => 1,
    }
}

fn start(pieces: &[Piece], position: usize) -> usize {
    pieces.iter().take(position).map(length).sum()
}

pub(super) fn assemble(pieces: &[Piece]) -> Vec<u8> {
    let mut code: Vec<u8> = Vec::new();
    for piece in pieces {
        let end = code.len() + length(piece);
        let distance = |to: usize| {
            let distance = start(pieces, to % pieces.len()) as i64 - end as i64;
            i8::try_from(distance).unwrap().cast_unsigned()
        };
        match *piece {
            Piece::EndBranch => code.extend([0xf3, 0x0f, 0x1e, 0xfa]),
            Piece::Nop => code.push(0x90),
            Piece::Move { to, from } => code.extend([0x48, 0x89, 0xc0 | from << 3 | to]),
            Piece::Clear(register) => code.extend([0x31, 0xc0 | register << 3 | register]),
            Piece::Test(register) => code.extend([0x48, 0x85, 0xc0 | register << 3 | register]),
            Piece::Push(register) => code.push(0x50 | register),
            Piece::LowerStack => code.extend([0x48, 0x83, 0xec, 8]),
            Piece::Store => code.extend([0x48, 0x89, 0x02]),
            Piece::Jump(to) => code.extend([0xeb, distance(to)]),
            Piece::JumpIfZero(true, to) => code.extend([0x74, distance(to)]),
            Piece::JumpIfZero(false, to) => code.extend([0x75, distance(to)]),
            Piece::JumpIfSign(to) => code.extend([0x78, distance(to)]),
            Piece::Return => code.push(0xc3),
        }
    }
    code
}

#[derive(Clone)]
struct Machine {
    at: usize,
    registers: [u64; 8],
    zero: Option<bool>,
    /// How far the stack pointer is below the return address.
    depth_bytes: u16,
    is_memory_written: bool,
    hits: usize,
}

impl Machine {
    /// With these arguments.
    fn at_entry(passed: [u64; 4]) -> Self {
        let mut registers = [9; 8];
        for (register, value) in REGISTERS.into_iter().zip(passed) {
            registers[usize::from(register)] = value;
        }
        Self { at: 0, registers, zero: None, depth_bytes: 0, is_memory_written: false, hits: 0 }
    }
}

/// What is wrong with a site, on any way through the code; nothing is wrong with the entry.
pub(super) fn objection(
    pieces: &[Piece],
    site: &ProbeSite,
    has_block: bool,
    may_lack_block: bool,
) -> Option<&'static str> {
    let passed = [u64::from(has_block) * 100, 101, 102, 103];
    let matters = has_block || !may_lack_block;
    let mut open = vec![Machine::at_entry(passed)];
    for _step in 0..MAX_STEPS {
        let Some(mut machine) = open.pop() else { break };
        let Some(piece) = pieces.get(machine.at) else { continue };
        if start(pieces, machine.at) as u64 == site.offset {
            machine.hits += 1;
            let found =
                |argument: u8| machine.registers[usize::from(REGISTERS[usize::from(argument)])];
            if machine.hits > 1 {
                return Some("it is reached twice");
            }
            if machine.is_memory_written {
                return Some("something is before it");
            }
            if machine.depth_bytes != site.frame.depth_bytes {
                return Some("the return address is elsewhere");
            }
            if machine.depth_bytes != 0 && !may_lack_block {
                return Some("the return address is not on top of the stack");
            }
            if (0..2)
                .any(|argument| found(site.places.of(argument)) != passed[usize::from(argument)])
            {
                return Some("an argument is elsewhere");
            }
        }
        if matches!(piece, Piece::Return) && matters && machine.hits != 1 {
            return Some("it is not reached");
        }
        // Back at the entry it is another call.
        let next = after(&machine, piece, pieces.len()).into_iter().map(|(next, _)| next);
        open.extend(next.filter(|next| next.at != 0));
    }
    None
}

/// What is wrong with places that are to be probed in the entry's stead, on any way through the code.
pub(super) fn objection_to_places(pieces: &[Piece], sites: &[ProbeSite]) -> Option<&'static str> {
    let passed = [100, 101, 102, 103];
    // What each has been told to give, if it was told.
    let mut open = vec![(Machine::at_entry(passed), None)];
    for _step in 0..MAX_STEPS {
        let Some((machine, told)) = open.pop() else { break };
        let Some(piece) = pieces.get(machine.at) else { continue };
        let here = start(pieces, machine.at) as u64;
        let site = sites.iter().find(|site| site.offset == here);
        let register = |number: u8| machine.registers[usize::from(number)];
        let mut ends = vec![(machine.clone(), None)];
        let leads_on = matches!(piece, Piece::Push(_) | Piece::LowerStack);
        if !leads_on && !matches!(piece, Piece::Return) {
            ends = after(&machine, piece, pieces.len());
        }
        for (next, condition) in ends {
            let mut told: Option<Option<u64>> = told;
            let wanted = |site: &ProbeSite| given(site).and_then(|(_, condition)| condition);
            let site = site.filter(|site| wanted(site).is_none_or(|it| Some(it) == condition));
            if let Some(site) = site {
                if told.is_some() {
                    return Some("it is told twice");
                }
                let place = |argument: u8| REGISTERS[usize::from(site.places.of(argument))];
                if (0..2).any(|argument| register(place(argument)) != passed[usize::from(argument)])
                {
                    return Some("an argument is elsewhere");
                }
                told = Some(given(site).map(|(held, _)| register(held)));
            }
            match (piece, told) {
                (Piece::Return, None) => return Some("it returns and was not told"),
                (Piece::Return, Some(Some(block))) if block != register(0) => {
                    return Some("it gives another block");
                }
                (_, None | Some(Some(_))) if leads_on => return Some("it leads on unseen"),
                (Piece::Return, _) => {}
                _ if leads_on => {}
                _ => open.push((next, told)),
            }
        }
    }
    None
}

/// Behind a jump that is taken if the zero flag is set, or if it is not, as far as that is known.
pub(super) fn after_zero_jump<M>(
    zero_flag: Option<bool>,
    if_zero: bool,
    jumped: M,
    goes_on: M,
) -> Vec<(M, Option<u8>)> {
    let (zero, not_zero) = (Some(4), Some(5));
    let (jumps, stays) = if if_zero { (zero, not_zero) } else { (not_zero, zero) };
    match zero_flag {
        Some(zero) if zero == if_zero => vec![(jumped, jumps)],
        Some(_) => vec![(goes_on, stays)],
        None => vec![(jumped, jumps), (goes_on, stays)],
    }
}

/// The states that can follow, and the number of the condition that a jump then had.
fn after(machine: &Machine, piece: &Piece, count: usize) -> Vec<(Machine, Option<u8>)> {
    let mut next = Machine { at: machine.at + 1, ..machine.clone() };
    let jumped = |to: usize| Machine { at: to % count, ..next.clone() };
    match *piece {
        Piece::EndBranch | Piece::Nop => {}
        Piece::Move { to, from } => {
            next.registers[usize::from(to)] = machine.registers[usize::from(from)];
        }
        Piece::Clear(register) => {
            next.registers[usize::from(register)] = 0;
            next.zero = Some(true);
        }
        Piece::Test(register) => next.zero = Some(machine.registers[usize::from(register)] == 0),
        Piece::Push(_) | Piece::LowerStack => {
            next.depth_bytes += 8;
            if matches!(piece, Piece::LowerStack) {
                next.zero = None;
            }
        }
        Piece::Store => next.is_memory_written = true,
        Piece::Jump(to) => return vec![(jumped(to), None)],
        Piece::JumpIfZero(if_zero, to) => {
            return after_zero_jump(machine.zero, if_zero, jumped(to), next);
        }
        Piece::JumpIfSign(to) => return vec![(jumped(to), Some(8)), (next, Some(9))],
        Piece::Return => return Vec::new(),
    }
    vec![(next, None)]
}
