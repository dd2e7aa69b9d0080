//! Where things are in this checkout.

use std::env;
use std::path::{Path, PathBuf};

pub(crate) const EBPF_MANIFEST: &str = "memscope-ebpf/Cargo.toml";
pub(crate) const TEST_CRATES_MANIFEST: &str = "tests/programs/crates/Cargo.toml";
pub(crate) const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";

/// Where the part of memscope-ebpf that runs anywhere is compiled for the host.
pub(crate) const EBPF_HOST_TARGET_DIR: &str = "target/ebpf-host";
/// Where the fuzz targets are checked.
pub(crate) const FUZZ_CHECK_TARGET_DIR: &str = "target/fuzz-check";

/// The workspace root. Asked of cargo at run time, because a shared target
/// directory can hold an xtask that was compiled in another checkout.
pub(crate) fn root() -> PathBuf {
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The place of tools with a pinned version, apart from the user's own.
pub(crate) fn tools_dir() -> PathBuf {
    root().join("target/tools")
}

/// The home of cargo's registry.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// The oldest compiler the workspace accepts, as (major, minor).
pub(crate) fn minimum_rustc() -> (u32, u32) {
    parse_release(env!("CARGO_PKG_RUST_VERSION")).unwrap_or((1, 0))
}

/// "1.96.0-nightly" → (1, 96).
pub(crate) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where `cargo build --release` puts a program of this workspace.
pub(crate) fn release_binary(name: &str) -> PathBuf {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release").join(name)
}
