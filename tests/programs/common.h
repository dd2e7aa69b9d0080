/*
 * What the C and C++ test programs share: arguments, output and the hand-shake with a test. Nothing here calls the
 * allocator, so that a program's own figures are all there is.
 *
 * Arguments are numbers by position; the words `wait` and `linger` may stand anywhere:
 *   wait    print "ready <pid>", then start at the first line (or the end) of stdin
 *   linger  after the last line, stay alive until the next line (or the end) of stdin
 * Output is lines of a key and its values; the last is "done 1".
 */
#ifndef COMMON_H
#define COMMON_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A function that stays one function under its own name, at any optimisation level. */
#if defined(__GNUC__) && !defined(__clang__)
#define SEPARATE __attribute__((noipa))
#else
#define SEPARATE __attribute__((noinline))
#endif

/* The compiler must believe that the value is used here: it can neither drop the allocation nor make the call
   before it a tail call. */
#define KEEP(value) __asm__ volatile("" : : "r"(value) : "memory")

struct options {
    int wait;
    int linger;
};

/* Removes the word from the arguments; 1 where it was there. */
static inline int take_word(int *argc, char **argv, const char *word)
{
    for (int index = 1; index < *argc; index++) {
        if (strcmp(argv[index], word) != 0)
            continue;
        memmove(&argv[index], &argv[index + 1], (*argc - index) * sizeof *argv);
        --*argc;
        return 1;
    }
    return 0;
}

static inline struct options take_options(int *argc, char **argv)
{
    struct options options;
    options.wait = take_word(argc, argv, "wait");
    options.linger = take_word(argc, argv, "linger");
    return options;
}

static inline uint64_t number(int argc, char **argv, int index, uint64_t fallback)
{
    if (index >= argc)
        return fallback;
    char *end;
    uint64_t value = strtoull(argv[index], &end, 10);
    if (*argv[index] == '\0' || *end != '\0') {
        dprintf(STDERR_FILENO, "argument %d is not a number: %s\n", index, argv[index]);
        _exit(2);
    }
    return value;
}

/* One line, by one write, so that lines of several processes do not mix. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
    char line[8192];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length < 0 || length >= (int)sizeof line - 1)
        abort();
    line[length++] = '\n';
    for (int written = 0; written < length;) {
        ssize_t more = write(STDOUT_FILENO, line + written, length - written);
        if (more < 0 && errno != EINTR)
            _exit(3);
        written += more > 0 ? more : 0;
    }
}

static inline void say_number(const char *key, uint64_t value)
{
    say("%s %llu", key, (unsigned long long)value);
}

static inline void wait_for_line(void)
{
    char byte = 0;
    ssize_t got;
    do
        got = read(STDIN_FILENO, &byte, 1);
    while ((got == 1 && byte != '\n') || (got < 0 && errno == EINTR));
}

static inline void begin(struct options options)
{
    if (!options.wait)
        return;
    say("ready %d", (int)getpid());
    wait_for_line();
}

static inline void finish(struct options options)
{
    say("done 1");
    if (options.linger)
        wait_for_line();
}

static inline uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* xorshift64*: the same sequence on every machine. The state must not be 0. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

/* What the program did, by the rules of the JSON export. */
struct counts {
    uint64_t allocations;
    uint64_t allocated_bytes;
    uint64_t frees;
    uint64_t freed_bytes;
    uint64_t reallocations;
    uint64_t failed_allocations;
};

static inline void count_allocation(struct counts *counts, uint64_t size)
{
    counts->allocations++;
    counts->allocated_bytes += size;
}

static inline void count_free(struct counts *counts, uint64_t size)
{
    counts->frees++;
    counts->freed_bytes += size;
}

static inline void count_reallocation(struct counts *counts, uint64_t old_size, uint64_t new_size)
{
    count_free(counts, old_size);
    count_allocation(counts, new_size);
    counts->reallocations++;
}

static inline void add_counts(struct counts *sum, const struct counts *more)
{
    sum->allocations += more->allocations;
    sum->allocated_bytes += more->allocated_bytes;
    sum->frees += more->frees;
    sum->freed_bytes += more->freed_bytes;
    sum->reallocations += more->reallocations;
    sum->failed_allocations += more->failed_allocations;
}

static inline void say_counts(const struct counts *counts)
{
    say_number("allocations", counts->allocations);
    say_number("allocated_bytes", counts->allocated_bytes);
    say_number("frees", counts->frees);
    say_number("freed_bytes", counts->freed_bytes);
    say_number("reallocations", counts->reallocations);
    say_number("failed_allocations", counts->failed_allocations);
    say_number("live_blocks", counts->allocations - counts->frees);
    say_number("live_bytes", counts->allocated_bytes - counts->freed_bytes);
}

#endif
