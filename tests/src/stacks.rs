//! The programs with known chains of calls: how they are compiled, what they say, and whether a recorded stack is
//! what they say. `tests/programs/stacks.h` has the form of their lines.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Figures;
use crate::programs::{Variant, compile, sources};

/// Release builds of distributions: optimised, without frame pointers.
const RELEASE: [&str; 8] = [
    "-Wall",
    "-Wextra",
    "-fno-builtin",
    "-O2",
    "-g",
    "-fomit-frame-pointer",
    "-fasynchronous-unwind-tables",
    "-pthread",
];

/// What compiles C and C++.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    Gcc,
    Clang,
    /// gcc against the musl C library, for static programs.
    Musl,
}

impl Compiler {
    pub fn program(self) -> &'static str {
        match self {
            Compiler::Gcc => "gcc",
            Compiler::Clang => "clang",
            Compiler::Musl => "musl-gcc",
        }
    }

    fn command(self, source: &str) -> Command {
        let (program, standard) = match self {
            Compiler::Gcc if source.ends_with(".cpp") => ("g++", "-std=gnu++17"),
            Compiler::Clang if source.ends_with(".cpp") => ("clang++", "-std=gnu++17"),
            other => (other.program(), "-std=gnu11"),
        };
        let mut command = Command::new(program);
        command.arg(standard).args(RELEASE);
        command
    }

    fn directory(self, flags: &[&str]) -> String {
        let mut name = format!("stacks-{}", self.program());
        for flag in flags.iter().filter(|flag| !flag.contains('/')) {
            name.extend(flag.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }));
        }
        name
    }
}

/// Compiles a program in C or C++; `flags` come after the usual ones.
pub fn build(source: &str, compiler: Compiler, flags: &[&str]) -> PathBuf {
    let stem = source.split('.').next().expect("a split has a first part");
    let mut command = compiler.command(source);
    command.arg(sources().join(source)).args(flags);
    compile(command, source, Variant::Default, &compiler.directory(flags), stem)
}

/// Compiles a library in C under a name of its own.
pub fn library(source: &str, compiler: Compiler, flags: &[&str], name: &str) -> PathBuf {
    let mut command = compiler.command(source);
    command.args(["-fPIC", "-shared"]).arg(sources().join(source)).args(flags);
    compile(command, source, Variant::Default, &compiler.directory(&[]), name)
}

/// Compiles a program in Rust, optimised through all its crates.
pub fn build_rust(source: &str) -> PathBuf {
    let stem = source.split('.').next().expect("a split has a first part");
    let mut command = Command::new("rustc");
    command.args(["--edition=2024", "--crate-name", stem, "-g"]);
    for option in [
        "opt-level=3",
        "lto=fat",
        "codegen-units=1",
        "panic=unwind",
        "force-frame-pointers=no",
        // The other mangling leaves the arguments of generic functions out.
        "symbol-mangling-version=v0",
    ] {
        command.args(["-C", option]);
    }
    command.arg(sources().join(source));
    compile(command, source, Variant::Default, "stacks-rustc", stem)
}

/// A frame as exported, of a call that was not inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFrame {
    pub function: Option<String>,
    /// The file's name, without its folders.
    pub module: String,
}

/// One frame, or several, of a chain as a program says it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Function(String),
    /// A frame in a file whose name begins so.
    Module(String),
    /// One or more of them.
    Modules(String),
    /// One or more frames of the C library and its loader.
    System,
    Anything,
}

fn parse_token(text: &str) -> Vec<Token> {
    if text == "*" {
        return vec![Token::Anything];
    }
    if text == "@@" {
        return vec![Token::System];
    }
    if let Some(module) = text.strip_prefix("@@") {
        return vec![Token::Modules(module.to_owned())];
    }
    if let Some(module) = text.strip_prefix('@') {
        return vec![Token::Module(module.to_owned())];
    }
    let repeated =
        text.rsplit_once('*').and_then(|(name, times)| Some((name, times.parse().ok()?)));
    let (name, times) = repeated.unwrap_or((text, 1));
    vec![Token::Function(name.to_owned()); times]
}

/// How a recorded stack compares with what the program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// As the program says, frame by frame, with the outcome it says.
    Exact,
    /// Too short, and it says so; what is there is right.
    CutShort,
    /// A frame is wrong, or missing without a word.
    Wrong,
}

/// What the blocks of one size have as their stacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedStack {
    pub size: u64,
    pub count: u64,
    pub outcome: String,
    chains: Vec<Vec<Token>>,
}

