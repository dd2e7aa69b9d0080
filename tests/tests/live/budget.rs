//! `--max-overhead`: what is spent is kept, what is recorded is of windows of time and says so, and what happens while
//! nothing is probed is found out afterwards.

use std::time::Duration;

use memscope_tests::{Figures, TestProgram, Variant, programs, resources};
use serde_json::Value;

use crate::attach::start;
use crate::bpf;
use crate::contract::assert_figures;
use crate::kit::{Export, Running, Scratch, number, run, wait_until};
use crate::rungs::ways;

/// So little that after the first window the probes are taken off for as long as they ever are.
const NEXT_TO_NOTHING: [&str; 2] = ["--max-overhead", "0.1%"];
const USUAL: [&str; 2] = ["--max-overhead", "5%"];
const USUAL_PPM: u64 = 50_000;
/// What the budget may be missed by.
const TOLERANCE_PPM: u64 = 20_000;
/// Blocks of this size are drawn for certain, if a byte in one is drawn.
const SURE_BYTES: &str = "64";
/// In a gap, the targets are looked at so often.
const LONGEST_WAIT_NS: u64 = 250_000_000;
/// A change at half of a program's time falls into a gap nine times out of ten.
const MOST_ROUNDS: u32 = 5;

/// A stretch of time in which the target was observed, on the clock of the recording.
#[derive(Clone, Copy, Debug)]
struct Window {
    from_ns: u64,
    until_ns: u64,
    observed_cpu_ns: u64,
    missed_cpu_ns: u64,
    interval_bytes: u64,
}

fn windows(export: &Export) -> Vec<Window> {
    let list = export.0["budget"]["windows"].as_array().expect("a recording with a budget");
    list.iter()
        .map(|window| Window {
            from_ns: number(window, "from_monotonic_ns"),
            until_ns: number(window, "until_monotonic_ns"),
            observed_cpu_ns: number(window, "observed_cpu_ns"),
            missed_cpu_ns: number(window, "missed_cpu_ns"),
            interval_bytes: number(window, "interval_bytes"),
        })
        .collect()
}

/// Whether nothing was probed then.
fn is_in_gap(windows: &[Window], time_ns: u64) -> bool {
    windows.iter().all(|window| !(window.from_ns..=window.until_ns).contains(&time_ns))
}

fn assert_in_order(windows: &[Window]) {
    for pair in windows.windows(2) {
        assert!(pair[0].until_ns <= pair[1].from_ns, "{pair:?}");
    }
    assert!(windows.iter().all(|window| window.from_ns <= window.until_ns), "{windows:?}");
}

/// How fast the kernel takes back the memory of a process that ends, at least: 16 GB/s were measured.
const TAKEN_BACK_BYTES_PER_NS: u64 = 8;

/// Of all processor time that the targets used, it is known whether they were observed; but of that of processes whose
/// parent is another one and has waited for them, only what they had used when they were last looked at.
fn assert_all_time_is_told(export: &Export, cpu_ns: u64, ended_alone: u64) {
    assert_all_time_is_told_but(export, cpu_ns, ended_alone, 0);
}

/// The same of a program that ends with so many bytes in its blocks, which the kernel takes back then.
fn assert_all_time_is_told_but(export: &Export, cpu_ns: u64, ended_alone: u64, live_bytes: u64) {
    let told: u64 = windows(export).iter().map(|w| w.observed_cpu_ns + w.missed_cpu_ns).sum();
    let budget = &export.0["budget"];
    assert_eq!(told, number(budget, "observed_cpu_ns") + number(budget, "missed_cpu_ns"));
    // Their beginning and their end are no part of what the programs measure.
    let most = cpu_ns + cpu_ns / 50 + 100_000_000 + live_bytes / TAKEN_BACK_BYTES_PER_NS;
    let least = cpu_ns - cpu_ns / 50 - ended_alone * LONGEST_WAIT_NS;
    assert!((least..=most).contains(&told), "{told} ns of {cpu_ns} ns: {budget}");
}

