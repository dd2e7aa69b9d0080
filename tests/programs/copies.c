/*
 * copies LIBRARY… : loads libraries of copies_plugin.c, each of which allocates in its constructor, at a time when nobody
 * can know its code yet. Prints
 *   library <allocations of its constructor> <bytes of each>     for each
 */
#include "common.h"
#include <dlfcn.h>

SEPARATE static void load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (library == NULL) {
        dprintf(STDERR_FILENO, "%s\n", dlerror());
        _exit(1);
    }
    const unsigned *count = dlsym(library, "copies_count"), *bytes = dlsym(library, "copies_bytes");
    if (count == NULL || bytes == NULL)
        abort();
    say("library %u %u", *count, *bytes);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    begin(options);
    for (int index = 1; index < argc; index++)
        load(argv[index]);
    finish(options);
    return 0;
}
