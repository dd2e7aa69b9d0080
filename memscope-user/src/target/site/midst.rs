//! Where calls are told in the midst of a function whose stack pointer moves before it is known what they give.
//!
//! glibc's malloc saves registers first. Then it takes a block from the thread's cache, if there is one: there one probe
//! tells all. On other ways it calls what finds a block, and behind that the block is in a register, and what was asked for
//! often still is. Where it is not, another probe notes it before. So nothing of the return needs to be probed: each way passes
//! one place at which what it gives is known, or jumps to another function in place of a call, where it is probed as at an entry.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Mnemonic, Register};

use super::{
    Calls, Inner, ProbeNeed,
    arguments::{ArgumentPlaces, OF_CALLER},
    emulated::EmulatedForms,
    flow::{Edge, Flow, Holder, Node},
    inner::{JudgedCall, JudgedCalls, judged_calls_of, places_inside},
    known::Known,
};

/// Most places in one function that are probed.
const MAX_PLACES: usize = 16;
/// Farthest from the return address that the stack pointer may be: what a cookie can say.
pub(super) const MAX_DEPTH_BYTES: i64 = 31 * 8;

/// What a probe tells of a call in its midst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Midst {
    /// What it was given, which is not known any more where what it gives is.
    Notes,
    /// What it gives.
    Gives {
        /// The number of the register that holds the block (Intel SDM, volume 2, table 3-1); none if it gives none.
        register: Option<u8>,
        /// The condition, as in a conditional jump, without which the call never returns or is told elsewhere; none if there
        /// is none.
        condition: Option<u8>,
        /// Whether what it was given was noted before.
        was_noted: bool,
    },
}

/// How the caller's frame is found from a place in the midst of a function: it is at a fixed distance from the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt {
    /// How far below the return address the stack pointer is.
    pub depth_bytes: u16,
    /// How far below the return address the caller's `rbp` lies; none if it is in the register.
    pub rbp_depth_bytes: Option<u16>,
    /// The same of `rbx`.
    pub rbx_depth_bytes: Option<u16>,
}

impl FrameAt {
    /// At a function's entry.
    pub(super) const ENTRY: Self =
        Self { depth_bytes: 0, rbp_depth_bytes: None, rbx_depth_bytes: None };
}

/// A place that is probed in the entry's stead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MidstPlace {
    pub(super) offset: u64,
    pub(super) emulated: bool,
    pub(super) places: ArgumentPlaces,
    /// None where another function goes on in place of this one: its return is to be probed.
    pub(super) midst: Option<Midst>,
    pub(super) frame: FrameAt,
    pub(super) inner: Option<Inner>,
}

/// The places to probe in the entry's stead; none if these would not do, or not be cheaper.
pub(super) fn choose_places(
    code: &[u8],
    need: ProbeNeed,
    forms: EmulatedForms,
    calls: Calls<'_>,
) -> Option<Vec<MidstPlace>> {
    let flow = Flow::of(code, calls.never_return)?;
    let judged = judged_calls_of(&flow, need, calls.called);
    let with_inner = || {
        let Chosen { mut places, told_inside } = choose(&flow, need, forms, &judged)?;
        let told: Vec<_> = told_inside.iter().filter_map(|jump| judged.get(jump)).collect();
        places.extend(places_inside(&flow, need, forms, calls.called, &told)?);
        Some(places)
    };
    let places = if judged.is_empty() { None } else { with_inner() };
    places.or_else(|| Some(choose(&flow, need, forms, &JudgedCalls::new())?.places))
}

/// What was chosen in a function.
pub(super) struct Chosen {
    pub(super) places: Vec<MidstPlace>,
    /// The jumps behind those calls that are to be told inside of what they call.
    told_inside: BTreeSet<usize>,
}

/// The places to probe in a function if some of its calls are told inside of what they call.
pub(super) fn choose(
    flow: &Flow<'_>,
    need: ProbeNeed,
    forms: EmulatedForms,
    judged: &JudgedCalls,
) -> Option<Chosen> {
    let wanted = Wanted { flow, need, forms, judged, at_forks: false };
    choose_among(wanted).or_else(|| choose_among(Wanted { at_forks: true, ..wanted }))
}

