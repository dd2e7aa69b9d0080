//! Tracing of programs that run already, and how a trace ends.

use std::process::Command;

use memscope_tests::{TestProgram, Variant, programs};

use crate::contract::assert_figures;
use crate::kit::{Running, Scratch, number, run, wait_until};

pub(crate) fn start(source: &str, arguments: &[&str]) -> TestProgram {
    TestProgram::spawn(Command::new(programs::build(source, Variant::Default)).args(arguments))
}

fn assert_sound(scratch: &Scratch, memscope: Running) {
    memscope.finish().assert_code(0);
    assert_eq!(scratch.verify(), Some(0));
}

#[test]
fn a_running_process_is_recorded_until_it_ends() {
    for (source, arguments) in
        [("mix.c", ["8", "5000", "wait"]), ("pairs.c", ["20000", "48", "wait"])]
    {
        let mut program = start(source, &arguments);
        let pid = program.wait_ready();
        let scratch = Scratch::new();
        let memscope = scratch.attach(&["--strict"], &[pid]);
        program.go();
        let (figures, status) = program.finish();
        assert!(status.success(), "{source} notices nothing: {status}");
        assert_sound(&scratch, memscope);
        let export = scratch.export();
        export.assert_complete();
        assert_figures(&export, &figures);
        let process = &export.list("processes")[0];
        assert_eq!(number(process, "pid"), u64::from(pid));
        assert_eq!(process["from_start"], false);
        assert_eq!(process["end"], "exit");
    }
}

#[test]
fn several_processes_are_recorded_side_by_side() {
    let sizes = [("1000", "48"), ("2000", "80"), ("3000", "112")];
    let mut programs: Vec<TestProgram> =
        sizes.iter().map(|(count, size)| start("pairs.c", &[count, size, "wait"])).collect();
    let pids: Vec<u32> = programs.iter_mut().map(TestProgram::wait_ready).collect();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&[], &pids);
    programs.iter_mut().for_each(TestProgram::go);
    for (program, pid) in programs.into_iter().zip(&pids) {
        let (_, status) = program.finish();
        assert!(status.success(), "{pid}: {status}");
    }
    assert_sound(&scratch, memscope);
    let export = scratch.export();
    export.assert_complete();
    for (pid, (count, size)) in pids.iter().zip(sizes) {
        let [process] = export.processes_of(u64::from(*pid))[..] else {
            panic!("one entry for {pid}")
        };
        let (count, size): (u64, u64) = (count.parse().unwrap(), size.parse().unwrap());
        let process = number(process, "process");
        assert_eq!(export.sum_of(process, "allocations"), count);
        assert_eq!(export.sum_of(process, "allocated_bytes"), count * size);
        assert_eq!(export.sum_of(process, "frees"), count);
    }
}

/// The C library frees them in its own code, as it does with the cached blocks of a thread that ends: those are no frees.
#[test]
fn what_a_thread_closes_before_it_ends_is_freed() {
    for variant in [Variant::Default, Variant::Static] {
        let program = programs::build("threads_close.c", variant);
        let mut program = TestProgram::spawn(Command::new(program).args(["8", "wait"]));
        let pid = program.wait_ready();
        let scratch = Scratch::new();
        let memscope = scratch.attach(&["--strict"], &[pid]);
        program.go();
        let (figures, _) = program.finish();
        assert_sound(&scratch, memscope);
        let export = scratch.export();
        export.assert_complete();
        let closed = figures.number("closed");
        assert_eq!(export.total("unknown_frees"), closed, "{variant:?}");
        let internal = export.total("allocator_internal_frees");
        assert!(internal >= closed, "{variant:?}: {internal}");
    }
}

