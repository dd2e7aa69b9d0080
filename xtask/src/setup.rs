//! `setup`: installs what is missing, and nothing when nothing is.
//!
//! Everything here is optional: memscope itself builds with Rust alone. So what
//! cannot be installed is reported, and the tests that need it skip themselves.

use std::process::Command;

use anyhow::{Result, anyhow, bail};
use memscope_tests::programs::find_library;

use crate::process::{as_root, find_in_path, output, run as run_command, show};
use crate::toolchain;
use crate::workspace;
use crate::workspace::parse_release;

/// Programs and libraries, and the packages that may hold them. The first package
/// that the distribution has is taken.
pub(crate) type Tools<'a> = &'a [(&'a str, &'a [&'a str])];

/// Programs the tests use.
const TEST_TOOLS: Tools<'static> = &[
    ("gcc", &["gcc"]),
    ("g++", &["g++"]),
    ("clang", &["clang"]),
    ("make", &["make"]),
    ("musl-gcc", &["musl-tools"]),
    ("python3", &["python3"]),
    ("readelf", &["binutils"]),
    ("dwz", &["dwz"]),
    ("xz", &["xz-utils"]),
    ("debuginfod-find", &["debuginfod", "elfutils"]),
    ("valgrind", &["valgrind"]),
    ("gdb", &["gdb"]),
    ("heaptrack", &["heaptrack"]),
    ("sqlite3", &["sqlite3"]),
    ("perl", &["perl"]),
    ("git", &["git"]),
    ("bpftool", &["bpftool", "linux-tools-common"]),
    ("redis-server", &["redis-server"]),
    ("redis-benchmark", &["redis-tools"]),
    ("libjemalloc.so.2", &["libjemalloc2"]),
    ("libjemalloc.a", &["libjemalloc-dev"]),
    ("libmimalloc.so.2", &["libmimalloc2.0"]),
    ("libtcmalloc_minimal.so.4", &["libtcmalloc-minimal4", "libtcmalloc-minimal4t64"]),
    ("libtcmalloc_minimal.a", &["libgoogle-perftools-dev"]),
    ("libclang_rt.scudo_standalone-x86_64.so", &["libclang-rt-dev"]),
];

/// What the benchmark measures, and measures by.
pub(crate) const BENCH_TOOLS: Tools<'static> = &[
    ("gcc", &["gcc"]),
    ("g++", &["g++"]),
    ("python3", &["python3"]),
    ("sqlite3", &["sqlite3"]),
    ("redis-server", &["redis-server"]),
    ("redis-benchmark", &["redis-tools"]),
    ("bpftrace", &["bpftrace"]),
    ("heaptrack", &["heaptrack"]),
    ("zstd", &["zstd"]),
    ("valgrind", &["valgrind"]),
    ("libjemalloc.so.2", &["libjemalloc2"]),
];

/// Recent compilers that Debian ships to build browsers, with their source.
const DEBIAN_RUST: [&str; 2] = ["rustc-web", "rust-web-src"];
const DEBIAN_RUST_LLVM: u32 = 22;

const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM versions that this bpf-linker can be built with.
const BPF_LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) test: bool,
    pub(crate) ebpf: bool,
    pub(crate) bench: bool,
}

impl Parts {
    pub(crate) const ALL: Self = Self { test: true, ebpf: true, bench: true };
    pub(crate) const TEST: Self = Self { test: true, ..Self::NONE };
    const NONE: Self = Self { test: false, ebpf: false, bench: false };
}

pub(crate) fn run(dry_run: bool, named: Parts) -> Result<()> {
    let parts = if named == Parts::NONE { Parts::ALL } else { named };
    let problems = install(parts, dry_run);
    // Who asks for one thing by name wants to know in the exit code.
    if named != Parts::NONE && !problems.is_empty() {
        bail!("could not install: {}", problems.join("; "));
    }
    Ok(())
}

/// Returns what could not be installed and why.
pub(crate) fn install(parts: Parts, dry_run: bool) -> Vec<String> {
    let mut installer = Installer { dry_run, lists_are_fresh: false };
    let mut problems = Vec::new();
    for (wanted, tools) in [(parts.test, TEST_TOOLS), (parts.bench, BENCH_TOOLS)] {
        if wanted {
            problems.extend(installer.programs(tools));
        }
    }
    if parts.ebpf
        && let Err(error) = installer.ebpf()
    {
        problems.push(format!("eBPF toolchain: {error:#}"));
    }
    for problem in &problems {
        eprintln!("NOT INSTALLED: {problem}");
    }
    if problems.is_empty() {
        println!("setup: nothing else is missing");
    }
    problems
}

/// What a single task needs. Returns what could not be installed and why.
pub(crate) fn install_tools(tools: Tools<'_>) -> Vec<String> {
    Installer { dry_run: false, lists_are_fresh: false }.programs(tools)
}

struct Installer {
    dry_run: bool,
    lists_are_fresh: bool,
}

