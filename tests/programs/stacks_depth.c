/*
 * stacks_depth [count=20] [first size=10000] [exec] [fork]: allocations below 5, 20, 50 and 120 functions, in the
 * main thread and in another, and one below more functions than memscope keeps.
 *   exec  then again in a new image, with sizes 50000 higher
 *   fork  in a child, for which the line `ready <pid>` and the waiting are; its parent does the same with the same
 *         sizes until the child has ended
 */
#include "stacks_steps.h"
#include "threads.h"
#include <sys/wait.h>

enum { DEEPEST = 400, SIZES_OF_AN_IMAGE = 50000 };

static const unsigned depths[] = {5, 20, 50, 120};
static uint64_t first, count;

SEPARATE static void *recurse(unsigned depth, size_t size)
{
    void *block = depth <= 1 ? malloc(size) : recurse(depth - 1, size);
    KEEP(block);
    return block;
}

SEPARATE static void *in_thread(void *unused)
{
    (void)unused;
    for (uint64_t done = 0; done < count; done++)
        for (unsigned which = 0; which < 4; which++)
            free(descend(depths[which], first + 5000 + 8 * depths[which]));
    return NULL;
}

/* What of it main does itself must be in main. */
#define ALLOCATE                                                                      \
    do {                                                                              \
        for (uint64_t done = 0; done < count; done++)                                 \
            for (unsigned which = 0; which < 4; which++)                              \
                free(descend(depths[which], first + 8 * depths[which]));              \
        free(recurse(DEEPEST, first + 4000));                                         \
        pthread_t thread;                                                             \
        start_thread(&thread, in_thread, NULL);                                       \
        pthread_join(thread, NULL);                                                   \
    } while (0)

static void say_all(void)
{
    for (unsigned which = 0; which < 4; which++) {
        say_descent(first + 8 * depths[which], count, depths[which], IN_MAIN);
        say_descent(first + 5000 + 8 * depths[which], count, depths[which], "in_thread <- " IN_THREAD);
    }
    say("stack %llu 1 depth_limit recurse*%d <- " IN_MAIN, (unsigned long long)first + 4000, DEEPEST);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    int exec = take_word(&argc, argv, "exec"), forks = take_word(&argc, argv, "fork");
    count = number(argc, argv, 1, 20);
    first = number(argc, argv, 2, 10000);

    pid_t child = forks ? fork() : 0;
    if (child != 0) {
        while (waitpid(child, NULL, WNOHANG) == 0)
            ALLOCATE;
        return 0;
    }
    begin(options);
    ALLOCATE;
    say_all();
    if (exec) {
        char blocks[24], next[24];
        snprintf(blocks, sizeof blocks, "%llu", (unsigned long long)count);
        snprintf(next, sizeof next, "%llu", (unsigned long long)first + SIZES_OF_AN_IMAGE);
        execl("/proc/self/exe", argv[0], blocks, next, (char *)NULL);
        return 1;
    }
    finish(options);
    return 0;
}
