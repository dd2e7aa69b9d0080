/*
 * mappings: maps and unmaps memory by system calls, from functions of its own, and says what each has mapped:
 *   mapping <function> <kind> <by> <calls> <mapped bytes> <live bytes> <live pieces> <failed calls>
 *   inherited_unmapped_bytes <what its child has unmapped of what it had before>
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define KIB ((size_t)1024)
#define PAGE ((size_t)4096)
/* More than the C library takes from its heap: it maps it, with a page for itself. */
#define LARGE (1024 * KIB)

static char *anonymous(void *at, size_t size, int flags)
{
    return mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

SEPARATE static char *map_three(int index)
{
    char *memory = anonymous(NULL, 256 * KIB, 0);
    memory[0] = index;
    return memory;
}

/* Not by the C library's function. */
SEPARATE static char *map_directly(void)
{
    long result = syscall(SYS_mmap, NULL, 64 * KIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(result);
    return (char *)result;
}

/* Half a page more than it says is a whole one. */
SEPARATE static void map_shared(void)
{
    char *memory = mmap(NULL, 8 * KIB + 1, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    KEEP(memory);
}

SEPARATE static void map_file(int file)
{
    char *memory = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
    KEEP(memory);
}

SEPARATE static void map_nothing(void)
{
    char *memory = anonymous(NULL, 0, 0);
    KEEP(memory);
}

/* In place of what is there. */
SEPARATE static void replace(char *memory)
{
    memory = anonymous(memory, 16 * KIB, MAP_FIXED);
    KEEP(memory);
}

SEPARATE static char *grow(char *memory)
{
    memory = mremap(memory, 256 * KIB, 512 * KIB, MREMAP_MAYMOVE);
    KEEP(memory);
    return memory;
}

SEPARATE static void *allocate(void)
{
    void *block = malloc(LARGE);
    KEEP(block);
    return block;
}

SEPARATE static void move_break(intptr_t bytes)
{
    void *before = sbrk(bytes);
    KEEP(before);
}

SEPARATE static void map_in_child(void)
{
    char *memory = anonymous(NULL, 32 * KIB, 0);
    KEEP(memory);
}

static void say_mapping(const char *function, const char *kind, const char *by, const uint64_t numbers[5])
{
    say("mapping %s %s %s %lu %lu %lu %lu %lu", function, kind, by, numbers[0], numbers[1], numbers[2], numbers[3],
        numbers[4]);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    int file = open("/proc/self/exe", O_RDONLY);
    if (file < 0)
        return 2;
    begin(options);

    char *three[3];
    for (int index = 0; index < 3; index++)
        three[index] = map_three(index);
    /* A hole: two pieces are left of the first, and 64 KiB less of its 256. */
    munmap(three[0] + 64 * KIB, 64 * KIB);
    munmap(three[1], 256 * KIB);
    /* Of the third, moved and made larger, nothing is left; then 16 KiB in the middle are others'. */
    char *grown = grow(three[2]);
    replace(grown + 128 * KIB);
    char *direct = map_directly();
    munmap(direct, 64 * KIB);
    map_shared();
    map_file(file);
    map_nothing();
    /* The end of the heap is moved up, and half as far down again; before the allocator has one. */
    move_break(128 * KIB);
    move_break(-64 * (intptr_t)KIB);
    void *block = allocate();
    free(allocate());

    pid_t child = fork();
    if (child == 0) {
        munmap(grown, 64 * KIB);
        map_in_child();
        _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        return 1;

    say_mapping("map_three", "anonymous", "program", (uint64_t[]){3, 768 * KIB, 192 * KIB, 2, 0});
    say_mapping("grow", "anonymous", "program", (uint64_t[]){1, 512 * KIB, 496 * KIB, 2, 0});
    say_mapping("replace", "anonymous", "program", (uint64_t[]){1, 16 * KIB, 16 * KIB, 1, 0});
    say_mapping("map_directly", "anonymous", "program", (uint64_t[]){1, 64 * KIB, 0, 0, 0});
    say_mapping("map_shared", "shared", "program", (uint64_t[]){1, 12 * KIB, 12 * KIB, 1, 0});
    say_mapping("map_file", "file", "program", (uint64_t[]){1, 8 * KIB, 8 * KIB, 1, 0});
    say_mapping("map_nothing", "anonymous", "program", (uint64_t[]){0, 0, 0, 0, 1});
    say_mapping("move_break", "heap", "program", (uint64_t[]){1, 128 * KIB, 64 * KIB, 1, 0});
    say_mapping("allocate", "anonymous", "allocator", (uint64_t[]){2, 2 * (LARGE + PAGE), LARGE + PAGE, 1, 0});
    say_mapping("map_in_child", "anonymous", "program", (uint64_t[]){1, 32 * KIB, 32 * KIB, 1, 0});
    say_number("inherited_unmapped_bytes", 64 * KIB);
    struct counts counts = {0};
    counts.allocations = 2;
    counts.allocated_bytes = 2 * LARGE;
    counts.frees = 1;
    counts.freed_bytes = LARGE;
    say_counts(&counts);
    KEEP(block);
    finish(options);
    return 0;
}
