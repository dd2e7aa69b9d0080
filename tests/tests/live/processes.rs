//! Many processes: children that are followed, and processes that are traced by what they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memscope_tests::oracle::{self, LOG_VARIABLE};
use memscope_tests::stacks::{self, Compiler};
use memscope_tests::{Figures, OracleImage, OracleTotals, TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Running, Scratch, is_installed, number, run, skip, wait_until};

/// What `totals` of a process has, by the oracle's names.
const TOTALS: [&str; 8] = [
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "failed_allocations",
    "temporary_allocations",
    "live_blocks",
    "live_bytes",
];

pub(crate) fn of_process(process: &Value, key: &str) -> u64 {
    number(&process["totals"], key)
}

fn has_done_something(process: &Value) -> bool {
    of_process(process, "allocations") + of_process(process, "frees") > 0
}

/// Every image that the oracle has seen, against the entries of the same process, in order. Those that
/// did nothing may be missing on either side. Gives how many images were compared.
fn assert_images_equal(processes: &[Value], images: &[OracleImage]) -> usize {
    let mut by_pid: BTreeMap<u32, Vec<OracleTotals>> = BTreeMap::new();
    for image in images {
        let totals = OracleTotals::of(image);
        let counts = totals.counts;
        // A child that only frees what it has inherited is in no process's sums.
        if counts.allocations + counts.frees > 0 {
            by_pid.entry(image.pid).or_default().push(totals);
        }
    }
    let mut compared = 0;
    for (pid, expected) in &by_pid {
        let of_pid = processes.iter().filter(|process| process["pid"] == *pid);
        let busy: Vec<&Value> = of_pid.filter(|process| has_done_something(process)).collect();
        assert_eq!(busy.len(), expected.len(), "images of process {pid}: {busy:#?}");
        for (process, totals) in busy.iter().zip(expected) {
            let counts: BTreeMap<_, _> = totals.counts.by_name().into_iter().collect();
            for key in TOTALS {
                assert_eq!(of_process(process, key), counts[key], "{key} of {process:#}");
            }
            compared += 1;
        }
    }
    compared
}

/// A shell script with a tree of processes: `width` branches, each a subshell with three programs.
fn tree_script(folder: &Path, width: usize) -> PathBuf {
    let script = folder.join("tree.sh");
    let text = format!(
        "for branch in $(seq {width}); do\n  ( ls / > /dev/null; x=$(expr $branch + 1); sh -c 'echo $0 > /dev/null' $x )\ndone\n"
    );
    fs::write(&script, text).unwrap();
    script
}

/// A branch is a subshell that becomes `sh`, `ls`, and the subshell of `$()` that becomes `expr`.
const PROCESSES_OF_BRANCH: usize = 3;
const BRANCHES: usize = 70;

#[test]
fn every_allocation_of_a_tree_of_200_processes_is_recorded_once() {
    let scratch = Scratch::new();
    let script = tree_script(&scratch.path(""), BRANCHES);
    let base = scratch.path("log");
    let mut command = scratch.trace_program(&["--strict"], "bash", &[script.to_str().unwrap()]);
    oracle::preload(&mut command, &base);
    run(&mut command).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let images = oracle::read_logs(&base);
    let pids: std::collections::BTreeSet<u32> = images.iter().map(|image| image.pid).collect();
    assert!(pids.len() > BRANCHES * PROCESSES_OF_BRANCH, "{} processes", pids.len());
    // Memscope itself has the oracle in it, but is no target.
    let traced: Vec<OracleImage> =
        images.into_iter().filter(|image| !image.exe.ends_with("memscope")).collect();
    let compared = assert_images_equal(export.list("processes"), &traced);
    assert!(compared > BRANCHES * PROCESSES_OF_BRANCH, "{compared} images");
    let inherited: u64 =
        traced.iter().map(|image| OracleTotals::of(image).counts.inherited_frees).sum();
    assert_eq!(export.total("inherited_frees"), inherited);
    assert_eq!(export.total("unknown_frees"), 0);
    eprintln!(
        "{} processes, {compared} images equal the oracle's, {inherited} inherited frees",
        pids.len()
    );
}

