//! chain (Rust) [count=3] [wait] [linger]: as chain.c. The names are the demangled ones without the hash, spelled as
//! the mangling writes them (`--cfg mangling_v0` for v0); between `allocate` and malloc lie frames of std, which
//! are not listed, and so are std's start-up frames outside `main`.

use std::alloc::Layout;
use std::hint::black_box;
use std::io::BufRead;
use std::sync::atomic::{AtomicU32, Ordering};

const GENERIC: usize = 1208;
const CLOSURE: usize = 2208;
const TRAIT: usize = 3208;
const INLINED: usize = 4208;

static IN_ALLOCATE: AtomicU32 = AtomicU32::new(0);
static IN_STEP: AtomicU32 = AtomicU32::new(0);
static IN_MAIN_STEP: AtomicU32 = AtomicU32::new(0);
static IN_CLOSURE: AtomicU32 = AtomicU32::new(0);
static IN_RUN: AtomicU32 = AtomicU32::new(0);
static IN_MAIN_RUN: AtomicU32 = AtomicU32::new(0);
static IN_SERVE: AtomicU32 = AtomicU32::new(0);
static IN_MAIN_SERVE: AtomicU32 = AtomicU32::new(0);
static IN_INLINED: AtomicU32 = AtomicU32::new(0);
static IN_AROUND: AtomicU32 = AtomicU32::new(0);
static IN_MAIN_AROUND: AtomicU32 = AtomicU32::new(0);

/// Notes the line of the call and makes it; `black_box` afterwards keeps it from being a tail call.
macro_rules! at {
    ($line:ident, $call:expr) => {{
        $line.store(line!(), Ordering::Relaxed);
        black_box($call)
    }};
}

#[inline(never)]
fn allocate<T>(count: usize) -> *mut u8 {
    let layout = Layout::array::<T>(count).expect("the sizes here are small");
    // SAFETY: the layout is not empty.
    at!(IN_ALLOCATE, unsafe { std::alloc::alloc(layout) })
}

#[inline(never)]
fn step(size: usize) -> *mut u8 {
    at!(IN_STEP, allocate::<u64>(size / 8))
}

#[inline(never)]
fn run(size: usize) -> *mut u8 {
    // Called through a pointer the compiler knows nothing of, so it stays a function of its own.
    let closure = |bytes: usize| at!(IN_CLOSURE, allocate::<u64>(bytes / 8));
    let closure: &dyn Fn(usize) -> *mut u8 = black_box(&closure);
    at!(IN_RUN, closure(size))
}

trait Serve {
    fn serve(&self, size: usize) -> *mut u8;
}

struct Clerk;

impl Serve for Clerk {
    #[inline(never)]
    fn serve(&self, size: usize) -> *mut u8 {
        at!(IN_SERVE, allocate::<u64>(size / 8))
    }
}

#[inline(always)]
fn inlined(size: usize) -> *mut u8 {
    at!(IN_INLINED, allocate::<u64>(size / 8))
}

#[inline(never)]
fn around(size: usize) -> *mut u8 {
    at!(IN_AROUND, inlined(size))
}

#[cfg(mangling_v0)]
const NAMES: [&str; 3] = [
    "chain::allocate::<u64>",
    "chain::run::{closure#0}",
    "<chain::Clerk as chain::Serve>::serve",
];
#[cfg(not(mangling_v0))]
const NAMES: [&str; 3] = [
    "chain::allocate",
    "chain::run::{{closure}}",
    "<chain::Clerk as chain::Serve>::serve",
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|given| given == word);
    let count: u64 = arguments
        .iter()
        .find_map(|text| text.parse().ok())
        .unwrap_or(3);
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

    let server: Box<dyn Serve> = black_box(Box::new(Clerk));
    for _ in 0..count {
        at!(IN_MAIN_STEP, step(GENERIC));
        at!(IN_MAIN_RUN, run(CLOSURE));
        at!(IN_MAIN_SERVE, server.serve(TRAIT));
        at!(IN_MAIN_AROUND, around(INLINED));
    }

    let line = |line: &AtomicU32| line.load(Ordering::Relaxed);
    let [allocate, closure, serve] = NAMES;
    let innermost = format!("{allocate} @{}", line(&IN_ALLOCATE));
    let (at_step, at_run, at_around) = (line(&IN_STEP), line(&IN_RUN), line(&IN_AROUND));
    println!(
        "chain {GENERIC} {count} {innermost} <- chain::step @{at_step} <- chain::main @{}",
        line(&IN_MAIN_STEP)
    );
    println!(
        "chain {CLOSURE} {count} {innermost} <- {closure} @{} <- chain::run @{at_run} <- chain::main @{}",
        line(&IN_CLOSURE),
        line(&IN_MAIN_RUN)
    );
    println!(
        "chain {TRAIT} {count} {innermost} <- {serve} @{} <- chain::main @{}",
        line(&IN_SERVE),
        line(&IN_MAIN_SERVE)
    );
    println!(
        "chain {INLINED} {count} {innermost} <- chain::inlined @{} inlined <- chain::around @{at_around} <- chain::main @{}",
        line(&IN_INLINED),
        line(&IN_MAIN_AROUND)
    );
    println!("done 1");
    if has("linger") {
        wait_for_line();
    }
}
