//! Call chains as people read them: names where there are any, places where not.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::{
    Definitions,
    library::{is_allocator_wrapper, is_library},
};
use crate::model::{FrameId, Location, ModuleId, StackId, StackOutcome};

/// What stands in place of a file where a just-in-time compiler has made the code.
const GENERATED_CODE: &str = "[jit]";

/// One source function of a call chain. A frame of the machine gives several if
/// the compiler merged functions into one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ResolvedFrame<'a> {
    /// Its name; none without a symbol table or debug information. Untrusted text.
    pub function: Option<&'a str>,
    /// Path of the file it is in, `[jit]` for generated code that its compiler has
    /// named; none for other code in memory that no file is mapped to. Untrusted text.
    pub module: Option<&'a str>,
    /// Where in that file; without a file, the address in the process. 0 if the
    /// frame's definition is missing from the recording.
    #[serde(serialize_with = "hexadecimal")]
    pub offset: u64,
    /// Source file. Untrusted text.
    pub file: Option<&'a str>,
    /// Line in it.
    pub line: Option<u32>,
    /// Whether the compiler merged it into the function after it.
    pub inlined: bool,
}

/// Writes an address or offset as a string `"0x…"`, because a JSON number loses
/// digits beyond 2^53 in many readers.
///
/// # Errors
///
/// Those of the serializer.
pub fn hexadecimal<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

impl<'a> ResolvedFrame<'a> {
    /// The source functions of a frame, innermost first, never none.
    #[must_use]
    pub fn all_of(definitions: &'a Definitions, frame: FrameId) -> Vec<Self> {
        let mut frames = Vec::new();
        resolve(definitions, frame, &mut frames);
        frames
    }

    /// The function's name, or `module+0xoffset` where it has none: nothing is
    /// guessed. Untrusted text.
    #[must_use]
    pub fn name(&self) -> Cow<'a, str> {
        match (self.function, self.module) {
            (Some(function), _) => Cow::Borrowed(function),
            (None, Some(module)) => Cow::Owned(format!("{}+{:#x}", base_name(module), self.offset)),
            (None, None) => Cow::Owned(format!("[unknown]+{:#x}", self.offset)),
        }
    }

    /// Whether it only hands the program's request on to the allocator.
    #[must_use]
    pub fn is_allocator_wrapper(&self) -> bool {
        self.function.is_some_and(is_allocator_wrapper)
    }
}

/// Last part of a path.
#[must_use]
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

/// A call chain with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedStack<'a> {
    /// Why it ends where it ends.
    pub outcome: StackOutcome,
    /// Innermost first: the allocator's caller first.
    pub frames: Vec<ResolvedFrame<'a>>,
}

impl<'a> ResolvedStack<'a> {
    /// Names a stack of the recording; one whose record was lost has no frames.
    #[must_use]
    pub fn of(definitions: &'a Definitions, stack: StackId) -> Self {
        let Some(stack) = definitions.stacks.get(&stack) else {
            return Self { outcome: StackOutcome::FramesLost, frames: Vec::new() };
        };
        let mut frames = Vec::with_capacity(stack.frames.len());
        for frame in &stack.frames {
            resolve(definitions, *frame, &mut frames);
        }
        Self { outcome: stack.outcome, frames }
    }

    /// A name for the whole: that of the first function outside the wrappers and the
    /// language's library.
    /// Untrusted text.
    #[must_use]
    pub fn title(&self) -> Cow<'a, str> {
        let frame = self.frames.get(title_position(&self.frames));
        frame.map_or(Cow::Borrowed("[no frames]"), ResolvedFrame::name)
    }
}

