//! Which instruction of a function to probe.
//!
//! A uprobe replaces an instruction by a breakpoint. Some instructions the kernel then
//! emulates; any other it copies elsewhere and single-steps, which costs several times
//! as much. So the probe goes on an emulated instruction, if one near the entry does
//! as well as the first.

mod arguments;
mod emulated;
mod flow;
mod inner;
mod known;
mod midst;
mod path;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeSet;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter as _, GasFormatter, Instruction, Mnemonic,
};

pub use self::{
    arguments::{ArgumentPlaces, ArgumentSet},
    emulated::EmulatedForms,
    midst::{FrameAt, Midst},
};
use super::module::CalledCode;
use crate::model::AttachMethod;

pub(super) use self::arguments::{Effects, OF_CALLER};
pub(super) use self::inner::judged_calls;
use self::{known::Known, path::Path};

/// What a probe's program will want to find, besides the return address on top of the
/// stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeNeed {
    /// The arguments it reads.
    pub arguments: ArgumentSet,
    /// The argument that is the block which a call ends. Without one, that is if it is 0, the call does not matter; and what
    /// comes after its begin never does.
    pub block: Option<u8>,
}

/// What decides about sites besides the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteRules {
    /// What the kernel emulates.
    pub forms: EmulatedForms,
    /// Whether a call can be told by one probe, where the block that it gives is known before it returns.
    pub at_once: bool,
}

impl SiteRules {
    /// Those of the running kernel, for programs attached so. Only a session's does what is to be done at a call's return at
    /// other places as well: else that would be one more program, which Linux 6.1 takes a second to verify. `follows_calls`: it
    /// is to be told of calls from their begin on, for what is done inside them.
    #[must_use]
    pub fn of_this_kernel(method: AttachMethod, follows_calls: bool) -> Self {
        let at_once = method == AttachMethod::Session && !follows_calls;
        Self { forms: EmulatedForms::of_this_kernel(), at_once }
    }
}

/// Where to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// Distance from the function's first instruction.
    pub offset: u64,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
    /// Why there.
    pub reason: SiteReason,
    /// In which registers the needed arguments are there.
    pub places: ArgumentPlaces,
    /// What is told there if it is in the midst of a call; none at its begin.
    pub midst: Option<Midst>,
    /// Where the caller's frame is from there.
    pub frame: FrameAt,
    /// If it is in another function, which the one of interest calls: in which. Then `offset` is the distance from the first
    /// instruction of that.
    pub inner: Option<Inner>,
}

/// A function that the one of interest calls: what is told in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Where it begins, as a distance from the first instruction of the one of interest.
    pub distance: i64,
    /// How far its return address is below that of the one of interest.
    pub depth_bytes: u16,
    /// The calls of it that are told there. Others call it as well.
    pub calls: [Option<InnerCall>; MAX_INNER_CALLS],
}

/// Most calls of a function that are told in it.
pub const MAX_INNER_CALLS: usize = 4;

/// A call, by the function of interest, of a function in which it is told what that gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerCall {
    /// Where it returns to, as a distance from the probed instruction.
    pub return_distance: i32,
    /// Whether it is told as well that it gives no block. Else the function of interest tries again.
    pub tells_failure: bool,
}

/// What is known of the calls that a function makes.
#[derive(Clone, Copy)]
pub struct Calls<'a> {
    /// Calls and jumps, by their distances from its entry, by which it never goes on.
    pub never_return: &'a BTreeSet<u64>,
    /// Functions that it calls.
    pub called: &'a [CalledCode],
}

impl ProbeSite {
    /// An instruction by which a function returns.
    pub(super) const EXIT: Self = Self::at_entry(SiteReason::Exit);

    /// A function's first instruction, stepped through.
    const fn at_entry(reason: SiteReason) -> Self {
        Self {
            offset: 0,
            emulated: false,
            reason,
            places: ArgumentPlaces::AS_PASSED,
            midst: None,
            frame: FrameAt::ENTRY,
            inner: None,
        }
    }
}

