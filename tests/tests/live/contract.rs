//! The counting rules of the JSON export, each on a program that knows what it did.

use memscope_tests::{Figures, Variant, programs};

use crate::kit::{Export, Scratch, hexadecimal, number, run};
use crate::oracle::trace_with_oracle;

/// Traces a program without the oracle; what it printed and what was recorded.
pub(crate) fn trace(source: &str, arguments: &[&str]) -> (Figures, Export) {
    let program = programs::build(source, Variant::Default);
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&[], program, arguments));
    finished.assert_code(0);
    (Figures::parse(&finished.stdout), scratch.export())
}

/// The program's own figures; the C library's block per thread is added to them.
pub(crate) fn assert_figures(export: &Export, figures: &Figures) {
    let created = match figures.rows("threads_created").as_slice() {
        [row] => row[0].parse().unwrap(),
        _ => 0,
    };
    for key in ["frees", "freed_bytes", "reallocations", "failed_allocations"] {
        assert_eq!(export.total(key), figures.number(key), "{key}");
    }
    for key in ["allocations", "live_blocks"] {
        assert_eq!(export.total(key), figures.number(key) + created, "{key}");
    }
    if created == 0 {
        for key in ["allocated_bytes", "live_bytes"] {
            assert_eq!(export.total(key), figures.number(key), "{key}");
        }
    }
    assert_eq!(export.total("unknown_frees"), 0);
}

/// Moved, in place, to zero, and five lifetimes at one address.
#[test]
fn c22_each_lifetime_at_a_reused_address_is_a_block_of_its_own() {
    let (figures, export) = trace("reuse.c", &["5"]);
    export.assert_complete();
    assert_figures(&export, &figures);
    let mut blocks = export.blocks();
    blocks.sort_by_key(|block| block.freed_ns);
    let lives: Vec<(u64, u64)> = figures
        .rows("life")
        .iter()
        .map(|row| (hexadecimal(&row[0].into()), row[1].parse().unwrap()))
        .collect();
    let recorded: Vec<(u64, u64)> =
        blocks.iter().map(|block| (block.address, block.size)).collect();
    assert_eq!(recorded, lives, "in the order in which they ended");
    let address = hexadecimal(&figures.text("address").into());
    let here = blocks.iter().filter(|block| block.address == address && block.size == 64);
    assert_eq!(here.count(), 5);
}

/// A reallocated block keeps the age of the chain it belongs to.
#[test]
fn a_chain_of_reallocations_is_kept() {
    let (_, export) = trace("reuse.c", &["5"]);
    let blocks = export.blocks();
    let of_size = |size| blocks.iter().find(|block| block.size == size).unwrap();
    let first =
        blocks.iter().filter(|block| block.size == 200).min_by_key(|b| b.allocated_ns).unwrap();
    for size in [204, 100_000] {
        assert_eq!(of_size(size).chain_allocated_ns, first.allocated_ns, "size {size}");
        assert!(of_size(size).allocated_ns > first.allocated_ns, "size {size}");
    }
    assert_eq!(of_size(8 << 20).chain_allocated_ns, of_size(1 << 20).allocated_ns);
}

/// mix.c overflows calloc, asks posix_memalign for impossible alignments, fails in realloc, resizes to
/// zero and frees NULL; the oracle says how often.
#[test]
fn failed_calls_and_free_of_null_follow_the_contract() {
    let (export, images) = trace_with_oracle("mix.c", &["1", "20000", "3"]);
    let expected = crate::oracle::assert_equals_oracle(&export, 0, &images[0]);
    assert!(expected.counts.failed_allocations > 100, "{:?}", expected.counts);
    assert!(expected.counts.null_frees > 100, "{:?}", expected.counts);
    let events = number(&export.0["counters"], "attempted");
    let calls = images[0].calls.len() as u64;
    assert!(events < 2 * calls, "a call is at most two events: {events} of {calls} calls");
}

#[test]
fn frees_by_another_thread_end_the_block() {
    let (figures, export) = trace("leaks.c", &["3", "1000", "threads"]);
    export.assert_complete();
    let handed_over = export
        .blocks()
        .iter()
        .filter(|block| block.freed_by.is_some_and(|thread| thread != block.thread))
        .count();
    assert_eq!(handed_over, 3 * 500, "each time 500 blocks are handed to the main thread");
    assert_eq!(figures.rows("leak").len(), 9);
}

#[test]
fn the_allocators_own_frees_at_a_threads_end_are_no_frees() {
    let (figures, export) = trace("threads_exit.c", &["8", "200"]);
    export.assert_complete();
    assert_figures(&export, &figures);
    let internal = export.total("allocator_internal_frees");
    assert!(internal >= figures.number("cached"), "{internal}");
}

/// The C library's threads free some more of its own in it.
#[test]
fn the_allocators_own_frees_in_a_static_program_are_no_frees() {
    let program = programs::build("threads_exit.c", Variant::Static);
    let scratch = Scratch::new();
    let finished = run(&mut scratch.trace_program(&[], program, &["8", "200"]));
    finished.assert_code(0);
    let (figures, export) = (Figures::parse(&finished.stdout), scratch.export());
    export.assert_complete();
    let (frees, cached) = (export.total("frees"), figures.number("cached"));
    assert!((cached..cached + 16).contains(&frees), "{frees}");
    assert_eq!(export.total("unknown_frees"), 0);
    let internal = export.total("allocator_internal_frees");
    assert!(internal >= cached, "{internal}");
}

#[test]
fn a_block_freed_next_is_temporary() {
    let (figures, export) = trace("pairs.c", &["20000"]);
    export.assert_complete();
    assert_eq!(export.total("temporary_allocations"), figures.number("allocations"));
    let (_, export) = trace("leaks.c", &["1", "10"]);
    assert!(export.total("temporary_allocations") < export.total("allocations"));
}

/// Handlers that allocate interrupt calls of the allocator too.
#[test]
fn c06_allocations_of_signal_handlers_count_once() {
    let (export, images) = trace_with_oracle("signal_alloc.c", &["300"]);
    export.assert_complete();
    crate::oracle::assert_equals_oracle(&export, 0, &images[0]);
}

#[test]
fn allocations_before_and_after_main_are_seen() {
    let (export, images) = trace_with_oracle("ctor_main.c", &[]);
    export.assert_complete();
    crate::oracle::assert_equals_oracle(&export, 0, &images[0]);
}

#[test]
fn x05_lifetimes_lie_within_what_the_program_measured() {
    let (figures, export) = trace("lifetime.c", &[]);
    export.assert_complete();
    assert_figures(&export, &figures);
    let blocks = export.blocks();
    let rows = figures.rows("block");
    assert_eq!(rows.len(), blocks.len());
    for row in rows {
        let size: u64 = row[1].parse().unwrap();
        let [before_alloc, after_alloc, before_free, after_free] =
            [2, 3, 4, 5].map(|column: usize| row[column].parse::<u64>().unwrap());
        let block = blocks.iter().find(|block| block.size == size).unwrap();
        assert_eq!(block.address, hexadecimal(&row[0].into()));
        let freed_ns = block.freed_ns.unwrap();
        // The same clock: each moment lies between the program's own readings around it.
        assert!((before_alloc..=after_alloc).contains(&block.allocated_ns), "{row:?} {block:?}");
        assert!((before_free..=after_free).contains(&freed_ns), "{row:?} {block:?}");
        eprintln!(
            "lifetime of {} ns, {} ns by the program's own clock",
            freed_ns - block.allocated_ns,
            before_free - after_alloc
        );
    }
}
