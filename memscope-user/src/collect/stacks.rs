//! Stacks by what the kernel side calls them, each once.

use hashbrown::hash_map::Entry;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::model::{FrameId, ProcessId, Stack, StackId, StackOutcome};

/// Most different stacks that are kept apart, in all processes.
pub(super) const MAX_STACKS: usize = 4_000_000;
/// Most numbers that are remembered: the kernel side gives the same stack another one after
/// code was unmapped, or when it has forgotten it.
const MAX_NUMBERS: usize = 2 * MAX_STACKS;

/// A stack as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FoundStack {
    pub(super) outcome: StackOutcome,
    /// Innermost first.
    pub(super) frames: Vec<FrameId>,
}

/// Which stack a number stands for.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: StackId,
    process: ProcessId,
    is_defined: bool,
    /// The first event that refers to it is the last.
    once: bool,
}

#[derive(Debug, Default)]
struct OfProcess {
    stacks: hashbrown::HashMap<FoundStack, StackId, FxBuildHasher>,
    /// What events have whose numbers are too many.
    nameless: Option<StackId>,
    /// What events have whose stack got no number. Never defined.
    lost: Option<StackId>,
}

/// All stacks met so far of the processes that still run. Its memory is bounded by
/// [`MAX_STACKS`] and [`MAX_NUMBERS`].
#[derive(Debug)]
pub(super) struct StackTable {
    processes: FxHashMap<ProcessId, OfProcess>,
    numbers: FxHashMap<u32, Known>,
    id_count: u32,
    max_stacks: usize,
    max_numbers: usize,
    over_limit: u64,
}

impl Default for StackTable {
    fn default() -> Self {
        Self::with_limits(MAX_STACKS, MAX_NUMBERS)
    }
}

impl StackTable {
    fn with_limits(max_stacks: usize, max_numbers: usize) -> Self {
        Self {
            processes: FxHashMap::default(),
            numbers: FxHashMap::default(),
            id_count: 0,
            max_stacks,
            max_numbers,
            over_limit: 0,
        }
    }

    /// How many stacks were cut down to their caller, or to nothing, for want of room.
    pub(super) fn over_limit(&self) -> u64 {
        self.over_limit
    }

    fn known(&self, process: ProcessId, number: u32) -> Option<Known> {
        self.numbers.get(&number).copied().filter(|known| known.process == process)
    }

    /// Whether the frames of a number need not be looked at.
    pub(super) fn is_defined(&self, process: ProcessId, number: u32) -> bool {
        self.known(process, number).is_some_and(|known| known.is_defined)
    }

    /// The stack that an event refers to; what it is may come later, or be lost.
    #[inline]
    pub(super) fn of_event(
        &mut self,
        process: ProcessId,
        number: u32,
        give: impl FnMut(Stack),
    ) -> StackId {
        if let Some(known) = self.known(process, number) {
            if known.once {
                self.numbers.remove(&number);
            }
            return known.id;
        }
        self.of_unknown(process, number, give)
    }

    fn of_unknown(
        &mut self,
        process: ProcessId,
        number: u32,
        mut give: impl FnMut(Stack),
    ) -> StackId {
        let of_process = self.processes.entry(process).or_default();
        if number == 0 {
            return *of_process.lost.get_or_insert_with(|| next_id(&mut self.id_count));
        }
        if self.numbers.len() >= self.max_numbers {
            self.over_limit += 1;
            return *of_process.nameless.get_or_insert_with(|| {
                let id = next_id(&mut self.id_count);
                let outcome = StackOutcome::StackTableFull;
                give(Stack { id, process, outcome, frames: Vec::new() });
                id
            });
        }
        let id = next_id(&mut self.id_count);
        self.numbers.insert(number, Known { id, process, is_defined: false, once: false });
        id
    }

    /// A number stands for this stack, for all events or for the next one only. It is
    /// given out unless a stack that is equal was before.
    pub(super) fn define(
        &mut self,
        process: ProcessId,
        number: u32,
        once: bool,
        mut found: FoundStack,
        mut give: impl FnMut(Stack),
    ) {
        // Events may have spoken of it before its frames came through.
        let waiting = self.known(process, number);
        if waiting.is_some_and(|known| known.is_defined && !known.once) {
            return;
        }
        // Of a number that is used again, what it stood for was lost.
        let waiting = waiting.filter(|known| !known.once);
        if waiting.is_none() && self.numbers.len() >= self.max_numbers {
            return;
        }
        let is_full = self.id_count as usize >= self.max_stacks;
        let of_process = self.processes.entry(process).or_default();
        if is_full && !of_process.stacks.contains_key(&found) {
            self.over_limit += 1;
            found.frames.truncate(1);
            found.outcome = StackOutcome::StackTableFull;
        }
        let mut define = |found: FoundStack, id| {
            let FoundStack { outcome, frames } = found;
            give(Stack { id, process, outcome, frames });
        };
        let id = match (of_process.stacks.entry(found), waiting) {
            (Entry::Occupied(same), None) => *same.get(),
            (Entry::Occupied(same), Some(known)) => {
                define(same.key().clone(), known.id);
                known.id
            }
            (Entry::Vacant(place), waiting) => {
                let id = waiting.map_or_else(|| next_id(&mut self.id_count), |known| known.id);
                define(place.key().clone(), id);
                *place.insert(id)
            }
        };
        self.numbers.insert(number, Known { id, process, is_defined: true, once });
    }

