/*
 * allocators [rounds=100]: each form of operator new with each form of operator delete that may end its blocks, called by `work`,
 * with known counts.
 */
#include "common.h"

#include <cstdint>
#include <cstdlib>
#include <new>

static struct counts counts;
static volatile std::size_t impossible = SIZE_MAX / 4;
/* A size of which this is a divisor is not rounded up, not even where operator new calls aligned_alloc. */
static constexpr std::align_val_t alignment{64};

static void *got(void *block, std::size_t size)
{
    if (block == nullptr)
        abort();
    static_cast<unsigned char *>(block)[size - 1] = 1;
    KEEP(block);
    count_allocation(&counts, size);
    return block;
}

static void *ended(void *block, std::size_t size)
{
    count_free(&counts, size);
    return block;
}

static void failed(void *block)
{
    if (block != nullptr)
        abort();
    counts.failed_allocations++;
}

static void plain(std::size_t n)
{
    ::operator delete(ended(got(::operator new(n), n), n));
    ::operator delete(ended(got(::operator new(n), n), n), n);
    ::operator delete(ended(got(::operator new(n), n), n), std::nothrow);
    ::operator delete(ended(got(::operator new(n, std::nothrow), n), n));
    ::operator delete(ended(got(::operator new(n, std::nothrow), n), n), std::nothrow);
    ::operator delete[](ended(got(::operator new[](n), n), n));
    ::operator delete[](ended(got(::operator new[](n), n), n), n);
    ::operator delete[](ended(got(::operator new[](n), n), n), std::nothrow);
    ::operator delete[](ended(got(::operator new[](n, std::nothrow), n), n));
    ::operator delete[](ended(got(::operator new[](n, std::nothrow), n), n), std::nothrow);
    failed(::operator new(impossible, std::nothrow));
    failed(::operator new[](impossible, std::nothrow));
    ::operator delete(nullptr);
    ::operator delete[](nullptr, n);
}

static void aligned(std::size_t n)
{
    ::operator delete(ended(got(::operator new(n, alignment), n), n), alignment);
    ::operator delete(ended(got(::operator new(n, alignment), n), n), n, alignment);
    ::operator delete(ended(got(::operator new(n, alignment), n), n), alignment, std::nothrow);
    ::operator delete(ended(got(::operator new(n, alignment, std::nothrow), n), n), alignment);
    ::operator delete[](ended(got(::operator new[](n, alignment), n), n), alignment);
    ::operator delete[](ended(got(::operator new[](n, alignment), n), n), n, alignment);
    ::operator delete[](ended(got(::operator new[](n, alignment), n), n), alignment, std::nothrow);
    ::operator delete[](ended(got(::operator new[](n, alignment, std::nothrow), n), n), alignment, std::nothrow);
}

SEPARATE static void work(std::uint64_t rounds)
{
    for (std::uint64_t round = 0; round < rounds; round++) {
        std::size_t n = 64 * (1 + round % 40);
        plain(n);
        aligned(n);
        std::free(ended(got(std::malloc(n), n), n));
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
