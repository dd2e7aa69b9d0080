//! What memscope probes in a process, as its doctor says, and programs that do nothing on the same instructions.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use memscope_tests::floor::{Floor, FloorProbe, MultiProbe};
use serde::Deserialize;

use super::workloads::Launch;
use crate::process::output;

/// The probed instructions of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sites {
    /// Those that memscope probes.
    pub(super) files: Vec<SiteFile>,
    /// Those that whoever follows each call from its entry to its return probes: the cheapest ones at entries.
    functions: Vec<SiteFile>,
}

/// The probed instructions of one file, as offsets in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SiteFile {
    pub(super) path: PathBuf,
    /// Where the call's return is probed as well.
    with_return: Vec<u64>,
    alone: Vec<u64>,
}

#[derive(Deserialize)]
struct Diagnosis {
    process: DiagnosedProcess,
}

#[derive(Deserialize)]
struct DiagnosedProcess {
    allocators: Vec<Allocator>,
}

#[derive(Deserialize)]
struct Allocator {
    path: PathBuf,
    probes: Vec<Probe>,
}

#[derive(Deserialize)]
struct Probe {
    file_offset: u64,
    returns: bool,
}

impl Sites {
    pub(super) fn of(memscope: &Path, pid: u32) -> Result<Self> {
        let diagnosis = |options: &[&str]| {
            let mut doctor = Command::new(memscope);
            output(doctor.args(["doctor", "--json", "--pid", &pid.to_string()]).args(options))
        };
        // Attached so, an entry and a return have a program each, which tell nothing in the midst of calls.
        let functions = diagnosis(&["--attach-by", "perf-event"])?;
        Ok(Self { files: parse(&diagnosis(&[])?)?, functions: parse(&functions)? })
    }

    /// The same in copies of the files, and what has a program map these: programs of several tracers that work at the same
    /// time must not run into each other's probes, and bpftrace's are in all processes that map a file.
    pub(super) fn copied(&self, folder: &Path) -> Result<(Self, Launch)> {
        let folder = folder.join("copies");
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut copied = self.clone();
        for file in copied.files.iter_mut().chain(&mut copied.functions) {
            let path = &file.path;
            let name =
                path.file_name().with_context(|| format!("{} is no file", path.display()))?;
            let copy = folder.join(name);
            if !copy.exists() {
                fs::copy(path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
            }
            file.path = copy;
        }
        let environment = vec![("LD_LIBRARY_PATH", OsString::from(folder))];
        Ok((copied, Launch { wrapper: Vec::new(), environment }))
    }

    /// Which of them programs that do nothing are on.
    fn of_empty_programs(&self, place: Where) -> &[SiteFile] {
        match place {
            Where::EntryAndReturn => &self.functions,
            Where::AsMemscope | Where::NoReturn => &self.files,
        }
    }
}

fn parse(diagnosis: &str) -> Result<Vec<SiteFile>> {
    let diagnosis: Diagnosis =
        serde_json::from_str(diagnosis).context("memscope doctor printed no such JSON")?;
    let files = diagnosis.process.allocators.into_iter().map(|allocator| {
        let (with_return, alone): (Vec<_>, Vec<_>) =
            allocator.probes.into_iter().partition(|probe| probe.returns);
        let offsets = |probes: Vec<Probe>| {
            let mut offsets: Vec<_> = probes.iter().map(|probe| probe.file_offset).collect();
            offsets.sort_unstable();
            offsets.dedup();
            offsets
        };
        SiteFile { path: allocator.path, with_return: offsets(with_return), alone: offsets(alone) }
    });
    let files: Vec<_> = files.collect();
    if !files.iter().any(|file| !file.with_return.is_empty() && !file.alone.is_empty()) {
        bail!("memscope would probe no allocator in this process");
    }
    Ok(files)
}

/// Programs that do nothing, attached the cheapest way that this kernel has.
pub(super) struct EmptyPrograms {
    floors: Vec<Floor>,
    /// How the beginnings of blocks are probed.
    pub(super) how: &'static str,
}

/// Where programs are that do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// At the entry and return of functions that give blocks, and at the entry of those that end them.
    EntryAndReturn,
    /// Where memscope's are.
    AsMemscope,
    /// On the instructions that memscope probes, and at no return.
    NoReturn,
}

