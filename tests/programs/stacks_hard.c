/*
 * stacks_hard [count=50]: allocations in functions whose callers are hard to find, linked to libstacks_library.so
 * (stacks_library.c), with lazy binding.
 */
#define _GNU_SOURCE
#include "stacks.h"
#include "threads.h"
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

enum {
    ALIGNED = 4101,
    ALIGNED_VARIABLE = 4102,
    VARIABLE = 4103,
    HUGE_FRAME = 4104,
    SAVED = 4105,
    NO_RETURN = 4106,
    TAIL = 4107,
    TAIL_MALLOC = 4108,
    BEFORE_JUMP = 4109,
    AFTER_JUMP = 4110,
    COROUTINE = 4111,
    OUTSIDE_COROUTINE = 4112,
    SORTING = 4113,
    SEARCHING = 4114,
    RAISED = 4115,
    FAULT_AT_START = 4116,
    FAULT_INSIDE = 4117,
    RAISED_ON_OWN_STACK = 4118,
    FAULT_ON_HIGHER_STACK = 4119,
    IN_CONSTRUCTOR = 4120,
    AT_EXIT = 4121,
    LIBRARY = 4130,
    CHOOSING = 4131, /* in stacks_library.c */
    WARMING_UP = 4132,
    FAULT_AFTER_PUSH = 4133,
    FAULT_BEFORE_RETURN = 4134,
};

extern void *chosen_block;
void *library_calls(void *(*function)(size_t size), size_t size);
size_t library_chosen(size_t size);
void *library_warms_up(size_t size);

static volatile unsigned long values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static jmp_buf back;

