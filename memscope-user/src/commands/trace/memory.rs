//! Reads how much memory the targets have, beside what is recorded of them.
//!
//! A thread of its own does, as a reading can take long: for PSS the kernel walks through all
//! pages of a process. What readings take is measured, in processor time of the thread that makes
//! them, and decides when the next ones are made.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};

use super::{
    monotonic_ns,
    pipeline::{Control, Input},
};
use crate::{
    collect::Record,
    model::ProcessMemory,
    target::{ControlGroups, TargetProcess},
};

/// How often memory is read at first.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// After so many rounds the interval is doubled: a day has 5,600 rounds, a year 10,000.
const ROUNDS_PER_INTERVAL: u32 = 512;
/// A round takes at most this part of the time, if it takes as long as the one before. One alone that took
/// longer was interrupted, or the first of all.
const MOST_ROUNDS_PART: u32 = 200;
/// How often PSS is read at most.
const LEAST_PSS_INTERVAL: Duration = Duration::from_secs(2);
/// All readings of PSS take at most this part of the time, but for the first and the last ones.
const MOST_PSS_PART: u32 = 1000;
/// Before recording of processes that run already begins, no more is read that takes long
/// once it has taken so long for all of them.
const MOST_AT_ATTACH: Duration = Duration::from_millis(500);
/// The readings of PSS at the end take at most about so long, as far as is known before.
const MOST_AT_END: Duration = Duration::from_millis(100);
/// How long a reading waits for the records before it.
const RECORDS_PATIENCE_NS: u64 = 200_000_000;

/// A target's memory at a moment.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) target: u16,
    pub(super) time_ns: u64,
    pub(super) memory: ProcessMemory,
}

/// Processor time of the calling thread.
fn used() -> Duration {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// When memory is read.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    rounds: u32,
    /// How long the round before took.
    took_before: Duration,
}

impl Pace {
    fn new() -> Self {
        Self { interval: FIRST_INTERVAL, rounds: 0, took_before: Duration::ZERO }
    }

    /// How long to wait after a round that took so long.
    fn after_round(&mut self, took: Duration) -> Duration {
        self.rounds += 1;
        if self.rounds == ROUNDS_PER_INTERVAL {
            self.rounds = 0;
            self.interval = self.interval.saturating_mul(2);
        }
        let least = took.min(std::mem::replace(&mut self.took_before, took));
        self.interval.max(least.saturating_mul(MOST_ROUNDS_PART))
    }
}

/// When the PSS of a target is read again.
#[derive(Debug)]
struct PssPace {
    due: Instant,
    /// How long the last reading took; none if it was not read yet.
    took: Option<Duration>,
}

impl PssPace {
    /// It took so long, and there are so many targets.
    fn after(now: Instant, took: Duration, targets: usize) -> Self {
        let targets = u32::try_from(targets).unwrap_or(u32::MAX);
        let wait = took.saturating_mul(MOST_PSS_PART).saturating_mul(targets);
        // So far away that it does not come, if there is no such time.
        let due = now.checked_add(wait.max(LEAST_PSS_INTERVAL));
        let due = due.unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()));
        Self { due, took: Some(took) }
    }

    /// Of a process that has just begun.
    fn unread(now: Instant) -> Self {
        Self { due: now + LEAST_PSS_INTERVAL, took: None }
    }
}

/// What a thread is told.
enum Order {
    Follow(u16, Arc<TargetProcess>, PssPace),
    End,
}

/// The reading thread.
pub(super) struct MemoryReader {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
    groups: ControlGroups,
    input: SyncSender<Input>,
    /// What readings before recording began have taken.
    at_attach: Duration,
}

impl MemoryReader {
    pub(super) fn start(input: SyncSender<Input>) -> anyhow::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let groups = ControlGroups::mounted();
        let reads = Reads { groups: groups.clone(), input: input.clone(), followed: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("memscope-memory".to_owned())
            .spawn(move || reads.run(&receiver))
            .context("cannot start a thread")?;
        Ok(Self { orders, thread, groups, input, at_attach: Duration::ZERO })
    }

