/*
 * allocators [rounds=100]: the functions of C, and of whatever allocator is there, by all its names, with known counts. All of
 * them are called by `work`. What an allocator brings of its own is called if the program is linked with it or it is
 * preloaded: the references are weak.
 */
#include "common.h"

#include <malloc.h>

#define WEAK __attribute__((weak))

/* jemalloc(3) */
WEAK void *mallocx(size_t size, int flags);
WEAK void *rallocx(void *block, size_t size, int flags);
WEAK void sdallocx(void *block, size_t size, int flags);
WEAK void dallocx(void *block, int flags);
/* <mimalloc.h> */
WEAK void *mi_malloc(size_t size);
WEAK void *mi_malloc_small(size_t size);
WEAK void *mi_zalloc(size_t size);
WEAK void *mi_zalloc_small(size_t size);
WEAK void *mi_calloc(size_t count, size_t size);
WEAK void *mi_mallocn(size_t count, size_t size);
WEAK void *mi_realloc(void *block, size_t size);
WEAK void *mi_reallocn(void *block, size_t count, size_t size);
WEAK void *mi_reallocf(void *block, size_t size);
WEAK void *mi_rezalloc(void *block, size_t size);
WEAK void *mi_recalloc(void *block, size_t count, size_t size);
WEAK void *mi_malloc_aligned(size_t size, size_t alignment);
WEAK void *mi_malloc_aligned_at(size_t size, size_t alignment, size_t offset);
WEAK void *mi_zalloc_aligned(size_t size, size_t alignment);
WEAK void *mi_calloc_aligned(size_t count, size_t size, size_t alignment);
WEAK void *mi_realloc_aligned(void *block, size_t size, size_t alignment);
WEAK void *mi_rezalloc_aligned(void *block, size_t size, size_t alignment);
WEAK void *mi_recalloc_aligned(void *block, size_t count, size_t size, size_t alignment);
WEAK void *mi_memalign(size_t alignment, size_t size);
WEAK int mi_posix_memalign(void **block, size_t alignment, size_t size);
WEAK void *mi_aligned_alloc(size_t alignment, size_t size);
WEAK void *mi_valloc(size_t size);
WEAK void *mi_pvalloc(size_t size);
WEAK void *mi_reallocarray(void *block, size_t count, size_t size);
WEAK void *mi_new(size_t size);
WEAK void *mi_new_aligned(size_t size, size_t alignment);
WEAK void *mi_new_nothrow(size_t size);
WEAK void *mi_new_aligned_nothrow(size_t size, size_t alignment);
WEAK void *mi_new_n(size_t count, size_t size);
WEAK void *mi_new_realloc(void *block, size_t size);
WEAK void *mi_new_reallocn(void *block, size_t count, size_t size);
WEAK void *mi_heap_get_default(void);
WEAK void *mi_heap_malloc(void *heap, size_t size);
WEAK void *mi_heap_zalloc(void *heap, size_t size);
WEAK void *mi_heap_calloc(void *heap, size_t count, size_t size);
WEAK void *mi_heap_realloc(void *heap, void *block, size_t size);
WEAK void *mi_heap_malloc_aligned(void *heap, size_t size, size_t alignment);
WEAK void mi_free(void *block);
WEAK void mi_free_size(void *block, size_t size);
WEAK void mi_free_size_aligned(void *block, size_t size, size_t alignment);
WEAK void mi_free_aligned(void *block, size_t alignment);
/* <gperftools/tcmalloc.h> */
WEAK void *tc_malloc(size_t size);
WEAK void *tc_malloc_skip_new_handler(size_t size);
WEAK void *tc_calloc(size_t count, size_t size);
WEAK void *tc_realloc(void *block, size_t size);
WEAK void *tc_memalign(size_t alignment, size_t size);
WEAK int tc_posix_memalign(void **block, size_t alignment, size_t size);
WEAK void *tc_valloc(size_t size);
WEAK void *tc_pvalloc(size_t size);
WEAK void *tc_new(size_t size);
WEAK void *tc_newarray(size_t size);
WEAK void tc_free(void *block);
WEAK void tc_free_sized(void *block, size_t size);
WEAK void tc_cfree(void *block);
WEAK void tc_delete(void *block);
WEAK void tc_deletearray(void *block);

