/*
 * threads_exit [threads=8] [blocks=200]: threads that fill their tcache by freeing and then end, upon which glibc calls
 * free() once more on every cached block. Those calls are no frees: the figures are the program's own calls.
 * `cached` is the least number of such calls. Each thread makes the C library calloc one block as well.
 */
#include "common.h"
#include "threads.h"

enum { MOST_BLOCKS = 420, SIZES = 60 };

static uint64_t blocks;
static pthread_barrier_t start;

static size_t size_of(uint64_t index)
{
    return 24 + 16 * (index % SIZES); /* a tcache bin of its own for each, so at most 7 blocks per bin */
}

static void *work(void *unused)
{
    pthread_barrier_wait(&start);
    void *mine[MOST_BLOCKS];
    for (uint64_t index = 0; index < blocks; index++)
        mine[index] = malloc(size_of(index));
    for (uint64_t index = 0; index < blocks; index++)
        free(mine[index]);
    return unused;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t threads = number(argc, argv, 1, 8);
    blocks = number(argc, argv, 2, 200);
    if (threads == 0 || threads > MOST_THREADS || blocks > MOST_BLOCKS)
        return 2;

    begin(options);
    pthread_barrier_init(&start, NULL, threads);
    pthread_t handles[MOST_THREADS];
    struct counts counts = {0};
    for (uint64_t index = 0; index < threads; index++)
        start_thread(&handles[index], work, NULL);
    for (uint64_t index = 0; index < threads; index++)
        pthread_join(handles[index], NULL);
    for (uint64_t thread = 0; thread < threads; thread++)
        for (uint64_t index = 0; index < blocks; index++) {
            count_allocation(&counts, size_of(index));
            count_free(&counts, size_of(index));
        }
    say_counts(&counts);
    say_number("cached", threads * blocks);
    say_number("threads_created", threads);
    finish(options);
    return 0;
}
