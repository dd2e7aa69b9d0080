//! What is mapped by system calls, against a program that knows it.

use memscope_tests::{Variant, compare_mappings, programs};
use serde_json::Value;

use crate::kit::{Scratch, memscope, run, skip};

/// Where this kernel lets programs observe system calls; why nowhere, if so.
fn observed_by() -> Result<String, String> {
    let doctor = run(memscope().args(["doctor", "--json"]));
    doctor.assert_code(0);
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
    match doctor["mappings_by"].as_str() {
        Some(by) => Ok(by.to_owned()),
        None => Err(doctor["mappings_error"].as_str().unwrap().to_owned()),
    }
}

/// Whether this kernel lets programs run in its functions.
fn runs_in_functions() -> bool {
    observed_by().is_ok_and(|by| by == "functions")
}

fn assert_exact(options: &[&str]) {
    let program = programs::build("mappings.c", Variant::Default);
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(options, program, &[]));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    // Where blocks are sampled, who has made a call is not known.
    let said = if options.contains(&"--sample") {
        finished.stdout.replace(" program ", " unknown ").replace(" allocator ", " unknown ")
    } else {
        finished.stdout
    };
    let (lines, problems) = compare_mappings(&said, &export.0);
    assert_eq!((lines, problems), (11, Vec::<String>::new()), "{options:?}");
}

#[test]
fn mappings_are_those_that_the_program_knows() {
    if let Err(refusal) = observed_by() {
        return skip("mappings", &refusal);
    }
    assert_exact(&["--mappings"]);
    assert_exact(&["--mappings", "--sample", "1GiB"]);
}

#[test]
fn mappings_are_the_same_wherever_they_are_observed() {
    for by in ["functions", "tracepoints"] {
        if by == "functions" && !runs_in_functions() {
            skip("mappings by functions", "this kernel lets no programs run there");
        } else if let Err(refusal) = observed_by() {
            skip("mappings by tracepoints", &refusal);
        } else {
            assert_exact(&["--mappings", "--mappings-by", by]);
        }
    }
}

/// A kernel that refuses says so before anything is started, and leaves no file.
#[test]
fn a_kernel_that_refuses_mappings_is_said_before_anything_is_traced() {
    if runs_in_functions() {
        return skip("a kernel that refuses programs in its functions", "this one does not");
    }
    let scratch = Scratch::new();
    let options = ["--mappings", "--mappings-by", "functions"];
    let finished = run(&mut scratch.trace_program(&options, "/bin/echo", &["run"]));
    finished.assert_code(1);
    assert!(finished.stderr.contains("--mappings"), "{}", finished.stderr);
    assert!(!finished.stdout.contains("run") && !scratch.recording().exists());
}
