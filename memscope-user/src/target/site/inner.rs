//! What is told of calls inside a function that they call.
//!
//! glibc's malloc has most blocks found by another function, behind whose call the size is lost. At the end of that
//! function both are known. So it is told there what it gives, if it is malloc that has called it, which is seen by where it returns
//! to: other functions call it as well.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Register};

use super::{
    CalledCode, Inner, InnerCall, MAX_INNER_CALLS, ProbeNeed,
    arguments::{ARGUMENT_COUNT, ARGUMENT_REGISTERS, ArgumentPlaces, ArgumentSet, tested_for_zero},
    emulated::EmulatedForms,
    flow::{Edge, Flow, Holder},
    known::Known,
    midst::{FrameAt, MAX_DEPTH_BYTES, Midst, MidstPlace, choose, frame_at},
};

/// The condition that the zero flag is not set (Intel SDM, volume 2, table B-10).
const NOT_ZERO: u8 = 5;

/// The functions that code calls to look at their results at once, as distances from its beginning.
pub(in crate::target) fn judged_calls(code: &[u8]) -> impl Iterator<Item = i64> {
    let mut called = None;
    let instructions = Decoder::new(64, code, DecoderOptions::NONE).into_iter();
    instructions.filter_map(move |instruction| {
        let before = called.take();
        if instruction.flow_control() == FlowControl::Call {
            called = Some(instruction.near_branch_target().cast_signed());
        }
        before.filter(|_| tested_for_zero(&instruction) == Some(Register::RAX))
    })
}

/// A call of a function that finds the block, behind which there is a jump by whether it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JudgedCall {
    /// Position of the called function.
    distance: i64,
    /// Which of its arguments is the one that is needed of its caller.
    argument: u8,
    /// Position of the call among the nodes.
    call: usize,
    /// The condition without which the caller tries again; none if the result is the caller's in any case.
    pub(super) condition: Option<u8>,
}

/// Such calls, by the positions of the jumps among the nodes.
pub(super) type JudgedCalls = BTreeMap<usize, JudgedCall>;

/// Calls that can be told inside of what they call: each jump by a result is reached by its call only.
pub(super) fn judged_calls_of(
    flow: &Flow<'_>,
    need: ProbeNeed,
    called: &[CalledCode],
) -> JudgedCalls {
    let only_before = |at: usize| {
        let mut before = flow.before(at);
        before.next().map(|(before, _)| before).filter(|_| before.next().is_none())
    };
    let of_jump = |jump: usize| {
        let test = only_before(jump)?;
        let call = only_before(test)?;
        let is_test = tested_for_zero(&flow.nodes.get(test)?.instruction) == Some(Register::RAX);
        is_test.then(|| judged_call(flow, need, called, (call, jump)))?
    };
    (0..flow.nodes.len()).filter_map(|jump| Some((jump, of_jump(jump)?))).collect()
}

fn judged_call(
    flow: &Flow<'_>,
    need: ProbeNeed,
    called: &[CalledCode],
    (call, jump): (usize, usize),
) -> Option<JudgedCall> {
    let (node, jump) = (flow.nodes.get(call)?, flow.nodes.get(jump)?);
    let distance = node.instruction.near_branch_target().cast_signed();
    let is_known = called.iter().any(|called| called.distance == distance);
    (node.instruction.flow_control() == FlowControl::Call && is_known).then_some(())?;
    let needed = only_argument(need)?;
    let is_passed = |register: &Register| {
        ARGUMENT_REGISTERS.get(needed).is_some_and(|it| node.known.holds(*register, *it))
    };
    let argument = ARGUMENT_REGISTERS.iter().position(is_passed)? as u8;
    let in_rax = Holder::Register(Register::RAX.number() as u8);
    let gives = |edge: &&Edge| edge.condition == Some(NOT_ZERO);
    let giving = jump.edges.iter().find(gives)?;
    flow.result_by(jump, *giving)?.contains(&in_rax).then_some(())?;
    let is_result_anyhow = jump.result.as_ref()?.contains(&in_rax);
    let condition = if is_result_anyhow { None } else { Some(NOT_ZERO) };
    Some(JudgedCall { distance, argument, call, condition })
}

