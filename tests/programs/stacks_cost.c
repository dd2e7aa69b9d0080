/*
 * stacks_cost [pairs=200000] [depth=5]: pairs of malloc and free below that many functions (5, 20 or 50), or, for
 * depth 0, below 5 and 17 by turns. Prints ns_per_pair.
 */
#include "stacks.h"

typedef void (*function)(unsigned level);
enum { FUNCTIONS = 50 };
static const function functions[FUNCTIONS];
static volatile unsigned long sink;

/* Frames of three kinds, all found by the stack pointer. */
#define BODY                              \
    if (level == 0) {                     \
        void *block = malloc(64);         \
        KEEP(block);                      \
        free(block);                      \
    } else {                              \
        functions[level - 1](level - 1);  \
    }                                     \
    KEEP(level);

#define SMALL(name) SEPARATE static void name(unsigned level) { BODY }
#define ARRAY(name) SEPARATE static void name(unsigned level) { volatile char space[72]; space[level] = 1; BODY KEEP(space); }
#define SAVING(name) \
    SEPARATE static void name(unsigned level) { unsigned long a = sink, b = sink, c = sink; BODY sink = a ^ b ^ c; }
#define TEN(tens)                                                                                              \
    SMALL(f##tens##0) ARRAY(f##tens##1) SAVING(f##tens##2) SMALL(f##tens##3) ARRAY(f##tens##4)                 \
    SAVING(f##tens##5) SMALL(f##tens##6) ARRAY(f##tens##7) SAVING(f##tens##8) SMALL(f##tens##9)
TEN(0) TEN(1) TEN(2) TEN(3) TEN(4)

#define NAME_TEN(tens) \
    f##tens##0, f##tens##1, f##tens##2, f##tens##3, f##tens##4, f##tens##5, f##tens##6, f##tens##7, f##tens##8, f##tens##9
static const function functions[FUNCTIONS] = {NAME_TEN(0), NAME_TEN(1), NAME_TEN(2), NAME_TEN(3), NAME_TEN(4)};

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t pairs = number(argc, argv, 1, 200000), depth = number(argc, argv, 2, 5);
    if (depth > FUNCTIONS)
        return 2;
    unsigned even = depth ? (unsigned)depth : 5, odd = depth ? (unsigned)depth : 17;

    begin(options);
    uint64_t begun = now_ns();
    for (uint64_t pair = 0; pair < pairs; pair++) {
        unsigned below = pair & 1 ? odd : even;
        functions[below - 1](below - 1);
    }
    uint64_t elapsed = now_ns() - begun;
    say("ns_per_pair %.2f", (double)elapsed / (double)(pairs ? pairs : 1));
    finish(options);
    return 0;
}
