//! What is measured: programs that work for a while and show that they did.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use memscope_tests::stacks::{self, Compiler};
use memscope_tests::{Variant, programs, resources};

use super::process::{Output, Process};
use super::redis::Redis;
use super::tracers::{LIMITED, MAPPINGS, MAPPINGS_ELSEWHERE, NONE, SPECIAL, Tracer};
use crate::process::{find_in_path, output};

/// Size of a block in the loops.
const BLOCK_BYTES: &str = "64";
const UNTRACED_LOOP_FACTOR: u64 = 20;
const SQLITE_STOCKS: u64 = 1000;

/// A program and how much it does.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    amount: u64,
    quick_amount: u64,
    program: Program,
    tracers: Tracers,
}

/// By which tracers a program is measured; always untraced as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracers {
    /// All but those that are for one purpose.
    General,
    /// [`MAPPINGS`] and [`MAPPINGS_ELSEWHERE`]: system calls.
    Only(&'static [&'static str]),
    /// This one, while the untraced program works on the same processor: what it costs is less than the machine's pace changes by.
    /// [`LIMITED`]: programs that work for about ten seconds, long enough that a budget can be kept, of which memscope's
    /// own start is the most in a second.
    BesideUntraced(&'static str),
}

/// What the cost is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// One malloc and its free.
    Pair,
    /// The whole work of a program.
    Run,
    /// One request to a server.
    Request,
    /// One system call.
    Call,
}

#[derive(Clone, Copy, Debug)]
enum Program {
    Pairs {
        threads: u64,
    },
    Stacks {
        depth: u64,
    },
    Calls {
        maps: bool,
    },
    Source(&'static str),
    /// Whether its objects come from pools of its own, as they do unless it is asked for something else.
    Python {
        pools: bool,
    },
    Sqlite,
    Redis,
}

pub(super) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "pairs",
        title: "malloc and free in a tight loop, one thread",
        unit: Unit::Pair,
        amount: 300_000,
        quick_amount: 50_000,
        program: Program::Pairs { threads: 1 },
        tracers: Tracers::General,
    },
    Workload {
        name: "depth-20",
        title: "malloc and free in a loop, below 20 functions",
        unit: Unit::Pair,
        amount: 200_000,
        quick_amount: 50_000,
        program: Program::Stacks { depth: 20 },
        tracers: Tracers::General,
    },
    Workload {
        name: "threads-2",
        title: "malloc and free in a tight loop, in each of 2 threads",
        unit: Unit::Pair,
        amount: 100_000,
        quick_amount: 30_000,
        program: Program::Pairs { threads: 2 },
        tracers: Tracers::General,
    },
    Workload {
        name: "threads-8",
        title: "malloc and free in a tight loop, in each of 8 threads",
        unit: Unit::Pair,
        amount: 25_000,
        quick_amount: 8_000,
        program: Program::Pairs { threads: 8 },
        tracers: Tracers::General,
    },
    Workload {
        name: "stl",
        title: "C++: a text in strings, vectors and maps of the standard library",
        unit: Unit::Run,
        amount: 100,
        quick_amount: 20,
        program: Program::Source("work.cpp"),
        tracers: Tracers::General,
    },
    Workload {
        name: "rust",
        title: "Rust: a text in strings, vectors and maps of the standard library",
        unit: Unit::Run,
        amount: 100,
        quick_amount: 20,
        program: Program::Source("work.rs"),
        tracers: Tracers::General,
    },
    Workload {
        name: "python-json",
        title: "Python: JSON written and read back",
        unit: Unit::Run,
        amount: 60,
        quick_amount: 12,
        program: Program::Python { pools: true },
        tracers: Tracers::General,
    },
    Workload {
        name: "python-malloc",
        title: "Python: JSON written and read back, with PYTHONMALLOC=malloc",
        unit: Unit::Run,
        amount: 20,
        quick_amount: 4,
        program: Program::Python { pools: false },
        tracers: Tracers::General,
    },
    Workload {
        name: "sqlite",
        title: "sqlite3: rows inserted into a database in memory, and selected",
        unit: Unit::Run,
        amount: 6_000,
        quick_amount: 1_500,
        program: Program::Sqlite,
        tracers: Tracers::General,
    },
    Workload {
        name: "redis",
        title: "redis-server: SET, LPUSH and GET by redis-benchmark",
        unit: Unit::Request,
        amount: 10_000,
        quick_amount: 2_000,
        program: Program::Redis,
        tracers: Tracers::General,
    },
    Workload {
        name: "pairs-long",
        title: "malloc and free in a tight loop, one thread, for some ten seconds",
        unit: Unit::Pair,
        amount: 800_000_000,
        quick_amount: 300_000_000,
        program: Program::Pairs { threads: 1 },
        tracers: Tracers::BesideUntraced(LIMITED),
    },
    Workload {
        name: "stl-long",
        title: "C++: a text in strings, vectors and maps, for some ten seconds",
        unit: Unit::Run,
        amount: 12_000,
        quick_amount: 8_000,
        program: Program::Source("work.cpp"),
        tracers: Tracers::BesideUntraced(LIMITED),
    },
    Workload {
        name: "python-long",
        title: "Python: JSON written and read back, with PYTHONMALLOC=malloc, for some ten seconds",
        unit: Unit::Run,
        amount: 6_000,
        quick_amount: 3_000,
        program: Program::Python { pools: false },
        tracers: Tracers::BesideUntraced(LIMITED),
    },
    Workload {
        name: "redis-long",
        title: "redis-server: SET, LPUSH and GET, for some ten seconds",
        unit: Unit::Request,
        amount: 300_000,
        quick_amount: 100_000,
        program: Program::Redis,
        tracers: Tracers::BesideUntraced(LIMITED),
    },
    Workload {
        name: "system-calls",
        title: "the cheapest system call, getppid, in a tight loop",
        unit: Unit::Call,
        amount: 10_000_000,
        quick_amount: 1_000_000,
        program: Program::Calls { maps: false },
        tracers: Tracers::Only(&[MAPPINGS_ELSEWHERE]),
    },
    Workload {
        name: "mappings",
        title: "mmap and munmap of a page that is not touched, in a tight loop",
        unit: Unit::Pair,
        amount: 300_000,
        quick_amount: 50_000,
        program: Program::Calls { maps: true },
        tracers: Tracers::Only(&[MAPPINGS, MAPPINGS_ELSEWHERE]),
    },
];

