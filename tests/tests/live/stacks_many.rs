//! Stacks in processes with very many libraries or threads.

use memscope_tests::stacks::{self, Compiler};

use crate::stacks_kit::{assert_attached, assert_started, judge, trace_started};

#[test]
fn stacks_through_500_libraries_are_exact() {
    let folder = stacks::many_libraries(500);
    let program = stacks::build("stacks_many.c", Compiler::Gcc, &[]);
    let arguments = ["libraries", folder.to_str().unwrap(), "500"];
    assert_attached("500 libraries, attached", &program, &arguments);
    assert_started("500 libraries, started", &program, &arguments);
}

#[test]
fn stacks_of_ten_thousand_threads_are_exact() {
    let program = stacks::build("stacks_many.c", Compiler::Gcc, &[]);
    let (export, figures) = trace_started(&program, &["threads", "10000"]);
    eprintln!("{} threads", figures.number("threads"));
    assert!(figures.number("threads") >= 1000);
    judge(&export, &stacks::expected(&figures), None).assert_all_exact("many threads");
}
