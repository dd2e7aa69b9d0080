//! The way from a function's entry to a site, and whether others lead into it.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

/// Most instructions walked over for a site.
const MAX_STEPS: usize = 32;

/// The instructions that are executed from the entry on, one after the other.
pub(super) struct Path<'a> {
    code: &'a [u8],
    decoder: Decoder<'a>,
    /// Start and end of each.
    steps: Vec<(u64, u64)>,
}

impl<'a> Path<'a> {
    pub(super) fn new(code: &'a [u8]) -> Self {
        Self { code, decoder: decoder(code), steps: Vec::new() }
    }

    /// The next instruction; none at the end of the code, after enough of them, and where
    /// it has been before.
    pub(super) fn advance(&mut self) -> Option<Instruction> {
        let next = self.decoder.ip();
        let is_loop = self.steps.iter().any(|step| (step.0..step.1).contains(&next));
        if is_loop || self.steps.len() == MAX_STEPS || !self.decoder.can_decode() {
            return None;
        }
        let instruction = self.decoder.decode();
        self.steps.push((instruction.ip(), instruction.next_ip()));
        Some(instruction)
    }

    /// How many instructions there are, with the one it has come to.
    pub(super) fn length(&self) -> usize {
        self.steps.len()
    }

    /// The bytes of the instruction it has come to.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.steps
            .last()
            .and_then(|&(start, end)| self.code.get(start as usize..end as usize))
            .unwrap_or_default()
    }

    /// Goes on elsewhere in the code; false if that is outside.
    pub(super) fn turn_to(&mut self, offset: u64) -> bool {
        turn(&mut self.decoder, self.code, offset)
    }

    /// Whether something else leads to an instruction behind the entry, or into the middle of
    /// one: then the last one is reached more often than the function is called, or
    /// without what is before it.
    pub(super) fn is_entered_otherwise(&self) -> bool {
        let mut is_crossed = false;
        let mut look_at = |edge: Edge| {
            let entered = self.steps.iter().skip(1).zip(&self.steps).any(|(step, before)| {
                (step.0..step.1).contains(&edge.to) && (edge.from, edge.to) != (before.0, step.0)
            });
            let entry_end = self.steps.first().map_or(0, |entry| entry.1);
            is_crossed |= entered || (1..entry_end).contains(&edge.to);
        };
        follow_all(self.code, &mut look_at);
        sweep(self.code, &mut look_at);
        is_crossed
    }
}

/// From the start of an instruction to what can be executed next.
#[derive(Clone, Copy)]
struct Edge {
    from: u64,
    to: u64,
}

fn decoder(code: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
}

fn turn(decoder: &mut Decoder<'_>, code: &[u8], offset: u64) -> bool {
    let position = usize::try_from(offset).unwrap_or(usize::MAX);
    let is_inside = position < code.len() && decoder.set_position(position).is_ok();
    if is_inside {
        decoder.set_ip(offset);
    }
    is_inside
}

/// All edges between what can be reached from the entry.
fn follow_all(code: &[u8], look_at: &mut impl FnMut(Edge)) {
    let mut decoder = decoder(code);
    let mut is_known = vec![false; code.len()];
    let mut open = vec![0];
    while let Some(offset) = open.pop() {
        let Some(known) = is_known.get_mut(offset as usize) else { continue };
        if std::mem::replace(known, true) || !turn(&mut decoder, code, offset) {
            continue;
        }
        let instruction = decoder.decode();
        let goes_on = !instruction.is_invalid()
            && !matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Exception
            );
        let next = goes_on.then(|| instruction.next_ip());
        for to in next.into_iter().chain(target_of(&instruction)) {
            look_at(Edge { from: offset, to });
            open.push(to);
        }
    }
}

/// The branches of all code from its start to its end, in case some is reached only by
/// indirect jumps.
fn sweep(code: &[u8], look_at: &mut impl FnMut(Edge)) {
    for instruction in decoder(code) {
        if let Some(to) = target_of(&instruction) {
            look_at(Edge { from: instruction.ip(), to });
        }
    }
}

fn target_of(instruction: &Instruction) -> Option<u64> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch_target())
}
