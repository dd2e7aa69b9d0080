//! mix (Rust) [threads=1] [rounds=200] [seed=1] [wait] [linger]: the collections and smart pointers of std in threads
//! that hand values on through channels. What the collections allocate inside is std's affair, so the program states
//! only the blocks it leaves alive on purpose, and a checksum over everything it computed.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// What one thread hands to the next, to be freed there.
enum Parcel {
    Bytes(Vec<u8>),
    Text(String),
    Boxed(Box<[u64; 32]>),
    Shared(Arc<Vec<u32>>),
}

#[derive(Default)]
struct Outcome {
    checksum: u64,
    kept_blocks: u64,
    kept_bytes: u64,
}

/// xorshift64*, as in common.h.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(2_685_821_657_736_338_717)
}

fn collections(random: &mut u64) -> u64 {
    let mut hashed: HashMap<u64, String> = HashMap::new();
    let mut ordered: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..20 {
        let value = next_random(random) % 1000;
        hashed.insert(value, format!("value {value}"));
        ordered
            .entry(format!("key {}", value % 10))
            .or_default()
            .push(value);
    }
    // Sums only: the order of a HashMap differs from run to run.
    hashed.values().map(|text| text.len() as u64).sum::<u64>()
        + ordered
            .values()
            .map(|values| values.len() as u64)
            .sum::<u64>()
}

fn parcel(random: &mut u64) -> Parcel {
    let value = next_random(random);
    let length = (value >> 8) as usize % 2000;
    match value % 4 {
        0 => Parcel::Bytes(vec![value as u8; length]),
        1 => Parcel::Text("text ".repeat(length / 5)),
        2 => Parcel::Boxed(Box::new([value; 32])),
        _ => Parcel::Shared(Arc::new((0..length as u32).collect())),
    }
}

fn open(parcel: Parcel) -> u64 {
    match parcel {
        Parcel::Bytes(bytes) => bytes.len() as u64,
        Parcel::Text(text) => text.len() as u64,
        Parcel::Boxed(values) => values.iter().fold(0, |sum, value| sum ^ value),
        Parcel::Shared(values) => values.iter().map(|value| u64::from(*value)).sum(),
    }
}

fn keep(outcome: &mut Outcome) {
    let mut forgotten: Vec<u8> = Vec::with_capacity(333);
    forgotten.push(1);
    std::hint::black_box(&forgotten);
    std::mem::forget(forgotten);
    std::hint::black_box(Box::leak(Box::new([2u64; 16])));
    outcome.kept_blocks += 2;
    outcome.kept_bytes += 333 + 128;
}

fn work(rounds: u64, mut random: u64, next: &Sender<Parcel>, inbox: &Receiver<Parcel>) -> Outcome {
    let mut outcome = Outcome::default();
    for round in 0..rounds {
        outcome.checksum = outcome.checksum.wrapping_add(collections(&mut random));
        let shared = Arc::new((0..50).collect::<Vec<u32>>());
        next.send(Parcel::Shared(Arc::clone(&shared)))
            .expect("every inbox lives until all threads ended");
        next.send(parcel(&mut random))
            .expect("every inbox lives until all threads ended");
        drop(shared);
        while let Ok(parcel) = inbox.try_recv() {
            outcome.checksum = outcome.checksum.wrapping_add(open(parcel));
        }
        if round % 20 == 0 {
            keep(&mut outcome);
        }
    }
    outcome
}

fn main() {
    let (words, numbers): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .partition(|argument| argument == "wait" || argument == "linger");
    let number = |index: usize, fallback: u64| {
        numbers.get(index).map_or(fallback, |text| {
            text.parse()
                .expect("an argument is a number, wait or linger")
        })
    };
    let (threads, rounds, seed) = (number(0, 1), number(1, 200), number(2, 1));
    let has = |word: &str| words.iter().any(|given| given == word);
    let wait_for_line = || {
        std::io::stdin()
            .lock()
            .read_line(&mut String::new())
            .expect("stdin is readable");
    };
    if has("wait") {
        println!("ready {}", std::process::id());
        wait_for_line();
    }

    let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| channel::<Parcel>()).unzip();
    let outcomes: Vec<(Outcome, Receiver<Parcel>)> = receivers
        .into_iter()
        .enumerate()
        .map(|(index, inbox)| {
            let next = senders[(index + 1) % senders.len()].clone();
            let random = (seed + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(index as u64 * 2 + 1);
            thread::spawn(move || (work(rounds, random, &next, &inbox), inbox))
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|handle| handle.join().expect("no thread panics"))
        .collect();
    drop(senders);
    let mut sum = Outcome::default();
    for (outcome, inbox) in outcomes {
        sum.checksum = sum.checksum.wrapping_add(outcome.checksum);
        sum.kept_blocks += outcome.kept_blocks;
        sum.kept_bytes += outcome.kept_bytes;
        for parcel in inbox {
            sum.checksum = sum.checksum.wrapping_add(open(parcel));
        }
    }

    println!("kept_blocks {}", sum.kept_blocks);
    println!("kept_bytes {}", sum.kept_bytes);
    println!("checksum {}", sum.checksum);
    println!("done 1");
    std::io::stdout().flush().expect("stdout is writable");
    if has("linger") {
        wait_for_line();
    }
}
