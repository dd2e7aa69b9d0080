//! Compiles the test programs, once per variant, into `<target>/test-programs`.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

/// How a program is compiled. All but `Stripped` come with debug information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Optimised, without frame pointers: what most release binaries are.
    Default,
    /// Optimised, with frame pointers; the base of all variants below.
    FramePointers,
    /// Not optimised.
    Unoptimised,
    /// Linked at a fixed address.
    NoPie,
    /// Statically linked, so the allocator is in the program itself. Not together with the oracle.
    Static,
    /// Without symbol table and debug information.
    Stripped,
    /// Debug information and symbols in `<program>.debug` beside it, found by `.gnu_debuglink` or build id.
    DebugLink,
    /// With Rust's v0 symbol mangling; the others have rustc's default. For C and C++ the same as `FramePointers`.
    RustV0,
}

impl Variant {
    fn directory(self) -> &'static str {
        match self {
            Variant::Default => "default",
            Variant::FramePointers => "frame-pointers",
            Variant::Unoptimised => "unoptimised",
            Variant::NoPie => "no-pie",
            Variant::Static => "static",
            Variant::Stripped => "stripped",
            Variant::DebugLink => "debug-link",
            Variant::RustV0 => "rust-v0",
        }
    }

    fn c_flags(self) -> &'static [&'static str] {
        match self {
            // Said outright, because some distributions' compilers keep frame pointers unless told otherwise.
            Variant::Default => &["-O2", "-g", "-fomit-frame-pointer"],
            Variant::FramePointers | Variant::RustV0 => &["-O2", "-g", "-fno-omit-frame-pointer"],
            Variant::Unoptimised => &["-O0", "-g", "-fno-omit-frame-pointer"],
            Variant::NoPie => &["-O2", "-g", "-fno-omit-frame-pointer", "-fno-pie", "-no-pie"],
            Variant::Static => &["-O2", "-g", "-fno-omit-frame-pointer", "-static"],
            Variant::Stripped => &["-O2", "-fno-omit-frame-pointer", "-s"],
            // The build id is the other way to find the debug file; not every compiler adds one unasked.
            Variant::DebugLink => &["-O2", "-g", "-fno-omit-frame-pointer", "-Wl,--build-id"],
        }
    }

    fn rust_flags(self) -> &'static [&'static str] {
        const FRAME_POINTERS: &str = "-Cforce-frame-pointers=yes";
        match self {
            Variant::Default => &["-O", "-g"],
            Variant::FramePointers => &["-O", "-g", FRAME_POINTERS],
            Variant::Unoptimised => &["-g", FRAME_POINTERS],
            Variant::NoPie => &["-O", "-g", FRAME_POINTERS, "-Crelocation-model=static"],
            Variant::Static => &["-O", "-g", FRAME_POINTERS, "-Ctarget-feature=+crt-static"],
            Variant::Stripped => &["-O", FRAME_POINTERS, "-Cstrip=symbols"],
            Variant::DebugLink => &["-O", "-g", FRAME_POINTERS, "-Clink-arg=-Wl,--build-id"],
            // chain.rs spells the names it expects as the mangling does.
            Variant::RustV0 => {
                &["-O", "-g", FRAME_POINTERS, "-Csymbol-mangling-version=v0", "--cfg=mangling_v0"]
            }
        }
    }
}

/// The directory of this workspace's build results.
fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            package.parent().expect("this package lies inside the workspace").join("target")
        }
    }
}

