/*
 * threads_close [threads=8]: files that the program has opened before it waits, and that threads close as the last thing
 * they do. The C library frees each one's block then, in its own code, and once more as it empties the cache of the
 * thread that ends: the first is a free, the second is none.
 */
#include "common.h"
#include "threads.h"

static void *work(void *file)
{
    if (fclose(file) != 0)
        abort();
    return NULL;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t threads = number(argc, argv, 1, 8);
    if (threads == 0 || threads > MOST_THREADS)
        return 2;
    FILE *files[MOST_THREADS];
    for (uint64_t index = 0; index < threads; index++)
        if ((files[index] = fopen("/dev/null", "r")) == NULL)
            return 1;

    begin(options);
    pthread_t handles[MOST_THREADS];
    for (uint64_t index = 0; index < threads; index++)
        start_thread(&handles[index], work, files[index]);
    for (uint64_t index = 0; index < threads; index++)
        pthread_join(handles[index], NULL);
    say_number("closed", threads);
    say_number("threads_created", threads);
    finish(options);
    return 0;
}
