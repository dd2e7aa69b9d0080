/*
 * calls [count=1000000] [maps=0]: the cheapest system call in a tight loop, or, with `maps` 1, pairs of mmap and munmap.
 * Prints ns_per_call or ns_per_pair.
 */
#include <sys/mman.h>
#include <sys/syscall.h>

#include "common.h"

static void call(uint64_t count)
{
    for (uint64_t done = 0; done < count; done++)
        if (syscall(SYS_getppid) < 0)
            abort();
}

static void map(uint64_t count)
{
    for (uint64_t done = 0; done < count; done++) {
        void *mapping = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapping == MAP_FAILED || munmap(mapping, 4096) != 0)
            abort();
    }
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 1000000), maps = number(argc, argv, 2, 0);
    if (count == 0)
        return 2;

    begin(options);
    uint64_t began = now_ns();
    if (maps)
        map(count);
    else
        call(count);
    uint64_t elapsed = now_ns() - began;
    say("%s %.2f", maps ? "ns_per_pair" : "ns_per_call", (double)elapsed / (double)count);
    finish(options);
    return 0;
}