/// What a tracer that starts the program itself puts around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Launch {
    /// Words before the program's own.
    pub(super) wrapper: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, OsString)>,
}

/// What was done, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    /// Time per unit.
    pub(super) cost_ns: f64,
    /// How many of them were done, by all threads together.
    pub(super) units: u64,
    pub(super) wall_ns: u64,
    pub(super) cpu_ns: u64,
    /// The program has allocated at least so often, or mapped: who traced it must have seen as many.
    pub(super) allocations_at_least: u64,
    /// The same in every run.
    pub(super) checksum: Option<String>,
}

/// A started program that waits to be told to work.
pub(super) enum Running {
    Lines(Lines),
    Redis(Redis),
}

impl Workload {
    pub(super) fn named(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// Of those that all tracers are measured on.
    pub(super) fn is_real_program(&self) -> bool {
        matches!(self.unit, Unit::Run | Unit::Request) && self.tracers == Tracers::General
    }

    /// Whether it is measured under that tracer.
    pub(super) fn is_for(&self, tracer: &Tracer) -> bool {
        tracer.name == NONE
            || match self.tracers {
                Tracers::General => !SPECIAL.contains(&tracer.name),
                Tracers::Only(names) => names.contains(&tracer.name),
                Tracers::BesideUntraced(name) => name == tracer.name,
            }
    }

    /// Whether the untraced program works at the same time, on the same processor, and what is measured is processor time.
    pub(super) fn is_beside_untraced(&self) -> bool {
        matches!(self.tracers, Tracers::BesideUntraced(_))
    }

    pub(super) fn amount(&self, quick: bool) -> u64 {
        if quick { self.quick_amount } else { self.amount }
    }

    /// For a tracer that costs next to nothing: a loop is over too soon to be measured then.
    pub(super) fn amount_untraced(&self, quick: bool) -> u64 {
        let is_short = self.unit == Unit::Pair && self.tracers == Tracers::General;
        let factor = if is_short { UNTRACED_LOOP_FACTOR } else { 1 };
        self.amount(quick) * factor
    }

    /// Why it cannot be run here.
    pub(super) fn missing(&self) -> Option<String> {
        let needed: &[&str] = match self.program {
            Program::Pairs { .. } | Program::Stacks { .. } | Program::Calls { .. } => {
                &["cc", "gcc"]
            }
            Program::Source("work.rs") => &["rustc"],
            Program::Source(_) => &["c++"],
            Program::Python { .. } => &["python3"],
            Program::Sqlite => &["sqlite3"],
            Program::Redis => &["redis-server", "redis-benchmark"],
        };
        let missing = needed.iter().find(|program| find_in_path(program).is_none())?;
        Some(format!("{missing} is not installed"))
    }

    /// Starts the program in its own folder.
    pub(super) fn start(&self, amount: u64, launch: &Launch, folder: &Path) -> Result<Running> {
        let count = amount.to_string();
        let program = |path: PathBuf, arguments: &[&str]| {
            let mut command = launch.command(path);
            command.args(arguments).args(["wait", "linger"]);
            command
        };
        let default = |source| programs::build(source, Variant::Default);
        let (command, script) = match self.program {
            Program::Pairs { threads } => {
                let arguments = [&count, BLOCK_BYTES, &threads.to_string()];
                let script = Script::of_pairs(amount * threads);
                (program(default("pairs.c"), &arguments), script)
            }
            Program::Stacks { depth } => {
                let path = stacks::build("stacks_cost.c", Compiler::Gcc, &[]);
                (program(path, &[&count, &depth.to_string()]), Script::of_pairs(amount))
            }
            Program::Calls { maps } => {
                let script = Script {
                    units: Some((amount, if maps { amount } else { 0 })),
                    ..Script::default()
                };
                (program(default("calls.c"), &[&count, if maps { "1" } else { "0" }]), script)
            }
            Program::Source(source) => (program(default(source), &[&count]), Script::default()),
            Program::Python { pools } => {
                let script = programs::source("work.py");
                let mut command = launch.command(python()?);
                command.env("PYTHONMALLOC", if pools { "pymalloc" } else { "malloc" });
                command.arg(script).args([&count, "wait", "linger"]);
                (command, Script::default())
            }
            Program::Sqlite => {
                let mut command = launch.command(installed("sqlite3")?);
                command.args(["-batch", ":memory:"]);
                (command, Script::of_sqlite(amount))
            }
            Program::Redis => {
                let port = Redis::free_port()?;
                let command = launch.command(installed("redis-server")?);
                let mut command = Redis::command(command, folder, port);
                let server = Process::spawn(command.current_dir(folder), folder.join("stderr"))?;
                return Ok(Running::Redis(Redis::ready(server, port, amount)?));
            }
        };
        Lines::start(command, folder, script).map(Running::Lines)
    }
}

impl Launch {
    fn command(&self, program: PathBuf) -> Command {
        let mut words = self.wrapper.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

fn installed(program: &str) -> Result<PathBuf> {
    find_in_path(program).with_context(|| format!("{program} is not installed"))
}

/// The interpreter itself, and not a script before it that starts it.
fn python() -> Result<PathBuf> {
    let mut ask = Command::new("python3");
    let path = output(ask.args(["-c", "import sys; print(sys.executable)"]))?;
    Ok(PathBuf::from(path.trim_end()))
}

/// What the sqlite3 shell is to do, one statement for each row.
fn statements(rows: u64) -> String {
    let mut text = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, stock INT);\n\
                    BEGIN;\n"
        .to_owned();
    for row in 0..rows {
        let stock = row * 7919 % SQLITE_STOCKS;
        text += &format!("INSERT INTO item VALUES({row}, 'item {row}', {row}.25, {stock});\n");
    }
    text + "COMMIT;\nCREATE INDEX by_stock ON item(stock);\n\
            SELECT 'checksum', sum(length(name)) || '/' || sum(stock) || '/' || count(*) FROM item;\n\
            SELECT 'checked', count(*) FROM item AS a JOIN item AS b ON a.stock = b.stock AND a.id < b.id;\n\
            SELECT 'groups', count(*) FROM (SELECT stock, group_concat(name) FROM item GROUP BY stock);\n"
        + &format!("SELECT 'allocations_at_least', {rows};\n.print done 1\n")
}

/// What a program is told.
struct Script {
    /// Before it says `ready <pid>`.
    greeting: &'static str,
    /// Has it work.
    go: String,
    /// Of a loop, which prints its own time per unit: how many of these it does, and allocations with them.
    units: Option<(u64, u64)>,
}

impl Default for Script {
    /// Of the ground-truth programs.
    fn default() -> Self {
        Self { greeting: "", go: "go\n".to_owned(), units: None }
    }
}

impl Script {
    fn of_pairs(pairs: u64) -> Self {
        Self { units: Some((pairs, pairs)), ..Self::default() }
    }