fn numbers(row: &[&str]) -> Vec<u64> {
    row.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn children_by_spawn_and_vfork_are_followed_from_their_exec() {
    let scratch = Scratch::new();
    let program = programs::build("vforker.c", Variant::Default);
    let finished = run(&mut scratch.trace_program(&["--strict"], program, &["6", "50"]));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let figures = Figures::parse(&finished.stdout);
    let children = figures.rows("child");
    assert_eq!((children.len(), export.list("processes").len()), (6, 7));
    for row in children.iter().chain(&figures.rows("parent")) {
        let [pid, allocations, bytes, frees, live_blocks, live_bytes] = numbers(row)[..] else {
            panic!("{row:?}");
        };
        let process = export.processes_of(pid)[0];
        for (key, expected) in [
            ("allocations", allocations),
            ("allocated_bytes", bytes),
            ("frees", frees),
            ("live_blocks", live_blocks),
            ("live_bytes", live_bytes),
        ] {
            assert_eq!(of_process(process, key), expected, "{key} of {process:#}");
        }
        assert_eq!((&process["end"], &process["exit_status"]), (&"exit".into(), &0.into()));
        assert!(process["exe"].as_str().unwrap().contains("vforker"), "{process:#}");
    }
    let by_reason = &export.0["stacks"];
    assert_eq!(number(by_reason, "truncated"), 0, "{by_reason}");
}

#[test]
fn children_are_left_alone_if_asked_for() {
    let scratch = Scratch::new();
    let program = programs::build("forker.c", Variant::Default);
    let options = ["--strict", "--no-follow"];
    let finished = run(&mut scratch.trace_program(&options, program, &["100", "40", "30"]));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    assert_eq!(export.list("processes").len(), 1);
    let parent = numbers(&Figures::parse(&finished.stdout).rows("parent")[0]);
    assert_eq!(export.total("allocations"), parent[1]);
    assert_eq!(export.total("inherited_frees"), 0);
}

/// Attached by `--pid`, whose probes are in the targets only, a child is probed when it is noticed.
#[test]
fn a_child_of_an_attached_process_is_followed_and_said_to_be_probed_late() {
    let scratch = Scratch::new();
    let script = "while read line; do (exec sleep 0.3); done";
    let mut shell = Command::new("bash");
    shell.args(["-c", script]).stdin(std::process::Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mut orders = shell.stdin.take().unwrap();
    let memscope = scratch.attach(&[], &[shell.id()]);
    for _ in 0..3 {
        std::io::Write::write_all(&mut orders, b"go\n").unwrap();
    }
    drop(orders);
    assert!(shell.wait().unwrap().success());
    memscope.finish().assert_code(0);
    let export = scratch.export();
    let children: Vec<&Value> = export
        .list("processes")
        .iter()
        .filter(|process| number(process, "pid") != u64::from(shell.id()))
        .collect();
    let forked: Vec<_> = children.iter().filter(|child| !child["parent"].is_null()).collect();
    assert_eq!(forked.len(), 3, "{children:#?}");
    assert!(forked.iter().all(|child| child["probed_late"] == true), "{forked:#?}");
    assert!(!export.is_complete(), "{}", export.0["trust"]);
}

/// Thousands of short-lived processes: all counted, none left attached.
#[test]
fn a_storm_of_5000_forks_is_recorded_whole() {
    let scratch = Scratch::new();
    let program = programs::build("storm.c", Variant::Default);
    let finished = run(&mut scratch.trace_program(&["--strict"], program, &["5000"]));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    assert_eq!(export.list("processes").len(), 5001);
    let figures = Figures::parse(&finished.stdout);
    assert_eq!(export.total("allocations"), figures.number("allocations"));
    assert_eq!(export.total("frees"), figures.number("frees"));
    assert_eq!(export.total("inherited_frees"), 5000);
    let statuses = export.list("processes").iter().filter(|process| process["exit_status"] == 3);
    assert_eq!(statuses.count(), 5000 / 8);
}

/// Starts `memscope trace`, and waits until it records.
pub(crate) fn trace_selected(scratch: &Scratch, options: &[&str]) -> Running {
    let mut memscope = Running::spawn(&mut scratch.trace(options));
    wait_until("memscope records what it was asked for", || {
        assert!(!memscope.has_ended(), "memscope ended: {}", memscope.stderr());
        scratch.dump().lines().any(|line| line.starts_with("counters "))
    });
    memscope
}

pub(crate) fn by_comm<'a>(export: &'a Export, comm: &str) -> Vec<&'a Value> {
    export.list("processes").iter().filter(|process| process["comm"] == comm).collect()
}