/// The `stack` and `or` lines.
pub fn expected(figures: &Figures) -> Vec<ExpectedStack> {
    let mut stacks: Vec<ExpectedStack> = Vec::new();
    for values in figures.texts("stack") {
        let fields: Vec<&str> = values.splitn(4, ' ').collect();
        let [size, count, outcome, chain] = fields[..] else { panic!("not a stack: {values}") };
        stacks.push(ExpectedStack {
            size: size.parse().expect("a size is a number"),
            count: count.parse().expect("a count is a number"),
            outcome: outcome.to_owned(),
            chains: vec![parse_chain(chain)],
        });
    }
    for values in figures.texts("or") {
        let (size, chain) = values.split_once(' ').expect("a size, then a chain");
        let size: u64 = size.parse().expect("a size is a number");
        let stack = stacks.iter_mut().find(|stack| stack.size == size);
        stack.expect("`or` belongs to a `stack`").chains.push(parse_chain(chain));
    }
    stacks
}

fn parse_chain(chain: &str) -> Vec<Token> {
    chain.split(" <- ").flat_map(parse_token).collect()
}

impl ExpectedStack {
    /// `static_program` is the name of a program that has the C library in it.
    pub fn judge(
        &self,
        outcome: &str,
        frames: &[SeenFrame],
        static_program: Option<&str>,
    ) -> Verdict {
        let matcher = Matcher { static_program };
        let fits = |whole| self.chains.iter().any(|chain| matcher.fits(chain, frames, whole));
        let as_said = match self.outcome.strip_prefix('!') {
            Some(not) => outcome != not,
            None => outcome == self.outcome,
        };
        // The limit of depth cuts a chain where it is, and nowhere else.
        let whole = self.outcome != "depth_limit";
        if as_said && fits(whole) {
            Verdict::Exact
        } else if outcome != "complete" && fits(false) {
            Verdict::CutShort
        } else {
            Verdict::Wrong
        }
    }
}

struct Matcher<'a> {
    static_program: Option<&'a str>,
}

impl Matcher<'_> {
    /// Whether these are the frames of the chain, or (not `whole`) the innermost ones of it.
    fn fits(&self, tokens: &[Token], frames: &[SeenFrame], whole: bool) -> bool {
        let Some((token, tokens_left)) = tokens.split_first() else { return frames.is_empty() };
        let Some((frame, frames_left)) = frames.split_first() else {
            return !whole || tokens.iter().all(|token| *token == Token::Anything);
        };
        match token {
            Token::Anything => {
                self.fits(tokens_left, frames, whole) || self.fits(tokens, frames_left, whole)
            }
            Token::Function(name) => {
                frame.function.as_deref().is_some_and(|function| plain(function) == name)
                    && self.fits(tokens_left, frames_left, whole)
            }
            Token::Module(name) => {
                self.is_in(frame, name) && self.fits(tokens_left, frames_left, whole)
            }
            Token::Modules(_) | Token::System => {
                let names: &[&str] = match token {
                    Token::Modules(name) => &[name],
                    _ => &["libc", "ld-linux"],
                };
                names.iter().any(|name| self.is_in(frame, name))
                    && (self.fits(tokens_left, frames_left, whole)
                        || self.fits(tokens, frames_left, whole))
            }
        }
    }

    fn is_in(&self, frame: &SeenFrame, module: &str) -> bool {
        // libc.so.6, and not libcrypto.so.
        let tail = frame.module.strip_prefix(module);
        tail.is_some_and(|tail| tail.starts_with(['.', '-']))
            || self.static_program.is_some_and(|program| program == frame.module)
    }
}

/// Without what compilers add to the name of a part of a function that is seldom run.
fn plain(function: &str) -> &str {
    let cut = function.strip_suffix(" [clone .cold]").or_else(|| function.strip_suffix(" (.cold)"));
    cut.or_else(|| function.strip_suffix(".cold")).unwrap_or(function)
}

/// 500 libraries would take a compiler long; an assembler and a linker are quick. Compiles
/// `stacks_one_of_many.c` once and makes `count` libraries of it, whose names and functions differ.
///
/// # Panics
///
/// If a tool fails.
pub fn many_libraries(count: usize) -> PathBuf {
    const STANDS_FOR_NUMBER: &str = "777";
    let source = "stacks_one_of_many.c";
    let mut command = Compiler::Gcc.command(source);
    command.args(["-fPIC", "-S"]).arg(sources().join(source));
    let template = compile(command, source, Variant::Default, "stacks-many", "one.s");
    let text = std::fs::read_to_string(&template).expect("it was just compiled");
    let folder = template.with_file_name(format!("{count}"));
    let ready = folder.join("ready");
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if modified(&ready).is_some_and(|made| Some(made) > modified(&template)) {
        return folder;
    }
    std::fs::create_dir_all(&folder).expect("the target directory is writable");
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (folder, text) = (&folder, &text);
            scope.spawn(move || {
                for number in (part..count).step_by(2) {
                    let number = format!("{number:03}");
                    assemble(folder, &number, &text.replace(STANDS_FOR_NUMBER, &number));
                }
            });
        }
    });
    std::fs::write(ready, "").expect("the target directory is writable");
    folder
}

