/*
 * Threads whose cost to the allocator is known: one calloc by the C library per thread, for its thread-local storage,
 * never freed. That needs all threads of a program to be alive at once (a stack is reused together with that block,
 * hence the barriers), and stacks so small that the C library keeps them all (it caches 40 MB and frees the rest).
 */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stdlib.h>

enum { MOST_THREADS = 512, STACK_BYTES = 64 * 1024 };

static inline void start_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstacksize(&attributes, STACK_BYTES) != 0
        || pthread_create(thread, &attributes, function, argument) != 0)
        abort();
    pthread_attr_destroy(&attributes);
}

#endif