fn choose_among(wanted: Wanted<'_>) -> Option<Chosen> {
    // Places that lead to where other ways have not been told yet.
    let mut refused = BTreeSet::new();
    let choice = loop {
        let choice = Choice::of(wanted, &refused)?;
        match choice.objection() {
            None => break choice,
            Some(Objection::ToldOnOneWay(at)) => {
                let before = refused.len();
                match choice.chosen.get(&at) {
                    // Where calls fail; each way there can be told before.
                    Some(place) if !place.emulated => {
                        refused.insert(at);
                    }
                    _ => refused.extend(choice.telling_before(at)),
                }
                (refused.len() > before).then_some(())?;
            }
            Some(Objection::Other) => return None,
        }
    };
    let Choice { mut chosen, told_inside, .. } = choice;
    let is_cheaper = chosen.values().any(|place| {
        place.emulated
            && matches!(place.midst, Some(Midst::Gives { was_noted: false, register: Some(_), .. }))
    });
    chosen.retain(|at, _| !told_inside.contains(at));
    let mut places: Vec<MidstPlace> = chosen.into_values().collect();
    places.sort_by_key(|place| place.offset);
    (is_cheaper && places.len() <= MAX_PLACES).then_some(Chosen { places, told_inside })
}

/// Why places will not do.
enum Objection {
    /// A way that was told and one that was not come together at a node.
    ToldOnOneWay(usize),
    /// A way is not told, or twice, or not noted where it has to be.
    Other,
}

/// What places are wanted.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    flow: &'a Flow<'a>,
    need: ProbeNeed,
    forms: EmulatedForms,
    judged: &'a JudgedCalls,
    /// Whether they can be jumps behind which what is given is known on one way, and not yet on the other.
    at_forks: bool,
}

/// Places in a function, by their nodes.
struct Choice<'a> {
    wanted: Wanted<'a>,
    /// Nodes at which nothing is to be told.
    refused: &'a BTreeSet<usize>,
    /// As seen from this function, what is told inside of another one is told by the jump behind the call.
    chosen: BTreeMap<usize, MidstPlace>,
    told_inside: BTreeSet<usize>,
}

impl<'a> Choice<'a> {
    /// On each way the first place at which what it gives is known; none if there is none on one of them.
    fn of(wanted: Wanted<'a>, refused: &'a BTreeSet<usize>) -> Option<Self> {
        let (chosen, told_inside) = (BTreeMap::new(), BTreeSet::new());
        let mut choice = Self { wanted, refused, chosen, told_inside };
        let Wanted { flow, need, forms, judged, .. } = wanted;
        let mut seen = BTreeSet::new();
        let mut open = vec![0];
        let mut to_note = Vec::new();
        while let Some(at) = open.pop() {
            let node = flow.nodes.get(at)?;
            // Where nothing returns, nothing is to be told.
            if node.result.is_none() || !seen.insert(at) {
                continue;
            }
            let places = node.known.places(need.arguments);
            if node.leads_on {
                // There the return address has to be on top of the stack, as at an entry.
                let is_as_at_entry = node.known.depth == 0 && forms.emulate(node.bytes);
                choice.choose(at, places.filter(|_| is_as_at_entry)?, None)?;
                continue;
            }
            if let Some(call) = judged.get(&at).filter(|_| !refused.contains(&at)) {
                choice.tell_inside(at, call);
                open.extend(untold(node, call.condition));
                continue;
            }
            let Some((register, condition)) = choice.told_at(at) else {
                (node.instruction.flow_control() != FlowControl::Return).then_some(())?;
                let fails = |edge: &&Edge| choice.fails_by(node, **edge);
                let failing = node.edges.iter().find(fails).filter(|_| forms.emulate(node.bytes));
                if let (Some(edge), Some(places)) = (failing, places) {
                    let condition = edge.condition;
                    let midst = Midst::Gives { register: None, condition, was_noted: false };
                    choice.choose(at, places, Some(midst))?;
                }
                let goes_on =
                    node.edges.iter().filter(|edge| places.is_none() || Some(*edge) != failing);
                open.extend(goes_on.filter_map(|edge| edge.to));
                continue;
            };
            let was_noted = places.is_none();
            if was_noted {
                to_note.push(at);
            }
            let midst = Some(Midst::Gives { register, condition, was_noted });
            let places = places.unwrap_or(ArgumentPlaces::AS_PASSED);
            choice.choose(at, places, midst)?;
            open.extend(untold(node, condition));
        }
        for at in to_note {
            choice.note_before(at)?;
        }
        Some(choice)
    }

