/*
 * resident [before=64] [after=32] [pause_ms=1500]: has so many blocks of 1 MiB and touches them before it is ready;
 * then, at a line, it allocates and touches so many more, frees every other of the first, is idle for a while, and
 * prints its counts from the line on.
 */
#include "common.h"

#include <malloc.h>

enum { BLOCK = 1 << 20, MOST = 4096 };

static char *before[MOST];

SEPARATE static char *touched(void)
{
    char *block = malloc(BLOCK);
    if (block == NULL)
        _exit(3);
    memset(block, 1, BLOCK);
    KEEP(block);
    return block;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t old = number(argc, argv, 1, 64), more = number(argc, argv, 2, 32);
    uint64_t pause_ms = number(argc, argv, 3, 1500);
    if (old > MOST)
        return 2;
    /* Each block has a mapping of its own, which goes when it is freed. */
    mallopt(M_MMAP_THRESHOLD, BLOCK / 2);
    for (uint64_t index = 0; index < old; index++)
        before[index] = touched();
    begin(options);

    struct counts counts = {0};
    for (uint64_t index = 0; index < more; index++) {
        touched();
        count_allocation(&counts, BLOCK);
    }
    for (uint64_t index = 0; index < old; index += 2)
        free(before[index]);
    struct timespec pause = {.tv_sec = pause_ms / 1000, .tv_nsec = pause_ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
    say_counts(&counts);
    say_number("unknown_frees", (old + 1) / 2);
    finish(options);
    return 0;
}
