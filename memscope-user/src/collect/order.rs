//! Brings records of several rings into one order.

use std::collections::VecDeque;

use super::decode::Record;

/// Most records held back while a source is silent.
const MAX_HELD: usize = 1 << 16;

/// Merges sources by time. Each source's own order is kept: within a ring it is that
/// of reservation, which is right even where times are not (a record's clock is read
/// before its place is reserved, and a thread can be interrupted in between).
///
/// A record is given out once every other source has shown a later one, or has been
/// drained later; a source that shows nothing holds the others back by at most
/// 65,536 records (`MAX_HELD`). With one source nothing is ever held.
#[derive(Debug)]
pub struct Order {
    sources: Vec<Source>,
    held: usize,
    forced: u64,
}

#[derive(Debug, Default)]
struct Source {
    waiting: VecDeque<Record>,
    /// Everything from before this moment has been seen.
    seen_until_ns: u64,
}

impl Source {
    /// Nothing from before this moment will come any more.
    fn reached_ns(&self) -> u64 {
        self.waiting.front().map_or(self.seen_until_ns, Record::time_ns)
    }
}

impl Order {
    /// For so many sources.
    #[must_use]
    pub fn new(sources: usize) -> Self {
        Self { sources: (0..sources).map(|_| Source::default()).collect(), held: 0, forced: 0 }
    }

    /// Takes the next record of a source.
    pub fn push(&mut self, source: usize, record: Record, mut give: impl FnMut(Record)) {
        if self.sources.len() == 1 {
            give(record);
            return;
        }
        if let Some(source) = self.sources.get_mut(source) {
            source.waiting.push_back(record);
            self.held += 1;
        }
        self.release(&mut give);
    }

    /// A source was found empty at this moment.
    pub fn drained(&mut self, source: usize, now_ns: u64, mut give: impl FnMut(Record)) {
        if let Some(source) = self.sources.get_mut(source) {
            source.seen_until_ns = source.seen_until_ns.max(now_ns);
        }
        self.release(&mut give);
    }

    /// No source will give any more: everything held is given out.
    pub fn finish(&mut self, mut give: impl FnMut(Record)) {
        for source in &mut self.sources {
            source.seen_until_ns = u64::MAX;
        }
        self.release(&mut give);
    }

    /// How many records were given out without waiting for a silent source.
    #[must_use]
    pub fn forced(&self) -> u64 {
        self.forced
    }

    fn release(&mut self, give: &mut impl FnMut(Record)) {
        while let Some((earliest, time_ns)) = self.earliest() {
            let others_passed = self
                .sources
                .iter()
                .enumerate()
                .all(|(index, source)| index == earliest || source.reached_ns() >= time_ns);
            if !others_passed {
                if self.held <= MAX_HELD {
                    return;
                }
                self.forced += 1;
            }
            let record =
                self.sources.get_mut(earliest).and_then(|source| source.waiting.pop_front());
            let Some(record) = record else { return };
            self.held -= 1;
            give(record);
        }
    }

    fn earliest(&self) -> Option<(usize, u64)> {
        self.sources
            .iter()
            .enumerate()
            .filter_map(|(index, source)| Some((index, source.waiting.front()?.time_ns())))
            .min_by_key(|(_, time_ns)| *time_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memscope_common::record::{Header, KIND_THREAD_EXIT, ThreadExit};
    use proptest::prelude::*;

    fn record(time_ns: u64) -> Record {
        let header =
            Header { kind: KIND_THREAD_EXIT, padding: 0, probe: 0, image: 0, target: 0, time_ns };
        Record::ThreadExit(ThreadExit { header, thread: 0, padding: 0 })
    }

    #[test]
    fn one_source_is_given_on_at_once_in_its_own_order() {
        let mut order = Order::new(1);
        let mut given = Vec::new();
        for time_ns in [5, 3, 4] {
            order.push(0, record(time_ns), |record| given.push(record.time_ns()));
        }
        assert_eq!(given, [5, 3, 4]);
    }

    #[test]
    fn a_silent_source_holds_back_only_so_much() {
        let mut order = Order::new(2);
        let mut given = 0;
        for time_ns in 0..MAX_HELD as u64 + 10 {
            order.push(0, record(time_ns + 1), |_| given += 1);
        }
        assert_eq!(given, 10);
        assert_eq!(order.forced(), 10);
        order.drained(1, u64::MAX, |_| given += 1);
        assert_eq!(given, MAX_HELD + 10);
    }

    proptest! {
        #[test]
        fn sorted_sources_come_out_sorted_and_whole(sources in prop::collection::vec(prop::collection::vec(0_u64..1000, 0..50), 1..5)) {
            let mut order = Order::new(sources.len());
            let mut given = Vec::new();
            let mut sources = sources;
            sources.iter_mut().for_each(|times| times.sort_unstable());
            let longest = sources.iter().map(Vec::len).max().unwrap_or(0);
            for position in 0..longest {
                for (index, times) in sources.iter().enumerate() {
                    match times.get(position) {
                        Some(time_ns) => order.push(index, record(*time_ns), |record| given.push(record.time_ns())),
                        None => order.drained(index, u64::MAX, |record| given.push(record.time_ns())),
                    }
                }
            }
            order.finish(|record| given.push(record.time_ns()));
            let mut expected: Vec<u64> = sources.concat();
            if sources.len() > 1 {
                prop_assert!(given.is_sorted());
            }
            expected.sort_unstable();
            given.sort_unstable();
            prop_assert_eq!(given, expected);
        }
    }
}
