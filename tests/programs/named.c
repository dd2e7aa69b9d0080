/*
 * named [threads=4] [hold=0]: threads with names, of which number n allocates 100 n blocks of 10 n bytes and then frees
 * 10 n of the one before it. With `hold` 1 they are there until the program ends.
 *
 * Prints `thread <tid> <name> <allocations> <bytes> <frees> <freed bytes> <live blocks> <live bytes>`.
 */
#define _GNU_SOURCE
#include "common.h"
#include "threads.h"

#include <sys/syscall.h>

enum { MOST_NAMED = 16, BLOCKS = 100, FREED = 10, SIZE = 10 };

static void *blocks[MOST_NAMED + 1][BLOCKS * MOST_NAMED];
static uint64_t threads, hold;
static pthread_barrier_t allocated, done, ended;

static void *run(void *argument)
{
    uint64_t n = (uint64_t)(uintptr_t)argument;
    char name[16];
    snprintf(name, sizeof name, "worker-%u", (unsigned)n);
    if (pthread_setname_np(pthread_self(), name) != 0)
        abort();
    for (uint64_t block = 0; block < BLOCKS * n; block++)
        blocks[n][block] = malloc(SIZE * n);
    pthread_barrier_wait(&allocated);
    uint64_t frees = n > 1 ? FREED * n : 0;
    for (uint64_t block = 0; block < frees; block++)
        free(blocks[n - 1][block]);
    uint64_t live = BLOCKS * n - (n < threads ? FREED * (n + 1) : 0);
    say("thread %ld %s %llu %llu %llu %llu %llu %llu", syscall(SYS_gettid), name, (unsigned long long)(BLOCKS * n),
        (unsigned long long)(BLOCKS * n * SIZE * n), (unsigned long long)frees,
        (unsigned long long)(frees * SIZE * (n - 1)), (unsigned long long)live, (unsigned long long)(live * SIZE * n));
    pthread_barrier_wait(&done);
    if (hold)
        pthread_barrier_wait(&ended);
    return NULL;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    threads = number(argc, argv, 1, 4);
    hold = number(argc, argv, 2, 0);
    if (threads == 0 || threads > MOST_NAMED)
        return 2;

    begin(options);
    pthread_barrier_init(&allocated, NULL, threads);
    pthread_barrier_init(&done, NULL, threads + 1);
    pthread_barrier_init(&ended, NULL, threads + 1);
    pthread_t handles[MOST_NAMED];
    for (uint64_t n = 1; n <= threads; n++)
        start_thread(&handles[n - 1], run, (void *)(uintptr_t)n);
    pthread_barrier_wait(&done);
    if (!hold)
        for (uint64_t n = 0; n < threads; n++)
            pthread_join(handles[n], NULL);
    finish(options);
    return 0;
}
