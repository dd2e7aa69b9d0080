//! Where it is known, before a call returns, which block it gives.
//!
//! Allocators that take blocks from a list (jemalloc, mimalloc) see by a jump whether there is one. Behind it the block is in a
//! register, and what was asked for still is: a probe there tells as much as one at the entry and one at the return, and
//! costs as much as the first of them. The other ways through the function are probed where they lead on to something else.
//!
//! All ways from the entry to a return, or to what leads on, are followed; there have to be few. Places are chosen only if
//! each way passes exactly one of them, and finds there what it is probed for.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Register};

use super::{
    ProbeNeed,
    arguments::{ArgumentPlaces, Effects, OF_CALLER},
    emulated::EmulatedForms,
    known::{Known, Value},
};

/// Most ways through a function.
const MAX_WAYS: usize = 64;
/// Most instructions of a way.
const MAX_STEPS: usize = 96;
/// Most places that are probed for one function.
const MAX_PLACES: usize = 6;

/// What a probe finds in the midst of a call: the block that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// The number of the register that holds it (Intel SDM, volume 2, table 3-1).
    pub(super) register: u8,
    /// The condition, as in a conditional jump, without which the call goes another way; none if there is none.
    pub(super) condition: Option<u8>,
}

/// A place that is probed in the entry's stead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) places: ArgumentPlaces,
    /// None where the call leads on: its return is to be probed.
    pub(super) given: Option<Given>,
}

/// One step of a way.
#[derive(Clone)]
struct Step {
    offset: u64,
    is_emulated: bool,
    /// What is known before it.
    known: Known,
    places: Option<ArgumentPlaces>,
    /// The condition that holds where the way goes on.
    condition: Option<u8>,
}

/// A way through a function, as far as it was followed.
#[derive(Clone)]
struct Way {
    steps: Vec<Step>,
    next: u64,
    known: Known,
    /// What it gives if it returns.
    gives: Option<Value>,
}

/// The places to probe in the entry's stead; none if these would not do, or not be cheaper.
pub(super) fn choose_places(
    code: &[u8],
    need: ProbeNeed,
    forms: EmulatedForms,
) -> Option<Vec<Place>> {
    let ways = all_ways(code, need, forms)?;
    let mut chosen = BTreeMap::new();
    for way in &ways {
        let place = place_of(way)?;
        if *chosen.entry(place.offset).or_insert(place) != place {
            return None;
        }
    }
    let is_cheaper = chosen.values().any(|place| place.given.is_some());
    let do_all = ways.iter().all(|way| passes_one(way, &chosen));
    (is_cheaper && do_all && chosen.len() <= MAX_PLACES).then(|| chosen.into_values().collect())
}

/// The last place of a way that will do.
fn place_of(way: &Way) -> Option<Place> {
    let Some(block) = way.gives else {
        let last = way.steps.last().filter(|step| step.is_emulated)?;
        return Some(Place { offset: last.offset, places: last.places?, given: None });
    };
    way.steps.iter().rev().find_map(|step| {
        let register = step.known.holding(block).filter(|_| step.is_emulated)?;
        let is_callers = |register: &Register| step.known.holds(*register, *register);
        let given = Given { register, condition: step.condition };
        let place = Place { offset: step.offset, places: step.places?, given: Some(given) };
        OF_CALLER.iter().chain(&[Register::RSP]).all(is_callers).then_some(place)
    })
}

/// Whether a call that goes this way is told at exactly one place, and as what it is.
fn passes_one(way: &Way, chosen: &BTreeMap<u64, Place>) -> bool {
    let told = way.steps.iter().filter_map(|step| {
        let place = chosen.get(&step.offset)?;
        let condition = place.given.and_then(|given| given.condition);
        let is_told = condition.is_none_or(|condition| step.condition == Some(condition));
        is_told.then_some((step, place))
    });
    let told: Vec<_> = told.collect();
    let [(step, place)] = told[..] else { return false };
    let is_right = match (place.given, way.gives) {
        (None, _) => true,
        (Some(given), Some(block)) => step.known.in_register(given.register) == Some(block),
        (Some(_), None) => false,
    };
    is_right && step.places == Some(place.places)
}

/// All ways from the entry; none if there are too many, if one goes round, or if it cannot be said where one goes.
fn all_ways(code: &[u8], need: ProbeNeed, forms: EmulatedForms) -> Option<Vec<Way>> {
    let mut open = vec![Way { steps: Vec::new(), next: 0, known: Known::at_entry(), gives: None }];
    let mut ended = Vec::new();
    while let Some(mut way) = open.pop() {
        if open.len() + ended.len() >= MAX_WAYS {
            return None;
        }
        loop {
            let is_round = way.steps.iter().any(|step| step.offset == way.next);
            if is_round || way.steps.len() == MAX_STEPS {
                return None;
            }
            let (instruction, bytes) = instruction_at(code, way.next)?;
            let effects = Effects::of(&instruction);
            way.steps.push(Step {
                offset: way.next,
                is_emulated: forms.emulate(bytes),
                known: way.known.clone(),
                places: way.known.places(need.arguments),
                condition: None,
            });
            match instruction.flow_control() {
                FlowControl::Next if !effects.moves_stack_pointer() => {
                    way.known = way.known.after(way.steps.len(), &instruction, &effects)?;
                    way.next = instruction.next_ip();
                }
                FlowControl::Return => {
                    way.gives = way.known.in_register(0);
                    break;
                }
                FlowControl::ConditionalBranch => {
                    let condition = condition_of(&instruction)?;
                    let mut other = way.clone();
                    other.next = instruction.near_branch_target();
                    note_condition(&mut other, condition);
                    open.push(other);
                    note_condition(&mut way, condition ^ 1);
                    way.next = instruction.next_ip();
                }
                FlowControl::UnconditionalBranch
                    if instruction_at(code, instruction.near_branch_target()).is_some() =>
                {
                    way.next = instruction.near_branch_target();
                }
                _ => break,
            }
        }
        ended.push(way);
    }
    Some(ended)
}

fn note_condition(way: &mut Way, condition: u8) {
    if let Some(step) = way.steps.last_mut() {
        step.condition = Some(condition);
    }
}

/// The instruction at a distance from the entry, if it is one and lies in the code.
pub(super) fn instruction_at(code: &[u8], offset: u64) -> Option<(Instruction, &[u8])> {
    let bytes = code.get(usize::try_from(offset).ok()?..)?;
    let instruction =
        Decoder::with_ip(64, bytes, offset, DecoderOptions::NONE).into_iter().next()?;
    let is_one = !instruction.is_invalid() && !instruction.is_privileged();
    is_one.then(|| (instruction, bytes.get(..instruction.len()).unwrap_or_default()))
}

/// The number of a conditional jump's condition, of which the lowest bit says whether it is another one's contrary (Intel SDM,
/// volume 2, table B-10).
pub(super) fn condition_of(jump: &Instruction) -> Option<u8> {
    (jump.is_jcc_short_or_near()).then(|| (jump.condition_code() as u8).checked_sub(1)).flatten()
}