    /// No event of this process will come any more.
    pub(super) fn end_process(&mut self, process: ProcessId) {
        if self.processes.remove(&process).is_some() {
            self.numbers.retain(|_, known| known.process != process);
        }
    }
}

fn next_id(count: &mut u32) -> StackId {
    let id = StackId(*count);
    *count = count.saturating_add(1);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: ProcessId = ProcessId(1);

    fn found(frames: &[u32]) -> FoundStack {
        let frames = frames.iter().map(|frame| FrameId(*frame)).collect();
        FoundStack { outcome: StackOutcome::Complete, frames }
    }

    struct Bench(StackTable, Vec<Stack>);

    impl Bench {
        fn new() -> Self {
            Self(StackTable::default(), Vec::new())
        }
        fn define(&mut self, number: u32, once: bool, stack: FoundStack) {
            self.0.define(PROCESS, number, once, stack, |stack| self.1.push(stack));
        }
        fn event(&mut self, number: u32) -> StackId {
            self.0.of_event(PROCESS, number, |stack| self.1.push(stack))
        }
        fn given(&mut self) -> Vec<Stack> {
            std::mem::take(&mut self.1)
        }
    }

    #[test]
    fn copies_with_the_same_frames_are_one_stack_and_are_forgotten_once_used() {
        let mut bench = Bench::new();
        bench.define(7, false, found(&[1, 2]));
        let id = bench.event(7);
        for number in 100..1100 {
            bench.define(number, true, found(&[1, 2]));
            assert_eq!(bench.event(number), id);
        }
        assert_eq!(bench.given().len(), 1, "defined once");
        assert_eq!(bench.0.numbers.len(), 1, "only what can come again is remembered");
        assert_eq!(bench.event(7), id);
        bench.define(2000, true, found(&[1, 3]));
        assert_ne!(bench.event(2000), id, "other frames");
        let cut = FoundStack { outcome: StackOutcome::UnknownCode, ..found(&[1, 2]) };
        bench.define(2001, true, cut);
        assert_ne!(bench.event(2001), id, "another end");
    }

    #[test]
    fn frames_that_come_after_their_event_define_what_it_refers_to() {
        let mut bench = Bench::new();
        bench.define(7, false, found(&[1, 2]));
        let waiting = bench.event(8);
        bench.given();
        bench.define(8, false, found(&[1, 2]));
        let given = bench.given();
        assert_eq!(given.len(), 1);
        assert_eq!((given[0].id, &given[0].frames), (waiting, &found(&[1, 2]).frames));
        bench.define(8, false, found(&[3]));
        assert_eq!(bench.given(), [], "the same number again");
        assert_eq!(bench.event(8), waiting);
    }

    #[test]
    fn above_the_limit_stacks_are_cut_to_their_caller() {
        let mut bench = Bench::new();
        bench.0 = StackTable::with_limits(2, 5);
        for number in 0..5 {
            bench.define(number, false, found(&[number, 9]));
        }
        let given = bench.given();
        assert_eq!(given.len(), 5);
        for (stack, number) in given[2..].iter().zip(2..) {
            assert_eq!(stack.outcome, StackOutcome::StackTableFull);
            assert_eq!(stack.frames, [FrameId(number)]);
        }
        assert_eq!(bench.0.over_limit(), 3);
        bench.define(5, false, found(&[0, 9]));
        let nameless = bench.event(5);
        assert_eq!(bench.event(6), nameless, "numbers too are limited");
        let given = bench.given();
        assert_eq!(given.len(), 1);
        assert_eq!((given[0].id, given[0].frames.len()), (nameless, 0));
        assert_ne!(bench.event(1), nameless, "those that were known stay so");
        bench.0.end_process(PROCESS);
        assert_eq!(bench.0.numbers.len(), 0);
    }

    #[test]
    fn processes_have_stacks_of_their_own() {
        let mut bench = Bench::new();
        bench.define(7, false, found(&[1]));
        let one = bench.event(7);
        let other = ProcessId(2);
        bench.0.define(other, 7, false, found(&[1]), |_| {});
        assert_ne!(bench.0.of_event(other, 7, |_| {}), one);
    }
}
