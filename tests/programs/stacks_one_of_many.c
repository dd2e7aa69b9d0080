/* One of the libraries for stacks_many.c: its function's name and frame depend on the number that stands for 777. */
#include "common.h"

typedef void *(*through)(const void *const *functions, size_t size);

void *through_777(const void *const *functions, size_t size)
{
    void *block = ((through)(uintptr_t)functions[0])(functions + 1, size);
    KEEP(block);
    return block;
}
