/*
 * stacks_dlopen FIRST SECOND [rounds=20] [times=20] [pause in ms=0]: loads the two libraries of stacks_plugin.c in
 * turn, lets each allocate in its constructor, in a function (after a pause) and in its destructor, and unloads it.
 * Prints besides
 *   same_address <rounds in which the second was mapped where the first had been>
 */
#define _GNU_SOURCE
#include "stacks.h"
#include <dlfcn.h>
#include <link.h>

static uint64_t pause_ms;

SEPARATE static uintptr_t use(const char *path, uint64_t times)
{
    void *library = dlopen(path, RTLD_NOW);
    if (library == NULL) {
        dprintf(STDERR_FILENO, "%s\n", dlerror());
        _exit(1);
    }
    void (*works)(unsigned long long);
    *(void **)&works = dlsym(library, "plugin_works");
    usleep((useconds_t)(1000 * pause_ms));
    works(times);
    uintptr_t address = ((struct link_map *)library)->l_addr;
    dlclose(library);
    return address;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    if (argc < 3)
        return 2;
    uint64_t rounds = number(argc, argv, 3, 20), times = number(argc, argv, 4, 20), same = 0;
    pause_ms = number(argc, argv, 5, 0);

    begin(options);
    for (uint64_t round = 0; round < rounds; round++) {
        uintptr_t first = use(argv[1], times), second = use(argv[2], times);
        same += first == second;
    }
    say_stack(5101, rounds, "first_inner <- first_constructor <- @@ <- use <- " IN_MAIN);
    say_stack(5102, rounds * times, "first_inner <- first_outer <- plugin_works <- use <- " IN_MAIN);
    say_stack(5103, rounds, "first_inner <- first_destructor <- @@ <- use <- " IN_MAIN);
    say_stack(5201, rounds, "second_inner <- second_constructor <- @@ <- use <- " IN_MAIN);
    say_stack(5202, rounds * times,
              "second_inner <- second_between <- second_outer <- plugin_works <- use <- " IN_MAIN);
    say_stack(5203, rounds, "second_inner <- second_destructor <- @@ <- use <- " IN_MAIN);
    say_number("same_address", same);
    finish(options);
    return 0;
}
