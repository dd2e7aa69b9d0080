//! `bench`: what tracing costs the traced program, memscope beside the other tracers, in one run.
//!
//! Workloads × tracers, in rounds. Results go into a file, of which the documents are made.

mod bpftrace;
mod claims;
mod machine;
mod measure;
mod memscope;
mod pace;
mod peers;
mod process;
mod redis;
mod render;
mod results;
mod sites;
mod text;
mod tracers;
mod workloads;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use memscope_tests::programs::find_library;
use memscope_tests::resources::Priority;

use self::measure::Plan;
use self::peers::Libraries;
pub(crate) use self::render::stale;
use self::results::{FILE, Machine, Results};
use self::tracers::Kit;
use self::workloads::{WORKLOADS, Workload};
use crate::process::{as_root, is_root, output, run as run_command};
use crate::{setup, verifier, workspace};

const ROUNDS: u32 = 3;
const QUICK_ROUNDS: u32 = 1;
/// Before what others run at usual priority, and behind the thread of memscope that drains the ring.
const NICENESS: i32 = -10;
const MAX_ROUNDS: i64 = 100;

/// Options of the task.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only this workload; can be given several times
    #[arg(long, value_name = "NAME")]
    workload: Vec<String>,
    /// Only this tracer, and the untraced program; can be given several times
    #[arg(long, value_name = "NAME")]
    tracer: Vec<String>,
    /// How often each is measured [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_ROUNDS))]
    rounds: Option<u32>,
    /// Less work: to see that it works, not to know the numbers
    #[arg(long)]
    quick: bool,
    /// Write the committed results and the documents made of them
    #[arg(long, conflicts_with_all = ["workload", "tracer", "quick", "output"])]
    update: bool,
    /// Write the results into this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Measure nothing: make the documents of the committed results
    #[arg(long, conflicts_with_all = ["workload", "tracer", "quick", "output", "update", "rounds"])]
    render: bool,
    /// Where bytehound's library is
    #[arg(long, value_name = "FILE")]
    bytehound: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root = workspace::root();
    if options.render {
        return render::write(&root, &Results::load(&root.join(FILE))?);
    }
    let plan = plan(options)?;
    for problem in setup::install_tools(setup::BENCH_TOOLS) {
        println!("NOT INSTALLED: {problem}");
    }
    let memscope = memscope(&root)?;
    if !is_root() {
        return run_as_root();
    }
    let _raised =
        Priority::raise(NICENESS).context("cannot raise the priority of what is measured")?;
    let trace_help = output(Command::new(&memscope).args(["trace", "--help"]))?;
    let libraries = Libraries {
        jemalloc: find_library("libjemalloc.so.2"),
        bytehound: match &options.bytehound {
            Some(path) => {
                Some(path.canonicalize().with_context(|| format!("no {}", path.display()))?)
            }
            None => find_library("libbytehound.so"),
        },
    };
    let kit = Kit { memscope, trace_help, libraries };
    let mut results = Results::new(Machine::of(&root, &kit.memscope)?, plan.rounds, options.quick);
    let problems = measure::measure(&plan, &kit, &mut results)?;
    print!("{}", render::summary(&results));
    if !problems.is_empty() {
        bail!("{} runs have no result:\n{}", problems.len(), problems.join("\n"));
    }
    if let Some(file) = &options.output {
        results.store(file)?;
    }
    if options.update {
        results.store(&root.join(FILE))?;
        render::write(&root, &results)?;
    }
    Ok(())
}

fn plan(options: &Options) -> Result<Plan> {
    for name in &options.workload {
        Workload::named(name).with_context(|| format!("no workload is named {name}"))?;
    }
    let is_chosen = |workload: &&Workload| {
        options.workload.is_empty() || options.workload.iter().any(|name| name == workload.name)
    };
    Ok(Plan {
        workloads: WORKLOADS.iter().filter(is_chosen).collect(),
        tracers: tracers::chosen(&options.tracer)?,
        rounds: options.rounds.unwrap_or(if options.quick { QUICK_ROUNDS } else { ROUNDS }),
        quick: options.quick,
    })
}

/// What `MEMSCOPE_BIN` names, or the release build of this tree.
fn memscope(root: &Path) -> Result<PathBuf> {
    if let Some(path) = env::var_os("MEMSCOPE_BIN") {
        return Ok(PathBuf::from(path));
    }
    // As root there is often no compiler; whoever called has built it then.
    let built = workspace::release_binary("memscope");
    if !(is_root() && env::var_os("SUDO_UID").is_some() && built.exists()) {
        verifier::build_memscope(root)?;
    }
    Ok(built)
}

/// The same task, by root: only root may probe.
fn run_as_root() -> Result<()> {
    let mut command = as_root("env")?;
    for variable in ["PATH", "HOME", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR", "MEMSCOPE_BIN"] {
        if let Some(value) = env::var_os(variable) {
            let mut setting = std::ffi::OsString::from(format!("{variable}="));
            setting.push(value);
            command.arg(setting);
        }
    }
    let itself = env::current_exe().context("cannot find this program")?;
    run_command(command.arg(itself).args(env::args_os().skip(1)))
}
