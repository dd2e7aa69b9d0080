/* early_exit [code=0]: ends as soon as it began, without a word and without an allocation of its own. */
#include <stdlib.h>

int main(int argc, char **argv)
{
    return argc > 1 ? atoi(argv[1]) : 0;
}