#[test]
fn blocks_from_before_the_attach_count_as_unknown_frees() {
    let mut server = start("server.c", &["2", "1000", "1000"]);
    let pid = server.wait_ready();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&[], &[pid]);
    server.signal(libc::SIGTERM);
    let (figures, status) = server.finish();
    assert!(status.success(), "the server found damage: {status}");
    assert_eq!(figures.number("damaged"), 0);
    assert_sound(&scratch, memscope);
    let export = scratch.export();
    export.assert_complete();
    // Each of its 2,000 slots held a block, but for the one that each thread was about to fill.
    let unknown = export.total("unknown_frees");
    assert!((1998..=2000).contains(&unknown), "{unknown}");
    assert_eq!(export.total("live_blocks"), 0, "it freed all");
    assert!(export.total("allocations") <= figures.number("allocations"));
    assert!(scratch.report("summary").stdout.contains("frees of blocks from before the trace"));
}

#[test]
fn a_duration_ends_the_trace_and_not_the_target() {
    let mut server = start("server.c", &["2", "1000", "1000"]);
    let pid = server.wait_ready();
    let scratch = Scratch::new();
    let finished = run(scratch.trace(&["--duration", "700ms", "--pid"]).arg(pid.to_string()));
    finished.assert_code(0);
    server.signal(libc::SIGTERM);
    let (_, status) = server.finish();
    assert!(status.success(), "the server found damage: {status}");
    assert_eq!(scratch.verify(), Some(0));
    let export = scratch.export();
    export.assert_complete();
    assert!(export.total("allocations") > 0);
    let duration_ns = number(&export.0["capture"], "duration_ns");
    assert!((700_000_000..10_000_000_000).contains(&duration_ns), "{duration_ns}");
    let process = &export.list("processes")[0];
    assert!(process["end"].is_null(), "it was alive at the end: {process}");
}

#[test]
fn interrupt_and_terminate_end_the_trace_cleanly() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut server = start("server.c", &["2", "1000", "1000"]);
        let pid = server.wait_ready();
        let scratch = Scratch::new();
        let finished = scratch.attach(&["--strict"], &[pid]).end_by(signal);
        finished.assert_code(0);
        server.signal(libc::SIGTERM);
        let (figures, status) = server.finish();
        assert!(status.success() && figures.number("damaged") == 0, "signal {signal}: {status}");
        assert_eq!(scratch.verify(), Some(0));
        let export = scratch.export();
        export.assert_complete();
        assert!(export.total("allocations") > 0);
        let last = finished.stderr.trim_end().lines().last().unwrap();
        assert!(last.starts_with("Complete: "), "the summary's last line says so: {last}");
    }
}

/// A command is asked to end as well, and traced until it has.
#[test]
fn terminating_memscope_ends_its_command_and_the_recording_is_whole() {
    let scratch = Scratch::new();
    let server = programs::build("server.c", Variant::Default);
    let mut memscope =
        Running::spawn(&mut scratch.trace_program(&[], server, &["1", "100", "1000"]));
    crate::kit::wait_until("the server serves", || {
        assert!(!memscope.has_ended(), "{}", memscope.stderr());
        memscope.stdout().contains("ready ")
    });
    let finished = memscope.end_by(libc::SIGTERM);
    finished.assert_code(0);
    assert!(finished.stdout.contains("damaged 0"), "{finished:?}");
    let export = scratch.export();
    export.assert_complete();
    assert_figures(&export, &memscope_tests::Figures::parse(&finished.stdout));
}

/// What happens to the threads after the end of the recording was counted, and read by nobody: then the numbers
/// contradicted each other, and no reader took the recording.
#[test]
fn a_trace_that_ends_while_threads_come_and_go_is_whole() {
    let mut program =
        Running::spawn(Command::new(programs::build("churn.c", Variant::Default)).arg("4"));
    let pid = program.pid().to_string();
    for options in [&[][..], &["--pages"], &["--sample", "1KiB"], &["--attach-by", "perf-event"]] {
        for _ in 0..3 {
            let scratch = Scratch::new();
            let mut trace = scratch.trace(&["--strict", "--duration", "200ms", "--pid", &pid]);
            let finished = run(trace.args(options));
            finished.assert_code(0);
            assert!(!finished.stderr.contains("error"), "{options:?}: {}", finished.stderr);
            assert_eq!(scratch.verify(), Some(0), "{options:?}");
        }
    }
    program.signal(libc::SIGKILL);
    wait_until("the program ends", || program.has_ended());
}
