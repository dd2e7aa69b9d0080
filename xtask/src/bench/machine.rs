//! What the numbers depend on besides memscope.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::results::{FILE, Machine};
use crate::process::output;

/// Documents that are made of the results: that they differ from the commit changes nothing that is measured.
const GENERATED: &[&str] = &[FILE, super::render::DOCUMENT, super::render::README];

/// Programs whose version matters, and how to ask.
const VERSIONS: &[(&str, &[&str])] = &[
    ("bpftrace", &["--version"]),
    ("heaptrack", &["--version"]),
    ("valgrind", &["--version"]),
    ("redis-server", &["--version"]),
    ("sqlite3", &["--version"]),
    ("python3", &["--version"]),
    ("cc", &["--version"]),
    ("rustc", &["--version"]),
    ("ldd", &["--version"]),
];

impl Machine {
    pub(super) fn of(root: &Path, memscope: &Path) -> Result<Self> {
        let mut date = Command::new("date");
        let cpuinfo = read("/proc/cpuinfo")?;
        let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let mut versions = vec![version("memscope", Command::new(memscope).arg("--version"))];
        versions.extend(
            VERSIONS.iter().map(|(name, words)| version(name, Command::new(name).args(*words))),
        );
        Ok(Self {
            commit: commit(root)?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: processor(&cpuinfo),
            processors: processors as u64,
            date: output(date.args(["--utc", "+%F"]))?.trim().to_owned(),
            floor: String::new(),
            load: [load()?, String::new()],
            versions: versions.into_iter().flatten().collect(),
        })
    }
}

/// Load average of the last minute.
pub(super) fn load() -> Result<String> {
    let text = read("/proc/loadavg")?;
    Ok(text.split_whitespace().next().unwrap_or("?").to_owned())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn processor(cpuinfo: &str) -> String {
    let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let model = lines.find(|(key, _)| key.trim() == "model name");
    model.map_or("?", |(_, value)| value.trim()).to_owned()
}

/// The commit, and whether the tree differs from it.
fn commit(root: &Path) -> Result<String> {
    let git = |words: &[&str]| output(Command::new("git").current_dir(root).args(words));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?.trim().to_owned();
    let status = git(&["status", "--porcelain", "--untracked-files=all"])?;
    let changed = status.lines().filter_map(|line| line.get(3..));
    let differs = changed.into_iter().any(|path| !GENERATED.contains(&path));
    Ok(if differs { format!("{commit} with changes") } else { commit })
}

/// The first line that has a digit; none if there is no such program.
fn version(name: &str, command: &mut Command) -> Option<(String, String)> {
    let said = output(command).ok()?;
    let line = said.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    Some((name.to_owned(), shortened(line)))
}

/// Up to what only tells two builds of one version apart.
fn shortened(line: &str) -> String {
    let words = line.split_whitespace().take_while(|word| !word.starts_with("sha="));
    let mut words: Vec<&str> = words.collect();
    // sqlite3 adds the hash of its source.
    words.retain(|word| word.len() < 40);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_the_name_that_the_kernel_gives_it() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: A  B @ 2 GHz\n"), "A  B @ 2 GHz");
        assert_eq!(processor(""), "?");
    }

    #[test]
    fn versions_are_one_line_without_hashes() {
        assert_eq!(
            shortened("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0"),
            "Redis server v=7.0.15"
        );
        let sqlite = format!("3.40.1 2022-12-28 14:03:47 {}", "a".repeat(64));
        assert_eq!(shortened(&sqlite), "3.40.1 2022-12-28 14:03:47");
        let mut command = Command::new("sh");
        let version = version("x", command.args(["-c", "echo hello; echo x 1.2"]));
        assert_eq!(version, Some(("x".to_owned(), "x 1.2".to_owned())));
    }
}
