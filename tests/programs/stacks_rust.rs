//! stacks_rust [count=50]: chains of generic functions, trait objects and closures; allocations in a hook for panics,
//! while the stack is unwound, after catch_unwind, and in std's threads. Optimised through the whole program; frames of
//! std, which are inlined as the compiler pleases, are not listed one by one.

#![recursion_limit = "256"]

use std::hint::black_box;
use std::panic;

const MAIN: &str = "stacks_rust::main <- * <- main <- @libc <- @libc <- _start";
const GENERIC: usize = 7000; // and the depth
const TRAIT: usize = 7201;
const CLOSURE: usize = 7202;
const VECTOR: usize = 7203;
const IN_HOOK: usize = 7204;
const WHILE_UNWINDING: usize = 7205;
const AFTER_CATCH: usize = 7206;
const IN_THREAD: usize = 7207;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
    fn free(block: *mut u8);
}

#[inline(never)]
fn allocate(size: usize) {
    // SAFETY: the block is freed once and not used.
    unsafe { free(black_box(malloc(size))) };
    black_box(size);
}

/// Calls itself with less; each is different, or they might be merged.
#[inline(never)]
fn step<const LEVEL: usize>(size: usize)
where
    Level<LEVEL>: Below,
{
    black_box([LEVEL; 9]);
    Level::<LEVEL>::below(size);
    black_box(LEVEL);
}

/// What a step calls: stable Rust has no arithmetic on constants in types.
struct Level<const LEVEL: usize>;

trait Below {
    fn below(size: usize);
}

impl Below for Level<0> {
    #[inline(always)]
    fn below(size: usize) {
        allocate(size);
    }
}

macro_rules! below {
    ($($level:literal $inner:literal),*) => {$(
        impl Below for Level<$level> {
            #[inline(always)]
            fn below(size: usize) {
                step::<$inner>(size);
            }
        }
    )*};
}

below!(
    1 0, 2 1, 3 2, 4 3, 5 4, 6 5, 7 6, 8 7, 9 8, 10 9, 11 10, 12 11, 13 12, 14 13, 15 14,
    16 15, 17 16, 18 17, 19 18, 20 19, 21 20, 22 21, 23 22, 24 23, 25 24, 26 25, 27 26, 28
    27, 29 28, 30 29, 31 30, 32 31, 33 32, 34 33, 35 34, 36 35, 37 36, 38 37, 39 38, 40
    39, 41 40, 42 41, 43 42, 44 43, 45 44, 46 45, 47 46, 48 47, 49 48, 50 49, 51 50, 52
    51, 53 52, 54 53, 55 54, 56 55, 57 56, 58 57, 59 58, 60 59, 61 60, 62 61, 63 62, 64
    63, 65 64, 66 65, 67 66, 68 67, 69 68, 70 69, 71 70, 72 71, 73 72, 74 73, 75 74, 76
    75, 77 76, 78 77, 79 78, 80 79, 81 80, 82 81, 83 82, 84 83, 85 84, 86 85, 87 86, 88
    87, 89 88, 90 89, 91 90, 92 91, 93 92, 94 93, 95 94, 96 95, 97 96, 98 97, 99 98, 100
    99, 101 100, 102 101, 103 102, 104 103, 105 104, 106 105, 107 106, 108 107, 109 108,
    110 109, 111 110, 112 111, 113 112, 114 113, 115 114, 116 115, 117 116, 118 117, 119
    118
);

trait Serve {
    fn serve(&self, size: usize);
}

struct Clerk(u64);

impl Serve for Clerk {
    #[inline(never)]
    fn serve(&self, size: usize) {
        allocate(size);
        black_box(self.0);
    }
}

#[inline(never)]
fn calls_trait(server: &dyn Serve) {
    server.serve(TRAIT);
    black_box(server);
}

#[inline(never)]
fn calls_closure(closure: &dyn Fn(usize)) {
    closure(CLOSURE);
    black_box(closure);
}

#[inline(never)]
fn makes_vector() {
    black_box(Vec::<u8>::with_capacity(black_box(VECTOR)));
}

#[inline(never)]
fn hook() {
    allocate(IN_HOOK);
    black_box(1);
}

struct Guard(u64);

impl Drop for Guard {
    #[inline(never)]
    fn drop(&mut self) {
        allocate(WHILE_UNWINDING);
        black_box(self.0);
    }
}

#[inline(never)]
fn panics(reason: u64) {
    if black_box(reason) != 0 {
        panic!("asked to");
    }
    black_box(reason);
}

#[inline(never)]
fn guarded(reason: u64) {
    let guard = Guard(black_box(reason));
    panics(reason);
    black_box(&guard);
}

#[inline(never)]
fn catches() {
    let result = panic::catch_unwind(|| guarded(1));
    black_box(result.is_err());
    allocate(AFTER_CATCH);
    black_box(2);
}

#[inline(never)]
fn in_thread(count: u64) {
    for _ in 0..count {
        allocate(IN_THREAD);
    }
    black_box(count);
}

fn say(size: usize, count: u64, chain: &str) {
    println!("stack {size} {count} complete {chain}");
}

fn say_all(count: u64) {
    for depth in [5, 20, 50, 120] {
        let steps: String =
            (0..depth).map(|step| format!("stacks_rust::step::<{step}> <- ")).collect();
        say(GENERIC + depth, count, &format!("stacks_rust::allocate <- {steps}{MAIN}"));
    }
    let chains = [
        (TRAIT, "<stacks_rust::Clerk as stacks_rust::Serve>::serve <- stacks_rust::calls_trait"),
        (CLOSURE, "stacks_rust::main::{closure#2} <- stacks_rust::calls_closure"),
        (
            IN_HOOK,
            "stacks_rust::hook <- * <- stacks_rust::panics <- stacks_rust::guarded <- * <- stacks_rust::catches",
        ),
        (
            WHILE_UNWINDING,
            "<stacks_rust::Guard as core::ops::drop::Drop>::drop <- * <- stacks_rust::guarded <- * <- stacks_rust::catches",
        ),
        (AFTER_CATCH, "stacks_rust::catches"),
    ];
    for (size, chain) in chains {
        say(size, count, &format!("stacks_rust::allocate <- {chain} <- {MAIN}"));
    }
    say(VECTOR, count, &format!("* <- stacks_rust::makes_vector <- {MAIN}"));
    say(IN_THREAD, count, "stacks_rust::allocate <- stacks_rust::in_thread <- * <- @libc <- @libc");
}

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50);
    panic::set_hook(Box::new(|_| hook()));
    let scale = black_box(3);
    let closure = |size: usize| {
        allocate(size);
        black_box(scale);
    };
    for _ in 0..count {
        step::<4>(GENERIC + 5);
        step::<19>(GENERIC + 20);
        step::<49>(GENERIC + 50);
        step::<119>(GENERIC + 120);
        calls_trait(black_box(&Clerk(1)));
        calls_closure(black_box(&closure));
        makes_vector();
        catches();
    }
    std::thread::spawn(move || in_thread(count)).join().expect("it does not panic");
    say_all(count);
    println!("done 1");
}
