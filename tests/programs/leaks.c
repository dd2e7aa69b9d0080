/*
 * leaks [times=3] [noise=100000] [threads] [fork] [plugin=PATH [unload]]: known leaks, each from a function of its own, in
 * the middle of much that is freed. Each line
 *   leak <function> <count> <bytes> <line>
 * gives the function that called the allocator, and where. With `fork` a child leaks too:
 *   child_leak <pid> <function> <count> <bytes> <line>
 * `threads` adds blocks that one thread allocates and another frees, or forgets. `plugin=` loads that library (plugin.c),
 * whose leaks count like the program's; `unload` closes it again.
 */
#include "common.h"
#include "threads.h"

#include <dlfcn.h>
#include <malloc.h>
#include <sys/wait.h>

enum { LIVE_NOISE = 1000, HANDED = 500 };

static uint64_t times;
static struct {
    const char *function;
    uint64_t count;
    uint64_t bytes;
    int line;
} leaks[32];
static unsigned leak_kinds;

/* Set by each leaking function on the line of its allocation. */
static int line;

static void leaked(const char *function, size_t bytes)
{
    unsigned kind = 0;
    while (kind < leak_kinds && leaks[kind].function != function)
        kind++;
    if (kind == leak_kinds)
        leaks[leak_kinds++].function = function;
    leaks[kind].count++;
    leaks[kind].bytes += bytes;
    leaks[kind].line = line;
}

/* The address is overwritten on return, so that no conservative scan finds it either. */
#define FORGET(block) do { KEEP(block); (block) = NULL; KEEP(block); } while (0)

SEPARATE static void leak_malloc(void)
{
    line = __LINE__; void *block = malloc(111);
    FORGET(block);
    leaked(__func__, 111);
}

SEPARATE static void leak_calloc(void)
{
    line = __LINE__; void *block = calloc(11, 21);
    FORGET(block);
    leaked(__func__, 231);
}

/* The leaked block is the one that realloc returned. */
SEPARATE static void leak_realloc(void)
{
    void *block = malloc(32);
    line = __LINE__; block = realloc(block, 3333);
    FORGET(block);
    leaked(__func__, 3333);
}

SEPARATE static void leak_shrunk(void)
{
    void *block = malloc(5000);
    line = __LINE__; block = realloc(block, 77);
    FORGET(block);
    leaked(__func__, 77);
}

/* A failed realloc leaves the old block alive, and here nobody keeps it. */
SEPARATE static void leak_after_failed_realloc(void)
{
    static volatile size_t impossible = SIZE_MAX / 2;
    line = __LINE__; void *block = malloc(444);
    void *none = realloc(block, impossible);
    if (none != NULL)
        abort();
    FORGET(block);
    leaked(__func__, 444);
}

SEPARATE static void leak_aligned(void)
{
    void *block = NULL;
    line = __LINE__; if (posix_memalign(&block, 256, 555) != 0) abort();
    FORGET(block);
    leaked(__func__, 555);
}

/* The allocator's caller is strdup in libc; the line is that of the call to it. */
SEPARATE static void leak_strdup(void)
{
    line = __LINE__; char *text = strdup("a text of 32 characters, you see");
    FORGET(text);
    leaked(__func__, 33);
}

/* A list whose head is lost. */
SEPARATE static void leak_list(void)
{
    struct node {
        struct node *next;
        char bytes[92];
    } *head = NULL;
    for (unsigned length = 0; length < 4; length++) {
        line = __LINE__; struct node *node = malloc(sizeof *node);
        node->next = head;
        head = node;
        leaked(__func__, sizeof *node);
    }
    FORGET(head);
}

SEPARATE static void leak_in_child(void)
{
    line = __LINE__; void *block = malloc(666);
    FORGET(block);
    leaked(__func__, 666);
}

