//! Where functions return that cannot have a return probe.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

/// Most instructions followed from the entry of one function.
const MAX_INSTRUCTIONS: usize = 1 << 14;
/// The longest instruction.
const MAX_INSTRUCTION_BYTES: u64 = 15;

/// Functions that never return to what calls them; what lies behind the call is another function.
const NEVER_RETURN: [&str; 13] = [
    "__cxa_throw",
    "__cxa_rethrow",
    "_Unwind_Resume",
    "_ZSt9terminatev",
    "__stack_chk_fail",
    "__assert_fail",
    "__libc_fatal",
    "__fortify_fail",
    "__chk_fail",
    "abort",
    "exit",
    "_exit",
    "_Exit",
];

/// Why it cannot be said where a function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitObstacle {
    /// It goes on where a register or memory says, at this position of the file's own numbering.
    JumpsAnywhere(u64),
    /// It goes on in another module.
    LeavesModule(u64),
    /// It is larger than the limit.
    TooLong,
    /// It is of a Go program, which moves its stacks: it would return to where one was.
    StackMoves,
}

impl fmt::Display for ExitObstacle {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JumpsAnywhere(svma) => {
                write!(to, "the jump at {svma:#x} goes where only the process knows")
            }
            Self::LeavesModule(svma) => write!(to, "the jump at {svma:#x} leaves the file"),
            Self::TooLong => {
                write!(to, "more than {MAX_INSTRUCTIONS} instructions can be reached from it")
            }
            Self::StackMoves => write!(
                to,
                "it is of a Go program, which moves its stacks, and a probe of its return would break it"
            ),
        }
    }
}

/// What a file's code is, as far as exits depend on it. All positions are in the file's own
/// numbering.
pub(super) struct CodeView<'a> {
    /// Up to so many bytes of code at a position.
    pub(super) read: &'a dyn Fn(u64, u64) -> Option<&'a [u8]>,
    /// The symbol whose address the dynamic loader puts at a position, and where the file has it.
    pub(super) linked: &'a BTreeMap<u64, Linked>,
    /// Where functions begin.
    pub(super) starts: &'a BTreeSet<u64>,
    /// Where functions begin whose names say that they never return.
    pub(super) never_return_at: &'a BTreeSet<u64>,
    /// Functions whose returns are seen otherwise.
    pub(super) returns_seen: &'a dyn Fn(&str) -> bool,
    /// Where these are.
    pub(super) returns_seen_at: &'a BTreeSet<u64>,
}

/// A symbol that the dynamic loader looks up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) name: String,
    /// None if another module has it.
    pub(super) svma: Option<u64>,
}

/// The `ret` instructions by which calls of a function end: its own, and those of functions
/// that it jumps to in place of a call.
///
/// What cannot be reached may be among them, where a function that never returns is called and
/// is not known as such. That does no harm: a call ends only by an instruction that finds the
/// call's return address on top of the stack.
pub(super) fn exits_of(start_svma: u64, code: &CodeView<'_>) -> Result<Vec<u64>, ExitObstacle> {
    let mut exits = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut open = vec![Step { svma: start_svma, is_behind_call: false }];
    while let Some(step) = open.pop() {
        if step.is_behind_call && code.starts.contains(&step.svma) || !known.insert(step.svma) {
            continue;
        }
        if known.len() > MAX_INSTRUCTIONS {
            return Err(ExitObstacle::TooLong);
        }
        let Some(instruction) = code.decode(step.svma) else { continue };
        let next = |is_behind_call| Step { svma: instruction.next_ip(), is_behind_call };
        match instruction.flow_control() {
            FlowControl::Return => {
                exits.insert(step.svma);
            }
            FlowControl::Exception | FlowControl::Interrupt => {}
            FlowControl::Call | FlowControl::IndirectCall => {
                if !code.never_returns(&instruction) {
                    open.push(next(true));
                }
            }
            FlowControl::ConditionalBranch => {
                open.extend(code.jump(instruction.near_branch_target(), step.svma)?);
                open.push(next(false));
            }
            FlowControl::UnconditionalBranch => {
                open.extend(code.jump(instruction.near_branch_target(), step.svma)?);
            }
            FlowControl::IndirectBranch => {
                let linked = code.linked_by(&instruction);
                let linked = linked.ok_or(ExitObstacle::JumpsAnywhere(step.svma))?;
                open.extend(code.go_to(linked, step.svma)?);
            }
            FlowControl::Next | FlowControl::XbeginXabortXend => {
                let is_padding = instruction.mnemonic() == iced_x86::Mnemonic::Nop;
                open.push(next(step.is_behind_call && is_padding));
            }
        }
    }
    Ok(exits.into_iter().collect())
}

