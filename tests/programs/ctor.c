/*
 * libctor.so: allocates before main begins and frees half of that after main has ended, to check that a trace sees a
 * process from its first instruction to its last.
 */
#include "common.h"

enum { BLOCKS = 40, SIZE = 152 };

static void *blocks[BLOCKS];

SEPARATE void ctor_allocate(void)
{
    for (unsigned index = 0; index < BLOCKS; index++)
        blocks[index] = malloc(SIZE);
}

__attribute__((constructor)) static void before_main(void)
{
    ctor_allocate();
}

SEPARATE void ctor_free_half(void)
{
    for (unsigned index = 0; index < BLOCKS / 2; index++)
        free(blocks[index]);
}

__attribute__((destructor)) static void after_main(void)
{
    ctor_free_half();
}

/* What the two did or will have done. */
void ctor_counts(struct counts *counts)
{
    for (unsigned index = 0; index < BLOCKS; index++) {
        count_allocation(counts, SIZE);
        if (index < BLOCKS / 2)
            count_free(counts, SIZE);
    }
}
