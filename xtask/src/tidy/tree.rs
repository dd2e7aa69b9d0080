//! Rules for every file of the tree, whatever its language.

use std::path::Path;

use pulldown_cmark::{Event, Parser, Tag};

use super::{File, Violation, rust_rules};

const MAX_FILE_BYTES: usize = 1 << 20;
const CODE: &[&str] = &["rs", "toml", "c", "cc", "cpp", "h", "py", "sh", "yml", "yaml"];
const NO_TRAILING_SPACE: &[&str] = &["rs", "md", "toml"];

pub(super) fn check(file: &File, root: &Path) -> Vec<Violation> {
    let path = file.path.as_str();
    let mut violations = Vec::new();
    if file.bytes > MAX_FILE_BYTES {
        let what = format!("file of {} bytes", file.bytes);
        violations.push(Violation::new(
            path,
            1,
            what,
            "keep it out of the repository; 1 MiB is the limit",
        ));
    }
    let Some(text) = &file.text else {
        return violations;
    };
    for (line, content) in (1..).zip(text.lines()) {
        if CODE.contains(&file.extension()) {
            violations.extend(rust_rules::check_marks(path, line, content));
        }
        if NO_TRAILING_SPACE.contains(&file.extension()) && content.ends_with([' ', '\t']) {
            violations.push(Violation::new(path, line, "trailing white space", "remove it"));
        }
        violations.extend(check_machine_path(path, line, content, root));
    }
    if file.extension() == "md" {
        violations.extend(check_links(path, text, root));
    }
    violations
}

/// The folder that this checkout happens to be in exists on this machine only. One with
/// a single name (`/src`) could mean anything and is let pass.
fn check_machine_path(path: &str, line: usize, content: &str, root: &Path) -> Option<Violation> {
    let place = root.to_str().filter(|place| place.matches('/').count() > 1)?;
    // Inside of a longer path, such as the one of a URL, it is another place.
    let inner = |c: char| c.is_alphanumeric() || "_-./~}".contains(c);
    content.match_indices(place).any(|(at, _)| !content[..at].ends_with(inner)).then(|| {
        let what = format!("path of one machine: {place}");
        Violation::new(path, line, what, "use a path relative to the repository")
    })
}

/// Links and images must lead to a file, as seen from the file they are in.
fn check_links(path: &str, text: &str, root: &Path) -> Vec<Violation> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut violations = Vec::new();
    for (event, place) in Parser::new(text).into_offset_iter() {
        let target = match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => dest_url,
            _ => continue,
        };
        let file = target.split(['#', '?']).next().unwrap_or_default();
        if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let found = match file.strip_prefix('/') {
            Some(from_root) => root.join(from_root),
            None => root.join(folder).join(file),
        };
        if !found.exists() {
            let line = 1 + text[..place.start].matches('\n').count();
            violations.push(Violation::new(
                path,
                line,
                format!("link to {target} leads nowhere"),
                "correct it",
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.to_owned(), bytes: text.len(), text: Some(text.to_owned()) };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        check(&file, root).iter().map(|v| format!("{}: {}", v.line, v.what)).collect()
    }

    #[test]
    fn links_must_lead_to_files() {
        let text = "[a](src/main.rs)\n[b](src/none.rs#x)\n`[c](none)`\n[d](https://example.org/none)\n[e](#here)";
        assert_eq!(whats("README.md", text), ["2: link to src/none.rs#x leads nowhere"]);
        assert_eq!(
            whats("src/a.md", "![x](../Cargo.toml) [y][z]\n\n[z]: ../none"),
            ["1: link to ../none leads nowhere"]
        );
        assert_eq!(whats("src/a.md", "[x](/Cargo.toml)"), [""; 0]);
    }

    #[test]
    fn machine_paths_and_trailing_space_are_refused() {
        let here = env!("CARGO_MANIFEST_DIR");
        let refused = format!("1: path of one machine: {here}");
        assert_eq!(whats("a.sh", &format!("cd {here}/src")), [refused]);
        assert_eq!(whats("a.sh", &format!("see https://example.org{here}")), [""; 0]);
        assert_eq!(whats("a.toml", "a = 1 \n"), ["1: trailing white space"]);
    }

    #[test]
    fn large_files_are_refused_even_if_binary() {
        let file = File { path: "a.bin".to_owned(), bytes: MAX_FILE_BYTES + 1, text: None };
        assert_eq!(check(&file, Path::new(".")).len(), 1);
    }
}
