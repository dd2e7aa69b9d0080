//! Data flows one way through memscope-user, and so do imports: a stage may
//! use the stages before it. Only commands join stages.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Violation;

const SOURCE: &str = "memscope-user/src/";

/// The modules of memscope-user in the order data flows through them, each
/// with the modules it may import.
const STAGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("text", &["model"]),
    ("target", &["model"]),
    ("unwind", &["model", "target"]),
    ("kernel", &["model", "target", "unwind"]),
    ("collect", &["model"]),
    ("lifetimes", &["model"]),
    ("store", &["model", "lifetimes"]),
    ("symbols", &["model", "target"]),
    ("reports", &["model", "text", "lifetimes", "store"]),
    ("export", &["model", "text", "lifetimes", "store", "reports"]),
    // What can be asked for is what the registries hold.
    ("cli", &["model", "text", "reports", "export"]),
    (
        "commands",
        &[
            "model",
            "text",
            "target",
            "unwind",
            "kernel",
            "collect",
            "lifetimes",
            "store",
            "symbols",
            "reports",
            "export",
            "cli",
        ],
    ),
    // The crate roots declare stages and use none but these.
    ("lib", &[]),
    ("main", &["cli", "commands"]),
];

/// The crate that describes the kernel's bytes, and the only stages which may
/// know these bytes.
const CONTRACT: &str = "memscope_common";
const CONTRACT_STAGES: &[&str] = &["unwind", "kernel", "collect"];

pub(super) fn check(path: &str, syntax: &syn::File) -> Vec<Violation> {
    let Some(inner) = path.strip_prefix(SOURCE) else {
        return Vec::new();
    };
    let module = module_path(inner);
    let stage = module.first().map_or("", String::as_str);
    let Some((_, allowed)) = STAGES.iter().find(|(name, _)| *name == stage) else {
        let what = format!("module `{stage}` is not in the table of stages");
        return vec![Violation::new(
            path,
            1,
            what,
            "add it to the table in xtask/src/tidy/imports.rs",
        )];
    };
    let in_root = stage == "lib" || stage == "main";
    let depth = if in_root { Vec::new() } else { module.clone() };
    let mut paths = Paths { module: depth, found: Vec::new() };
    paths.visit_file(syntax);
    let refuse = |(line, import): (usize, Import)| {
        let (what, remedy) = match import {
            Import::Stage(name) if name == stage || allowed.contains(&name.as_str()) => {
                return None;
            }
            Import::Stage(name) if STAGES.iter().any(|(known, _)| *known == name) => {
                let may =
                    if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
                (
                    format!("`{stage}` imports `{name}`"),
                    format!("it may import {may}; move the shared type to an earlier stage"),
                )
            }
            Import::Stage(name) => (
                format!("`crate::{name}` is no stage"),
                "add it to the table in xtask/src/tidy/imports.rs".to_owned(),
            ),
            Import::Contract if CONTRACT_STAGES.contains(&stage) => return None,
            Import::Contract => (
                format!("`{stage}` imports `{CONTRACT}`"),
                format!("only {} may; use the types of `model`", CONTRACT_STAGES.join(" and ")),
            ),
        };
        Some(Violation::new(path, line, what, remedy))
    };
    paths.found.into_iter().filter_map(refuse).collect()
}

/// `store/mod.rs` is the module `store`, `store/reader.rs` is `store`, `reader`.
fn module_path(inner: &str) -> Vec<String> {
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    inner.split('/').map(str::to_owned).collect()
}

enum Import {
    Stage(String),
    Contract,
}

/// Collects what a file refers to by paths from the crate's root, from a
/// parent module or from the contract crate.
struct Paths {
    /// The module we are in, as names from the crate's root.
    module: Vec<String>,
    found: Vec<(usize, Import)>,
}

impl Paths {
    fn note(&mut self, line: usize, segments: &[String]) {
        let Some(first) = segments.first() else {
            return;
        };
        let rest = match first.as_str() {
            CONTRACT => {
                self.found.push((line, Import::Contract));
                return;
            }
            "crate" => &segments[1..],
            "super" => {
                let up = segments.iter().take_while(|segment| *segment == "super").count();
                // A path that stays inside the stage is the stage's own matter.
                if up < self.module.len() {
                    return;
                }
                &segments[up..]
            }
            _ => return,
        };
        if let Some(name) = rest.first() {
            self.found.push((line, Import::Stage(name.clone())));
        }
    }

