//! Rules for each Rust file, beyond what the compiler and clippy check.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{OWN_SOURCE, Violation};

const MAX_FILE_LINES: usize = 900;
const MAX_FUNCTION_LINES: usize = 70;
const BENCHES: &str = "benches/";
const TESTS: &str = "tests/";

pub(super) fn check(path: &str, text: &str, syntax: &syn::File) -> Vec<Violation> {
    let mut rules = Rules { path, in_tests: path.starts_with(TESTS), violations: Vec::new() };
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        rules.refuse(
            MAX_FILE_LINES + 1,
            format!("file of {lines} lines"),
            format!("split it at its second concern; {MAX_FILE_LINES} is the limit"),
        );
    }
    rules.visit_file(syntax);
    rules.violations
}

struct Rules<'a> {
    path: &'a str,
    in_tests: bool,
    violations: Vec<Violation>,
}

impl Rules<'_> {
    fn refuse(&mut self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.violations.push(Violation::new(self.path, line, what, remedy));
    }

    fn check_length(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let first = signature.span().start().line;
        let lines = body.span().end().line + 1 - first;
        if !self.in_tests && lines > MAX_FUNCTION_LINES {
            self.refuse(
                first,
                format!("function `{}` has {lines} lines", signature.ident),
                format!("split it; {MAX_FUNCTION_LINES} is the limit"),
            );
        }
    }

    /// Visits below an item, as tests if its attributes say so.
    fn within(&mut self, attributes: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let before = self.in_tests;
        self.in_tests |= attributes.iter().any(is_test);
        visit(self);
        self.in_tests = before;
    }
}

fn is_test(attribute: &syn::Attribute) -> bool {
    let cfg_test = || attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"));
    attribute.path().is_ident("test") || attribute.path().is_ident("cfg") && cfg_test()
}

fn has_reason(attribute: &syn::Attribute) -> bool {
    let mut found = false;
    let parsed = attribute.parse_nested_meta(|meta| {
        found |= meta.path.is_ident("reason");
        if meta.input.peek(syn::Token![=]) {
            meta.value()?.parse::<syn::Expr>()?;
        }
        Ok(())
    });
    parsed.is_ok() && found
}

impl<'ast> Visit<'ast> for Rules<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.within(&item.attrs, |rules| visit::visit_item_mod(rules, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.within(&item.attrs, |rules| {
            rules.check_length(&item.sig, &item.block);
            visit::visit_item_fn(rules, item);
        });
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.within(&item.attrs, |rules| {
            rules.check_length(&item.sig, &item.block);
            visit::visit_impl_item_fn(rules, item);
        });
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.check_length(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let line = attribute.span().start().line;
        let path = attribute.path();
        if path.is_ident("allow") && !has_reason(attribute) {
            self.refuse(line, "`allow` without reason", "add `reason = \"…\"`, or use `expect`");
        } else if path.is_ident("ignore") {
            self.refuse(line, "ignored test", "make it skip itself and print why");
        } else if path.is_ident("should_panic") {
            self.refuse(line, "`should_panic`", "return an error and compare it");
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let sleeps = path.segments.last().is_some_and(|segment| segment.ident == "sleep");
        if sleeps && self.path.starts_with(BENCHES) {
            self.refuse(path.span().start().line, "sleep in a benchmark", "wait for a condition");
        }
        visit::visit_path(self, path);
    }
}

/// Marks of unfinished work, as whole words.
const MARKS: &[&str] = &["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "dbg!"];

/// Unlike the rules above this one also reads comments and other languages.
pub(super) fn check_marks(path: &str, line: usize, text: &str) -> Option<Violation> {
    let mark = MARKS.iter().find(|mark| contains_word(text, mark))?;
    let ours = path.starts_with(OWN_SOURCE);
    (!ours).then(|| Violation::new(path, line, format!("`{mark}`"), "finish it or open an issue"))
}

fn contains_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(part)
            && (word.ends_with('!') || !text[at + word.len()..].starts_with(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(path: &str, source: &str, expected: &[&str]) {
        let syntax = syn::parse_file(source).unwrap();
        let found: Vec<String> = check(path, source, &syntax)
            .iter()
            .map(|violation| format!("{}: {}", violation.line, violation.what))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn long_functions_are_refused_outside_of_tests() {
        let body = "\n".repeat(MAX_FUNCTION_LINES);
        let long = format!("/// doc\nfn f() {{{body}}}");
        expect("a.rs", &long, &["2: function `f` has 71 lines"]);
        expect("a.rs", &format!("impl A {{ {long} }}"), &["2: function `f` has 71 lines"]);
        expect("a.rs", &format!("fn f() {{{}}}", &body[1..]), &[]);
        expect("a.rs", &format!("#[cfg(test)] mod tests {{ {long} }}"), &[]);
        expect("a.rs", &format!("#[test] {long}"), &[]);
        expect("tests/src/lib.rs", &long, &[]);
    }

    #[test]
    fn long_files_are_refused() {
        expect("a.rs", &"\n".repeat(901), &["901: file of 901 lines"]);
        expect("a.rs", &"\n".repeat(900), &[]);
    }

    #[test]
    fn attributes_that_hide_something_are_refused() {
        expect("a.rs", "#![allow(dead_code)]", &["1: `allow` without reason"]);
        expect("a.rs", "#[allow(clippy::x, reason = \"because\")]\nfn f() {}", &[]);
        expect("a.rs", "#[test]\n#[ignore]\nfn f() {}", &["2: ignored test"]);
        expect("a.rs", "#[ignore = \"slow\"]\nfn f() {}", &["1: ignored test"]);
        expect("a.rs", "#[should_panic(expected = \"x\")]\nfn f() {}", &["1: `should_panic`"]);
    }

    #[test]
    fn benchmarks_do_not_sleep() {
        let source = "fn f() { std::thread::sleep(d); }";
        expect("benches/a.rs", source, &["1: sleep in a benchmark"]);
        expect("tests/src/lib.rs", source, &[]);
    }

    #[test]
    fn marks_are_whole_words() {
        assert!(check_marks("a.rs", 1, "// TODO: more").is_some());
        assert!(check_marks("a.rs", 1, "    todo!();").is_some());
        assert!(check_marks("a.rs", 1, "mktemp -d /x.XXXXXX; TODOS").is_none());
    }
}
