/*
 * stacks_asm [count=50]: functions in assembly language without unwind information. What lies outside them cannot be
 * known; where one keeps a frame pointer it may be followed, but the chain is not called complete.
 */
#include "stacks.h"

enum { FRAME_POINTER = 4301, NO_FRAME_POINTER = 4302, CLOBBERED_FRAME_POINTER = 4303 };

typedef void *(*allocating)(size_t size);

/* Each calls its second argument with its first. */
__asm__(".text\n"
        ".type keeps_frame_pointer,@function\n"
        "keeps_frame_pointer:\n"
        "\tpush %rbp\n\tmov %rsp,%rbp\n"
        "\tcall *%rsi\n"
        "\tpop %rbp\n\tret\n"
        ".size keeps_frame_pointer,.-keeps_frame_pointer\n"
        ".type has_no_frame_pointer,@function\n"
        "has_no_frame_pointer:\n"
        "\tsub $56,%rsp\n"
        "\tcall *%rsi\n"
        "\tadd $56,%rsp\n\tret\n"
        ".size has_no_frame_pointer,.-has_no_frame_pointer\n"
        /* The register looks like a link to a frame, and is none. */
        ".type clobbers_frame_pointer,@function\n"
        "clobbers_frame_pointer:\n"
        "\tpush %rbp\n\tsub $64,%rsp\n"
        "\tlea 16(%rsp),%rbp\n"
        "\tmovq $0,16(%rsp)\n\tmovq $0x1234,24(%rsp)\n"
        "\tcall *%rsi\n"
        "\tadd $64,%rsp\n\tpop %rbp\n\tret\n"
        ".size clobbers_frame_pointer,.-clobbers_frame_pointer\n");
void *keeps_frame_pointer(size_t size, allocating function);
void *has_no_frame_pointer(size_t size, allocating function);
void *clobbers_frame_pointer(size_t size, allocating function);

SEPARATE static void *allocate(size_t size)
{
    void *block = malloc(size);
    KEEP(block);
    return block;
}

SEPARATE static void outer(void *(*function)(size_t size, allocating function), size_t size)
{
    volatile char space[104];
    space[size % sizeof space] = 1;
    void *block = function(size, allocate);
    free(block);
    KEEP(space);
}

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    uint64_t count = number(argc, argv, 1, 50);

    begin(options);
    for (uint64_t done = 0; done < count; done++) {
        outer(keeps_frame_pointer, FRAME_POINTER);
        outer(has_no_frame_pointer, NO_FRAME_POINTER);
        outer(clobbers_frame_pointer, CLOBBERED_FRAME_POINTER);
    }
    say_unknown_stack(FRAME_POINTER, count, "allocate <- keeps_frame_pointer <- outer <- *");
    say_unknown_stack(NO_FRAME_POINTER, count, "allocate <- has_no_frame_pointer <- *");
    say_unknown_stack(CLOBBERED_FRAME_POINTER, count, "allocate <- clobbers_frame_pointer <- *");
    finish(options);
    return 0;
}
