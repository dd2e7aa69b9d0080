//! Runs a test program in step with a test, and reads what it says about itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Long enough for the slowest program under the slowest tracer; a test that waits longer is stuck.
const LINE_DEADLINE: Duration = Duration::from_secs(120);

/// A running test program (or any command that prints like one). Killed when dropped.
pub struct TestProgram {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl TestProgram {
    /// Starts the command with pipes for stdin and stdout.
    pub fn spawn(command: &mut Command) -> TestProgram {
        let mut child = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        };
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was piped above");
        let (sender, lines) = channel();
        // A thread, because a pipe cannot be read with a deadline.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let line = line.expect("a test program prints UTF-8");
                if sender.send(line).is_err() {
                    return; // the test has ended
                }
            }
        });
        TestProgram { child, stdin, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `ready <pid>` and returns that pid, which differs from `pid()` where the command is a tracer that
    /// started the program.
    pub fn wait_ready(&mut self) -> u32 {
        let line = self.next_line().expect("the program prints a ready line before it ends");
        let pid = line
            .strip_prefix("ready ")
            .unwrap_or_else(|| panic!("expected `ready <pid>`, got: {line}"));
        pid.parse().expect("a pid is a number")
    }

    /// Sends the line that a program started with `wait` or `linger` is waiting for.
    pub fn go(&mut self) {
        let stdin = self.stdin.as_mut().expect("stdin is open until finish()");
        stdin.write_all(b"go\n").expect("the program is alive and reads its stdin");
    }

    /// Reads on up to the line `done 1` (or to the end), without ending a program that lingers.
    pub fn figures(&mut self) -> Figures {
        let mut figures = Figures::default();
        while let Some(line) = self.next_line() {
            figures.add_line(&line);
            if line == "done 1" {
                break;
            }
        }
        figures
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a pid fits a pid_t");
        // SAFETY: kill has no memory effects; the child is not reaped before `finish` or drop, so the pid is its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "a child that was not reaped can be signalled");
    }

    /// Closes stdin, reads what is left and waits for the end.
    pub fn finish(mut self) -> (Figures, ExitStatus) {
        self.stdin = None;
        let mut figures = Figures::default();
        while let Some(line) = self.next_line() {
            figures.add_line(&line);
        }
        let status = self.child.wait().expect("the child was not reaped before");
        (figures, status)
    }

    fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(LINE_DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("the program said nothing for {LINE_DEADLINE:?}")
            }
        }
    }
}

impl Drop for TestProgram {
    fn drop(&mut self) {
        // Both succeed on a child that has ended, reaped or not.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end test program {}: {error}", self.child.id());
        }
    }
}

/// The lines a program printed: a key and its values, a key possibly several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    lines: Vec<(String, String)>,
}

impl Figures {
    /// Reads the whole output of a program.
    pub fn parse(output: &str) -> Figures {
        let mut figures = Figures::default();
        for line in output.lines() {
            figures.add_line(line);
        }
        figures
    }

    fn add_line(&mut self, line: &str) {
        let (key, values) =
            line.split_once(' ').unwrap_or_else(|| panic!("not a line of key and values: {line}"));
        self.lines.push((key.to_owned(), values.to_owned()));
    }

    /// The values of the one line with this key.
    pub fn text(&self, key: &str) -> &str {
        let mut found = self.lines.iter().filter(|(name, _)| name == key);
        match (found.next(), found.next()) {
            (Some((_, values)), None) => values,
            (None, _) => panic!("the program did not print `{key}`: {:?}", self.lines),
            (Some(_), Some(_)) => {
                panic!("the program printed `{key}` more than once: {:?}", self.lines)
            }
        }
    }

    pub fn number(&self, key: &str) -> u64 {
        parse(self.text(key))
    }

    pub fn float(&self, key: &str) -> f64 {
        let text = self.text(key);
        text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
    }

    /// The values of every line with this key, in order.
    pub fn rows(&self, key: &str) -> Vec<Vec<&str>> {
        let lines = self.lines.iter().filter(|(name, _)| name == key);
        lines.map(|(_, values)| values.split(' ').collect()).collect()
    }

    /// What follows the key on every line with it, in order.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        let lines = self.lines.iter().filter(|(name, _)| name == key);
        lines.map(|(_, values)| values.as_str()).collect()
    }

    /// The `chain` lines of the chain programs.
    pub fn chains(&self) -> Vec<ExpectedChain> {
        let lines = self.lines.iter().filter(|(name, _)| name == "chain");
        lines.map(|(_, values)| ExpectedChain::parse(values)).collect()
    }
}

/// A chain of calls that ends in an allocation of a size no other chain of the program has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedChain {
    pub size: u64,
    pub count: u64,
    /// Innermost first.
    pub frames: Vec<ExpectedFrame>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedFrame {
    /// As demanglers print it: with parameters for C++, without the hash for Rust.
    pub function: String,
    pub line: u32,
    /// Known from debug information only; the symbol table has the next frame that is not.
    pub inlined: bool,
}

impl ExpectedChain {
    fn parse(values: &str) -> ExpectedChain {
        let mut fields = values.splitn(3, ' ');
        let mut field = || fields.next().unwrap_or_else(|| panic!("not a chain: {values}"));
        let (size, count, frames) = (parse(field()), parse(field()), field());
        let frames = frames.split(" <- ").map(|frame| {
            let (function, line) =
                frame.split_once(" @").unwrap_or_else(|| panic!("not a frame: {frame}"));
            let (line, inlined) =
                line.strip_suffix(" inlined").map_or((line, false), |line| (line, true));
            ExpectedFrame { function: function.to_owned(), line: parse(line), inlined }
        });
        ExpectedChain { size, count, frames: frames.collect() }
    }
}

fn parse<N: std::str::FromStr>(text: &str) -> N {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_key() {
        let figures = Figures::parse("size 12\nlife 0x1 2\nlife 0x2 3\nns_per_pair 1.50\ndone 1\n");
        assert_eq!(figures.number("size"), 12);
        assert_eq!(figures.float("ns_per_pair"), 1.5);
        assert_eq!(figures.rows("life"), [["0x1", "2"], ["0x2", "3"]]);
        assert!(figures.rows("absent").is_empty());
    }

    #[test]
    fn chains_keep_names_with_spaces() {
        let figures = Figures::parse(
            "chain 10 3 int* pack<int>(unsigned long) @7 <- step @8 inlined <- main @9\n",
        );
        let frame = |function: &str, line, inlined| ExpectedFrame {
            function: function.to_owned(),
            line,
            inlined,
        };
        let frames = vec![
            frame("int* pack<int>(unsigned long)", 7, false),
            frame("step", 8, true),
            frame("main", 9, false),
        ];
        assert_eq!(figures.chains(), [ExpectedChain { size: 10, count: 3, frames }]);
    }
}