    /// Reads a target's memory now, and from time to time from now on. If it ran before, also
    /// what it has in the mappings that hold blocks: what it allocated before is there.
    pub(super) fn follow(
        &mut self,
        target: u16,
        process: Arc<TargetProcess>,
        has_run: bool,
    ) -> anyhow::Result<()> {
        let used_before = used();
        let Some(mut memory) = process.memory(&self.groups) else { return Ok(()) };
        let mut pss = PssPace::unread(Instant::now());
        if self.at_attach < MOST_AT_ATTACH {
            memory.proportional_bytes = process.proportional_bytes();
            pss = PssPace::after(Instant::now(), used().saturating_sub(used_before), 1);
            memory.heap_mappings = has_run.then(|| process.heap_mappings()).flatten();
        }
        self.at_attach += used().saturating_sub(used_before);
        let reading = Reading { target, time_ns: monotonic_ns(), memory };
        give(&self.input, reading).context("the collecting thread has ended")?;
        self.order(target, process, pss)
    }

    /// Reads the memory of a process that a target has begun, or that has begun a program,
    /// from time to time.
    pub(super) fn follow_begun(
        &self,
        target: u16,
        process: Arc<TargetProcess>,
    ) -> anyhow::Result<()> {
        self.order(target, process, PssPace::unread(Instant::now()))
    }

    fn order(&self, target: u16, process: Arc<TargetProcess>, pss: PssPace) -> anyhow::Result<()> {
        self.orders
            .send(Order::Follow(target, process, pss))
            .ok()
            .context("the thread that reads memory has ended")
    }

    /// Reads all that still run once more; then no reading comes any more.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        if self.orders.send(Order::End).is_err() {
            log::debug!("the thread that reads memory has ended");
        }
        self.thread
            .join()
            .map_err(|_panic| anyhow::anyhow!("the thread that reads memory has panicked"))
    }
}

fn give(input: &SyncSender<Input>, reading: Reading) -> Option<()> {
    input.send(Input::Control(Control::Memory(Box::new(reading)))).ok()
}

struct Followed {
    target: u16,
    process: Arc<TargetProcess>,
    pss: PssPace,
}

/// What the reading thread works with.
struct Reads {
    groups: ControlGroups,
    input: SyncSender<Input>,
    followed: Vec<Followed>,
}

impl Reads {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut pace = Pace::new();
        let mut next = Instant::now() + FIRST_INTERVAL;
        loop {
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Order::Follow(target, process, pss)) => {
                    self.followed.push(Followed { target, process, pss });
                }
                Ok(Order::End) => {
                    let mut left = MOST_AT_END;
                    self.round(|pss| {
                        let after = pss.took.and_then(|took| left.checked_sub(took));
                        left = after.unwrap_or(left);
                        after.is_some()
                    });
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (begun, used_before) = (Instant::now(), used());
                    if self.round(|pss| pss.due <= begun).is_none() {
                        return;
                    }
                    let took = used().saturating_sub(used_before);
                    next = Instant::now() + pace.after_round(took);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reads every target; none if nobody takes it any more. Those that are gone are forgotten.
    fn round(&mut self, mut is_pss_due: impl FnMut(&PssPace) -> bool) -> Option<()> {
        let count = self.followed.len();
        for mut followed in std::mem::take(&mut self.followed) {
            // First, as it can take long: what is read at a moment must be told while it is new.
            let mut proportional_bytes = None;
            if is_pss_due(&followed.pss) {
                let used_before = used();
                proportional_bytes = followed.process.proportional_bytes();
                let took = used().saturating_sub(used_before);
                followed.pss = PssPace::after(Instant::now(), took, count);
            }
            let time_ns = monotonic_ns();
            let Some(mut memory) = followed.process.memory(&self.groups) else { continue };
            memory.proportional_bytes = proportional_bytes;
            give(&self.input, Reading { target: followed.target, time_ns, memory })?;
            self.followed.push(followed);
        }
        Some(())
    }
}

/// Readings that wait until all records of what happened before them were taken, so that what
/// lives is known at their very moment.
#[derive(Debug, Default)]
pub(super) struct HeldReadings {
    held: VecDeque<Reading>,
    /// Time of the last record that was taken.
    taken_until_ns: u64,
}

impl HeldReadings {
    /// One that comes after later records is not told: what lived at its moment is not known any
    /// more.
    pub(super) fn hold(&mut self, reading: Reading) {
        let late_ns = self.taken_until_ns.saturating_sub(reading.time_ns);
        if late_ns == 0 {
            self.held.push_back(reading);
        } else {
            log::debug!("a reading of memory came {late_ns} ns too late and is not told");
        }
    }

    /// The next reading that comes within these records, and how many come before it; these are
    /// to be taken, or all if there is none.
    pub(super) fn within(&mut self, records: &[Record]) -> Option<(usize, Reading)> {
        let next = self.held.front().and_then(|held| {
            let before = records.partition_point(|record| record.time_ns() <= held.time_ns);
            (before < records.len()).then_some(before)
        });
        let taken = records.get(..next.unwrap_or(records.len())).and_then(<[Record]>::last);
        if let Some(last) = taken {
            self.taken_until_ns = self.taken_until_ns.max(last.time_ns());
        }
        next.zip(self.held.pop_front_if(|_held| next.is_some()))
    }

