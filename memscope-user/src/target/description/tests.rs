use std::fs;

use super::*;
use crate::target::FunctionKind;

const POOL: &str = r#"
# A pool.
[[function]]
name = "pool_alloc"
kind = "allocates"
size = 1

[[function]]
name = "pool_free"
kind = "frees"
block = 1
"#;

fn read(text: &str) -> Result<Descriptions, DescriptionError> {
    let mut descriptions = Descriptions::default();
    descriptions.add("x.toml", text)?;
    Ok(descriptions)
}

fn refusal(text: &str) -> String {
    read(text).expect_err("it is wrong").to_string()
}

#[test]
fn a_description_is_a_row() {
    let descriptions = read(POOL).unwrap();
    let [alloc, free] = descriptions.all.as_slice() else { panic!("{descriptions:?}") };
    assert_eq!(
        alloc.function,
        AllocatorFunction {
            name: "pool_alloc",
            kind: FunctionKind::Allocates,
            size: Some(1),
            count: None,
            block: None,
            result_slot: None,
            is_leaf: false,
            can_throw: false,
        }
    );
    assert_eq!((free.function.kind, free.function.block), (FunctionKind::Frees, Some(1)));
    assert_eq!((alloc.allocator, free.allocator), (None, None));
    assert!(alloc.is_called("pool_alloc") && !alloc.is_called("pool_free"));
    let origins: Vec<&str> = descriptions.all().map(|(_, _, origin)| origin).collect();
    assert_eq!(origins, ["x.toml:3", "x.toml:8"]);
}

#[test]
fn places_and_files() {
    let descriptions = Descriptions::read(&[
        "{ svma = 0x1230, file = 'server', kind = 'reallocates', size = 2, block = 1 }".to_owned(),
        "{ file_offset = 64, file = '/usr/bin/other', kind = 'allocates', size = 0, count = 1, result_slot = 3 }".to_owned(),
        "{ name = 'new', kind = 'allocates', size = 0, throws = true, allocator = 'mine' }".to_owned(),
    ])
    .unwrap();
    let of =
        |path| descriptions.of_file(path).map(|(_, found)| found.function.name).collect::<Vec<_>>();
    assert_eq!(of("/opt/server"), ["server+0x1230", "new"]);
    assert_eq!(of("/usr/bin/other"), ["other+0x40", "new"]);
    assert_eq!(of("/bin/other"), ["new"]);
    let places: Vec<Place> = descriptions.all.iter().map(|found| found.place).collect();
    assert_eq!(places, [Place::Svma(0x1230), Place::FileOffset(64), Place::Name]);
    assert!(descriptions.all[2].function.can_throw);
    assert_eq!(descriptions.all[2].allocator, Some("mine"));
    assert!(!descriptions.all[0].is_called("server+0x1230"), "it has no symbol");
}

#[test]
fn errors_name_the_line_and_what_is_allowed() {
    let with = |line: &str| refusal(&format!("[[function]]\nkind = 'allocates'\n{line}\n"));
    let named = |line: &str| with(&format!("name = 'a'\n{line}"));
    for (refusal, expected) in [
        (named("sise = 1"), "x.toml:4: unknown field `sise`, expected one of `name`"),
        (named("size = 6"), "x.toml:4: `size` is 6, but arguments are from 0 to 5"),
        (named("size = -1"), "x.toml:4: `size` is -1"),
        (named("size = 'one'"), "x.toml:4: invalid type"),
        (named("size = 1\ncount = 1"), "x.toml:5: `count` and `size` are both argument 1"),
        (named("count = 1"), "x.toml:1: what allocates needs `size`"),
        (named("size = 1\nblock = 0"), "x.toml:5: what allocates has no `block`"),
        (named("size = 1\nsvma = 5"), "x.toml:5: a function that is given by its place needs"),
        (named("size = 1\nthrows = 1"), "x.toml:5: invalid type"),
        (
            named("size = 1\nresult_slot = 2\nthrows = true"),
            "x.toml:6: `throws` is for results that are returned",
        ),
        (with("size = 1"), "x.toml:1: a function needs a `name`, or `svma`"),
        (with("name = ''\nsize = 1"), "x.toml:3: a name has from 1 to"),
        (named("size = 1\nallocator = ''"), "x.toml:5: a name has from 1 to"),
        (
            with("svma = 1\nfile = 'x'\nfile_offset = 2"),
            "x.toml:5: `svma` and `file_offset` say the same",
        ),
        (with("name = 'a'\nname = 'b'"), "x.toml:4: duplicate key"),
        (
            refusal("\n[[function]]\nname = 'a'\nkind = 'takes'"),
            "x.toml:4: unknown variant `takes`, expected one of `allocates`, `frees`, `reallocates`",
        ),
        (refusal("[[function]]\nname = 'a'\nkind = 'frees'"), "x.toml:1: what frees needs `block`"),
        (
            refusal("[[function]]\nname = 'a'\nkind = 'frees'\nblock = 0\nthrows = false"),
            "x.toml:5: what frees has no `throws`",
        ),
        (
            refusal("[[function]]\nname = 'a'\nkind = 'reallocates'\nsize = 0"),
            "x.toml:1: what reallocates needs `block`",
        ),
        (refusal("[[function]]\nname = 'a'"), "x.toml:1: missing field `kind`"),
        (refusal("[[functions]]\n"), "x.toml:1: unknown field `functions`, expected `function`"),
        (refusal(""), "x.toml:1: missing field `function`"),
        (refusal("a b"), "x.toml:1: "),
    ] {
        assert!(refusal.starts_with(expected), "{refusal}\n{expected}");
    }
    let twice = format!("{POOL}[[function]]\nname = 'pool_free'\nkind = 'frees'\nblock = 0");
    assert_eq!(refusal(&twice), "x.toml:12: this function is described at x.toml:8 already");
}

#[test]
fn there_are_limits() {
    let one =
        |number: usize| format!("[[function]]\nname = 'f{number}'\nkind = 'frees'\nblock = 0\n");
    let many: String = (0..MAX_DESCRIPTIONS).map(one).collect();
    assert_eq!(read(&many).unwrap().all.len(), MAX_DESCRIPTIONS);
    let error = read(&(many + &one(MAX_DESCRIPTIONS))).unwrap_err();
    assert!(matches!(error, DescriptionError::TooMany { .. }), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large.toml");
    fs::write(&file, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
    let given = |name: &str| [folder.path().join(name).display().to_string()];
    let error = Descriptions::read(&given("large.toml")).unwrap_err();
    assert!(matches!(error, DescriptionError::TooLarge { .. }), "{error}");
    let error = Descriptions::read(&given("none.toml")).unwrap_err();
    assert!(matches!(error, DescriptionError::Read { .. }), "{error}");
    fs::write(&file, [0xff, 0xfe]).unwrap();
    let error = Descriptions::read(&given("large.toml")).unwrap_err();
    assert!(matches!(error, DescriptionError::Read { .. }), "no text: {error}");
}

proptest::proptest! {
    #[test]
    fn any_text_gives_a_result_or_an_error(text in "\\PC{0,200}") {
        if let Err(error) = read(&text) {
            assert!(error.to_string().starts_with("x.toml:"));
        }
    }
}
