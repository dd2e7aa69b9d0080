//! Tasks of this repository: `cargo xtask <task>`.
//!
//! One module per task. A task prints each command before it runs it, so that
//! whatever it does can be repeated by hand.

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod fuzz;
mod kernels;
mod lint;
mod object_file;
mod process;
mod rustc_wrapper;
mod setup;
mod sidecar;
mod steps;
mod test;
mod tidy;
mod toolchain;
mod verifier;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the memscope repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compile memscope-ebpf and store the object in memscope-ebpf/prebuilt.
    BuildEbpf {
        /// Store nothing: compare with the committed object.
        #[arg(long)]
        check: bool,
    },
    /// Install what the tests and the eBPF build need and this machine lacks.
    Setup {
        /// Print the commands only.
        #[arg(long)]
        dry_run: bool,
        /// Only what `build-ebpf` needs.
        #[arg(long)]
        ebpf: bool,
        /// Only what the tests need.
        #[arg(long)]
        test: bool,
        /// Only what the benchmark against other tracers needs.
        #[arg(long)]
        bench: bool,
    },
    /// Check the rules of this tree that a program can check.
    Tidy,
    /// Run the offline tests, then the live ones, which need root.
    Test {
        /// Only the tests that need neither root nor a kernel with BPF.
        #[arg(long)]
        offline: bool,
        /// Only the tests that trace real programs.
        #[arg(long)]
        live: bool,
        /// For the live test program, such as a part of a test's name.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Measure what tracing costs the traced program, beside other tracers; needs root.
    Bench(bench::Options),
    /// Build memscope, trace a small program and print the reports.
    Demo {
        /// The program to trace instead.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Compare the verifier's work on the running kernel with what is recorded; needs root.
    Verifier {
        /// Record what is measured.
        #[arg(long)]
        update: bool,
    },
    /// Boot other kernels in QEMU, load the eBPF programs and trace there.
    Kernels {
        /// Record what the verifiers did.
        #[arg(long)]
        update: bool,
    },
    /// Run the fuzz targets, each for a while.
    Fuzz(fuzz::Options),
    /// Check format, clippy, documentation and `tidy`.
    Lint,
    /// Do all that the continuous integration does.
    Ci,
}

fn main() -> ExitCode {
    let result =
        if rustc_wrapper::is_requested() { rustc_wrapper::run() } else { run(Cli::parse().task) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::BuildEbpf { check } => build_ebpf::run(check).map(drop),
        Task::Setup { dry_run, ebpf, test, bench } => {
            setup::run(dry_run, setup::Parts { test, ebpf, bench })
        }
        Task::Tidy => tidy::run(),
        Task::Test { offline, live, args } => test::run(offline, live, &args).map(drop),
        Task::Bench(options) => bench::run(&options),
        Task::Demo { command } => demo::run(command),
        Task::Verifier { update } => verifier::run(update),
        Task::Kernels { update } => kernels::run(update).map(drop),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Lint => lint::run(),
        Task::Ci => ci::run(),
    }
}