/// Why a probe is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteReason {
    /// The entry is emulated.
    EmulatedEntry,
    /// The first emulated instruction, each call passes it once, and finds all there.
    NothingBefore,
    /// The same for calls with a block; others do not reach it.
    BehindNullTest,
    /// The entry, because a needed argument is overwritten before an emulated instruction.
    ArgumentOverwritten,
    /// The entry, because the return address does not stay on top of the stack.
    StackPointerMoves,
    /// The entry, because memory is written: others could see that a block is free.
    MemoryWritten,
    /// The entry, because it returns, or goes on where no one can tell.
    PathEnds,
    /// The entry, because the way to the emulated instruction can be entered elsewhere.
    EnteredOtherwise,
    /// The entry, because there is no emulated instruction near it.
    NoneNear,
    /// A function returns there that can have no return probe.
    Exit,
    /// What the call gives is known there, so that its return needs no probe.
    BlockKnown,
    /// The same, in a function that it calls.
    BlockKnownInside,
    /// A call that gives no block at once goes on there.
    LeadsOn,
    /// What the call was given is still known there, and where its block is, it is not.
    BeforeArgumentsGo,
    /// Calls go on there that give no block.
    Fails,
}

impl SiteReason {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmulatedEntry => "the entry is emulated",
            Self::NothingBefore => "emulated, and nothing that matters is before it",
            Self::BehindNullTest => "emulated, and not reached without a block",
            Self::ArgumentOverwritten => {
                "an argument is overwritten before the first emulated instruction"
            }
            Self::StackPointerMoves => {
                "the stack pointer moves before the first emulated instruction"
            }
            Self::MemoryWritten => "memory is written before the first emulated instruction",
            Self::PathEnds => "it ends or goes on elsewhere before any emulated instruction",
            Self::EnteredOtherwise => "the function jumps to where the probe would be",
            Self::NoneNear => "no emulated instruction near the entry",
            Self::Exit => "it returns there",
            Self::BlockKnown => "emulated, and the block is known there already",
            Self::BlockKnownInside => "emulated, in what it calls, and the block is known there",
            Self::LeadsOn => "emulated, and calls go on there that give no block at once",
            Self::BeforeArgumentsGo => {
                "emulated, and the arguments are known there for the last time"
            }
            Self::Fails => "calls go on there that fail",
        }
    }
}

/// Chooses the site in a function's machine code (x86-64).
///
/// Walks from the entry over instructions that do not change memory, up to the first emulated one at which all that is needed can
/// still be found; the return address too, on top of the stack, unless only a block is to be known. In that case it walks on:
/// past a test whether there is a block, on the way on which there is one, and to an instruction that costs less than a push. Gives
/// the entry itself if there is no such instruction, or if something else leads into the way to it: it would be reached
/// more often than the function is called.
#[must_use]
pub fn choose_site(code: &[u8], need: ProbeNeed, forms: EmulatedForms) -> ProbeSite {
    let mut path = Path::new(code);
    let mut known = Known::at_entry();
    let mut chosen: Option<(Worth, ProbeSite)> = None;
    let mut behind_test = false;
    let obstacle = loop {
        let Some(instruction) = path.advance() else { break SiteReason::NoneNear };
        let worth = Worth { behind_test, leaves_stack: !emulated::writes_stack(path.bytes()) };
        let is_better = chosen.is_none_or(|(before, _)| before < worth);
        if forms.emulate(path.bytes()) && is_better {
            match site_at(&path, &instruction, &known, need, behind_test) {
                Ok(site) if worth == Worth::BEST || need.block.is_none() => return site,
                Ok(site) => chosen = Some((worth, site)),
                Err(obstacle) => break obstacle,
            }
        }
        let effects = Effects::of(&instruction);
        match known.zero_test(&instruction) {
            Some((tested, if_zero)) if need.block == Some(tested) => {
                behind_test = true;
                if !if_zero && !path.turn_to(instruction.near_branch_target()) {
                    break SiteReason::PathEnds;
                }
            }
            _ => {
                if let Some(obstacle) = obstacle(&instruction, &effects, need) {
                    break obstacle;
                }
            }
        }
        match known.after(path.length(), &instruction, &effects) {
            Some(after) => known = after,
            None => break SiteReason::StackPointerMoves,
        }
    };
    chosen.map_or(ProbeSite::at_entry(obstacle), |(_, site)| site)
}

/// What is good about a site, the more important first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    /// Calls without a block do not reach it.
    behind_test: bool,
    /// Nothing is written to the stack when it is emulated.
    leaves_stack: bool,
}

impl Worth {
    const BEST: Self = Self { behind_test: true, leaves_stack: true };
}

