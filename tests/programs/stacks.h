/*
 * What the programs with known chains of calls share. For each size that only they allocate they print
 *   stack <size> <count> <outcome> <frame> <- <frame> <- …    innermost frame first, down to where the thread began
 *   or <size> <frame> <- …                                    another chain that blocks of this size may have
 * Frames are those of calls, inlined ones left out:
 *   name        a function of the program or of its own libraries, as a demangler prints it
 *   name*9      nine such frames
 *   @libc       one frame in a file whose name begins so; in a static program, in the program
 *   @@libc      one or more of them
 *   @@          one or more frames in the C library and its loader
 *   *           any number of frames, none as well
 * The outcome is that of the JSON export; `!complete` is any other.
 */
#ifndef STACKS_H
#define STACKS_H

#include "common.h"

/* Where the main thread and the others begin. */
#define IN_MAIN "main <- @libc <- @libc <- _start"
#define IN_THREAD "@libc <- @libc"

#define say_stack(size, count, chain) \
    say("stack %llu %llu complete %s", (unsigned long long)(size), (unsigned long long)(count), chain)

#define say_unknown_stack(size, count, chain) \
    say("stack %llu %llu !complete %s", (unsigned long long)(size), (unsigned long long)(count), chain)

#endif
