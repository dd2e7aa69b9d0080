//! `build-ebpf`: the kernel side, compiled to an object that is committed, so
//! that everything else builds with a stable compiler alone.
//!
//! The same sources and the same toolchain give the same bytes on any machine
//! and in any directory; `--check` relies on it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::object_file::strip_dwarf;
use crate::process::run as run_command;
use crate::rustc_wrapper;
use crate::setup;
use crate::sidecar::{OBJECT, SIDECAR, Sidecar, sha256};
use crate::toolchain::{self, Toolchain};
use crate::workspace;

const TARGET: &str = "bpfel-unknown-none";

/// Returns what was skipped: a comparison with other tools proves nothing.
pub(crate) fn run(check: bool) -> Result<Vec<String>> {
    let root = workspace::root();
    let committed = Sidecar::load(&root)?;
    let toolchain = match toolchain::find(committed.as_ref()) {
        Ok(toolchain) => toolchain,
        Err(reasons) => bail!(
            "nothing here can compile for {TARGET}:\n  {}\nTo install it, run `cargo xtask setup --ebpf`, or by hand:\n  {}",
            reasons.join("\n  "),
            setup::ebpf_by_hand().join("\n  ")
        ),
    };
    let object = compile(&root, &toolchain)?;
    let built = Sidecar::new(&root, &object, &toolchain)?;
    eprintln!("{} bytes, sha256 {}, by {}", object.len(), built.object_sha256, built.toolchain());
    if check {
        return compare(&root, &object, &built, committed.as_ref());
    }
    if let Some(made) = committed.filter(|made| !made.same_toolchain(&built)) {
        eprintln!("note: the object before was made by {}", made.toolchain());
    }
    let changed = write_if_different(&root.join(OBJECT), &object)?
        | write_if_different(&root.join(SIDECAR), built.to_json()?.as_bytes())?;
    println!("{OBJECT}: {}", if changed { "written" } else { "already up to date" });
    Ok(Vec::new())
}

fn compile(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target_dir = root.join("target/ebpf");
    let manifest = root.join("memscope-ebpf/Cargo.toml");
    // Cached crates must be unpacked before their directories can be remapped.
    run_command(
        Command::new(&toolchain.rustc.cargo)
            .args(["fetch", "--quiet", "--manifest-path"])
            .arg(&manifest)
            .env("RUSTC", &toolchain.rustc.path),
    )?;
    run_command(
        Command::new(&toolchain.rustc.cargo)
            .current_dir(root.join("memscope-ebpf"))
            .args(["build", "--release", "-Z", "build-std=core", "--target", TARGET])
            .args(["--bin", "memscope-ebpf", "--target-dir"])
            .arg(&target_dir)
            .env("RUSTC", &toolchain.rustc.path)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC_WRAPPER", env::current_exe().context("cannot find this program")?)
            .env(rustc_wrapper::REQUEST, "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, toolchain)?)
            .env_remove("RUSTC_WORKSPACE_WRAPPER"),
    )
    .context("memscope-ebpf does not compile")?;
    let path = target_dir.join(TARGET).join("release/memscope-ebpf");
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    strip_dwarf(&object).with_context(|| format!("cannot strip {}", path.display()))
}

/// The compiler's flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
/// BTF is made from debug information and keeps the paths in it, so all that
/// differ between machines get a fixed name.
fn rustflags(root: &Path, toolchain: &Toolchain) -> Result<OsString> {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker.path);
    let mut flags = vec![linker];
    flags.extend(["-Clink-arg=--btf", "-Cdebuginfo=2"].map(OsString::from));
    // The object reads registers by the x86-64 layout of pt_regs.
    flags.extend(["--cfg", "bpf_target_arch=\"x86_64\""].map(OsString::from));
    let mut remap = |from: &Path, to: &str| -> Result<()> {
        let real =
            from.canonicalize().with_context(|| format!("cannot find {}", from.display()))?;
        let other = (real != from).then_some(from);
        for path in other.into_iter().chain([real.as_path()]) {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(path);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        }
        Ok(())
    };
    remap(root, "/memscope")?;
    remap(&toolchain.rustc.source(), "/rust")?;
    // Their names depend on the registry's address.
    let registries = workspace::cargo_home().map(|home| home.join("registry/src"));
    for registry in
        registries.iter().filter_map(|registries| fs::read_dir(registries).ok()).flatten()
    {
        remap(&registry?.path(), "/registry")?;
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

fn compare(
    root: &Path,
    object: &[u8],
    built: &Sidecar,
    committed: Option<&Sidecar>,
) -> Result<Vec<String>> {
    let Some(committed) = committed else {
        bail!("there is no {SIDECAR}; run `cargo xtask build-ebpf`");
    };
    if !committed.same_toolchain(built) {
        let skipped = format!(
            "build-ebpf --check — cannot compare: built by {}, here is {}",
            committed.toolchain(),
            built.toolchain()
        );
        println!("SKIPPED: {skipped}");
        return Ok(vec![skipped]);
    }
    let path = root.join(OBJECT);
    let expected = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if expected != object {
        bail!(
            "{OBJECT} has sha256 {}, the sources give {}; \
             run `cargo xtask build-ebpf` and commit the result",
            sha256(&expected),
            built.object_sha256
        );
    }
    println!("{OBJECT}: reproduced byte for byte");
    Ok(Vec::new())
}

fn write_if_different(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}
