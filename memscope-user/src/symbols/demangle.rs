use std::borrow::Cow;

/// A name as in the source, if it is mangled. Only what is marked as such is: to a C++
/// demangler the C function `f` is the type `float`.
pub(super) fn demangle(name: &str) -> Cow<'_, str> {
    if !["_R", "_Z", "__Z", "___Z"].iter().any(|mark| name.starts_with(mark)) {
        return Cow::Borrowed(name);
    }
    if name.starts_with("_R") || is_legacy_rust(name) {
        return rustc_demangle::try_demangle(name)
            .map_or(Cow::Borrowed(name), |name| Cow::Owned(format!("{name:#}")));
    }
    cpp_demangle::Symbol::new(name)
        .ok()
        .and_then(|name| name.demangle().ok())
        .map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Rust's first mangling looks like C++, but its last part is a hash: `17h`, 16 digits.
fn is_legacy_rust(name: &str) -> bool {
    name.rsplit_once("17h").is_some_and(|(_, hash)| {
        // Compilers append `.llvm.` and the like.
        let Some((digits, rest)) = hash.split_at_checked(16) else { return false };
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && rest.starts_with('E')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mangled_names_are_demangled() {
        let cases = [
            ("f", "f"),
            ("a", "a"),
            ("main", "main"),
            ("_ZN3foo3barEi", "foo::bar(int)"),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvC7mycrate3foo", "mycrate::foo"),
            ("_Zwhatever", "_Zwhatever"),
        ];
        for (mangled, expected) in cases {
            assert_eq!(demangle(mangled), expected);
        }
    }
}
