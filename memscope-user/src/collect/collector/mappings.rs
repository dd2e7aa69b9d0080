use memscope_common::record::{
    MAPPING_BY_ALLOCATOR, MAPPING_BY_UNKNOWN, MAPPING_CHANGE_BREAK, MAPPING_CHANGE_MAPPED,
    MAPPING_CHANGE_MOVED, MAPPING_CHANGE_UNMAPPED, MAPPING_KEEPS_OLD, MAPPING_OF_FILE,
    MAPPING_SHARED, MappingChange,
};

use super::{Collector, ProcessView};
use crate::model::{Event, Item, MappedBy, MappingKind, ProcessId, StackId, ThreadId};

impl<V: ProcessView> Collector<V> {
    /// A change of what a process has mapped.
    pub(super) fn mapping_change(
        &mut self,
        record: &MappingChange,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        let process = self.process_of(&record.header, give)?;
        let &MappingChange { address_avma, size_bytes, flags, .. } = record;
        match record.change {
            MAPPING_CHANGE_UNMAPPED => Some(unmapping(process, record, address_avma, size_bytes)),
            MAPPING_CHANGE_MAPPED => {
                let kind = match flags {
                    _ if flags & MAPPING_OF_FILE != 0 => MappingKind::File,
                    _ if flags & MAPPING_SHARED != 0 => MappingKind::Shared,
                    _ => MappingKind::Anonymous,
                };
                self.mapping(process, record, (address_avma, size_bytes), kind, give)
            }
            MAPPING_CHANGE_BREAK => {
                let target = self.targets.get_mut(&record.header.target)?;
                let before_avma = target.heap_end_avma.replace(address_avma)?;
                match address_avma.checked_sub(before_avma) {
                    Some(0) => None,
                    Some(grown_bytes) => {
                        let range = (before_avma, grown_bytes);
                        self.mapping(process, record, range, MappingKind::Heap, give)
                    }
                    None => {
                        let shrunk_bytes = before_avma - address_avma;
                        Some(unmapping(process, record, address_avma, shrunk_bytes))
                    }
                }
            }
            MAPPING_CHANGE_MOVED => Some(Event::Remapping {
                process,
                thread: ThreadId(record.thread),
                began_ns: record.began_ns,
                time_ns: record.header.time_ns,
                old_address_avma: record.old_address_avma,
                old_size_bytes: record.old_size_bytes,
                new_address_avma: address_avma,
                new_size_bytes: size_bytes,
                keeps_old: flags & MAPPING_KEEPS_OLD != 0,
                by: self.mapped_by(record)?,
                stack: self.stack_of(process, record, give),
            }),
            _ => {
                self.nonsense += 1;
                None
            }
        }
    }

    fn mapping(
        &mut self,
        process: ProcessId,
        record: &MappingChange,
        (address_avma, size_bytes): (u64, u64),
        kind: MappingKind,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        Some(Event::Mapping {
            process,
            thread: ThreadId(record.thread),
            time_ns: record.header.time_ns,
            address_avma,
            size_bytes,
            by: self.mapped_by(record)?,
            stack: self.stack_of(process, record, give),
            kind,
        })
    }

    fn mapped_by(&mut self, record: &MappingChange) -> Option<MappedBy> {
        Some(match record.flags {
            flags if flags & MAPPING_BY_UNKNOWN != 0 => MappedBy::Unknown,
            flags if flags & MAPPING_BY_ALLOCATOR != 0 => {
                MappedBy::Allocator(self.probe(record.header.probe)?)
            }
            _ => MappedBy::Program,
        })
    }

    fn stack_of(
        &mut self,
        process: ProcessId,
        record: &MappingChange,
        give: &mut impl FnMut(Item),
    ) -> StackId {
        self.stacks.of_event(process, record.stack, |stack| give(Item::Stack(stack)))
    }
}

fn unmapping(
    process: ProcessId,
    record: &MappingChange,
    address_avma: u64,
    size_bytes: u64,
) -> Event {
    let (thread, time_ns) = (ThreadId(record.thread), record.header.time_ns);
    Event::Unmapping { process, thread, time_ns, address_avma, size_bytes }
}
