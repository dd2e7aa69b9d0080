/*
 * pool [rounds=100]: a pool of its own, whose memory comes from malloc by and by. Prints the counts of the pool's
 * functions; what they ask of malloc is theirs, and is not counted.
 */
#include "common.h"

enum { CLASSES = 16, UNIT = 64, CHUNK_BYTES = 1 << 14 };

struct header {
    size_t size;
    struct header *next;
};

struct pool {
    char *chunk;
    size_t left;
    unsigned chunks;
    struct header *unused[CLASSES];
};

static struct counts counts;

/* The largest block has less than CLASSES units. */
SEPARATE void *pool_alloc(struct pool *pool, size_t size)
{
    size_t units = (size + UNIT - 1) / UNIT;
    if (units >= CLASSES)
        return NULL;
    struct header *block = pool->unused[units];
    if (block != NULL) {
        pool->unused[units] = block->next;
    } else {
        size_t bytes = sizeof *block + units * UNIT;
        if (pool->left < bytes) {
            pool->chunk = malloc(CHUNK_BYTES);
            pool->left = CHUNK_BYTES;
            pool->chunks++;
        }
        block = (struct header *)pool->chunk;
        pool->chunk += bytes;
        pool->left -= bytes;
    }
    block->size = size;
    return block + 1;
}

SEPARATE void pool_free(struct pool *pool, void *address)
{
    if (address == NULL)
        return;
    struct header *block = (struct header *)address - 1;
    size_t units = (block->size + UNIT - 1) / UNIT;
    block->next = pool->unused[units];
    pool->unused[units] = block;
}

/* The result is stored where the first argument points. */
SEPARATE int pool_take(void **result, struct pool *pool, size_t count, size_t size)
{
    *result = pool_alloc(pool, count * size);
    return *result == NULL;
}

SEPARATE void *pool_resize(struct pool *pool, size_t size, void *old)
{
    void *block = pool_alloc(pool, size);
    if (block == NULL)
        return NULL;
    size_t old_size = ((struct header *)old - 1)->size;
    memcpy(block, old, old_size < size ? old_size : size);
    pool_free(pool, old);
    return block;
}

static void work(struct pool *pool, uint64_t round)
{
    size_t size = 1 + round % 500;
    void *block = pool_alloc(pool, size);
    count_allocation(&counts, size);
    void *taken;
    if (pool_take(&taken, pool, 3, 40) != 0)
        abort();
    count_allocation(&counts, 120);
    taken = pool_resize(pool, 200, taken);
    count_reallocation(&counts, 120, 200);
    if (pool_alloc(pool, CLASSES * UNIT) != NULL)
        abort();
    counts.failed_allocations++;
    pool_free(pool, NULL);
    pool_free(pool, taken);
    count_free(&counts, 200);
    if (round % 10 != 0) {
        pool_free(pool, block);
        count_free(&counts, size);
    }
}

int main(int argc, char **argv)
{
    static struct pool pool;
    struct options options = take_options(&argc, argv);
    uint64_t rounds = number(argc, argv, 1, 100);
    begin(options);
    for (uint64_t round = 0; round < rounds; round++)
        work(&pool, round);
    say_number("chunks", pool.chunks);
    say_counts(&counts);
    finish(options);
    return 0;
}
