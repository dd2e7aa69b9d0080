/*
 * vforker [children=4] [blocks=50]: starts children of the same program, in turn by posix_spawn and by vfork + exec, and
 * allocates itself before and after. Each process prints
 *   parent|child <pid> <allocations> <bytes> <frees> <live blocks> <live bytes>
 */
#include "common.h"

#include <spawn.h>
#include <sys/wait.h>

enum { SIZE = 88, CHILD_SIZE = 104 };

extern char **environ;

static void allocate(const char *who, uint64_t blocks, size_t size)
{
    for (uint64_t index = 0; index < blocks; index++) {
        void *block = malloc(size);
        KEEP(block);
        if (index % 2 == 1)
            free(block);
    }
    if (who == NULL)
        return;
    uint64_t live = blocks - blocks / 2;
    say("%s %d %llu %llu %llu %llu %llu", who, (int)getpid(), (unsigned long long)blocks,
        (unsigned long long)(blocks * size), (unsigned long long)(blocks / 2), (unsigned long long)live,
        (unsigned long long)(live * size));
}

int main(int argc, char **argv)
{
    if (take_word(&argc, argv, "child")) {
        allocate("child", number(argc, argv, 1, 50), CHILD_SIZE);
        return 0;
    }
    struct options options = take_options(&argc, argv);
    uint64_t children = number(argc, argv, 1, 4);
    uint64_t blocks = number(argc, argv, 2, 50);

    begin(options);
    char count[24];
    snprintf(count, sizeof count, "%llu", (unsigned long long)blocks);
    char *arguments[] = {"/proc/self/exe", "child", count, NULL};
    for (uint64_t index = 0; index < children; index++) {
        pid_t child;
        if (index % 2 == 0) {
            if (posix_spawn(&child, arguments[0], NULL, NULL, arguments, environ) != 0)
                abort();
        } else {
            child = vfork();
            if (child == 0) {
                execv(arguments[0], arguments);
                _exit(3);
            }
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            abort();
    }
    allocate("parent", blocks, SIZE);
    finish(options);
    return 0;
}
