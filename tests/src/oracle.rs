//! Reads the logs of `programs/oracle.c` and counts them by the rules of the JSON export.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs;

const HEADER_BYTES: usize = 4096;
const RECORD_BYTES: usize = 48;
const EXE_OFFSET: usize = 40;
const COUNT_OFFSET: usize = 1088;

/// The environment variable that turns the oracle on.
pub const LOG_VARIABLE: &str = "MEMSCOPE_ORACLE_LOG";

/// Has the command's processes log to `<base>.<pid>.<n>`. Every process it starts inherits this.
pub fn preload<'a>(command: &'a mut Command, base: &Path) -> &'a mut Command {
    command.env("LD_PRELOAD", programs::oracle_library()).env(LOG_VARIABLE, base)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OracleFunction {
    Malloc,
    Calloc,
    Realloc,
    Reallocarray,
    Free,
    PosixMemalign,
    AlignedAlloc,
    Memalign,
    Valloc,
    Pvalloc,
}

impl OracleFunction {
    fn from_id(id: u8) -> OracleFunction {
        use OracleFunction::*;
        const BY_ID: [OracleFunction; 10] = [
            Malloc,
            Calloc,
            Realloc,
            Reallocarray,
            Free,
            PosixMemalign,
            AlignedAlloc,
            Memalign,
            Valloc,
            Pvalloc,
        ];
        let index = usize::from(id).checked_sub(1).expect("0 is an empty slot");
        *BY_ID.get(index).unwrap_or_else(|| panic!("the oracle wrote the unknown function {id}"))
    }

    fn resizes(self) -> bool {
        matches!(self, OracleFunction::Realloc | OracleFunction::Reallocarray)
    }
}

/// One call of an allocator function, as the program made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OracleCall {
    pub function: OracleFunction,
    pub thread: u32,
    /// The block given to free, realloc or reallocarray; 0 where there was none.
    pub old_address: u64,
    /// The block returned; 0 where there was none.
    pub result_address: u64,
    /// n × size for calloc and reallocarray, `u64::MAX` where that overflows.
    pub size: u64,
    pub alignment: u64,
    /// The place in the order of events at which an old block ended …
    pub begin: u64,
    /// … and at which a new one began. The same for every function but realloc and reallocarray.
    pub end: u64,
}

impl OracleCall {
    /// The block whose life this call ended.
    pub fn ended(&self) -> Option<u64> {
        let ended = match self.function {
            OracleFunction::Free => true,
            // A failed realloc leaves the old block alive; to size 0 it is a free.
            function => function.resizes() && (self.result_address != 0 || self.size == 0),
        };
        (ended && self.old_address != 0).then_some(self.old_address)
    }

    /// The block whose life this call began.
    pub fn began(&self) -> Option<u64> {
        (self.result_address != 0).then_some(self.result_address)
    }

    pub fn failed(&self) -> bool {
        self.function != OracleFunction::Free && self.began().is_none() && self.ended().is_none()
    }
}

/// One process image: what a pid did between two execs, or between fork and exec.
#[derive(Clone, Debug)]
pub struct OracleImage {
    pub pid: u32,
    /// Counts the images of this pid from 0.
    pub image: u32,
    pub parent_pid: u32,
    /// Began by fork, so the blocks of its parent are its own to free.
    pub forked: bool,
    pub exe: PathBuf,
    pub calls: Vec<OracleCall>,
}

/// All images that logged to `base`, by pid and then in the order of their execs.
pub fn read_logs(base: &Path) -> Vec<OracleImage> {
    let directory = base.parent().expect("the log has a directory");
    let prefix = base.file_name().expect("the log has a name");
    let mut images: Vec<OracleImage> = fs::read_dir(directory)
        .expect("the directory of the logs is readable")
        .map(|entry| entry.expect("the directory of the logs is readable").path())
        .filter_map(|path| {
            let name = path.file_name()?.as_bytes();
            let numbers = name.strip_prefix(prefix.as_bytes())?.strip_prefix(b".")?;
            let (_, image) = std::str::from_utf8(numbers).ok()?.split_once('.')?;
            Some(read_log(&path, image.parse().ok()?))
        })
        .collect();
    images.sort_by_key(|image| (image.pid, image.image));
    images
}