/// An instruction to be looked at.
struct Step {
    svma: u64,
    /// Whether nothing but padding lies between it and a call.
    is_behind_call: bool,
}

impl CodeView<'_> {
    pub(super) fn decode(&self, svma: u64) -> Option<Instruction> {
        let bytes = (self.read)(svma, MAX_INSTRUCTION_BYTES)?;
        let instruction =
            Decoder::with_ip(64, bytes, svma, DecoderOptions::NONE).into_iter().next()?;
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// Where a jump goes on that its function takes.
    fn jump(&self, target: u64, from: u64) -> Result<Option<Step>, ExitObstacle> {
        if self.returns_seen_at.contains(&target) {
            return Ok(None);
        }
        match self.linked_at(target) {
            Some(linked) => self.go_to(linked, from),
            None => Ok(Some(Step { svma: target, is_behind_call: false })),
        }
    }

    fn go_to(&self, linked: &Linked, from: u64) -> Result<Option<Step>, ExitObstacle> {
        if (self.returns_seen)(&linked.name) || never_returns(&linked.name) {
            return Ok(None);
        }
        let svma = linked.svma.ok_or(ExitObstacle::LeavesModule(from))?;
        Ok(Some(Step { svma, is_behind_call: false }))
    }

    /// Whether a call is one of a function whose name says that it never returns.
    pub(super) fn never_returns(&self, call: &Instruction) -> bool {
        let linked = match call.flow_control() {
            FlowControl::Call if self.never_return_at.contains(&call.near_branch_target()) => {
                return true;
            }
            FlowControl::Call => self.linked_at(call.near_branch_target()),
            _ => self.linked_by(call),
        };
        linked.is_some_and(|linked| never_returns(&linked.name))
    }

    /// The symbol that a stub of the procedure linkage table leads to.
    fn linked_at(&self, svma: u64) -> Option<&Linked> {
        let mut jump = self.decode(svma)?;
        if jump.mnemonic() == iced_x86::Mnemonic::Endbr64 {
            jump = self.decode(jump.next_ip())?;
        }
        (jump.flow_control() == FlowControl::IndirectBranch).then(|| self.linked_by(&jump))?
    }

    /// The symbol whose address a jump or call takes from memory.
    fn linked_by(&self, transfer: &Instruction) -> Option<&Linked> {
        let is_fixed =
            transfer.op0_kind() == OpKind::Memory && transfer.memory_base() == Register::RIP;
        self.linked.get(&is_fixed.then(|| transfer.memory_displacement64())?)
    }
}

