//! What is known at each instruction of a function: on all ways that lead there, of the registers, the stack and what the
//! caller had in them; and on all ways that go on from there, where the result is already.
//!
//! Two data-flow analyses (Kildall 1973): values go forward, and where ways meet that bring different ones, that is a new value; the
//! result goes backward, from the register in which it is returned.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, Mnemonic, Register};

use super::{
    arguments::{Effects, OF_CALLER, moved_register},
    known::{Known, is_move},
    ways::{condition_of, instruction_at},
};

/// Most instructions of a function.
const MAX_NODES: usize = 1 << 10;
/// Where the result can be before it is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// The result is 0.
    Zero,
    /// In the register of this number.
    Register(u8),
    /// In the stack, so far below the return address.
    Slot(i64),
}

/// All that hold the result; none where nothing returns.
pub(super) type Holders = Option<BTreeSet<Holder>>;

/// One instruction.
pub(super) struct Node<'a> {
    pub(super) instruction: Instruction,
    pub(super) bytes: &'a [u8],
    pub(super) edges: Vec<Edge>,
    /// Whether it is a jump in place of a call: another function goes on there, and returns.
    pub(super) leads_on: bool,
    effects: Effects,
    /// What is known before it.
    pub(super) known: Known,
    /// What holds the result before it.
    pub(super) result: Holders,
}

impl Node<'_> {
    /// Whether it makes an address of a part of the stack, but for a frame pointer.
    fn lends_stack(&self) -> bool {
        let Self { instruction, known, .. } = self;
        let made = match instruction.mnemonic() {
            Mnemonic::Lea => known.is_of_stack(instruction.memory_base()),
            _ => moved_register(instruction).is_some_and(|from| known.is_of_stack(from)),
        };
        made && ![Register::RSP, Register::RBP].contains(&instruction.op0_register())
    }
}

/// What can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// Position among the nodes; none where it goes on without ever returning.
    pub(super) to: Option<usize>,
    /// The condition of a conditional jump that holds then.
    pub(super) condition: Option<u8>,
}

/// A function whose instructions are all known that its calls can execute.
pub(super) struct Flow<'a> {
    /// The first one is its entry.
    pub(super) nodes: Vec<Node<'a>>,
    /// For each, those from which it goes on there.
    before: Vec<Vec<usize>>,
    /// Whether the address of a part of the stack is in use: then others can write there.
    lends_stack: bool,
}

impl<'a> Flow<'a> {
    /// Of a function's machine code; none if it cannot be said where it goes on somewhere, what it calls, or what happens to the
    /// stack pointer.
    /// `never_return`: calls and jumps, by their distances from the entry, by which it never goes on.
    pub(super) fn of(code: &'a [u8], never_return: &BTreeSet<u64>) -> Option<Self> {
        let nodes = nodes_of(code, never_return)?;
        let mut before = vec![Vec::new(); nodes.len()];
        for (at, node) in nodes.iter().enumerate() {
            for to in node.edges.iter().filter_map(|edge| edge.to) {
                before.get_mut(to)?.push(at);
            }
        }
        let mut flow = Self { nodes, before, lends_stack: false };
        flow.go_forward()?;
        flow.lends_stack = flow.nodes.iter().any(Node::lends_stack);
        if flow.lends_stack {
            flow.go_forward()?;
        }
        flow.go_backward();
        Some(flow)
    }

    /// Those from which it goes on at a node.
    pub(super) fn before(&self, at: usize) -> impl Iterator<Item = (usize, &Node<'a>)> {
        let before = self.before.get(at).map_or(&[][..], Vec::as_slice).iter();
        before.filter_map(|before| Some((*before, self.nodes.get(*before)?)))
    }

