/*
 * stacks_signal [signals=400] [interval in µs=200] [altstack]: a timer interrupts plain code at whatever instruction
 * it is at, mostly in the prologues and epilogues of functions without frame pointers, and the handler allocates.
 */
#define _GNU_SOURCE
#include "stacks.h"
#include <signal.h>
#include <sys/time.h>

enum { ASYNCHRONOUS = 4201 };

static volatile sig_atomic_t signals;
static volatile unsigned long values[6] = {1, 2, 3, 4, 5, 6};

SEPARATE static void *allocate(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

static void on_alarm(int signal)
{
    (void)signal;
    free(allocate(ASYNCHRONOUS));
    signals++;
}

/* A leaf that uses the stack below its pointer. */
SEPARATE static unsigned long leaf(unsigned long value)
{
    volatile unsigned long space[4] = {value, value + 1, value + 2, value + 3};
    return space[value & 3];
}

/* Little else than pushes and pops. */
SEPARATE static unsigned long saves(unsigned long value)
{
    unsigned long a = values[0], b = values[1], c = values[2], d = values[3], e = values[4], f = values[5];
    unsigned long sum = leaf(value);
    KEEP(sum);
    return sum + (a ^ b ^ c ^ d ^ e ^ f);
}

SEPARATE static unsigned long realigns(unsigned long value)
{
    volatile unsigned long space[8] __attribute__((aligned(64)));
    space[value & 7] = saves(value);
    KEEP(space);
    return space[value & 7];
}

SEPARATE static void works(uint64_t wanted)
{
    unsigned long value = 0;
    while ((uint64_t)signals < wanted) {
        value += saves(value);
        value += realigns(value);
        KEEP(value);
    }
}

int main(int argc, char **argv)
{
    static char own_stack[64 * 1024];
    struct options options = take_options(&argc, argv);
    int altstack = take_word(&argc, argv, "altstack");
    uint64_t wanted = number(argc, argv, 1, 400);
    long interval = (long)number(argc, argv, 2, 200);

    stack_t stack = {.ss_sp = own_stack, .ss_size = sizeof own_stack};
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART | (altstack ? SA_ONSTACK : 0)};
    if ((altstack && sigaltstack(&stack, NULL) != 0) || sigaction(SIGALRM, &action, NULL) != 0)
        return 1;
    begin(options);
    struct itimerval every = {{0, interval}, {0, interval}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    works(wanted);
    /* A signal that is on its way still is handled before setitimer returns; it may add one chain. */
    setitimer(ITIMER_REAL, &never, NULL);

    uint64_t handled = (uint64_t)signals;
    say_stack(ASYNCHRONOUS, handled, "allocate <- on_alarm <- @libc <- works <- " IN_MAIN);
    say("or %d allocate <- on_alarm <- @libc <- saves <- works <- " IN_MAIN, ASYNCHRONOUS);
    say("or %d allocate <- on_alarm <- @libc <- leaf <- saves <- works <- " IN_MAIN, ASYNCHRONOUS);
    say("or %d allocate <- on_alarm <- @libc <- realigns <- works <- " IN_MAIN, ASYNCHRONOUS);
    say("or %d allocate <- on_alarm <- @libc <- saves <- realigns <- works <- " IN_MAIN, ASYNCHRONOUS);
    say("or %d allocate <- on_alarm <- @libc <- leaf <- saves <- realigns <- works <- " IN_MAIN, ASYNCHRONOUS);
    say("or %d allocate <- on_alarm <- @@libc <- " IN_MAIN, ASYNCHRONOUS);
    finish(options);
    return 0;
}
