/*
 * jit [count=3] [pause in ms=0] [late]: allocations from code that the program writes itself, with frame pointers, and names in
 * /tmp/perf-PID.map as a just-in-time compiler does. With `late` the map is written after the allocations, as by
 * compilers that buffer it. A pause is made before the allocations and after them, for a
 * tracer that has to look at the new code while the program runs. The line
 *   generated <size> <count> <function> <- <function> <- …
 * has the generated functions, the allocator's caller first; what calls the last of them is `into_generated`.
 */
#include "common.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>

enum { GENERATED = 7007, FUNCTIONS = 3, FUNCTION_BYTES = 64, MAP_LINE_BYTES = 128 };

typedef void *(*allocate_function)(size_t);

/* Innermost first. A name may hold blanks. */
static const char *const names[FUNCTIONS] = {"generated_inner", "LazyCompile:~middle /srv/app.js:3:7", "generated_outer"};

/* push %rbp; mov %rsp,%rbp; movabs $callee,%rax; call *%rax; pop %rbp; ret */
static size_t write_function(unsigned char *code, const void *callee)
{
    static const unsigned char begin[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xb8};
    static const unsigned char end[] = {0xff, 0xd0, 0x5d, 0xc3};
    memcpy(code, begin, sizeof begin);
    memcpy(code + sizeof begin, &callee, sizeof callee);
    memcpy(code + sizeof begin + sizeof callee, end, sizeof end);
    return sizeof begin + sizeof callee + sizeof end;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void write_map(const unsigned char *code, const size_t *sizes)
{
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    int map = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644);
    if (map < 0) {
        die("cannot write the map");
    }
    for (int number = 0; number < FUNCTIONS; number++) {
        char line[MAP_LINE_BYTES];
        int length = snprintf(line, sizeof line, "%lx %zx %s\n", (unsigned long)(code + number * FUNCTION_BYTES),
            sizes[number], names[number]);
        if (write(map, line, (size_t)length) != length) {
            die("cannot write the map");
        }
    }
    close(map);
}

SEPARATE static void *into_generated(allocate_function function, size_t size)
{
    void *block = function(size);
    KEEP(block);
    return block;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 3);
    uint64_t pause_ms = number(argc, argv, 2, 0);
    bool late = argc > 3 && strcmp(argv[3], "late") == 0;

    begin(options);
    size_t bytes = FUNCTIONS * FUNCTION_BYTES;
    unsigned char *code = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED) {
        die("cannot map memory for code");
    }
    size_t sizes[FUNCTIONS];
    const void *callee = (const void *)malloc;
    for (int number = 0; number < FUNCTIONS; number++) {
        unsigned char *function = code + number * FUNCTION_BYTES;
        sizes[number] = write_function(function, callee);
        callee = function;
    }
    if (mprotect(code, bytes, PROT_READ | PROT_EXEC) != 0) {
        die("cannot make memory executable");
    }
    if (!late) {
        write_map(code, sizes);
    }
    allocate_function outermost;
    memcpy(&outermost, &callee, sizeof outermost);
    struct counts counts = {0};
    usleep((useconds_t)(pause_ms * 1000));
    for (uint64_t done = 0; done < count; done++) {
        void *block = into_generated(outermost, GENERATED);
        KEEP(block);
        count_allocation(&counts, GENERATED);
    }
    usleep((useconds_t)(pause_ms * 1000));
    if (late) {
        write_map(code, sizes);
    }
    say("generated %d %llu %s <- %s <- %s", GENERATED, (unsigned long long)count, names[0], names[1], names[2]);
    say_counts(&counts);
    finish(options);
    return 0;
}
