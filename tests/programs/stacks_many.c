/*
 * stacks_many libraries FOLDER COUNT: loads libraries lib000.so … (stacks_one_of_many.c) and allocates below functions of
 * some of them, in two chains.
 * stacks_many threads COUNT: threads that are all alive when each of them allocates once; fewer if the system has no
 * more, as the line `threads <count>` says.
 */
#define _GNU_SOURCE
#include "stacks.h"
#include <dlfcn.h>
#include <pthread.h>

enum { MOST_LIBRARIES = 1000, MOST_THREADS = 20000, BY_FEW = 5301, BY_MANY = 5302, IN_MANY_THREADS = 5303 };
enum { CHAIN_STEP = 4, THREAD_STACK_BYTES = 32 * 1024 };

typedef void *(*through)(const void *const *functions, size_t size);
static const void *all[MOST_LIBRARIES];

SEPARATE static void *allocate(const void *const *functions, size_t size)
{
    KEEP(functions);
    void *block = malloc(size);
    KEEP(block);
    return block;
}

/* Outermost first; a function calls the one after it in the list. */
SEPARATE static void call(const void *const *functions, size_t size)
{
    void *block = ((through)(uintptr_t)functions[0])(functions + 1, size);
    KEEP(block);
}

static void load(const char *folder, unsigned libraries)
{
    for (unsigned number = 0; number < libraries; number++) {
        char path[4000], name[32];
        snprintf(path, sizeof path, "%s/lib%03u.so", folder, number);
        snprintf(name, sizeof name, "through_%03u", number);
        void *library = dlopen(path, RTLD_NOW);
        all[number] = library ? dlsym(library, name) : NULL;
        if (all[number] == NULL) {
            dprintf(STDERR_FILENO, "%s\n", dlerror());
            _exit(1);
        }
    }
}

/* The functions of every `step`th library, and the chain of their calls. */
static void chain_through(unsigned libraries, unsigned step, const void **functions, char *chain)
{
    unsigned length = 0, place = 0;
    for (unsigned number = 0; number < libraries; number += step)
        functions[place++] = all[number];
    functions[place] = (const void *)(uintptr_t)allocate;
    while (place-- > 0)
        length += sprintf(chain + length, " <- through_%03u", place * step);
}

/* Held until all threads are there. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

SEPARATE static void *in_thread(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    void *block = malloc(IN_MANY_THREADS);
    KEEP(block);
    return NULL;
}

static int start_threads(uint64_t wanted, pthread_t *threads)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
    int started = 0;
    while ((uint64_t)started < wanted && pthread_create(&threads[started], &attributes, in_thread, NULL) == 0)
        started++;
    return started;
}

int main(int argc, char **argv)
{
    static const void *few[MOST_LIBRARIES + 1], *many[MOST_LIBRARIES + 1];
    static char by_few[2000], by_many[3800], chain[3900];
    static pthread_t threads[MOST_THREADS];
    struct options options = take_options(&argc, argv);

    if (take_word(&argc, argv, "threads")) {
        uint64_t wanted = number(argc, argv, 1, 1000);
        begin(options);
        pthread_mutex_lock(&gate);
        int started = start_threads(wanted > MOST_THREADS ? MOST_THREADS : wanted, threads);
        pthread_mutex_unlock(&gate);
        for (int index = 0; index < started; index++)
            pthread_join(threads[index], NULL);
        say_number("threads", (uint64_t)started);
        say_stack(IN_MANY_THREADS, started, "in_thread <- " IN_THREAD);
    } else if (take_word(&argc, argv, "libraries") && argc == 3) {
        unsigned libraries = (unsigned)number(argc, argv, 2, 0);
        if (libraries > MOST_LIBRARIES)
            return 2;
        load(argv[1], libraries);
        chain_through(libraries, libraries / 2 - 1, few, by_few);
        chain_through(libraries, CHAIN_STEP, many, by_many);
        begin(options);
        for (int done = 0; done < 20; done++) {
            call(few, BY_FEW);
            call(many, BY_MANY);
        }
        snprintf(chain, sizeof chain, "allocate%s <- call <- " IN_MAIN, by_few);
        say_stack(BY_FEW, 20, chain);
        snprintf(chain, sizeof chain, "allocate%s <- call <- " IN_MAIN, by_many);
        say_stack(BY_MANY, 20, chain);
    } else {
        return 2;
    }
    finish(options);
    return 0;
}
