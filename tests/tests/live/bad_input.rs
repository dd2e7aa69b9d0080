//! Bad input: the right exit code, one line that says why, nothing left behind, no panic.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use memscope_tests::{Variant, memscope_binary, programs};

use crate::attach::start;
use crate::kit::{Finished, NOBODY, Running, Scratch, memscope, run};

fn assert_no_panic(finished: &Finished) {
    assert_eq!(finished.signal, None, "{finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
}

/// Refused with one line that mentions the cause.
fn assert_refused(finished: &Finished, mentions: &str) {
    assert_no_panic(finished);
    finished.assert_code(1);
    let [line] = finished.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("one line, not {finished:?}");
    };
    assert!(line.starts_with("memscope: ") && line.contains(mentions), "{mentions:?} in {line}");
}

fn assert_trace_refused(scratch: &Scratch, command: &mut Command, mentions: &str) {
    assert_refused(&run(command), mentions);
    assert!(!scratch.recording().exists(), "nothing is left behind");
}

#[test]
fn c20_processes_that_cannot_be_traced_are_refused() {
    let scratch = Scratch::new();
    let no_such = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let no_such = no_such.trim();
    assert_trace_refused(&scratch, &mut scratch.trace(&["--pid", no_such]), "there is no process");
    // Its own number is that of the shell which it takes the place of.
    let mut own = scratch.trace(&[]);
    own = {
        let mut shell = Command::new("sh");
        let words = std::iter::once(own.get_program()).chain(own.get_args());
        shell.args(["-c", r#"exec "$@" --pid $$"#, "sh"]).args(words);
        shell
    };
    assert_trace_refused(&scratch, &mut own, "itself");
    assert_trace_refused(&scratch, &mut scratch.trace(&["--pid", "2"]), "thread of the kernel");

    let mut program = start("noalloc.c", &[]);
    let pid = program.wait_ready().to_string();
    assert_trace_refused(&scratch, &mut scratch.trace(&["--pid", &pid]), "no known allocator");
    let (figures, status) = program.finish();
    assert!(status.success() && figures.number("done") == 1, "it goes on");
}

#[test]
fn c20_commands_that_cannot_run_are_refused() {
    let scratch = Scratch::new();
    let mut missing = scratch.trace_program(&[], "no-such-command", &[]);
    assert_trace_refused(
        &scratch,
        &mut missing,
        "cannot run no-such-command: there is no such file",
    );
    let mut missing = scratch.trace_program(&[], "/nowhere/command", &[]);
    assert_trace_refused(&scratch, &mut missing, "/nowhere/command");
    let text = scratch.path("text");
    fs::write(&text, "no program").unwrap();
    let mut not_executable = scratch.trace_program(&[], &text, &[]);
    assert_trace_refused(&scratch, &mut not_executable, "not executable");
    let mut folder = scratch.trace_program(&[], "/tmp", &[]);
    assert_trace_refused(&scratch, &mut folder, "cannot run /tmp");
}

#[test]
fn c20_places_that_cannot_be_written_are_refused() {
    let scratch = Scratch::new();
    let trace_to = |path: &str| run(memscope().args(["trace", "-o", path, "--", "true"]));
    assert_refused(&trace_to("/nowhere/t.mscope"), "/nowhere/t.mscope");
    assert_refused(&trace_to("/tmp"), "/tmp");
    assert_refused(&trace_to("/dev/full"), "No space left on device");
    assert!(Path::new("/dev/full").exists(), "a device is not removed");
    // In a folder that others can write to, a link must not lead root anywhere.
    let (link, elsewhere) = (scratch.path("link"), scratch.path("elsewhere"));
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    assert_refused(&trace_to(link.to_str().unwrap()), "link");
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
}

#[test]
fn c24_contradictory_options_are_refused() {
    let scratch = Scratch::new();
    let recording = scratch.recording();
    let recording = recording.to_str().unwrap();
    for wrong in [
        &["trace", "-o", recording][..],
        &["trace", "-o", recording, "--pid", "1", "--", "true"],
        &["trace", "-o", recording, "--pid", "0"],
        &["trace", "-o", recording, "--pid", "1", "--duration", "soon"],
        &["trace", "-o", recording, "--pid", "1", "--ring-buffer", "much"],
        &["trace", "-o", recording, "--pid", "1", "--ring-buffer", "5000"],
        &["export", recording, "--format", "pprof", "--blocks"],
        &["export", recording, "--format", "json", "--weight", "live"],
        &["export", recording, "--format", "xml"],
        &["report", recording, "--view", "tea-leaves"],
        &["no-such-command"],
        &[],
    ] {
        let finished = run(memscope().args(wrong));
        assert_no_panic(&finished);
        finished.assert_code(2);
        assert!(!finished.stderr.is_empty(), "{wrong:?}");
    }
    assert!(!scratch.recording().exists());
}

#[test]
fn c20_without_root_the_missing_capabilities_are_named() {
    // Others may not even reach the place of the build.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let (copy, recording) = (folder.path().join("memscope"), folder.path().join("t.mscope"));
    fs::copy(memscope_binary(), &copy).unwrap();
    let mut command = Command::new(copy);
    command.args(["trace", "-o"]).arg(&recording).args(["--", "true"]);
    let finished = run(command.current_dir(&folder).uid(NOBODY).gid(NOBODY));
    assert_refused(&finished, "CAP_BPF");
    assert!(
        finished.stderr.contains("CAP_PERFMON") && finished.stderr.contains("sudo"),
        "{finished:?}"
    );
    assert!(!recording.exists());
}

/// It ends before, while and after probes are attached.
#[test]
fn c20_a_process_that_exits_while_attaching_is_no_disaster() {
    let mut refused = 0;
    for step in 0..12 {
        let scratch = Scratch::new();
        let seconds = format!("0.{:02}", 3 * step);
        let process = Running::spawn(Command::new("sleep").arg(seconds));
        let finished = run(scratch.trace(&["--pid"]).arg(process.pid().to_string()));
        assert_no_panic(&finished);
        if finished.code == Some(0) {
            assert_eq!(scratch.verify(), Some(0));
            continue;
        }
        refused += 1;
        assert_refused(&finished, &process.pid().to_string());
        assert!(!scratch.recording().exists(), "nothing is left behind");
    }
    eprintln!("{refused} of 12 processes had ended before they could be traced");
}

/// A small file system of its own, unmounted when dropped.
struct SmallFilesystem(tempfile::TempDir);

impl SmallFilesystem {
    fn new(size: &str) -> SmallFilesystem {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "memscope-test"]).arg(folder.path());
        run(&mut mount).assert_code(0);
        SmallFilesystem(folder)
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(self.0.path()));
        if unmounted.code != Some(0) {
            eprintln!("{}: {}", self.0.path().display(), unmounted.stderr);
        }
    }
}

#[test]
fn c20_a_disk_that_fills_up_ends_the_trace_and_leaves_what_was_saved_readable() {
    let disk = SmallFilesystem::new("64k");
    let recording = disk.0.path().join("t.mscope");
    let program = programs::build("pairs.c", Variant::Default);
    let mut command = memscope();
    command.args(["trace", "-o"]).arg(&recording).arg("--").arg(program).arg("300000");
    let finished = run(&mut command);
    assert_no_panic(&finished);
    finished.assert_code(1);
    let last = finished.stderr.trim_end().lines().last().unwrap();
    assert!(last.starts_with("memscope: ") && last.contains("No space left on device"), "{last}");
    assert_eq!(run(memscope().arg("verify").arg(&recording)).code, Some(3));
    let export = crate::kit::export(&recording);
    assert!(!export.is_complete());
    assert!(export.total("allocations") > 1000, "{}", export.0["totals"]);
}
