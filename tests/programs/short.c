/*
 * short [rounds=20000] [threads=50]: rounds are done by so many threads one after the other, each of which has the stack of
 * the one before it. In a round two blocks are allocated and then both freed: the second one is temporary, and the first
 * one is not.
 */
#include "common.h"
#include "threads.h"

static uint64_t rounds;

SEPARATE static void *first(void)
{
    void *block = malloc(100);
    KEEP(block);
    return block;
}

SEPARATE static void *second(void)
{
    void *block = malloc(200);
    KEEP(block);
    return block;
}

static void *run(void *unused)
{
    for (uint64_t round = 0; round < rounds; round++) {
        void *a = first(), *b = second();
        free(a);
        free(b);
    }
    return unused;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    rounds = number(argc, argv, 1, 20000);
    uint64_t threads = number(argc, argv, 2, 50);
    begin(options);
    for (uint64_t thread = 0; thread < threads; thread++) {
        pthread_t handle;
        start_thread(&handle, run, NULL);
        pthread_join(handle, NULL);
    }
    say_number("rounds", rounds * threads);
    finish(options);
    return 0;
}
