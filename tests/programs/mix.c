/*
 * mix [threads=1] [operations=10000] [seed=1] [no_pvalloc]: every allocator function of C in a pseudo-random order that is the
 * same in every run, with blocks handed to and freed by other threads, calls that fail, and a known rest left alive.
 * Operations are per thread. With one thread no thread is created, so the figures are those of the whole process;
 * each created thread makes the C library calloc one block for its thread-local storage. `no_pvalloc` calls valloc
 * instead, for valgrind, which ends a program that calls pvalloc.
 */
#include "common.h"
#include "threads.h"

#include <malloc.h>

enum { MOST_WORKERS = 64, SLOTS = 256, INBOX_SLOTS = 64, LEFT_ALIVE_EVERY = 7 };

struct block {
    unsigned char *address;
    size_t size;
};

struct inbox {
    pthread_mutex_t lock;
    unsigned count;
    struct block blocks[INBOX_SLOTS];
};

struct worker {
    uint64_t random;
    struct worker *next;
    struct block slots[SLOTS];
    struct inbox inbox;
    struct counts counts;
    uint64_t null_frees;
    uint64_t peak_bytes;
    uint64_t peak_blocks;
};

static struct worker workers[MOST_WORKERS];
static uint64_t operations;
static int no_pvalloc;
static pthread_barrier_t start;

/* Volatile, so that no compiler knows these calls to be pointless or doomed. */
static volatile size_t impossible = SIZE_MAX / 2;
static void *volatile nothing = NULL;

static void fail(const char *what)
{
    dprintf(STDERR_FILENO, "mix: %s\n", what);
    abort();
}

static void began(struct worker *worker, struct block *slot, void *address, size_t size)
{
    if (address == NULL)
        fail("an allocation that must succeed failed");
    slot->address = address;
    slot->size = size;
    /* Both ends are written, so a tracer that disturbed the allocator would show as damage. */
    if (size > 0)
        slot->address[0] = slot->address[size - 1] = (unsigned char)size;
    count_allocation(&worker->counts, size);
    uint64_t bytes = worker->counts.allocated_bytes - worker->counts.freed_bytes;
    if (bytes > worker->peak_bytes) {
        worker->peak_bytes = bytes;
        worker->peak_blocks = worker->counts.allocations - worker->counts.frees;
    }
}

static void check(const struct block *block)
{
    if (block->size > 0
        && (block->address[0] != (unsigned char)block->size
            || block->address[block->size - 1] != (unsigned char)block->size))
        fail("a block was damaged");
}

static void release(struct worker *worker, struct block *block)
{
    check(block);
    count_free(&worker->counts, block->size);
    free(block->address);
    block->address = NULL;
}

static size_t some_size(struct worker *worker)
{
    uint64_t random = next_random(&worker->random);
    switch (random % 32) {
    case 0: return 0;
    case 1: return 131072 + (random >> 8) % 262144; /* around and above the mmap threshold */
    case 2:
    case 3: return 1024 + (random >> 8) % 16384;
    default: return 1 + (random >> 8) % 512;
    }
}

static void allocate(struct worker *worker, struct block *slot)
{
    size_t size = some_size(worker);
    size_t alignment = (size_t)16 << next_random(&worker->random) % 8;
    size_t items = 1 + next_random(&worker->random) % 8;
    void *address = NULL;
    switch (next_random(&worker->random) % 16) {
    case 0:
    case 1: size *= items; address = calloc(items, size / items); break;
    case 2: address = calloc(0, 8); size = 0; break;
    case 3: address = realloc(nothing, size); break;
    case 4: size *= items; address = reallocarray(nothing, items, size / items); break;
    case 5:
        if (posix_memalign(&address, alignment, size) != 0)
            fail("posix_memalign failed");
        break;
    case 6: address = aligned_alloc(alignment, size); break;
    case 7: address = memalign(alignment, size); break;
    case 8: address = valloc(size); break;
    case 9: address = no_pvalloc ? valloc(size) : pvalloc(size); break;
    default: address = malloc(size);
    }
    began(worker, slot, address, size);
}

static void resize(struct worker *worker, struct block *slot, size_t size, int as_array)
{
    check(slot);
    size_t old_size = slot->size;
    void *address = as_array ? reallocarray(slot->address, size, 1) : realloc(slot->address, size);
    count_free(&worker->counts, old_size);
    if (size == 0) {
        if (address != NULL)
            fail("a realloc to zero returned a block");
        slot->address = NULL;
        return;
    }
    worker->counts.reallocations++;
    began(worker, slot, address, size);
}

static void hand_over(struct worker *worker, struct block *block)
{
    struct inbox *inbox = &worker->next->inbox;
    pthread_mutex_lock(&inbox->lock);
    int fits = inbox->count < INBOX_SLOTS;
    if (fits) {
        inbox->blocks[inbox->count++] = *block;
        block->address = NULL;
    }
    pthread_mutex_unlock(&inbox->lock);
    /* Freed by this thread or by the other: the totals are the same in every run. */
    if (!fits)
        release(worker, block);
}

