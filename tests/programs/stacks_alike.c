/*
 * stacks_alike [count=700]: blocks allocated at one place with one stack pointer, for callers that differ in nothing
 * but their address, some times each before the other has its turn.
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
    say_stack(50001, lefts, "shared <- left <- " IN_MAIN);
    say_stack(50002, count - lefts, "shared <- right <- " IN_MAIN);
    finish(options);
    return 0;
}