    /// None if what was the caller's cannot be found from there.
    fn choose(&mut self, at: usize, places: ArgumentPlaces, midst: Option<Midst>) -> Option<()> {
        let node = self.wanted.flow.nodes.get(at)?;
        let frame = frame_at(&node.known)?;
        let (offset, emulated) = (node.instruction.ip(), self.wanted.forms.emulate(node.bytes));
        let place = MidstPlace { offset, emulated, places, midst, frame, inner: None };
        self.chosen.insert(at, place);
        (!self.told_inside.contains(&at)).then_some(())
    }

    /// A call is told inside of what it calls, before the jump by its result.
    fn tell_inside(&mut self, jump: usize, call: &JudgedCall) {
        let register = Some(Register::RAX.number() as u8);
        let condition = call.condition;
        let place = MidstPlace {
            offset: 0,
            emulated: true,
            places: ArgumentPlaces::AS_PASSED,
            midst: Some(Midst::Gives { register, condition, was_noted: false }),
            frame: FrameAt::ENTRY,
            inner: None,
        };
        self.chosen.insert(jump, place);
        self.told_inside.insert(jump);
    }

    /// As [`given_at`], of a node that is not refused. A call that fails is to be told where it is known what it was given.
    fn told_at(&self, at: usize) -> Option<(Option<u8>, Option<u8>)> {
        let Wanted { flow, need, forms, at_forks, .. } = self.wanted;
        let node = flow.nodes.get(at).filter(|_| !self.refused.contains(&at))?;
        let is_emulated = forms.emulate(node.bytes);
        let has_arguments = node.known.places(need.arguments).is_some();
        let is_known = is_emulated || has_arguments;
        let at_fork = || {
            if at_forks && is_emulated && has_arguments {
                given_on_one_way(flow, node)
            } else {
                None
            }
        };
        given_at(flow, node, is_emulated).filter(|_| is_known).or_else(at_fork)
    }

    /// Whether calls that a conditional jump leads there are known to fail, and are not told behind it.
    fn fails_by(&self, node: &Node<'_>, edge: Edge) -> bool {
        let held = self.wanted.flow.result_by(node, edge);
        let fails = held.is_some_and(|held| held.contains(&Holder::Zero));
        let is_told_behind = edge.to.is_some_and(|to| self.told_at(to).is_some());
        edge.condition.is_some() && fails && !is_told_behind
    }

    /// Adds, on each way to a place, the last one before it at which what the call was given is known.
    fn note_before(&mut self, at: usize) -> Option<()> {
        let mut seen = BTreeSet::from([at]);
        let mut open = vec![at];
        while let Some(at) = open.pop() {
            // At the entry the way is at its end.
            (at != 0).then_some(())?;
            for (before, node) in self.wanted.flow.before(at) {
                if !seen.insert(before) {
                    continue;
                }
                let is_emulated = self.wanted.forms.emulate(node.bytes);
                let places = node.known.places(self.wanted.need.arguments).filter(|_| is_emulated);
                let Some(places) = places else {
                    open.push(before);
                    continue;
                };
                self.choose(before, places, Some(Midst::Notes))?;
            }
        }
        Some(())
    }

    /// What is wrong, if not each way is told exactly once, and noted once before if it has to be, and never else.
    fn objection(&self) -> Option<Objection> {
        // How often a way has been noted and told before it comes to a node.
        let mut counts: BTreeMap<usize, (u8, u8)> = BTreeMap::from([(0, (0, 0))]);
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            let node = self.wanted.flow.nodes.get(at);
            let (Some(node), Some(&(noted, told))) = (node, counts.get(&at)) else {
                return Some(Objection::Other);
            };
            if node.result.is_none() {
                continue;
            }
            let chosen = self.chosen.get(&at).map(|place| place.midst);
            let after = match chosen {
                None => (noted, told),
                Some(Some(Midst::Notes)) if (noted, told) == (0, 0) => (1, 0),
                Some(Some(Midst::Gives { was_noted, .. }))
                    if (noted, told) == (was_noted.into(), 0) =>
                {
                    (noted, 1)
                }
                Some(None) if (noted, told) == (0, 0) => (0, 1),
                // Another way comes here untold, or it would not have been chosen.
                Some(Some(Midst::Gives { .. }) | None) if told == 1 => {
                    return Some(Objection::ToldOnOneWay(at));
                }
                Some(_) => return Some(Objection::Other),
            };
            let ends = node.instruction.flow_control() == FlowControl::Return;
            if ends && after.1 != 1 {
                return Some(Objection::Other);
            }
            let condition = match chosen {
                Some(Some(Midst::Gives { condition, .. })) => condition,
                _ => None,
            };
            for edge in &node.edges {
                let Some(to) = edge.to else { continue };
                let is_told = condition.is_none() || condition == edge.condition;
                let after = if is_told { after } else { (noted, told) };
                match counts.insert(to, after) {
                    None => open.push(to),
                    // What was noted is of no interest once it was told.
                    Some((_, 1)) if after.1 == 1 => {}
                    Some(before) if before == after => {}
                    Some(before) if before.1 != after.1 => {
                        return Some(Objection::ToldOnOneWay(to));
                    }
                    Some(_) => return Some(Objection::Other),
                }
            }
        }
        None
    }

    /// The last places that tell on the ways to a node.
    fn telling_before(&self, at: usize) -> BTreeSet<usize> {
        let mut telling = BTreeSet::new();
        let mut seen = BTreeSet::from([at]);
        let mut open = vec![at];
        while let Some(at) = open.pop() {
            for (before, node) in self.wanted.flow.before(at) {
                let mut here = node.edges.iter().filter(|edge| edge.to == Some(at));
                let tells = match self.chosen.get(&before).and_then(|place| place.midst) {
                    Some(Midst::Gives { condition: None, .. }) => true,
                    Some(Midst::Gives { condition, .. }) => {
                        here.any(|edge| edge.condition == condition)
                    }
                    _ => false,
                };
                if tells {
                    telling.insert(before);
                } else if seen.insert(before) {
                    open.push(before);
                }
            }
        }
        telling
    }
}

