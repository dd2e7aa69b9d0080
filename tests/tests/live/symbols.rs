//! Names from elsewhere than the traced file: maps of generated code, debug files that only the target sees.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use memscope_tests::{Figures, TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{Export, Scratch, number, run, wait_until};

/// A map that a program has left; removed with it.
struct MapFile(PathBuf);

impl MapFile {
    fn of(pid: u64) -> MapFile {
        MapFile(format!("/tmp/perf-{pid}.map").into())
    }
}

impl Drop for MapFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The frames of the one site of the generated chain, and the names that they should have.
fn generated<'a>(export: &'a Export, figures: &Figures) -> (&'a [Value], Vec<String>) {
    let rows = figures.rows("generated");
    let (size, count) = (rows[0][0].parse::<u64>().unwrap(), rows[0][1].parse::<u64>().unwrap());
    let names = rows[0][2..].join(" ").split(" <- ").map(str::to_owned).collect();
    let blocks: Vec<_> = export.blocks().into_iter().filter(|block| block.size == size).collect();
    assert_eq!(blocks.len() as u64, count);
    assert!(blocks.iter().all(|block| block.site == blocks[0].site), "one chain, one site");
    let site = export.list("sites").iter().find(|site| number(site, "site") == blocks[0].site);
    (site.unwrap()["frames"].as_array().unwrap(), names)
}

/// Generated functions by name, then the program's own with its line.
fn assert_generated(export: &Export, figures: &Figures) {
    let (frames, names) = generated(export, figures);
    let found: Vec<&str> = frames.iter().filter_map(|frame| frame["function"].as_str()).collect();
    assert_eq!(found[..names.len()], names, "{frames:#?}");
    assert_eq!(found[names.len()], "into_generated");
    for frame in &frames[..names.len()] {
        assert_eq!(frame["module"], "[jit]");
        assert!(frame["file"].is_null() && frame["line"].is_null() && frame["inlined"] == false);
        assert_ne!(frame["offset"], "0x0");
    }
    assert!(frames[names.len()]["file"].as_str().unwrap().ends_with("jit.c"));
}

#[test]
fn generated_code_has_the_names_of_its_map_whenever_that_is_written() {
    for arguments in [&["3", "300"][..], &["3", "300", "late"]] {
        let scratch = Scratch::new();
        let program = programs::build("jit.c", Variant::FramePointers);
        let finished = run(&mut scratch.trace_program(&[], program, arguments));
        finished.assert_code(0);
        let export = scratch.export();
        let _map = MapFile::of(number(&export.list("processes")[0], "pid"));
        export.assert_complete();
        assert_generated(&export, &Figures::parse(&finished.stdout));
        let report = scratch.report("leaks").stdout;
        assert!(report.contains("generated_inner  [jit]"), "{report}");
    }
}

/// The trace ends first, so the map is read while the program runs.
#[test]
fn generated_code_of_a_running_process_has_names() {
    let scratch = Scratch::new();
    let program = programs::build("jit.c", Variant::FramePointers);
    let mut program =
        TestProgram::spawn(Command::new(program).args(["3", "300", "late", "wait", "linger"]));
    let pid = program.wait_ready();
    let memscope = scratch.attach(&[], &[pid]);
    program.go();
    let figures = program.figures();
    let _map = MapFile::of(pid.into());
    memscope.end_by(libc::SIGINT).assert_code(0);
    assert_generated(&scratch.export(), &figures);
}

#[test]
fn generated_code_without_a_map_has_addresses() {
    let scratch = Scratch::new();
    let program = programs::build("jit.c", Variant::FramePointers);
    let mut program = TestProgram::spawn(Command::new(program).args(["3", "0", "late", "wait"]));
    let pid = program.wait_ready();
    // Of another user, whom nobody has to believe; and no link is followed.
    let map = MapFile::of(pid.into());
    let lies = scratch.path("lies");
    fs::write(&lies, "0 7fffffffffff lie\n").unwrap();
    std::os::unix::fs::symlink(&lies, &map.0).unwrap();
    let memscope = scratch.attach(&[], &[pid]);
    program.go();
    let (figures, status) = program.finish();
    assert!(
        !status.success() && figures.rows("generated").is_empty(),
        "it does not follow it either"
    );
    memscope.finish().assert_code(0);
    let export = scratch.export();
    assert_eq!(export.total("live_blocks"), 3);
    for site in export.list("sites") {
        let frame = &site["frames"][0];
        assert!(frame["function"].is_null() && frame["module"].is_null(), "{frame}");
        assert_ne!(frame["offset"], "0x0");
    }
}

/// A program in namespaces of its own: it sees another number and other files than memscope. The mount point
/// exists outside too, and is empty there.
fn in_container(scratch: &Scratch, set_up: &str, program: &str) -> (TestProgram, u32) {
    let mount = scratch.path("mount");
    fs::create_dir(&mount).unwrap();
    let script = format!(
        "mount -t tmpfs none {mount} && {set_up} && exec {program} wait linger",
        mount = mount.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", &script]);
    let mut unshare = TestProgram::spawn(&mut command);
    assert_eq!(unshare.wait_ready(), 1, "the program is the first in its namespace");
    let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
    let pid = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    (unshare, pid)
}

#[test]
fn a_container_has_its_own_map_of_generated_code() {
    let scratch = Scratch::new();
    let program = programs::build("jit.c", Variant::FramePointers);
    let mount = scratch.path("mount");
    // What is below /tmp is hidden by the new /tmp, so the program is reached from where it is.
    let set_up = format!(
        "mkdir {0}/tmp && cp {1} {0} && cd {0} && mount --bind {0}/tmp /tmp",
        mount.display(),
        program.display()
    );
    let (mut unshare, pid) = in_container(&scratch, &set_up, "./jit-c 3 300 late");
    let memscope = scratch.attach(&[], &[pid]);
    unshare.go();
    let figures = unshare.figures();
    unshare.go();
    unshare.finish();
    memscope.finish().assert_code(0);
    assert_generated(&scratch.export(), &figures);
}

#[test]
fn c39_a_debug_file_that_only_the_target_sees_is_found() {
    let scratch = Scratch::new();
    let program = programs::build("chain.c", Variant::DebugLink);
    let mount = scratch.path("mount");
    let set_up = format!("cp {0} {0}.debug {1}", program.display(), mount.display());
    let inside = mount.join(program.file_name().unwrap());
    let (mut unshare, pid) = in_container(&scratch, &set_up, inside.to_str().unwrap());
    let memscope = scratch.attach(&[], &[pid]);
    unshare.go();
    let figures = unshare.figures();
    // The mount is gone with the last process that sees it.
    wait_until("frames have names", || scratch.dump().contains("zeroed_step"));
    unshare.go();
    unshare.finish();
    memscope.finish().assert_code(0);
    assert!(!inside.exists(), "memscope does not see it there");
    assert_eq!(super::chains::assert_chains(&scratch.export(), &figures, "chain.c"), 5);
}
