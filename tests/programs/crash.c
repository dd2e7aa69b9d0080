/*
 * crash [how=abort] [blocks=100] [code=7]: allocates, prints its figures and ends by `how`:
 *   abort, segv, kill (SIGKILL to itself), exit, _exit, quick_exit, or thread (segv in a second thread).
 * The exit forms end with the code given. Every block is alive at the end.
 */
#include "common.h"
#include "threads.h"

#include <signal.h>
#include <sys/resource.h>

enum { SIZE = 120 };

static void *fault(void *unused)
{
    *(volatile char *)unused = 1;
    return unused;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    const char *how = argc > 1 ? argv[1] : "abort";
    uint64_t blocks = number(argc, argv, 2, 100);
    int code = (int)number(argc, argv, 3, 7);
    struct rlimit no_core = {0, 0};
    if (setrlimit(RLIMIT_CORE, &no_core) != 0)
        return 3;

    begin(options);
    struct counts counts = {0};
    for (uint64_t index = 0; index < blocks; index++) {
        void *block = malloc(SIZE);
        KEEP(block);
        count_allocation(&counts, SIZE);
    }
    say_counts(&counts);
    say_number("threads_created", strcmp(how, "thread") == 0);
    finish(options);
    if (strcmp(how, "exit") == 0)
        exit(code);
    if (strcmp(how, "_exit") == 0)
        _exit(code);
    if (strcmp(how, "quick_exit") == 0)
        quick_exit(code);
    if (strcmp(how, "segv") == 0)
        fault(NULL);
    if (strcmp(how, "kill") == 0)
        kill(getpid(), SIGKILL);
    if (strcmp(how, "abort") == 0)
        abort();
    if (strcmp(how, "thread") == 0) {
        pthread_t thread;
        start_thread(&thread, fault, NULL);
        pthread_join(thread, NULL);
    }
    return 2;
}
