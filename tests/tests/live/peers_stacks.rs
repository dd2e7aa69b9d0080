//! Stacks beside those that gdb and heaptrack find in the same programs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use memscope_tests::Figures;
use memscope_tests::stacks::{self, Compiler};
use serde_json::Value;

use crate::kit::{Export, Scratch, is_installed, number, run, skip};
use crate::oracle::python;
use crate::real_programs::export_sites;
use crate::stacks_kit::called_frames;

const SAMPLES: usize = 50;
/// Least distinct stacks among them, or the comparison says little.
const LEAST_DISTINCT: usize = 8;

/// Differences shown.
const MOST_SHOWN: usize = 5;

/// Return addresses, innermost first, as `file+0xoffset`.
type Places = Vec<String>;

/// What gdb shows at some calls of malloc.
fn stacks_by_gdb(program: &Path, arguments: &[&str], skipped_calls: u32) -> Vec<Places> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/stacks_gdb.py");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-x"]).arg(script).arg("--args").arg(program).args(arguments);
    gdb.env("STACKS_SAMPLES", SAMPLES.to_string()).env("STACKS_SKIP", skipped_calls.to_string());
    let finished = run(determined(&mut gdb));
    let lines = finished.stdout.lines().filter_map(|line| line.strip_prefix("sample "));
    let stacks: Vec<Places> =
        lines.map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    assert_eq!(stacks.len(), SAMPLES, "{finished:#?}");
    stacks
}

/// What else would make two runs of python differ.
fn determined(command: &mut Command) -> &mut Command {
    command.env("PYTHONHASHSEED", "0").env("PYTHONMALLOC", "malloc")
}

fn places(site: &Value) -> Places {
    let frames = site["frames"].as_array().unwrap().iter();
    let called = frames.filter(|frame| frame["inlined"] == false);
    called
        .map(|frame| {
            let module = frame["module"].as_str().unwrap_or("?");
            let name = module.rsplit('/').next().unwrap();
            format!("{name}+{}", frame["offset"].as_str().unwrap())
        })
        .collect()
}

fn assert_gdb_agrees(what: &str, program: &Path, arguments: &[&str], skipped_calls: u32) {
    let by_gdb = stacks_by_gdb(program, arguments, skipped_calls);
    let scratch = Scratch::new();
    run(determined(&mut scratch.trace_program(&["--strict"], program, arguments))).assert_code(0);
    let recorded: HashSet<Places> =
        export_sites(&scratch).list("sites").iter().map(places).collect();
    let distinct: BTreeSet<&Places> = by_gdb.iter().collect();
    let found = by_gdb.iter().filter(|stack| recorded.contains(*stack)).count();
    eprintln!(
        "{what}: {found} of {} stacks by gdb, {} distinct, {} to {} frames, are among the {} recorded",
        by_gdb.len(),
        distinct.len(),
        by_gdb.iter().map(Vec::len).min().unwrap_or(0),
        by_gdb.iter().map(Vec::len).max().unwrap_or(0),
        recorded.len()
    );
    let missing = distinct.iter().filter(|stack| !recorded.contains(**stack));
    for missing in missing.take(MOST_SHOWN) {
        let shared = |other: &&Places| {
            missing.iter().zip(other.iter()).take_while(|(one, two)| one == two).count()
        };
        let nearest = recorded.iter().max_by_key(shared);
        eprintln!("gdb only: {}\n  nearest: {nearest:?}", missing.join(" "));
    }
    assert_eq!(found, by_gdb.len(), "{what}");
    assert!(distinct.len() >= LEAST_DISTINCT, "{what}: only {} distinct stacks", distinct.len());
}

fn gdb_runs_scripts() -> bool {
    let works = is_installed("gdb")
        && run(Command::new("gdb").args(["-nx", "-batch", "-ex", "python print(40 + 2)"]))
            .stdout
            .contains("42");
    if !works {
        skip("stacks as gdb finds them", "there is no gdb with Python");
    }
    works
}

#[test]
fn gdb_finds_the_same_stacks_in_python() {
    let Some(python) = python() else {
        return skip("stacks of python as gdb finds them", "there is no python3");
    };
    if gdb_runs_scripts() {
        let code = "import json; json.loads(json.dumps([{'a': i} for i in range(500)]))";
        assert_gdb_agrees("python3", &python, &["-c", code], 400);
    }
}