/// What holds for every recording of a program at work whose probes come and go.
fn assert_kept(export: &Export) {
    let budget = &export.0["budget"];
    eprintln!(
        "{} of {} ppm spent, {} ppm observed in {} windows",
        budget["spent_ppm"], budget["limit_ppm"], budget["observed_ppm"], budget["window_count"]
    );
    assert_eq!(number(budget, "limit_ppm"), USUAL_PPM);
    let spent = number(budget, "spent_ppm");
    assert!(spent.abs_diff(USUAL_PPM) <= TOLERANCE_PPM, "{budget}");
    assert!(number(budget, "missed_cpu_ns") > 0, "there were gaps: {budget}");
    assert!(number(budget, "window_count") > 1, "{budget}");
    assert_in_order(&windows(export));
    assert!(!export.is_complete(), "{}", export.0["trust"]);
    assert!(export.0["trust"].as_str().unwrap().contains("of the work observed"));
    // Calls that were under way when a window ended have no result; nothing else is lost.
    let loss = &export.0["loss"];
    assert_eq!(export.lost(), number(&loss["by_cause"], "return_not_seen"), "{loss}");
    let windows = number(budget, "window_count");
    assert!(export.lost() <= 2 * windows, "one at a time was under way: {loss}");
}

fn trace_paced(options: &[&str], arguments: &[&str]) -> (Figures, Export) {
    let program = programs::build("paced.c", Variant::Default);
    let scratch = Scratch::new();
    let traced = run(&mut scratch.trace_program(options, program, arguments));
    traced.assert_code(0);
    assert_eq!(scratch.verify(), Some(0));
    (Figures::parse(&traced.stdout), scratch.export())
}

#[test]
fn a_program_that_allocates_little_is_observed_all_the_time() {
    let options = ["--strict", "--max-overhead", "50%"];
    let (figures, export) = trace_paced(&options, &["1500", SURE_BYTES, "50000"]);
    export.assert_complete();
    assert_figures(&export, &figures);
    let budget = &export.0["budget"];
    assert_eq!(number(budget, "missed_cpu_ns"), 0, "{budget}");
    assert_eq!(number(budget, "observed_ppm"), 1_000_000, "{budget}");
    assert_eq!(number(budget, "scale_ppm"), 1_000_000, "{budget}");
    assert!(number(budget, "spent_ppm") < 500_000, "{budget}");
    let [window] = windows(&export)[..] else { panic!("one window: {budget}") };
    assert_eq!(window.interval_bytes, 1);
    assert_all_time_is_told(&export, figures.number("cpu_ns"), 0);
    assert_eq!(number(&export.0["exact"], "calls"), figures.number("allocations"));
}

/// On each way of attaching; on each, the probes are gone at the end.
#[test]
fn a_budget_is_kept_by_a_program_that_does_nothing_but_allocate() {
    for way in ways() {
        let before = bpf::held();
        let options = [USUAL[0], USUAL[1], "--attach-by", way];
        let (figures, export) = trace_paced(&options, &["8000", SURE_BYTES]);
        eprint!("by {way}: ");
        assert_kept(&export);
        assert_all_time_is_told(&export, figures.number("cpu_ns"), 0);
        assert!(export.total("allocations") > 0, "{}", export.0["totals"]);
        // At most the one that is alive, of the program's; what it frees in a gap is not known to live.
        assert!(export.total("live_blocks") <= 2, "{}", export.0["totals"]);
        assert!(number(&export.0["exact"], "calls") <= figures.number("allocations"));
        bpf::assert_back_to(before);
    }
}

