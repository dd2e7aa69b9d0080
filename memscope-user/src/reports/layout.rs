//! How tables of sites look in a terminal of 80 to 100 columns.

use super::{
    Analysis, Detail, ProcessName,
    frames::{ResolvedFrame, base_name, missing_callers, title_position},
    row::SiteRow,
};
use crate::{model::StackOutcome, text};

/// Longest line of a table.
pub(super) const WIDTH: usize = 100;
/// Most frames of a call chain that are shown.
const MAX_SHOWN_FRAMES: usize = 8;
/// How many of them are the program's at least, if the chain has so many, whatever its language's
/// library calls in between.
const LEAST_PROGRAM_FRAMES: usize = 4;
/// Least room for a function's name, however long its file and module are.
const MIN_NAME_WIDTH: usize = 24;
const INDENT: &str = "      ";

/// Cuts a text to a number of characters.
pub(crate) fn cut(shown: &str, width: usize) -> String {
    if shown.chars().count() <= width {
        return shown.to_owned();
    }
    shown.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A line; writing to a String cannot fail.
macro_rules! line {
    ($out:expr, $($argument:tt)*) => {{
        use std::fmt::Write as _;
        writeln!($out, $($argument)*).ok()
    }};
}
pub(super) use line;

/// File and line of a frame, if known: `server.c:123`. Harmless to a terminal.
pub(super) fn source(frame: &ResolvedFrame<'_>) -> Option<String> {
    let file = cut(&text::harmless(base_name(frame.file?)), 40);
    Some(frame.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}")))
}

/// `name  file:line  [module]  (inlined)`, not longer than `width` if it can be.
/// Harmless to a terminal.
pub(super) fn frame_text(frame: &ResolvedFrame<'_>, width: usize) -> String {
    let mut rest = String::new();
    if let Some(source) = source(frame) {
        rest.push_str("  ");
        rest.push_str(&source);
    }
    if let (Some(_), Some(module)) = (frame.function, frame.module) {
        let module = cut(&text::harmless(base_name(module)), 30);
        // What is no file has its brackets already.
        let bare = module.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        rest.push_str(&format!("  [{}]", bare.unwrap_or(&module)));
    }
    if frame.inlined {
        rest.push_str("  (inlined)");
    }
    let room = width.saturating_sub(rest.chars().count()).max(MIN_NAME_WIDTH);
    format!("{}{rest}", cut(&text::harmless(&frame.name()), room))
}

/// A call chain of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<'a> {
    /// Whose it is; the first one's, if it is that of several.
    pub(super) process: ProcessName<'a>,
    pub(super) process_count: usize,
    pub(super) frames: &'a [ResolvedFrame<'a>],
    /// A [`StackOutcome::name`].
    pub(super) outcome: &'a str,
}

/// The row's process, if there are several, and its call chain, folded.
pub(super) fn stack(out: &mut String, row: &SiteRow<'_>, detail: Detail, analysis: &Analysis) {
    let chain = Chain {
        process: row.process,
        process_count: row.process_count,
        frames: &row.frames,
        outcome: row.stack,
    };
    self::chain(out, &chain, detail, analysis);
}

/// The process, if there are several, and the call chain, folded.
pub(super) fn chain(out: &mut String, row: &Chain<'_>, detail: Detail, analysis: &Analysis) {
    if analysis.definitions.processes.len() > 1 {
        let processes = text::count(row.process_count as u64);
        let whose = match row.process.comm {
            Some(comm) if row.process_count > 1 => {
                format!("{} ({processes} processes)", text::harmless(comm))
            }
            _ => row.process.text(),
        };
        line!(out, "{INDENT}in {whose}");
    }
    let wrappers = detail.hidden(row.frames);
    let library = match detail {
        Detail::Folded => library_frames_left_out(row.frames, wrappers),
        Detail::All => 0,
    };
    if library > 0 {
        line!(out, "{INDENT}… {} of the language's library", counted(library as u64, "function"));
    }
    let width = WIDTH - INDENT.len();
    for frame in row.frames.iter().skip(wrappers + library).take(MAX_SHOWN_FRAMES) {
        line!(out, "{INDENT}{}", frame_text(frame, width));
    }
    let hidden = row.frames.len().saturating_sub(wrappers + library + MAX_SHOWN_FRAMES);
    let outcome = StackOutcome::ALL.into_iter().find(|outcome| outcome.name() == row.outcome);
    let mut tail = Vec::new();
    if hidden > 0 {
        tail.push(format!("… {hidden} more"));
    }
    if let Some(missing) = outcome.and_then(missing_callers) {
        tail.push(missing.to_owned());
    } else if row.frames.is_empty() {
        tail.push("[no frames]".to_owned());
    }
    if !tail.is_empty() {
        line!(out, "{INDENT}{}", tail.join("  "));
    }
}

/// How many functions of the library are left out after the wrappers, that those of the program
/// be reached. What the program calls itself is the last to go.
fn library_frames_left_out(frames: &[ResolvedFrame<'_>], wrappers: usize) -> usize {
    let program = title_position(frames);
    let shown = frames.len().saturating_sub(program).min(LEAST_PROGRAM_FRAMES);
    program.saturating_sub(wrappers).saturating_sub(MAX_SHOWN_FRAMES - shown)
}

/// Says that there is more than is shown, if there is.
pub(super) fn folded(out: &mut String, rows: &[SiteRow<'_>], detail: Detail) {
    if rows.iter().any(|row| detail.hidden(&row.frames) > 0) {
        line!(
            out,
            "\nFunctions that only hand requests on to the allocator are folded (--show-wrappers)."
        );
    }
}

/// First line of a table: what it shows, and how much of it.
pub(super) fn heading(out: &mut String, what: &str, shown: usize, all: usize) {
    let sites = if all == 1 { "site" } else { "sites" };
    line!(out, "{what}: {} {sites}", first_of(shown, all));
}

/// How many rows a table has, and of how many if these are not all.
pub(super) fn first_of(shown: usize, all: usize) -> String {
    let all_rows = text::count(all as u64);
    if shown < all {
        format!("the first {} of {all_rows}", text::count(shown as u64))
    } else {
        all_rows
    }
}

/// Counts with their noun: `1 block`, `2 blocks`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", text::count(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame<'a>(function: Option<&'a str>, file: Option<&'a str>) -> ResolvedFrame<'a> {
        ResolvedFrame {
            function,
            module: Some("/usr/bin/server"),
            offset: 16,
            file,
            line: Some(7),
            inlined: true,
        }
    }

    #[test]
    fn frames_fit_their_line() {
        assert_eq!(
            frame_text(&frame(Some("f"), Some("/src/a.c")), 94),
            "f  a.c:7  [server]  (inlined)"
        );
        assert_eq!(frame_text(&frame(None, None), 94), "server+0x10  (inlined)");
        let generated = ResolvedFrame { module: Some("[jit]"), ..frame(Some("f"), None) };
        assert_eq!(frame_text(&generated, 94), "f  [jit]  (inlined)");
        let long = "x".repeat(400);
        let shown = frame_text(&frame(Some(&long), Some("/src/a.c")), 94);
        assert_eq!(shown.chars().count(), 94);
        assert!(shown.contains("x…  a.c:7"));
    }

    #[test]
    fn frames_are_harmless() {
        let shown = frame_text(&frame(Some("f\x1b[2J"), Some("/a\x07.c")), 94);
        assert!(!shown.contains(char::is_control), "{shown:?}");
    }
}