static int release_one_received(struct worker *worker)
{
    struct block block = {0};
    pthread_mutex_lock(&worker->inbox.lock);
    if (worker->inbox.count > 0)
        block = worker->inbox.blocks[--worker->inbox.count];
    pthread_mutex_unlock(&worker->inbox.lock);
    if (block.address == NULL)
        return 0;
    release(worker, &block);
    return 1;
}

static void must_fail(struct worker *worker, struct block *slot)
{
    void *address = NULL;
    switch (next_random(&worker->random) % 10) {
    case 0: address = malloc(impossible); break;
    case 1: address = calloc(impossible, 4); break;
    case 2: address = realloc(nothing, impossible); break;
    case 3: address = reallocarray(nothing, impossible, 4); break;
    case 4:
        if (posix_memalign(&address, 24, 100) != EINVAL)
            fail("posix_memalign took a bad alignment");
        break;
    case 5:
        if (posix_memalign(&address, 64, impossible) != ENOMEM)
            fail("posix_memalign gave too much");
        break;
    case 6: address = aligned_alloc(64, impossible); break;
    case 7: address = valloc(impossible); break;
    case 8: address = no_pvalloc ? valloc(impossible) : pvalloc(impossible); break;
    default:
        /* The old block stays alive and untouched. */
        address = realloc(slot->address, impossible);
        if (slot->address != NULL)
            check(slot);
    }
    if (address != NULL)
        fail("an allocation that must fail succeeded");
    worker->counts.failed_allocations++;
}

static void step(struct worker *worker)
{
    struct block *slot = &worker->slots[next_random(&worker->random) % SLOTS];
    uint64_t choice = next_random(&worker->random) % 100;
    if (choice < 3) {
        free(nothing);
        worker->null_frees++;
    } else if (choice < 6) {
        must_fail(worker, slot);
    } else if (choice < 16) {
        release_one_received(worker);
    } else if (slot->address == NULL) {
        allocate(worker, slot);
    } else if (choice < 30) {
        resize(worker, slot, slot->size + 1 + choice * 16, 0);
    } else if (choice < 36) {
        resize(worker, slot, slot->size / 2 + 1, 0);
    } else if (choice < 40) {
        resize(worker, slot, slot->size, 0);
    } else if (choice < 43) {
        resize(worker, slot, 0, 0);
    } else if (choice < 48) {
        resize(worker, slot, some_size(worker), 1);
    } else if (choice < 64) {
        hand_over(worker, slot);
    } else {
        release(worker, slot);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    for (uint64_t done = 0; done < operations; done++)
        step(worker);
    for (unsigned index = 0; index < SLOTS; index++)
        if (worker->slots[index].address != NULL && index % LEFT_ALIVE_EVERY != 3)
            release(worker, &worker->slots[index]);
    return NULL;
}

static void *work_in_thread(void *argument)
{
    pthread_barrier_wait(&start);
    return work(argument);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    no_pvalloc = take_word(&argc, argv, "no_pvalloc");
    uint64_t threads = number(argc, argv, 1, 1);
    operations = number(argc, argv, 2, 10000);
    uint64_t seed = number(argc, argv, 3, 1);
    if (threads == 0 || threads > MOST_WORKERS)
        return 2;
    for (uint64_t index = 0; index < threads; index++) {
        workers[index].random = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + index * 2 + 1;
        workers[index].next = &workers[(index + 1) % threads];
        pthread_mutex_init(&workers[index].inbox.lock, NULL);
    }

    begin(options);
    if (threads == 1) {
        work(&workers[0]);
    } else {
        pthread_barrier_init(&start, NULL, threads);
        pthread_t handles[MOST_WORKERS];
        for (uint64_t index = 0; index < threads; index++)
            start_thread(&handles[index], work_in_thread, &workers[index]);
        for (uint64_t index = 0; index < threads; index++)
            pthread_join(handles[index], NULL);
    }
    struct counts sum = {0};
    uint64_t null_frees = 0;
    for (uint64_t index = 0; index < threads; index++) {
        while (release_one_received(&workers[index]))
            ;
        add_counts(&sum, &workers[index].counts);
        null_frees += workers[index].null_frees;
    }

    say_counts(&sum);
    say_number("null_frees", null_frees);
    say_number("threads_created", threads == 1 ? 0 : threads);
    if (threads == 1) { /* with more, the moment of the peak depends on scheduling */
        say_number("peak_live_bytes", workers[0].peak_bytes);
        say_number("peak_live_blocks", workers[0].peak_blocks);
    }
    finish(options);
    return 0;
}
