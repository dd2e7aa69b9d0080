//! What holds for every recording, whatever was traced and whatever was lost.

use serde_json::Value;

use crate::kit::{Block, Export, number};

/// Everything a site counts that the totals count too.
const SUMMED: [&str; 9] = [
    "allocations",
    "allocated_bytes",
    "frees",
    "freed_bytes",
    "live_blocks",
    "live_bytes",
    "temporary_allocations",
    "failed_allocations",
    "mismatched_frees",
];

/// The conservation laws, on an export with blocks.
pub(crate) fn assert_conserved(export: &Export) {
    let total = |key| export.total(key);
    let (loss, counters) = (&export.0["loss"], &export.0["counters"]);
    let by_cause: u64 =
        loss["by_cause"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(by_cause, export.lost(), "lost events = Σ over causes: {loss}");
    // A recording that was cut off may end before the first counters.
    if !counters.is_null() {
        assert_eq!(
            number(counters, "attempted"),
            number(counters, "recorded") + export.lost(),
            "attempted = recorded + lost: {counters} {loss}"
        );
    }

    assert_eq!(
        total("allocations"),
        total("frees") + total("unseen_ends") + total("live_blocks"),
        "allocations − frees − unseen ends = live blocks: {}",
        export.0["totals"]
    );
    assert_eq!(
        total("allocated_bytes"),
        total("freed_bytes") + total("unseen_end_bytes") + total("live_bytes"),
        "the same in bytes: {}",
        export.0["totals"]
    );
    assert!(total("peak_live_bytes") >= export_live_at_end(export), "nothing is above the peak");

    let over_sites = |key| export.list("sites").iter().map(|site| number(site, key)).sum::<u64>();
    for key in SUMMED {
        assert_eq!(over_sites(key), total(key), "Σ over sites of {key}");
    }
    assert_eq!(over_sites("at_peak_bytes"), total("peak_live_bytes"), "Σ over sites at the peak");

    let stacks = &export.0["stacks"];
    let page_faults = export.0["pages"]["faults"].as_u64().unwrap_or(0);
    assert_eq!(
        number(stacks, "complete") + number(stacks, "truncated"),
        total("allocations") + total("failed_allocations") + page_faults,
        "every allocation, or page fault, has a stack with an outcome: {stacks}"
    );

    assert_completeness_is_told(export);
    assert_blocks_agree(export);
}

/// `capture.complete` says whether anything is missing.
fn assert_completeness_is_told(export: &Export) {
    let file = &export.0["file"];
    let whole = file["has_ending"].as_bool().unwrap() && number(file, "damage_count") == 0;
    let processes = export.list("processes");
    let probed_late = processes.iter().any(|process| process["probed_late"].as_bool().unwrap());
    let missing = !whole
        || export.lost() > 0
        || export.total("unseen_ends") > 0
        || probed_late
        || has_gaps(export);
    let has_allocator = |process: &Value| !process["allocators"].as_array().unwrap().is_empty();
    if missing {
        assert!(!export.is_complete(), "{}", export.0["trust"]);
    } else if processes.iter().any(has_allocator) {
        assert!(export.is_complete(), "{}", export.0["trust"]);
    }
    let verdict = if export.is_complete() { "Complete: " } else { "INCOMPLETE: " };
    assert!(export.0["trust"].as_str().unwrap().starts_with(verdict), "{}", export.0["trust"]);
}

/// Bytes of images that ended are not live together with those of the next image.
fn export_live_at_end(export: &Export) -> u64 {
    export
        .list("processes")
        .iter()
        .filter(|process| process["end"].is_null())
        .map(|process| export.sum_of(number(process, "process"), "live_bytes"))
        .sum()
}

/// Whether the targets did anything while they were not observed: then sums are scaled.
fn has_gaps(export: &Export) -> bool {
    let budget = &export.0["budget"];
    !budget.is_null() && number(budget, "missed_cpu_ns") > 0
}

fn assert_blocks_agree(export: &Export) {
    let blocks = export.blocks();
    // A block counts for itself, or for others as well if it is a sample. Lost ones can be in the sums.
    let sum = |which: fn(&Block) -> bool, weight: fn(&Block) -> u64| {
        blocks.iter().filter(|block| which(block)).map(weight).fold(0, u64::wrapping_add)
    };
    let (all, freed) = (|_: &Block| true, |block: &Block| block.freed_ns.is_some());
    let counted = number(&export.0["loss"], "counted_allocations");
    if !has_gaps(export) {
        let begun = sum(all, |block| block.weight) + counted;
        assert_eq!(begun, export.total("allocations"), "each allocation is a block");
        let freed = sum(freed, |block| block.weight);
        assert_eq!(freed, export.total("frees"), "each free ends a block");
    }
    if counted == 0 && !has_gaps(export) {
        let bytes = |block: &Block| block.weight_bytes;
        assert_eq!(sum(all, bytes), export.total("allocated_bytes"));
        assert_eq!(sum(freed, bytes), export.total("freed_bytes"));
    }
    for block in &blocks {
        assert!(block.freed_ns.is_none_or(|freed_ns| freed_ns >= block.allocated_ns), "{block:?}");
        assert!(block.chain_allocated_ns <= block.allocated_ns, "{block:?}");
        assert_eq!(block.freed_ns.is_some(), block.freed_by.is_some(), "{block:?}");
        assert_ne!(block.address, 0, "{block:?}");
    }
}
