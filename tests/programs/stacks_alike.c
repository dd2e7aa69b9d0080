/*
 * stacks_alike [count=700]: blocks allocated at one place with one stack pointer, for callers that differ in nothing
 * but their address, some times each before the other has its turn; and for callers of a function between, whose frame
 * is found by its frame pointer: where it lies is all that differs. The frame pointer is still in its register when
 * malloc returns, or was saved in between.
 */
#include "stacks.h"

SEPARATE static void *shared(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

#define CALLER(name)                      \
    SEPARATE static void name(size_t size) \
    {                                     \
        void *block = shared(size);       \
        KEEP(block);                      \
        free(block);                      \
        KEEP(size);                       \
    }
CALLER(left)
CALLER(right)

static volatile unsigned long sink;

/* Saves registers that its caller uses, the frame pointer among them. */
SEPARATE static void *saving(size_t size)
{
    unsigned long a = sink, b = sink, c = sink, d = sink;
    void *block = malloc(size);
    KEEP(block);
    sink = a ^ b ^ c ^ d;
    return block;
}

#define BETWEEN(name, by)                                            \
    SEPARATE static void name(size_t size, size_t space_bytes)       \
    {                                                                \
        volatile char space[space_bytes];                            \
        space[0] = 1;                                                \
        void *block = by(size);                                      \
        KEEP(block);                                                 \
        free(block);                                                 \
        KEEP(space);                                                 \
    }
BETWEEN(holding, shared)
BETWEEN(passing, saving)

SEPARATE static void near_end(size_t size, size_t space_bytes)
{
    if (size & 1)
        holding(size, space_bytes);
    else
        passing(size, space_bytes);
    KEEP(size);
}

SEPARATE static void far_from_end(size_t size, size_t space_bytes)
{
    volatile char space[128];
    space[0] = 1;
    if (size & 1)
        holding(size, space_bytes);
    else
        passing(size, space_bytes);
    KEEP(space);
}

/*
 * Among so many sizes, 16 bytes apart, there is one with which both frames end at one place. They are called from one place
 * too, and what the nearer one has left on the stack is still there, in the space of the other.
 */
enum { SPACES = 16, LARGE = 400 };
typedef void (*either)(size_t size, size_t space_bytes);
static either volatile callers[] = {near_end, near_end, near_end, far_from_end};

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 700), lefts = 0;

    begin(options);
    for (uint64_t call = 0; call < count; call++) {
        if (call % 7 < 3 || call % 5 == 0) {
            left(50001);
            lefts++;
        } else {
            right(50002);
        }
    }
    /* By turns, and of the functions between too, for each size. */
    uint64_t counts[4] = {0};
    for (uint64_t call = 0; call < count; call++) {
        unsigned is_far = call % 4 == 3, is_odd = call / 4 % 2;
        size_t space_bytes = is_far ? LARGE - 16 * (call / 8 % SPACES) : LARGE;
        callers[call % 4](50004 + 2 * is_far + is_odd, space_bytes);
        counts[2 * is_far + is_odd]++;
    }
    say_stack(50004, counts[0], "saving <- passing <- near_end <- " IN_MAIN);
    say_stack(50005, counts[1], "shared <- holding <- near_end <- " IN_MAIN);
    say_stack(50006, counts[2], "saving <- passing <- far_from_end <- " IN_MAIN);
    say_stack(50007, counts[3], "shared <- holding <- far_from_end <- " IN_MAIN);
    say_stack(50001, lefts, "shared <- left <- " IN_MAIN);
    say_stack(50002, count - lefts, "shared <- right <- " IN_MAIN);
    finish(options);
    return 0;
}
