//! xtask in the role of cargo's `RUSTC_WRAPPER` while the eBPF side is built.
//!
//! Cargo derives `-C metadata` from absolute paths, for path dependencies
//! outside the package and for the standard library's source. The compiler
//! mixes it into symbol names, so the object would differ from checkout to
//! checkout. The wrapper replaces it by a hash of what does identify a crate
//! in this small build: package, version, crate name and crate type.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Set by `build-ebpf` for the cargo it starts.
pub(crate) const REQUEST: &str = "MEMSCOPE_XTASK_RUSTC_WRAPPER";

pub(crate) fn is_requested() -> bool {
    env::var_os(REQUEST).is_some()
}

/// Replaces this process by the compiler; returns only when that fails.
pub(crate) fn run() -> Result<()> {
    let mut words = env::args_os().skip(1);
    let rustc = words.next().context("cargo named no compiler to wrap")?;
    let words: Vec<OsString> = words.collect();
    let variable = |name| env::var(name).unwrap_or_default();
    let package = [variable("CARGO_PKG_NAME"), variable("CARGO_PKG_VERSION")];
    let error = Command::new(&rustc).args(with_stable_metadata(words, &package)).exec();
    Err(error).with_context(|| format!("cannot start the compiler {}", rustc.display()))
}

fn with_stable_metadata(mut words: Vec<OsString>, package: &[String]) -> Vec<OsString> {
    let after = |name: &str| {
        words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned()
    };
    let mut hash = Sha256::new();
    for part in package {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    for name in ["--crate-name", "--crate-type"] {
        hash.update(after(name).unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
    }
    let stable = format!("metadata={:x}", hash.finalize());
    for word in &mut words {
        if word.as_encoded_bytes().starts_with(b"metadata=") {
            *word = OsStr::new(&stable).to_os_string();
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_the_metadata_changes_and_only_by_identity() {
        let package = ["demo".to_owned(), "1.0.0".to_owned()];
        let one = words("--crate-name demo --crate-type lib -C metadata=aaaa -C opt-level=3");
        let two = words("--crate-name demo --crate-type lib -C metadata=bbbb -C opt-level=3");
        let bin = words("--crate-name demo --crate-type bin -C metadata=aaaa -C opt-level=3");
        let first = with_stable_metadata(one.clone(), &package);
        assert_eq!(first, with_stable_metadata(two, &package));
        assert_ne!(first[5], with_stable_metadata(bin, &package)[5]);
        assert_eq!(first[..5], one[..5]);
        assert_eq!(first[6..], one[6..]);
    }

    #[test]
    fn a_call_without_metadata_is_untouched() {
        assert_eq!(with_stable_metadata(words("-vV"), &[]), words("-vV"));
    }
}
