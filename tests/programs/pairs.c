/*
 * pairs [count=1000000] [size=64] [threads=1]: malloc/free pairs in a tight loop, with nothing else in the timed part.
 * This is the loop by which the cost of a probe is measured.
 */
#include "common.h"
#include "threads.h"

static uint64_t count;
static size_t size;
static pthread_barrier_t start;
static uint64_t elapsed[MOST_THREADS];

static void run(uint64_t *elapsed_ns)
{
    uint64_t began = now_ns();
    for (uint64_t done = 0; done < count; done++) {
        void *block = malloc(size);
        KEEP(block);
        free(block);
    }
    *elapsed_ns = now_ns() - began;
}

static void *run_thread(void *elapsed_ns)
{
    pthread_barrier_wait(&start);
    run((uint64_t *)elapsed_ns);
    return NULL;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    count = number(argc, argv, 1, 1000000);
    size = number(argc, argv, 2, 64);
    uint64_t threads = number(argc, argv, 3, 1);
    if (count == 0 || threads == 0 || threads > MOST_THREADS)
        return 2;

    begin(options);
    if (threads == 1) {
        run(&elapsed[0]);
    } else {
        pthread_t handles[MOST_THREADS];
        pthread_barrier_init(&start, NULL, threads);
        for (uint64_t index = 0; index < threads; index++)
            start_thread(&handles[index], run_thread, &elapsed[index]);
        for (uint64_t index = 0; index < threads; index++)
            pthread_join(handles[index], NULL);
    }

    uint64_t slowest = 0;
    for (uint64_t index = 0; index < threads; index++)
        if (elapsed[index] > slowest)
            slowest = elapsed[index];
    struct counts counts = {0};
    counts.allocations = counts.frees = count * threads;
    counts.allocated_bytes = counts.freed_bytes = count * threads * size;
    say_counts(&counts);
    say_number("threads_created", threads == 1 ? 0 : threads);
    say_number("elapsed_ns", slowest);
    uint64_t hundredths = slowest * 100 / count;
    say("ns_per_pair %llu.%02llu", (unsigned long long)(hundredths / 100), (unsigned long long)(hundredths % 100));
    finish(options);
    return 0;
}
