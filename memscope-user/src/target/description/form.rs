//! The form of descriptions, in TOML: what they may say, and what they must.

use serde::Deserialize;
use toml::Spanned;

use super::Place;
use crate::target::allocator::{AllocatorFunction, FunctionKind};

/// Arguments are passed in six registers; others are not read.
const MAX_ARGUMENT: i64 = 5;
/// Longest name of a function, or of a file.
const MAX_NAME_BYTES: usize = 4096;

/// What is wrong, and where.
pub(super) struct Fault {
    pub(super) position: usize,
    pub(super) what: String,
}

/// A function, and where it is described.
pub(super) struct Described {
    pub(super) function: AllocatorFunction,
    pub(super) allocator: Option<&'static str>,
    pub(super) place: Place,
    pub(super) file: Option<String>,
    pub(super) position: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    function: Vec<Spanned<Form>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Allocates,
    Frees,
    Reallocates,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    name: Option<Spanned<String>>,
    svma: Option<Spanned<u64>>,
    file_offset: Option<Spanned<u64>>,
    file: Option<Spanned<String>>,
    kind: Kind,
    size: Option<Spanned<i64>>,
    count: Option<Spanned<i64>>,
    block: Option<Spanned<i64>>,
    result_slot: Option<Spanned<i64>>,
    throws: Option<Spanned<bool>>,
    allocator: Option<Spanned<String>>,
}

/// What a text describes.
pub(super) fn functions_of(text: &str) -> Result<Vec<Described>, Fault> {
    let document: Document = toml::from_str(text).map_err(|error| Fault {
        position: error.span().map_or(0, |span| span.start),
        what: error.message().to_owned(),
    })?;
    document.function.into_iter().map(described).collect()
}

fn described(form: Spanned<Form>) -> Result<Described, Fault> {
    let position = form.span().start;
    let mut form = form.into_inner();
    let place = place_of(&form, position)?;
    for name in [&form.name, &form.file, &form.allocator].into_iter().flatten() {
        let length = name.get_ref().len();
        if length == 0 || length > MAX_NAME_BYTES {
            return Err(at(name, format!("a name has from 1 to {MAX_NAME_BYTES} bytes")));
        }
    }
    check_roles(&form, position)?;
    let argument = |given: &Option<Spanned<i64>>| {
        given.as_ref().and_then(|given| u8::try_from(*given.get_ref()).ok())
    };
    let file = form.file.take().map(Spanned::into_inner);
    let name = match (form.name.take(), place) {
        (Some(name), _) => name.into_inner(),
        (None, Place::Svma(position) | Place::FileOffset(position)) => {
            let file = file.as_deref().unwrap_or_default();
            format!("{}+{position:#x}", file.rsplit('/').next().unwrap_or(file))
        }
        (None, Place::Name) => return Err(no_place(position)),
    };
    let kind = match form.kind {
        Kind::Allocates | Kind::Reallocates => FunctionKind::Allocates,
        Kind::Frees => FunctionKind::Frees,
    };
    let function = AllocatorFunction {
        // As the names of the table, it is needed until memscope ends; there are few.
        name: name.leak(),
        kind,
        size: argument(&form.size),
        count: argument(&form.count),
        block: argument(&form.block),
        result_slot: argument(&form.result_slot),
        is_leaf: false,
        can_throw: form.throws.is_some_and(Spanned::into_inner),
    };
    let allocator = form.allocator.take().map(Spanned::into_inner);
    let allocator = allocator.map(|name| -> &'static str { name.leak() });
    Ok(Described { function, allocator, place, file, position })
}

fn place_of(form: &Form, position: usize) -> Result<Place, Fault> {
    match (&form.svma, &form.file_offset) {
        (Some(_), Some(offset)) => {
            Err(at(offset, "`svma` and `file_offset` say the same: give one of them".to_owned()))
        }
        (Some(given), None) | (None, Some(given)) if form.file.is_none() => Err(at(
            given,
            "a function that is given by its place needs the `file` in which it is".to_owned(),
        )),
        (Some(svma), None) => Ok(Place::Svma(*svma.get_ref())),
        (None, Some(offset)) => Ok(Place::FileOffset(*offset.get_ref())),
        (None, None) if form.name.is_none() => Err(no_place(position)),
        (None, None) => Ok(Place::Name),
    }
}

fn no_place(position: usize) -> Fault {
    let what = "a function needs a `name`, or `svma` or `file_offset` and `file`";
    Fault { position, what: what.to_owned() }
}

/// Each kind of function has some arguments, and no others.
fn check_roles(form: &Form, position: usize) -> Result<(), Fault> {
    let kind = match form.kind {
        Kind::Allocates => "allocates",
        Kind::Frees => "frees",
        Kind::Reallocates => "reallocates",
    };
    let gives = form.kind != Kind::Frees;
    let ends = form.kind != Kind::Allocates;
    // The key, whether this kind must have it, and whether it may.
    let roles = [
        ("size", &form.size, gives, gives),
        ("count", &form.count, false, gives),
        ("block", &form.block, ends, ends),
        ("result_slot", &form.result_slot, false, gives),
    ];
    let mut taken: Vec<(i64, &str)> = Vec::new();
    for (key, argument, must, may) in roles {
        let Some(argument) = argument else {
            if must {
                let what = format!("what {kind} needs `{key}`, the position of that argument");
                return Err(Fault { position, what });
            }
            continue;
        };
        if !may {
            return Err(at(argument, format!("what {kind} has no `{key}`")));
        }
        let number = *argument.get_ref();
        if !(0..=MAX_ARGUMENT).contains(&number) {
            let what = format!("`{key}` is {number}, but arguments are from 0 to {MAX_ARGUMENT}");
            return Err(at(argument, what));
        }
        if let Some((_, other)) = taken.iter().find(|(known, _)| *known == number) {
            let what = format!("`{key}` and `{other}` are both argument {number}");
            return Err(at(argument, what));
        }
        taken.push((number, key));
    }
    match &form.throws {
        Some(throws) if !gives => Err(at(throws, format!("what {kind} has no `throws`"))),
        Some(throws) if *throws.get_ref() && form.result_slot.is_some() => {
            Err(at(throws, "`throws` is for results that are returned".to_owned()))
        }
        _ => Ok(()),
    }
}

fn at<T>(given: &Spanned<T>, what: String) -> Fault {
    Fault { position: given.span().start, what }
}
