/*
 * throws [rounds=100]: asks operator new for more than there is, by each of its forms, and catches what it throws; between, and while
 * the exception is on its way, blocks are made and ended whose counts are known. All of it is called by `work`.
 */
#include "common.h"

#include <cstdint>
#include <cstdlib>
#include <new>

static struct counts counts;
static volatile std::size_t impossible = SIZE_MAX / 4;
static constexpr std::align_val_t alignment{64};

static void *got(void *block, std::size_t size)
{
    static_cast<unsigned char *>(block)[size - 1] = 1;
    KEEP(block);
    count_allocation(&counts, size);
    return block;
}

static void end(void *block, std::size_t size)
{
    count_free(&counts, size);
    ::operator delete(block);
}

/* Ends its block while an exception passes. */
struct Holder {
    void *block;
    std::size_t size;
    explicit Holder(std::size_t size_bytes) : block(got(::operator new(size_bytes), size_bytes)), size(size_bytes) {}
    ~Holder() { end(block, size); }
};

/* Deeper in the stack than the call that failed. */
SEPARATE static void deeper(std::size_t n)
{
    volatile unsigned char room[4096];
    room[n % sizeof room] = 1;
    end(got(::operator new(n), n), n);
    std::free(got(std::malloc(n), n));
    count_free(&counts, n);
}

template <typename Ask> static void fails(std::size_t n, Ask ask)
{
    bool is_caught = false;
    try {
        Holder holder(n);
        KEEP(ask());
    } catch (const std::bad_alloc &) {
        is_caught = true;
        deeper(n);
    }
    if (!is_caught)
        abort();
    counts.failed_allocations++;
    deeper(n);
}

SEPARATE static void work(std::uint64_t rounds)
{
    for (std::uint64_t round = 0; round < rounds; round++) {
        std::size_t n = 64 * (1 + round % 40);
        fails(n, [] { return ::operator new(impossible); });
        fails(n, [] { return ::operator new[](impossible); });
        fails(n, [] { return ::operator new(impossible, alignment); });
        fails(n, [] { return ::operator new[](impossible, alignment); });
        if (round % 10 == 0)
            KEEP(got(::operator new(n), n));
    }
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    std::uint64_t rounds = number(argc, argv, 1, 100);
    begin(options);
    work(rounds);
    say_counts(&counts);
    finish(options);
    return 0;
}
