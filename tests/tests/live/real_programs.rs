//! Stacks of programs that were not written for this: nearly all must be complete.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::kit::{Export, Running, Scratch, is_installed, memscope, number, run, skip, wait_until};
use crate::oracle::python;

/// Of the allocations of each program, in 1/1000. What is missing may be code that has no unwind information.
const LEAST_COMPLETE_PER_MILLE: u64 = 995;

/// What a recording has of stacks, weighed by allocations.
pub(crate) struct Completeness {
    pub(crate) allocations: u64,
    pub(crate) distinct: usize,
    mean_frames: f64,
    pub(crate) complete: u64,
    /// Allocations by outcome, the complete ones left out.
    reasons: BTreeMap<String, u64>,
}

impl Completeness {
    pub(crate) fn of(sites: &[Value]) -> Completeness {
        let (mut allocations, mut frames, mut complete) = (0, 0, 0);
        let mut reasons = BTreeMap::new();
        for site in sites {
            let count = number(site, "allocations");
            let called = site["frames"].as_array().unwrap().iter();
            frames += count * called.filter(|frame| frame["inlined"] == false).count() as u64;
            allocations += count;
            match site["stack"].as_str().unwrap() {
                "complete" => complete += count,
                reason => *reasons.entry(reason.to_owned()).or_default() += count,
            }
        }
        let mean_frames = frames as f64 / allocations.max(1) as f64;
        Completeness { allocations, distinct: sites.len(), mean_frames, complete, reasons }
    }

    pub(crate) fn row(&self, name: &str) -> String {
        let mut row = format!(
            "{name:<16} {:>8} allocations, {:>6} stacks, {:>5.1} frames, {:>8.4} % complete",
            self.allocations,
            self.distinct,
            self.mean_frames,
            100.0 * self.complete as f64 / self.allocations.max(1) as f64
        );
        for (reason, count) in &self.reasons {
            write!(row, ", {count} {reason}").unwrap();
        }
        row
    }

    fn assert_nearly_all_complete(&self, name: &str, least: u64) {
        eprintln!("{}", self.row(name));
        assert!(self.allocations >= least, "{name} allocates more than that");
        assert!(
            1000 * self.complete >= LEAST_COMPLETE_PER_MILLE * self.allocations,
            "{}",
            self.row(name)
        );
    }
}

/// The export without blocks, which are many.
pub(crate) fn export_sites(scratch: &Scratch) -> Export {
    let mut command = memscope();
    command.arg("export").arg(scratch.recording()).args(["--format", "json"]);
    Export(serde_json::from_str(&run(&mut command).assert_code(0).stdout).unwrap())
}

/// Traces a command from its start.
fn assert_complete(name: &str, least: u64, command: &[&str]) {
    let scratch = Scratch::new();
    let begun = Instant::now();
    let (program, arguments) = command.split_first().unwrap();
    let mut traced = scratch.trace_program(&["--strict"], program, arguments);
    run(&mut traced).assert_code(0);
    let traced = begun.elapsed();
    Completeness::of(export_sites(&scratch).list("sites")).assert_nearly_all_complete(name, least);
    eprintln!(
        "  {:.1} s traced, {:.1} s in all",
        traced.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}

/// It loads libraries and allocates much in them at once, before their tables can be made: with a
/// small ring as well, there must be room for the copies of its stacks.
#[test]
fn stacks_of_python_are_complete() {
    let Some(python) = python() else {
        return skip("stacks of python", "there is no python3");
    };
    let code = "import json, decimal, re, collections, hashlib\n\
                data = [{'a': i, 'b': [str(i)] * 5, 'c': {'d': decimal.Decimal(i) / 7}} for i in range(3000)]\n\
                text = json.dumps(data, default=str)\n\
                assert json.loads(text) and len(re.findall(r'\\d+', text)) > 1000\n\
                data.sort(key=lambda row: hashlib.md5(row['b'][0].encode()).digest())\n\
                collections.Counter(text.split())";
    for ring in ["64MiB", "4MiB"] {
        for path in cached_tables().into_keys() {
            fs::remove_file(path).unwrap();
        }
        let scratch = Scratch::new();
        let options = ["--strict", "--ring-buffer", ring];
        let mut traced = scratch.trace_program(&options, &python, &["-c", code]);
        // malloc for everything, or python asks for whole arenas and little else.
        run(traced.env("PYTHONMALLOC", "malloc")).assert_code(0);
        let sites = export_sites(&scratch);
        let name = format!("python3, {ring}");
        Completeness::of(sites.list("sites")).assert_nearly_all_complete(&name, 100_000);
    }
}

fn git(folder: &Path, arguments: &[&str]) {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder).args(["-c", "user.name=t", "-c", "user.email=t@t"]).args(arguments);
    run(&mut git).assert_code(0);
}