/// A probe on the emulated instruction that a path has come to; or why there can be none.
fn site_at(
    path: &Path<'_>,
    instruction: &Instruction,
    known: &Known,
    need: ProbeNeed,
    behind_test: bool,
) -> Result<ProbeSite, SiteReason> {
    let places = known.places(need.arguments).ok_or(SiteReason::ArgumentOverwritten)?;
    let offset = instruction.ip();
    if offset > 0 && path.is_entered_otherwise() {
        return Err(SiteReason::EnteredOtherwise);
    }
    let frame = match need.block {
        Some(_) => midst::frame_at(known).ok_or(SiteReason::StackPointerMoves)?,
        None => FrameAt::ENTRY,
    };
    let reason = match offset {
        0 => SiteReason::EmulatedEntry,
        _ if behind_test => SiteReason::BehindNullTest,
        _ => SiteReason::NothingBefore,
    };
    Ok(ProbeSite { offset, emulated: true, places, frame, ..ProbeSite::at_entry(reason) })
}

/// Chooses the sites of a function that gives a block in `rax` and needs no other one: several, if
/// what some calls give is known before they return, which spares these their return probe. Each call is told by one.
///
/// `calls`: what is known of the functions that it calls. None if these may give or end blocks: then it has to be known that a
/// call is under way.
#[must_use]
pub fn choose_sites(
    code: &[u8],
    need: ProbeNeed,
    forms: EmulatedForms,
    calls: Option<Calls<'_>>,
) -> Vec<ProbeSite> {
    if let Some(places) = ways::choose_places(code, need, forms) {
        return places.into_iter().map(ProbeSite::from).collect();
    }
    let places = calls.and_then(|calls| midst::choose_places(code, need, forms, calls));
    places.map_or_else(
        || vec![choose_site(code, need, forms)],
        |places| places.into_iter().map(ProbeSite::from).collect(),
    )
}

impl From<ways::Place> for ProbeSite {
    fn from(place: ways::Place) -> Self {
        let midst = place.given.map(|given| Midst::Gives {
            register: Some(given.register),
            condition: given.condition,
            was_noted: false,
        });
        Self {
            offset: place.offset,
            emulated: true,
            reason: if midst.is_some() { SiteReason::BlockKnown } else { SiteReason::LeadsOn },
            places: place.places,
            midst,
            frame: FrameAt::ENTRY,
            inner: None,
        }
    }
}

impl From<midst::MidstPlace> for ProbeSite {
    fn from(place: midst::MidstPlace) -> Self {
        let reason = match place.midst {
            None => SiteReason::LeadsOn,
            Some(Midst::Notes) => SiteReason::BeforeArgumentsGo,
            Some(Midst::Gives { register: None, .. }) => SiteReason::Fails,
            Some(Midst::Gives { .. }) if place.inner.is_some() => SiteReason::BlockKnownInside,
            Some(Midst::Gives { .. }) => SiteReason::BlockKnown,
        };
        Self {
            offset: place.offset,
            emulated: place.emulated,
            reason,
            places: place.places,
            midst: place.midst,
            frame: place.frame,
            inner: place.inner,
        }
    }
}

/// What keeps a probe from sitting behind an instruction.
fn obstacle(instruction: &Instruction, effects: &Effects, need: ProbeNeed) -> Option<SiteReason> {
    let returns_matter = need.block.is_none();
    let is_push = instruction.mnemonic() == Mnemonic::Push;
    if instruction.is_invalid()
        || instruction.is_privileged()
        || instruction.flow_control() != FlowControl::Next
    {
        Some(SiteReason::PathEnds)
    } else if effects.moves_stack_pointer() && returns_matter {
        Some(SiteReason::StackPointerMoves)
    } else if effects.writes_memory && !is_push {
        Some(SiteReason::MemoryWritten)
    } else {
        None
    }
}

/// Where a function goes on every call, before anything else: the target of its first call or
/// jump, if nothing is decided before. Positions are distances from its first instruction.
pub(super) fn first_transfer(code: &[u8]) -> Option<i64> {
    let transfer = Decoder::new(64, code, DecoderOptions::NONE)
        .into_iter()
        .find(|instruction| instruction.flow_control() != FlowControl::Next)?;
    matches!(transfer.flow_control(), FlowControl::Call | FlowControl::UnconditionalBranch)
        .then(|| transfer.near_branch_target().cast_signed())
}

/// An instruction of a function as text; `start` is the address of the function's first,
/// in whatever numbering the addresses in the text are to be. None if there is none.
#[must_use]
pub fn instruction_text(code: &[u8], offset: u64, start: u64) -> Option<String> {
    let bytes = code.get(usize::try_from(offset).ok()?..)?;
    let address = start.wrapping_add(offset);
    let instruction =
        Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter().next()?;
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.options_mut().set_rip_relative_addresses(true);
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    (!instruction.is_invalid()).then_some(text)
}
