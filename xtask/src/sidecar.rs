//! The committed eBPF object and the note beside it that says what it is.
//!
//! The note records a hash of the sources, so that a forgotten rebuild is seen
//! without any eBPF toolchain, and the toolchain, because another compiler
//! gives other bytes from the same sources.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::toolchain::{Toolchain, Way};

pub(crate) const OBJECT: &str = "memscope-ebpf/prebuilt/memscope-ebpf.bpf.o";
pub(crate) const SIDECAR: &str = "memscope-ebpf/prebuilt/memscope-ebpf.bpf.json";

/// What the object is made of; directories count with all files in them.
const SOURCES: &[&str] = &[
    "memscope-common/Cargo.toml",
    "memscope-common/src",
    "memscope-ebpf/Cargo.lock",
    "memscope-ebpf/Cargo.toml",
    "memscope-ebpf/build.rs",
    "memscope-ebpf/src",
];

#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
pub(crate) struct Sidecar {
    pub(crate) sources_sha256: String,
    pub(crate) object_sha256: String,
    pub(crate) rustc: String,
    pub(crate) bpf_linker: String,
    pub(crate) way: Way,
}

impl Sidecar {
    pub(crate) fn new(root: &Path, object: &[u8], toolchain: &Toolchain) -> Result<Self> {
        Ok(Self {
            sources_sha256: sources_sha256(root)?,
            object_sha256: sha256(object),
            rustc: toolchain.rustc.description(),
            bpf_linker: toolchain.linker.description(),
            way: toolchain.rustc.way,
        })
    }

    /// The note of the committed object; `None` before the first build.
    pub(crate) fn load(root: &Path) -> Result<Option<Self>> {
        let path = root.join(SIDECAR);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).map(Some).with_context(|| {
            format!("{SIDECAR} is damaged; restore it or run `cargo xtask build-ebpf`")
        })
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    pub(crate) fn same_toolchain(&self, other: &Self) -> bool {
        self.rustc == other.rustc && self.bpf_linker == other.bpf_linker && self.way == other.way
    }

    pub(crate) fn toolchain(&self) -> String {
        format!("{} with {}", self.rustc, self.bpf_linker)
    }
}

/// What is wrong with the committed object, as far as hashes can tell.
pub(crate) fn stale(root: &Path) -> Result<Option<String>> {
    let Some(sidecar) = Sidecar::load(root)? else {
        return Ok(Some("there is no prebuilt object".to_owned()));
    };
    let path = root.join(OBJECT);
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(if sidecar.sources_sha256 != sources_sha256(root)? {
        Some("the eBPF sources changed since the object was built".to_owned())
    } else if sidecar.object_sha256 != sha256(&object) {
        Some("the object is not the one its note describes".to_owned())
    } else {
        None
    })
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// One hash over paths and contents. Each part is preceded by its length, so
/// that no two different trees can run together to the same bytes.
fn sources_sha256(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect_files(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).as_os_str().as_encoded_bytes();
        for part in [name, &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_path_buf());
    } else if path.is_dir() {
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
        for entry in entries {
            collect_files(&entry?.path(), files)?;
        }
    }
    Ok(())
}
