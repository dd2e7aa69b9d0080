//! How long it takes until a process is recorded, and until memscope has let go of it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use memscope_tests::{TestProgram, Variant, programs, stacks};

use crate::kit::{Scratch, wait_until};

const LIBRARIES: usize = 200;
/// Of processor time, as other work on the machine does not change it much.
const MOST_WORK: Duration = Duration::from_millis(1500);
/// What is wanted is 300 and 200 ms on a quiet machine.
const MOST_TO_ATTACH: Duration = Duration::from_secs(15);
const MOST_TO_DETACH: Duration = Duration::from_secs(5);

/// A program that allocates all the time, with many libraries.
fn server_with_libraries() -> TestProgram {
    let folder = stacks::many_libraries(LIBRARIES);
    let libraries: Vec<String> = (0..LIBRARIES)
        .map(|number| folder.join(format!("lib{number:03}.so")).to_str().unwrap().to_owned())
        .collect();
    let mut command = Command::new(programs::build("server.c", Variant::Default));
    command.args(["2", "100", "1000"]).env("LD_PRELOAD", libraries.join(":"));
    TestProgram::spawn(&mut command)
}

/// `CLOCK_MONOTONIC`, in which recordings are.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it points to a timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a process has worked since it began.
fn work(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, numbers) = stat.rsplit_once(')').unwrap();
    let ticks = numbers.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // SAFETY: sysconf takes a number and gives one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis(ticks * 1000 / per_second)
}

/// When the first event was recorded.
fn first_event_ns(dump: &str) -> Option<u64> {
    let number = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok();
    let started_ns = number(dump.split_once("started_at_ns=")?.1)?;
    let events = ["allocation +", "free +"];
    let after_ns = dump
        .lines()
        .find_map(|line| number(events.iter().find_map(|event| line.strip_prefix(event))?))?;
    Some(started_ns + after_ns)
}

#[test]
fn a_process_with_200_libraries_is_recorded_soon_and_let_go_of_soon() {
    let mut server = server_with_libraries();
    let pid = server.wait_ready();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(maps.lines().filter(|line| line.contains("/lib199.so")).count() > 0, "{maps}");
    // The first time, tables of what these programs use are made and kept on disk.
    for round in ["first", "second"] {
        let scratch = Scratch::new();
        let begun_ns = now_ns();
        let memscope = scratch.attach(&["--strict"], &[pid]);
        let work = work(memscope.pid());
        let mut first_event = None;
        wait_until("events are saved", || {
            first_event = first_event_ns(&scratch.dump());
            first_event.is_some()
        });
        let attaching = Duration::from_nanos(first_event.unwrap() - begun_ns);
        let ending = Instant::now();
        memscope.end_by(libc::SIGINT).assert_code(0);
        let detaching = ending.elapsed();
        eprintln!(
            "{round} time: first event after {attaching:?} ({work:?} of work), let go of after {detaching:?}"
        );
        assert!(work < MOST_WORK, "{work:?}");
        assert!(attaching < MOST_TO_ATTACH, "{attaching:?}");
        assert!(detaching < MOST_TO_DETACH, "{detaching:?}");
    }
    server.signal(libc::SIGTERM);
    let (figures, status) = server.finish();
    assert!(status.success() && figures.number("damaged") == 0, "{status}");
}
