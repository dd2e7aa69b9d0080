/*
 * forker [blocks=100] [inherited frees=40] [own=30]: a child that frees some of its parent's blocks, resizes one and
 * allocates its own, half of which it leaves alive; then the parent frees the same blocks. Each prints
 *   parent|child <pid> <allocations> <bytes> <frees> <inherited frees> <live blocks> <live bytes>
 * where live means the process's own blocks. The child's resizing is one inherited free and one allocation.
 */
#include "common.h"

#include <sys/wait.h>

enum { MOST_BLOCKS = 100000, SIZE = 72, OWN_SIZE = 136, RESIZED = 2000 };

static void *blocks[MOST_BLOCKS];

static void say_process(const char *who, const struct counts *counts, uint64_t inherited_frees)
{
    say("%s %d %llu %llu %llu %llu %llu %llu", who, (int)getpid(), (unsigned long long)counts->allocations,
        (unsigned long long)counts->allocated_bytes, (unsigned long long)counts->frees,
        (unsigned long long)inherited_frees, (unsigned long long)(counts->allocations - counts->frees),
        (unsigned long long)(counts->allocated_bytes - counts->freed_bytes));
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 100);
    uint64_t inherited_frees = number(argc, argv, 2, 40);
    uint64_t own = number(argc, argv, 3, 30);
    if (count > MOST_BLOCKS || inherited_frees >= count)
        return 2;

    begin(options);
    struct counts counts = {0};
    for (uint64_t index = 0; index < count; index++) {
        blocks[index] = malloc(SIZE);
        count_allocation(&counts, SIZE);
    }

    pid_t child = fork();
    if (child == 0) {
        struct counts counts = {0};
        for (uint64_t index = 0; index < inherited_frees; index++)
            free(blocks[index]);
        void *resized = realloc(blocks[inherited_frees], RESIZED);
        KEEP(resized);
        count_allocation(&counts, RESIZED);
        for (uint64_t index = 0; index < own; index++) {
            void *block = malloc(OWN_SIZE);
            KEEP(block);
            count_allocation(&counts, OWN_SIZE);
            if (index % 2 == 1) {
                free(block);
                count_free(&counts, OWN_SIZE);
            }
        }
        say_process("child", &counts, inherited_frees + 1);
        _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        abort();
    for (uint64_t index = 0; index < inherited_frees; index++) {
        free(blocks[index]);
        count_free(&counts, SIZE);
    }
    say_process("parent", &counts, 0);
    finish(options);
    return 0;
}
