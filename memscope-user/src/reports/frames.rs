//! Call chains as people read them: names where there are any, places where not.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::Definitions;
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

/// Functions between the program and the allocator that do nothing but hand a request on,
/// by the beginning of their demangled name: what the languages make of `new` and what
/// their containers have it called by. What a program calls itself, such as
/// `std::vector<…>::push_back` and `alloc::vec::Vec<…>::push`, is none of them.
const WRAPPER_PREFIXES: [&str; 26] = [
    "operator new",
    "__gnu_cxx::new_allocator<",
    "__gnu_cxx::__alloc_traits<",
    "std::__new_allocator<",
    "std::allocator<",
    "std::allocator_traits<",
    "std::__allocate_guarded<",
    "std::_Vector_base<",
    "std::__1::allocator<",
    "std::__1::allocator_traits<",
    "std::__1::__libcpp_allocate",
    "std::__1::__libcpp_operator_new",
    "std::__1::__allocate_at_least",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc::__r",
    "__rdl_",
    "__rg_",
    "alloc::alloc::",
    "<alloc::alloc::Global>::",
    "alloc::raw_vec::",
    "<alloc::raw_vec::",
    "hashbrown::raw::alloc::",
    "<hashbrown::raw::alloc::",
    "std::alloc::",
    "<std::alloc::",
];

/// The same of Rust's `Box`, `Rc` and `Arc`, some of whose functions programs call themselves:
/// how these are called, without what they are of and its parameters.
const POINTER_WRAPPERS: [&str; 6] = [
    "box_new_uninit",
    "new_uninit_in",
    "try_new_uninit_in",
    "allocate_for_layout",
    "try_allocate_for_layout",
    "allocate_for_slice",
];

/// Beginning of the names of Rust's own functions, its collections above all, which say less of
/// a site in one line than what calls them. `<[…]>` is a slice.
const LIBRARY_PREFIXES: [&str; 11] = [
    "alloc::",
    "<alloc::",
    "alloc[",
    "<alloc[",
    "core::",
    "<core::",
    "std::collections::",
    "<std::collections::",
    "hashbrown::",
    "<hashbrown::",
    "<[",
];

fn is_allocator_wrapper(function: &str) -> bool {
    // A template function's name begins with its return type: `void* f<…>(…)`.
    let name = function.strip_prefix("void* ").unwrap_or(function);
    WRAPPER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with('<') && name.contains(" as core::alloc::"))
        || is_pointer_wrapper(name)
}

/// `alloc::boxed::Box<T,A>::new_uninit_in`, or `<alloc::boxed::Box<u64>>::new_uninit_in`.
fn is_pointer_wrapper(name: &str) -> bool {
    let path = name.strip_prefix('<').unwrap_or(name);
    ["alloc::boxed::", "alloc::rc::", "alloc::sync::"].iter().any(|module| path.starts_with(module))
        && POINTER_WRAPPERS.iter().any(|function| {
            // What is of a function, such as a closure, stands after it.
            let called = |(position, _): (usize, &str)| {
                let rest = name.get(position + function.len()..).unwrap_or_default();
                name.get(..position).is_some_and(|before| before.ends_with("::"))
                    && (rest.is_empty() || rest.starts_with("::"))
            };
            name.match_indices(function).any(called)
        })
}

fn is_library(function: &str) -> bool {
    is_allocator_wrapper(function)
        || LIBRARY_PREFIXES.iter().any(|prefix| function.starts_with(prefix))
        || (function.starts_with('<')
            && [" as alloc::", " as <["].iter().any(|part| function.contains(part)))
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

    /// A name for the whole: that of the first function outside the wrappers and Rust's
    /// collections.
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
    fn wrappers_are_told_from_the_program() {
        for wrapper in [
            "operator new(unsigned long)",
            "operator new[](unsigned long)",
            "std::__new_allocator<int>::allocate(unsigned long, void const*)",
            "std::allocator_traits<std::allocator<char> >::allocate(std::allocator<char>&, unsigned long)",
            "__rust_alloc",
            "__rustc::__rust_alloc",
            "__rdl_alloc",
            "alloc::alloc::alloc",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::raw_vec::RawVec<T>>::grow_one",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "<std::alloc::System as core::alloc::GlobalAlloc>::alloc",
        ] {
            assert!(is_allocator_wrapper(wrapper), "{wrapper}");
        }
        // As rustc 1.95 names them, mangled as before and by v0, of code that is optimized and
        // that is not.
        for wrapper in [
            "<alloc::alloc::Global>::grow_impl_runtime",
            "<alloc::alloc::Global>::alloc_impl",
            "<alloc::alloc::Global>::shrink_impl_runtime",
            "alloc::alloc::Global::alloc_impl_runtime",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate_zeroed",
            "alloc::raw_vec::RawVecInner<A>::reserve::do_reserve_and_handle",
            "<alloc::raw_vec::RawVecInner>::try_allocate_in",
            "<alloc::raw_vec::RawVecInner<_>>::reserve::do_reserve_and_handle::<alloc::alloc::Global>",
            "hashbrown::raw::alloc::inner::do_alloc",
            "hashbrown::raw::alloc::inner::do_alloc::<alloc::alloc::Global>",
            "alloc::boxed::box_new_uninit",
            "alloc::boxed::Box<T,A>::try_new_uninit_in",
            "<alloc::boxed::Box<alloc::collections::btree::node::LeafNode<u64, u64>>>::new_uninit_in",
            "alloc::sync::Arc<T>::allocate_for_layout",
            "<alloc::sync::Arc<[u8]>>::allocate_for_slice::{closure#0}",
        ] {
            assert!(is_allocator_wrapper(wrapper), "{wrapper}");
        }
        for program in [
            "main",
            "operator_new_handler",
            "my::allocator",
            "allocate_all",
            "PyMem_Malloc",
            "<server::Conn as core::fmt::Debug>::fmt",
            "std::vector<int>::push_back(int const&)",
            "Pool::operator new(unsigned long)",
            "xmalloc",
            "<server::Cache as core::clone::Clone>::clone",
            "server::new_uninit_in",
        ] {
            assert!(!is_allocator_wrapper(program) && !is_library(program), "{program}");
        }
        for collection in [
            "alloc::vec::Vec<T>::with_capacity",
            "alloc::vec::Vec<T,A>::push",
            "<alloc::vec::Vec<u64>>::push_mut",
            "alloc::boxed::Box<T>::new",
            "<alloc::boxed::Box<[u64; 100]>>::new",
            "<u8 as <[_]>::to_vec_in::ConvertVec>::to_vec::<alloc::alloc::Global>",
            "<[u8]>::to_vec",
            "core::iter::traits::iterator::Iterator::collect",
            "hashbrown::map::HashMap<K,V,S,A>::insert",
            "<std::collections::hash::map::HashMap<u64, u64>>::insert",
            "<T as alloc::slice::hack::ConvertVec>::to_vec",
            "<alloc::string::String as core::clone::Clone>::clone",
        ] {
            assert!(!is_allocator_wrapper(collection) && is_library(collection), "{collection}");
        }
    }

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
