//! `tidy`: the rules of this tree that a program can check.
//!
//! Takes the files git knows or would add; prints one line for each violation,
//! with what to do about it. It changes nothing.

mod imports;
mod rust_rules;
mod tree;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output;
use crate::{bench, sidecar, workspace};

/// The rules name what they forbid, so they cannot be checked by themselves.
const OWN_SOURCE: &str = "xtask/src/tidy/";
/// Files of the machinery around the project, not of the project.
const NOT_OURS: &str = ".ci/";

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    what: String,
    remedy: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} — {}", self.path, self.line, self.what, self.remedy)
    }
}

/// A file of the tree. Binary files have no text.
struct File {
    path: String,
    bytes: usize,
    text: Option<String>,
}

impl File {
    fn extension(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

pub(crate) fn run() -> Result<()> {
    let root = workspace::root();
    let files = files(&root)?;
    let mut violations = Vec::new();
    for file in &files {
        violations.extend(tree::check(file, &root));
        if let (Some(text), "rs") = (&file.text, file.extension()) {
            check_rust(&file.path, text, &mut violations);
        }
    }
    if let Some(what) = sidecar::stale(&root)? {
        let remedy = "run `cargo xtask build-ebpf` and commit the result";
        violations.push(Violation::new(sidecar::SIDECAR, 1, what, remedy));
    }
    for path in bench::stale(&root)? {
        let what = "differs from what the benchmark's results give";
        violations.push(Violation::new(path, 1, what, "run `cargo xtask bench --render`"));
    }
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("tidy found {} violations", violations.len());
    }
    println!("tidy: {} files are in order", files.len());
    Ok(())
}

fn check_rust(path: &str, text: &str, violations: &mut Vec<Violation>) {
    match syn::parse_file(text) {
        Ok(syntax) => {
            violations.extend(imports::check(path, &syntax));
            violations.extend(rust_rules::check(path, text, &syntax));
        }
        Err(error) => violations.push(Violation::new(
            path,
            error.span().start().line,
            format!("does not parse: {error}"),
            "make it compile",
        )),
    }
}

fn files(root: &Path) -> Result<Vec<File>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = output(&mut git).context("tidy checks the files git knows of")?;
    let mut files = Vec::new();
    for name in names.split_terminator('\0').filter(|name| !name.starts_with(NOT_OURS)) {
        let path = root.join(name);
        // Links, submodules and files deleted but not yet committed.
        if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = content.len();
        files.push(File { path: name.to_owned(), bytes, text: String::from_utf8(content).ok() });
    }
    Ok(files)
}
