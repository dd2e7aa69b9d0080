//! Stacks of programs without frame pointers, frame by frame, for every allocation they make.

use std::fs;
use std::path::PathBuf;

use memscope_tests::floor::{Floor, FloorProbe};
use memscope_tests::stacks::{self, Compiler};
use memscope_tests::{Figures, TestProgram, Variant, programs};

use crate::kit::Scratch;
use crate::stacks_kit::{
    assert_attached, assert_started, compilers, judge, trace_attached, trace_started,
};

const BOTH: [Compiler; 2] = [Compiler::Gcc, Compiler::Clang];

#[test]
fn stacks_in_c_are_exact_to_the_start_of_each_thread() {
    for compiler in compilers(&BOTH) {
        // As usual, bound lazily, and with landing marks at indirect calls and a second linkage table.
        for flags in [&[][..], &["-Wl,-z,lazy"], &["-fcf-protection=full", "-Wl,-z,lazy"]] {
            let program = stacks::build("stacks_depth.c", compiler, flags);
            assert_started(&format!("{compiler:?} {flags:?}"), &program, &[]);
        }
        let program = stacks::build("stacks_depth.c", compiler, &[]);
        assert_attached(&format!("{compiler:?}, attached"), &program, &[]);
    }
}

#[test]
fn stacks_of_a_static_program_at_a_fixed_address_are_exact() {
    for compiler in compilers(&BOTH) {
        let flags = ["-static", "-fno-pie", "-no-pie"];
        let program = stacks::build("stacks_depth.c", compiler, &flags);
        let (export, figures) = trace_started(&program, &[]);
        let judged = judge(&export, &stacks::expected(&figures), Some(&program));
        judged.assert_all_exact(&format!("{compiler:?}, static"));
    }
}

/// This C library has no unwind information about its own start; what is inside `main` is exact all the same.
#[test]
fn stacks_of_a_static_program_with_musl_are_exact_down_to_main() {
    for compiler in compilers(&[Compiler::Musl]) {
        let program = stacks::build("stacks_depth.c", compiler, &["-static"]);
        let (export, figures) = trace_started(&program, &[]);
        let judged = judge(&export, &stacks::expected(&to_main(&figures)), Some(&program));
        judged.assert_all_exact(&format!("{compiler:?}, static, down to main"));
    }
}

/// The same chains, with whatever lies outside `main` and the thread's function, and any outcome.
fn to_main(figures: &Figures) -> Figures {
    let lines = figures.texts("stack").into_iter().map(|line| {
        let line = line.split(" <- @libc").next().unwrap();
        let outcome = if line.contains(" depth_limit ") { " depth_limit " } else { " !nothing " };
        format!("stack {} <- *\n", line.replacen(" complete ", outcome, 1))
    });
    Figures::parse(&lines.collect::<String>())
}

#[test]
fn stacks_whose_callers_are_hard_to_find_are_exact() {
    for compiler in compilers(&BOTH) {
        for protection in ["-fcf-protection=none", "-fcf-protection=full"] {
            let name = format!("libstacks_library{protection}.so");
            let library = stacks::library("stacks_library.c", compiler, &[protection], &name);
            let library = library.to_str().unwrap();
            let flags = [protection, "-Wl,-z,lazy", library];
            let program = stacks::build("stacks_hard.c", compiler, &flags);
            assert_started(&format!("{compiler:?} {protection}"), &program, &[]);
        }
    }
}

#[test]
fn stacks_of_a_handler_are_exact_wherever_the_signal_struck() {
    for compiler in compilers(&BOTH) {
        let program = stacks::build("stacks_signal.c", compiler, &[]);
        for arguments in [&["2000", "100"][..], &["1000", "100", "altstack"]] {
            assert_started(&format!("{compiler:?} {arguments:?}"), &program, arguments);
        }
    }
}

#[test]
fn stacks_through_code_without_unwind_information_are_not_called_complete() {
    for compiler in compilers(&BOTH) {
        let program = stacks::build("stacks_asm.c", compiler, &[]);
        assert_started(&format!("{compiler:?}"), &program, &[]);
    }
}

#[test]
fn stacks_that_differ_far_from_the_allocator_only_are_exact() {
    for compiler in compilers(&BOTH) {
        let program = stacks::build("stacks_alike.c", compiler, &[]);
        assert_started(&format!("{compiler:?}"), &program, &[]);
    }
}

/// Told in the midst of what malloc calls, which others call as well, and which malloc calls again if it finds nothing.
#[test]
fn stacks_of_blocks_that_no_cache_has_are_exact() {
    for compiler in compilers(&BOTH) {
        let program = stacks::build("stacks_arena.c", compiler, &[]);
        for (how, (export, figures)) in [
            ("started", trace_started(&program, &[])),
            ("attached", trace_attached(&program, &[], |_| ())),
        ] {
            judge(&export, &stacks::expected(&figures), None)
                .assert_all_exact(&format!("{compiler:?}, {how}"));
            export.assert_complete();
            let failed = figures.number("failed_allocations");
            assert!(failed > 0, "{how}");
            assert_eq!(export.total("failed_allocations"), failed, "{how}");
        }
    }
}