/// The argument that is needed, if it is one.
fn only_argument(need: ProbeNeed) -> Option<usize> {
    let mut needed = (0..ARGUMENT_COUNT).filter(|argument| need.arguments.contains(*argument));
    needed.next().filter(|_| needed.next().is_none())
}

/// The places inside of what these calls call; none if it cannot be told there.
pub(super) fn places_inside(
    flow: &Flow<'_>,
    need: ProbeNeed,
    forms: EmulatedForms,
    called: &[CalledCode],
    calls: &[&JudgedCall],
) -> Option<Vec<MidstPlace>> {
    let needed = only_argument(need)?;
    let functions: BTreeSet<i64> = calls.iter().map(|call| call.distance).collect();
    let mut places = Vec::new();
    for distance in functions {
        let code = called.iter().find(|called| called.distance == distance)?;
        let of_function: Vec<&JudgedCall> =
            calls.iter().filter(|call| call.distance == distance).copied().collect();
        let argument = of_function.first()?.argument;
        // Else there would be two probes at one place.
        of_function.iter().all(|call| call.argument == argument).then_some(())?;
        for place in places_of(code, argument, forms)? {
            let mut in_registers = ArgumentPlaces::AS_PASSED.all();
            *in_registers.get_mut(needed)? = place.places.of(argument);
            let places_here = ArgumentPlaces::at(in_registers);
            places.push(place_inside(
                flow,
                &of_function,
                MidstPlace { places: places_here, ..place },
            )?);
        }
    }
    Some(places)
}

/// The places at which it is told what a function gives, with one of its arguments.
fn places_of(code: &CalledCode, argument: u8, forms: EmulatedForms) -> Option<Vec<MidstPlace>> {
    let flow = Flow::of(&code.code, &code.never_return)?;
    let need = ProbeNeed { arguments: ArgumentSet::of([argument]), block: None };
    let places = choose(&flow, need, forms, &JudgedCalls::new())?.places;
    let tells =
        |place: &MidstPlace| matches!(place.midst, Some(Midst::Gives { was_noted: false, .. }));
    places.iter().all(tells).then_some(places)
}

/// A place inside of what these calls call, as seen from their function.
fn place_inside(flow: &Flow<'_>, calls: &[&JudgedCall], place: MidstPlace) -> Option<MidstPlace> {
    let mut inner: Option<(Inner, FrameAt)> = None;
    for (number, call) in calls.iter().enumerate() {
        let node = flow.nodes.get(call.call)?;
        let depth_bytes = u16::try_from(node.known.depth).ok()?.checked_add(8)?;
        let frame = frame_from(&node.known, depth_bytes, place.frame)?;
        let begins = Inner { distance: call.distance, depth_bytes, calls: [None; MAX_INNER_CALLS] };
        let (inner, known) = inner.get_or_insert((begins, frame));
        (inner.depth_bytes == depth_bytes && *known == frame).then_some(())?;
        let from = call.distance.checked_add_unsigned(place.offset)?;
        let to = i64::try_from(node.instruction.next_ip()).ok()?;
        let return_distance = i32::try_from(to.checked_sub(from)?).ok()?;
        let tells_failure = call.condition.is_none();
        *inner.calls.get_mut(number)? = Some(InnerCall { return_distance, tells_failure });
    }
    let (inner, frame) = inner?;
    Some(MidstPlace { frame, inner: Some(inner), ..place })
}

/// Where the frame of a function's caller is from inside of what it calls: its return address is so far above the other's.
fn frame_from(known: &Known, depth_bytes: u16, frame: FrameAt) -> Option<FrameAt> {
    let own = frame_at(known)?;
    // What the function has saved lies there still; else the other one has saved it, if any has.
    let saved = |register: Register, own: Option<u16>, inside: Option<u16>| {
        let inside = inside.map(|inside| inside.saturating_add(depth_bytes));
        if known.holds(register, register) { inside } else { own }
    };
    let frame = FrameAt {
        depth_bytes: frame.depth_bytes.checked_add(depth_bytes)?,
        rbp_depth_bytes: saved(Register::RBP, own.rbp_depth_bytes, frame.rbp_depth_bytes),
        rbx_depth_bytes: saved(Register::RBX, own.rbx_depth_bytes, frame.rbx_depth_bytes),
    };
    (i64::from(frame.depth_bytes) <= MAX_DEPTH_BYTES).then_some(frame)
}
