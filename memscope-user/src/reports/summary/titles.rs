//! The one line that a site has in the summary, told apart from the others.

use super::{WIDTH, cut, line};
use crate::{
    reports::{ResolvedFrame, layout::frame_text},
    text,
};

/// How far callers are followed to tell a line from the others.
const MAX_FUNCTIONS: usize = 16;
/// What stands between a function and its caller.
const CALLED_BY: &str = " < ";

/// Numbers, the process if there are several, and the functions that they are shown by.
pub(super) struct RowLine<'a> {
    numbers: String,
    whose: String,
    /// From the one that it is shown by on, to its callers.
    frames: &'a [ResolvedFrame<'a>],
    /// How many different ones of them are shown.
    shown: usize,
}

impl<'a> RowLine<'a> {
    pub(super) fn of(
        numbers: String,
        comm: Option<&str>,
        frames: Option<&'a [ResolvedFrame<'a>]>,
    ) -> Self {
        let whose = comm.map_or_else(String::new, |comm| format!("{}: ", text::harmless(comm)));
        Self { numbers, whose, frames: frames.unwrap_or_default(), shown: 1 }
    }

    /// What a reader tells it from the other lines by. Where the end of it had no place, that is
    /// the function: two ends that are cut in different places tell nothing.
    fn mark(&self) -> String {
        let title = self.title();
        match self.frames.first() {
            Some(frame) if self.shown == 1 && title.ends_with('…') => {
                format!("{}{}", self.whose, text::harmless(&frame.name()))
            }
            _ => title,
        }
    }

    /// What it is shown by, with its process.
    fn title(&self) -> String {
        let taken = self.numbers.chars().count() + 1 + self.whose.chars().count();
        let room = WIDTH.saturating_sub(taken);
        let title = match self.frames.first() {
            None => "[no frames]".to_owned(),
            Some(frame) if self.shown == 1 => frame_text(frame, room),
            Some(_) => called(&self.names(self.shown), room),
        };
        format!("{}{}", self.whose, cut(&title, room))
    }

    /// The first few functions. What stands there twice in a row is told once.
    fn names(&self, most: usize) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for frame in self.frames {
            let name = text::harmless(&frame.name());
            if names.last() == Some(&name) {
                continue;
            }
            if names.len() == most {
                break;
            }
            names.push(name);
        }
        names
    }

    /// One caller more, if there is one; whether there was.
    fn show_more(&mut self) -> bool {
        let wanted = self.shown + 1;
        let has_more = wanted <= MAX_FUNCTIONS && self.names(wanted).len() == wanted;
        self.shown += usize::from(has_more);
        has_more
    }
}

/// `xmalloc < make_node`; of more than have place the first and the last, which is the one that
/// differs, each cut to its half of the room if need be.
fn called(names: &[String], room: usize) -> String {
    let told = names.join(CALLED_BY);
    let ([first, .., last], true) = (names, told.chars().count() > room) else { return told };
    let between = if names.len() > 2 { " < … < " } else { CALLED_BY };
    let room = room.saturating_sub(between.chars().count());
    let of_last = last.chars().count().min(room - room / 2);
    let of_first = first.chars().count().min(room - of_last);
    format!("{}{between}{}", cut(first, of_first), cut(last, room - of_first))
}

/// A heading and the lines, if there are any. Those that would be shown by the same function
/// are shown with as many callers as tell them apart.
pub(super) fn tell(out: &mut String, heading: &str, mut lines: Vec<RowLine<'_>>) {
    if lines.is_empty() {
        return;
    }
    loop {
        let marks: Vec<String> = lines.iter().map(RowLine::mark).collect();
        let is_alone = |mark: &String| marks.iter().filter(|other| *other == mark).count() == 1;
        let mut has_more = false;
        for (row, mark) in lines.iter_mut().zip(&marks) {
            has_more |= !is_alone(mark) && row.show_more();
        }
        if has_more {
            continue;
        }
        // Callers that tell nothing apart would only be in the way.
        for (row, mark) in lines.iter_mut().zip(&marks) {
            row.shown = if is_alone(mark) { row.shown } else { 1 };
        }
        let titles: Vec<String> = lines.iter().map(RowLine::title).collect();
        line!(out, "{heading}");
        for (row, title) in lines.iter().zip(titles) {
            line!(out, "{} {title}", row.numbers);
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str) -> ResolvedFrame<'_> {
        ResolvedFrame {
            function: Some(function),
            module: Some("/usr/bin/cc1plus"),
            offset: 16,
            file: None,
            line: None,
            inlined: false,
        }
    }

    fn told(chains: &[&[&str]]) -> Vec<String> {
        let chains: Vec<Vec<_>> =
            chains.iter().map(|names| names.iter().map(|name| frame(name)).collect()).collect();
        let lines = chains.iter().map(|frames| {
            RowLine::of(format!("{:37}", "  1.00 KiB"), None, Some(frames.as_slice()))
        });
        let mut out = String::new();
        tell(&mut out, "Most", lines.collect());
        assert!(out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
        out.lines().skip(1).map(|line| line[38..].to_owned()).collect()
    }

    #[test]
    fn rows_of_the_same_function_are_told_apart_by_their_callers() {
        assert_eq!(
            told(&[
                &["xmalloc", "make_node", "main"],
                &["xmalloc", "xmalloc", "copy_node", "main"],
                &["other", "main"],
                &["xmalloc", "copy_node", "parse", "main"],
            ]),
            [
                "xmalloc < make_node",
                "xmalloc < copy_node < main",
                "other  [cc1plus]",
                "xmalloc < copy_node < parse"
            ]
        );
    }

    #[test]
    fn callers_have_room_beside_long_names() {
        let long = "a".repeat(70);
        let shown = told(&[&[&long, "first_caller"], &[&long, "second_caller"]]);
        assert!(shown[0].ends_with("a… < first_caller"), "{shown:?}");
        assert!(shown[1].ends_with("a… < second_caller"), "{shown:?}");
        assert!(shown.iter().all(|title| title.chars().count() == 42), "{shown:?}");
        let (second, third) = (&["xmalloc", &long, "third_caller"], &["xmalloc", &long, "fourth"]);
        assert_eq!(told(&[second, third]), ["xmalloc < … < third_caller", "xmalloc < … < fourth"]);
    }

    #[test]
    fn ends_that_are_cut_in_different_places_tell_nothing_apart() {
        let callers = [frame("main"), frame("run")];
        let [main, run] = callers.map(|caller| {
            let source = Some("/src/objects_of_all_kinds.c");
            [ResolvedFrame { file: source, line: Some(7), ..frame("object_malloc") }, caller]
        });
        let lines = [("  1.00 KiB", main.as_slice()), (" 10.00 KiB ", run.as_slice())];
        let lines = lines.map(|(bytes, frames)| {
            let numbers = format!("{bytes}{:37}", "");
            RowLine::of(numbers, None, Some(frames))
        });
        let mut out = String::new();
        tell(&mut out, "Most", lines.into_iter().collect());
        assert!(out.contains(" object_malloc < main\n"), "{out}");
        assert!(out.contains(" object_malloc < run\n"), "{out}");
    }

    #[test]
    fn what_cannot_be_told_apart_stays() {
        let chain: &[&str] = &["a", "b", "c", "d", "e", "f"];
        assert_eq!(told(&[chain, chain]), ["a  [cc1plus]", "a  [cc1plus]"]);
        assert_eq!(told(&[&["a"], &["a"]]), ["a  [cc1plus]", "a  [cc1plus]"]);
        assert_eq!(told(&[&[], &[]]), ["[no frames]", "[no frames]"]);
    }
}
