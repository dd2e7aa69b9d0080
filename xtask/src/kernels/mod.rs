//! `kernels`: boots kernels that distributions ship, and lets memscope load its
//! programs and trace there. The machine is emulated, so that neither root nor a
//! kernel of that version is needed here.
//!
//! Takes the built memscope and test programs; leaves the packages, the images
//! and what the machines printed in `target/kernels`.

mod debian;
mod guest;
mod image;
mod judge;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use memscope_tests::Variant;
use memscope_tests::programs::build;

use crate::process::find_in_path;
use crate::{setup, verifier, workspace};

/// The series to try, oldest first: the kernels of Debian 12 and of what came after.
const SERIES: &[&str] = &["6.1", "6.12"];
const FOLDER: &str = "target/kernels";

/// What is traced in each kernel.
const TRACED: &[Traced] = &[
    Traced { name: "chain", source: "chain.c", arguments: "3 20", options: "" },
    Traced { name: "mix", source: "mix.c", arguments: "1 2000", options: "" },
    Traced { name: "pairs", source: "pairs.c", arguments: "1000 64 3", options: "" },
    Traced {
        name: "functions",
        source: "mappings.c",
        arguments: "",
        options: "--mappings --mappings-by functions",
    },
    Traced {
        name: "tracepoints",
        source: "mappings.c",
        arguments: "",
        options: "--mappings --mappings-by tracepoints",
    },
];

/// A program that prints what it asked of its allocator, and what else is recorded of it.
#[derive(Clone, Copy, Debug)]
struct Traced {
    /// What it is called here.
    name: &'static str,
    source: &'static str,
    arguments: &'static str,
    /// Of memscope.
    options: &'static str,
}

/// What the emulated machines need here.
const TOOLS: setup::Tools<'static> = &[
    ("qemu-system-x86_64", &["qemu-system-x86"]),
    ("busybox", &["busybox-static"]),
    ("cpio", &["cpio"]),
    ("gcc", &["gcc"]),
];

/// Returns what was skipped and why, having said it.
pub(crate) fn run(update: bool) -> Result<Vec<String>> {
    let skipped = try_all(update)?;
    skipped.iter().for_each(|what| println!("SKIPPED: {what}"));
    Ok(skipped)
}

fn try_all(update: bool) -> Result<Vec<String>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(vec!["kernels — the eBPF object is for x86-64 machines".to_owned()]);
    }
    let missing = setup::install_tools(TOOLS);
    if TOOLS.iter().any(|(program, _)| find_in_path(program).is_none()) {
        return Ok(vec![format!("kernels — {}", missing.join("; "))]);
    }
    let root = workspace::root();
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut skipped, mut kernels) = (Vec::new(), Vec::new());
    for series in SERIES {
        match debian::kernel(series, &folder) {
            Ok(kernel) => kernels.push((*series, kernel)),
            Err(error) => skipped.push(format!("Linux {series} — {error:#}")),
        }
    }
    if !kernels.is_empty() {
        verifier::build_memscope(&root)?;
        let initramfs = image(&folder)?;
        let (mut results, mut problems, mut said) = (Vec::new(), Vec::new(), Vec::new());
        for (series, kernel) in &kernels {
            let begun = Instant::now();
            let result = guest::boot(series, kernel, &initramfs, &folder)
                .and_then(|printed| judge::judge(&printed, TRACED));
            println!("\nLinux {series}: {:.0} s in the machine", begun.elapsed().as_secs_f64());
            match result {
                Ok(result) => results.push(result),
                Err(error) => problems.push(format!("Linux {series}: {error:#}")),
            }
            said.extend(guest::messages(series, &folder)?);
        }
        let diagnoses: Vec<_> = results.iter().map(|result| &result.diagnosis).collect();
        problems.extend(verifier::compare(&root, &diagnoses, update)?);
        for result in &results {
            problems.extend(result.report());
        }
        if !problems.is_empty() {
            problems.extend(said);
            bail!("{}\nwhat the machines said is in {FOLDER}", problems.join("\n"));
        }
    }
    Ok(skipped)
}

/// Memscope, the programs and what they need to run, for all kernels the same.
fn image(folder: &Path) -> Result<std::path::PathBuf> {
    let mut image = image::Image::new(folder.join("initramfs"))?;
    image.add_program(&workspace::release_binary("memscope"), "memscope")?;
    let sources: BTreeSet<&str> = TRACED.iter().map(|traced| traced.source).collect();
    for source in sources {
        image.add_program(&build(source, Variant::Default), guest::program_name(source))?;
    }
    let busybox = find_in_path("busybox").context("busybox was there a moment ago")?;
    image.add_program(&busybox, "busybox")?;
    image.add_script("init", &guest::init(TRACED))?;
    image.write()
}
