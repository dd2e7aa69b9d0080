//! A traced program never notices (C1, C25).

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use memscope_tests::{Variant, programs};

use crate::attach::start;
use crate::bpf;
use crate::kit::{Running, Scratch, is_installed, memscope, run, skip, wait_until};

/// How often a running program is attached to: `usual`, or more before a release.
fn rounds(usual: u32) -> u32 {
    match std::env::var("MEMSCOPE_ATTACH_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("MEMSCOPE_ATTACH_ROUNDS is a number"),
        Err(_) => usual,
    }
}

/// Attaches and detaches again and again; how many events that recorded in all.
fn attach_repeatedly(pid: u32, rounds: u32) -> u64 {
    let (begun, mut recorded) = (Instant::now(), 0);
    for _ in 0..rounds {
        let scratch = Scratch::new();
        let memscope = scratch.attach(&[], &[pid]);
        memscope.end_by(libc::SIGINT).assert_code(0);
        let export = scratch.export();
        export.assert_complete();
        recorded += export.total("allocations");
    }
    eprintln!("{rounds} rounds in {:.1} s, {recorded} allocations", begun.elapsed().as_secs_f64());
    recorded
}

#[test]
fn c25_a_server_never_notices_repeated_attaching() {
    let before = bpf::held();
    let mut server = start("server.c", &["2", "1000", "1000"]);
    let pid = server.wait_ready();
    assert!(attach_repeatedly(pid, rounds(10)) > 0);
    server.signal(libc::SIGTERM);
    let (figures, status) = server.finish();
    assert!(status.success(), "{status}");
    assert_eq!(figures.number("damaged"), 0, "every byte is as the server left it");
    assert!(figures.number("verified") > 1000);
    bpf::assert_back_to(before);
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start_redis(folder: &Path, port: u16) -> Running {
    let mut command = Command::new("redis-server");
    let port = port.to_string();
    command.args(["--port", &port, "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    Running::spawn(&mut command)
}

fn ask_redis(port: u16, question: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(format!("{question}\r\nQUIT\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// redis brings an allocator of its own in many distributions; then it counts as unknown to memscope.
#[test]
fn c25_redis_under_load_never_notices_repeated_attaching() {
    if !is_installed("redis-server") || !is_installed("redis-benchmark") {
        return skip("redis under load", "redis-server and redis-benchmark are not installed");
    }
    let before = bpf::held();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut redis = start_redis(folder.path(), port);
    wait_until("redis answers", || ask_redis(port, "PING").is_some_and(|a| a.starts_with("+PONG")));
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-q", "-l", "-t", "set,lpush,lrange_100", "-p", &port.to_string()]);
    let mut load = Running::spawn(&mut benchmark);
    let recorded = attach_repeatedly(redis.pid(), rounds(5));
    assert!(!load.has_ended() && !redis.has_ended(), "both go on");
    let answer = ask_redis(port, "PING").unwrap();
    assert!(answer.starts_with("+PONG"), "{answer}");
    assert!(recorded > 0, "and it allocates");
    load.end_by(libc::SIGTERM);
    let ended = redis.end_by(libc::SIGTERM);
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{ended:?}");
    bpf::assert_back_to(before);
}

#[test]
fn c25_python_at_work_never_notices_repeated_attaching() {
    let Some(python) = crate::oracle::python() else {
        return skip("python at work", "there is no python3");
    };
    let before = bpf::held();
    let code = "import json, signal, sys\n\
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n\
                while True: assert json.loads(json.dumps(list(range(5000)))) == list(range(5000))";
    let mut running = Running::spawn(Command::new(python).args(["-c", code]));
    wait_until("python is at work", || {
        let maps = fs::read_to_string(format!("/proc/{}/maps", running.pid())).unwrap_or_default();
        maps.contains("_json")
    });
    assert!(attach_repeatedly(running.pid(), rounds(2)) > 0);
    assert!(!running.has_ended(), "{}", running.stderr());
    running.end_by(libc::SIGTERM).assert_code(0);
    bpf::assert_back_to(before);
}

#[test]
fn c25_killing_memscope_leaves_the_target_running_and_the_recording_readable() {
    let before = bpf::held();
    let mut server = start("server.c", &["2", "1000", "1000"]);
    let pid = server.wait_ready();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&[], &[pid]);
    wait_until("allocations are saved", || scratch.dump().contains("allocation +"));
    bpf::assert_more_than(&before);
    let killed = memscope.end_by(libc::SIGKILL);
    assert_eq!(killed.signal, Some(libc::SIGKILL));

    assert_eq!(scratch.verify(), Some(3), "cut off, and says so");
    let export = scratch.export();
    assert!(!export.is_complete());
    assert!(export.total("allocations") > 0);
    let report = scratch.report("summary");
    assert!(
        report.stdout.trim_end().lines().last().unwrap().starts_with("INCOMPLETE: cut off"),
        "{report:?}"
    );
    assert!(report.stderr.contains("has no ending"), "{report:?}");

    server.signal(libc::SIGTERM);
    let (figures, status) = server.finish();
    assert!(status.success() && figures.number("damaged") == 0, "{status}");
    bpf::assert_back_to(before);
}

#[test]
fn c01_the_binary_and_the_environment_are_untouched() {
    let program = programs::build("mix.c", Variant::Default);
    let before = fs::read(&program).unwrap();
    let modified = fs::metadata(&program).unwrap().modified().unwrap();
    let plain = run(Command::new(&program).args(["2", "1000"]));
    let scratch = Scratch::new();
    let traced = run(&mut scratch.trace_program(&[], &program, &["2", "1000"]));
    assert_eq!(traced.assert_code(0).stdout, plain.stdout, "its output is the same");
    assert!(fs::read(&program).unwrap() == before, "its file is the same, byte by byte");
    assert_eq!(fs::metadata(&program).unwrap().modified().unwrap(), modified);

    let mut env = Command::new("env");
    env.current_dir(scratch.path("")).env_remove("SUDO_UID").env_remove("SUDO_GID");
    let plain = run(&mut env).stdout;
    let traced = run(&mut scratch.trace_program(&[], "env", &[]));
    assert_eq!(traced.assert_code(0).stdout, plain, "nothing is added to its environment");
}

/// Nothing of a failed start stays in the kernel either.
#[test]
fn c25_refused_traces_leave_nothing_in_the_kernel() {
    let before = bpf::held();
    let scratch = Scratch::new();
    for _ in 0..3 {
        run(&mut scratch.trace_program(&[], "no-such-command", &[])).assert_code(1);
        run(memscope().args(["trace", "--pid", "1", "-o", "/nowhere/t.mscope"])).assert_code(1);
    }
    bpf::assert_back_to(before);
}
