//! Which functions of a call chain are the language's: what only hands requests on to the allocator, and what programs call to have
//! their data kept. By how they are called, demangled.

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

/// Beginning of the names of Rust's own functions, its collections above all, which say less of a site in one line than
/// what calls them. `<[…]>` is a slice.
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

/// Whether it only hands the program's request on to the allocator.
pub(super) fn is_allocator_wrapper(function: &str) -> bool {
    let name = without_return_type(function);
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

/// The same of C++: names that begin with an underscore are the library's alone ([lex.name]), `std::_Rb_tree` and
/// `std::__cxx11::basic_string` among them; the others are what containers, texts and pointers are called.
const CPP_LIBRARY_PREFIXES: [&str; 26] = [
    "std::_",
    "__gnu_cxx::",
    "std::vector<",
    "std::map<",
    "std::multimap<",
    "std::set<",
    "std::multiset<",
    "std::unordered_map<",
    "std::unordered_multimap<",
    "std::unordered_set<",
    "std::unordered_multiset<",
    "std::deque<",
    "std::list<",
    "std::forward_list<",
    "std::basic_string<",
    "std::basic_stringbuf<",
    "std::to_string",
    "std::operator+",
    "std::shared_ptr<",
    "std::make_shared<",
    "std::make_unique<",
    "std::allocate_shared<",
    "std::function<",
    "std::any",
    "std::optional<",
    "std::construct_at<",
];
/// As they are if they could not be demangled: of `std` itself, and of what has a name in it (Itanium C++ ABI, 5.1.4).
const MANGLED_CPP_LIBRARY: [&str; 5] =
    ["_ZSt", "_ZNSt", "_ZNKSt", "_ZN9__gnu_cxx", "_ZNK9__gnu_cxx"];

/// Whether it is the language's own: what calls it says more of a site.
pub(super) fn is_library(function: &str) -> bool {
    is_allocator_wrapper(function)
        || LIBRARY_PREFIXES.iter().any(|prefix| function.starts_with(prefix))
        || (function.starts_with('<')
            && [" as alloc::", " as <["].iter().any(|part| function.contains(part)))
        || MANGLED_CPP_LIBRARY.iter().any(|prefix| function.starts_with(prefix))
        || is_cpp_library(without_return_type(function))
}

fn is_cpp_library(name: &str) -> bool {
    CPP_LIBRARY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A template function's name begins with what it returns, which mostly is of the library whatever it is itself:
/// `std::vector<int> rows<int>(int)`. What is between brackets of any kind belongs together. A name without parameters is
/// none of C++, and can have spaces: `LazyCompile:*handle /srv/app.js:12`.
fn without_return_type(function: &str) -> &str {
    let mut depth = 0_usize;
    let mut begin = 0;
    for (position, letter) in function.char_indices() {
        let rest = &function[begin..position];
        match letter {
            // In the names of operators brackets are none.
            _ if rest.ends_with("operator") => return &function[begin..],
            '(' if depth == 0
                && !rest.is_empty()
                && !rest.ends_with("::")
                && rest != "decltype" =>
            {
                return &function[begin..];
            }
            '<' | '(' | '[' | '{' => depth += 1,
            '>' if rest.ends_with('-') => {}
            '>' | ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 => begin = position + 1,
            _ => {}
        }
    }
    function
}

/// A name without what is in the way where there is little room: what the function returns, parameters, and what
/// templates and generic types are of. `std::vector<int, std::allocator<int> >::resize(unsigned long)` is
/// `std::vector::resize`.
pub(super) fn short_name(function: &str) -> String {
    let mut short = String::new();
    // Of brackets whose content is left out, and of braces, which are a name's (`{lambda(int)#1}`).
    let (mut left_out, mut braces) = (0_usize, 0_usize);
    for letter in without_return_type(function).chars() {
        match letter {
            '<' | '(' if left_out > 0 => left_out += 1,
            '>' | ')' if left_out > 0 => left_out -= 1,
            _ if left_out > 0 => {}
            '<' | '(' if braces == 0 && is_end_of_name(&short, letter) => left_out = 1,
            _ => {
                match letter {
                    '{' => braces += 1,
                    '}' => braces = braces.saturating_sub(1),
                    _ => {}
                }
                short.push(letter);
            }
        }
    }
    short.trim_end_matches(" const").to_owned()
}

/// Whether such a bracket behind it is none of the name.
fn is_end_of_name(name: &str, bracket: char) -> bool {
    let segment = name.rsplit("::").next().unwrap_or(name);
    match segment.strip_prefix("operator") {
        Some(operator) => bracket == '(' && !operator.is_empty(),
        None => segment.ends_with(|last: char| last.is_alphanumeric() || "_}".contains(last)),
    }
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
            "std::vector<int>::push_back(int const&)",
        ] {
            assert!(!is_allocator_wrapper(collection) && is_library(collection), "{collection}");
        }
    }

    #[test]
    fn the_library_of_cpp_is_known_by_its_names() {
        for library in [
            "std::vector<char, std::allocator<char> >::_M_default_append(unsigned long)",
            "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int const&>(int const&)",
            "std::pair<std::_Rb_tree_iterator<int>, bool> std::_Rb_tree<int, int>::_M_emplace_unique<int>(int&&)",
            "std::__cxx11::basic_string<char>::_M_create(unsigned long&, unsigned long)",
            "std::__1::vector<int>::push_back(int const&)",
            "std::shared_ptr<Session> std::make_shared<Session>()",
            "_ZSt11make_sharedI7SessionJEESt10shared_ptrINSt9enable_if",
            "_ZNSt6vectorIcSaIcEE6resizeEm",
            "char* std::__cxx11::basic_string<char>::_S_construct<char*>(char*, char*)",
            "decltype(auto) std::__detail::_Hashtable_alloc<int>::_M_allocate_node<int>(int)",
        ] {
            assert!(is_library(library), "{library}");
        }
        for own in [
            "Server::accept(int)",
            "std::vector<int, std::allocator<int> > rows<int>(int)",
            "std::shared_ptr<Session> (anonymous namespace)::open<Session>(int)",
            "(anonymous namespace)::open(std::vector<int>)",
            "operator<<(std::ostream&, Session const&)",
            "Session::operator std::vector<int>() const",
            "bool operator< <int>(Row<int> const&, Row<int> const&)",
            "_ZN6Server6acceptEi",
            "std::thread::Builder::spawn_unchecked_",
            "std::rt::lang_start",
            "main",
            "std",
            "",
            "std::hash<Session>::operator()(Session const&) const",
        ] {
            assert!(!is_library(own), "{own}");
        }
    }

    #[test]
    fn what_a_function_returns_is_no_part_of_its_name() {
        let cases = [
            ("void f<int>(int)", "f<int>(int)"),
            ("a::b<c, d (*)(e)> f::g<h>(i j)", "f::g<h>(i j)"),
            ("f(int) const", "f(int) const"),
            ("auto f<(a)1>(int)", "f<(a)1>(int)"),
            ("T operator-><T>(T)", "operator-><T>(T)"),
            ("f<&A::operator->>(int) x", "f<&A::operator->>(int) x"),
            ("é ü(int)", "ü(int)"),
            ("LazyCompile:*handle /srv/app.js:12", "LazyCompile:*handle /srv/app.js:12"),
            ("run [clone .cold]", "run [clone .cold]"),
            (" ", " "),
        ];
        for (function, expected) in cases {
            assert_eq!(without_return_type(function), expected, "{function}");
        }
    }

    #[test]
    fn short_names_have_no_types_and_no_parameters() {
        let cases = [
            (
                "std::vector<int, std::allocator<int> >::resize(unsigned long)",
                "std::vector::resize",
            ),
            ("std::shared_ptr<A> std::make_shared<A>()", "std::make_shared"),
            ("Server::accept(int)", "Server::accept"),
            ("Server::size(void (*)(int)) const", "Server::size"),
            ("(anonymous namespace)::open(int)", "(anonymous namespace)::open"),
            ("main::{lambda(int)#1}::operator()(int) const", "main::{lambda(int)#1}::operator()"),
            ("operator<<(std::ostream&, A const&)", "operator<<"),
            ("operator new(unsigned long)", "operator new"),
            ("alloc::vec::Vec<T,A>::push", "alloc::vec::Vec::push"),
            ("<alloc::vec::Vec<u64>>::push_mut", "<alloc::vec::Vec>::push_mut"),
            ("<A as core::clone::Clone>::clone", "<A as core::clone::Clone>::clone"),
            ("f::{{closure}}", "f::{{closure}}"),
            ("xmalloc", "xmalloc"),
            ("LazyCompile:*handle /srv/app.js:12", "LazyCompile:*handle /srv/app.js:12"),
            ("a<b", "a"),
            (")>", ")>"),
            ("", ""),
        ];
        for (function, expected) in cases {
            assert_eq!(short_name(function), expected, "{function}");
        }
    }
}
