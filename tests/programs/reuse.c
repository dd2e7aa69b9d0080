/*
 * reuse [lifetimes=5] [size=64]: several lifetimes at one address. Each line
 *   life <address> <size> <how it began> <how it ended>
 * is one record that a trace must have, in this order. Ends with status 1 if the allocator did not reuse addresses
 * as this test needs.
 */
#include "common.h"

static struct counts counts;

static void life(const void *address, size_t size, const char *began, const char *ended)
{
    say("life %p %zu %s %s", address, size, began, ended);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t lifetimes = number(argc, argv, 1, 5);
    size_t size = number(argc, argv, 2, 64);

    begin(options);
    /* The thread's cache is last in, first out, so equal sizes get the same block again. */
    uintptr_t first = 0;
    for (uint64_t done = 0; done < lifetimes; done++) {
        void *block = malloc(size);
        KEEP(block);
        if (first != 0 && (uintptr_t)block != first)
            return 1;
        first = (uintptr_t)block;
        free(block);
        life(block, size, "malloc", "free");
        count_allocation(&counts, size);
        count_free(&counts, size);
    }

    /* Same size, then one that still fits the block, then moved because a neighbour is in the way. */
    static const size_t sizes[] = {200, 200, 204, 100000};
    void *block = malloc(sizes[0]);
    void *neighbour = malloc(300);
    KEEP(neighbour);
    count_allocation(&counts, sizes[0]);
    count_allocation(&counts, 300);
    const char *began = "malloc";
    uint64_t in_place = 0, moved = 0;
    for (unsigned step = 1; step < sizeof sizes / sizeof *sizes; step++) {
        uintptr_t old = (uintptr_t)block;
        block = realloc(block, sizes[step]);
        KEEP(block);
        if ((uintptr_t)block == old)
            in_place++;
        else
            moved++;
        life((void *)old, sizes[step - 1], began, "realloc");
        count_reallocation(&counts, sizes[step - 1], sizes[step]);
        began = "realloc";
    }
    if (in_place != 2 || moved != 1)
        return 1;

    /* A realloc that is a free; then a mapping that the kernel may move. */
    void *none = realloc(block, 0);
    KEEP(none);
    life(block, 100000, "realloc", "realloc");
    count_free(&counts, 100000);
    void *mapping = malloc(1 << 20);
    KEEP(mapping);
    void *larger = realloc(mapping, 8 << 20);
    KEEP(larger);
    life(mapping, 1 << 20, "malloc", "realloc");
    free(larger);
    life(larger, 8 << 20, "realloc", "free");
    count_allocation(&counts, 1 << 20);
    count_reallocation(&counts, 1 << 20, 8 << 20);
    count_free(&counts, 8 << 20);
    free(neighbour);
    life(neighbour, 300, "malloc", "free");
    count_free(&counts, 300);

    say("address 0x%llx", (unsigned long long)first);
    say_number("lifetimes", lifetimes);
    say_number("in_place", in_place);
    say_counts(&counts);
    finish(options);
    return 0;
}
