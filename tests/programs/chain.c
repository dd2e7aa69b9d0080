/*
 * chain (C) [count=3] [depth=200]: allocations from known chains of calls. Each line
 *   chain <size> <count> <function> @<line>[ inlined] <- <function> @<line> <- …
 * names a size that only this chain allocates, innermost frame (the allocator's caller) first, each with the line of
 * its call; `inlined` marks a frame that exists only in the debug information. All blocks stay alive.
 *   deep <size> <frames of descend>       is one allocation below a recursion.
 */
#include "common.h"

enum { CHAIN = 1001, INLINED = 2002, INLINED_OUTSIDE = 3003, DEEP = 4004, ZEROED = 5005, RESIZED = 6006 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The lines of the calls, each set on the line it names. */
static int in_allocate, in_gamma, in_beta, in_alpha, in_main_alpha;
static int in_inner, in_outer, in_delta, in_main_delta;
static int in_relay, in_epsilon, in_main_epsilon;
static int in_zeroed, in_main_zeroed, in_resized, in_main_resized;

SEPARATE static void *allocate(size_t size)
{
    in_allocate = __LINE__; void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void *gamma_step(size_t size)
{
    in_gamma = __LINE__; void *block = allocate(size);
    KEEP(block);
    return block;
}

SEPARATE static void *beta_step(size_t size)
{
    in_beta = __LINE__; void *block = gamma_step(size);
    KEEP(block);
    return block;
}

SEPARATE static void *alpha_step(size_t size)
{
    in_alpha = __LINE__; void *block = beta_step(size);
    KEEP(block);
    return block;
}

/* Inlined frames innermost: the allocator's caller in the symbol table is delta_step. */
ALWAYS_INLINE void *inner_inline(size_t size)
{
    in_inner = __LINE__; void *block = malloc(size);
    KEEP(block);
    return block;
}

ALWAYS_INLINE void *outer_inline(size_t size)
{
    in_outer = __LINE__; void *block = inner_inline(size);
    KEEP(block);
    return block;
}

SEPARATE static void *delta_step(size_t size)
{
    in_delta = __LINE__; void *block = outer_inline(size);
    KEEP(block);
    return block;
}

/* An inlined frame in the middle. */
ALWAYS_INLINE void *relay_inline(size_t size)
{
    in_relay = __LINE__; void *block = allocate(size);
    KEEP(block);
    return block;
}

SEPARATE static void *epsilon_step(size_t size)
{
    in_epsilon = __LINE__; void *block = relay_inline(size);
    KEEP(block);
    return block;
}

SEPARATE static void *zeroed_step(size_t size)
{
    in_zeroed = __LINE__; void *block = calloc(7, size / 7);
    KEEP(block);
    return block;
}

SEPARATE static void *resized_step(void *block, size_t size)
{
    in_resized = __LINE__; void *resized = realloc(block, size);
    KEEP(resized);
    return resized;
}

SEPARATE static void *descend(uint64_t depth, size_t size)
{
    void *block = depth <= 1 ? malloc(size) : descend(depth - 1, size);
    KEEP(block);
    return block;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 3);
    uint64_t depth = number(argc, argv, 2, 200);

    begin(options);
    struct counts counts = {0};
    for (uint64_t done = 0; done < count; done++) {
        in_main_alpha = __LINE__; void *first = alpha_step(CHAIN);
        in_main_delta = __LINE__; void *second = delta_step(INLINED);
        in_main_epsilon = __LINE__; void *third = epsilon_step(INLINED_OUTSIDE);
        in_main_zeroed = __LINE__; void *fourth = zeroed_step(ZEROED);
        void *old = malloc(RESIZED / 4); /* a size of its own */
        in_main_resized = __LINE__; void *fifth = resized_step(old, RESIZED);
        KEEP(first);
        KEEP(second);
        KEEP(third);
        KEEP(fourth);
        KEEP(fifth);
        count_allocation(&counts, CHAIN);
        count_allocation(&counts, INLINED);
        count_allocation(&counts, INLINED_OUTSIDE);
        count_allocation(&counts, ZEROED);
        count_allocation(&counts, RESIZED / 4);
        count_reallocation(&counts, RESIZED / 4, RESIZED);
    }
    void *deep = descend(depth, DEEP);
    KEEP(deep);
    count_allocation(&counts, DEEP);

    unsigned long long times = count;
    say("chain %d %llu allocate @%d <- gamma_step @%d <- beta_step @%d <- alpha_step @%d <- main @%d", CHAIN, times,
        in_allocate, in_gamma, in_beta, in_alpha, in_main_alpha);
    say("chain %d %llu inner_inline @%d inlined <- outer_inline @%d inlined <- delta_step @%d <- main @%d", INLINED,
        times, in_inner, in_outer, in_delta, in_main_delta);
    say("chain %d %llu allocate @%d <- relay_inline @%d inlined <- epsilon_step @%d <- main @%d", INLINED_OUTSIDE, times,
        in_allocate, in_relay, in_epsilon, in_main_epsilon);
    say("chain %d %llu zeroed_step @%d <- main @%d", ZEROED, times, in_zeroed, in_main_zeroed);
    say("chain %d %llu resized_step @%d <- main @%d", RESIZED, times, in_resized, in_main_resized);
    say("deep %d %llu", DEEP, (unsigned long long)(depth ? depth : 1));
    say_counts(&counts);
    finish(options);
    return 0;
}
