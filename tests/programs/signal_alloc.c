/*
 * signal_alloc [signals=500] [interval_us=200] [altstack]: a timer's handler allocates and frees while the main program does the
 * same. The signal is blocked around the main program's own calls (malloc is not async-signal-safe), so the handler
 * interrupts everything else, deep recursion included. Every tenth block of the handler stays alive.
 */
#include "common.h"

#include <signal.h>
#include <sys/time.h>

enum { HANDLER_SIZE = 168, MAIN_SIZE = 184, ALTSTACK_BYTES = 256 * 1024 };

static struct counts in_handler;
static volatile sig_atomic_t signals_seen;
static uint64_t signals_wanted;
static uint64_t on_altstack;
static unsigned char altstack[ALTSTACK_BYTES];

SEPARATE static void handler_allocate(void)
{
    void *block = malloc(HANDLER_SIZE);
    KEEP(block);
    count_allocation(&in_handler, HANDLER_SIZE);
    if (signals_seen % 10 != 0) {
        free(block);
        count_free(&in_handler, HANDLER_SIZE);
    }
}

static void on_signal(int number)
{
    int saved_errno = errno;
    unsigned char here;
    if (&here >= altstack && &here < altstack + sizeof altstack)
        on_altstack++;
    if ((uint64_t)signals_seen < signals_wanted) {
        signals_seen++;
        handler_allocate();
    }
    (void)number;
    errno = saved_errno;
}

/* Somewhere for the signal to arrive. */
SEPARATE static uint64_t busy(unsigned depth, uint64_t value)
{
    for (unsigned turn = 0; turn < 50; turn++)
        value = value * UINT64_C(6364136223846793005) + depth;
    value = depth == 0 ? value : busy(depth - 1, value);
    KEEP(value);
    return value;
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    int use_altstack = take_word(&argc, argv, "altstack");
    signals_wanted = number(argc, argv, 1, 500);
    uint64_t interval_us = number(argc, argv, 2, 200);

    begin(options);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (use_altstack) {
        stack_t stack = {.ss_sp = altstack, .ss_size = sizeof altstack};
        if (sigaltstack(&stack, NULL) != 0)
            abort();
        action.sa_flags |= SA_ONSTACK;
    }
    sigset_t alarm_only, before;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    struct itimerval timer = {{0, interval_us}, {0, interval_us}};
    if (sigaction(SIGALRM, &action, NULL) != 0 || setitimer(ITIMER_REAL, &timer, NULL) != 0)
        abort();

    struct counts in_main = {0};
    uint64_t value = 1;
    while ((uint64_t)signals_seen < signals_wanted) {
        sigprocmask(SIG_BLOCK, &alarm_only, &before);
        void *block = malloc(MAIN_SIZE);
        KEEP(block);
        free(block);
        count_allocation(&in_main, MAIN_SIZE);
        count_free(&in_main, MAIN_SIZE);
        sigprocmask(SIG_SETMASK, &before, NULL);
        value = busy(30, value);
    }
    struct itimerval stop = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &stop, NULL);

    if (use_altstack ? on_altstack < signals_wanted : on_altstack > 0)
        return 1;
    say_number("signals", signals_wanted);
    say_number("handler_allocations", in_handler.allocations);
    say_number("handler_live_blocks", in_handler.allocations - in_handler.frees);
    add_counts(&in_main, &in_handler);
    say_counts(&in_main);
    finish(options);
    return 0;
}