static struct counts counts;
static volatile size_t impossible = SIZE_MAX / 2;
static void *volatile nothing = NULL;

static void *got(void *block, size_t size)
{
    if (block == NULL) {
        dprintf(STDERR_FILENO, "allocators: an allocation that must succeed failed\n");
        abort();
    }
    /* Both ends are written, so a tracer that disturbed the allocator would show as damage. */
    ((unsigned char *)block)[0] = ((unsigned char *)block)[size - 1] = 1;
    count_allocation(&counts, size);
    return block;
}

static void *moved(void *block, size_t old_size, size_t size)
{
    count_free(&counts, old_size);
    counts.reallocations++;
    return got(block, size);
}

static void failed(void *block)
{
    if (block != NULL)
        abort();
    counts.failed_allocations++;
}

/* A call that ends a block of this size. */
#define ENDS(size, call) (count_free(&counts, size), call)

static void c_functions(size_t n)
{
    void *block = got(malloc(n), n);
    block = moved(realloc(block, 3 * n), n, 3 * n);
    block = moved(realloc(block, 2 * n), 3 * n, 2 * n);
    ENDS(2 * n, free(block));
    block = got(calloc(3, n), 3 * n);
    block = moved(reallocarray(block, 5, n), 3 * n, 5 * n);
    ENDS(5 * n, free(block));
    block = got(realloc(nothing, n), n);
    ENDS(n, free(block));
    if (posix_memalign(&block, 64, n) != 0)
        abort();
    ENDS(n, free(got(block, n)));
    ENDS(n, free(got(aligned_alloc(64, n), n)));
    ENDS(n, free(got(memalign(256, n), n)));
    ENDS(n, free(got(valloc(n), n)));
    failed(malloc(impossible));
    failed(calloc(impossible, 4));
    free(nothing);
}

static void jemalloc_functions(size_t n)
{
    void *block = got(mallocx(n, 0), n);
    block = moved(rallocx(block, 4 * n, 0), n, 4 * n);
    ENDS(4 * n, sdallocx(block, 4 * n, 0));
    ENDS(n, dallocx(got(mallocx(n, 6 /* aligned to 64 */), n), 0));
    ENDS(n, free(got(mallocx(n, 0), n)));
    failed(mallocx(impossible, 0));
}

