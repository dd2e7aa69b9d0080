/*
 * storm <children>: forks as many children, a few at once; each allocates two blocks, frees one of them and one that
 * it has inherited, and exits with its number modulo 8. Prints what all of them did together:
 *   allocations <n>
 *   frees <n>
 */
#include "common.h"

#include <sys/wait.h>

enum { OWN_BLOCKS = 100, AT_ONCE = 32 };

static void *blocks[OWN_BLOCKS];

static void work_as_child(void)
{
    void *kept = malloc(77);
    void *freed = malloc(78);
    KEEP(kept);
    KEEP(freed);
    free(blocks[3]);
    free(freed);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t children = number(argc, argv, 1, 100);

    begin(options);
    for (int index = 0; index < OWN_BLOCKS; index++) {
        blocks[index] = malloc(100 + (size_t)index);
        KEEP(blocks[index]);
    }
    uint64_t running = 0;
    for (uint64_t index = 0; index < children; index++) {
        pid_t child = fork();
        if (child < 0)
            abort();
        if (child == 0) {
            work_as_child();
            _exit((int)(index % 8));
        }
        for (running++; running >= AT_ONCE; running--)
            if (wait(NULL) < 0)
                abort();
    }
    while (wait(NULL) > 0)
        ;
    for (int index = 0; index < OWN_BLOCKS; index++)
        free(blocks[index]);
    say("allocations %llu", (unsigned long long)(OWN_BLOCKS + 2 * children));
    say("frees %llu", (unsigned long long)(OWN_BLOCKS + children));
    finish(options);
    return 0;
}
