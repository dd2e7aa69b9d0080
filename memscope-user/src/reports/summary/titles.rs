//! The one line that a site has in the summary, told apart from the others.

use super::{WIDTH, cut, line};
use crate::{
    reports::{ResolvedFrame, frames::title_position, layout::frame_text, library::short_name},
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
    /// Innermost first.
    chain: &'a [ResolvedFrame<'a>],
    /// The first of them that it is shown by.
    first: usize,
    /// How many different ones of them are shown.
    shown: usize,
}

impl<'a> RowLine<'a> {
    pub(super) fn of(numbers: String, comm: Option<&str>, chain: &'a [ResolvedFrame<'a>]) -> Self {
        let whose = comm.map_or_else(String::new, |comm| format!("{}: ", text::harmless(comm)));
        Self { numbers, whose, chain, first: title_position(chain), shown: 1 }
    }

    /// From the one that it is shown by on, to its callers.
    fn frames(&self) -> &'a [ResolvedFrame<'a>] {
        self.chain.get(self.first..).unwrap_or_default()
    }

    /// What the program has called of the language's library, where callers tell nothing apart.
    fn show_library(&mut self) {
        let of_library = self.first.checked_sub(1);
        if let Some(place) = of_library.filter(|place| !self.chain[*place].is_allocator_wrapper()) {
            (self.first, self.shown) = (place, 2);
        }
    }

    /// What a reader tells it from the other lines by. Where the end of it had no place, that is
    /// the function: two ends that are cut in different places tell nothing.
    fn mark(&self) -> String {
        match self.frames().first() {
            Some(frame) if self.shown == 1 => {
                let whole = frame_text(frame, self.room());
                let is_cut = whole.chars().count() > self.room() || whole.contains('…');
                let told = if is_cut { text::harmless(&frame.name()) } else { whole };
                format!("{}{told}", self.whose)
            }
            _ => self.title(),
        }
    }

    fn room(&self) -> usize {
        WIDTH.saturating_sub(self.numbers.chars().count() + 1 + self.whose.chars().count())
    }

    /// What it is shown by, with its process.
    fn title(&self) -> String {
        let room = self.room();
        let title = match self.frames().first() {
            None => "[no frames]".to_owned(),
            Some(frame) if self.shown == 1 => {
                let whole = frame_text(frame, room);
                // A piece of the module's name says nothing.
                if whole.chars().count() > room {
                    let bare = ResolvedFrame { module: None, inlined: false, ..*frame };
                    frame_text(&bare, room)
                } else {
                    whole
                }
            }
            Some(_) => called(&names(self.frames(), self.shown), room),
        };
        format!("{}{}", self.whose, cut(&title, room))
    }

    /// As many callers more as have place, for who knows that `xmalloc` allocates much knows little yet. Not where a line of
    /// the source is shown, nor callers without a name.
    fn fill(&mut self) {
        if self.shown == 1 && self.frames().first().is_none_or(|frame| frame.file.is_some()) {
            return;
        }
        let is_unnamed = |frame: &ResolvedFrame<'_>| frame.function.is_none();
        let named = self.frames().iter().position(is_unnamed).unwrap_or(self.frames().len());
        let names = names(&self.frames()[..named], MAX_FUNCTIONS);
        let fits = |shown: &usize| names[..*shown].join(CALLED_BY).chars().count() <= self.room();
        self.shown = (self.shown..=names.len()).rev().find(fits).unwrap_or(self.shown);
    }

    /// One caller more, if there is one; whether there was.
    fn show_more(&mut self) -> bool {
        let wanted = self.shown + 1;
        let has_more = wanted <= MAX_FUNCTIONS && names(self.frames(), wanted).len() == wanted;
        self.shown += usize::from(has_more);
        has_more
    }
}

/// The first few functions, by short names. What stands there twice in a row is told once.
fn names(frames: &[ResolvedFrame<'_>], most: usize) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for frame in frames {
        let name = text::harmless(
            &frame.function.map_or_else(|| frame.name(), |function| short_name(function).into()),
        );
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
/// are shown with as many callers as tell them apart, and all with those that have place.
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
        // Far callers that tell nothing apart would only be in the way of those that are near.
        for (row, mark) in lines.iter_mut().zip(&marks) {
            if !is_alone(mark) {
                row.shown = 1;
                row.show_library();
            }
            row.fill();
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
        let lines = chains
            .iter()
            .map(|frames| RowLine::of(format!("{:37}", "  1.00 KiB"), None, frames.as_slice()));
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
                "xmalloc < make_node < main",
                "xmalloc < copy_node < main",
                "other < main",
                "xmalloc < copy_node < parse < main"
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
            RowLine::of(numbers, None, frames)
        });
        let mut out = String::new();
        tell(&mut out, "Most", lines.into_iter().collect());
        assert!(out.contains(" object_malloc < main\n"), "{out}");
        assert!(out.contains(" object_malloc < run\n"), "{out}");
    }

    /// As far as they have place and names; a line of the source is worth more.
    #[test]
    fn callers_fill_the_room() {
        let long = "b".repeat(40);
        assert_eq!(told(&[&["a", "b", &long]]), ["a < b"]);
        assert_eq!(told(&[&["a", &long]]), ["a  [cc1plus]"]);
        let lines = |frames: &[ResolvedFrame<'_>]| {
            let mut out = String::new();
            tell(&mut out, "Most", vec![RowLine::of(format!("{:37}", ""), None, frames)]);
            out.lines().nth(1).unwrap().trim().to_owned()
        };
        let unnamed = ResolvedFrame { function: None, ..frame("") };
        assert_eq!(lines(&[frame("a"), frame("b"), unnamed, frame("main")]), "a < b");
        let source = Some("/src/objects_of_all_kinds.c");
        let with_line =
            ResolvedFrame { file: source, line: Some(7), inlined: true, ..frame("new_object") };
        assert_eq!(lines(&[with_line, frame("b")]), "new_object  objects_of_all_kinds.c:7");
        let with_line = ResolvedFrame { file: Some("a.c"), inlined: false, ..with_line };
        assert_eq!(lines(&[with_line, frame("b")]), "new_object  a.c:7  [cc1plus]");
    }

    /// What one function of the program has kept in several ways.
    #[test]
    fn the_library_tells_apart_what_callers_do_not() {
        let (vector, map) =
            ("std::vector<int>::resize(unsigned long)", "std::map<int, A>::emplace(A&&)");
        let wrapper = "std::allocator<int>::allocate(unsigned long)";
        let program = "Server::accept(int)";
        let shown = told(&[
            &[wrapper, vector, program, "main"],
            &[wrapper, map, program, "main"],
            &[wrapper, program, "main"],
        ]);
        let expected = [
            "std::vector::resize < Server::accept",
            "std::map::emplace < Server::accept < main",
            "Server::accept < main",
        ];
        assert_eq!(shown, expected);
        assert_eq!(told(&[&[wrapper, vector, program]]), ["Server::accept(int)  [cc1plus]"]);
    }

    #[test]
    fn what_cannot_be_told_apart_stays() {
        let chain: &[&str] = &["a", "b", "c", "d", "e", "f"];
        assert_eq!(told(&[chain, chain]), ["a < b < c < d < e < f", "a < b < c < d < e < f"]);
        assert_eq!(told(&[&["a"], &["a"]]), ["a  [cc1plus]", "a  [cc1plus]"]);
        assert_eq!(told(&[&[], &[]]), ["[no frames]", "[no frames]"]);
    }
}