#[test]
fn stacks_in_cpp_are_exact_while_exceptions_are_thrown_and_caught() {
    for compiler in compilers(&BOTH) {
        let program = stacks::build("stacks_cpp.cpp", compiler, &[]);
        assert_started(&format!("{compiler:?}"), &program, &[]);
    }
}

#[test]
fn stacks_in_rust_are_exact_while_it_panics() {
    assert_started("rustc", &stacks::build_rust("stacks_rust.rs"), &[]);
}

/// Libraries may come and go faster than tables are made. Then copies of the stacks are walked, by what was mapped
/// when they were made: a frame of the one library is never taken for one of the other.
#[test]
fn stacks_of_libraries_that_come_and_go_are_exact_at_reused_addresses() {
    for compiler in compilers(&BOTH) {
        let (first, second) = plugins(compiler);
        let program = stacks::build("stacks_dlopen.c", compiler, &[]);
        let arguments = [first.to_str().unwrap(), second.to_str().unwrap()];
        for (how, (export, figures)) in [
            ("started", trace_started(&program, &arguments)),
            ("attached", trace_attached(&program, &arguments, |_| ())),
        ] {
            assert!(figures.number("same_address") > 0, "the addresses never coincided");
            let judged = judge(&export, &stacks::expected(&figures), None);
            judged.assert_all_exact(&format!("{compiler:?}, {how}"));
        }
    }
}

#[test]
fn stacks_of_libraries_are_exact_once_they_are_known() {
    /// Of blocks allocated after the pause: see `stacks_plugin.c`.
    const AFTER_PAUSE: [u64; 2] = [5102, 5202];
    for compiler in compilers(&BOTH) {
        let (first, second) = plugins(compiler);
        let program = stacks::build("stacks_dlopen.c", compiler, &[]);
        let arguments = [first.to_str().unwrap(), second.to_str().unwrap(), "5", "20", "300"];
        let (export, figures) = trace_started(&program, &arguments);
        let mut expected = stacks::expected(&figures);
        judge(&export, &expected, None).assert_none_wrong(&format!("{compiler:?}, all"));
        expected.retain(|stack| AFTER_PAUSE.contains(&stack.size));
        let mut judged = judge(&export, &expected, None);
        // What was asked for in the constructors is among the others here.
        judged.others_incomplete = 0;
        judged.assert_all_exact(&format!("{compiler:?}, after a pause"));
        assert!(figures.number("same_address") > 0, "the addresses never coincided");
    }
}

fn plugins(compiler: Compiler) -> (PathBuf, PathBuf) {
    let plugin = |number: &str| {
        let define = format!("-DPLUGIN={number}");
        let name = format!("libplugin{number}.so");
        stacks::library("stacks_plugin.c", compiler, &[&define], &name)
    };
    (plugin("1"), plugin("2"))
}

/// A child has its parent's memory, and none of its parent's probes.
#[test]
fn stacks_of_a_forked_child_are_exact() {
    let program = stacks::build("stacks_depth.c", Compiler::Gcc, &[]);
    assert_attached("forked child", &program, &["20", "10000", "fork"]);
}

#[test]
fn stacks_are_exact_before_and_after_exec() {
    let program = stacks::build("stacks_depth.c", Compiler::Gcc, &[]);
    let figures = assert_started("exec, started", &program, &["20", "10000", "exec"]);
    assert_eq!(figures.texts("stack").len(), 2 * 9, "both images said what they did");
    assert_attached("exec, attached", &program, &["20", "10000", "exec"]);
}

/// The file that the process runs is not the one that its path leads to.
#[test]
fn stacks_of_a_program_that_was_deleted_or_replaced_are_exact() {
    let program = stacks::build("stacks_depth.c", Compiler::Gcc, &[]);
    let other = programs::build("pairs.c", Variant::Default);
    for replaced in [false, true] {
        let scratch = Scratch::new();
        let copy = scratch.path("stacks_depth");
        fs::copy(&program, &copy).unwrap();
        let mut running = TestProgram::spawn(std::process::Command::new(&copy).arg("wait"));
        let pid = running.wait_ready();
        fs::remove_file(&copy).unwrap();
        if replaced {
            fs::copy(&other, &copy).unwrap();
        }
        let memscope = scratch.attach(&["--strict"], &[pid]);
        running.go();
        let (figures, _) = running.finish();
        memscope.finish().assert_code(0);
        let judged = judge(&scratch.export(), &stacks::expected(&figures), None);
        judged.assert_all_exact(if replaced { "replaced" } else { "deleted" });
    }
}

/// The kernel has put an address of its own where the return address was, for each function whose return
/// another tracer waits for.
#[test]
fn stacks_are_exact_under_another_tracers_return_probes() {
    let program = stacks::build("stacks_depth.c", Compiler::Gcc, &[]);
    let mut probes = None;
    let (export, figures) = trace_attached(&program, &[], |pid| {
        let functions = ["step_002", "step_018", "step_049", "in_thread"];
        let at = functions.map(|function| FloorProbe::at_return_of(&program, function));
        probes = Some(Floor::attach(pid, &program, &at).unwrap());
    });
    drop(probes);
    judge(&export, &stacks::expected(&figures), None).assert_all_exact("under return probes");
}
