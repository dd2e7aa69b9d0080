//! What the Rust programs with a known allocator do, called `work`, with known counts.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;

#[derive(Default)]
pub struct Counts {
    allocations: usize,
    allocated_bytes: usize,
    frees: usize,
    freed_bytes: usize,
    reallocations: usize,
    failed_allocations: usize,
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

    fn moves(&mut self, old_bytes: usize, bytes: usize) {
        self.ends(old_bytes);
        self.begins(bytes);
        self.reallocations += 1;
    }

    /// A block that must have been given. Both its ends are written, so a tracer that disturbed the allocator
    /// would show as damage.
    pub fn got<T>(&mut self, block: *mut T, bytes: usize) -> *mut T {
        assert!(!black_box(block).is_null(), "an allocation of {bytes} bytes failed");
        // SAFETY: the allocator gave that many bytes.
        unsafe {
            block.cast::<u8>().write_volatile(1);
            block.cast::<u8>().add(bytes - 1).write_volatile(1);
        }
        self.begins(bytes);
        block
    }

    /// One that was given in place of another.
    pub fn moved<T>(&mut self, block: *mut T, old_bytes: usize, bytes: usize) -> *mut T {
        self.ends(old_bytes);
        self.reallocations += 1;
        self.got(block, bytes)
    }

    /// One that the next call ends.
    pub fn ended<T>(&mut self, block: *mut T, bytes: usize) -> *mut T {
        self.ends(bytes);
        block
    }

    /// One that was given, and that the next call ends.
    pub fn brief<T>(&mut self, block: *mut T, bytes: usize) -> *mut T {
        let block = self.got(block, bytes);
        self.ended(block, bytes)
    }

    /// None, as nobody has so much memory.
    pub fn failed<T>(&mut self, block: *mut T) {
        assert!(black_box(block).is_null());
        self.failed_allocations += 1;
    }
}

/// No size of a block, and so that nobody knows it beforehand.
pub fn impossible() -> usize {
    black_box(isize::MAX as usize / 2)
}

#[repr(align(256))]
struct Aligned([u8; 512]);

fn safe(counts: &mut Counts, n: usize) {
    let mut vector: Vec<u8> = black_box(Vec::with_capacity(n));
    counts.begins(n);
    vector.resize(n, 1);
    vector.reserve_exact(3 * n);
    counts.moves(n, 4 * n);
    vector.shrink_to_fit();
    counts.moves(4 * n, n);
    drop(black_box(vector));
    counts.ends(n);
    drop(black_box(vec![0_u8; black_box(n)]));
    counts.begins(n);
    counts.ends(n);
    assert_eq!(black_box(Box::new(Aligned([1; 512]))).0[511], 1);
    counts.begins(512);
    counts.ends(512);
}

/// All that `GlobalAlloc` has, with an alignment that no block has by itself.
fn aligned(counts: &mut Counts, n: usize) {
    let layout = |size| Layout::from_size_align(size, 256).unwrap();
    // SAFETY: no size is zero, and each block is ended by the layout it has.
    unsafe {
        let block = counts.got(alloc(layout(n)), n);
        let block = counts.moved(realloc(block, layout(n), 3 * n), n, 3 * n);
        counts.failed(realloc(block, layout(3 * n), impossible()));
        dealloc(counts.ended(block, 3 * n), layout(3 * n));
        let block = counts.got(alloc_zeroed(layout(2 * n)), 2 * n);
        dealloc(counts.ended(block, 2 * n), layout(2 * n));
        counts.failed(alloc(layout(impossible())));
        counts.failed(alloc_zeroed(Layout::from_size_align(impossible(), 1).unwrap()));
    }
}

#[no_mangle]
#[inline(never)]
fn work(rounds: usize, own: fn(&mut Counts, usize)) -> Counts {
    let mut counts = Counts::default();
    for round in 0..rounds {
        let n = 64 * (1 + round % 40);
        safe(&mut counts, n);
        aligned(&mut counts, n);
        own(&mut counts, n);
        if round % 10 == 0 {
            black_box(Box::leak(Box::new([1_u64; 6])));
            counts.begins(48);
        }
    }
    counts
}

/// The program; `own` calls the allocator by its own names, for blocks of about `n` bytes.
pub fn run(own: fn(&mut Counts, usize)) {
    let rounds = std::env::args().nth(1).map_or(100, |argument| argument.parse().unwrap());
    let counts = work(rounds, own);
    println!("allocations {}", counts.allocations);
    println!("allocated_bytes {}", counts.allocated_bytes);
    println!("frees {}", counts.frees);
    println!("freed_bytes {}", counts.freed_bytes);
    println!("reallocations {}", counts.reallocations);
    println!("failed_allocations {}", counts.failed_allocations);
    println!("live_blocks {}", counts.allocations - counts.frees);
    println!("live_bytes {}", counts.allocated_bytes - counts.freed_bytes);
    println!("done 1");
}
