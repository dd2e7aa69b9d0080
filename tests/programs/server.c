/*
 * server [threads=2] [slots=1000] [pause_us=0] [operations=0]: a worker with a live set of constant size per thread, replacing,
 * resizing and checking blocks whose every byte is known, until SIGTERM or SIGINT (or until each thread has done so
 * many operations, if that is not 0). Pauses after every 100 operations if asked. Prints "ready <pid>" once it serves,
 * and at the end its counts, `verified` and `damaged` blocks; it ends with status 1 if any was damaged. Each created
 * thread makes the C library calloc one block as well.
 */
#include "common.h"
#include "threads.h"

#include <signal.h>
#include <stdatomic.h>

enum { MOST_SLOTS = 2000000 };

struct slot {
    unsigned char *bytes;
    unsigned size;
    unsigned char pattern;
};

struct worker {
    pthread_t thread;
    uint64_t random;
    struct slot *slots;
    struct counts counts;
    uint64_t operations;
    uint64_t verified;
    uint64_t damaged;
};

static struct worker workers[MOST_THREADS];
static struct slot slots[MOST_SLOTS]; /* not from the allocator: only served blocks are counted */
static uint64_t slots_each, pause_us, operations_each;
static atomic_int stop;
static pthread_barrier_t filled;

static void fill(struct worker *worker, struct slot *slot, unsigned size)
{
    slot->size = size;
    slot->pattern = (unsigned char)next_random(&worker->random);
    memset(slot->bytes, slot->pattern, size);
}

static int holds_pattern(const struct slot *slot, unsigned size)
{
    unsigned differing = 0;
    for (unsigned index = 0; index < size; index++)
        differing |= slot->bytes[index] ^ slot->pattern;
    return differing == 0;
}

static void verify(struct worker *worker, const struct slot *slot, unsigned size)
{
    worker->verified++;
    if (!holds_pattern(slot, size))
        worker->damaged++;
}

static unsigned some_size(struct worker *worker)
{
    uint64_t random = next_random(&worker->random);
    return random % 64 == 0 ? 4096 + (random >> 8) % 60000 : 16 + (random >> 8) % 1008;
}

static void serve_block(struct worker *worker, struct slot *slot)
{
    unsigned size = some_size(worker);
    slot->bytes = size % 8 == 1 ? calloc(1, size) : malloc(size);
    if (slot->bytes == NULL)
        abort();
    count_allocation(&worker->counts, size);
    fill(worker, slot, size);
}

static void drop_block(struct worker *worker, struct slot *slot)
{
    verify(worker, slot, slot->size);
    count_free(&worker->counts, slot->size);
    free(slot->bytes);
    slot->bytes = NULL;
}

static void resize_block(struct worker *worker, struct slot *slot)
{
    unsigned old_size = slot->size, size = some_size(worker);
    slot->bytes = realloc(slot->bytes, size);
    if (slot->bytes == NULL)
        abort();
    count_reallocation(&worker->counts, old_size, size);
    verify(worker, slot, old_size < size ? old_size : size); /* what realloc must have kept */
    fill(worker, slot, size);
}

static void *serve(void *argument)
{
    struct worker *worker = argument;
    for (uint64_t index = 0; index < slots_each; index++)
        serve_block(worker, &worker->slots[index]);
    pthread_barrier_wait(&filled);
    while (!atomic_load(&stop) && (operations_each == 0 || worker->operations < operations_each)) {
        struct slot *slot = &worker->slots[next_random(&worker->random) % slots_each];
        if (worker->operations % 8 == 0) {
            resize_block(worker, slot);
        } else {
            drop_block(worker, slot);
            serve_block(worker, slot);
        }
        worker->operations++;
        if (pause_us != 0 && worker->operations % 100 == 0) {
            struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000};
            nanosleep(&pause, NULL);
        }
    }
    for (uint64_t index = 0; index < slots_each; index++)
        drop_block(worker, &worker->slots[index]);
    return NULL;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t threads = number(argc, argv, 1, 2);
    slots_each = number(argc, argv, 2, 1000);
    pause_us = number(argc, argv, 3, 0);
    operations_each = number(argc, argv, 4, 0);
    if (threads == 0 || threads > MOST_THREADS || slots_each == 0 || threads * slots_each > MOST_SLOTS)
        return 2;

    if (options.wait) {
        say("waiting %d", (int)getpid());
        wait_for_line();
    }
    /* Blocked before the threads start, so that only sigwait below receives it. */
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);
    pthread_barrier_init(&filled, NULL, threads + 1);
    for (uint64_t index = 0; index < threads; index++) {
        workers[index].random = UINT64_C(0x9e3779b97f4a7c15) + index * 2;
        workers[index].slots = &slots[index * slots_each];
        start_thread(&workers[index].thread, serve, &workers[index]);
    }
    pthread_barrier_wait(&filled);
    say("ready %d", (int)getpid());
    if (operations_each == 0) {
        int received;
        sigwait(&ending, &received);
        atomic_store(&stop, 1);
    }

    struct counts counts = {0};
    uint64_t operations = 0, verified = 0, damaged = 0;
    for (uint64_t index = 0; index < threads; index++) {
        pthread_join(workers[index].thread, NULL);
        add_counts(&counts, &workers[index].counts);
        operations += workers[index].operations;
        verified += workers[index].verified;
        damaged += workers[index].damaged;
    }
    say_counts(&counts);
    say_number("operations", operations);
    say_number("verified", verified);
    say_number("damaged", damaged);
    say_number("threads_created", threads);
    finish(options);
    return damaged == 0 ? 0 : 1;
}