    /// The sqlite3 shell does not know its own number; one that it starts knows it.
    fn of_sqlite(rows: u64) -> Self {
        let greeting = ".separator ' '\n.shell echo ready $PPID\n";
        Self { greeting, go: statements(rows), units: None }
    }
}

/// A program that talks in lines: `ready <pid>`, figures, `done 1`.
pub(super) struct Lines {
    process: Process,
    pid: u32,
    script: Script,
}

impl Lines {
    fn start(mut command: Command, folder: &Path, script: Script) -> Result<Self> {
        let mut process = Process::spawn(command.current_dir(folder), folder.join("stderr"))?;
        process.send(script.greeting)?;
        let pid = process.wait_for("ready ")?;
        let pid = pid.parse().with_context(|| format!("no number of a process: {pid}"))?;
        process.inner = (pid != process.pid()).then_some(pid);
        Ok(Self { process, pid, script })
    }

    fn work(&mut self) -> Result<Work> {
        let cpu = |pid| resources::cpu_ns(pid).context("the program's processor time");
        let (cpu_before, begun) = (cpu(self.pid)?, Instant::now());
        self.process.send(&self.script.go)?;
        self.process.wait_for("done 1")?;
        let (wall_ns, cpu_ns) = (begun.elapsed().as_nanos() as u64, cpu(self.pid)? - cpu_before);
        let said = self.process.said();
        let value = |key| said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let number = |key| value(key).and_then(|text| text.parse::<f64>().ok());
        if let Some((units, allocations_at_least)) = self.script.units {
            let cost_ns = number("ns_per_pair").or_else(|| number("ns_per_call"));
            let cost_ns = cost_ns.context("the loop does not say its time per unit")?;
            let checksum = None;
            return Ok(Work { cost_ns, units, wall_ns, cpu_ns, allocations_at_least, checksum });
        }
        let allocations_at_least = value("allocations_at_least")
            .and_then(|text| text.parse().ok())
            .context("the program says no allocations_at_least")?;
        let checksum = value("checksum").context("the program says no checksum")?.to_owned();
        Ok(Work {
            cost_ns: wall_ns as f64,
            units: 1,
            wall_ns,
            cpu_ns,
            allocations_at_least,
            checksum: Some(checksum),
        })
    }
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        match self {
            Running::Lines(lines) => lines.pid,
            Running::Redis(redis) => redis.pid(),
        }
    }

