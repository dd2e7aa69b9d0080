/*
 * stacks_arena [blocks=300] [failing=20] [threads=3]: blocks that no thread's cache has, asked of malloc, calloc, realloc and
 * aligned_alloc, and calls of malloc for more than there can be, first while there is one thread and then in others, which have
 * arenas of their own. Prints besides
 *   failed_allocations <calls that gave no block>
 */
#define _GNU_SOURCE
#include "stacks.h"
#include <pthread.h>

enum { BY_MALLOC = 7101, BY_CALLOC = 7203, BY_REALLOC = 7305, ALIGNED = 7424, IN_THREADS = 20, ALIGNMENT = 64, STEP = 8 };
/* More than an address space has, and not more than malloc would look for. */
static const size_t TOO_LARGE = SIZE_MAX / 4;

static uint64_t blocks, failing, failed;

/* No two of these are called with the same size, so that a cache has none. */
SEPARATE static void *by_malloc(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void *by_calloc(size_t size)
{
    void *block = calloc(1, size);
    KEEP(block);
    return block;
}

SEPARATE static void *by_realloc(size_t size)
{
    void *block = realloc(by_malloc(STEP), size);
    KEEP(block);
    return block;
}

SEPARATE static void *aligned(size_t size)
{
    void *block = aligned_alloc(ALIGNMENT, size);
    KEEP(block);
    return block;
}

SEPARATE static void fail(void)
{
    for (uint64_t call = 0; call < failing; call++) {
        void *block = malloc(TOO_LARGE);
        KEEP(block);
        if (block == NULL)
            __atomic_fetch_add(&failed, 1, __ATOMIC_RELAXED);
    }
}

/* The blocks are never freed: each has to be found anew. */
SEPARATE static void *work(void *first_size)
{
    size_t more = (size_t)(uintptr_t)first_size;
    for (uint64_t block = 0; block < blocks; block++) {
        KEEP(by_malloc(BY_MALLOC + more));
        KEEP(by_calloc(BY_CALLOC + more));
        KEEP(by_realloc(BY_REALLOC + more));
        KEEP(aligned(ALIGNED + ALIGNMENT * more));
    }
    fail();
    return NULL;
}

static void say_all(size_t more, uint64_t count, const char *begin)
{
    char chain[256];
    const struct { size_t size; const char *function; } kinds[] = {
        { BY_MALLOC + more, "by_malloc" },
        { BY_CALLOC + more, "by_calloc" },
        { BY_REALLOC + more, "by_realloc" },
        { ALIGNED + ALIGNMENT * more, "aligned" },
    };
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        snprintf(chain, sizeof chain, "%s <- work <- %s", kinds[kind].function, begin);
        say_stack(kinds[kind].size, count, chain);
    }
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    blocks = number(argc, argv, 1, 300);
    failing = number(argc, argv, 2, 20);
    uint64_t threads = number(argc, argv, 3, 3);
    begin(options);
    KEEP(work(NULL));
    for (uint64_t thread = 0; thread < threads; thread++) {
        pthread_t started;
        if (pthread_create(&started, NULL, work, (void *)(uintptr_t)IN_THREADS) != 0
            || pthread_join(started, NULL) != 0)
            return 1;
    }
    say_all(0, blocks, IN_MAIN);
    say_all(IN_THREADS, blocks * threads, IN_THREAD);
    say_number("failed_allocations", failed);
    finish(options);
    return 0;
}