    fn go_forward(&mut self) -> Option<()> {
        let mut seen = vec![false; self.nodes.len()];
        // In the order in which they were found, so that few are looked at again and again.
        let mut open = BTreeSet::from([0]);
        *seen.first_mut()? = true;
        while let Some(at) = open.pop_first() {
            let node = self.nodes.get(at)?;
            let after = self.after(at, node)?;
            let next: Vec<usize> = node.edges.iter().filter_map(|edge| edge.to).collect();
            for to in next {
                let node = self.nodes.get_mut(to)?;
                let seen = seen.get_mut(to)?;
                let changes = if *seen {
                    node.known.join(&after, to)?
                } else {
                    node.known = after.clone();
                    true
                };
                *seen = true;
                if changes {
                    open.insert(to);
                }
            }
        }
        Some(())
    }

    /// What is known after an instruction.
    fn after(&self, at: usize, node: &Node<'_>) -> Option<Known> {
        let Node { instruction, effects, known, .. } = node;
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => {
                return known.after_call(at, self.lends_stack);
            }
            FlowControl::Return => return (known.depth == 0).then(|| known.clone()),
            _ => {}
        }
        let mut after = known.after(at, instruction, effects)?;
        if effects.writes_memory && !effects.moves_stack_pointer() {
            known.follow_write(instruction, self.lends_stack, &mut after)?;
        }
        Some(after)
    }

    fn go_backward(&mut self) {
        let mut open: BTreeSet<usize> = (0..self.nodes.len()).collect();
        while let Some(at) = open.pop_last() {
            let result = self.result_before(at);
            if let Some(node) = self.nodes.get_mut(at)
                && node.result != result
            {
                node.result = result;
                open.extend(self.before.get(at).into_iter().flatten());
            }
        }
    }

    /// What holds the result where a way goes on from an instruction by an edge.
    pub(super) fn result_by(&self, node: &Node<'_>, edge: Edge) -> Holders {
        let mut held = self.nodes.get(edge.to?)?.result.clone()?;
        // If the flags say that a register is 0, then what is 0 is in it, and what is in it is 0.
        if let (Some(4), Some(register)) = (edge.condition, node.known.zero_flag_of) {
            let both = [Holder::Zero, Holder::Register(register)];
            if both.iter().any(|holder| held.contains(holder)) {
                held.extend(both);
            }
        }
        Some(held)
    }

    fn result_before(&self, at: usize) -> Holders {
        let node = self.nodes.get(at)?;
        if node.instruction.flow_control() == FlowControl::Return {
            return Some(BTreeSet::from([Holder::Register(0)]));
        }
        if node.leads_on {
            return Some(BTreeSet::new());
        }
        let mut after: Holders = None;
        for held in node.edges.iter().filter_map(|edge| self.result_by(node, *edge)) {
            after = Some(match after {
                Some(others) => others.intersection(&held).copied().collect(),
                None => held,
            });
        }
        let is_call = matches!(
            node.instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        );
        let before = |holder: Holder| match holder {
            Holder::Zero => Some(Holder::Zero),
            Holder::Register(_) | Holder::Slot(_) if is_call => {
                Some(holder).filter(|holder| match holder {
                    Holder::Register(number) => {
                        OF_CALLER.iter().any(|kept| kept.number() == usize::from(*number))
                    }
                    _ => !self.lends_stack,
                })
            }
            _ => holder_before(node, holder, self.lends_stack),
        };
        Some(after?.into_iter().filter_map(before).collect())
    }
}

