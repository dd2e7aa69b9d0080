/*
 * pages [rounds=0]: makes its resident memory grow by known amounts from known functions, and prints for each
 * `grow <function> <bytes>`; then `resident <bytes>` at its end, as the kernel finds it in its page tables.
 * With `rounds` it only makes so many times 1,024 page faults, for measurements, and prints `elapsed_ns`.
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096, BLOCK_BYTES = 64 * 1024, BLOCKS = 256, THREADS = 4 };

static const size_t MIB = 1 << 20, HUGE_BYTES = 2 << 20;

static void *checked(void *memory, const char *what)
{
    if (memory == MAP_FAILED || memory == NULL) {
        dprintf(STDERR_FILENO, "pages: no %s: %s\n", what, strerror(errno));
        _exit(3);
    }
    return memory;
}

/* Huge pages only where they are asked for, whatever the system's setting is. */
static char *map(size_t bytes, int flags)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    madvise(checked(memory, "memory"), bytes, MADV_NOHUGEPAGE);
    return memory;
}

static char *map_huge(size_t bytes)
{
    char *memory = map(bytes + HUGE_BYTES, MAP_PRIVATE);
    char *begin = (char *)(((uintptr_t)memory + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
    madvise(begin, bytes, MADV_HUGEPAGE);
    return begin;
}

static void touch(volatile char *memory, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += PAGE_BYTES)
        memory[at] = 1;
}

/* Blocks that are too small to be mapped by themselves. */
SEPARATE static size_t grow_heap(void)
{
    size_t bytes = 0;
    for (unsigned number = 0; number < BLOCKS; number++) {
        char *block = checked(malloc(BLOCK_BYTES), "block");
        touch(block, BLOCK_BYTES);
        KEEP(block);
        bytes += BLOCK_BYTES;
    }
    return bytes;
}

SEPARATE static size_t grow_anonymous(void)
{
    touch(map(24 * MIB, MAP_PRIVATE), 24 * MIB);
    return 24 * MIB;
}

/* Whether there are huge pages or not: as much becomes resident. */
SEPARATE static size_t grow_huge(void)
{
    touch(map_huge(32 * MIB), 32 * MIB);
    return 32 * MIB;
}

SEPARATE static size_t grow_shared(void)
{
    touch(map(8 * MIB, MAP_SHARED), 8 * MIB);
    return 8 * MIB;
}

/* The kernel maps several pages of the file in one fault. */
SEPARATE static size_t grow_file(int file)
{
    volatile char *memory = mmap(NULL, 16 * MIB, PROT_READ, MAP_PRIVATE, file, 0);
    checked((char *)memory, "mapped file");
    for (size_t at = 0; at < 16 * MIB; at += PAGE_BYTES)
        (void)memory[at];
    return 16 * MIB;
}

/* A page of the file goes, and a copy of it comes. */
SEPARATE static size_t grow_copies(int file)
{
    volatile char *memory = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    touch(checked((char *)memory, "mapped file"), 4 * MIB);
    return 4 * MIB;
}

/* It is the kernel that has the page faults. */
SEPARATE static size_t grow_by_read(int file)
{
    char *memory = map(16 * MIB, MAP_PRIVATE);
    if (pread(file, memory, 16 * MIB, 0) != (ssize_t)(16 * MIB))
        checked(NULL, "contents of the file");
    return 16 * MIB;
}

/* What is given back has grown all the same. */
SEPARATE static size_t grow_and_shrink(void)
{
    for (unsigned number = 0; number < 40; number++) {
        char *memory = map(MIB, MAP_PRIVATE);
        touch(memory, MIB);
        munmap(memory, MIB);
    }
    return 40 * MIB;
}

/* There is no page fault. */
SEPARATE static size_t grow_populated(void)
{
    map(8 * MIB, MAP_PRIVATE | MAP_POPULATE);
    return 8 * MIB;
}

SEPARATE static void *grow_in_thread(void *memory)
{
    touch(memory, 16 * MIB);
    return NULL;
}

SEPARATE static void *grow_huge_in_thread(void *memory)
{
    touch(memory, 16 * MIB);
    return NULL;
}

static size_t in_threads(void *(*grow)(void *), char *memory)
{
    pthread_t threads[THREADS];
    for (unsigned number = 0; number < THREADS; number++)
        pthread_create(&threads[number], NULL, grow, memory + number * 16 * MIB);
    for (unsigned number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
    return THREADS * 16 * MIB;
}

static int file_of(size_t bytes)
{
    static const char block[BLOCK_BYTES];
    int file = open("/var/tmp", O_TMPFILE | O_RDWR, 0600);
    for (size_t at = 0; file >= 0 && at < bytes; at += sizeof block)
        if (write(file, block, sizeof block) != sizeof block)
            file = -1;
    if (file < 0)
        checked(NULL, "file");
    return file;
}

/* `Rss` of smaps_rollup: what is counted otherwise is not exact while the process runs. */
static uint64_t resident_bytes(void)
{
    static char text[4096];
    int file = open("/proc/self/smaps_rollup", O_RDONLY);
    ssize_t bytes = read(file, text, sizeof text - 1);
    char *line = bytes > 0 ? strstr(text, "\nRss:") : NULL;
    return line != NULL ? strtoull(line + 5, NULL, 10) * 1024 : 0;
}

static void say_growth(const char *function, size_t bytes)
{
    say("grow %s %zu", function, bytes);
}

static void fault_often(uint64_t rounds)
{
    char *memory = map(4 * MIB, MAP_PRIVATE);
    uint64_t begun_ns = now_ns();
    for (uint64_t round = 0; round < rounds; round++) {
        touch(memory, 4 * MIB);
        madvise(memory, 4 * MIB, MADV_DONTNEED);
    }
    say_number("elapsed_ns", now_ns() - begun_ns);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t rounds = number(argc, argv, 1, 0);
    int file = file_of(16 * MIB);

    begin(options);
    if (rounds > 0) {
        fault_often(rounds);
        finish(options);
        return 0;
    }
    say_growth("grow_heap", grow_heap());
    say_growth("grow_anonymous", grow_anonymous());
    say_growth("grow_huge", grow_huge());
    say_growth("grow_shared", grow_shared());
    say_growth("grow_file", grow_file(file));
    say_growth("grow_copies", grow_copies(file));
    say_growth("grow_by_read", grow_by_read(file));
    say_growth("grow_and_shrink", grow_and_shrink());
    say_growth("grow_in_thread", in_threads(grow_in_thread, map(64 * MIB, MAP_PRIVATE)));
    say_growth("grow_huge_in_thread", in_threads(grow_huge_in_thread, map_huge(64 * MIB)));
    say_growth("grow_populated", grow_populated());
    say_number("resident", resident_bytes());
    finish(options);
    return 0;
}
