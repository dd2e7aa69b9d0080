/* A library for stacks_hard.c, which calls it through lazily bound entries of its procedure linkage table. */
#include "common.h"

typedef void *(*allocating)(size_t size);

SEPARATE void *library_calls(allocating function, size_t size)
{
    void *block = function(size);
    KEEP(block);
    return block;
}

void *chosen_block;

static size_t chosen(size_t size)
{
    return size + 1;
}

/* The loader calls this when library_chosen is called for the first time, to find out which function that is. */
__attribute__((used)) static size_t (*choose(void))(size_t)
{
    chosen_block = malloc(4131);
    KEEP(chosen_block);
    return chosen;
}

size_t library_chosen(size_t size) __attribute__((ifunc("choose")));

/* So that malloc is bound already when the loader asks. */
SEPARATE void *library_warms_up(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}