#[test]
fn programs_are_traced_by_their_name_now_and_later() {
    let scratch = Scratch::new();
    let named = |folder: &str, source: &str| {
        let path = scratch.path(folder).join("named");
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::copy(programs::build(source, Variant::Default), &path).unwrap();
        path
    };
    let (first, second) = (named("first", "paced.c"), named("second", "vforker.c"));
    let mut before = Running::spawn(Command::new(&first).args(["2000", "1"]));
    let memscope = trace_selected(&scratch, &["--comm", "named"]);
    let finished = run(Command::new(&second).args(["child", "50"]));
    finished.assert_code(0);
    run(Command::new("ls").arg("/")).assert_code(0);
    wait_until("the first one ends", || before.has_ended());
    memscope.end_by(libc::SIGINT).assert_code(0);
    let export = scratch.export();
    let traced = by_comm(&export, "named");
    assert_eq!((traced.len(), export.list("processes").len()), (2, 2), "{traced:#?}");
    assert_eq!((&traced[0]["from_start"], &traced[1]["from_start"]), (&false.into(), &true.into()));
    let row = numbers(&Figures::parse(&finished.stdout).rows("child")[0]);
    assert_eq!(of_process(traced[1], "allocations"), row[1]);
    assert_eq!(traced[1]["probed_late"], false);
}

/// Nobody of that name runs when the trace begins: the C library is probed before anybody has come.
#[test]
fn the_first_program_of_a_name_is_seen_from_its_first_allocation() {
    let scratch = Scratch::new();
    let path = scratch.path("lonely");
    fs::copy(programs::build("pairs.c", Variant::Default), &path).unwrap();
    let memscope = trace_selected(&scratch, &["--comm", "lonely", "--strict"]);
    run(Command::new(&path).args(["500", "48"])).assert_code(0);
    memscope.end_by(libc::SIGINT).assert_code(0);
    let export = scratch.export();
    let traced = by_comm(&export, "lonely");
    assert_eq!(of_process(traced[0], "allocations"), 500, "{traced:#?}");
    assert_eq!(traced[0]["probed_late"], false);
}

/// A group in the freezer's hierarchy, or whatever is there; removed at the end.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Group> {
        let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"];
        let top = tops.iter().find(|top| Path::new(top).join("cgroup.procs").exists())?;
        Group::make_in(Path::new(top))
    }

    fn make_in(top: &Path) -> Option<Group> {
        let path = top.join(format!("memscope-test-{}", std::process::id()));
        fs::create_dir(&path).ok().map(|()| Group(path))
    }

    /// What a shell does first to be in it.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} stays", self.0.display());
    }
}

fn assert_traced_with_all_that_begins_in_it(group: &Group, scratch: &Scratch) {
    let script = format!("{}; read line; ls / > /dev/null; ls / > /dev/null", group.enter());
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).stdin(std::process::Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    wait_until("the shell is in its group", || {
        fs::read_to_string(group.0.join("cgroup.procs")).unwrap().contains(&shell.id().to_string())
    });
    let memscope = trace_selected(scratch, &["--cgroup", group.0.to_str().unwrap()]);
    run(Command::new("ls").arg("/")).assert_code(0);
    drop(shell.stdin.take());
    assert!(shell.wait().unwrap().success());
    memscope.end_by(libc::SIGINT).assert_code(0);
    let export = scratch.export();
    let pid = u64::from(shell.id());
    assert_eq!(export.processes_of(pid).len(), 1);
    let lists = by_comm(&export, "ls");
    assert_eq!(lists.len(), 2, "those of the group: {lists:#?}");
    assert_eq!(of_process(lists[0], "allocations"), of_process(lists[1], "allocations"));
    assert!(of_process(lists[0], "allocations") > 10);
}