fn read_log(path: &Path, image: u32) -> OracleImage {
    let file = File::open(path).expect("the oracle's log is readable");
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).expect("the oracle sizes its log before it logs");
    assert_eq!(&header[..8], b"MSORACLE", "{} is not a log of the oracle", path.display());
    let number = |offset| u32_at(&header, offset);
    assert_eq!(
        (number(8), number(12)),
        (1, RECORD_BYTES as u32),
        "the log is of another version of the oracle"
    );
    let capacity = u64_at(&header, 32);
    let count = u64_at(&header, COUNT_OFFSET);
    assert!(count <= capacity, "the oracle's log overflowed: {count} events, room for {capacity}");
    let exe = header[EXE_OFFSET..COUNT_OFFSET]
        .split(|byte| *byte == 0)
        .next()
        .expect("split yields at least one");

    let mut calls = Vec::new();
    let mut record = [0; RECORD_BYTES];
    for slot in 0..count {
        reader.read_exact(&mut record).expect("the log has room for all it counts");
        if record[0] == 0 {
            continue; // the first moment of a realloc, or a process that was killed here
        }
        calls.push(OracleCall {
            function: OracleFunction::from_id(record[0]),
            thread: u32_at(&record, 4),
            old_address: u64_at(&record, 8),
            result_address: u64_at(&record, 16),
            size: u64_at(&record, 24),
            alignment: u64_at(&record, 32),
            begin: u64_at(&record, 40),
            end: slot,
        });
    }
    OracleImage {
        pid: number(16),
        image,
        parent_pid: number(20),
        forked: number(24) != 0,
        exe: PathBuf::from(OsStr::from_bytes(exe)),
        calls,
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("the slice has 8 bytes"))
}

/// The totals that add up over processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OracleCounts {
    pub allocations: u64,
    pub allocated_bytes: u64,
    pub frees: u64,
    pub freed_bytes: u64,
    /// Calls of realloc and reallocarray that ended one block and began another.
    pub reallocations: u64,
    pub failed_allocations: u64,
    pub live_blocks: u64,
    pub live_bytes: u64,
    pub temporary_allocations: u64,
    pub unknown_frees: u64,
    pub inherited_frees: u64,
    /// free(NULL), which is no event.
    pub null_frees: u64,
}

impl OracleCounts {
    /// By their names in `totals` of the JSON export.
    pub fn by_name(&self) -> [(&'static str, u64); 10] {
        [
            ("allocations", self.allocations),
            ("allocated_bytes", self.allocated_bytes),
            ("frees", self.frees),
            ("freed_bytes", self.freed_bytes),
            ("reallocations", self.reallocations),
            ("failed_allocations", self.failed_allocations),
            ("live_blocks", self.live_blocks),
            ("live_bytes", self.live_bytes),
            ("temporary_allocations", self.temporary_allocations),
            ("unknown_frees", self.unknown_frees),
        ]
    }
}

impl std::ops::AddAssign for OracleCounts {
    fn add_assign(&mut self, other: OracleCounts) {
        self.allocations += other.allocations;
        self.allocated_bytes += other.allocated_bytes;
        self.frees += other.frees;
        self.freed_bytes += other.freed_bytes;
        self.reallocations += other.reallocations;
        self.failed_allocations += other.failed_allocations;
        self.live_blocks += other.live_blocks;
        self.live_bytes += other.live_bytes;
        self.temporary_allocations += other.temporary_allocations;
        self.unknown_frees += other.unknown_frees;
        self.inherited_frees += other.inherited_frees;
        self.null_frees += other.null_frees;
    }
}

/// What one process image did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OracleTotals {
    pub counts: OracleCounts,
    /// Live bytes and blocks at the first moment of the largest sum of live bytes.
    pub peak_live_bytes: u64,
    pub peak_live_blocks: u64,
    /// How many allocations there were of each (address, size).
    pub allocated: HashMap<(u64, u64), u64>,
    /// How often each address was freed, by free or realloc; unknown and inherited frees are not here.
    pub freed: HashMap<u64, u64>,
    /// Address and size of the blocks alive at the end.
    pub live: HashMap<u64, u64>,
}

struct LiveBlock {
    size: u64,
    thread: u32,
    /// How many allocations its thread had made, this one included.
    allocations_of_thread: u64,
}

