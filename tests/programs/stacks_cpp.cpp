/*
 * stacks_cpp [count=50]: chains of templates, virtual functions, closures and std::function; allocations while
 * exceptions are thrown, caught, rethrown and while the stack is unwound; before and after main.
 */
#include "stacks.h"

#include <cstddef>
#include <functional>
#include <new>
#include <thread>

enum {
    TEMPLATES = 6000, /* and the depth */
    VIRTUAL = 6201,
    CLOSURE = 6202,
    BY_NEW = 6203,
    THROWN = 6204,
    IN_HANDLER = 6205,
    IN_HANDLER_ITSELF = 6206,
    WHILE_UNWINDING = 6207,
    AFTER_RETHROW = 6208,
    AFTER_CATCH = 6209,
    IN_STD_THREAD = 6210,
    BEFORE_MAIN = 6211,
    AFTER_MAIN = 6212,
    THROUGH_NOEXCEPT = 6213,
};

static uint64_t count = 50;
static volatile std::size_t space_bytes = 100;

SEPARATE static void *allocate(std::size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

/* Frames of different sizes; the innermost allocates. */
template <int N> SEPARATE void *step(std::size_t size)
{
    volatile char space[8 + N % 5 * 24];
    space[size % sizeof space] = 1;
    void *block;
    if constexpr (N == 0)
        block = malloc(size);
    else
        block = step<N - 1>(size);
    KEEP(block);
    KEEP(space);
    return block;
}

struct Shape {
    virtual ~Shape() = default;
    virtual void *make(std::size_t size) const = 0;
};

struct Square final : Shape {
    SEPARATE void *make(std::size_t size) const override
    {
        void *block = allocate(size);
        KEEP(block);
        return block;
    }
};

SEPARATE static void calls_virtual(const Shape *shape)
{
    free(shape->make(VIRTUAL));
    KEEP(shape);
}

SEPARATE static void calls_closure(const std::function<void *(std::size_t)> &closure)
{
    free(closure(CLOSURE));
    KEEP(&closure);
}

SEPARATE static void by_new()
{
    void *block = ::operator new(BY_NEW);
    KEEP(block);
    ::operator delete(block);
}

/* Allocates as the exception is made. */
struct Failure {
    int reason;
    explicit Failure(int reason);
};
SEPARATE Failure::Failure(int reason) : reason(reason)
{
    free(allocate(THROWN));
}

struct Guard {
    ~Guard();
};
SEPARATE Guard::~Guard()
{
    free(allocate(WHILE_UNWINDING));
}

SEPARATE static void throws(int reason)
{
    volatile char space[300];
    space[reason] = 1;
    if (reason != 0)
        throw Failure(reason);
    KEEP(space);
}

SEPARATE static void guarded(int reason)
{
    Guard guard;
    KEEP(&guard);
    throws(reason);
    KEEP(&guard);
}

SEPARATE static void catches(int reason)
{
    try {
        guarded(reason);
    } catch (const Failure &failure) {
        KEEP(&failure);
        free(allocate(IN_HANDLER));
        void *block = malloc(IN_HANDLER_ITSELF);
        KEEP(block);
        free(block);
    }
    free(allocate(AFTER_CATCH));
    KEEP(&count);
}

SEPARATE static void rethrows(int reason)
{
    try {
        throws(reason);
    } catch (const Failure &failure) {
        KEEP(&failure);
        throw;
    }
}

SEPARATE static void catches_again(int reason)
{
    try {
        rethrows(reason);
    } catch (...) {
        free(allocate(AFTER_RETHROW));
        KEEP(&count);
    }
}

SEPARATE static void no_exceptions() noexcept
{
    volatile char *space = static_cast<volatile char *>(__builtin_alloca(space_bytes));
    space[0] = 1;
    free(allocate(THROUGH_NOEXCEPT));
    KEEP(space);
}

SEPARATE static void thread_body(std::size_t size)
{
    for (std::uint64_t done = 0; done < count; done++)
        free(allocate(size));
    KEEP(&count);
}

struct Global {
    Global();
    ~Global();
};
SEPARATE Global::Global()
{
    free(allocate(BEFORE_MAIN));
}
SEPARATE Global::~Global()
{
    free(allocate(AFTER_MAIN));
}
static Global global;

template <int DEPTH> static void say_templates()
{
    char chain[6000];
    std::size_t length = 0;
    for (int level = 0; level < DEPTH; level++)
        length += snprintf(chain + length, sizeof chain - length, "void* step<%d>(unsigned long) <- ", level);
    snprintf(chain + length, sizeof chain - length, IN_MAIN);
    say_stack(TEMPLATES + DEPTH, count, chain);
}

static void say_exceptions()
{
    say_stack(THROWN, 2 * count, "allocate(unsigned long) <- Failure::Failure(int) <- throws(int)"
                                 " <- guarded(int) <- catches(int) <- " IN_MAIN);
    say("or %d allocate(unsigned long) <- Failure::Failure(int) <- throws(int) <- rethrows(int)"
        " <- catches_again(int) <- " IN_MAIN, THROWN);
    say_stack(WHILE_UNWINDING, count,
              "allocate(unsigned long) <- Guard::~Guard() <- guarded(int) <- catches(int) <- " IN_MAIN);
    say_stack(IN_HANDLER, count, "allocate(unsigned long) <- catches(int) <- " IN_MAIN);
    say_stack(IN_HANDLER_ITSELF, count, "catches(int) <- " IN_MAIN);
    say_stack(AFTER_CATCH, count, "allocate(unsigned long) <- catches(int) <- " IN_MAIN);
    say_stack(AFTER_RETHROW, count, "allocate(unsigned long) <- catches_again(int) <- " IN_MAIN);
    say_stack(THROUGH_NOEXCEPT, count, "allocate(unsigned long) <- no_exceptions() <- " IN_MAIN);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    count = number(argc, argv, 1, 50);

    begin(options);
    Square square;
    const Shape *shape = &square;
    KEEP(shape);
    auto closure = [](std::size_t size) SEPARATE {
        void *block = allocate(size);
        KEEP(block);
        return block;
    };
    std::function<void *(std::size_t)> function = closure;
    for (std::uint64_t done = 0; done < count; done++) {
        free(step<4>(TEMPLATES + 5));
        free(step<19>(TEMPLATES + 20));
        free(step<49>(TEMPLATES + 50));
        free(step<119>(TEMPLATES + 120));
        calls_virtual(shape);
        calls_closure(function);
        by_new();
        catches(1);
        catches_again(2);
        no_exceptions();
    }
    std::thread thread(thread_body, IN_STD_THREAD);
    thread.join();

    say_templates<5>();
    say_templates<20>();
    say_templates<50>();
    say_templates<120>();
    say_stack(VIRTUAL, count,
              "allocate(unsigned long) <- Square::make(unsigned long) const <- calls_virtual(Shape const*) <- " IN_MAIN);
    say_stack(CLOSURE, count,
              "allocate(unsigned long) <- main::{lambda(unsigned long)#1}::operator()(unsigned long) const"
              " <- * <- calls_closure(std::function<void* (unsigned long)> const&) <- " IN_MAIN);
    /* As clang names it. */
    say("or %d allocate(unsigned long) <- main::$_0::operator()(unsigned long) const"
        " <- * <- calls_closure(std::function<void* (unsigned long)> const&) <- " IN_MAIN, CLOSURE);
    say_stack(BY_NEW, count, "@libstdc++ <- by_new() <- " IN_MAIN);
    say_exceptions();
    say_stack(IN_STD_THREAD, count, "allocate(unsigned long) <- thread_body(unsigned long) <- * <- @libstdc++ <- " IN_THREAD);
    say_stack(BEFORE_MAIN, 1,
              "allocate(unsigned long) <- Global::Global() <- * <- @@libc <- _start");
    say_stack(AFTER_MAIN, 1, "allocate(unsigned long) <- Global::~Global() <- @@libc <- _start");
    finish(options);
    return 0;
}