#[test]
fn gdb_finds_the_same_stacks_in_cpp() {
    if gdb_runs_scripts() {
        let program = stacks::build("stacks_cpp.cpp", Compiler::Gcc, &[]);
        // A round has 17 calls: each sample is another one of them.
        assert_gdb_agrees("C++", &program, &["50"], 11);
    }
}

/// Functions of the program, outermost first, and how many allocations were made below just these.
type CountedChains = BTreeMap<Vec<String>, u64>;

/// A signal struck the first instruction of `faults_at_start`: heaptrack takes it for a return address, which
/// belongs to the function before.
const MISNAMED_BY_HEAPTRACK: [&str; 4] = ["main", "faults", "on_fault", "allocate"];

/// `main (a.c);calls (a.c);malloc_internal (b.c); 50`
fn chains_by_heaptrack(text: &str, own: &BTreeSet<String>) -> CountedChains {
    let mut chains = CountedChains::new();
    for line in text.lines() {
        let (frames, count) = line.rsplit_once(' ').unwrap();
        let names = frames.split(';').map(|frame| frame.split(" (").next().unwrap().trim());
        let names = names.filter(|name| own.contains(*name)).map(str::to_owned).collect();
        *chains.entry(names).or_default() += count.parse::<u64>().unwrap();
    }
    chains
}

fn chains_recorded(export: &Export, own: &BTreeSet<String>) -> CountedChains {
    let mut chains = CountedChains::new();
    for site in export.list("sites") {
        let names = called_frames(site).into_iter().rev().filter_map(|frame| frame.function);
        let names = names.filter(|name| own.contains(name)).collect();
        *chains.entry(names).or_default() += number(site, "allocations");
    }
    chains
}

/// The functions that the program names in its chains; heaptrack ends at `main`.
fn own_functions(figures: &Figures) -> BTreeSet<String> {
    let chains = figures.texts("stack").into_iter().flat_map(|line| line.split(" <- "));
    let names = chains.map(|name| name.rsplit(' ').next().unwrap());
    let own = names.filter(|name| !name.starts_with(['@', '*']) && *name != "_start");
    own.map(str::to_owned).collect()
}

#[test]
fn heaptrack_finds_the_same_stacks_with_the_same_counts() {
    const MOST_FREQUENT: usize = 20;
    if !is_installed("heaptrack") || !is_installed("heaptrack_print") {
        return skip("stacks as heaptrack finds them", "it is not installed");
    }
    let library = stacks::library("stacks_library.c", Compiler::Gcc, &[], "libstacks_library.so");
    let flags = ["-Wl,-z,lazy", library.to_str().unwrap()];
    let program: PathBuf = stacks::build("stacks_hard.c", Compiler::Gcc, &flags);

    let scratch = Scratch::new();
    let mut heaptrack = Command::new("heaptrack");
    run(heaptrack.arg("-o").arg(scratch.path("heaptrack")).arg(&program)).assert_code(0);
    let data = fs::read_dir(scratch.path("")).unwrap().map(|entry| entry.unwrap().path());
    let data =
        data.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == "heaptrack"));
    let collapsed = scratch.path("collapsed");
    let mut print = Command::new("heaptrack_print");
    print.arg("-f").arg(data.unwrap()).arg("-F").arg(&collapsed);
    run(print.args(["--flamegraph-cost-type", "allocations"])).assert_code(0);

    let finished = run(&mut scratch.trace_program(&["--strict"], &program, &[]));
    finished.assert_code(0);
    let own = own_functions(&Figures::parse(&finished.stdout));
    let by_heaptrack = chains_by_heaptrack(&fs::read_to_string(collapsed).unwrap(), &own);
    let recorded = chains_recorded(&export_sites(&scratch), &own);
    let right = |names: &[String]| !names.is_empty() && names != MISNAMED_BY_HEAPTRACK;
    let mut frequent: Vec<(&Vec<String>, &u64)> =
        by_heaptrack.iter().filter(|(names, _)| right(names)).collect();
    frequent.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    frequent.truncate(MOST_FREQUENT);
    let differing: Vec<String> = frequent
        .iter()
        .filter(|(names, count)| recorded.get(*names) != Some(*count))
        .map(|(names, count)| format!("{} {count}: {:?}", names.join(";"), recorded.get(*names)))
        .collect();
    eprintln!(
        "heaptrack: {} of its {} most frequent chains have the same count here",
        frequent.len() - differing.len(),
        frequent.len()
    );
    assert_eq!(frequent.len(), MOST_FREQUENT, "it found too few chains");
    assert!(differing.is_empty(), "{differing:#?}");
}
