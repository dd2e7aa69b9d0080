//! What memscope recorded equals what an oracle inside the program logged, in the same run.

use std::path::{Path, PathBuf};
use std::process::Command;

use memscope_tests::oracle::{self, LOG_VARIABLE};
use memscope_tests::{OracleImage, OracleTotals, Variant, programs};

use crate::kit::{Export, Scratch, counted, number, run};

/// Numbers of `totals` that no site has.
const ONLY_IN_TOTALS: [&str; 2] = ["reallocations", "unknown_frees"];

/// Every number, every address and every size of one process image. What is in the totals only is
/// compared if that image is all there is.
pub(crate) fn assert_equals_oracle(
    export: &Export,
    process: u64,
    image: &OracleImage,
) -> OracleTotals {
    let expected = OracleTotals::of(image);
    let alone = export.list("processes").len() == 1;
    for (key, count) in expected.counts.by_name() {
        if !ONLY_IN_TOTALS.contains(&key) {
            assert_eq!(export.sum_of(process, key), count, "{key} of {}", image.exe.display());
        } else if alone {
            assert_eq!(export.total(key), count, "{key} of {}", image.exe.display());
        }
    }
    let blocks: Vec<_> =
        export.blocks().into_iter().filter(|block| block.process == process).collect();
    let allocated = counted(blocks.iter().map(|block| (block.address, block.size)));
    assert!(allocated == expected.allocated, "addresses and sizes of allocations differ");
    let freed =
        counted(blocks.iter().filter(|block| block.freed_ns.is_some()).map(|block| block.address));
    assert!(freed == expected.freed, "addresses of frees differ");
    expected
}

/// Traces a program that has the oracle in it.
pub(crate) fn trace_with_oracle(source: &str, arguments: &[&str]) -> (Export, Vec<OracleImage>) {
    trace_with_oracle_and(&[], source, arguments)
}

/// The same with further options.
pub(crate) fn trace_with_oracle_and(
    options: &[&str],
    source: &str,
    arguments: &[&str],
) -> (Export, Vec<OracleImage>) {
    let program = programs::build_with_oracle(source, Variant::Default);
    let scratch = Scratch::new();
    let base = scratch.path("log");
    let options = [&["--strict"], options].concat();
    let mut command = scratch.trace_program(&options, program, arguments);
    let finished = run(command.env(LOG_VARIABLE, &base));
    finished.assert_code(0);
    (scratch.export(), oracle::read_logs(&base))
}

fn assert_program_equals(source: &str, threads: &str) {
    let rounds = if source == "mix.c" { "10000" } else { "200" };
    let (export, images) = trace_with_oracle(source, &[threads, rounds]);
    export.assert_complete();
    assert_eq!(images.len(), 1, "one process image");
    let expected = assert_equals_oracle(&export, 0, &images[0]);
    assert!(expected.counts.allocations > 1000, "the program did something");
    if threads == "1" {
        assert_eq!(export.total("peak_live_bytes"), expected.peak_live_bytes);
        assert_eq!(export.total("peak_live_blocks"), expected.peak_live_blocks);
    }
    say_equal(&format!("{source}, {threads} threads"), &expected);
}

#[test]
fn c02_addresses_equal_the_oracles_in_c_with_one_thread() {
    assert_program_equals("mix.c", "1");
}

#[test]
fn c02_addresses_equal_the_oracles_in_c_with_eight_threads() {
    assert_program_equals("mix.c", "8");
}

#[test]
fn c02_addresses_equal_the_oracles_in_cpp_with_one_thread() {
    assert_program_equals("mix.cpp", "1");
}

#[test]
fn c02_addresses_equal_the_oracles_in_cpp_with_eight_threads() {
    assert_program_equals("mix.cpp", "8");
}

#[test]
fn c02_addresses_equal_the_oracles_in_rust_with_one_thread() {
    assert_program_equals("mix.rs", "1");
}

#[test]
fn c02_addresses_equal_the_oracles_in_rust_with_eight_threads() {
    assert_program_equals("mix.rs", "8");
}

/// Builds, sorts, serialises and parses, and uses a database where Python has one.
const PYTHON: &str = r#"
import json
rows = [{"id": n, "name": "row %d" % n, "values": list(range(n % 50))} for n in range(2000)]
text = json.dumps(rows)
parsed = json.loads(text)
index = {}
for row in parsed:
    index.setdefault(len(row["values"]), []).append(row["name"])