#[test]
fn a_control_group_is_traced_with_all_that_begins_in_it() {
    let Some(group) = Group::make() else {
        return skip("--cgroup", "no hierarchy of control groups can be written to here");
    };
    assert_traced_with_all_that_begins_in_it(&group, &Scratch::new());
}

/// A hierarchy of version 2, mounted beside what is there.
struct Unified(PathBuf);

impl Unified {
    fn mount(folder: PathBuf) -> Option<Unified> {
        fs::create_dir(&folder).unwrap();
        let mut mount = Command::new("mount");
        let mounted = run(mount.args(["-t", "cgroup2", "none"]).arg(&folder));
        (mounted.code == Some(0)).then_some(Unified(folder))
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        // Should somebody be in it still, it is gone when they are.
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// Of these groups the eBPF side knows by itself who is in them.
#[test]
fn a_control_group_of_version_2_is_traced_with_all_that_begins_in_it() {
    let scratch = Scratch::new();
    let Some(unified) = Unified::mount(scratch.path("unified")) else {
        return skip("--cgroup of version 2", "it cannot be mounted here");
    };
    let Some(group) = Group::make_in(&unified.0) else {
        return skip("--cgroup of version 2", "no group can be made in it");
    };
    assert_traced_with_all_that_begins_in_it(&group, &scratch);
}

/// A program and what it reads from the environment of its oracle.
fn with_oracle(base: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    oracle::preload(&mut command, base).args(arguments);
    command
}

/// Requests to the server in each round, each of which allocates.
const REQUESTS: u64 = 2000;

/// A server, of which no client has asked anything yet.
fn server(scratch: &Scratch) -> Running {
    let socket = scratch.path("redis.sock");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket);
    let server = Running::spawn(server.current_dir(scratch.path("")));
    wait_until("the server listens", || socket.exists());
    server
}

fn ask(scratch: &Scratch) {
    let mut client = Command::new("redis-benchmark");
    client.args(["-q", "-t", "set", "-n", &REQUESTS.to_string(), "-s"]);
    run(client.arg(scratch.path("redis.sock"))).assert_code(0);
}

/// The rows of `--view processes` in the form and the order of the export's list, which has call chains with it that are
/// too many to be held.
fn processes_of_report(report: &Value) -> Vec<Value> {
    let rows = report["rows"].as_array().unwrap().iter();
    let mut processes: Vec<Value> = rows
        .map(|row| {
            let mut process = row.clone();
            process["totals"] = row.clone();
            process
        })
        .collect();
    processes.sort_by_key(|process| number(process, "process"));
    assert_eq!(number(report, "process_count"), processes.len() as u64);
    processes
}

/// How long everything is traced, and how long a round of the load takes with the pause after it.
const MINUTE: Duration = Duration::from_secs(60);
const ROUND: Duration = Duration::from_secs(5);

/// Python, git, and a compiler with its children, again and again; and a server, which does not run with the oracle.
#[test]
fn everything_on_the_machine_is_traced_for_a_minute_and_equals_each_oracle() {
    let scratch = Scratch::new();
    let base = scratch.path("log");
    // The oracle's own file is probed once a process has it.
    let mut keeper = Running::spawn(&mut with_oracle(&base, "sleep", &["1000"]));
    let memscope = trace_selected(&scratch, &["--all"]);
    let begun = Instant::now();
    let source = scratch.path("hello.c");
    fs::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"hello\") < 0; }\n")
        .unwrap();
    let (source, object) = (source.to_str().unwrap().to_owned(), scratch.path("hello"));
    let folder = scratch.path("repository");
    let folder = folder.to_str().unwrap();
    let mut loads: Vec<(&str, Vec<&str>)> = Vec::new();
    for (program, arguments) in [
        ("python3", vec!["-c", "import json; json.dumps([{'a': [i] * 9} for i in range(500)])"]),
        ("git", vec!["init", "-q", folder]),
        ("gcc", vec!["-O1", "-o", object.to_str().unwrap(), &source]),
    ] {
        if is_installed(program) {
            loads.push((program, arguments));
        } else {
            skip(program, "it is not installed");
        }
    }
    let serves = is_installed("redis-server") && is_installed("redis-benchmark");
    let server = serves.then(|| server(&scratch));
    let mut rounds = 0;
    while begun.elapsed() < MINUTE {
        let round_begun = Instant::now();
        for (program, arguments) in &loads {
            run(&mut with_oracle(&base, program, arguments)).assert_code(0);
        }
        if serves {
            ask(&scratch);
        }
        rounds += 1;
        std::thread::sleep(ROUND.saturating_sub(round_begun.elapsed()));
    }
    if let Some(server) = server {
        server.end_by(libc::SIGTERM).assert_code(0);
    }
    let pid = memscope.pid();
    memscope.end_by(libc::SIGINT).assert_code(0);
    keeper.signal(libc::SIGKILL);
    wait_until("the keeper ends", || keeper.has_ended());
    assert_eq!(scratch.verify(), Some(0));
    let report = scratch.report_json("processes");
    assert_eq!(report["trust"]["lost_events"], 0, "{}", report["trust"]);
    let processes = processes_of_report(&report);
    assert!(processes.iter().all(|process| process["pid"] != pid), "nothing of memscope's own");
    let images: Vec<OracleImage> = oracle::read_logs(&base)
        .into_iter()
        .filter(|image| image.pid != keeper.pid() && !image.calls.is_empty())
        .collect();
    if serves {
        // Its file is probed a moment after it was seen first.
        let mut servers = processes.iter().filter(|process| process["comm"] == "redis-server");
        let server = servers.next().unwrap();
        assert!(of_process(server, "allocations") > REQUESTS * (rounds - 1), "{server:#}");
    }
    let compared = assert_images_equal(&processes, &images);
    assert!(compared > loads.len() * rounds as usize, "children, too: {compared}");
    eprintln!(
        "{compared} images of {} programs in {rounds} rounds equal the oracle's",
        loads.len()
    );
}

