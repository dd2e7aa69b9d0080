//! What walking stacks costs, beside the kernel's own helper, which needs frame pointers. And what a large
//! program costs that has very many stacks.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use memscope_tests::TestProgram;
use memscope_tests::floor::{Floor, FloorProbe, FloorProgram, RunTime, RunTimes};
use memscope_tests::stacks::{self, Compiler};
use serde_json::Value;

use crate::kit::{Running, Scratch, is_installed, memscope, number, run, skip};
use crate::real_programs::{Completeness, export_sites};

const PAIRS: u64 = 50_000;
/// The quicker of them counts: the other was disturbed.
const ROUNDS: usize = 2;
/// Functions below `main`; 0 is 5 and 17 by turns.
const DEPTHS: [u64; 4] = [5, 20, 50, 0];

/// One way to trace, at one depth.
#[derive(Clone, Copy, Debug)]
struct Cost {
    ns_per_pair: f64,
    /// Of the program at malloc's return.
    ns_per_run: f64,
}

impl Cost {
    const WORST: Cost = Cost { ns_per_pair: f64::MAX, ns_per_run: f64::MAX };

    fn or_less(self, other: Cost) -> Cost {
        Cost {
            ns_per_pair: self.ns_per_pair.min(other.ns_per_pair),
            ns_per_run: self.ns_per_run.min(other.ns_per_run),
        }
    }
}

fn waiting(program: &Path, depth: u64) -> TestProgram {
    let arguments = [PAIRS.to_string(), depth.to_string(), "wait".to_owned()];
    let mut program = TestProgram::spawn(Command::new(program).args(arguments));
    program.wait_ready();
    program
}

/// Lets it run to its last line but not to its end, so that what traces it can be asked.
fn pace(program: &mut TestProgram) -> f64 {
    program.go();
    program.figures().float("ns_per_pair")
}

/// Where malloc's return, malloc's entry and free's entry are probed, as memscope's doctor says.
fn probed(pid: u32) -> (PathBuf, [FloorProbe; 3]) {
    let mut doctor = memscope();
    // As functions are probed whose calls are followed to their return.
    doctor.args(["doctor", "--json", "--attach-by", "perf-event", "--pid", &pid.to_string()]);
    let diagnosis: Value = serde_json::from_str(&run(&mut doctor).stdout).unwrap();
    let libc = &diagnosis["process"]["allocators"][0];
    let file_offset = |function: &str| {
        let mut probes = libc["probes"].as_array().unwrap().iter();
        number(probes.find(|probe| probe["function"] == function).unwrap(), "file_offset")
    };
    let (malloc, free) = (file_offset("malloc"), file_offset("free"));
    let probes = [(malloc, true), (malloc, false), (free, false)]
        .map(|(file_offset, at_return)| FloorProbe { file_offset, at_return });
    (PathBuf::from(libc["path"].as_str().unwrap()), probes)
}

/// The same three probes; at the return the given program.
fn by_kit(what: FloorProgram, program: &Path, depth: u64) -> Cost {
    let mut program = waiting(program, depth);
    let (libc, [at_return, malloc, free]) = probed(program.pid());
    let pid = program.pid();
    let exit = Floor::attach_program(what, pid, &libc, &[at_return]).unwrap();
    let entries = Floor::attach(pid, &libc, &[malloc, free]).unwrap();
    let ns_per_pair = pace(&mut program);
    let run_time = exit.run_time().unwrap();
    assert!(run_time.runs >= PAIRS, "the program was run");
    drop(entries);
    Cost { ns_per_pair, ns_per_run: run_time.ns_per_run() }
}

/// The programs that a process holds, by the kernel's number for them.
fn programs_of(pid: u32) -> Vec<(u64, RunTime)> {
    let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = folder.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    texts
        .filter_map(|text| {
            let run_time = RunTime::parse(&text)?;
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
            Some((id.trim().parse().unwrap(), run_time))
        })
        .collect()
}

/// The name that the kernel keeps 15 characters of.
fn name_of(program: u64) -> String {
    let shown =
        run(Command::new("bpftool").args(["--json", "prog", "show", "id", &program.to_string()]));
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
    shown["name"].as_str().unwrap_or_default().to_owned()
}

fn by_memscope(program: &Path, depth: u64) -> Cost {
    let mut program = waiting(program, depth);
    let scratch = Scratch::new();
    // There the return has a program of its own.
    let options = ["--strict", "--attach-by", "perf-event"];
    let memscope = scratch.attach(&options, &[program.pid()]);
    let ns_per_pair = pace(&mut program);
    let programs = programs_of(memscope.pid());
    let at_return =
        programs.into_iter().filter(|(id, _)| name_of(*id).starts_with("allocation_ret"));
    let run_time = at_return.map(|(_, run_time)| run_time).max_by_key(|time| time.runs).unwrap();
    drop(program);
    memscope.finish().assert_code(0);
    assert!(run_time.runs >= PAIRS, "the program was run: {run_time:?}");
    let export = export_sites(&scratch);
    let stacks = Completeness::of(export.list("sites"));
    assert_eq!((stacks.allocations, stacks.complete), (PAIRS, PAIRS), "{}", stacks.row("cost"));
    Cost { ns_per_pair, ns_per_run: run_time.ns_per_run() }
}

fn quickest(measure: impl Fn() -> Cost) -> Cost {
    (0..ROUNDS).fold(Cost::WORST, |least, _| least.or_less(measure()))
}

fn row(name: &str, costs: &[Cost; 4], value: impl Fn(&Cost) -> f64) -> f64 {
    let cells: Vec<String> = costs.iter().map(|cost| format!("{:>7.0}", value(cost))).collect();
    let per_frame = (value(&costs[2]) - value(&costs[0])) / 45.0;
    eprintln!("{name:<38} {} {per_frame:>9.1}", cells.join(" "));
    per_frame
}

