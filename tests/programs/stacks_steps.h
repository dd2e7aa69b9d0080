/*
 * 120 functions of C, step_000 to step_119, each with a frame of its own kind: few or many registers saved, arrays,
 * a size known at run time only, a realigned stack. descend(depth, size) goes through the lowest `depth` of them.
 */
#ifndef STACKS_STEPS_H
#define STACKS_STEPS_H

#include "stacks.h"
#include <alloca.h>

enum { STEPS = 120 };
typedef void *(*step_function)(unsigned level, size_t size);
static const step_function steps[STEPS];
static volatile unsigned long step_values[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static inline __attribute__((always_inline)) void *step_below(unsigned level, size_t size)
{
    return level == 0 ? malloc(size) : steps[level - 1](level - 1, size);
}

#define STEP(name) SEPARATE static void *name(unsigned level, size_t size)

#define PLAIN(name)                            \
    STEP(name)                                 \
    {                                          \
        void *block = step_below(level, size); \
        KEEP(block);                           \
        return block;                          \
    }

#define ARRAY(name, bytes)                     \
    STEP(name)                                 \
    {                                          \
        volatile char space[bytes];            \
        space[level % sizeof space] = 1;       \
        void *block = step_below(level, size); \
        KEEP(block);                           \
        KEEP(space);                           \
        return block;                          \
    }

/* More values live across the call than registers are saved by the called function. */
#define SAVING(name)                                                                                      \
    STEP(name)                                                                                            \
    {                                                                                                     \
        unsigned long a = step_values[0], b = step_values[1], c = step_values[2], d = step_values[3];     \
        unsigned long e = step_values[4], f = step_values[5], g = step_values[6], h = step_values[7];     \
        void *block = step_below(level, size);                                                            \
        KEEP(block);                                                                                      \
        step_values[0] = (a ^ b ^ c ^ d ^ e ^ f ^ g ^ h) & 7;                                             \
        return block;                                                                                     \
    }

#define VARIABLE(name)                                                       \
    STEP(name)                                                               \
    {                                                                        \
        volatile char *space = (volatile char *)alloca(16 + 8 * (level % 7)); \
        space[level % 7] = 1;                                                \
        void *block = step_below(level, size);                               \
        KEEP(block);                                                         \
        KEEP(space);                                                         \
        return block;                                                        \
    }

#define REALIGNED(name)                                         \
    STEP(name)                                                  \
    {                                                           \
        volatile char space[96] __attribute__((aligned(64)));   \
        space[level % sizeof space] = 1;                        \
        void *block = step_below(level, size);                  \
        KEEP(block);                                            \
        KEEP(space);                                            \
        return block;                                           \
    }

#define TEN(tens)               \
    PLAIN(step_##tens##0)       \
    ARRAY(step_##tens##1, 40)   \
    SAVING(step_##tens##2)      \
    PLAIN(step_##tens##3)       \
    VARIABLE(step_##tens##4)    \
    ARRAY(step_##tens##5, 1200) \
    PLAIN(step_##tens##6)       \
    SAVING(step_##tens##7)      \
    REALIGNED(step_##tens##8)   \
    ARRAY(step_##tens##9, 200)

TEN(00) TEN(01) TEN(02) TEN(03) TEN(04) TEN(05) TEN(06) TEN(07) TEN(08) TEN(09) TEN(10) TEN(11)

#define NAME_TEN(tens)                                                                                          \
    step_##tens##0, step_##tens##1, step_##tens##2, step_##tens##3, step_##tens##4, step_##tens##5,             \
        step_##tens##6, step_##tens##7, step_##tens##8, step_##tens##9

static const step_function steps[STEPS] = {
    NAME_TEN(00), NAME_TEN(01), NAME_TEN(02), NAME_TEN(03), NAME_TEN(04), NAME_TEN(05),
    NAME_TEN(06), NAME_TEN(07), NAME_TEN(08), NAME_TEN(09), NAME_TEN(10), NAME_TEN(11),
};

static inline __attribute__((always_inline)) void *descend(unsigned depth, size_t size)
{
    return steps[depth - 1](depth - 1, size);
}

/* The chain of descend(depth, …) called by `caller`. */
static inline void say_descent(size_t size, uint64_t count, unsigned depth, const char *caller)
{
    char chain[3500];
    size_t length = 0;
    for (unsigned level = 0; level < depth; level++)
        length += snprintf(chain + length, sizeof chain - length, "step_%03u <- ", level);
    snprintf(chain + length, sizeof chain - length, "%s", caller);
    say_stack(size, count, chain);
}

#endif
