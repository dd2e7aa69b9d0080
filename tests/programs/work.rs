//! work (Rust) [rounds=100] [wait] [linger]: what programs do with the collections of std. A text is made, split into
//! lines and words, counted and indexed in maps, sorted, compared and joined. It checks its own results against what
//! it knows of them, and prints a checksum.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

const LINES: u64 = 60;
const WORDS_OF_A_LINE: u64 = 12;
const DIFFERENT_WORDS: u64 = 300;

#[derive(Default)]
struct Entry {
    count: u64,
    lines: Vec<u64>,
}

/// xorshift64*, as in common.h.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(2_685_821_657_736_338_717)
}

/// Words of 3 to 14 letters, the first ones more often than the others.
fn word(number: u64) -> String {
    let mut left = number * 2_654_435_761 % 1_000_003 + 17;
    let letters = (0..3 + number % 12).map(|_| {
        left = left.wrapping_mul(31).wrapping_add(7);
        char::from(b'a' + (left % 26) as u8)
    });
    letters.collect()
}

fn make_text(vocabulary: &[String], random: &mut u64) -> String {
    let mut text = String::new();
    for _ in 0..LINES {
        for place in 0..WORDS_OF_A_LINE {
            let any = next_random(random);
            text += &vocabulary[(any % (1 + (any >> 32) % DIFFERENT_WORDS)) as usize];
            text.push(if place + 1 < WORDS_OF_A_LINE { ' ' } else { '\n' });
        }
    }
    text
}

/// How many letters differ at best, by the usual table of which two rows are kept.
fn distance(one: &str, other: &str) -> usize {
    let mut above: Vec<usize> = (0..=other.len()).collect();
    let mut row = vec![0; other.len() + 1];
    for (line, letter) in one.bytes().enumerate() {
        row[0] = line + 1;
        for (column, beside) in other.bytes().enumerate() {
            let exchanged = above[column] + usize::from(letter != beside);
            row[column + 1] = exchanged.min(above[column + 1] + 1).min(row[column] + 1);
        }
        std::mem::swap(&mut above, &mut row);
    }
    above[other.len()]
}

/// A checksum, and how many blocks there were at least.
fn round_of_work(vocabulary: &[String], random: &mut u64) -> (u64, u64) {
    let text = make_text(vocabulary, random);
    let mut lines: Vec<String> = Vec::new();
    let mut index: BTreeMap<String, Entry> = BTreeMap::new();
    let mut by_length: HashMap<usize, Vec<Box<str>>> = HashMap::new();
    for line in text.lines() {
        lines.push(line.to_owned());
        for one in line.split(' ') {
            if !index.contains_key(one) {
                index.insert(one.to_owned(), Entry::default());
                by_length.entry(one.len()).or_default().push(one.into());
            }
            let entry = index.get_mut(one).expect("it was just put there");
            entry.count += 1;
            entry.lines.push(lines.len() as u64);
        }
    }

    let mut sorted = lines.clone();
    sorted.sort();
    let (mut counted, mut checksum) = (0, 0u64);
    for (name, entry) in &index {
        assert!(entry.lines.len() as u64 == entry.count && !name.is_empty());
        counted += entry.count;
        checksum = checksum.wrapping_mul(31).wrapping_add(entry.count * entry.lines[0]);
    }
    for (length, words) in &by_length {
        assert!(words.iter().all(|one| one.len() == *length));
    }
    let mut joined = String::new();
    for pair in sorted.windows(2).step_by(4) {
        let differing = distance(&pair[0], &pair[1]) as u64;
        checksum = checksum.wrapping_mul(31).wrapping_add(differing);
        joined += &format!("{}\n", pair[1]);
    }
    assert!(counted == LINES * WORDS_OF_A_LINE && lines.len() as u64 == LINES && sorted.is_sorted());
    // Each line, and its copy to be sorted; each word in the index, its list of lines, and the word by its length.
    let allocations_at_least = 2 * LINES + 3 * index.len() as u64;
    (checksum.wrapping_add(joined.len() as u64), allocations_at_least)
}

fn main() {
    let (words, numbers): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|argument| argument == "wait" || argument == "linger");
    let rounds: u64 = numbers.first().map_or(100, |text| {
        text.parse().expect("an argument is a number, wait or linger")
    });
    let vocabulary: Vec<String> = (0..DIFFERENT_WORDS).map(word).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    let wait_for_line = || {
        let read = std::io::stdin().lock().read_line(&mut String::new());
        read.expect("stdin is readable");
    };
    if has("wait") {
        println!("ready {}", std::process::id());
        wait_for_line();
    }

    let (mut random, mut checksum, mut allocations_at_least) = (1, 0u64, 0);
    for _ in 0..rounds {
        let (of_round, at_least) = round_of_work(&vocabulary, &mut random);
        checksum = checksum.wrapping_mul(31).wrapping_add(of_round);
        allocations_at_least += at_least;
    }
    println!("checksum {checksum}");
    println!("allocations_at_least {allocations_at_least}");
    println!("done 1");
    if has("linger") {
        wait_for_line();
    }
}