/// The memscope under test: `$MEMSCOPE_BIN`, or else the release build of this workspace.
pub fn memscope_binary() -> PathBuf {
    let path = match env::var_os("MEMSCOPE_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("release/memscope"),
    };
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build --release` or set MEMSCOPE_BIN",
        path.display()
    );
    path
}

pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// The source of a program that is run as it is.
pub fn source(name: &str) -> PathBuf {
    sources().join(name)
}

/// The program compiled from `source` (`"mix.c"`, `"mix.cpp"`, `"mix.rs"`, …), named `mix-c` and so on.
pub fn build(source: &str, variant: Variant) -> PathBuf {
    build_program(source, variant, None)
}

/// The same program, linked to the oracle so that it logs without LD_PRELOAD: a tracer that starts it can be given
/// `MEMSCOPE_ORACLE_LOG` in its environment and logs nothing itself.
pub fn build_with_oracle(source: &str, variant: Variant) -> PathBuf {
    assert_ne!(variant, Variant::Static, "a static program cannot be linked to a shared library");
    build_program(source, variant, Some(&oracle_library()))
}

/// The same program, linked to an allocator of the system: a shared library or an archive.
pub fn build_with_allocator(source: &str, library: &Path) -> PathBuf {
    build_program(source, Variant::Default, Some(library))
}

/// A program in Rust whose global allocator a crate brings, built as releases are. `program` and `feature` are those of
/// `tests/programs/crates/Cargo.toml`. Says why if the crates cannot be had; all else that fails is a fault.
pub fn build_with_crate(program: &str, feature: &str) -> Result<PathBuf, String> {
    let cargo = |words: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(words).arg("--manifest-path").arg(sources().join("crates/Cargo.toml"));
        command
    };
    let mut fetch = cargo(&["fetch", "--locked"]);
    let fetched = match fetch.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot run {fetch:?}: {error}"),
    };
    if !fetched.status.success() {
        let reason = String::from_utf8_lossy(&fetched.stderr);
        assert!(!reason.contains("--locked"), "tests/programs/crates/Cargo.lock: {reason}");
        let first = reason.lines().find(|line| line.starts_with("error")).unwrap_or("no reason");
        return Err(format!("its crates cannot be fetched: {first}"));
    }
    // A folder for each, as their dependencies differ by the feature.
    let directory = target_directory().join("test-programs").join(format!("crate-{feature}"));
    // Whether it is up to date cargo knows, and others that build it wait.
    let mut build = cargo(&["build", "--release", "--locked", "--offline"]);
    run(build.args(["--bin", program, "--features", feature, "--target-dir"]).arg(&directory));
    Ok(directory.join("release").join(program))
}

/// The library of this name in the directories that a dynamic loader searches or, of clang's runtime, where clang has
/// it.
pub fn find_library(name: &str) -> Option<PathBuf> {
    if name.starts_with("libclang_rt.") {
        let output = Command::new("clang").arg(format!("-print-file-name={name}")).output().ok()?;
        let file = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
        // Of a file that it does not have, clang says the name.
        return file.is_absolute().then_some(file);
    }
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["/usr/local/lib", "/usr/lib", "/lib", "/usr/lib64", "/lib64"]
        .iter()
        .flat_map(|folder| [Path::new(folder).join(&triple), PathBuf::from(folder)])
        .map(|folder| folder.join(name))
        .find(|file| (name.contains(".so") || name.ends_with(".a")) && file.is_file())
}

/// `liboracle.so`, for LD_PRELOAD.
pub fn oracle_library() -> PathBuf {
    // Optimised and with frame pointers whatever the program has, so that it lengthens stacks without breaking them.
    build_library("oracle.c", Variant::FramePointers)
}

/// `libplugin.so`, which `leaks.c` loads at run time.
pub fn plugin_library(variant: Variant) -> PathBuf {
    build_library("plugin.c", variant)
}

/// `libcopies_plugin.so`, which `copies.c` loads at run time.
pub fn copies_library(variant: Variant) -> PathBuf {
    build_library("copies_plugin.c", variant)
}

fn build_library(source: &str, variant: Variant) -> PathBuf {
    // A library is position-independent whatever the program is.
    let variant = match variant {
        Variant::NoPie => Variant::FramePointers,
        other => other,
    };
    let stem = source.strip_suffix(".c").expect("the libraries are written in C");
    let name = format!("lib{stem}.so");
    let mut command = c_compiler(variant);
    command.args(["-fPIC", "-shared", &format!("-Wl,-soname,{name}")]).arg(sources().join(source));
    compile(command, source, variant, variant.directory(), &name)
}

fn build_program(source: &str, variant: Variant, linked: Option<&Path>) -> PathBuf {
    let (stem, extension) = source.rsplit_once('.').expect("a source file has an extension");
    let path = sources().join(source);
    let mut command = match extension {
        "c" if stem == "noalloc" => {
            let mut command = Command::new("cc");
            command
                .args([
                    "-O2",
                    "-g",
                    "-static",
                    "-nostdlib",
                    "-ffreestanding",
                    "-fno-stack-protector",
                ])
                .arg(path);
            command
        }
        "c" => {
            let mut command = c_compiler(variant);
            // Older C libraries keep dlopen in a library of its own; the linker drops it where it is empty.
            command.arg("-pthread").arg(path).arg("-ldl");
            command
        }
        "cpp" => {
            let mut command = Command::new("c++");
            command
                .args(["-std=gnu++17", "-Wall", "-Wextra", "-pthread"])
                .args(variant.c_flags())
                .arg(path);
            command
        }
        "rs" => {
            let mut command = Command::new("rustc");
            command
                .args(["--edition=2021", "--crate-name", stem])
                .args(variant.rust_flags())
                .arg(path);
            command
        }
        _ => panic!("{source}: no compiler for .{extension}"),
    };
    if stem == "ctor_main" {
        let library = build_library("ctor.c", variant);
        link(&mut command, extension, &library);
    }
    if stem == "allocators" && extension == "c" {
        // What no library defines at link time may be preloaded.
        command.arg("-Wl,-z,dynamic-undefined-weak");
    }
    let mut directory = variant.directory().to_owned();
    if let Some(library) = linked {
        link(&mut command, extension, library);
        let name = library.file_name().expect("a library has a name").to_string_lossy();
        // Archives do not say what they need.
        if extension != "rs" && name.ends_with(".a") {
            command.args(["-lstdc++", "-lm"]);
        }
        let of_oracle = name == "liboracle.so";
        directory = format!("{directory}-{}", if of_oracle { "oracle" } else { &name });
    }
    compile(command, source, variant, &directory, &format!("{stem}-{extension}"))
}

fn c_compiler(variant: Variant) -> Command {
    let mut command = Command::new("cc");
    // Without -fno-builtin a compiler may drop, merge or exchange calls of the allocator.
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-fno-builtin"]).args(variant.c_flags());
    command
}

/// Links a shared library and has the program find it where it is. It comes before the C library in the order of
/// search, so its functions take precedence.
fn link(command: &mut Command, extension: &str, library: &Path) {
    let directory = library.parent().expect("a library lies in a directory").display();
    let arguments = [
        // Needed even where only another library calls its functions, as with C++.
        "-Wl,--push-state,--no-as-needed".to_owned(),
        library.display().to_string(),
        "-Wl,--pop-state".to_owned(),
        format!("-Wl,-rpath,{directory}"),
    ];
    for argument in arguments {
        if extension == "rs" {
            // What stable options add comes after the C library; this comes first, hence the bootstrap.
            command.env("RUSTC_BOOTSTRAP", "1");
            command.arg(format!("-Zpre-link-args={argument}"));
        } else {
            command.arg(argument);
        }
    }
}

/// Everything that decides what the compiler makes: the command, and the files it reads.
fn stamp(command: &Command, source: &str) -> String {
    let mut stamp = format!("{command:?}\n");
    for name in
        [source, "common.h", "threads.h", "stacks.h", "stacks_steps.h", "allocators_work.rs"]
    {
        let metadata =
            fs::metadata(sources().join(name)).expect("the sources of the test programs are there");
        let modified = metadata.modified().expect("this file system keeps modification times");
        let modified =
            modified.duration_since(UNIX_EPOCH).expect("sources are younger than 1970").as_nanos();
        writeln!(stamp, "{name} {} {modified}", metadata.len())
            .expect("writing to a string succeeds");
    }
    stamp
}

/// Runs the compiler unless its result is there already. Safe against other test processes doing the same, and a
/// program that is up to date is never replaced (a test may be running it).
pub(crate) fn compile(
    mut command: Command,
    source: &str,
    variant: Variant,
    directory: &str,
    name: &str,
) -> PathBuf {
    let directory = target_directory().join("test-programs").join(directory);
    fs::create_dir_all(&directory).expect("the target directory is writable");
    let directory = directory.canonicalize().expect("the directory was just made");
    let result = directory.join(name);
    let stamp_file = directory.join(format!("{name}.stamp"));
    let stamp = stamp(&command, source);

    let lock = File::create(directory.join(format!("{name}.lock")))
        .expect("the target directory is writable");
    lock.lock().expect("this file system has locks");
    if result.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return result;
    }

    // Only the holder of the lock is here, so what an interrupted build left behind may be overwritten.
    let building = directory.join(format!("{name}.building"));
    fs::create_dir_all(&building).expect("the target directory is writable");
    let fresh = building.join(name);
    run(command.arg("-o").arg(&fresh));
    if variant == Variant::DebugLink {
        // The link holds the file's name and checksum, so the file must have its final name by then.
        let debug = directory.join(format!("{name}.debug"));
        run(Command::new("objcopy").arg("--only-keep-debug").arg(&fresh).arg(&debug));
        let link = format!("--add-gnu-debuglink={}", debug.display());
        run(Command::new("objcopy").arg("--strip-all").arg(link).arg(&fresh));
    }
    fs::rename(&fresh, &result).expect("both are in the same directory");
    fs::remove_dir_all(&building).expect("this process made it");
    fs::write(&stamp_file, stamp).expect("the target directory is writable");
    result
}

fn run(command: &mut Command) {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("cannot run {command:?}: {error}"),
    };
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
