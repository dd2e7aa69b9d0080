/* A library for leaks.c to load at run time. */
#include "common.h"

const unsigned plugin_leak_bytes = 999;
int plugin_leak_line;

SEPARATE void plugin_leak(unsigned long long times)
{
    for (unsigned long long done = 0; done < times; done++) {
        plugin_leak_line = __LINE__; void *block = malloc(plugin_leak_bytes);
        KEEP(block);
    }
}
