use rustc_hash::FxHashMap;

use super::{
    columns::{Columns, Packer},
    context::*,
    varint,
};
use crate::model::{Event, FreeCaller, MappedBy, ProbeId, ProcessId, StackId, ThreadId};

/// Places in which the encoder looks for an earlier use of an address.
const ADDRESS_PLACES: usize = 1 << 13;
/// 2^64 divided by the golden ratio: spreads addresses that differ in few bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Turns items into the columns of a chunk.
#[derive(Debug)]
pub(super) struct Encoder {
    columns: Columns<Vec<u8>>,
    context: Context,
    /// Where addresses were seen last. A place can be taken by another address; then the first
    /// one is written as if it were new.
    seen: Box<[Seen; ADDRESS_PLACES]>,
    /// How many addresses there were.
    addresses: u32,
    last_avma: u64,
    slots: FxHashMap<(ProcessId, ThreadId), usize>,
}

/// An address, and as the how-manieth one it came, from 1; 0 if it has not come.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    address_avma: u64,
    position: u32,
}

/// What allocations and ends of reallocations have in common.
struct Block {
    address_avma: u64,
    size_bytes: u64,
    stack: StackId,
    probe: ProbeId,
    interval_bytes: u64,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            columns: Columns::default(),
            context: Context::default(),
            seen: Box::new([Seen::default(); ADDRESS_PLACES]),
            addresses: 0,
            last_avma: 0,
            slots: FxHashMap::default(),
        }
    }

    /// How many items and changes of the interval there are.
    pub(super) fn tags(&self) -> usize {
        self.columns.tags.len()
    }

    /// Bytes of the definitions.
    pub(super) fn definition_bytes(&self) -> usize {
        self.columns.definitions.len()
    }

    /// Writes all columns, and begins anew.
    pub(super) fn pack(
        &mut self,
        packer: &mut Packer,
        payload: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let packed = self.columns.pack(packer, payload);
        self.columns.clear();
        self.context.clear();
        self.slots.clear();
        self.seen.fill(Seen::default());
        (self.addresses, self.last_avma) = (0, 0);
        packed
    }

    /// An item that is no event.
    pub(super) fn definition(&mut self, encoded: &[u8]) {
        self.columns.tags.push(OTHER_ITEM);
        self.columns.definitions.extend_from_slice(encoded);
    }

    pub(super) fn event(&mut self, event: &Event) {
        match *event {
            Event::Allocation {
                process,
                thread,
                time_ns,
                address_avma,
                size_bytes,
                stack,
                probe,
                interval_bytes,
            } => {
                self.time(time_ns);
                let block = Block { address_avma, size_bytes, stack, probe, interval_bytes };
                let by = self.thread(process, thread);
                self.block(ALLOCATION | by, &block);
            }
            Event::Free { process, thread, time_ns, address_avma, probe, caller } => {
                let kind = match caller {
                    FreeCaller::Program => FREE,
                    FreeCaller::AllocatorModule => ALLOCATOR_FREE,
                };
                self.time(time_ns);
                let tag = kind | self.thread(process, thread) | self.address(address_avma);
                let tag = tag | self.ending(probe);
                self.columns.tags.push(tag);
            }
            Event::ReallocationBegin { process, thread, time_ns, old_address_avma, probe } => {
                self.time(time_ns);
                let tag = REALLOCATION_BEGIN
                    | self.thread(process, thread)
                    | self.address(old_address_avma)
                    | self.ending(probe);
                if let Some(thread) = self.context.threads.get_mut(self.context.current) {
                    thread.reallocating_avma = old_address_avma;
                }
                self.columns.tags.push(tag);
            }
            Event::ReallocationEnd { .. } => self.reallocation_end(event),
            Event::ThreadExit { process, thread, time_ns } => {
                self.time_and_thread(process, thread, time_ns);
                self.columns.tags.push(OTHER_THREAD_EXIT);
            }
            Event::Loss { first_lost_ns, time_ns, lost_count } => {
                let since = first_lost_ns.wrapping_sub(self.context.time_ns).cast_signed();
                varint::push(&mut self.columns.others, varint::zigzag(since));
                varint::push(&mut self.columns.others, lost_count);
                self.time(time_ns);
                self.columns.tags.push(OTHER_LOSS);
            }
            Event::PageFault { .. } => self.page_fault(event),
            Event::Mapping { .. } | Event::Unmapping { .. } | Event::Remapping { .. } => {
                self.mapping(event);
            }
        }
    }

    /// What a process has changed of what it has mapped.
    fn mapping(&mut self, event: &Event) {
        match *event {
            Event::Mapping {
                process,
                thread,
                time_ns,
                address_avma,
                size_bytes,
                stack,
                kind,
                by,
            } => {
                self.range(process, thread, time_ns, address_avma, size_bytes);
                varint::push(&mut self.columns.stacks, stack.0.into());
                varint::push(&mut self.columns.others, kind as u64);
                self.mapped_by(by);
                self.columns.tags.push(OTHER_MAPPING);
            }
            Event::Unmapping { process, thread, time_ns, address_avma, size_bytes } => {
                self.range(process, thread, time_ns, address_avma, size_bytes);
                self.columns.tags.push(OTHER_UNMAPPING);
            }
            Event::Remapping {
                process,
                thread,
                began_ns,
                time_ns,
                old_address_avma,
                old_size_bytes,
                new_address_avma,
                new_size_bytes,
                keeps_old,
                stack,
                by,
            } => {
                self.range(process, thread, time_ns, old_address_avma, old_size_bytes);
                self.new_address(new_address_avma);
                varint::push(&mut self.columns.sizes, new_size_bytes);
                varint::push(&mut self.columns.stacks, stack.0.into());
                let since = began_ns.wrapping_sub(time_ns).cast_signed();
                varint::push(&mut self.columns.others, varint::zigzag(since));
                varint::push(&mut self.columns.others, keeps_old.into());
                self.mapped_by(by);
                self.columns.tags.push(OTHER_REMAPPING);
            }
            _ => {}
        }
    }

    fn range(
        &mut self,
        process: ProcessId,
        thread: ThreadId,
        time_ns: u64,
        address_avma: u64,
        size_bytes: u64,
    ) {
        self.time_and_thread(process, thread, time_ns);
        self.new_address(address_avma);
        varint::push(&mut self.columns.sizes, size_bytes);
    }

    /// Of an event whose tag has no room to say that the thread is the same.
    fn time_and_thread(&mut self, process: ProcessId, thread: ThreadId, time_ns: u64) {
        self.time(time_ns);
        let slot = self.slot(process, thread);
        self.push_thread(slot, process, thread);
    }

    fn new_address(&mut self, address_avma: u64) {
        push_address(&mut self.columns.addresses, self.last_avma, address_avma);
        self.addresses += 1;
        self.last_avma = address_avma;
    }

    fn mapped_by(&mut self, by: MappedBy) {
        let number = match by {
            MappedBy::Program => BY_PROGRAM,
            MappedBy::Unknown => BY_UNKNOWN,
            MappedBy::Allocator(probe) => BY_ALLOCATOR + u64::from(probe.0),
        };
        varint::push(&mut self.columns.others, number);
    }

    fn page_fault(&mut self, event: &Event) {
        let Event::PageFault { process, thread, time_ns, address_avma, stack, resident, is_major } =
            *event
        else {
            return;
        };
        self.time_and_thread(process, thread, time_ns);
        self.new_address(address_avma);
        varint::push(&mut self.columns.stacks, stack.0.into());
        for bytes in [resident.anonymous, resident.file, resident.shared] {
            varint::push(&mut self.columns.sizes, bytes);
        }
        self.columns.tags.push(if is_major { OTHER_MAJOR_FAULT } else { OTHER_PAGE_FAULT });
    }

    fn reallocation_end(&mut self, event: &Event) {
        let Event::ReallocationEnd {
            process,
            thread,
            time_ns,
            old_address_avma,
            new_address_avma: address_avma,
            size_bytes,
            stack,
            probe,
            interval_bytes,
        } = *event
        else {
            return;
        };
        self.time(time_ns);
        let by = self.thread(process, thread);
        let entered = self.context.threads.get(self.context.current);
        let kind = if entered.is_some_and(|thread| thread.reallocating_avma == old_address_avma) {
            REALLOCATION_END
        } else {
            self.new_address(old_address_avma);
            OTHER_REALLOCATION_END
        };
        let block = Block { address_avma, size_bytes, stack, probe, interval_bytes };
        self.block(kind | by, &block);
    }

    fn time(&mut self, time_ns: u64) {
        let since = time_ns.wrapping_sub(self.context.time_ns).cast_signed();
        self.context.time_ns = time_ns;
        self.columns.times_low.push(since as u8);
        varint::push(&mut self.columns.times_high, varint::zigzag(since >> 8));
    }

    /// The part of the tag that says by which function a block ends.
    fn ending(&mut self, probe: Option<ProbeId>) -> u8 {
        let Some(known) = probe else { return 0 };
        if self.context.ending == probe {
            return SAME_ENDING;
        }
        self.context.ending = probe;
        varint::push(&mut self.columns.others, known.0.into());
        NEW_ENDING
    }

    fn slot(&mut self, process: ProcessId, thread: ThreadId) -> usize {
        let next = self.context.threads.len();
        *self.slots.entry((process, thread)).or_insert(next)
    }

    /// The part of the tag that says who.
    fn thread(&mut self, process: ProcessId, thread: ThreadId) -> u8 {
        let current = self.context.threads.get(self.context.current);
        if current.is_some_and(|current| (current.process, current.thread) == (process, thread)) {
            return SAME_THREAD;
        }
        let slot = self.slot(process, thread);
        self.push_thread(slot, process, thread);
        0
    }

    fn push_thread(&mut self, slot: usize, process: ProcessId, thread: ThreadId) {
        varint::push(&mut self.columns.threads, slot as u64);
        if slot == self.context.threads.len() {
            varint::push(&mut self.columns.threads, process.0.into());
            varint::push(&mut self.columns.threads, thread.0.into());
            self.context.threads.push(Thread { process, thread, reallocating_avma: 0 });
        }
        self.context.current = slot;
    }

    /// The part of the tag that says where.
    fn address(&mut self, address_avma: u64) -> u8 {
        let place = address_avma.wrapping_mul(SPREAD) >> (u64::BITS - ADDRESS_PLACES.ilog2());
        let seen = &mut self.seen[place as usize % ADDRESS_PLACES];
        self.addresses += 1;
        let before = std::mem::replace(seen, Seen { address_avma, position: self.addresses });
        let last_avma = std::mem::replace(&mut self.last_avma, address_avma);
        match self.addresses - before.position {
            _ if before.position == 0 || before.address_avma != address_avma => {
                push_address(&mut self.columns.addresses, last_avma, address_avma);
                ADDRESS_NEW
            }
            1 => ADDRESS_LAST,
            2 => ADDRESS_BEFORE_LAST,
            far => {
                varint::push(&mut self.columns.distances, far.into());
                ADDRESS_FAR
            }
        }
    }

    /// `tag` has the kind and the thread.
    fn block(&mut self, mut tag: u8, block: &Block) {
        if block.interval_bytes != self.context.interval_bytes {
            self.context.interval_bytes = block.interval_bytes;
            varint::push(&mut self.columns.others, block.interval_bytes);
            self.columns.tags.push(OTHER_INTERVAL);
        }
        tag |= self.address(block.address_avma);
        varint::push(&mut self.columns.stacks, block.stack.0.into());
        let habit = self.context.habit(block.stack.0);
        if habit.size_bytes == block.size_bytes {
            tag |= SAME_SIZE;
        } else {
            habit.size_bytes = block.size_bytes;
            varint::push(&mut self.columns.sizes, block.size_bytes);
        }
        if habit.probe == block.probe.0 {
            tag |= SAME_PROBE;
        } else {
            habit.probe = block.probe.0;
            varint::push(&mut self.columns.others, block.probe.0.into());
        }
        self.columns.tags.push(tag);
    }
}

fn push_address(column: &mut Vec<u8>, last_avma: u64, address_avma: u64) {
    let since = address_avma.wrapping_sub(last_avma).cast_signed();
    if since % ADDRESS_UNIT_BYTES == 0 {
        varint::push(column, varint::zigzag(since / ADDRESS_UNIT_BYTES) << 1);
    } else if i32::try_from(since).is_ok() {
        varint::push(column, IN_BYTES + (varint::zigzag(since) << 1));
    } else {
        varint::push(column, ABSOLUTE);
        varint::push(column, address_avma);
    }
}