/// Whether a function's name says that it never returns; libstdc++'s `std::__throw_bad_alloc` and its like are spelled with a length.
pub(super) fn never_returns(name: &str) -> bool {
    let of_std = name.strip_prefix("_ZSt").unwrap_or_default();
    NEVER_RETURN.contains(&name)
        || of_std.trim_start_matches(|digit: char| digit.is_ascii_digit()).starts_with("__throw_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;

    fn exits(code: &[u8], linked: &[(u64, &str, Option<u64>)]) -> Result<Vec<u64>, ExitObstacle> {
        let linked = linked
            .iter()
            .map(|(slot, name, svma)| (*slot, Linked { name: (*name).to_owned(), svma: *svma }))
            .collect();
        let read = |svma: u64, length: u64| {
            let from = usize::try_from(svma.checked_sub(BASE)?).ok()?;
            code.get(from..code.len().min(from + length as usize)).filter(|code| !code.is_empty())
        };
        exits_of(
            BASE,
            &CodeView {
                read: &read,
                linked: &linked,
                starts: &BTreeSet::from([BASE, BASE + 0x10]),
                never_return_at: &BTreeSet::new(),
                returns_seen: &|name| name == "malloc",
                returns_seen_at: &BTreeSet::from([BASE + 0x80]),
            },
        )
    }

    #[test]
    fn all_ways_to_a_return_are_followed() {
        // test %rdi,%rdi; je +1; ret; jmp +1; ret (not reached); push %rbx; pop %rbx; ret
        let code = [0x48, 0x85, 0xff, 0x74, 1, 0xc3, 0xeb, 1, 0xc3, 0x53, 0x5b, 0xc3];
        assert_eq!(exits(&code, &[]), Ok(vec![BASE + 5, BASE + 11]));
    }

    #[test]
    fn what_lies_behind_a_call_that_never_returns_is_another_function() {
        // call *0x100(%rip); nop to 0x10; ret
        let mut code = vec![0xff, 0x15, 0, 1, 0, 0];
        code.resize(0x10, 0x90);
        code.push(0xc3);
        let slot = BASE + 6 + 0x100;
        assert_eq!(exits(&code, &[(slot, "__cxa_throw", None)]), Ok(vec![]));
        assert_eq!(exits(&code, &[(slot, "sbrk", None)]), Ok(vec![]), "a function begins there");
        code[0xf] = 0x53;
        assert_eq!(exits(&code, &[(slot, "sbrk", None)]), Ok(vec![BASE + 0x10]));
        let throws = "_ZSt17__throw_bad_allocv";
        assert_eq!(exits(&code, &[(slot, throws, None)]), Ok(vec![]));
    }

    #[test]
    fn jumps_in_place_of_calls_are_followed_or_refused() {
        // jmp *0x100(%rip)
        let code = [0xff, 0x25, 0, 1, 0, 0, 0x5b, 0xc3];
        let slot = BASE + 6 + 0x100;
        assert_eq!(exits(&code, &[]), Err(ExitObstacle::JumpsAnywhere(BASE)));
        assert_eq!(exits(&code, &[(slot, "oom", None)]), Err(ExitObstacle::LeavesModule(BASE)));
        assert_eq!(exits(&code, &[(slot, "oom", Some(BASE + 6))]), Ok(vec![BASE + 7]));
        assert_eq!(exits(&code, &[(slot, "malloc", None)]), Ok(vec![]), "it has a return probe");
        // jmp to the stub; the stub: endbr64; jmp *0x100(%rip)
        let stub = [0xeb, 0, 0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 1, 0, 0, 0xc3];
        let slot = BASE + 12 + 0x100;
        assert_eq!(exits(&stub, &[(slot, "oom", Some(BASE + 12))]), Ok(vec![BASE + 12]));
        // jmp *%rcx
        assert_eq!(exits(&[0xff, 0xe1], &[]), Err(ExitObstacle::JumpsAnywhere(BASE)));
        // jmp +0x7b: to what has a return probe
        assert_eq!(exits(&[0xe9, 0x7b, 0, 0, 0], &[]), Ok(vec![]));
    }

    #[test]
    fn the_limit_is_an_error() {
        let mut code = vec![0x90; MAX_INSTRUCTIONS];
        code.push(0xc3);
        assert_eq!(exits(&code, &[]), Err(ExitObstacle::TooLong));
        assert_eq!(exits(&code[2..], &[]), Ok(vec![BASE + MAX_INSTRUCTIONS as u64 - 2]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer(code: Vec<u8>) {
            for exit in exits(&code, &[]).unwrap_or_default() {
                proptest::prop_assert!(exit - BASE < code.len() as u64);
            }
        }
    }
}
