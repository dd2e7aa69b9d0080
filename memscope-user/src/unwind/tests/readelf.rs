//! Comparison with binutils, which interprets call frame information by code of its own.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use memscope_common::unwind::{
    CFA_BP, CFA_BX, CFA_DEREF_BP, CFA_DEREF_SP, CFA_END, CFA_PLT, CFA_R10, CFA_SIGNAL, CFA_SP,
    CFA_UNSUPPORTED, Rule, SAVED_AT_BP, SAVED_AT_CFA, SAVED_NOT,
};

use super::*;

/// What was compared.
#[derive(Debug, Default)]
struct Compared {
    rows: u64,
    exact: u64,
    expressions: u64,
    unsupported: u64,
}

/// `rsp+8`: a register and an offset.
fn register_and_offset(text: &str) -> Option<(&str, i32)> {
    let sign = text.find(['+', '-'])?;
    let (register, offset) = text.split_at(sign);
    Some((register, offset.parse().ok()?))
}

/// Whether a place is what readelf prints: `u` and `s` for where it was, `c-16` for the
/// frame address less 16, `exp` for an expression.
fn is_place(text: Option<&str>, (kind, offset): (u8, i32), cfa: u8) -> bool {
    match text {
        None | Some("u" | "s") => kind == SAVED_NOT,
        Some("exp") => kind == SAVED_AT_BP || cfa == CFA_SIGNAL || kind == SAVED_AT_CFA,
        Some(text) => register_and_offset(text) == Some(("c", offset)) && kind == SAVED_AT_CFA,
    }
}

fn compare(at_svma: u64, cells: &HashMap<&str, &str>, rule: &Rule, compared: &mut Compared) {
    let context = format!("{at_svma:#x}: {cells:?} and {rule:?}");
    let cell = |name| cells.get(name).copied();
    compared.rows += 1;
    if cell("ra") == Some("u") {
        assert_eq!(rule.cfa, CFA_END, "{context}");
        compared.exact += 1;
        return;
    }
    let cfa = cell("CFA").unwrap();
    if rule.cfa == CFA_UNSUPPORTED {
        let known = matches!(register_and_offset(cfa), Some(("rsp" | "rbp" | "rbx" | "r10", _)));
        let usual = |name| cell(name).is_none_or(|text| text.starts_with("c-") || text == "u");
        let all_usual = known && cell("ra") == Some("c-8") && usual("rbp") && usual("rbx");
        assert!(!all_usual, "{context}");
        compared.unsupported += 1;
        return;
    }
    if cfa == "exp" {
        let of_expression = [CFA_PLT, CFA_DEREF_BP, CFA_DEREF_SP, CFA_SIGNAL];
        assert!(of_expression.contains(&rule.cfa), "{context}");
        compared.expressions += 1;
    } else {
        let (register, offset) = register_and_offset(cfa).unwrap();
        let names = [(CFA_SP, "rsp"), (CFA_BP, "rbp"), (CFA_BX, "rbx"), (CFA_R10, "r10")];
        assert!(names.contains(&(rule.cfa, register)), "{context}");
        assert_eq!(rule.cfa_offset, offset, "{context}");
        assert_eq!(cell("ra"), Some("c-8"), "{context}");
        compared.exact += 1;
    }
    assert!(is_place(cell("rbp"), (rule.rbp, rule.rbp_offset), rule.cfa), "{context}");
    assert!(is_place(cell("rbx"), (rule.rbx, rule.rbx_offset), rule.cfa), "{context}");
}

/// `… FDE cie=00000000 pc=0000000000001000..0000000000001010`
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(" pc=")?.1.trim().split_once("..")?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

fn compare_file(path: &Path) -> Option<Compared> {
    let table = UnwindTable::from_elf(&std::fs::read(path).unwrap()).unwrap();
    assert_valid(&table);
    let mut readelf = Command::new("readelf")
        .args(["--wide", "--debug-dump=frames-interp"])
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env("LC_ALL", "C")
        .spawn()
        .ok()?;
    let mut compared = Compared::default();
    let mut names: Vec<String> = Vec::new();
    let (mut start, mut end) = (0, 0);
    // A row holds up to the next one, or to the end of its function.
    let mut before: Option<(u64, String)> = None;
    let mut finish = |before: &mut Option<(u64, String)>, names: &[String], until: u64| {
        let Some((svma, line)) = before.take() else { return };
        // A register is printed as `r10 (r10)`.
        let words = line.split_whitespace().filter(|word| !word.starts_with('('));
        let cells = names.iter().map(String::as_str).zip(words).collect();
        for svma in [svma, until - 1] {
            compare(svma, &cells, &table.rule_at(svma), &mut compared);
        }
    };
    for line in BufReader::new(readelf.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.contains(" FDE ") || line.contains(" CIE") || line.starts_with("Contents of") {
            finish(&mut before, &names, end);
            (start, end) = range(&line).unwrap_or_default();
        } else if first == "LOC" {
            names = line.split_whitespace().map(str::to_owned).collect();
        } else if end > start && first.len() == 16 {
            let svma = u64::from_str_radix(first, 16).unwrap();
            // Several rows for one address, and one at the end of the function: the last
            // one holds, and none.
            if before.as_ref().is_some_and(|(before, _)| *before == svma) {
                before = None;
            }
            finish(&mut before, &names, svma.min(end));
            before = (svma < end).then_some((svma, line));
        }
    }
    finish(&mut before, &names, end);
    // It fails for debug information that is elsewhere, too.
    readelf.wait().unwrap();
    Some(compared)
}

/// The file that this test has mapped under such a name.
fn mapped(part: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .find_map(|line| line.split_whitespace().nth(5).filter(|path| path.contains(part)))?;
    Some(PathBuf::from(path))
}

#[test]
fn tables_agree_with_readelf() {
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    let more = ["libstdc++.so.6", "libcrypto.so.3", "libm.so.6"].map(|name| libraries.join(name));
    let certain = [mapped("libc.so").unwrap(), mapped("ld-linux").unwrap()];
    for path in certain.into_iter().chain(more).chain([PathBuf::from("/usr/bin/python3")]) {
        if !path.exists() {
            println!("SKIPPED: {} — it is not on this machine", path.display());
            continue;
        }
        let Some(compared) = compare_file(&path) else {
            println!("SKIPPED: comparison with readelf — it cannot be run");
            return;
        };
        println!("{}: {compared:?}", path.display());
        assert!(compared.exact > 100 && compared.expressions > 0, "{compared:?}");
        assert!(compared.unsupported * 20 < compared.rows, "{compared:?}");
    }
}

#[test]
fn the_places_of_libc_that_only_rules_of_their_own_describe() {
    let table = |path| UnwindTable::from_elf(&std::fs::read(path).unwrap()).unwrap();
    let libc = table(mapped("libc.so").unwrap());
    assert_eq!(libc.rules.iter().filter(|rule| rule.cfa == CFA_SIGNAL).count(), 1, "__restore_rt");
    let loader = table(mapped("ld-linux").unwrap());
    assert!(loader.rules.iter().any(|rule| rule.cfa == CFA_BX), "_dl_runtime_resolve");
    for (table, what) in [(&libc, "libc"), (&loader, "loader")] {
        assert!(
            table.rows.iter().any(|row| row.rule == memscope_common::unwind::RULE_END),
            "{what}"
        );
    }
}