    /// Has it do its work; it is alive afterwards.
    pub(super) fn work(&mut self) -> Result<Work> {
        match self {
            Running::Lines(lines) => lines.work(),
            Running::Redis(redis) => redis.work(),
        }
    }

    /// Lets it end.
    pub(super) fn finish(self) -> Result<Output> {
        match self {
            Running::Lines(lines) => lines.process.finish(),
            Running::Redis(redis) => redis.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tracers::FULL;
    use super::*;

    #[test]
    fn names_are_distinct_and_found() {
        for workload in WORKLOADS {
            let found = Workload::named(workload.name).unwrap();
            assert_eq!(found.title, workload.title, "{} is listed twice", workload.name);
            assert!(workload.quick_amount < workload.amount);
        }
        assert!(Workload::named("none such").is_none());
    }

    #[test]
    fn some_programs_are_for_single_tracers() {
        let is_for = |workload, tracer| {
            Workload::named(workload).unwrap().is_for(Tracer::named(tracer).unwrap())
        };
        assert!(is_for("redis", NONE) && is_for("redis-long", NONE));
        assert!(is_for("redis", FULL) && !is_for("redis-long", FULL));
        assert!(!is_for("redis", LIMITED) && is_for("redis-long", LIMITED));
        let long = Workload::named("pairs-long").unwrap();
        assert_eq!(long.amount_untraced(false), long.amount(false), "it lasts long enough");
        assert!(!Workload::named("redis-long").unwrap().is_real_program());
        assert!(is_for("mappings", MAPPINGS) && !is_for("pairs", MAPPINGS));
        assert!(!is_for("mappings", FULL) && !is_for("system-calls", MAPPINGS));
    }

    #[test]
    fn a_wrapper_comes_before_the_program() {
        let launch = Launch {
            wrapper: vec!["valgrind".into(), "--tool=dhat".into()],
            environment: vec![("A", "b".into())],
        };
        assert_eq!(crate::process::show(&launch.command("x".into())), "A=b valgrind --tool=dhat x");
        assert_eq!(crate::process::show(&Launch::default().command("x".into())), "x");
    }

    #[test]
    fn a_row_is_a_statement() {
        let text = statements(3);
        assert_eq!(text.matches("INSERT").count(), 3);
        assert!(text.ends_with("SELECT 'allocations_at_least', 3;\n.print done 1\n"));
    }
}
