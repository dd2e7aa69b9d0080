//! allocators [rounds=100]: a program whose global allocator is jemalloc, called as the crates
//! that bring it do. What it allocates by itself, in `work`, is known.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_void};
use std::hint::black_box;

extern "C" {
    fn mallocx(size: usize, flags: c_int) -> *mut c_void;
    fn rallocx(block: *mut c_void, size: usize, flags: c_int) -> *mut c_void;
    fn sdallocx(block: *mut c_void, size: usize, flags: c_int);
}

struct Jemalloc;

/// `MALLOCX_ALIGN`
fn flags(layout: Layout) -> c_int {
    layout.align().trailing_zeros() as c_int
}

// SAFETY: jemalloc gives distinct blocks of the size and alignment asked for.
unsafe impl GlobalAlloc for Jemalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        mallocx(layout.size(), flags(layout)).cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        sdallocx(block.cast(), layout.size(), flags(layout));
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        rallocx(block.cast(), size, flags(layout)).cast()
    }
}

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

#[derive(Default)]
struct Counts {
    allocations: usize,
    allocated_bytes: usize,
    frees: usize,
    freed_bytes: usize,
    reallocations: usize,
}

impl Counts {
    fn begins(&mut self, bytes: usize) {
        self.allocations += 1;
        self.allocated_bytes += bytes;
    }

    fn ends(&mut self, bytes: usize) {
        self.frees += 1;
        self.freed_bytes += bytes;
    }
}

#[repr(align(256))]
struct Aligned([u8; 512]);

#[no_mangle]
#[inline(never)]
fn work(rounds: usize) -> Counts {
    let mut counts = Counts::default();
    for round in 0..rounds {
        let bytes = 64 * (1 + round % 40);
        let mut grown: Vec<u8> = black_box(Vec::with_capacity(bytes));
        counts.begins(bytes);
        grown.resize(bytes, 1);
        grown.reserve_exact(3 * bytes);
        counts.ends(bytes);
        counts.begins(4 * bytes);
        counts.reallocations += 1;
        drop(black_box(grown));
        counts.ends(4 * bytes);
        drop(black_box(Box::new(Aligned([1; 512]))));
        counts.begins(512);
        counts.ends(512);
        if round % 10 == 0 {
            black_box(Box::leak(Box::new([1_u64; 6])));
            counts.begins(48);
        }
    }
    counts
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(100, |argument| argument.parse().unwrap());
    let counts = work(rounds);
    println!("allocations {}", counts.allocations);
    println!("allocated_bytes {}", counts.allocated_bytes);
    println!("frees {}", counts.frees);
    println!("freed_bytes {}", counts.freed_bytes);
    println!("reallocations {}", counts.reallocations);
    println!("failed_allocations 0");
    println!("live_blocks {}", counts.allocations - counts.frees);
    println!("live_bytes {}", counts.allocated_bytes - counts.freed_bytes);
    println!("done 1");
}