fn assemble(folder: &Path, number: &str, text: &str) {
    let path = |extension| folder.join(format!("lib{number}.{extension}"));
    std::fs::write(path("s"), text).expect("the target directory is writable");
    let name = format!("lib{number}.so");
    let assembled = Command::new("as").arg(path("s")).arg("-o").arg(path("o")).status();
    let linked = Command::new("ld")
        .args(["-shared", "--eh-frame-hdr", "-soname", &name, "-o"])
        .arg(path("so"))
        .arg(path("o"))
        .status();
    for (tool, status) in [("as", assembled), ("ld", linked)] {
        assert!(status.is_ok_and(|status| status.success()), "{tool} failed for {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(text: &str) -> Vec<SeenFrame> {
        let frame = |text: &str| {
            let (function, module) = text.split_once('/').unwrap_or((text, "program"));
            let function = (!function.is_empty()).then(|| function.to_owned());
            SeenFrame { function, module: module.to_owned() }
        };
        text.split_whitespace().map(frame).collect()
    }

    fn judge(line: &str, outcome: &str, seen: &str) -> Verdict {
        let figures = Figures::parse(&format!("{line}\ndone 1\n"));
        expected(&figures)[0].judge(outcome, &frames(seen), None)
    }

    #[test]
    fn a_stack_is_exact_cut_short_or_wrong() {
        use Verdict::{CutShort, Exact, Wrong};
        let chain = "stack 8 1 complete a <- b*2 <- main <- @libc <- _start";
        for (outcome, seen, verdict) in [
            ("complete", "a b b main /libc.so.6 _start", Exact),
            ("complete", "a.cold b b main start/libc-2.31.so _start", Exact),
            ("complete", "a b main /libc.so.6 _start", Wrong),
            ("complete", "a b b main /libcrypto.so _start", Wrong),
            ("complete", "a b b main /libc.so.6", Wrong),
            ("complete", "a b b main /libc.so.6 _start c", Wrong),
            ("unknown_code", "a b b", CutShort),
            ("unknown_code", "a c", Wrong),
            ("unknown_code", "a b b main /libc.so.6 _start", CutShort),
        ] {
            assert_eq!(judge(chain, outcome, seen), verdict, "{outcome} {seen}");
        }
    }

    #[test]
    fn some_frames_may_be_several() {
        use Verdict::{Exact, Wrong};
        let chain = "stack 8 1 complete a <- @@ <- b <- * <- main\nor 8 c <- @@ld-linux <- main";
        for (seen, verdict) in [
            ("a /libc.so.6 /ld-linux.so.2 b main", Exact),
            ("a b main", Wrong),
            ("a /libc.so.6 b x y z main", Exact),
            ("a /libc.so.6 b x y z", Wrong),
            ("c /ld-linux.so.2 /ld-linux.so.2 main", Exact),
            ("c /libc.so.6 main", Wrong),
        ] {
            assert_eq!(judge(chain, "complete", seen), verdict, "{seen}");
        }
    }

    #[test]
    fn outcomes_are_named_or_excluded() {
        assert_eq!(judge("stack 8 1 !complete a <- *", "no_tables", "a b"), Verdict::Exact);
        assert_eq!(judge("stack 8 1 !complete a <- *", "complete", "a b"), Verdict::Wrong);
        assert_eq!(judge("stack 8 1 depth_limit a*400", "depth_limit", "a a"), Verdict::Exact);
        assert_eq!(judge("stack 8 1 depth_limit a*400", "depth_limit", "a b"), Verdict::Wrong);
    }

    #[test]
    fn a_static_program_has_the_library_in_it() {
        let figures = Figures::parse("stack 8 1 complete main <- @libc <- _start\n");
        let stack = &expected(&figures)[0];
        let seen = frames("main x/program _start");
        assert_eq!(stack.judge("complete", &seen, Some("program")), Verdict::Exact);
        assert_eq!(stack.judge("complete", &seen, None), Verdict::Wrong);
    }
}
