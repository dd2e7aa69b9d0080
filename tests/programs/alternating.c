/*
 * alternating [most=200]: at each depth of a recursion up to that, blocks from two functions in turn whose stacks differ in
 * nothing else: `left` and `right` say how many each has allocated.
 */
#include "common.h"

enum { IN_A_ROW = 4, TURNS = 3 };

SEPARATE static void *allocate(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void left(size_t size)
{
    void *block = allocate(size);
    KEEP(block);
    free(block);
}

SEPARATE static void right(size_t size)
{
    void *block = allocate(size);
    KEEP(block);
    free(block);
}

SEPARATE static void descend(uint64_t depth)
{
    if (depth > 0) {
        descend(depth - 1);
        KEEP(depth);
        return;
    }
    for (int turn = 0; turn < TURNS; turn++) {
        for (int call = 0; call < IN_A_ROW; call++)
            left(64);
        for (int call = 0; call < IN_A_ROW; call++)
            right(64);
    }
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t most = number(argc, argv, 1, 200);
    begin(options);
    for (uint64_t depth = 0; depth <= most; depth++)
        descend(depth);
    say_number("left", (most + 1) * TURNS * IN_A_ROW);
    say_number("right", (most + 1) * TURNS * IN_A_ROW);
    finish(options);
    return 0;
}