impl EmptyPrograms {
    pub(super) fn attach(sites: &Sites, pid: u32, place: Where) -> Result<Self> {
        let mut reasons = Vec::new();
        for (how, attach) in WAYS {
            let files = sites.of_empty_programs(place).iter();
            let attached = files.map(|file| attach(file, pid, place));
            match attached.collect::<io::Result<Vec<_>>>() {
                Ok(floors) => {
                    return Ok(Self { floors: floors.into_iter().flatten().collect(), how });
                }
                Err(error) => reasons.push(format!("{how}: {error}")),
            }
        }
        bail!("the kernel attaches no program that does nothing: {}", reasons.join("; "))
    }

    /// How often they have run; 0 unless the kernel counts.
    pub(super) fn runs(&self) -> Result<u64> {
        self.floors
            .iter()
            .map(|floor| floor.run_time().map(|time| time.runs))
            .sum::<io::Result<u64>>()
            .context("cannot read how often a program has run")
    }
}

type Attach = fn(&SiteFile, u32, Where) -> io::Result<Vec<Floor>>;

/// The cheapest first.
const WAYS: &[(&str, Attach)] = &[
    ("a session", |file, pid, place| {
        let beginning = match place {
            Where::EntryAndReturn | Where::AsMemscope => MultiProbe::Session,
            Where::NoReturn => MultiProbe::SessionWithoutReturn,
        };
        multi(file, pid, &[beginning])
    }),
    ("uprobe_multi", |file, pid, place| match place {
        Where::EntryAndReturn | Where::AsMemscope => {
            multi(file, pid, &[MultiProbe::Return, MultiProbe::Instruction])
        }
        Where::NoReturn => multi(file, pid, &[MultiProbe::Instruction]),
    }),
    ("perf events", |file, pid, place| {
        let probe = |at_return| move |&file_offset| FloorProbe { file_offset, at_return };
        let mut probes: Vec<_> = file.with_return.iter().map(probe(false)).collect();
        if place != Where::NoReturn {
            probes.extend(file.with_return.iter().map(probe(true)));
        }
        probes.extend(file.alone.iter().map(probe(false)));
        Ok(vec![Floor::attach(pid, &file.path, &probes)?])
    }),
];

fn multi(file: &SiteFile, pid: u32, with_return: &[MultiProbe]) -> io::Result<Vec<Floor>> {
    let links = with_return.iter().map(|how| (*how, &file.with_return));
    links
        .chain([(MultiProbe::Instruction, &file.alone)])
        .filter(|(_, offsets)| !offsets.is_empty())
        .map(|(how, offsets)| Floor::attach_multi(how, pid, &file.path, offsets))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_whose_return_is_not_probed_are_told_apart() {
        let diagnosis = r#"{"kernel": "6", "process": {"pid": 1, "allocators": [{"path": "/l/libc.so.6", "probes": [
            {"function": "free", "file_offset": 9, "emulated": true, "returns": false},
            {"function": "memalign", "file_offset": 5, "returns": true},
            {"function": "aligned_alloc", "file_offset": 5, "returns": true},
            {"function": "malloc", "file_offset": 3, "returns": true}]}]}}"#;
        let path = "/l/libc.so.6".into();
        let file = SiteFile { path, with_return: vec![3, 5], alone: vec![9] };
        assert_eq!(parse(diagnosis).unwrap(), [file]);
    }

    #[test]
    fn a_process_without_an_allocator_is_an_error() {
        for text in ["{}", r#"{"process": {"allocators": []}}"#, "no JSON"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
