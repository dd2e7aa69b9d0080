/*
 * A library for stacks_dlopen.c, in two that take up the same memory and have different code at the same addresses:
 * -DPLUGIN=1 with small frames, -DPLUGIN=2 with larger ones.
 */
#include "common.h"

#if PLUGIN == 1
enum { CONSTRUCTED = 5101, WORKED = 5102, DESTROYED = 5103, FRAME_BYTES = 24 };
#define IN_PLUGIN(name) first_##name
#else
enum { CONSTRUCTED = 5201, WORKED = 5202, DESTROYED = 5203, FRAME_BYTES = 1512 };
#define IN_PLUGIN(name) second_##name
#endif

/* Each function's frame has another size than the same function's of the other library. */
SEPARATE static void *IN_PLUGIN(inner)(size_t size)
{
    volatile char space[FRAME_BYTES];
    space[size % sizeof space] = 1;
    void *block = malloc(size);
    KEEP(block);
    KEEP(space);
    return block;
}

#if PLUGIN == 2
SEPARATE static void *IN_PLUGIN(between)(size_t size)
{
    volatile char space[FRAME_BYTES * 2];
    space[size % sizeof space] = 1;
    void *block = IN_PLUGIN(inner)(size);
    KEEP(block);
    KEEP(space);
    return block;
}
#else
#define first_between first_inner
#endif

SEPARATE static void *IN_PLUGIN(outer)(size_t size)
{
    volatile char space[FRAME_BYTES + 72];
    space[size % sizeof space] = 1;
    void *block = IN_PLUGIN(between)(size);
    KEEP(block);
    KEEP(space);
    return block;
}

/* Under one name in both. */
void plugin_works(unsigned long long times)
{
    for (unsigned long long done = 0; done < times; done++) {
        void *block = IN_PLUGIN(outer)(WORKED);
        KEEP(block);
        free(block);
    }
}

__attribute__((constructor)) SEPARATE static void IN_PLUGIN(constructor)(void)
{
    free(IN_PLUGIN(inner)(CONSTRUCTED));
    KEEP(&IN_PLUGIN(inner));
}

__attribute__((destructor)) SEPARATE static void IN_PLUGIN(destructor)(void)
{
    free(IN_PLUGIN(inner)(DESTROYED));
    KEEP(&IN_PLUGIN(inner));
}
