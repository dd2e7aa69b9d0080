use super::{
    columns::Columns,
    context::*,
    varint::{take, take_u32, unzigzag},
};
use crate::model::{
    Event, FreeCaller, Item, MappedBy, MappingKind, ProbeId, ResidentBytes, StackId,
};

/// The items of a payload, up to the first that cannot be decoded; whether all could.
pub(super) fn decode_items(payload: &[u8]) -> (Vec<Item>, bool) {
    let Some(columns) = Columns::unpack(payload) else {
        return (Vec::new(), false);
    };
    let mut decoder = Decoder {
        columns: columns.as_slices(),
        context: Context::default(),
        addresses: Vec::new(),
    };
    let mut items = Vec::with_capacity(decoder.columns.tags.len());
    while let Some((tag, rest)) = decoder.columns.tags.split_first() {
        decoder.columns.tags = rest;
        match decoder.item(*tag) {
            Some(Step::Item(item)) => items.push(item),
            Some(Step::Interval) => {}
            None => return (items, false),
        }
    }
    (items, decoder.columns.are_empty())
}

enum Step {
    Item(Item),
    Interval,
}

/// What allocations and ends of reallocations have in common.
struct Block {
    address_avma: u64,
    size_bytes: u64,
    stack: StackId,
    probe: ProbeId,
    interval_bytes: u64,
}

/// The reverse of the encoder, with the columns not yet taken.
struct Decoder<'a> {
    columns: Columns<&'a [u8]>,
    context: Context,
    /// All addresses, in the order in which they came.
    addresses: Vec<u64>,
}

