/*
 * execer [generations=2] [blocks=100] [size=48] [thread] [-- COMMAND…]: each image allocates its blocks, frees every
 * second one and executes the next image of the same pid: itself, at last COMMAND. Each image prints
 *   image <generation, counting down> <pid> <allocations> <bytes> <frees> <live blocks> <live bytes>
 * With `thread` the exec is called by a second thread, which then takes the place of the first.
 */
#include "common.h"
#include "threads.h"

static char **next_command;

static void *execute(void *unused)
{
    execv(next_command[0], next_command);
    dprintf(STDERR_FILENO, "execer: cannot execute %s\n", next_command[0]);
    _exit(3);
    return unused;
}

int main(int argc, char **argv)
{
    char **command = NULL;
    for (int index = 1; index < argc; index++)
        if (strcmp(argv[index], "--") == 0) {
            command = &argv[index + 1];
            argc = index;
        }
    /* The command may have words of its own, so only what stands before `--` is looked at. */
    int count = argc;
    char *own[8] = {0};
    for (int index = 0; index < argc && index < 7; index++)
        own[index] = argv[index];
    struct options options = take_options(&count, own);
    int from_thread = take_word(&count, own, "thread");
    uint64_t generations = number(count, own, 1, 2);
    uint64_t blocks = number(count, own, 2, 100);
    size_t size = number(count, own, 3, 48);

    begin(options);
    for (uint64_t index = 0; index < blocks; index++) {
        void *block = malloc(size);
        KEEP(block);
        if (index % 2 == 1)
            free(block);
    }
    uint64_t live = blocks - blocks / 2;
    say("image %llu %d %llu %llu %llu %llu %llu", (unsigned long long)generations, (int)getpid(),
        (unsigned long long)blocks, (unsigned long long)(blocks * size), (unsigned long long)(blocks / 2),
        (unsigned long long)live, (unsigned long long)(live * size));

    char numbers[3][24];
    char *arguments[64] = {own[0], numbers[0], numbers[1], numbers[2]};
    unsigned used = 4;
    if (generations > 1) {
        snprintf(numbers[0], sizeof numbers[0], "%llu", (unsigned long long)generations - 1);
        snprintf(numbers[1], sizeof numbers[1], "%llu", (unsigned long long)blocks);
        snprintf(numbers[2], sizeof numbers[2], "%zu", size);
        if (from_thread)
            arguments[used++] = "thread";
        if (options.linger)
            arguments[used++] = "linger";
        if (command != NULL)
            arguments[used++] = "--";
        for (char **word = command; word != NULL && *word != NULL && used < 63; word++)
            arguments[used++] = *word;
        next_command = arguments;
        own[0] = arguments[0] = "/proc/self/exe";
    } else if (command != NULL && *command != NULL) {
        next_command = command;
    } else {
        finish(options);
        return 0;
    }
    if (!from_thread)
        execute(NULL);
    pthread_t thread;
    start_thread(&thread, execute, NULL);
    pause();
    return 3;
}
