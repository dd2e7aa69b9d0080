/*
 * paced [ms=2000] [size=64] [pause_ns=0] [plugin=PATH | exec]: allocates and frees, at work for so many ns in between,
 * until it has used so many ms of processor time; prints its counts and `cpu_ns`, what it used in its loop.
 * With `plugin=` it loads that library (plugin.c) at half of the time and has it leak a block in each turn from then on;
 * with `exec` it executes itself then, to do the rest. In both cases it prints `changed_ns` (CLOCK_MONOTONIC, ns) before.
 */
#include "common.h"

#include <dlfcn.h>

/* Turns between two looks at how much processor time was used. */
enum { TURNS = 256 };

static struct counts counts;
static size_t size;
static uint64_t pause_ns;
static unsigned plugin_bytes;
static void (*plugin_leak)(unsigned long long);

static uint64_t used_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void work_for(uint64_t ns)
{
    if (ns == 0)
        return;
    uint64_t until = now_ns() + ns;
    while (now_ns() < until)
        ;
}

SEPARATE static void turn(void)
{
    void *block = malloc(size);
    KEEP(block);
    work_for(pause_ns);
    free(block);
    count_allocation(&counts, size);
    count_free(&counts, size);
    if (plugin_leak != NULL) {
        plugin_leak(1);
        count_allocation(&counts, plugin_bytes);
    }
}

static void turns_until(uint64_t until_ns)
{
    do
        for (unsigned done = 0; done < TURNS; done++)
            turn();
    while (used_ns() < until_ns);
}

static void load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (library == NULL) {
        dprintf(STDERR_FILENO, "paced: %s\n", dlerror());
        _exit(3);
    }
    plugin_bytes = *(const unsigned *)dlsym(library, "plugin_leak_bytes");
    *(void **)&plugin_leak = dlsym(library, "plugin_leak");
}

static void execute_itself(char **argv, uint64_t ms)
{
    char numbers[3][24];
    snprintf(numbers[0], sizeof numbers[0], "%llu", (unsigned long long)ms);
    snprintf(numbers[1], sizeof numbers[1], "%zu", size);
    snprintf(numbers[2], sizeof numbers[2], "%llu", (unsigned long long)pause_ns);
    execv("/proc/self/exe", (char *[]){argv[0], numbers[0], numbers[1], numbers[2], NULL});
    dprintf(STDERR_FILENO, "paced: cannot execute itself\n");
    _exit(3);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    int executes = take_word(&argc, argv, "exec");
    const char *plugin = NULL;
    if (argc > 1 && strncmp(argv[argc - 1], "plugin=", 7) == 0)
        plugin = argv[--argc] + 7;
    uint64_t ms = number(argc, argv, 1, 2000);
    size = number(argc, argv, 2, 64);
    pause_ns = number(argc, argv, 3, 0);

    begin(options);
    uint64_t began_ns = used_ns(), half_ns = ms * 1000000 / 2;
    if (plugin != NULL || executes) {
        turns_until(began_ns + half_ns);
        say_number("changed_ns", now_ns());
        if (executes)
            execute_itself(argv, ms / 2);
        load(plugin);
    }
    turns_until(began_ns + 2 * half_ns);
    uint64_t cpu_ns = used_ns() - began_ns;
    say_counts(&counts);
    say_number("cpu_ns", cpu_ns);
    finish(options);
    return 0;
}