#[test]
fn a_target_that_ends_while_nothing_is_probed_is_accounted_for() {
    for round in 1..=MOST_ROUNDS {
        let mut programs =
            ["1500", "6000"].map(|ms| start("paced.c", &[ms, SURE_BYTES, "wait", "linger"]));
        let pids = programs.each_mut().map(TestProgram::wait_ready);
        let scratch = Scratch::new();
        let memscope = scratch.attach(&USUAL, &pids);
        programs.iter_mut().for_each(TestProgram::go);
        let mut cpu_ns = 0;
        for (mut program, pid) in programs.into_iter().zip(pids) {
            cpu_ns += program.figures().number("cpu_ns");
            assert!(resources::cpu_ns(pid).is_ok(), "it lingers");
            let (_, status) = program.finish();
            assert!(status.success(), "{status}");
        }
        memscope.finish().assert_code(0);
        let export = scratch.export();
        assert_kept(&export);
        assert_all_time_is_told(&export, cpu_ns, 2);
        for pid in pids {
            let [process] = export.processes_of(pid.into())[..] else { panic!("one of {pid}") };
            assert_eq!(process["end"], "exit");
            assert!(export.sum_of(number(process, "process"), "allocations") > 0, "{pid}");
        }
        let ended = number(export.processes_of(pids[0].into())[0], "end_monotonic_ns");
        if is_in_gap(&windows(&export), ended) {
            return;
        }
        eprintln!("round {round}: it ended in a window");
    }
    panic!("it never ended in a gap");
}

/// Traces a program that changes what it is at half of its time, until that was while nothing was probed.
fn changed_in_a_gap(options: &[&str], change: &str) -> (Figures, Export) {
    for round in 1..=MOST_ROUNDS {
        let (figures, export) = trace_paced(options, &["10000", SURE_BYTES, "0", change]);
        if is_in_gap(&windows(&export), figures.number("changed_ns")) {
            return (figures, export);
        }
        eprintln!("round {round}: it changed in a window");
    }
    panic!("it never changed in a gap");
}

#[test]
fn a_library_that_is_loaded_while_nothing_is_probed_is_seen_in_the_next_window() {
    for way in ways() {
        let plugin = format!("plugin={}", programs::plugin_library(Variant::Default).display());
        let (figures, export) =
            changed_in_a_gap(&[USUAL[0], USUAL[1], "--attach-by", way], &plugin);
        assert_kept(&export);
        let live_bytes = figures.number("live_bytes");
        assert_all_time_is_told_but(&export, figures.number("cpu_ns"), 0, live_bytes);
        let is_of_plugin = |site: &&Value| site["frames"][0]["function"] == "plugin_leak";
        let site = export.list("sites").iter().find(is_of_plugin).expect("it allocates");
        assert_eq!(site["stack"], "complete", "{site}");
        // They all live, but none is followed beyond its window.
        assert!(number(&site["estimate"], "sampled_blocks") > 0, "{site}");
        assert_eq!(number(&site["estimate"], "freed_sampled_blocks"), 0, "{site}");
        assert!(number(site, "live_blocks") <= figures.number("live_blocks"), "{site}");
    }
}

#[test]
fn an_image_that_is_executed_while_nothing_is_probed_is_probed_in_the_next_window() {
    for way in ways() {
        let (_, export) = changed_in_a_gap(&[USUAL[0], USUAL[1], "--attach-by", way], "exec");
        assert_kept(&export);
        let pid = number(&export.list("processes")[0], "pid");
        let images = export.processes_of(pid);
        for image in &images[images.len() - 2..] {
            let allocations = export.sum_of(number(image, "process"), "allocations");
            assert!(allocations > 0, "by {way}: nothing is seen of {image}");
        }
    }
}

