/*
 * sites [rounds=400] [seed=1]: 24 functions that allocate, each blocks of its own sizes and as often as no other, some of
 * which stay live. Prints for each
 *   site <function> <allocations> <bytes> <live blocks> <live bytes>
 * and counts. It is what estimates from samples are compared with.
 */
#include "common.h"

enum { SITES = 24, SLOTS = 512 };

static struct site {
    void *slots[SLOTS];
    size_t sizes[SLOTS];
    struct counts counts;
} sites[SITES];
static struct counts all;

/* Puts a new block into a slot, in place of the one that is there. */
static void put(struct site *site, unsigned slot, void *block, size_t size)
{
    if (site->slots[slot]) {
        count_free(&site->counts, site->sizes[slot]);
        free(site->slots[slot]);
    }
    site->slots[slot] = block;
    site->sizes[slot] = size;
    count_allocation(&site->counts, size);
}

#define SITE(number) \
    SEPARATE static void site_##number(struct site *site, unsigned slot, size_t size) \
    { \
        void *block = malloc(size); \
        KEEP(block); \
        put(site, slot, block, size); \
    }
SITE(0) SITE(1) SITE(2) SITE(3) SITE(4) SITE(5) SITE(6) SITE(7) SITE(8) SITE(9) SITE(10) SITE(11)
SITE(12) SITE(13) SITE(14) SITE(15) SITE(16) SITE(17) SITE(18) SITE(19) SITE(20) SITE(21) SITE(22) SITE(23)

static void (*const functions[SITES])(struct site *, unsigned, size_t) = {
    site_0,  site_1,  site_2,  site_3,  site_4,  site_5,  site_6,  site_7,  site_8,  site_9,  site_10, site_11,
    site_12, site_13, site_14, site_15, site_16, site_17, site_18, site_19, site_20, site_21, site_22, site_23,
};

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t rounds = number(argc, argv, 1, 400), state = number(argc, argv, 2, 1) * 2 + 1;

    begin(options);
    for (uint64_t round = 0; round < rounds; round++)
        for (unsigned index = 0; index < SITES; index++)
            for (unsigned times = 0; times <= index % 6; times++) {
                /* From some bytes to some thousands, most of them small. */
                uint64_t random = next_random(&state);
                size_t size = 16 + random % 32 + ((random >> 32) % (index + 1)) * (random >> 40) % 64;
                functions[index](&sites[index], (random >> 16) % SLOTS, size);
            }
    for (unsigned index = 0; index < SITES; index++) {
        const struct counts *counts = &sites[index].counts;
        say("site site_%u %llu %llu %llu %llu", index, (unsigned long long)counts->allocations,
            (unsigned long long)counts->allocated_bytes,
            (unsigned long long)(counts->allocations - counts->frees),
            (unsigned long long)(counts->allocated_bytes - counts->freed_bytes));
        add_counts(&all, counts);
    }
    say_counts(&all);
    finish(options);
    return 0;
}