impl OracleTotals {
    pub fn of(image: &OracleImage) -> OracleTotals {
        // A realloc is two events, at two places in the order.
        enum Event {
            Ended(u64),
            Began(u64),
        }
        let mut totals = OracleTotals::default();
        let mut events = Vec::new();
        for call in &image.calls {
            if let Some(address) = call.ended() {
                events.push((call.begin, Event::Ended(address), call));
            }
            if let Some(address) = call.began() {
                events.push((call.end, Event::Began(address), call));
            }
            let counts = &mut totals.counts;
            counts.reallocations += u64::from(call.ended().is_some() && call.began().is_some());
            counts.failed_allocations += u64::from(call.failed());
            counts.null_frees +=
                u64::from(call.function == OracleFunction::Free && call.old_address == 0);
        }
        // Places are unique, but for a realloc in a list written by hand: stable, so it ends before it begins.
        events.sort_by_key(|(place, _, _)| *place);

        let mut live: HashMap<u64, LiveBlock> = HashMap::new();
        let mut allocations_by_thread: HashMap<u32, u64> = HashMap::new();
        for (_, event, call) in events {
            let counts = &mut totals.counts;
            match event {
                Event::Ended(address) => match live.remove(&address) {
                    Some(block) => {
                        counts.frees += 1;
                        counts.freed_bytes += block.size;
                        counts.live_blocks -= 1;
                        counts.live_bytes -= block.size;
                        let none_since = allocations_by_thread.get(&call.thread)
                            == Some(&block.allocations_of_thread);
                        counts.temporary_allocations +=
                            u64::from(block.thread == call.thread && none_since);
                        *totals.freed.entry(address).or_default() += 1;
                    }
                    None if image.forked => counts.inherited_frees += 1,
                    None => counts.unknown_frees += 1,
                },
                Event::Began(address) => {
                    let allocations_of_thread =
                        allocations_by_thread.entry(call.thread).or_default();
                    *allocations_of_thread += 1;
                    let block = LiveBlock {
                        size: call.size,
                        thread: call.thread,
                        allocations_of_thread: *allocations_of_thread,
                    };
                    let before = live.insert(address, block);
                    assert!(
                        before.is_none(),
                        "the oracle's log is wrong: {address:#x} began while it was alive"
                    );
                    counts.allocations += 1;
                    counts.allocated_bytes += call.size;
                    counts.live_blocks += 1;
                    counts.live_bytes += call.size;
                    *totals.allocated.entry((address, call.size)).or_default() += 1;
                    if counts.live_bytes > totals.peak_live_bytes {
                        totals.peak_live_bytes = counts.live_bytes;
                        totals.peak_live_blocks = counts.live_blocks;
                    }
                }
            }
        }
        totals.live = live.into_iter().map(|(address, block)| (address, block.size)).collect();
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(forked: bool, calls: Vec<OracleCall>) -> OracleImage {
        OracleImage {
            pid: 10,
            image: 0,
            parent_pid: 1,
            forked,
            exe: PathBuf::from("/bin/true"),
            calls,
        }
    }

    /// Calls of one after another, in thread 10.
    fn totals(calls: &[OracleCall]) -> OracleTotals {
        let mut calls = calls.to_vec();
        for (place, call) in calls.iter_mut().enumerate() {
            call.begin = place as u64;
            call.end = place as u64;
        }
        OracleTotals::of(&image(false, calls))
    }

    fn call(
        function: OracleFunction,
        old_address: u64,
        result_address: u64,
        size: u64,
    ) -> OracleCall {
        OracleCall {
            function,
            thread: 10,
            old_address,
            result_address,
            size,
            alignment: 0,
            begin: 0,
            end: 0,
        }
    }

    fn malloc(address: u64, size: u64) -> OracleCall {
        call(OracleFunction::Malloc, 0, address, size)
    }

    fn free(address: u64) -> OracleCall {
        call(OracleFunction::Free, address, 0, 0)
    }

    fn realloc(old: u64, address: u64, size: u64) -> OracleCall {
        call(OracleFunction::Realloc, old, address, size)
    }

    #[test]
    fn allocations_minus_frees_are_live() {
        let totals = totals(&[malloc(1, 100), malloc(2, 50), free(1), free(0), malloc(1, 7)]);
        assert_eq!(
            totals.counts,
            OracleCounts {
                allocations: 3,
                allocated_bytes: 157,
                frees: 1,
                freed_bytes: 100,
                live_blocks: 2,
                live_bytes: 57,
                null_frees: 1,
                ..OracleCounts::default()
            }
        );
        assert_eq!((totals.peak_live_bytes, totals.peak_live_blocks), (150, 2));
        assert_eq!(totals.allocated, HashMap::from([((1, 100), 1), ((2, 50), 1), ((1, 7), 1)]));
        assert_eq!(totals.freed, HashMap::from([(1, 1)]));
        assert_eq!(totals.live, HashMap::from([(1, 7), (2, 50)]));
    }

    #[test]
    fn a_realloc_is_one_free_and_one_allocation() {
        let moved = totals(&[malloc(1, 10), realloc(1, 2, 30)]).counts;
        let in_place = totals(&[malloc(1, 10), realloc(1, 1, 30)]).counts;
        assert_eq!(moved, in_place);
        assert_eq!(
            (moved.allocations, moved.frees, moved.reallocations, moved.live_bytes),
            (2, 1, 1, 30)
        );
        assert_eq!((moved.allocated_bytes, moved.freed_bytes), (40, 10));
    }

    #[test]
    fn realloc_at_its_edges() {
        let from_nothing = totals(&[realloc(0, 1, 10)]).counts;
        assert_eq!(
            (from_nothing.allocations, from_nothing.frees, from_nothing.reallocations),
            (1, 0, 0)
        );
        let to_nothing = totals(&[malloc(1, 10), realloc(1, 0, 0)]).counts;
        assert_eq!(
            (to_nothing.frees, to_nothing.failed_allocations, to_nothing.reallocations),
            (1, 0, 0)
        );
        let failed = totals(&[malloc(1, 10), realloc(1, 0, u64::MAX)]).counts;
        assert_eq!((failed.frees, failed.failed_allocations, failed.live_bytes), (0, 1, 10));
    }

    #[test]
    fn failures_are_no_allocations() {
        let counts = totals(&[malloc(0, 10), call(OracleFunction::Calloc, 0, 0, u64::MAX)]).counts;
        assert_eq!(
            (counts.allocations, counts.allocated_bytes, counts.failed_allocations),
            (0, 0, 2)
        );
    }

    #[test]
    fn a_zero_sized_block_is_a_block() {
        let counts = totals(&[malloc(1, 0)]).counts;
        assert_eq!((counts.allocations, counts.live_blocks, counts.live_bytes), (1, 1, 0));
    }

    #[test]
    fn temporary_means_same_thread_and_nothing_in_between() {
        let at_once = totals(&[malloc(1, 10), free(1)]).counts;
        assert_eq!(at_once.temporary_allocations, 1);
        let nested = totals(&[malloc(1, 10), malloc(2, 10), free(2), free(1)]).counts;
        assert_eq!(nested.temporary_allocations, 1);
        let elsewhere = totals(&[malloc(1, 10), OracleCall { thread: 11, ..free(1) }]).counts;
        assert_eq!(elsewhere.temporary_allocations, 0);
        let other_thread_between =
            totals(&[malloc(1, 10), OracleCall { thread: 11, ..malloc(2, 10) }, free(1)]).counts;
        assert_eq!(other_thread_between.temporary_allocations, 1);
        let resized = totals(&[malloc(1, 10), realloc(1, 1, 20), free(1)]).counts;
        assert_eq!(resized.temporary_allocations, 2);
    }

    #[test]
    fn a_child_frees_what_it_inherited() {
        let calls = vec![
            free(1),
            OracleCall { begin: 1, end: 1, ..malloc(1, 10) },
            OracleCall { begin: 2, end: 2, ..free(1) },
            OracleCall { begin: 3, end: 3, ..realloc(2, 3, 20) },
        ];
        let child = OracleTotals::of(&image(true, calls.clone())).counts;
        assert_eq!(
            (child.allocations, child.frees, child.inherited_frees, child.unknown_frees),
            (2, 1, 2, 0)
        );
        let stranger = OracleTotals::of(&image(false, calls)).counts;
        assert_eq!((stranger.inherited_frees, stranger.unknown_frees), (0, 2));
    }

    /// Thread 11 gets the block that thread 10's realloc has left before that realloc returns.
    #[test]
    fn the_two_moments_of_a_realloc_are_kept_apart() {
        let calls = vec![
            malloc(1, 10),
            OracleCall { thread: 11, begin: 2, end: 2, ..malloc(1, 11) },
            OracleCall { begin: 1, end: 3, ..realloc(1, 2, 500) },
        ];
        let totals = OracleTotals::of(&image(false, calls));
        assert_eq!(totals.live, HashMap::from([(1, 11), (2, 500)]));
        assert_eq!(totals.counts.freed_bytes, 10);
    }

    #[test]
    fn an_impossible_log_is_refused() {
        let refused = std::panic::catch_unwind(|| totals(&[malloc(1, 10), malloc(1, 10)]));
        let why = refused.err().and_then(|why| why.downcast_ref::<String>().cloned());
        assert!(
            why.as_ref().is_some_and(|why| why.contains("began while it was alive")),
            "{why:?}"
        );
    }
}
