/*
 * A library for copies.c. Its constructor allocates at once, through functions with frames of different kinds: small, large,
 * of a size that only runtime knows, realigned, and with a register pushed. The large one has pages that nobody has
 * ever touched.
 */
#include "common.h"
#include <alloca.h>

const unsigned copies_count = 200;
const unsigned copies_bytes = 5501;

SEPARATE static void *copies_small(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void *copies_large(size_t size)
{
    volatile char space[20000];
    space[size % sizeof space] = 1;
    void *block = copies_small(size);
    KEEP(space);
    return block;
}

SEPARATE static void *copies_unknown(size_t size, size_t more)
{
    char *space = alloca(16 + more % 512);
    KEEP(space);
    void *block = copies_large(size);
    KEEP(space);
    return block;
}

SEPARATE static void *copies_realigned(size_t size, size_t more)
{
    volatile _Alignas(64) char space[128];
    space[more % sizeof space] = 1;
    void *block = copies_unknown(size, more);
    KEEP(space);
    return block;
}

SEPARATE static void *copies_both(size_t size, size_t more)
{
    volatile _Alignas(128) char space[256];
    char *other = alloca(16 + more % 256);
    space[more % sizeof space] = 1;
    KEEP(other);
    void *block = copies_realigned(size, more);
    KEEP(space);
    KEEP(other);
    return block;
}

__attribute__((constructor)) SEPARATE static void copies_constructor(void)
{
    for (unsigned done = 0; done < copies_count; done++) {
        void *block = copies_both(copies_bytes, done * 37);
        KEEP(block);
    }
}