SEPARATE static void *allocate(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void aligned(size_t size)
{
    volatile char space[96] __attribute__((aligned(64)));
    space[size % sizeof space] = 1;
    free(allocate(size));
    KEEP(space);
}

SEPARATE static void aligned_variable(size_t size, unsigned more)
{
    volatile char space[96] __attribute__((aligned(64)));
    volatile char *variable = (volatile char *)alloca(16 * more + 8);
    space[size % sizeof space] = variable[more] = 1;
    free(allocate(size));
    KEEP(space);
    KEEP(variable);
}

SEPARATE static void variable(size_t size, unsigned more)
{
    volatile char *space = (volatile char *)alloca(64 * more + 8);
    space[more] = 1;
    free(allocate(size));
    KEEP(space);
}

SEPARATE static void huge_frame(size_t size)
{
    volatile char space[600 * 1024];
    space[size] = 1;
    free(allocate(size));
    KEEP(space);
}

SEPARATE static void saved(size_t size)
{
    unsigned long a = values[0], b = values[1], c = values[2], d = values[3];
    unsigned long e = values[4], f = values[5], g = values[6], h = values[7];
    free(allocate(size));
    values[0] = (a ^ b ^ c ^ d ^ e ^ f ^ g ^ h) & 7;
}

/* The call is the last instruction of ends_in_call: its return address lies in another function. */
__attribute__((noreturn)) SEPARATE static void never_returns(size_t size)
{
    free(allocate(size));
    longjmp(back, 1);
}

__attribute__((noreturn)) SEPARATE static void ends_in_call(size_t size)
{
    never_returns(size);
}

SEPARATE static void no_return(size_t size)
{
    if (setjmp(back) == 0)
        ends_in_call(size);
}

/* Leaves no frame: it jumps to what it calls. */
SEPARATE static void *tail_calls(size_t size)
{
    return allocate(size + 1);
}

SEPARATE static void *tail_calls_malloc(size_t size)
{
    return malloc(size);
}

SEPARATE static void tails(void)
{
    void *first = tail_calls(TAIL - 1), *second = tail_calls_malloc(TAIL_MALLOC);
    KEEP(first);
    free(first);
    free(second);
}

SEPARATE static void jumps(size_t size)
{
    volatile char space[3000];
    space[size % sizeof space] = 1;
    free(allocate(size));
    KEEP(space);
    longjmp(back, 1);
}

SEPARATE static void jumped_to(void)
{
    if (setjmp(back) == 0)
        jumps(BEFORE_JUMP);
    free(allocate(AFTER_JUMP));
}

static ucontext_t outside, inside;
static char coroutine_stack[64 * 1024];

SEPARATE static void coroutine_step(void)
{
    free(allocate(COROUTINE));
    swapcontext(&inside, &outside);
}

static void coroutine(void)
{
    for (;;) {
        coroutine_step();
        KEEP(&inside);
    }
}

SEPARATE static void coroutines(void)
{
    swapcontext(&outside, &inside);
    free(allocate(OUTSIDE_COROUTINE));
}

static uint64_t compared, probed;

static int compare(const void *left, const void *right)
{
    compared++;
    free(allocate(SORTING));
    return *(const int *)left - *(const int *)right;
}

static int probe(const void *left, const void *right)
{
    probed++;
    free(allocate(SEARCHING));
    return *(const int *)left - *(const int *)right;
}

SEPARATE static void sorts(void)
{
    int numbers[24];
    for (int index = 0; index < 24; index++)
        numbers[index] = index * 7919 % 25;
    qsort(numbers, 24, sizeof *numbers, compare);
    KEEP(numbers);
}

SEPARATE static void searches(void)
{
    /* By a pointer, because the C library's header has a definition to be inlined. */
    void *(*volatile search)(const void *, const void *, size_t, size_t, int (*)(const void *, const void *)) = bsearch;
    int numbers[24];
    for (int index = 0; index < 24; index++)
        numbers[index] = index;
    void *found = search(&numbers[5], numbers, 24, sizeof *numbers, probe);
    KEEP(found);
    KEEP(numbers);
}

/* Functions that fault at a known instruction, which the handler of the signal steps over: at their first one, where
   a return address minus one would be in the function before; after a push; in the body; before the return. */
__asm__(".text\n"
        ".type faults_at_start,@function\n"
        "faults_at_start:\n\t.cfi_startproc\n\tud2\n\tret\n\t.cfi_endproc\n"
        ".size faults_at_start,.-faults_at_start\n"
        ".type faults_after_push,@function\n"
        "faults_after_push:\n\t.cfi_startproc\n"
        "\tpush %rbx\n\t.cfi_adjust_cfa_offset 8\n\t.cfi_rel_offset %rbx,0\n"
        "\tud2\n"
        "\tpop %rbx\n\t.cfi_adjust_cfa_offset -8\n\t.cfi_restore %rbx\n"
        "\tret\n\t.cfi_endproc\n"
        ".size faults_after_push,.-faults_after_push\n"
        ".type faults_inside,@function\n"
        "faults_inside:\n\t.cfi_startproc\n"
        "\tpush %rbp\n\t.cfi_adjust_cfa_offset 8\n\t.cfi_rel_offset %rbp,0\n"
        "\txor %ebp,%ebp\n"
        "\tsub $328,%rsp\n\t.cfi_adjust_cfa_offset 328\n"
        "\tud2\n"
        "\tadd $328,%rsp\n\t.cfi_adjust_cfa_offset -328\n"
        "\tpop %rbp\n\t.cfi_adjust_cfa_offset -8\n\t.cfi_restore %rbp\n"
        "\tret\n\t.cfi_endproc\n"
        ".size faults_inside,.-faults_inside\n"
        ".type faults_before_return,@function\n"
        "faults_before_return:\n\t.cfi_startproc\n"
        "\tsub $40,%rsp\n\t.cfi_adjust_cfa_offset 40\n"
        "\tadd $40,%rsp\n\t.cfi_adjust_cfa_offset -40\n"
        "\tud2\n"
        "\tret\n\t.cfi_endproc\n"
        ".size faults_before_return,.-faults_before_return\n");
void faults_at_start(void);
void faults_after_push(void);
void faults_inside(void);
void faults_before_return(void);

static volatile size_t size_in_handler;

static void on_raise(int signal)
{
    (void)signal;
    free(allocate(size_in_handler));
}

static void on_fault(int signal, siginfo_t *information, void *context)
{
    enum { UD2_BYTES = 2 };
    (void)signal;
    (void)information;
    free(allocate(size_in_handler));
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += UD2_BYTES;
}

static void handle(int signal, int flags)
{
    struct sigaction action = {.sa_flags = flags};
    if (signal == SIGUSR1)
        action.sa_handler = on_raise;
    else
        action.sa_sigaction = on_fault;
    if (sigaction(signal, &action, NULL) != 0)
        abort();
}

static void handle_on(void *stack, size_t bytes)
{
    stack_t description = {.ss_sp = stack, .ss_size = bytes};
    if (sigaltstack(&description, NULL) != 0)
        abort();
}

SEPARATE static void raises(size_t size)
{
    size_in_handler = size;
    raise(SIGUSR1);
    KEEP(size);
}

SEPARATE static void faults(void (*function)(void), size_t size)
{
    volatile char space[72];
    space[size % sizeof space] = 1;
    size_in_handler = size;
    function();
    KEEP(space);
}

static uint64_t count;

SEPARATE static void *on_higher_stack(void *stack)
{
    handle_on(stack, 32 * 1024);
    for (uint64_t done = 0; done < count; done++)
        faults(faults_inside, FAULT_ON_HIGHER_STACK);
    return NULL;
}

__attribute__((constructor)) SEPARATE static void constructor(void)
{
    free(allocate(IN_CONSTRUCTOR));
}

SEPARATE static void at_exit(void)
{
    free(allocate(AT_EXIT));
}

static void say_signals(void)
{
    say_stack(RAISED, count, "allocate <- on_raise <- @@libc <- raises <- " IN_MAIN);
    say_stack(RAISED_ON_OWN_STACK, count, "allocate <- on_raise <- @@libc <- raises <- " IN_MAIN);
    say_stack(FAULT_AT_START, count, "allocate <- on_fault <- @libc <- faults_at_start <- faults <- " IN_MAIN);
    say_stack(FAULT_AFTER_PUSH, count, "allocate <- on_fault <- @libc <- faults_after_push <- faults <- " IN_MAIN);
    say_stack(FAULT_INSIDE, count, "allocate <- on_fault <- @libc <- faults_inside <- faults <- " IN_MAIN);
    say_stack(FAULT_BEFORE_RETURN, count,
              "allocate <- on_fault <- @libc <- faults_before_return <- faults <- " IN_MAIN);
    say_stack(FAULT_ON_HIGHER_STACK, count,
              "allocate <- on_fault <- @libc <- faults_inside <- faults <- on_higher_stack <- " IN_THREAD);
}

static void say_all(void)
{
    say_stack(ALIGNED, count, "allocate <- aligned <- " IN_MAIN);
    say_stack(ALIGNED_VARIABLE, count, "allocate <- aligned_variable <- " IN_MAIN);
    say_stack(VARIABLE, count, "allocate <- variable <- " IN_MAIN);
    say_stack(HUGE_FRAME, count, "allocate <- huge_frame <- " IN_MAIN);
    say_stack(SAVED, count, "allocate <- saved <- " IN_MAIN);
    say_stack(NO_RETURN, count, "allocate <- never_returns <- ends_in_call <- no_return <- " IN_MAIN);
    say_stack(TAIL, count, "allocate <- tails <- " IN_MAIN);
    say_stack(TAIL_MALLOC, count, "tails <- " IN_MAIN);
    say_stack(BEFORE_JUMP, count, "allocate <- jumps <- jumped_to <- " IN_MAIN);
    say_stack(AFTER_JUMP, count, "allocate <- jumped_to <- " IN_MAIN);
    /* Nothing says that a stack of makecontext ends where it ends. */
    say_unknown_stack(COROUTINE, count, "allocate <- coroutine_step <- coroutine <- @libc");
    say_stack(OUTSIDE_COROUTINE, count, "allocate <- coroutines <- " IN_MAIN);
    say_stack(SORTING, compared, "allocate <- compare <- @@libc <- sorts <- " IN_MAIN);
    say_stack(SEARCHING, probed, "allocate <- probe <- @libc <- searches <- " IN_MAIN);
    say_stack(IN_CONSTRUCTOR, 1, "allocate <- constructor <- @@libc <- _start");
    say_stack(AT_EXIT, 1, "allocate <- at_exit <- @@libc <- _start");
    say_stack(LIBRARY, count, "allocate <- library_calls <- " IN_MAIN);
    say_stack(CHOOSING, 1, "choose <- @@ld-linux <- " IN_MAIN);
    say_stack(WARMING_UP, 1, "library_warms_up <- " IN_MAIN);
    say_signals();
}

int main(int argc, char **argv)
{
    static char own_stack[32 * 1024];
    char higher_stack[32 * 1024];
    struct options options = take_options(&argc, argv);
    count = number(argc, argv, 1, 50);
    if (atexit(at_exit) != 0 || getcontext(&inside) != 0)
        return 1;
    inside.uc_stack.ss_sp = coroutine_stack;
    inside.uc_stack.ss_size = sizeof coroutine_stack;
    makecontext(&inside, coroutine, 0);

    begin(options);
    void *warm = library_warms_up(WARMING_UP);
    KEEP(warm);
    size_t chosen_size = library_chosen(1);
    KEEP(chosen_size);
    handle(SIGUSR1, SA_NODEFER);
    handle(SIGILL, SA_SIGINFO);
    for (uint64_t done = 0; done < count; done++) {
        aligned(ALIGNED);
        aligned_variable(ALIGNED_VARIABLE, done % 13);
        variable(VARIABLE, done % 17);
        huge_frame(HUGE_FRAME);
        saved(SAVED);
        no_return(NO_RETURN);
        tails();
        jumped_to();
        coroutines();
        sorts();
        searches();
        void *block = library_calls(allocate, LIBRARY);
        free(block);
        raises(RAISED);
        faults(faults_at_start, FAULT_AT_START);
        faults(faults_after_push, FAULT_AFTER_PUSH);
        faults(faults_inside, FAULT_INSIDE);
        faults(faults_before_return, FAULT_BEFORE_RETURN);
    }
    handle(SIGUSR1, SA_ONSTACK);
    handle(SIGILL, SA_SIGINFO | SA_ONSTACK);
    handle_on(own_stack, sizeof own_stack);
    for (uint64_t done = 0; done < count; done++)
        raises(RAISED_ON_OWN_STACK);
    pthread_t thread;
    if (pthread_create(&thread, NULL, on_higher_stack, higher_stack) != 0)
        return 1;
    pthread_join(thread, NULL);

    say_all();
    finish(options);
    return 0;
}