impl Installer {
    fn programs(&mut self, tools: Tools<'_>) -> Vec<String> {
        let is_missing = |name: &str| find_in_path(name).is_none() && find_library(name).is_none();
        let missing = tools.iter().filter(|(name, _)| is_missing(name));
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            return Vec::new();
        }
        let (mut packages, mut problems) = (Vec::new(), Vec::new());
        if let Err(error) = self.refresh_lists() {
            problems.push(format!("fresh package lists: {error:#}"));
        }
        for (program, alternatives) in missing {
            match alternatives.iter().find(|package| candidate(package).is_some()) {
                Some(package) => packages.push(*package),
                None => problems.push(format!(
                    "{program}: apt offers no {}; install it with your package manager",
                    alternatives.join(" or ")
                )),
            }
        }
        if !packages.is_empty()
            && let Err(error) = apt_install(&packages).and_then(|mut step| self.perform(&mut step))
        {
            problems.push(format!("{}: {error:#}", packages.join(" ")));
        }
        problems
    }

    fn ebpf(&mut self) -> Result<()> {
        if toolchain::find(None).is_ok() {
            return Ok(());
        }
        self.refresh_lists()?;
        for mut step in ebpf_plan()? {
            self.perform(&mut step)?;
        }
        if self.dry_run {
            return Ok(());
        }
        toolchain::find(None).map(drop).map_err(|reasons| anyhow!(reasons.join("; ")))
    }

    /// The lists of a fresh machine are empty, and old ones name what is gone.
    fn refresh_lists(&mut self) -> Result<()> {
        if self.lists_are_fresh || find_in_path("apt-get").is_none() {
            return Ok(());
        }
        self.lists_are_fresh = true;
        self.perform(&mut apt_get(&["update", "--quiet"])?)
    }

    fn perform(&self, step: &mut Command) -> Result<()> {
        if self.dry_run {
            println!("$ {}", show(step));
            return Ok(());
        }
        run_command(step)
    }
}

/// The commands that would install the eBPF toolchain on this system.
pub(crate) fn ebpf_by_hand() -> Vec<String> {
    match ebpf_plan() {
        Ok(plan) => plan.iter().map(show).collect(),
        Err(error) => vec![format!("(no recipe for this system: {error:#})")],
    }
}

fn ebpf_plan() -> Result<Vec<Command>> {
    let mut plan = Vec::new();
    let compiler = toolchain::compilers().0.into_iter().next();
    let debian_rust = candidate(DEBIAN_RUST[0])
        .is_some_and(|version| parse_release(&version) >= Some(workspace::minimum_rustc()));
    let mut packages = Vec::new();
    let llvm_needed = if let Some(rustc) = compiler {
        rustc.llvm_major
    } else if debian_rust && candidate(DEBIAN_RUST[1]).is_some() {
        packages.extend(DEBIAN_RUST.map(str::to_owned));
        DEBIAN_RUST_LLVM
    } else {
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        rustup.args(["--component", "rust-src"]);
        plan.push(rustup);
        // A nightly's LLVM is known only afterwards; it is seldom an old one.
        *BPF_LINKER_LLVMS.end()
    };
    let linker = linker_plan(llvm_needed, &mut packages);
    if !packages.is_empty() {
        plan.insert(0, apt_install(&packages)?);
    }
    plan.extend(linker);
    Ok(plan)
}

/// Builds the linker with an installed LLVM, else with one that `packages` then
/// asks for, else takes the release of its authors, which has LLVM in it.
fn linker_plan(llvm_needed: u32, packages: &mut Vec<String>) -> Vec<Command> {
    let usable = || BPF_LINKER_LLVMS.filter(|&llvm| llvm >= llvm_needed);
    let installed = usable().find(|llvm| llvm_config(*llvm).exists());
    let llvm = installed.or_else(|| {
        let llvm = usable().find(|llvm| candidate(&format!("llvm-{llvm}-dev")).is_some())?;
        packages.push(format!("llvm-{llvm}-dev"));
        Some(llvm)
    });
    let cargo = || Command::new("cargo");
    let Some(llvm) = llvm else {
        let (mut fetcher, mut linker) = (cargo(), cargo());
        fetcher.args(["install", "cargo-binstall", "--locked"]);
        linker.args(["binstall", "--no-confirm", "--root"]).arg(workspace::tools_dir());
        linker.arg(format!("bpf-linker@{BPF_LINKER_VERSION}"));
        return vec![fetcher, linker];
    };
    let mut linker = cargo();
    linker.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    linker.args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"]);
    linker.args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"]);
    linker.arg(workspace::tools_dir());
    vec![linker]
}

fn llvm_config(llvm: u32) -> std::path::PathBuf {
    format!("/usr/lib/llvm-{llvm}/bin/llvm-config").into()
}

/// The version of a package that apt would install.
fn candidate(package: &str) -> Option<String> {
    let policy = output(Command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn apt_install(packages: &[impl AsRef<str>]) -> Result<Command> {
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages.iter().map(AsRef::as_ref));
    apt_get(&words)
}

fn apt_get(words: &[&str]) -> Result<Command> {
    // sudo drops the environment, `env` after it does not.
    let mut command = as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(words);
    Ok(command)
}