#[test]
fn excluded_programs_are_not_traced() {
    let scratch = Scratch::new();
    let script = "ls / > /dev/null; expr 1 + 1 > /dev/null; ls / > /dev/null";
    let options = ["--strict", "--exclude", "expr"];
    run(&mut scratch.trace_program(&options, "bash", &["-c", script])).assert_code(0);
    let export = scratch.export();
    assert_eq!((by_comm(&export, "ls").len(), by_comm(&export, "expr").len()), (2, 0));
}

/// A process that sees another file system, with its own copy of the C library, and other process numbers.
#[test]
fn a_process_in_its_own_namespaces_is_traced_and_symbolized() {
    if !is_installed("unshare") {
        return skip("namespaces", "unshare is not installed");
    }
    let scratch = Scratch::new();
    let program = programs::build("paced.c", Variant::Default);
    let root = scratch.path("root");
    let listed = run(Command::new("ldd").arg(&program));
    listed.assert_code(0);
    let libraries = listed.stdout.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries {
        let copy = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
    fs::copy(&program, root.join("inside")).unwrap();
    let mut outside = Command::new("unshare");
    outside
        .args(["--mount", "--pid", "--fork", "chroot"])
        .arg(&root)
        .args(["/inside", "3000", "1"]);
    let mut outside = Running::spawn(&mut outside);
    let inside = || {
        let children = format!("/proc/{0}/task/{0}/children", outside.pid());
        let child = fs::read_to_string(children).ok()?.trim().parse::<u32>().ok()?;
        let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "inside").then_some(child)
    };
    wait_until("the program runs inside", || inside().is_some());
    let pid = inside().unwrap();
    let memscope = scratch.attach(&[], &[pid]);
    wait_until("it ends", || outside.has_ended());
    memscope.finish().assert_code(0);
    let export = scratch.export();
    assert_eq!(export.lost(), 0);
    assert!(export.total("allocations") > 100, "{}", export.0["totals"]);
    let sites = export.list("sites");
    let largest = sites.iter().max_by_key(|site| number(site, "allocations")).unwrap();
    let names: Vec<_> = largest["frames"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|frame| frame["function"].as_str())
        .collect();
    assert!(names.contains(&"main"), "{names:?}");
    assert_eq!(number(&export.0["stacks"], "truncated"), 0, "{}", export.0["stacks"]);
}

