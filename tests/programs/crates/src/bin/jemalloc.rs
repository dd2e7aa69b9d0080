//! jemalloc [rounds=100]: a program whose global allocator is that of the crate tikv-jemallocator.

use std::ptr::null_mut;

use tikv_jemalloc_sys::{
    MALLOCX_ALIGN, aligned_alloc, calloc, dallocx, free, free_sized, mallocx, posix_memalign,
    rallocx, realloc, sdallocx,
};

#[path = "../../../allocators_work.rs"]
mod allocators_work;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn own(counts: &mut allocators_work::Counts, n: usize) {
    // SAFETY: each block is ended once, by the size it has.
    unsafe {
        let block = counts.got(calloc(2, n), 2 * n);
        let block = counts.moved(realloc(block, 5 * n), 2 * n, 5 * n);
        free_sized(counts.ended(block, 5 * n), 5 * n);
        let mut block = null_mut();
        assert_eq!(posix_memalign(&mut block, 64, n), 0);
        free(counts.brief(block, n));
        let block = counts.got(aligned_alloc(64, n), n);
        sdallocx(counts.ended(block, n), n, MALLOCX_ALIGN(64));
        let block = counts.got(mallocx(n, 0), n);
        let block = counts.moved(rallocx(block, 4 * n, MALLOCX_ALIGN(64)), n, 4 * n);
        dallocx(counts.ended(block, 4 * n), 0);
        counts.failed(mallocx(allocators_work::impossible(), 0));
    }
}

fn main() {
    allocators_work::run(own);
}
