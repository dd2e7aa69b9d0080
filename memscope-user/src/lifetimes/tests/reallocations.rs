//! Reallocations: moved, in place, failed, under way while other threads go on.

use super::check;

#[test]
fn a_reallocation_that_moves_is_a_free_and_an_allocation() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc 0x10 200 = 0x20 @b
         1 free 0x20",
        "allocated 2/300, freed 2/300, peak 1/200, reallocations 1, temporary 2
         0x10 100 @a 1→1 10ns
         0x20 200 @b 1→1 10ns chain 20ns",
    );
}

#[test]
fn a_reallocation_in_place_is_a_free_and_an_allocation_too() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc 0x10 100 = 0x10 @b",
        "allocated 2/200, freed 1/100, live 1/100, peak 1/100, reallocations 1, temporary 1
         0x10 100 @a 1→1 10ns
         live 0x10 100 @b",
    );
}

#[test]
fn chains_of_reallocations_remember_their_beginning() {
    check(
        "1 malloc 1 = 0x10 @a
         1 realloc 0x10 2 = 0x20 @a
         1 realloc 0x20 3 = 0x20 @a
         2 free 0x20",
        "allocated 3/6, freed 3/6, peak 1/3, reallocations 2, temporary 2
         0x10 1 @a 1→1 10ns
         0x20 2 @a 1→1 10ns chain 20ns
         0x20 3 @a 1→2 10ns chain 30ns",
    );
}

#[test]
fn a_failed_reallocation_leaves_the_block() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc 0x10 200 = null @b
         1 free 0x10",
        "allocated 1/100, freed 1/100, peak 1/100, failed 1, temporary 1
         0x10 100 @a 1→1 20ns",
    );
}

#[test]
fn a_reallocation_to_nothing_frees() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc 0x10 0 = null @b",
        "allocated 1/100, freed 1/100, peak 1/100, temporary 1
         0x10 100 @a 1→1 10ns",
    );
}

#[test]
fn a_reallocation_to_no_bytes_can_give_a_block() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc 0x10 0 = 0x10 @b",
        "allocated 2/100, freed 1/100, live 1/0, peak 1/100, reallocations 1, temporary 1
         0x10 100 @a 1→1 10ns
         live 0x10 0 @b",
    );
}

#[test]
fn a_reallocation_of_an_unknown_block_is_an_unknown_free_and_an_allocation() {
    check(
        "1 realloc 0x10 200 = 0x20 @a",
        "allocated 1/200, live 1/200, peak 1/200, reallocations 1, unknown 1
         live 0x20 200 @a",
    );
}

#[test]
fn a_reallocation_by_another_thread_ends_the_block_there() {
    check(
        "1 malloc 100 = 0x10 @a
         2 realloc 0x10 200 = 0x20 @b",
        "allocated 2/300, freed 1/100, live 1/200, peak 1/200, reallocations 1
         0x10 100 @a 1→2 10ns
         live 0x20 200 @b",
    );
}

#[test]
fn an_old_address_given_out_while_its_reallocation_is_under_way_has_moved() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc> 0x10
         2 malloc 50 = 0x10 @b
         1 realloc< 0x10 200 = 0x20 @c
         2 free 0x10",
        "allocated 3/350, freed 2/150, live 1/200, peak 2/250, reallocations 1, temporary 2
         0x10 100 @a 1→1 20ns
         0x10 50 @b 2→2 20ns
         live 0x20 200 @c",
    );
}

#[test]
fn what_takes_the_old_address_may_end_before_the_reallocation_returns() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc> 0x10
         2 malloc 50 = 0x10 @b
         2 free 0x10
         3 malloc 60 = 0x10 @b
         1 realloc< 0x10 200 = 0x20 @c",
        "allocated 4/410, freed 2/150, live 2/260, peak 2/260, reallocations 1, temporary 2
         0x10 100 @a 1→1 20ns
         0x10 50 @b 2→2 10ns
         live 0x10 60 @b
         live 0x20 200 @c",
    );
}

#[test]
fn two_reallocations_can_swap_addresses() {
    check(
        "1 malloc 1 = 0x10 @a
         2 malloc 2 = 0x20 @a
         1 realloc> 0x10
         2 realloc> 0x20
         2 realloc< 0x20 20 = 0x10 @b
         1 realloc< 0x10 10 = 0x20 @b",
        "allocated 4/33, freed 2/3, live 2/30, peak 2/30, reallocations 2, temporary 2
         0x20 2 @a 2→2 30ns
         0x10 1 @a 1→1 40ns
         live 0x10 20 @b
         live 0x20 10 @b",
    );
}

#[test]
fn a_reallocation_whose_entry_was_lost_is_told_by_its_return() {
    check(
        "1 malloc 100 = 0x10 @a
         lost 1
         1 realloc< 0x10 200 = 0x20 @b",
        "allocated 2/300, freed 1/100, live 1/200, peak 1/200, reallocations 1, temporary 1, lost 1
         0x10 100 @a 1→1 20ns
         live 0x20 200 @b",
    );
}

#[test]
fn a_reallocation_whose_return_was_lost_is_over_when_its_thread_goes_on() {
    check(
        "1 malloc 100 = 0x10 @a
         1 realloc> 0x10
         lost 1
         1 malloc 5 = 0x30 @b
         2 malloc 50 = 0x10 @b",
        "allocated 3/155, unseen 1/100, live 2/55, peak 2/105, lost 1
         0x10 100 @a 1→? 40ns
         live 0x10 50 @b
         live 0x30 5 @b",
    );
}
