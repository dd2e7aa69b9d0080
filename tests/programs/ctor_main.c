/* ctor_main: linked to libctor.so; allocates nothing itself and prints what the library does around main. */
#include "common.h"

void ctor_counts(struct counts *counts);

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    begin(options);
    struct counts counts = {0};
    ctor_counts(&counts);
    say_counts(&counts);
    finish(options);
    return 0;
}
