//! What is mapped by system calls, against a program that knows it.

use memscope_tests::{Variant, compare_mappings, programs};
use serde_json::Value;

use crate::kit::{Scratch, memscope, run, skip};

/// Why this kernel cannot observe system calls; none if it can.
fn refusal() -> Option<String> {
    let doctor = run(memscope().args(["doctor", "--json"]));
    doctor.assert_code(0);
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
    doctor["mappings_error"].as_str().map(str::to_owned)
}

#[test]
fn mappings_are_those_that_the_program_knows() {
    if let Some(refusal) = refusal() {
        return skip("mappings", &refusal);
    }
    let program = programs::build("mappings.c", Variant::Default);
    for options in [&["--mappings"][..], &["--mappings", "--sample", "1GiB"]] {
        let scratch = Scratch::new();
        let finished = run(&mut scratch.trace_program(options, program.clone(), &[]));
        finished.assert_code(0);
        let export = scratch.export();
        export.assert_complete();
        // Where blocks are sampled, who has made a call is not known.
        let said = match options {
            ["--mappings"] => finished.stdout.clone(),
            _ => finished
                .stdout
                .replace(" program ", " unknown ")
                .replace(" allocator ", " unknown "),
        };
        let (lines, problems) = compare_mappings(&said, &export.0);
        assert_eq!((lines, problems), (11, Vec::<String>::new()));
    }
}

/// A kernel that refuses says so before anything is started, and leaves no file.
#[test]
fn a_kernel_that_refuses_mappings_is_said_before_anything_is_traced() {
    let Some(refusal) = refusal() else {
        return skip("a kernel that refuses mappings", "this one does not");
    };
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&["--mappings"], "/bin/echo", &["run"]));
    finished.assert_code(1);
    assert!(finished.stderr.contains("fentry"), "{}", finished.stderr);
    assert!(!finished.stdout.contains("run") && !scratch.recording().exists());
    assert!(refusal.contains("fentry"), "{refusal}");
}
