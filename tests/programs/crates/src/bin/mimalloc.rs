//! mimalloc [rounds=100]: a program whose global allocator is that of the crate mimalloc.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

#[path = "../../../allocators_work.rs"]
mod allocators_work;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

extern "C" {
    fn mi_malloc(size: usize) -> *mut c_void;
    fn mi_zalloc(size: usize) -> *mut c_void;
    fn mi_zalloc_small(size: usize) -> *mut c_void;
    fn mi_calloc(count: usize, size: usize) -> *mut c_void;
    fn mi_realloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn mi_reallocn(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
    fn mi_rezalloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn mi_posix_memalign(block: *mut *mut c_void, alignment: usize, size: usize) -> c_int;
    fn mi_calloc_aligned(count: usize, size: usize, alignment: usize) -> *mut c_void;
    fn mi_umalloc(size: usize, given: *mut usize) -> *mut c_void;
    fn mi_ucalloc(count: usize, size: usize, given: *mut usize) -> *mut c_void;
    fn mi_urealloc(
        block: *mut c_void,
        size: usize,
        given_before: *mut usize,
        given: *mut usize,
    ) -> *mut c_void;
    fn mi_umalloc_aligned(size: usize, alignment: usize, given: *mut usize) -> *mut c_void;
    fn mi_free(block: *mut c_void);
    fn mi_free_size(block: *mut c_void, size: usize);
    fn mi_free_aligned(block: *mut c_void, alignment: usize);
    fn mi_free_small(block: *mut c_void);
    fn mi_ufree(block: *mut c_void, given: *mut usize);
}

fn own(counts: &mut allocators_work::Counts, n: usize) {
    let mut given = 0;
    // SAFETY: each block is ended once, by the size and alignment it has.
    unsafe {
        mi_free(counts.brief(mi_zalloc(n), n));
        mi_free_small(counts.brief(mi_zalloc_small(100), 100));
        mi_free_size(counts.brief(mi_malloc(n), n), n);
        let block = counts.got(mi_calloc(2, n), 2 * n);
        let block = counts.moved(mi_realloc(block, 5 * n), 2 * n, 5 * n);
        let block = counts.moved(mi_reallocn(block, 6, n), 5 * n, 6 * n);
        let block = counts.moved(mi_rezalloc(block, 7 * n), 6 * n, 7 * n);
        mi_free(counts.ended(block, 7 * n));
        let mut block = null_mut();
        assert_eq!(mi_posix_memalign(&mut block, 64, n), 0);
        mi_free(counts.brief(block, n));
        let block = counts.got(mi_calloc_aligned(2, n, 64), 2 * n);
        mi_free_aligned(counts.ended(block, 2 * n), 64);
        let block = counts.got(mi_umalloc(n, &mut given), n);
        let block = counts.moved(mi_urealloc(block, 3 * n, &mut 0, &mut given), n, 3 * n);
        mi_ufree(counts.ended(block, 3 * n), &mut given);
        mi_free(counts.brief(mi_ucalloc(2, n, &mut given), 2 * n));
        mi_free(counts.brief(mi_umalloc_aligned(n, 64, &mut given), n));
        counts.failed(mi_malloc(allocators_work::impossible()));
    }
    heaps::own(counts, n);
}

/// The heaps of version 3 and, of each thread, their parts.
#[cfg(not(feature = "mimalloc-v2"))]
mod heaps {
    use std::ffi::c_void;

    use super::mi_free;

    extern "C" {
        fn mi_heap_main() -> *mut c_void;
        fn mi_heap_malloc(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_heap_zalloc_small(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_heap_calloc(heap: *mut c_void, count: usize, size: usize) -> *mut c_void;
        fn mi_heap_realloc(heap: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void;
        fn mi_theap_get_default() -> *mut c_void;
        fn mi_theap_malloc(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_theap_malloc_small(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_theap_zalloc(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_theap_calloc(heap: *mut c_void, count: usize, size: usize) -> *mut c_void;
        fn mi_theap_malloc_aligned(heap: *mut c_void, size: usize, alignment: usize)
        -> *mut c_void;
        fn mi_theap_realloc(heap: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void;
    }

    pub fn own(counts: &mut super::allocators_work::Counts, n: usize) {
        // SAFETY: both heaps live as long as the thread, and each block is ended once.
        unsafe {
            let heap = mi_heap_main();
            let block = counts.got(mi_heap_malloc(heap, n), n);
            let block = counts.moved(mi_heap_realloc(heap, block, 3 * n), n, 3 * n);
            mi_free(counts.ended(block, 3 * n));
            mi_free(counts.brief(mi_heap_zalloc_small(heap, 100), 100));
            mi_free(counts.brief(mi_heap_calloc(heap, 2, n), 2 * n));
            let heap = mi_theap_get_default();
            let block = counts.got(mi_theap_malloc(heap, n), n);
            let block = counts.moved(mi_theap_realloc(heap, block, 3 * n), n, 3 * n);
            mi_free(counts.ended(block, 3 * n));
            mi_free(counts.brief(mi_theap_malloc_small(heap, 100), 100));
            mi_free(counts.brief(mi_theap_zalloc(heap, n), n));
            mi_free(counts.brief(mi_theap_calloc(heap, 2, n), 2 * n));
            mi_free(counts.brief(mi_theap_malloc_aligned(heap, n, 64), n));
        }
    }
}

/// The heaps of version 2.
#[cfg(feature = "mimalloc-v2")]
mod heaps {
    use std::ffi::c_void;

    use super::mi_free;

    extern "C" {
        fn mi_heap_get_default() -> *mut c_void;
        fn mi_heap_malloc(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_heap_zalloc(heap: *mut c_void, size: usize) -> *mut c_void;
        fn mi_heap_realloc(heap: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void;
    }

    pub fn own(counts: &mut super::allocators_work::Counts, n: usize) {
        // SAFETY: the heap lives as long as the thread, and each block is ended once.
        unsafe {
            let heap = mi_heap_get_default();
            let block = counts.got(mi_heap_malloc(heap, n), n);
            let block = counts.moved(mi_heap_realloc(heap, block, 3 * n), n, 3 * n);
            mi_free(counts.ended(block, 3 * n));
            mi_free(counts.brief(mi_heap_zalloc(heap, n), n));
        }
    }
}

fn main() {
    allocators_work::run(own);
}