/// Forty commits of three files.
fn repository(folder: &Path) {
    git(folder, &["init", "--quiet"]);
    for commit in 0..40 {
        for file in 0..3 {
            let lines = (0..200).map(|line| format!("{} {file}\n", line * (commit + file) % 97));
            fs::write(folder.join(format!("file{file}")), lines.collect::<String>()).unwrap();
        }
        git(folder, &["add", "--all"]);
        git(folder, &["commit", "--quiet", "--message", &format!("commit {commit}")]);
    }
}

#[test]
fn stacks_of_git_are_complete() {
    if !is_installed("git") {
        return skip("stacks of git", "it is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    repository(folder.path());
    let path = folder.path().to_str().unwrap();
    let log = ["git", "-C", path, "--no-pager", "log", "--stat", "-p"];
    assert_complete("git log", 2000, &log);
    let batch = ["git", "-C", path, "cat-file", "--batch-all-objects", "--batch-check"];
    assert_complete("git cat-file", 100, &batch);
}

#[test]
fn stacks_of_sqlite_are_complete() {
    if !is_installed("sqlite3") {
        return skip("stacks of sqlite3", "it is not installed");
    }
    let sql = "create table t(a integer primary key, b text); create index i on t(b);\n\
               with recursive n(x) as (select 1 union all select x + 1 from n where x < 5000)\n\
               insert into t select x, hex(x * 7919) from n;\n\
               select count(*), max(b) from t where b like '%3%';\n\
               select b, group_concat(a) from t group by length(b) order by 1;";
    let mut statements = sql.to_owned();
    for row in 0..3000 {
        write!(statements, "insert into t(b) values('row {row}');").unwrap();
    }
    assert_complete("sqlite3", 10_000, &["sqlite3", ":memory:", &statements]);
}

#[test]
fn stacks_of_perl_are_complete() {
    if !is_installed("perl") {
        return skip("stacks of perl", "it is not installed");
    }
    let code = "my %h; for my $i (1..20000) { $h{\"key$i\"} = [ map { $_ * $i } 1..3 ]; } \
                my @k = sort { $h{$a}[1] <=> $h{$b}[1] } keys %h; \
                my $t = join ',', map { s/key/k/r } @k; print length($t), \"\\n\";";
    assert_complete("perl", 50_000, &["perl", "-e", code]);
}

fn said_by(command: &mut Command) -> Option<PathBuf> {
    let output = command.output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && path.is_file()).then_some(path)
}

/// A compiler and a file for it; says what is missing.
fn compilation(folder: &Path) -> Option<Vec<String>> {
    let Some(compiler) = said_by(Command::new("gcc").arg("-print-prog-name=cc1")) else {
        skip("stacks of cc1", "gcc is not installed");
        return None;
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/stacks_hard.c");
    let path = |name| folder.join(name).to_str().unwrap().to_owned();
    let (preprocessed, output) = (path("in.i"), path("out.s"));
    let mut preprocess = Command::new("gcc");
    run(preprocess.arg("-E").arg(source).args(["-o", &preprocessed])).assert_code(0);
    let options = ["-quiet", "-fpreprocessed", "-O2", &preprocessed, "-o", &output];
    let mut command = vec![compiler.to_str().unwrap().to_owned()];
    command.extend(options.map(str::to_owned));
    Some(command)
}

#[test]
fn stacks_of_a_compiler_are_complete() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(command) = compilation(folder.path()) {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_complete("cc1", 5000, &command);
    }
}

/// Where root's memscope keeps tables of large files.
const TABLE_CACHE: &str = "/var/cache/memscope/unwind";

fn cached_tables() -> BTreeMap<PathBuf, Vec<u8>> {
    let Ok(folder) = fs::read_dir(TABLE_CACHE) else { return BTreeMap::new() };
    let paths = folder.map(|entry| entry.unwrap().path());
    let tables = paths.filter(|path| path.extension().is_some_and(|end| end == "table"));
    tables.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// A bit in the middle is another, or the second half is missing.
fn damaged(bytes: &[u8], cut: bool) -> Vec<u8> {
    let (middle, mut damaged) = (bytes.len() / 2, bytes.to_vec());
    if cut {
        damaged.truncate(middle);
    } else {
        damaged[middle] ^= 4;
    }
    damaged
}

#[test]
fn stacks_are_complete_though_the_cached_tables_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(command) = compilation(folder.path()) else { return };
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    assert_complete("cc1, first", 5000, &command);
    let tables = cached_tables();
    assert!(!tables.is_empty(), "the compiler's table is cached");
    for cut in [false, true] {
        for (path, bytes) in &tables {
            fs::write(path, damaged(bytes, cut)).unwrap();
        }
        assert_complete(if cut { "cc1, table cut" } else { "cc1, bit changed" }, 5000, &command);
        let made_again =
            cached_tables().iter().filter(|(path, bytes)| tables[*path] == **bytes).count();
        assert!(made_again > 0, "the table is made again and kept");
    }
    for (path, bytes) in &tables {
        fs::write(path, bytes).unwrap();
    }
}

/// This very test program: Rust with the system's allocator.
#[test]
fn stacks_of_rust_are_complete() {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    assert_complete(
        "rust",
        60_000,
        &[program, "--exact", "real_programs::rows_are_read_as_written"],
    );
}

/// What `stacks_of_rust_are_complete` traces.
#[test]
fn rows_are_read_as_written() {
    let rows = (0..20_000).map(|row| format!("{{\"a\":[{row},\"{row}\"]}}"));
    let text = format!("[{}]", rows.collect::<Vec<_>>().join(","));
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.to_string(), text);
    let mut rows: Vec<String> = rows.as_array().unwrap().iter().map(Value::to_string).collect();
    rows.sort();
    rows.dedup();
    assert_eq!(rows.len(), 20_000);
}

#[test]
fn stacks_of_redis_are_complete() {
    if !is_installed("redis-server") || !is_installed("redis-benchmark") {
        return skip("stacks of redis", "redis-server and redis-benchmark are not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = port.to_string();
    let mut server = Command::new("redis-server");
    server.args(["--port", &port, "--save", "", "--appendonly", "no", "--dir"]).arg(folder.path());
    let redis = Running::spawn(&mut server);
    wait_until("redis serves", || redis.stdout().contains("Ready to accept connections"));
    let scratch = Scratch::new();
    let memscope = scratch.attach(&[], &[redis.pid()]);
    let mut load = Command::new("redis-benchmark");
    load.args(["-q", "-n", "4000", "-r", "1000", "-t", "set,lpush,hset,zadd", "-p", &port]);
    run(&mut load).assert_code(0);
    memscope.end_by(libc::SIGINT).assert_code(0);
    redis.end_by(libc::SIGTERM).assert_code(0);
    let sites = export_sites(&scratch);
    // Where redis brings an allocator of its own, the C library's is used for little.
    Completeness::of(sites.list("sites")).assert_nearly_all_complete("redis-server", 50);
}
