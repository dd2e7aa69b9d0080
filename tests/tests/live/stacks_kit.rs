//! Holds every allocation of the programs with known chains to what they say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Command;

use memscope_tests::stacks::{self, Compiler, ExpectedStack, SeenFrame, Verdict};
use memscope_tests::{Figures, TestProgram};
use serde_json::Value;

use crate::kit::{Export, Scratch, is_installed, number, run, skip};

/// Faults that are told.
const MOST_FAULTS: usize = 25;

/// The compilers that are here; says which are not.
pub(crate) fn compilers(wanted: &[Compiler]) -> Vec<Compiler> {
    let (here, missing): (Vec<Compiler>, Vec<Compiler>) =
        wanted.iter().partition(|compiler| is_installed(compiler.program()));
    for compiler in missing {
        skip(&format!("stacks of programs by {}", compiler.program()), "it is not installed");
    }
    here
}

/// What a recording has of the stacks that a program says it has.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) exact: u64,
    pub(crate) cut_short: u64,
    pub(crate) wrong: u64,
    /// What was not exact, in words, and for how many allocations.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Of other sizes, such as the C library's own blocks: those whose stacks are not complete.
    pub(crate) others_incomplete: u64,
}

impl Judged {
    pub(crate) fn assert_all_exact(&self, what: &str) {
        self.say(what);
        assert!(self.faults.is_empty(), "{what}:\n{}", self.faults_told());
        assert_eq!(self.others_incomplete, 0, "{what}: the stacks of other allocations");
    }

    /// What is cut short says so; the rest is exact.
    pub(crate) fn assert_none_wrong(&self, what: &str) {
        self.say(what);
        assert_eq!(self.wrong, 0, "{what}:\n{}", self.faults_told());
    }

    fn say(&self, what: &str) {
        let all = self.exact + self.cut_short + self.wrong;
        eprintln!(
            "{what}: {} of {all} allocations exact, {} cut short, {} wrong; {} others incomplete",
            self.exact, self.cut_short, self.wrong, self.others_incomplete
        );
        assert!(all > 0, "{what}: the program says what it does");
    }

    fn faults_told(&self) -> String {
        let mut faults: Vec<_> = self.faults.iter().collect();
        faults.sort_by_key(|(_, blocks)| Reverse(**blocks));
        let faults = faults.into_iter().take(MOST_FAULTS);
        faults.map(|(what, blocks)| format!("{blocks:>6} {what}\n")).collect()
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The frames of calls, innermost first.
pub(crate) fn called_frames(site: &Value) -> Vec<SeenFrame> {
    let frames = site["frames"].as_array().unwrap().iter();
    frames
        .filter(|frame| frame["inlined"] == false)
        .map(|frame| SeenFrame {
            function: frame["function"].as_str().map(str::to_owned),
            module: base_name(frame["module"].as_str().unwrap_or_default()).to_owned(),
        })
        .collect()
}

/// What is there instead of what was expected of a size.
fn fault(stack: &ExpectedStack, verdict: Verdict, site: &Value) -> String {
    let names = called_frames(site).into_iter().zip(site["frames"].as_array().unwrap()).map(
        |(frame, place)| match frame.function {
            Some(function) => function,
            None => format!("{}+{}", frame.module, place["offset"].as_str().unwrap()),
        },
    );
    let names: Vec<String> = names.collect();
    format!(
        "of {} of {} bytes {verdict:?}, {}: {}",
        stack.count,
        stack.size,
        site["stack"],
        names.join(" <- ")
    )
}

/// `program` is named if it is static, for the C library is in it then.
pub(crate) fn judge(
    export: &Export,
    expected: &[ExpectedStack],
    static_program: Option<&Path>,
) -> Judged {
    let static_program = static_program.map(|path| path.file_name().unwrap().to_str().unwrap());
    let sites: HashMap<u64, &Value> =
        export.list("sites").iter().map(|site| (number(site, "site"), site)).collect();
    let mut judged = Judged::default();
    let mut blocks_at: HashMap<(u64, u64), u64> = HashMap::new();
    for block in export.blocks() {
        *blocks_at.entry((block.size, block.site)).or_default() += 1;
    }
    for stack in expected {
        let at: Vec<_> = blocks_at.iter().filter(|((size, _), _)| *size == stack.size).collect();
        let found: u64 = at.iter().map(|(_, blocks)| **blocks).sum();
        assert_eq!(found, stack.count, "blocks of {} bytes", stack.size);
        for ((_, site), blocks) in at {
            let site = sites[site];
            let frames = called_frames(site);
            let verdict = stack.judge(site["stack"].as_str().unwrap(), &frames, static_program);
            match verdict {
                Verdict::Exact => judged.exact += blocks,
                Verdict::CutShort => judged.cut_short += blocks,
                Verdict::Wrong => judged.wrong += blocks,
            }
            if verdict != Verdict::Exact {
                *judged.faults.entry(fault(stack, verdict, site)).or_default() += blocks;
            }
        }
    }
    for ((size, site), blocks) in blocks_at {
        let said = expected.iter().any(|stack| stack.size == size);
        if !said && sites[&site]["stack"] != "complete" {
            judged.others_incomplete += blocks;
        }
    }
    judged
}

/// Has memscope start the program; what it says and what is recorded.
pub(crate) fn trace_started(program: &Path, arguments: &[&str]) -> (Export, Figures) {
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&["--strict"], program, arguments));
    finished.assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    (export, Figures::parse(&finished.stdout))
}

/// Attaches to the program while it waits; `meanwhile` is called when memscope records.
pub(crate) fn trace_attached(
    program: &Path,
    arguments: &[&str],
    meanwhile: impl FnOnce(u32),
) -> (Export, Figures) {
    let mut running = TestProgram::spawn(Command::new(program).args(arguments).arg("wait"));
    let pid = running.wait_ready();
    let scratch = Scratch::new();
    let memscope = scratch.attach(&["--strict"], &[pid]);
    meanwhile(pid);
    running.go();
    let (figures, status) = running.finish();
    assert!(status.success(), "{}: {status}", program.display());
    memscope.finish().assert_code(0);
    let export = scratch.export();
    export.assert_complete();
    (export, figures)
}

/// Traces a program from its start and holds every stack to what it says.
pub(crate) fn assert_started(what: &str, program: &Path, arguments: &[&str]) -> Figures {
    let (export, figures) = trace_started(program, arguments);
    judge(&export, &stacks::expected(&figures), None).assert_all_exact(what);
    figures
}

/// The same for a program that runs already.
pub(crate) fn assert_attached(what: &str, program: &Path, arguments: &[&str]) -> Figures {
    let (export, figures) = trace_attached(program, arguments, |_| ());
    judge(&export, &stacks::expected(&figures), None).assert_all_exact(what);
    figures
}