impl Decoder<'_> {
    fn item(&mut self, tag: u8) -> Option<Step> {
        match tag {
            OTHER_ITEM => {
                let (item, rest) =
                    postcard::take_from_bytes::<Item>(self.columns.definitions).ok()?;
                self.columns.definitions = rest;
                // Events have columns of their own.
                (!matches!(item, Item::Event(_))).then_some(Step::Item(item))
            }
            OTHER_INTERVAL => {
                self.context.interval_bytes = take(&mut self.columns.others)?;
                Some(Step::Interval)
            }
            tag => self.event(tag).map(|event| Step::Item(Item::Event(event))),
        }
    }

    fn event(&mut self, tag: u8) -> Option<Event> {
        if tag == OTHER_LOSS {
            return self.loss();
        }
        let time_ns = self.time()?;
        match tag {
            OTHER_PAGE_FAULT | OTHER_MAJOR_FAULT => {
                return self.page_fault(time_ns, tag == OTHER_MAJOR_FAULT);
            }
            OTHER_MAPPING | OTHER_UNMAPPING | OTHER_REMAPPING => return self.mapping(time_ns, tag),
            _ => {}
        }
        let kind = tag & KIND_MASK;
        if kind == OTHER && tag != OTHER_THREAD_EXIT {
            return None;
        }
        let by = self.thread(kind != OTHER && tag & SAME_THREAD != 0)?;
        let Thread { process, thread, reallocating_avma } = by;
        Some(match kind {
            ALLOCATION => {
                let Block { address_avma, size_bytes, stack, probe, interval_bytes } =
                    self.block(tag)?;
                Event::Allocation {
                    process,
                    thread,
                    time_ns,
                    address_avma,
                    size_bytes,
                    stack,
                    probe,
                    interval_bytes,
                }
            }
            FREE | ALLOCATOR_FREE => {
                let caller =
                    if kind == FREE { FreeCaller::Program } else { FreeCaller::AllocatorModule };
                let address_avma = self.address(tag)?;
                let probe = self.ending(tag)?;
                Event::Free { process, thread, time_ns, address_avma, probe, caller }
            }
            REALLOCATION_BEGIN => {
                let old_address_avma = self.address(tag)?;
                let current = self.context.threads.get_mut(self.context.current)?;
                current.reallocating_avma = old_address_avma;
                let probe = self.ending(tag)?;
                Event::ReallocationBegin { process, thread, time_ns, old_address_avma, probe }
            }
            REALLOCATION_END | OTHER_REALLOCATION_END => {
                let old_address_avma =
                    if kind == REALLOCATION_END { reallocating_avma } else { self.new_address()? };
                let Block { address_avma, size_bytes, stack, probe, interval_bytes } =
                    self.block(tag)?;
                Event::ReallocationEnd {
                    process,
                    thread,
                    time_ns,
                    old_address_avma,
                    new_address_avma: address_avma,
                    size_bytes,
                    stack,
                    probe,
                    interval_bytes,
                }
            }
            OTHER => Event::ThreadExit { process, thread, time_ns },
            _ => return None,
        })
    }

    fn loss(&mut self) -> Option<Event> {
        let since = unzigzag(take(&mut self.columns.others)?);
        let first_lost_ns = self.context.time_ns.wrapping_add_signed(since);
        let lost_count = take(&mut self.columns.others)?;
        Some(Event::Loss { first_lost_ns, time_ns: self.time()?, lost_count })
    }

    /// By which function a block ends, if that is known.
    fn ending(&mut self, tag: u8) -> Option<Option<ProbeId>> {
        match tag & (SAME_ENDING | NEW_ENDING) {
            0 => return Some(None),
            SAME_ENDING => {}
            NEW_ENDING => {
                self.context.ending = Some(ProbeId(take_u32(&mut self.columns.others)?));
            }
            _ => return None,
        }
        self.context.ending.map(Some)
    }

    fn page_fault(&mut self, time_ns: u64, is_major: bool) -> Option<Event> {
        let Thread { process, thread, .. } = self.thread(false)?;
        let address_avma = self.new_address()?;
        let stack = StackId(take_u32(&mut self.columns.stacks)?);
        let mut bytes = || take(&mut self.columns.sizes);
        let resident = ResidentBytes { anonymous: bytes()?, file: bytes()?, shared: bytes()? };
        Some(Event::PageFault { process, thread, time_ns, address_avma, stack, resident, is_major })
    }

    /// What a process has changed of what it has mapped.
    fn mapping(&mut self, time_ns: u64, tag: u8) -> Option<Event> {
        let Thread { process, thread, .. } = self.thread(false)?;
        let address_avma = self.new_address()?;
        let size_bytes = take(&mut self.columns.sizes)?;
        if tag == OTHER_UNMAPPING {
            return Some(Event::Unmapping { process, thread, time_ns, address_avma, size_bytes });
        }
        if tag == OTHER_MAPPING {
            let stack = StackId(take_u32(&mut self.columns.stacks)?);
            let kind = usize::try_from(take(&mut self.columns.others)?).ok()?;
            let kind = *MappingKind::ALL.get(kind)?;
            let by = self.mapped_by()?;
            return Some(Event::Mapping {
                process,
                thread,
                time_ns,
                address_avma,
                size_bytes,
                stack,
                kind,
                by,
            });
        }
        let new_address_avma = self.new_address()?;
        let new_size_bytes = take(&mut self.columns.sizes)?;
        let stack = StackId(take_u32(&mut self.columns.stacks)?);
        let since = unzigzag(take(&mut self.columns.others)?);
        let keeps_old = match take(&mut self.columns.others)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Event::Remapping {
            process,
            thread,
            began_ns: time_ns.wrapping_add_signed(since),
            time_ns,
            old_address_avma: address_avma,
            old_size_bytes: size_bytes,
            new_address_avma,
            new_size_bytes,
            keeps_old,
            stack,
            by: self.mapped_by()?,
        })
    }

    fn mapped_by(&mut self) -> Option<MappedBy> {
        Some(match take(&mut self.columns.others)? {
            BY_PROGRAM => MappedBy::Program,
            BY_UNKNOWN => MappedBy::Unknown,
            number => MappedBy::Allocator(ProbeId(u32::try_from(number - BY_ALLOCATOR).ok()?)),
        })
    }

    fn time(&mut self) -> Option<u64> {
        let (low, rest) = self.columns.times_low.split_first()?;
        self.columns.times_low = rest;
        let since = unzigzag(take(&mut self.columns.times_high)?) << 8 | i64::from(*low);
        self.context.time_ns = self.context.time_ns.wrapping_add_signed(since);
        Some(self.context.time_ns)
    }

    fn thread(&mut self, same: bool) -> Option<Thread> {
        if !same {
            let column = &mut self.columns.threads;
            let slot = usize::try_from(take(column)?).ok()?;
            if slot == self.context.threads.len() {
                let process = crate::model::ProcessId(take_u32(column)?);
                let thread = crate::model::ThreadId(take_u32(column)?);
                self.context.threads.push(Thread { process, thread, reallocating_avma: 0 });
            }
            self.context.current = slot;
        }
        self.context.threads.get(self.context.current).copied()
    }

    fn address(&mut self, tag: u8) -> Option<u64> {
        let distance = match tag & ADDRESS_MASK {
            ADDRESS_NEW => return self.new_address(),
            ADDRESS_LAST => 1,
            ADDRESS_BEFORE_LAST => 2,
            _ => take(&mut self.columns.distances)?,
        };
        let addresses = &mut self.addresses;
        let position = (addresses.len() as u64).checked_sub(distance)?;
        let address_avma = *addresses.get(usize::try_from(position).ok()?)?;
        addresses.push(address_avma);
        Some(address_avma)
    }

    fn new_address(&mut self) -> Option<u64> {
        let code = take(&mut self.columns.addresses)?;
        let last_avma = self.addresses.last().copied().unwrap_or(0);
        let address_avma = match code {
            ABSOLUTE => take(&mut self.columns.addresses)?,
            odd if odd & 1 != 0 => {
                let since = unzigzag((odd - IN_BYTES) >> 1);
                last_avma.wrapping_add_signed(since)
            }
            code => {
                let since = unzigzag(code >> 1).wrapping_mul(ADDRESS_UNIT_BYTES);
                last_avma.wrapping_add_signed(since)
            }
        };
        self.addresses.push(address_avma);
        Some(address_avma)
    }

    fn block(&mut self, tag: u8) -> Option<Block> {
        let address_avma = self.address(tag)?;
        let stack = take_u32(&mut self.columns.stacks)?;
        let habit = self.context.habit(stack);
        if tag & SAME_SIZE == 0 {
            habit.size_bytes = take(&mut self.columns.sizes)?;
        }
        if tag & SAME_PROBE == 0 {
            habit.probe = take_u32(&mut self.columns.others)?;
        }
        let (size_bytes, probe) = (habit.size_bytes, ProbeId(habit.probe));
        let interval_bytes = self.context.interval_bytes;
        Some(Block { address_avma, size_bytes, stack: StackId(stack), probe, interval_bytes })
    }
}