/// How many of the innermost frames are the allocator's wrappers, which a reader wants folded; 0 if
/// nothing else is there.
pub(super) fn wrapper_count(frames: &[ResolvedFrame<'_>]) -> usize {
    frames.iter().position(|frame| !frame.is_allocator_wrapper()).unwrap_or(0)
}

/// See [`ResolvedStack::title`].
pub(super) fn title_position(frames: &[ResolvedFrame<'_>]) -> usize {
    let program = |frame: &ResolvedFrame<'_>| !frame.function.is_some_and(is_library);
    frames.iter().position(program).unwrap_or_else(|| wrapper_count(frames))
}

/// What stands in place of the missing callers where a chain does not reach the
/// start of its thread; none if it does, as far as can be known.
#[must_use]
pub const fn missing_callers(outcome: StackOutcome) -> Option<&'static str> {
    match outcome {
        StackOutcome::Complete | StackOutcome::WithFramePointers => None,
        StackOutcome::FramePointerBroken => Some("[callers unknown: frame pointer broken]"),
        StackOutcome::DepthLimit => Some("[callers unknown: depth limit]"),
        StackOutcome::FramesLost => Some("[frames lost]"),
        StackOutcome::UnknownReason => Some("[callers unknown]"),
        StackOutcome::NoTables => Some("[callers unknown: no unwind tables yet]"),
        StackOutcome::UnknownCode => Some("[callers unknown: unknown code]"),
        StackOutcome::UnsupportedRule => Some("[callers unknown: unsupported unwind rule]"),
        StackOutcome::StackUnreadable => Some("[callers unknown: stack unreadable]"),
        StackOutcome::NotUpward => Some("[callers unknown: unwind rule leads down]"),
        StackOutcome::TablesReplaced => Some("[callers unknown: unwind tables replaced]"),
        StackOutcome::TablesOutdated => Some("[callers unknown: unwind tables outdated]"),
        StackOutcome::NullReturn => Some("[callers unknown: null return address]"),
        StackOutcome::CopyTooShort => Some("[callers unknown: stack copied in part]"),
        StackOutcome::StackTableFull => Some("[callers unknown: too many stacks]"),
        StackOutcome::CallerOnly => Some("[callers not asked for]"),
    }
}

/// An outcome in plain words, for a sentence that counts them.
#[must_use]
pub(super) const fn outcome_words(outcome: StackOutcome) -> &'static str {
    match outcome {
        StackOutcome::Complete => "complete",
        StackOutcome::WithFramePointers => "partly by frame pointers",
        StackOutcome::FramePointerBroken => "frame pointer broken",
        StackOutcome::DepthLimit => "depth limit",
        StackOutcome::FramesLost => "frames lost",
        StackOutcome::UnknownReason => "unknown reason",
        StackOutcome::NoTables => "no unwind tables yet",
        StackOutcome::UnknownCode => "unknown code",
        StackOutcome::UnsupportedRule => "unsupported unwind rule",
        StackOutcome::StackUnreadable => "stack unreadable",
        StackOutcome::NotUpward => "unwind rule leads down",
        StackOutcome::TablesReplaced => "unwind tables replaced",
        StackOutcome::TablesOutdated => "unwind tables outdated",
        StackOutcome::NullReturn => "null return address",
        StackOutcome::CopyTooShort => "stack copied in part",
        StackOutcome::StackTableFull => "too many stacks",
        StackOutcome::CallerOnly => "not asked for",
    }
}

/// Where a frame is: its module, and an offset in it or an address.
pub(crate) fn place(definitions: &Definitions, frame: FrameId) -> (Option<ModuleId>, u64) {
    match definitions.frames.get(&frame).map(|frame| frame.location) {
        Some(Location::Module { module, file_offset }) => (Some(module), file_offset),
        Some(Location::Unmapped { address_avma, .. }) => (None, address_avma),
        None => (None, 0),
    }
}

fn resolve<'a>(definitions: &'a Definitions, frame: FrameId, frames: &mut Vec<ResolvedFrame<'a>>) {
    let (module, offset) = place(definitions, frame);
    let functions = definitions.symbols.get(&frame).map(Vec::as_slice).unwrap_or_default();
    let module = match module {
        Some(module) => definitions.modules.get(&module).map(|module| &*module.path),
        // Only the map of a just-in-time compiler gives names where no file is.
        None => (!functions.is_empty()).then_some(GENERATED_CODE),
    };
    if functions.is_empty() {
        frames.push(ResolvedFrame {
            function: None,
            module,
            offset,
            file: None,
            line: None,
            inlined: false,
        });
    }
    frames.extend(functions.iter().map(|function| ResolvedFrame {
        function: Some(&function.name),
        module,
        offset,
        file: function.file.as_deref(),
        line: function.line,
        inlined: function.inlined,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_has_the_same_words_in_a_chain_and_in_the_summary() {
        let mut seen = std::collections::BTreeSet::new();
        for outcome in StackOutcome::ALL {
            let words = outcome_words(outcome);
            assert!(seen.insert(words), "{words} is twice there");
            match missing_callers(outcome) {
                Some("[callers unknown]") => assert_eq!(outcome, StackOutcome::UnknownReason),
                Some(shown) => assert!(shown.ends_with(&format!("{words}]")), "{shown}: {words}"),
                None => assert!(
                    matches!(outcome, StackOutcome::Complete | StackOutcome::WithFramePointers),
                    "{outcome:?}"
                ),
            }
        }
    }

    #[test]
    fn base_names() {
        for (path, expected) in [
            ("/usr/lib/libc.so.6", "libc.so.6"),
            ("[vdso]", "[vdso]"),
            ("", ""),
            ("/", "/"),
            ("a/", "a"),
        ] {
            assert_eq!(base_name(path), expected);
        }
    }

    #[test]
    fn a_frame_without_symbols_is_a_place() {
        let frame = ResolvedFrame {
            function: None,
            module: Some("/opt/x/libfoo.so"),
            offset: 0x12ab,
            file: None,
            line: None,
            inlined: false,
        };
        assert_eq!(frame.name(), "libfoo.so+0x12ab");
        assert_eq!(ResolvedFrame { module: None, ..frame }.name(), "[unknown]+0x12ab");
    }
}
