/*
 * churn [threads=4]: begins so many threads and joins them, again and again until it is killed; each allocates a block
 * and maps a page.
 */
#include <sys/mman.h>

#include "common.h"
#include "threads.h"

static void *run(void *argument)
{
    void *block = malloc(100);
    KEEP(block);
    free(block);
    volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        abort();
    page[0] = 1;
    munmap((void *)page, 4096);
    return argument;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t threads = number(argc, argv, 1, 4);
    if (threads == 0 || threads > MOST_THREADS)
        return 2;
    begin(options);
    for (;;) {
        pthread_t handles[MOST_THREADS];
        for (uint64_t thread = 0; thread < threads; thread++)
            start_thread(&handles[thread], run, NULL);
        for (uint64_t thread = 0; thread < threads; thread++)
            pthread_join(handles[thread], NULL);
    }
}