/// memscope is held while its target ends, so that it finds the end and the time for the next window at once. A process
/// that nobody has waited for is there still, and cannot be probed.
#[test]
fn a_target_that_has_ended_when_it_is_to_be_probed_again_ends_the_trace_as_ever() {
    for _ in 0..8 {
        let mut program = start("paced.c", &["60000", SURE_BYTES, "wait"]);
        let pid = program.wait_ready();
        let scratch = Scratch::new();
        let memscope = scratch.attach(&[USUAL[0], USUAL[1], "--attach-by", "perf-event"], &[pid]);
        program.go();
        let windows = window_count(&scratch);
        wait_until("a window is over", || window_count(&scratch) > windows);
        memscope.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(1200));
        program.signal(libc::SIGKILL);
        std::thread::sleep(Duration::from_millis(100));
        memscope.signal(libc::SIGCONT);
        memscope.finish().assert_code(0);
        assert_eq!(scratch.verify(), Some(0));
        program.finish();
    }
}

fn window_count(scratch: &Scratch) -> usize {
    scratch.dump().lines().filter(|line| line.starts_with("window ")).count()
}

/// Kills memscope; its target notices nothing and nothing of it is left.
fn kill(options: &[&str], is_gap: bool) {
    let before = bpf::held();
    let mut program = start("paced.c", &["3000", SURE_BYTES, "50000", "wait"]);
    let pid = program.wait_ready();
    let scratch = Scratch::new();
    let memscope: Running = scratch.attach(options, &[pid]);
    program.go();
    if is_gap {
        wait_until("the first window is over", || window_count(&scratch) > 0);
    } else {
        wait_until("allocations are saved", || scratch.dump().contains("allocation +"));
    }
    bpf::assert_more_than(&before);
    let killed = memscope.end_by(libc::SIGKILL);
    assert_eq!(killed.signal, Some(libc::SIGKILL));
    assert_eq!(window_count(&scratch), usize::from(is_gap), "it was killed when it should be");
    assert_eq!(scratch.verify(), Some(3), "cut off, and says so");
    let export = scratch.export();
    assert!(!export.is_complete());
    bpf::assert_back_to(before);
    let (figures, status) = program.finish();
    assert!(status.success() && figures.number("cpu_ns") >= 3_000_000_000, "{status}");
}

#[test]
fn killing_memscope_in_a_window_or_a_gap_leaves_nothing_behind() {
    kill(&["--max-overhead", "100%"], false);
    kill(&NEXT_TO_NOTHING, true);
}

#[test]
fn drawing_begins_at_the_interval_that_is_asked_for() {
    let options = [USUAL[0], USUAL[1], "--sample", "4KiB"];
    let (_, export) = trace_paced(&options, &["3000", SURE_BYTES]);
    assert_eq!(number(&export.0["capture"], "sampling_interval_bytes"), 4096);
    let windows = windows(&export);
    assert!(windows.iter().all(|window| window.interval_bytes >= 4096), "{windows:?}");
    assert_eq!(windows[0].interval_bytes, 4096);
}

#[test]
fn strict_is_not_satisfied_with_gaps() {
    let program = programs::build("paced.c", Variant::Default);
    let scratch = Scratch::new();
    let options = ["--strict", USUAL[0], USUAL[1]];
    let traced = run(&mut scratch.trace_program(&options, program, &["2000"]));
    traced.assert_code(3);
    let last = traced.stderr.trim_end().lines().last().unwrap();
    assert!(last.starts_with("INCOMPLETE: ") && last.contains("of the work observed"), "{last}");
}

/// A target that waits is not looked at more often because nothing happens.
#[test]
fn a_target_that_does_nothing_is_left_alone_but_for_a_look_now_and_then() {
    let mut server = start("paced.c", &["100", "64", "wait"]);
    let pid = server.wait_ready();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&USUAL, &[pid]);
    let cpu_before = resources::cpu_ns(memscope.pid()).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let cpu_ns = resources::cpu_ns(memscope.pid()).unwrap() - cpu_before;
    eprintln!("memscope used {} ms in 3 s", cpu_ns / 1_000_000);
    assert!(cpu_ns < 150_000_000, "{cpu_ns}");
    server.go();
    let (_, status) = server.finish();
    assert!(status.success(), "{status}");
    memscope.finish().assert_code(0);
}
