//! Threads that end, and what they are called.

use memscope_common::record::ThreadExit;

use super::{Collector, ProcessView, name_of};
use crate::model::{Event, Item, ThreadId, ThreadName};

impl<V: ProcessView> Collector<V> {
    pub(super) fn thread_exit(
        &mut self,
        record: &ThreadExit,
        give: &mut impl FnMut(Item),
    ) -> Option<Event> {
        let process = self.process_of(&record.header, give)?;
        let thread = ThreadId(record.thread);
        self.thread_name(record.header.target, thread, name_of(&record.comm), give);
        Some(Event::ThreadExit { process, thread, time_ns: record.header.time_ns })
    }

    /// What threads of a process are called that have not ended.
    pub fn thread_names(
        &mut self,
        target: u16,
        names: Vec<(u32, String)>,
        mut give: impl FnMut(Item),
    ) {
        for (thread, name) in names {
            self.thread_name(target, ThreadId(thread), name, &mut give);
        }
    }

    /// A thread begins with the name of the one that has begun it, and most have no other.
    fn thread_name(
        &self,
        target: u16,
        thread: ThreadId,
        name: String,
        give: &mut impl FnMut(Item),
    ) {
        let Some(target) = self.targets.get(&target) else { return };
        if !name.is_empty() && name != target.process.comm {
            give(Item::ThreadName(ThreadName { process: target.process.id, thread, name }));
        }
    }
}
