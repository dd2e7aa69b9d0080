/*
 * chain (C++) [count=3]: as chain.c, with names that need demangling. The names are those that c++filt and `nm -C`
 * print; between `operator new` and malloc lie frames of libstdc++, which are not listed.
 */
#include "common.h"

#include <cstddef>
#include <cstdint>
#include <vector>

enum { TEMPLATED = 1101, CLOSURE = 2202, METHOD = 3303, BY_NEW = 4400, IN_VECTOR = 5500 };

static int in_pack, in_fill, in_main_fill;
static int in_closure, in_run, in_main_run;
static int in_serve, in_main_serve;
static int in_make, in_main_make;
static int in_grow, in_main_grow;

namespace shop {

struct Apple {
    char bytes[BY_NEW];
};

template <typename T> SEPARATE T *pack(std::size_t size)
{
    in_pack = __LINE__; void *block = malloc(size);
    KEEP(block);
    return static_cast<T *>(block);
}

template <typename T> struct Basket {
    SEPARATE void *fill(std::size_t size)
    {
        in_fill = __LINE__; void *block = pack<T>(size);
        KEEP(block);
        return block;
    }
};

struct Counter {
    virtual ~Counter() = default;
    virtual void *serve(std::size_t size) const = 0;
};

namespace {
struct Clerk final : Counter {
    SEPARATE void *serve(std::size_t size) const override
    {
        in_serve = __LINE__; void *block = malloc(size);
        KEEP(block);
        return block;
    }
};
} // namespace

SEPARATE void *run(std::size_t size)
{
    auto closure = [](std::size_t bytes) SEPARATE {
        in_closure = __LINE__; void *block = malloc(bytes);
        KEEP(block);
        return block;
    };
    in_run = __LINE__; void *block = closure(size);
    KEEP(block);
    return block;
}

SEPARATE Apple *make()
{
    in_make = __LINE__; Apple *apple = new Apple;
    KEEP(apple);
    return apple;
}

SEPARATE void grow(std::vector<char> &bytes, std::size_t size)
{
    in_grow = __LINE__; bytes.reserve(size);
    KEEP(bytes.data());
}

} // namespace shop

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    std::uint64_t count = number(argc, argv, 1, 3);

    begin(options);
    shop::Basket<int> basket;
    shop::Clerk clerk;
    const shop::Counter *counter = &clerk;
    KEEP(counter); /* the compiler forgets what it points to, so the call is virtual */
    struct counts counts = {};
    for (std::uint64_t done = 0; done < count; done++) {
        in_main_fill = __LINE__; void *first = basket.fill(TEMPLATED);
        in_main_run = __LINE__; void *second = shop::run(CLOSURE);
        in_main_serve = __LINE__; void *third = counter->serve(METHOD);
        in_main_make = __LINE__; void *fourth = shop::make();
        alignas(std::vector<char>) unsigned char place[sizeof(std::vector<char>)];
        auto *bytes = new (place) std::vector<char>; /* never destroyed: its block stays alive */
        in_main_grow = __LINE__; shop::grow(*bytes, IN_VECTOR);
        KEEP(first);
        KEEP(second);
        KEEP(third);
        KEEP(fourth);
        for (std::size_t size : {TEMPLATED, CLOSURE, METHOD, BY_NEW, IN_VECTOR})
            count_allocation(&counts, size);
    }

    unsigned long long times = count;
    say("chain %d %llu int* shop::pack<int>(unsigned long) @%d <- shop::Basket<int>::fill(unsigned long) @%d <- main @%d",
        TEMPLATED, times, in_pack, in_fill, in_main_fill);
    say("chain %d %llu shop::run(unsigned long)::{lambda(unsigned long)#1}::operator()(unsigned long) const @%d"
        " <- shop::run(unsigned long) @%d <- main @%d",
        CLOSURE, times, in_closure, in_run, in_main_run);
    say("chain %d %llu shop::(anonymous namespace)::Clerk::serve(unsigned long) const @%d <- main @%d", METHOD, times,
        in_serve, in_main_serve);
    say("chain %d %llu shop::make() @%d <- main @%d", BY_NEW, times, in_make, in_main_make);
    say("chain %d %llu shop::grow(std::vector<char, std::allocator<char> >&, unsigned long) @%d <- main @%d", IN_VECTOR,
        times, in_grow, in_main_grow);
    say_counts(&counts); /* of the program's own calls; libstdc++ allocates one pool for exceptions besides */
    finish(options);
    return 0;
}