/// Those that end while they are attached to are no failure.
#[test]
fn processes_that_end_during_the_attach_are_passed_over() {
    let scratch = Scratch::new();
    let script = "for i in $(seq 300); do /bin/true; done; echo done";
    let mut storm = Command::new("bash");
    let mut storm = Running::spawn(storm.args(["-c", script]));
    for _ in 0..2 {
        let mut command = scratch.trace(&["--all", "--duration", "300ms"]);
        let finished = run(&mut command);
        finished.assert_code(0);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }
    wait_until("the storm ends", || storm.has_ended());
    assert_eq!(storm.stdout().trim(), "done");
}

/// One with the C library's allocator in a library of its own, one with another C library inside it.
#[test]
fn targets_with_different_c_libraries_are_traced_together() {
    if !is_installed(Compiler::Musl.program()) {
        return skip("two C libraries at once", "musl-gcc is not installed");
    }
    let static_musl = stacks::build("forker.c", Compiler::Musl, &["-static", "-fno-builtin"]);
    let ours = programs::build("forker.c", Variant::Default);
    let mut programs: Vec<TestProgram> = [ours, static_musl]
        .iter()
        .map(|program| TestProgram::spawn(Command::new(program).args(["100", "40", "30", "wait"])))
        .collect();
    let pids: Vec<u32> = programs.iter_mut().map(TestProgram::wait_ready).collect();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&["--probes", "host"], &pids);
    programs.iter_mut().for_each(TestProgram::go);
    let figures: Vec<Figures> = programs.into_iter().map(|program| program.finish().0).collect();
    memscope.finish().assert_code(0);
    let export = scratch.export();
    assert_eq!(export.list("processes").len(), 4, "each has a child");
    for figures in &figures {
        for who in ["parent", "child"] {
            let row = numbers(&figures.rows(who)[0]);
            let process = export.processes_of(row[0])[0];
            assert_eq!(of_process(process, "allocations"), row[1], "{process:#}");
            assert_eq!(of_process(process, "live_bytes"), row[6], "{process:#}");
        }
    }
    assert_eq!(export.total("inherited_frees"), 2 * 41);
}

/// It takes a while to read them, and no longer.
#[test]
fn a_program_with_a_million_symbols_is_traced() {
    const SYMBOLS: usize = 1_000_000;
    let scratch = Scratch::new();
    let (assembly, source) = (scratch.path("many.s"), scratch.path("main.c"));
    let mut text = String::from(".text\n");
    for number in 0..SYMBOLS {
        text.push_str(&format!("symbol_{number}:\n.byte 0xc3\n"));
    }
    text.push_str(".section .note.GNU-stack,\"\",@progbits\n");
    fs::write(&assembly, text).unwrap();
    fs::write(&source, "#include <stdlib.h>\nint main(void) { return malloc(1234) == 0; }\n")
        .unwrap();
    let program = scratch.path("million");
    let mut gcc = Command::new("gcc");
    run(gcc.arg("-o").arg(&program).args([&source, &assembly])).assert_code(0);
    let begun = std::time::Instant::now();
    run(&mut scratch.trace_program(&["--strict"], &program, &[])).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let of_main = export.list("sites").iter().find(|site| number(site, "allocated_bytes") == 1234);
    let frames = of_main.unwrap()["frames"].as_array().unwrap();
    assert_eq!(frames[0]["function"], "main");
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("traced, read and exported in {seconds:.1} s");
    assert!(seconds < 20.0, "{seconds} s");
}

/// The oracle of a child, which logs by itself.
#[test]
fn an_oracle_in_each_process_is_what_children_inherit() {
    let scratch = Scratch::new();
    let program = programs::build_with_oracle("forker.c", Variant::Default);
    let base = scratch.path("log");
    let mut command = scratch.trace_program(&["--strict"], program, &["100", "40", "30"]);
    run(command.env(LOG_VARIABLE, &base)).assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    let images = oracle::read_logs(&base);
    assert_eq!(images.len(), 2);
    assert_eq!(assert_images_equal(export.list("processes"), &images), 2);
    assert_eq!(export.total("inherited_frees"), 41, "40 freed, one resized");
    let child = export.list("processes").iter().find(|process| !process["parent"].is_null());
    assert_eq!(number(child.unwrap(), "parent"), 0);
}
