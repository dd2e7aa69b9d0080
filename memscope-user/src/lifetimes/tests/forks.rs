//! Forked processes inherit what is live.

use super::check;

#[test]
fn a_child_frees_what_it_inherited_and_leaves_its_parents_alone() {
    check(
        "1 malloc 100 = 0x10 @a
         1 malloc 50 = 0x20 @a
         1 free 0x20
         fork 1 2
         2:7 free 0x10
         2:7 free 0x20
         1 free 0x10
         2:7 free 0x10",
        "allocated 2/150, freed 2/150, peak 2/150, temporary 1, unknown 2, inherited 1
         0x20 50 @a 1→1 10ns
         0x10 100 @a 1→1 60ns",
    );
}

#[test]
fn a_child_resizes_what_it_inherited() {
    check(
        "1 malloc 100 = 0x10 @a
         fork 1 2
         2:7 realloc 0x10 200 = 0x30 @b
         2:7 realloc 0x10 200 = null @b",
        "allocated 2/300, live 2/300, peak 2/300, reallocations 1, failed 1, inherited 1
         live 0x10 100 @a
         live 0x30 200 @b",
    );
}

#[test]
fn a_grandchild_inherits_what_its_parent_still_had() {
    check(
        "1 malloc 1 = 0x10 @a
         1 malloc 2 = 0x20 @a
         fork 1 2
         2:7 free 0x10
         2:7 malloc 3 = 0x30 @b
         fork 2 3
         3:8 free 0x20
         3:8 free 0x30
         3:8 free 0x10",
        "allocated 3/6, live 3/6, peak 3/6, unknown 1, inherited 3
         live 0x10 1 @a
         live 0x20 2 @a
         live 0x30 3 @b",
    );
}

#[test]
fn an_address_that_is_given_out_again_is_inherited_no_more() {
    check(
        "1 malloc 100 = 0x10 @a
         fork 1 2
         2:7 malloc 5 = 0x10 @b
         2:7 free 0x10
         2:7 free 0x10",
        "allocated 2/105, freed 1/5, live 1/100, peak 2/105, temporary 1, unknown 1
         0x10 5 @b 7→7 10ns
         live 0x10 100 @a",
    );
}

#[test]
fn nothing_is_inherited_by_what_a_child_executes() {
    check(
        "1 malloc 100 = 0x10 @a
         fork 1 2
         end 2
         3:7 free 0x10",
        "allocated 1/100, live 1/100, peak 1/100, unknown 1
         live 0x10 100 @a",
    );
}
