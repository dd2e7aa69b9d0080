//! Finds a row by its name.
//!
//! Each symbol of each mapped file is asked for, and a program can have a million. So the
//! rows are in a hash table, which the compiler makes: there is none to be made at run time,
//! or to be handed around.

use super::{Allocator, AllocatorFunction, Naming, rows::ALLOCATORS};

/// Places of the table; many times as many as rows, so that a search is short.
const PLACES: usize = 2048;
const EMPTY: u16 = u16::MAX;
const ROWS: usize = count();
/// All rows in order.
const BY_NUMBER: [(&Allocator, &AllocatorFunction); ROWS] = rows();
const LONGEST_NAME: usize = longest_name();
/// For each place the number of a row.
static TABLE: [u16; PLACES] = table();

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Whose it is.
    pub(crate) naming: Naming,
    /// See [`Allocator::takes_pages`].
    pub(crate) takes_pages: bool,
    /// Of the names of one function, the one with the smallest number is the best known.
    pub(crate) number: usize,
    pub(crate) function: &'static AllocatorFunction,
}

/// The row of a function.
pub(crate) fn find(name: &str) -> Option<Row> {
    let bytes = name.as_bytes();
    if bytes.len() > LONGEST_NAME {
        return None;
    }
    let mut place = place_of(bytes);
    loop {
        let number = usize::from(*TABLE.get(place)?);
        // There is nothing at an empty place's number.
        let (allocator, function) = *BY_NUMBER.get(number)?;
        if function.name == name {
            let Allocator { naming, takes_pages, .. } = *allocator;
            return Some(Row { naming, takes_pages, number, function });
        }
        place = (place + 1) % PLACES;
    }
}

/// FNV-1a, of 64 bits.
const fn place_of(name: &[u8]) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut position = 0;
    while position < name.len() {
        hash = (hash ^ name[position] as u64).wrapping_mul(0x100_0000_01b3);
        position += 1;
    }
    (hash ^ hash >> 32) as usize % PLACES
}

const fn count() -> usize {
    let (mut rows, mut allocator) = (0, 0);
    while allocator < ALLOCATORS.len() {
        let mut part = 0;
        while part < ALLOCATORS[allocator].functions.len() {
            rows += ALLOCATORS[allocator].functions[part].len();
            part += 1;
        }
        allocator += 1;
    }
    rows
}

const fn rows() -> [(&'static Allocator, &'static AllocatorFunction); ROWS] {
    let mut rows = [(&ALLOCATORS[0], &ALLOCATORS[0].functions[0][0]); ROWS];
    let (mut number, mut allocator) = (0, 0);
    while allocator < ALLOCATORS.len() {
        let mut part = 0;
        while part < ALLOCATORS[allocator].functions.len() {
            let functions = ALLOCATORS[allocator].functions[part];
            let mut function = 0;
            while function < functions.len() {
                rows[number] = (&ALLOCATORS[allocator], &functions[function]);
                number += 1;
                function += 1;
            }
            part += 1;
        }
        allocator += 1;
    }
    rows
}

const fn table() -> [u16; PLACES] {
    const { assert!(ROWS * 4 < PLACES, "more places are needed") };
    let mut table = [EMPTY; PLACES];
    let mut number = 0;
    while number < ROWS {
        let mut place = place_of(BY_NUMBER[number].1.name.as_bytes());
        while table[place] != EMPTY {
            place = (place + 1) % PLACES;
        }
        table[place] = number as u16;
        number += 1;
    }
    table
}

const fn longest_name() -> usize {
    let (mut longest, mut number) = (0, 0);
    while number < ROWS {
        if BY_NUMBER[number].1.name.len() > longest {
            longest = BY_NUMBER[number].1.name.len();
        }
        number += 1;
    }
    longest
}