/// In which register the result is at an instruction, if in any, and under which condition; none if it is not known there, or
/// the instruction will not do.
fn given_at(
    flow: &Flow<'_>,
    node: &Node<'_>,
    is_emulated: bool,
) -> Option<(Option<u8>, Option<u8>)> {
    let held = node.result.as_ref()?;
    let in_register = register_of(held);
    let is_zero = held.contains(&Holder::Zero);
    if !is_emulated {
        // A failing call may cost more.
        return (is_zero && can_be_stepped(node)).then_some((None, None));
    }
    let register = if is_zero { None } else { Some(in_register?) };
    let returns = |edge: &&Edge| flow.result_by(node, **edge).is_some();
    let mut returning = node.edges.iter().filter(returns);
    let condition = match (returning.next(), returning.next()) {
        (Some(edge), None) => edge.condition,
        _ => None,
    };
    Some((register, condition))
}

/// The same, of a conditional jump behind which it is known on one of its two ways.
fn given_on_one_way(flow: &Flow<'_>, node: &Node<'_>) -> Option<(Option<u8>, Option<u8>)> {
    node.edges.iter().filter(|edge| edge.condition.is_some()).find_map(|edge| {
        let held = flow.result_by(node, *edge)?;
        Some((Some(register_of(&held)?), edge.condition))
    })
}

fn register_of(held: &BTreeSet<Holder>) -> Option<u8> {
    held.iter().find_map(|holder| match holder {
        Holder::Register(number) if *number != Register::RSP.number() as u8 => Some(*number),
        _ => None,
    })
}

/// Where it goes on from a place where what is given is told under a condition, if that does not hold.
fn untold(node: &Node<'_>, condition: Option<u8>) -> impl Iterator<Item = usize> {
    let goes_on = move |edge: &&Edge| condition.is_some() && edge.condition != condition;
    node.edges.iter().filter(goes_on).filter_map(|edge| edge.to)
}

/// Whether the kernel can step through it: plain instructions that compilers write, without a prefix that it may refuse.
fn can_be_stepped(node: &Node<'_>) -> bool {
    let instruction = &node.instruction;
    let is_plain = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Xor | Mnemonic::Add | Mnemonic::Pop
    );
    is_plain && instruction.segment_prefix() == Register::None && !instruction.has_lock_prefix()
}

/// Where the caller's frame is; none if it cannot be found from there.
pub(super) fn frame_at(known: &Known) -> Option<FrameAt> {
    let is_found =
        |register: &Register| known.holds(*register, *register) || known.saved(*register).is_some();
    let depth = |register: Register| {
        let saved = if known.holds(register, register) { None } else { known.saved(register) };
        saved.map(|depth| depth as u16)
    };
    let is_near = known.depth <= MAX_DEPTH_BYTES && known.depth % 8 == 0;
    (is_near && OF_CALLER.iter().all(is_found)).then(|| FrameAt {
        depth_bytes: known.depth as u16,
        rbp_depth_bytes: depth(Register::RBP),
        rbx_depth_bytes: depth(Register::RBX),
    })
}