    /// The next one, if records of its time would have come by now.
    pub(super) fn overdue(&mut self, now_ns: u64) -> Option<Reading> {
        let is_overdue =
            |held: &mut Reading| now_ns.saturating_sub(held.time_ns) >= RECORDS_PATIENCE_NS;
        self.held.pop_front_if(is_overdue)
    }

    /// The next one, if no record of its time will come.
    pub(super) fn next(&mut self) -> Option<Reading> {
        self.held.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::{Free, OfImage};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_trace_of_any_length_has_few_readings() {
        let (mut pace, mut now, mut rounds) = (Pace::new(), Duration::ZERO, 0);
        while now < Duration::from_secs(86_400) {
            now += pace.after_round(MS / 10);
            rounds += 1;
        }
        assert!((5_000..6_000).contains(&rounds), "{rounds} in a day");
        while now < Duration::from_secs(365 * 86_400) {
            now += pace.after_round(MS / 10);
            rounds += 1;
        }
        assert!(rounds < 11_000, "{rounds} in a year");
    }

    #[test]
    fn what_takes_long_is_done_rarely() {
        let mut pace = Pace::new();
        assert_eq!(pace.after_round(MS / 10), FIRST_INTERVAL);
        assert_eq!(pace.after_round(10 * MS), FIRST_INTERVAL, "it may have been interrupted");
        assert_eq!(pace.after_round(15 * MS), Duration::from_secs(2));
        assert_eq!(pace.after_round(5 * MS), Duration::from_secs(1));
        assert_eq!(pace.after_round(MS / 10), FIRST_INTERVAL);
        let now = Instant::now();
        let wait = |took, targets| PssPace::after(now, took, targets).due - now;
        assert_eq!(wait(MS, 1), LEAST_PSS_INTERVAL);
        assert_eq!(wait(30 * MS, 1), Duration::from_secs(30));
        assert_eq!(wait(30 * MS, 4), Duration::from_secs(120));
        assert!(wait(Duration::MAX, usize::MAX) > Duration::from_secs(1 << 31));
    }

    fn record(time_ns: u64) -> Record {
        let of = OfImage { target: 0, image: 0 };
        Record::Free(Free {
            of,
            probe: 1,
            thread: 1,
            time_ns,
            address_avma: 16,
            is_internal: false,
            allocated_since: false,
        })
    }

    fn times(held: &mut HeldReadings, records: &[Record]) -> Vec<(usize, u64)> {
        let mut found = Vec::new();
        let mut rest = records;
        while let Some((before, reading)) = held.within(rest) {
            found.push((before, reading.time_ns));
            rest = &rest[before..];
        }
        found
    }

    #[test]
    fn a_reading_comes_after_what_happened_before_it() {
        let mut held = HeldReadings::default();
        for time_ns in [10, 30, 30, 99] {
            held.hold(Reading { target: 0, time_ns, memory: ProcessMemory::default() });
        }
        let records: Vec<Record> = [20, 25, 30, 31].map(record).into();
        assert_eq!(times(&mut held, &[]), []);
        assert_eq!(times(&mut held, &records[..2]), [(0, 10)]);
        assert_eq!(times(&mut held, &records[2..3]), []);
        assert_eq!(times(&mut held, &records[3..]), [(0, 30), (0, 30)]);
        assert!(held.overdue(99 + RECORDS_PATIENCE_NS - 1).is_none());
        assert_eq!(held.overdue(99 + RECORDS_PATIENCE_NS).unwrap().time_ns, 99);
        assert!(held.next().is_none());
    }

    #[test]
    fn a_reading_that_comes_too_late_is_not_told() {
        let mut held = HeldReadings::default();
        let reading = |time_ns| Reading { target: 0, time_ns, memory: ProcessMemory::default() };
        assert_eq!(times(&mut held, &[20, 40].map(record)), []);
        for time_ns in [30, 39, 40] {
            held.hold(reading(time_ns));
        }
        assert_eq!(times(&mut held, &[50].map(record)), [(0, 40)]);
        // That record was taken after the reading.
        for time_ns in [49, 50] {
            held.hold(reading(time_ns));
        }
        assert_eq!(held.next().unwrap().time_ns, 50);
        assert!(held.next().is_none());
    }
}