/// In one run, because the machine's pace changes from hour to hour.
#[test]
fn walking_by_tables_costs_less_than_the_kernels_helper_with_frame_pointers() {
    if !is_installed("bpftool") {
        return skip("the cost of walking stacks", "bpftool is not installed");
    }
    let program = stacks::build("stacks_cost.c", Compiler::Gcc, &[]);
    let with_pointers = stacks::build("stacks_cost.c", Compiler::Gcc, &["-fno-omit-frame-pointer"]);
    let untraced = DEPTHS.map(|depth| {
        let ns =
            quickest(|| Cost { ns_per_pair: pace(&mut waiting(&program, depth)), ns_per_run: 0.0 });
        ns.ns_per_pair
    });
    let _measured = RunTimes::measure().unwrap();
    let empty = DEPTHS.map(|depth| quickest(|| by_kit(FloorProgram::Nothing, &program, depth)));
    let helper =
        DEPTHS.map(|depth| quickest(|| by_kit(FloorProgram::StackId, &with_pointers, depth)));
    let tables = DEPTHS.map(|depth| quickest(|| by_memscope(&program, depth)));

    eprintln!("{:<38} {:>7} {:>7} {:>7} {:>7} {:>9}", "", "5", "20", "50", "5/17", "ns/frame");
    eprintln!("ns per malloc and free, untraced {untraced:>12.0?}");
    row("… three programs that do nothing", &empty, |cost| cost.ns_per_pair);
    row("… bpf_get_stackid, frame pointers", &helper, |cost| cost.ns_per_pair);
    row("… memscope", &tables, |cost| cost.ns_per_pair);
    let helper_per_frame =
        row("ns at the return, bpf_get_stackid", &helper, |cost| cost.ns_per_run);
    let per_frame = row("ns at the return, memscope", &tables, |cost| cost.ns_per_run);
    assert!(
        per_frame < helper_per_frame,
        "{per_frame} ns per frame, {helper_per_frame} the helper"
    );
    // memscope's program does more than walk, so a short stack says little.
    assert!(tables[2].ns_per_run < helper[2].ns_per_run, "{tables:?} {helper:?}");
}

/// As small as it is, to compile it takes more than 200,000 allocations, with tens of thousands of stacks.
const CRATE: &str = "pub fn sorted(numbers: &[u64]) -> Vec<String> {\n\
                     let mut numbers = numbers.to_vec();\n\
                     numbers.sort();\n\
                     numbers.iter().map(|number| format!(\"{number:?}\")).collect()\n}\n";

/// rustc itself, not what rustup puts before it.
fn rustc() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("bin/rustc");
    path.is_file().then_some(path)
}

/// Bytes of memory that the kernel charges for the maps that a process holds.
fn map_bytes(pid: u32) -> u64 {
    let mut maps = HashSet::new();
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return 0 };
    let texts = folder.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let value = |text: &str, key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    let of_maps =
        texts.filter_map(|text| Some((value(&text, "map_id:")?, value(&text, "memlock:")?)));
    of_maps.filter(|(id, _)| maps.insert(*id)).map(|(_, bytes)| bytes).sum()
}

/// Largest resident memory of a process so far, bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    1024 * kibibytes.unwrap_or(0)
}

/// Without taking note of its end, which the one who started it waits for.
fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[test]
fn tens_of_thousands_of_stacks_are_complete_and_sent_once() {
    let Some(rustc) = rustc() else {
        return skip("stacks of rustc", "it is not installed");
    };
    let scratch = Scratch::new();
    let source = scratch.path("generated.rs");
    fs::write(&source, CRATE).unwrap();
    let output = scratch.path("generated.o");
    let arguments = [
        "--emit=obj",
        "-O",
        "--crate-type=lib",
        "-o",
        output.to_str().unwrap(),
        source.to_str().unwrap(),
    ];
    let begun = Instant::now();
    let mut traced = scratch.trace_program(&["--strict", "-v"], &rustc, &arguments);
    let memscope = Running::spawn(&mut traced);
    let (mut maps, mut resident) = (0, 0);
    while is_alive(memscope.pid()) {
        maps = maps.max(map_bytes(memscope.pid()));
        resident = resident.max(resident_bytes(memscope.pid()));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let finished = memscope.finish();
    finished.assert_code(0);
    let elapsed = begun.elapsed();
    let stacks = Completeness::of(export_sites(&scratch).list("sites"));
    let dump = scratch.dump();
    let sent = dump.lines().filter(|line| line.starts_with("stack ")).count();
    // A stack that the kernel side has forgotten is sent again: it has a second line with the same frames.
    let of_stacks = dump.lines().filter_map(|line| line.strip_prefix("stack ")?.split_once(' '));
    let distinct = of_stacks.map(|(_, stack)| stack).collect::<HashSet<_>>().len();
    eprintln!("{}", stacks.row("rustc"));
    eprintln!(
        "  {:.1} s; memscope {} MiB resident, its maps {} MiB; {sent} stacks recorded, {distinct} distinct",
        elapsed.as_secs_f64(),
        resident >> 20,
        maps >> 20
    );
    for line in finished.stderr.lines().filter(|line| line.contains("unwind table")) {
        eprintln!("  {line}");
    }
    assert!(stacks.allocations > 200_000 && distinct > 20_000, "{}", stacks.row("rustc"));
    assert!(10 * sent < 12 * distinct, "{sent} stacks were sent, and {distinct} are distinct");
    assert!(1000 * stacks.complete >= 999 * stacks.allocations, "{}", stacks.row("rustc"));
}