static void mimalloc_functions(size_t n)
{
    ENDS(n, mi_free(got(mi_malloc(n), n)));
    ENDS(100, mi_free(got(mi_malloc_small(100), 100)));
    ENDS(n, mi_free(got(mi_zalloc(n), n)));
    ENDS(100, mi_free(got(mi_zalloc_small(100), 100)));
    ENDS(3 * n, mi_free(got(mi_mallocn(3, n), 3 * n)));
    void *block = got(mi_calloc(2, n), 2 * n);
    block = moved(mi_realloc(block, 5 * n), 2 * n, 5 * n);
    block = moved(mi_reallocn(block, 6, n), 5 * n, 6 * n);
    block = moved(mi_reallocf(block, 7 * n), 6 * n, 7 * n);
    block = moved(mi_rezalloc(block, 8 * n), 7 * n, 8 * n);
    block = moved(mi_recalloc(block, 9, n), 8 * n, 9 * n);
    block = moved(mi_reallocarray(block, 10, n), 9 * n, 10 * n);
    ENDS(10 * n, mi_free_size(block, 10 * n));
    block = got(mi_malloc_aligned(n, 128), n);
    block = moved(mi_realloc_aligned(block, 2 * n, 128), n, 2 * n);
    block = moved(mi_rezalloc_aligned(block, 3 * n, 128), 2 * n, 3 * n);
    block = moved(mi_recalloc_aligned(block, 4, n, 128), 3 * n, 4 * n);
    ENDS(4 * n, mi_free_size_aligned(block, 4 * n, 128));
    ENDS(n, mi_free(got(mi_malloc_aligned_at(n, 64, 8), n)));
    ENDS(n, mi_free_aligned(got(mi_zalloc_aligned(n, 64), n), 64));
    ENDS(2 * n, mi_free(got(mi_calloc_aligned(2, n, 64), 2 * n)));
    ENDS(n, mi_free(got(mi_memalign(64, n), n)));
    if (mi_posix_memalign(&block, 64, n) != 0)
        abort();
    ENDS(n, mi_free(got(block, n)));
    ENDS(n, mi_free(got(mi_aligned_alloc(64, n), n)));
    ENDS(n, mi_free(got(mi_valloc(n), n)));
    ENDS(n, mi_free(got(mi_pvalloc(n), n)));
    ENDS(n, free(got(mi_new_aligned(n, 64), n)));
    ENDS(n, mi_free(got(mi_new_nothrow(n), n)));
    ENDS(n, mi_free(got(mi_new_aligned_nothrow(n, 64), n)));
    block = got(mi_new(n), n);
    block = moved(mi_new_realloc(block, 2 * n), n, 2 * n);
    block = moved(mi_new_reallocn(block, 3, n), 2 * n, 3 * n);
    ENDS(3 * n, mi_free(block));
    ENDS(2 * n, mi_free(got(mi_new_n(2, n), 2 * n)));
    void *heap = mi_heap_get_default();
    block = got(mi_heap_malloc(heap, n), n);
    block = moved(mi_heap_realloc(heap, block, 3 * n), n, 3 * n);
    ENDS(3 * n, mi_free(block));
    ENDS(n, mi_free(got(mi_heap_zalloc(heap, n), n)));
    ENDS(2 * n, mi_free(got(mi_heap_calloc(heap, 2, n), 2 * n)));
    ENDS(n, mi_free(got(mi_heap_malloc_aligned(heap, n, 64), n)));
    failed(mi_malloc(impossible));
    mi_free(nothing);
}

static void tcmalloc_functions(size_t n)
{
    void *block = got(tc_malloc(n), n);
    block = moved(tc_realloc(block, 5 * n), n, 5 * n);
    ENDS(5 * n, tc_free_sized(block, 5 * n));
    ENDS(n, tc_free(got(tc_malloc_skip_new_handler(n), n)));
    ENDS(2 * n, tc_cfree(got(tc_calloc(2, n), 2 * n)));
    ENDS(n, tc_free(got(tc_memalign(64, n), n)));
    if (tc_posix_memalign(&block, 64, n) != 0)
        abort();
    ENDS(n, tc_free(got(block, n)));
    ENDS(n, tc_free(got(tc_valloc(n), n)));
    ENDS(n, tc_free(got(tc_pvalloc(n), n)));
    ENDS(n, tc_delete(got(tc_new(n), n)));
    ENDS(n, tc_deletearray(got(tc_newarray(n), n)));
    failed(tc_malloc(impossible));
}

SEPARATE static void work(uint64_t rounds)
{
    for (uint64_t round = 0; round < rounds; round++) {
        size_t n = 64 * (1 + round % 40);
        c_functions(n);
        if (mallocx != NULL && rallocx != NULL && dallocx != NULL)
            jemalloc_functions(n);
        if (mi_malloc != NULL)
            mimalloc_functions(n);
        if (tc_malloc != NULL)
            tcmalloc_functions(n);
        if (round % 10 == 0)
            KEEP(got(malloc(n + 1), n + 1));
    }
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t rounds = number(argc, argv, 1, 100);
    begin(options);
    work(rounds);
    say_counts(&counts);
    const char *names = mallocx != NULL && rallocx != NULL ? "jemalloc" : mi_malloc != NULL ? "mimalloc" : tc_malloc != NULL ? "tcmalloc" : "none";
    say("names %s", names);
    finish(options);
    return 0;
}
