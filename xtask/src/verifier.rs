//! `verifier`: how many instructions the running kernel's verifier processes for
//! each eBPF program, against what is recorded for kernels of this series.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use memscope_tests::verifier::{Diagnosis, FILE, Recorded, RecordedKernel, series};

use crate::process::{as_root, output, run as run_command, show};
use crate::{sidecar, workspace};

/// Where people read what is recorded: below this line, to the end.
const DOCUMENT: &str = "docs/kernels.md";
const TABLE_BEGINS: &str = "<!-- verifier.json: the task writes this table with --update -->\n";

/// Who has looked at the new numbers and finds them right runs this.
const REMEDY: &str = "if that is right, record it with --update";

pub(crate) fn run(update: bool) -> Result<()> {
    let root = workspace::root();
    build_memscope(&root)?;
    let mut doctor = as_root(workspace::release_binary("memscope"))?;
    doctor.args(["doctor", "--json"]);
    eprintln!("$ {}", show(&doctor));
    let diagnosis: Diagnosis = serde_json::from_str(&output(&mut doctor)?)
        .context("memscope doctor printed something else than its JSON")?;
    let problems = compare(&root, &[&diagnosis], update)?;
    if !problems.is_empty() {
        bail!("{}\n{REMEDY}", problems.join("\n"));
    }
    Ok(())
}

pub(crate) fn build_memscope(root: &Path) -> Result<()> {
    let mut build = Command::new(workspace::cargo());
    run_command(build.current_dir(root).args(["build", "--release", "-p", "memscope"]))
}

/// Prints what was measured, and compares it with what is recorded or records it.
/// Returns what is wrong; what is wrong with a kernel whatever is recorded is never
/// recorded.
pub(crate) fn compare(root: &Path, measured: &[&Diagnosis], update: bool) -> Result<Vec<String>> {
    let object_sha256 = object_sha256(root)?;
    let before = load(root)?;
    let mut recorded = before.clone();
    let mut problems = Vec::new();
    for diagnosis in measured {
        let release = &diagnosis.kernel;
        let mut wrong = diagnosis.problems();
        let Some(series) = series(release) else {
            problems.push(format!("Linux {release}: no such version is known"));
            continue;
        };
        let known = before.kernels.get(&series);
        print(diagnosis, known);
        if update && wrong.is_empty() {
            recorded.kernels.insert(series, diagnosis.to_record(object_sha256.clone()));
        } else if let Some(known) = known {
            wrong.extend(known.problems(diagnosis));
            if known.object_sha256 != object_sha256 {
                println!("  recorded with another object; --update records this one");
            }
        } else if wrong.is_empty() {
            println!("  nothing is recorded for {series}; compared with the budget only");
        }
        problems.extend(wrong.into_iter().map(|what| format!("Linux {release}: {what}")));
    }
    if recorded != before {
        store(root, &recorded)?;
        println!("recorded in {FILE} and {DOCUMENT}");
    }
    Ok(problems)
}

fn store(root: &Path, recorded: &Recorded) -> Result<()> {
    let document = root.join(DOCUMENT);
    let text = fs::read_to_string(&document)
        .with_context(|| format!("cannot read {}", document.display()))?;
    let text = with_table(&text, recorded)?;
    let file = root.join(FILE);
    for (path, text) in [(file, serde_json::to_string_pretty(recorded)? + "\n"), (document, text)] {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The document with its table made anew: a row for each program, a column for each kernel.
fn with_table(document: &str, recorded: &Recorded) -> Result<String> {
    let (before, _old) = document
        .split_once(TABLE_BEGINS)
        .with_context(|| format!("{DOCUMENT} lacks the line {TABLE_BEGINS}"))?;
    let kernels: Vec<_> = recorded.kernels.values().collect();
    let programs: BTreeSet<_> =
        kernels.iter().flat_map(|kernel| kernel.verified_instructions.keys()).collect();
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
    let mut text = format!("{before}{TABLE_BEGINS}\n");
    text += &row("instructions verified", recorded.kernels.keys().cloned().collect());
    text += &row("---", vec!["---:".to_owned(); kernels.len()]);
    for program in programs {
        let known = kernels.iter().map(|kernel| kernel.verified_instructions.get(program));
        let shown = known.map(|number| number.map_or_else(|| "?".to_owned(), u64::to_string));
        text += &row(&format!("`{program}`"), shown.collect());
    }
    Ok(text)
}

fn object_sha256(root: &Path) -> Result<String> {
    let path = root.join(sidecar::OBJECT);
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(sidecar::sha256(&object))
}

fn load(root: &Path) -> Result<Recorded> {
    let path = root.join(FILE);
    if !path.exists() {
        return Ok(Recorded { kernels: BTreeMap::new() });
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{FILE} is damaged; restore it"))
}

fn print(diagnosis: &Diagnosis, recorded: Option<&RecordedKernel>) {
    let shown = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
    println!("\nLinux {}, maps of {} bytes", diagnosis.kernel, shown(diagnosis.map_bytes));
    println!(
        "  {:<22} {:>9} {:>9} {:>12} {:>14}",
        "program", "verified", "recorded", "eBPF bytes", "machine bytes"
    );
    for program in &diagnosis.programs {
        let known = recorded.and_then(|kernel| kernel.verified_instructions.get(&program.name));
        println!(
            "  {:<22} {:>9} {:>9} {:>12} {:>14}",
            program.name,
            shown(program.verified_instructions),
            shown(known.copied()),
            shown(program.translated_bytes),
            shown(program.machine_code_bytes)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_what_is_recorded() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let document = fs::read_to_string(root.join(DOCUMENT)).unwrap();
        assert_eq!(with_table(&document, &load(&root).unwrap()).unwrap(), document);
    }

    #[test]
    fn what_a_kernel_does_not_have_is_unknown() {
        let kernel = |program: &str| RecordedKernel {
            release: "6".to_owned(),
            object_sha256: String::new(),
            verified_instructions: BTreeMap::from([(program.to_owned(), 7)]),
        };
        let kernels = [("6.1".to_owned(), kernel("a")), ("6.2".to_owned(), kernel("b"))];
        let table =
            with_table(&format!("text\n{TABLE_BEGINS}old"), &Recorded { kernels: kernels.into() });
        let expected = "| instructions verified | 6.1 | 6.2 |\n| --- | ---: | ---: |\n\
                        | `a` | 7 | ? |\n| `b` | ? | 7 |\n";
        assert_eq!(table.unwrap(), format!("text\n{TABLE_BEGINS}\n{expected}"));
        assert!(with_table("no line", &Recorded::default()).is_err());
    }
}
