/*
 * lifetime [microseconds…, default 1 10 100 1000 10000 100000 2000000]: one block per number, kept about so long. Each
 *   block <address> <size> <before alloc> <after alloc> <before free> <after free>    (CLOCK_MONOTONIC, ns)
 * bounds the true lifetime from both sides: at least before free - after alloc, at most after free - before alloc.
 */
#include "common.h"

enum { MOST_BLOCKS = 256 };

static struct {
    void *address;
    size_t size;
    uint64_t before_alloc, after_alloc, before_free, after_free;
} blocks[MOST_BLOCKS];

int main(int argc, char **argv)
{
    static const uint64_t usual[] = {1, 10, 100, 1000, 10000, 100000, 2000000};
    struct options options = take_options(&argc, argv);
    unsigned count = argc > 1 ? (unsigned)argc - 1 : sizeof usual / sizeof *usual;
    if (count > MOST_BLOCKS)
        return 2;

    begin(options);
    struct counts counts = {0};
    for (unsigned index = 0; index < count; index++) {
        uint64_t microseconds = argc > 1 ? number(argc, argv, index + 1, 0) : usual[index];
        struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
        size_t size = 100 + index; /* sizes differ, so a block can be told by its size too */
        blocks[index].before_alloc = now_ns();
        void *block = malloc(size);
        blocks[index].after_alloc = now_ns();
        KEEP(block);
        while (nanosleep(&left, &left) != 0 && errno == EINTR)
            ;
        blocks[index].before_free = now_ns();
        free(block);
        blocks[index].after_free = now_ns();
        blocks[index].address = block;
        blocks[index].size = size;
        count_allocation(&counts, size);
        count_free(&counts, size);
    }
    for (unsigned index = 0; index < count; index++)
        say("block %p %zu %llu %llu %llu %llu", blocks[index].address, blocks[index].size,
            (unsigned long long)blocks[index].before_alloc, (unsigned long long)blocks[index].after_alloc,
            (unsigned long long)blocks[index].before_free, (unsigned long long)blocks[index].after_free);
    say_counts(&counts);
    finish(options);
    return 0;
}
