//! Finds what can compile for `bpfel-unknown-none`: a compiler whose library
//! source is installed, because that target comes without a compiled `core`,
//! and a bpf-linker which understands the compiler's bitcode.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{find_in_path, is_executable, output};
use crate::sidecar::Sidecar;
use crate::workspace::{cargo, minimum_rustc, parse_release, tools_dir};

/// Where a compiler comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// `rustup toolchain install nightly --component rust-src`
    Nightly,
    /// The compiler and the library source of the Linux distribution.
    Distribution,
    /// The compiler in PATH.
    Default,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly",
            Self::Distribution => "the distribution's rustc",
            Self::Default => "the default rustc",
        })
    }
}

/// A compiler with library source.
pub(crate) struct Rustc {
    pub(crate) way: Way,
    pub(crate) path: PathBuf,
    pub(crate) sysroot: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) llvm_major: u32,
    version: String,
    llvm: String,
}

impl Rustc {
    pub(crate) fn description(&self) -> String {
        format!("{}, LLVM {}", self.version, self.llvm)
    }

    pub(crate) fn source(&self) -> PathBuf {
        library_source(&self.sysroot)
    }
}

pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    version: String,
    /// As far as the shared library's name tells; a static build tells nothing.
    llvm: Option<String>,
}

impl Linker {
    pub(crate) fn description(&self) -> String {
        match &self.llvm {
            Some(llvm) => format!("{}, LLVM {llvm}", self.version),
            None => self.version.clone(),
        }
    }

    /// LLVM reads the bitcode of older versions, never that of newer ones.
    fn can_read(&self, rustc: &Rustc) -> bool {
        let major = self.llvm.as_deref().and_then(leading_number);
        major.is_none_or(|major| major >= rustc.llvm_major)
    }
}

pub(crate) struct Toolchain {
    pub(crate) rustc: Rustc,
    pub(crate) linker: Linker,
}

/// The toolchain to build with, or each reason why there is none. The one that
/// made the committed object comes first.
pub(crate) fn find(committed: Option<&Sidecar>) -> Result<Toolchain, Vec<String>> {
    let (mut compilers, mut reasons) = compilers();
    let linkers = linkers();
    if linkers.is_empty() {
        reasons.push("bpf-linker: neither in target/tools/bin nor in PATH".to_owned());
    }
    compilers.sort_by_key(|rustc| {
        let description = rustc.description();
        committed.is_none_or(|made| made.way != rustc.way || made.rustc != description)
    });
    for rustc in compilers {
        match linkers.iter().position(|linker| linker.can_read(&rustc)) {
            Some(at) => {
                let linker = linkers.into_iter().nth(at).ok_or(reasons)?;
                return Ok(Toolchain { rustc, linker });
            }
            None => reasons.extend(linkers.iter().map(|linker| {
                format!(
                    "{}: {} cannot read the bitcode of {}",
                    rustc.way,
                    linker.description(),
                    rustc.description()
                )
            })),
        }
    }
    Err(reasons)
}

/// Every usable compiler, and why each other one is not.
pub(crate) fn compilers() -> (Vec<Rustc>, Vec<String>) {
    let (mut usable, mut reasons) = (Vec::<Rustc>::new(), Vec::new());
    for way in [Way::Nightly, Way::Distribution, Way::Default] {
        match compiler(way) {
            Ok(rustc) if usable.iter().any(|other| other.sysroot == rustc.sysroot) => {}
            Ok(rustc) => usable.push(rustc),
            Err(error) => reasons.push(format!("{way}: {error:#}")),
        }
    }
    (usable, reasons)
}

fn compiler(way: Way) -> Result<Rustc> {
    let mut ask = match way {
        Way::Nightly => {
            let mut command = Command::new("rustup");
            // Looking must not download anything.
            command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly", "rustc"]);
            command
        }
        Way::Distribution => Command::new("/usr/bin/rustc"),
        Way::Default => Command::new("rustc"),
    };
    let sysroot = PathBuf::from(output(ask.args(["--print", "sysroot"]))?.trim_end());
    if way == Way::Distribution && !sysroot.starts_with("/usr") {
        bail!("/usr/bin/rustc belongs to rustup");
    }
    let source = library_source(&sysroot);
    if !source.join("library/core/Cargo.toml").exists() {
        bail!("no library source in {}", source.display());
    }
    let path = sysroot.join("bin/rustc");
    let verbose = output(Command::new(&path).arg("-vV"))?;
    let field = |name: &str| {
        let value = verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.with_context(|| format!("{} -vV names no {name}", path.display()))
    };
    let (release, llvm) = (field("release")?, field("LLVM version")?);
    let (major, minor) = minimum_rustc();
    if parse_release(release).is_none_or(|found| found < (major, minor)) {
        bail!("{} is {release}, older than {major}.{minor}", path.display());
    }
    let own_cargo = sysroot.join("bin/cargo");
    Ok(Rustc {
        way,
        // `-Z build-std` is tied to the library source, so the cargo of the
        // same release is the safest; distributions often have none.
        cargo: if is_executable(&own_cargo) { own_cargo } else { cargo() },
        llvm_major: leading_number(llvm).with_context(|| format!("odd LLVM version {llvm}"))?,
        version: verbose.lines().next().unwrap_or_default().to_owned(),
        llvm: llvm.to_owned(),
        path,
        sysroot,
    })
}

fn library_source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust")
}

fn linkers() -> Vec<Linker> {
    let pinned = tools_dir().join("bin/bpf-linker");
    let pinned = is_executable(&pinned).then_some(pinned);
    pinned
        .into_iter()
        .chain(find_in_path("bpf-linker"))
        .filter_map(|path| linker(path).ok())
        .collect()
}

fn linker(path: PathBuf) -> Result<Linker> {
    let version = output(Command::new(&path).arg("--version"))?.trim_end().to_owned();
    // Its --version does not name the LLVM it was built with.
    let libraries = output(Command::new("ldd").arg(&path)).unwrap_or_default();
    let llvm = libraries.split_whitespace().find_map(|word| word.strip_prefix("libLLVM.so."));
    Ok(Linker { llvm: llvm.map(str::to_owned), path, version })
}

fn leading_number(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}
