/*
 * foreign [rounds=100] [children=2]: gives blocks of one allocator to another one. Its pool takes what is malloc's, too,
 * so this does no harm. Where it is linked to mimalloc or jemalloc behind the C library, children give blocks to them and
 * back, one each, whatever becomes of these. What it does else, with all of them, is as it should be.
 */
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "common.h"

enum { ARENA_BYTES = 1 << 20, UNIT = 64 };

static union {
    char bytes[ARENA_BYTES];
    max_align_t align;
} arena;
static size_t used;
static struct unused {
    struct unused *next;
} *unused;

extern void *mi_malloc(size_t) __attribute__((weak));
extern void mi_free(void *) __attribute__((weak));
extern void *mallocx(size_t, int) __attribute__((weak));
extern void dallocx(void *, int) __attribute__((weak));

/* Blocks of at most UNIT bytes. */
SEPARATE void *pool_alloc(size_t size)
{
    if (size > UNIT)
        return NULL;
    if (unused != NULL) {
        struct unused *block = unused;
        unused = block->next;
        return block;
    }
    if (used == ARENA_BYTES)
        return NULL;
    used += UNIT;
    return arena.bytes + used - UNIT;
}

static int is_of_pool(const void *block)
{
    return (uintptr_t)block - (uintptr_t)arena.bytes < ARENA_BYTES;
}

SEPARATE void pool_free(void *block)
{
    if (block == NULL)
        return;
    if (!is_of_pool(block)) {
        free(block);
        return;
    }
    struct unused *of_pool = block;
    of_pool->next = unused;
    unused = of_pool;
}

SEPARATE void *pool_resize(void *block, size_t size)
{
    void *other = pool_alloc(size);
    if (other != NULL)
        pool_free(block);
    return other;
}

/* What is right, whoever gives the block. */
SEPARATE static void as_it_should_be(void)
{
    void *block = malloc(100);
    KEEP(block);
    block = realloc(block, 200);
    KEEP(block);
    free(block);
    block = calloc(3, 5);
    KEEP(block);
    free(block);
    char *text = strdup("of the C library");
    KEEP(text);
    free(text);
    block = pool_alloc(20);
    KEEP(block);
    block = pool_resize(block, 30);
    KEEP(block);
    pool_free(block);
    if (mi_malloc != NULL) {
        block = mi_malloc(40);
        KEEP(block);
        mi_free(block);
    }
    if (mallocx != NULL) {
        block = mallocx(50, 0);
        KEEP(block);
        dallocx(block, 0);
    }
}

SEPARATE static void to_the_pool(void)
{
    void *block = malloc(48);
    KEEP(block);
    pool_free(block);
}

SEPARATE static void resized_by_the_pool(void)
{
    void *block = malloc(56);
    KEEP(block);
    block = pool_resize(block, 60);
    KEEP(block);
    pool_free(block);
}

SEPARATE static void to_the_other(void)
{
    void *block = malloc(70);
    KEEP(block);
    if (mi_free != NULL)
        mi_free(block);
    else
        dallocx(block, 0);
}

SEPARATE static void from_the_other(void)
{
    void *block = mi_malloc != NULL ? mi_malloc(80) : mallocx(80, 0);
    KEEP(block);
    free(block);
}

static void in_a_child(void (*work)(void))
{
    pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        close(STDERR_FILENO);
        alarm(10);
        work();
        _exit(0);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t rounds = number(argc, argv, 1, 100), children = number(argc, argv, 2, 2);
    int has_other = mi_malloc != NULL || mallocx != NULL;
    begin(options);
    for (uint64_t round = 0; round < rounds; round++) {
        as_it_should_be();
        to_the_pool();
        if (round % 2 == 0)
            resized_by_the_pool();
    }
    for (uint64_t child = 0; has_other && child < children; child++) {
        in_a_child(to_the_other);
        in_a_child(from_the_other);
        in_a_child(as_it_should_be);
    }
    say_number("to_the_pool", rounds);
    say_number("resized_by_the_pool", (rounds + 1) / 2);
    say_number("to_the_other", has_other ? children : 0);
    say_number("from_the_other", has_other ? children : 0);
    finish(options);
    return 0;
}