assert sum(map(len, index.values())) == 2000
try:
    import sqlite3
except ImportError:
    sqlite3 = None
if sqlite3:
    base = sqlite3.connect(":memory:")
    base.execute("create table t (id integer primary key, name text)")
    base.executemany("insert into t values (?, ?)", [(row["id"], row["name"]) for row in parsed])
    assert base.execute("select count(*) from t where name like 'row 1%'").fetchone()[0] > 0
    base.close()
print("done 1")
"#;

/// The interpreter itself: what is in PATH may be a script that looks for it.
pub(crate) fn python() -> Option<PathBuf> {
    let output =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && path.is_file()).then_some(path)
}

/// What python did with its allocator, from the log it left.
fn python_image(base: &Path, python: &Path) -> OracleImage {
    let python = python.canonicalize().unwrap();
    let images = oracle::read_logs(base);
    let mut of_python = images.into_iter().filter(|image| image.exe == python);
    let image = of_python.next().expect("python has the oracle");
    assert!(of_python.next().is_none(), "it starts nothing");
    image
}

fn say_equal(what: &str, totals: &OracleTotals) {
    let counts = totals.counts;
    eprintln!(
        "{what}: {} allocations of {} bytes, {} frees, {} reallocations, {} failed: equal",
        counts.allocations,
        counts.allocated_bytes,
        counts.frees,
        counts.reallocations,
        counts.failed_allocations
    );
}

/// memscope is given the oracle too, for its command to inherit. That it does not mind is tested in passing.
fn assert_python_equals(what: &str, environment: &[(&str, &str)]) {
    let Some(python) = python() else {
        return crate::kit::skip("python against the oracle", "there is no python3");
    };
    let scratch = Scratch::new();
    let base = scratch.path("log");
    let mut command = scratch.trace_program(&["--strict"], &python, &["-c", PYTHON]);
    oracle::preload(&mut command, &base).envs(environment.iter().copied());
    let finished = run(&mut command);
    finished.assert_code(0);
    assert_eq!(finished.stdout, "done 1\n");
    let (export, image) = (scratch.export(), python_image(&base, &python));
    export.assert_complete();
    assert_eq!(number(&export.list("processes")[0], "pid"), u64::from(image.pid));
    say_equal(what, &assert_equals_oracle(&export, 0, &image));
}

#[test]
fn c02_addresses_equal_the_oracles_in_python() {
    assert_python_equals("python", &[]);
}

#[test]
fn c02_addresses_equal_the_oracles_in_python_without_its_pools() {
    assert_python_equals("python, each object a block", &[("PYTHONMALLOC", "malloc")]);
}

/// `env` preloads the oracle, so it comes with the second image, and the functions that it wraps are probed
/// while it runs. What goes through both is one call before, meanwhile and after.
#[test]
fn c02_addresses_equal_the_oracles_in_python_after_an_exec() {
    let Some(python) = python() else {
        return crate::kit::skip("python after an exec", "there is no python3");
    };
    let scratch = Scratch::new();
    let base = scratch.path("log");
    let preload = format!("LD_PRELOAD={}", programs::oracle_library().display());
    let log = format!("{LOG_VARIABLE}={}", base.display());
    let arguments = [&preload, &log, "PYTHONMALLOC=malloc", python.to_str().unwrap(), "-c", PYTHON];
    let finished = run(&mut scratch.trace_program(&[], "env", &arguments));
    finished.assert_code(0);
    assert_eq!(finished.stdout, "done 1\n");

    let (export, image) = (scratch.export(), python_image(&base, &python));
    let [env_process, python_process] = export.list("processes") else {
        panic!("env and python are two images of one process: {}", export.0["processes"]);
    };
    assert_eq!(env_process["end"], "exec");
    assert_eq!(python_process["image"], 1);
    assert_eq!(number(python_process, "pid"), u64::from(image.pid));
    let expected = assert_equals_oracle(&export, 1, &image);
    assert_eq!(export.lost(), 0);
    assert_eq!(export.total("unknown_frees"), 0);
    let by_env = export.total("reallocations") - expected.counts.reallocations;
    assert!(by_env < 10, "env itself reallocates little: {by_env}");
    say_equal("python after an exec", &expected);
}
