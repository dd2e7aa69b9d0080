//! Allocator functions that somebody describes, as the rows of the table do it: in a file, or
//! on the command line.

mod form;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read as _},
};

use self::form::{Fault, functions_of};
use super::allocator::AllocatorFunction;

/// Largest file of descriptions.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most functions that are described, in all files together.
const MAX_DESCRIPTIONS: usize = 256;

/// Why descriptions are refused.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("{file}: it cannot be read")]
    Read {
        /// Its path.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is larger than the limit.
    #[error("{file}: it has more than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// Its path.
        file: String,
    },
    /// There are more than the limit.
    #[error("{file}: with it more than {MAX_DESCRIPTIONS} functions are described")]
    TooMany {
        /// The path of the last file.
        file: String,
    },
    /// A description is none.
    #[error("{file}:{line}: {fault}")]
    Wrong {
        /// The path of the file.
        file: String,
        /// Where in it, counted from 1.
        line: usize,
        /// What is wrong.
        fault: String,
    },
}

/// How a function is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By its symbol.
    Name,
    /// By an address of the file's own numbering.
    Svma(u64),
    /// By a position in the file.
    FileOffset(u64),
}

/// A described function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub(super) function: AllocatorFunction,
    /// Which allocator it is of, if that was said.
    pub(super) allocator: Option<&'static str>,
    pub(super) place: Place,
    /// Path or last part of the path of the file in which it is; none if it may be in any.
    file: Option<String>,
    /// Where it was described.
    origin: String,
}

impl Description {
    /// Whether it is found by this symbol.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.place == Place::Name && self.function.name == name
    }

    fn is_of_file(&self, path: &str) -> bool {
        self.file.as_ref().is_none_or(|file| {
            let is_whole = file.contains('/');
            path == file || !is_whole && path.rsplit('/').next() == Some(file)
        })
    }

    /// Whether one function could be meant by both.
    fn overlaps(&self, other: &Self) -> bool {
        let same_place = match (self.place, other.place) {
            (Place::Name, Place::Name) => self.function.name == other.function.name,
            (one, another) => one == another,
        };
        let files = self.file.as_ref().zip(other.file.as_ref());
        same_place && files.is_none_or(|(one, another)| one == another)
    }
}

/// All that was described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptions {
    all: Vec<Description>,
}

impl Descriptions {
    /// Reads what was given on the command line: files or, in braces, one description each.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or anything is wrong with a description.
    pub fn read(given: &[String]) -> Result<Self, DescriptionError> {
        let mut descriptions = Self::default();
        for given in given {
            if given.trim_start().starts_with('{') {
                // TOML has a form for it that fits a line.
                descriptions.add(given, &format!("function = [{given}]"))?;
            } else {
                descriptions.add(given, &text_of(given)?)?;
            }
        }
        Ok(descriptions)
    }

    fn add(&mut self, file: &str, text: &str) -> Result<(), DescriptionError> {
        let wrong = |fault: Fault| DescriptionError::Wrong {
            file: file.to_owned(),
            line: line_of(text, fault.position),
            fault: fault.what,
        };
        for described in functions_of(text).map_err(wrong)? {
            let origin = format!("{file}:{}", line_of(text, described.position));
            let description = Description {
                function: described.function,
                allocator: described.allocator,
                place: described.place,
                file: described.file,
                origin,
            };
            if let Some(known) = self.all.iter().find(|known| known.overlaps(&description)) {
                let what = format!("this function is described at {} already", known.origin);
                return Err(wrong(Fault { position: described.position, what }));
            }
            if self.all.len() == MAX_DESCRIPTIONS {
                return Err(DescriptionError::TooMany { file: file.to_owned() });
            }
            self.all.push(description);
        }
        Ok(())
    }

    /// Those that a file at this path can have, with their numbers.
    pub(super) fn of_file(&self, path: &str) -> impl Iterator<Item = (usize, &Description)> {
        self.all.iter().enumerate().filter(move |(_, description)| description.is_of_file(path))
    }

    /// Each by its number: the function's name, and where it was described.
    pub fn all(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        let all = self.all.iter().enumerate();
        all.map(|(number, description)| {
            (number, description.function.name, description.origin.as_str())
        })
    }
}

fn text_of(file: &str) -> Result<String, DescriptionError> {
    let read = || {
        let mut text = String::new();
        File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Err(source) => Err(DescriptionError::Read { file: file.to_owned(), source }),
        Ok(text) if text.len() as u64 > MAX_FILE_BYTES => {
            Err(DescriptionError::TooLarge { file: file.to_owned() })
        }
        Ok(text) => Ok(text),
    }
}

/// The line of a position, counted from 1.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count()
}