/* Much that lives for a while and is freed; nothing of it is left. */
SEPARATE static void make_noise(uint64_t count, uint64_t random)
{
    static void *live[LIVE_NOISE];
    for (uint64_t done = 0; done < count; done++) {
        void **slot = &live[next_random(&random) % LIVE_NOISE];
        size_t size = 1 + next_random(&random) % 2000;
        if (*slot != NULL && size % 4 == 0) {
            *slot = realloc(*slot, size);
            continue;
        }
        free(*slot);
        *slot = size % 5 == 0 ? calloc(1, size) : malloc(size);
    }
    for (unsigned index = 0; index < LIVE_NOISE; index++) {
        free(live[index]);
        live[index] = NULL;
    }
}

static void *handed[HANDED];

SEPARATE static void *allocate_in_thread(void *unused)
{
    for (unsigned index = 0; index < HANDED; index++)
        handed[index] = malloc(index + 1);
    return unused;
}

static void *forgotten_by_main;

SEPARATE static void *leak_across_threads(void *unused)
{
    line = __LINE__; forgotten_by_main = malloc(777);
    leaked(__func__, 777);
    return unused;
}

static void in_thread(void *(*function)(void *))
{
    pthread_t thread;
    start_thread(&thread, function, NULL);
    pthread_join(thread, NULL);
}

static void plugin_leaks(void *plugin)
{
    void (*leak)(unsigned long long) = (void (*)(unsigned long long))dlsym(plugin, "plugin_leak");
    const unsigned *bytes = dlsym(plugin, "plugin_leak_bytes");
    const int *plugin_line = dlsym(plugin, "plugin_leak_line");
    if (leak == NULL || bytes == NULL || plugin_line == NULL)
        abort();
    leak(times);
    for (uint64_t done = 0; done < times; done++) {
        line = *plugin_line;
        leaked("plugin_leak", *bytes);
    }
}

static void say_leaks(void)
{
    for (unsigned kind = 0; kind < leak_kinds; kind++)
        say("leak %s %llu %llu %d", leaks[kind].function, (unsigned long long)leaks[kind].count,
            (unsigned long long)leaks[kind].bytes, leaks[kind].line);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    int with_threads = take_word(&argc, argv, "threads");
    int with_fork = take_word(&argc, argv, "fork");
    int unload = take_word(&argc, argv, "unload");
    const char *plugin_path = NULL;
    for (int index = 1; index < argc && plugin_path == NULL; index++)
        if (strncmp(argv[index], "plugin=", 7) == 0) {
            plugin_path = argv[index] + 7;
            take_word(&argc, argv, argv[index]);
        }
    times = number(argc, argv, 1, 3);
    uint64_t noise = number(argc, argv, 2, 100000);

    begin(options);
    make_noise(noise / 2, 1);
    void *plugin = NULL;
    if (plugin_path != NULL && (plugin = dlopen(plugin_path, RTLD_NOW)) == NULL)
        abort();
    for (uint64_t done = 0; done < times; done++) {
        leak_malloc();
        leak_calloc();
        leak_realloc();
        make_noise(noise / 10 / (times ? times : 1), done + 2);
        leak_shrunk();
        leak_after_failed_realloc();
        leak_aligned();
        leak_strdup();
        leak_list();
        if (with_threads) {
            in_thread(allocate_in_thread);
            for (unsigned index = 0; index < HANDED; index++)
                free(handed[index]);
            in_thread(leak_across_threads);
            forgotten_by_main = NULL;
        }
    }
    if (plugin != NULL) {
        plugin_leaks(plugin);
        if (unload)
            dlclose(plugin);
    }
    make_noise(noise / 2, 99);
    say_leaks();

    if (with_fork) {
        void *inherited = malloc(888);
        pid_t child = fork();
        if (child == 0) {
            memset(leaks, 0, sizeof leaks);
            leak_kinds = 0;
            make_noise(noise / 10, 100);
            for (uint64_t done = 0; done < times; done++)
                leak_in_child();
            free(inherited); /* the parent's block, which the parent still has */
            for (unsigned kind = 0; kind < leak_kinds; kind++)
                say("child_leak %d %s %llu %llu %d", (int)getpid(), leaks[kind].function,
                    (unsigned long long)leaks[kind].count, (unsigned long long)leaks[kind].bytes, leaks[kind].line);
            _exit(0);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            abort();
        free(inherited);
    }
    finish(options);
    return 0;
}