/// What an instruction that is no call makes of what holds the result after it: what holds it before, if anything does.
fn holder_before(node: &Node<'_>, holder: Holder, lends_stack: bool) -> Option<Holder> {
    let Node { instruction, effects, known, .. } = node;
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let number = |register: Register| Holder::Register(register.number() as u8);
    match holder {
        Holder::Zero => Some(Holder::Zero),
        Holder::Register(held) => {
            let writes = |register: &Register| register.number() == usize::from(held);
            if !effects.written_registers().any(|register| writes(&register)) {
                return Some(holder);
            }
            if let Some(from) = moved_register(instruction) {
                return Some(number(from)).filter(|_| from != Register::RSP);
            }
            let clears = instruction.mnemonic() == Mnemonic::Xor && first == second;
            let is_zero = instruction.mnemonic() == Mnemonic::Mov
                && instruction.try_immediate(1).is_ok_and(|value| value == 0);
            if (clears || is_zero) && (first.is_gpr64() || first.is_gpr32()) {
                return Some(Holder::Zero);
            }
            let from_stack = match instruction.mnemonic() {
                Mnemonic::Pop => Some(known.depth),
                Mnemonic::Mov if is_move(instruction) => known.slot(instruction),
                _ => None,
            };
            from_stack.filter(|slot| *slot > 0).map(Holder::Slot)
        }
        Holder::Slot(slot) => {
            if instruction.mnemonic() == Mnemonic::Push {
                let is_it = slot == known.depth + 8;
                return if is_it { first.is_gpr64().then(|| number(first)) } else { Some(holder) };
            }
            if !effects.writes_memory {
                return Some(holder);
            }
            let Some(written) = known.slot(instruction) else {
                return Some(holder).filter(|_| !lends_stack);
            };
            if written == slot {
                return Some(number(second)).filter(|_| is_move(instruction) && second.is_gpr64());
            }
            let bytes = instruction.memory_size().size() as i64;
            let is_touched = slot > written - bytes && slot < written + 8;
            Some(holder).filter(|_| !is_touched)
        }
    }
}

/// All instructions that calls can execute, each with what can follow.
fn nodes_of<'a>(code: &'a [u8], never_return: &BTreeSet<u64>) -> Option<Vec<Node<'a>>> {
    let mut positions = BTreeMap::new();
    let mut nodes: Vec<Node<'a>> = Vec::new();
    let mut targets: Vec<Vec<(Option<u64>, Option<u8>)>> = Vec::new();
    let mut open = vec![0_u64];
    while let Some(offset) = open.pop() {
        if positions.contains_key(&offset) {
            continue;
        }
        let (instruction, bytes) = instruction_at(code, offset)?;
        let leads_on = instruction.flow_control() == FlowControl::UnconditionalBranch
            && instruction.near_branch_target() >= code.len() as u64
            && !never_return.contains(&offset);
        let next = if leads_on {
            Vec::new()
        } else {
            targets_of(&instruction, code.len() as u64, never_return)?
        };
        open.extend(next.iter().rev().filter_map(|(to, _)| *to));
        positions.insert(offset, nodes.len());
        targets.push(next);
        nodes.push(Node {
            instruction,
            bytes,
            edges: Vec::new(),
            leads_on,
            effects: Effects::of(&instruction),
            known: Known::at_entry(),
            result: None,
        });
        if nodes.len() > MAX_NODES {
            return None;
        }
    }
    for (node, targets) in nodes.iter_mut().zip(targets) {
        for (to, condition) in targets {
            let to = match to {
                Some(offset) => Some(*positions.get(&offset)?),
                None => None,
            };
            node.edges.push(Edge { to, condition });
        }
    }
    Some(nodes)
}

/// Where it goes on after an instruction, and the condition of it; none if that cannot be said.
fn targets_of(
    instruction: &Instruction,
    code_bytes: u64,
    never_return: &BTreeSet<u64>,
) -> Option<Vec<(Option<u64>, Option<u8>)>> {
    let next = instruction.next_ip();
    let ends = never_return.contains(&instruction.ip());
    let to = |target: u64| {
        let is_inside = target < code_bytes;
        (is_inside || ends).then_some(Some(target).filter(|_| is_inside))
    };
    Some(match instruction.flow_control() {
        FlowControl::Next => vec![(Some(next), None)],
        FlowControl::Call | FlowControl::IndirectCall if ends => vec![(None, None)],
        FlowControl::Call => vec![(Some(next), None)],
        FlowControl::Return => Vec::new(),
        FlowControl::UnconditionalBranch => vec![(to(instruction.near_branch_target())?, None)],
        FlowControl::ConditionalBranch => {
            let condition = condition_of(instruction)?;
            let target = to(instruction.near_branch_target())?;
            vec![(Some(next), Some(condition ^ 1)), (target, Some(condition))]
        }
        FlowControl::Exception => vec![(None, None)],
        _ => return None,
    })
}
