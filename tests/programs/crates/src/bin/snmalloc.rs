//! snmalloc [rounds=100]: a program whose global allocator is that of the crate snmalloc-rs.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

#[path = "../../../allocators_work.rs"]
mod allocators_work;

#[global_allocator]
static ALLOCATOR: snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc;

extern "C" {
    fn sn_malloc(size: usize) -> *mut c_void;
    fn sn_calloc(count: usize, size: usize) -> *mut c_void;
    fn sn_realloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn sn_reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
    fn sn_posix_memalign(block: *mut *mut c_void, alignment: usize, size: usize) -> c_int;
    fn sn_aligned_alloc(alignment: usize, size: usize) -> *mut c_void;
    fn sn_memalign(alignment: usize, size: usize) -> *mut c_void;
    fn sn_valloc(size: usize) -> *mut c_void;
    fn sn_pvalloc(size: usize) -> *mut c_void;
    fn sn_free(block: *mut c_void);
    fn sn_free_sized(block: *mut c_void, size: usize);
    fn sn_free_aligned_sized(block: *mut c_void, alignment: usize, size: usize);
    fn sn_cfree(block: *mut c_void);
}

fn own(counts: &mut allocators_work::Counts, n: usize) {
    // SAFETY: each block is ended once, by the size and alignment it has.
    unsafe {
        let block = counts.got(sn_malloc(n), n);
        let block = counts.moved(sn_realloc(block, 3 * n), n, 3 * n);
        let block = counts.moved(sn_reallocarray(block, 5, n), 3 * n, 5 * n);
        sn_free(counts.ended(block, 5 * n));
        sn_cfree(counts.brief(sn_calloc(2, n), 2 * n));
        sn_free_sized(counts.brief(sn_malloc(n), n), n);
        let block = counts.got(sn_aligned_alloc(64, n), n);
        sn_free_aligned_sized(counts.ended(block, n), 64, n);
        let mut block = null_mut();
        assert_eq!(sn_posix_memalign(&mut block, 64, n), 0);
        sn_free(counts.brief(block, n));
        sn_free(counts.brief(sn_memalign(64, n), n));
        sn_free(counts.brief(sn_valloc(n), n));
        sn_free(counts.brief(sn_pvalloc(n), n));
        counts.failed(sn_malloc(allocators_work::impossible()));
    }
}

fn main() {
    allocators_work::run(own);
}