    fn note_use(&mut self, tree: &syn::UseTree, mut before: Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.note_use(&path.tree, before);
            }
            syn::UseTree::Name(name) => self.note_leaf(name.ident.span(), before, &name.ident),
            syn::UseTree::Rename(name) => self.note_leaf(name.ident.span(), before, &name.ident),
            syn::UseTree::Glob(glob) => {
                before.push("*".to_owned());
                self.note(glob.span().start().line, &before);
            }
            syn::UseTree::Group(group) => {
                for item in &group.items {
                    self.note_use(item, before.clone());
                }
            }
        }
    }

    fn note_leaf(&mut self, span: proc_macro2::Span, mut before: Vec<String>, name: &syn::Ident) {
        before.push(name.to_string());
        self.note(span.start().line, &before);
    }

    /// Paths in the arguments of a macro, which are tokens to the parser.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.note(line, &path);
                        path.clear();
                        line = ident.span().start().line;
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.note(line, &path);
                    path.clear();
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.note_tokens(group.stream());
                    }
                }
            }
        }
        self.note(line, &path);
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(path.span().start().line, &segments);
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&item.tree, Vec::new());
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.note_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::x)` and `pub(super)` are no imports.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expect(path: &str, source: &str, expected: &[&str]) {
        let syntax = syn::parse_file(source).unwrap();
        let found: Vec<String> = check(&format!("{SOURCE}{path}"), &syntax)
            .iter()
            .map(|violation| format!("{}: {}", violation.line, violation.what))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_stage_may_import_what_comes_before_it() {
        expect(
            "store/mod.rs",
            "use crate::lifetimes::Lifetime;\nuse crate::{model, store::x};",
            &[],
        );
        expect("commands/trace.rs", "use crate::cli::Cli; use crate::kernel;", &[]);
        expect("main.rs", "use crate::cli; fn main() { crate::commands::run() }", &[]);
    }

    #[test]
    fn later_stages_are_refused_however_they_are_named() {
        let what = "`lifetimes` imports `store`";
        for (source, line) in [
            ("use crate::store::Writer;", 1),
            ("\nuse crate::{model::A, store};", 2),
            ("use crate::{model, store::{self, x}};", 1),
            ("use crate::store as s;", 1),
            ("use crate::store::*;", 1),
            ("fn f(w: &crate::store::Writer) {}", 1),
            ("fn f() {\n println!(\"{}\", crate::store::NAME); }", 2),
            ("mod tests { use super::super::super::store::A; }", 1),
        ] {
            let syntax = syn::parse_file(source).unwrap();
            let found = check("memscope-user/src/lifetimes/ranges.rs", &syntax);
            assert!(!found.is_empty(), "accepted: {source}");
            assert!(found.iter().all(|v| v.what == what && v.line == line), "{source}: {found:?}");
        }
        expect("lifetimes/mod.rs", "use super::store::A;", &["1: `lifetimes` imports `store`"]);
    }

    #[test]
    fn paths_inside_a_stage_are_free() {
        expect("lifetimes/ranges.rs", "use super::Tracker;\nuse crate::lifetimes::x;", &[]);
        expect(
            "lifetimes/mod.rs",
            "mod tests { use super::*; }\npub(in crate::store) fn f() {}",
            &[],
        );
    }

    #[test]
    fn nobody_imports_commands() {
        expect("export/mod.rs", "use crate::commands::x;", &["1: `export` imports `commands`"]);
    }

    #[test]
    fn only_two_stages_know_the_contract() {
        expect("collect/decode.rs", "use memscope_common::Record;", &[]);
        expect("kernel/mod.rs", "fn f() -> ::memscope_common::Config {}", &[]);
        let source = "const N: usize = memscope_common::N;";
        expect("model.rs", source, &["1: `model` imports `memscope_common`"]);
    }

    #[test]
    fn unknown_modules_must_be_entered_in_the_table() {
        expect("util.rs", "", &["1: module `util` is not in the table of stages"]);
        expect("store.rs", "use crate::util::x;", &["1: `crate::util` is no stage"]);
    }

    #[test]
    fn the_table_is_in_order() {
        for (at, (name, allowed)) in STAGES.iter().enumerate() {
            for import in *allowed {
                let earlier = STAGES[..at].iter().any(|(stage, _)| stage == import);
                assert!(earlier, "{name} may import {import}, which is not before it");
            }
        }
    }
}
