//! What tracker and writer hold in memory: per live block, and after how many events.
//! Both are checked, so this fails where they are more than is promised.

#![expect(clippy::unwrap_used, reason = "a failure must stop the benchmark")]

use std::{fs, hint::black_box, process::Command};

use memscope::{
    lifetimes::Tracker,
    model::{Event, Item, ProbeId, ProcessId, StackId, ThreadId},
    reports::Analyzer,
    store::Writer,
};
use memscope_benches::{Server, Workload};

/// As in memscope itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LIVE_BLOCKS: u64 = 4_000_000;
const MAX_BYTES_PER_BLOCK: u64 = 64;
const FIRST_EVENTS: u64 = 1_000_000;
const ALL_EVENTS: u64 = 50_000_000;
const CACHED_BLOCKS: usize = 100_000;
const BATCH: usize = 10_000;
/// Growth that is no growth: what the allocator keeps in hand.
const SLACK_BYTES: u64 = 4 << 20;

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most that was ever resident, which has the moments in which tables grow.
fn most_resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn live_blocks() {
    let before = resident_bytes();
    let mut tracker = Tracker::new();
    for number in 0..LIVE_BLOCKS {
        let event = Event::Allocation {
            process: ProcessId(1),
            thread: ThreadId(number as u32 % 8),
            time_ns: number * 1000,
            address_avma: 0x5555_0000_0000 + number * 48,
            size_bytes: 32,
            stack: StackId(number as u32 % 1000),
            probe: ProbeId(1),
            interval_bytes: 0,
        };
        tracker.apply(&event, |_| {});
    }
    let (held, most) = (resident_bytes() - before, most_resident_bytes() - before);
    println!(
        "{LIVE_BLOCKS} live blocks: {:.1} bytes each, {:.1} at most at any time",
        held as f64 / LIVE_BLOCKS as f64,
        most as f64 / LIVE_BLOCKS as f64
    );
    assert_eq!(tracker.totals().live_blocks, LIVE_BLOCKS);
    assert!(most <= MAX_BYTES_PER_BLOCK * LIVE_BLOCKS);
    drop(black_box(tracker));
}

fn events() {
    let mut server = Server::new(CACHED_BLOCKS);
    let mut analyzer = Analyzer::default();
    let mut writer =
        Writer::new(std::io::sink(), &Workload::server(0, CACHED_BLOCKS).capture()).unwrap();
    let (mut batch, mut count, mut at_first) = (Vec::new(), 0, 0);
    while count < ALL_EVENTS {
        batch.clear();
        server.fill(&mut batch, BATCH);
        for event in &batch {
            let item = Item::Event(*event);
            analyzer.apply(&item, |_| {});
            writer.push(&item).unwrap();
        }
        count += BATCH as u64;
        if count == FIRST_EVENTS {
            at_first = resident_bytes();
        }
        if count % (10 * FIRST_EVENTS) == 0 || count == FIRST_EVENTS {
            println!(
                "{count} events: {:.1} MiB resident, tracker {:.1} MiB, {} blocks live",
                resident_bytes() as f64 / f64::from(1 << 20),
                analyzer.tracker().held_bytes() as f64 / f64::from(1 << 20),
                server.expected().live_blocks,
            );
        }
    }
    writer.flush().unwrap();
    println!("{:.2} bytes per event", writer.written_bytes() as f64 / count as f64);
    assert_eq!(analyzer.tracker().totals().live_bytes, server.expected().live_bytes);
    assert!(resident_bytes() <= at_first + SLACK_BYTES, "memory grows with events");
}

/// Each part has a process of its own, so that none gets memory that the other left.
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("live-blocks") => live_blocks(),
        Some("events") => events(),
        _ => {
            for part in ["live-blocks", "events"] {
                let this = std::env::current_exe().unwrap();
                assert!(Command::new(this).arg(part).status().unwrap().success(), "{part}");
            }
        }
    }
}
