//! allocators [rounds=100]: a program whose global allocator is jemalloc, called as the crates
//! that bring it do. What it allocates by itself, in `work`, is known.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_void};

mod allocators_work;

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

fn own(counts: &mut allocators_work::Counts, n: usize) {
    // SAFETY: the block is ended by the size it has.
    unsafe {
        let block = counts.got(mallocx(n, 0), n);
        let block = counts.moved(rallocx(block, 3 * n, 0), n, 3 * n);
        sdallocx(counts.ended(block, 3 * n), 3 * n, 0);
        counts.failed(mallocx(allocators_work::impossible(), 0));
    }
}

fn main() {
    allocators_work::run(own);
}
