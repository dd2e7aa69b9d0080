//! The rows, as the headers of the allocators have them.

use super::{Allocator, AllocatorFunction, FunctionKind, Naming};

const fn allocates(name: &'static str, size: u8) -> AllocatorFunction {
    AllocatorFunction {
        name,
        kind: FunctionKind::Allocates,
        size: Some(size),
        count: None,
        block: None,
        result_slot: None,
        is_leaf: false,
        can_throw: false,
    }
}

const fn frees(name: &'static str) -> AllocatorFunction {
    AllocatorFunction {
        name,
        kind: FunctionKind::Frees,
        size: None,
        count: None,
        block: Some(0),
        result_slot: None,
        is_leaf: false,
        can_throw: false,
    }
}

impl AllocatorFunction {
    const fn times(self, count: u8) -> Self {
        Self { count: Some(count), ..self }
    }

    const fn instead_of(self, block: u8) -> Self {
        Self { block: Some(block), ..self }
    }

    const fn stored_at(self, slot: u8) -> Self {
        Self { result_slot: Some(slot), ..self }
    }

    const fn throwing(self) -> Self {
        Self { can_throw: true, ..self }
    }

    const fn leaf_if(self, is_leaf: bool) -> Self {
        Self { is_leaf, ..self }
    }
}

/// What every allocator has in place of the C library's functions, by names with a prefix.
/// Behind a prefix nothing is a leaf: what goes by two names can call one by the other.
macro_rules! common {
    ($prefix:literal) => {
        [
            allocates(concat!($prefix, "malloc"), 0).leaf_if($prefix.is_empty()),
            allocates(concat!($prefix, "calloc"), 0).times(1).leaf_if($prefix.is_empty()),
            allocates(concat!($prefix, "realloc"), 1).instead_of(0),
            allocates(concat!($prefix, "posix_memalign"), 2).stored_at(0),
            allocates(concat!($prefix, "aligned_alloc"), 1),
            allocates(concat!($prefix, "memalign"), 1),
            allocates(concat!($prefix, "valloc"), 0),
            frees(concat!($prefix, "free")).leaf_if($prefix.is_empty()),
        ]
    };
}

/// What only some have.
macro_rules! uncommon {
    ($prefix:literal) => {
        [
            allocates(concat!($prefix, "reallocarray"), 1).times(2).instead_of(0),
            allocates(concat!($prefix, "pvalloc"), 0),
            frees(concat!($prefix, "cfree")),
        ]
    };
}

/// C23 7.24.3.
macro_rules! sized_frees {
    ($prefix:literal) => {
        [frees(concat!($prefix, "free_sized")), frees(concat!($prefix, "free_aligned_sized"))]
    };
}

/// jemalloc(3), "non-standard API", without `xallocx`, which gives a size.
macro_rules! with_flags {
    ($prefix:literal) => {
        [
            allocates(concat!($prefix, "mallocx"), 0),
            allocates(concat!($prefix, "rallocx"), 1).instead_of(0),
            frees(concat!($prefix, "sdallocx")),
            frees(concat!($prefix, "dallocx")),
        ]
    };
}

macro_rules! jemalloc {
    ($prefix:literal) => {
        &[&common!($prefix), &sized_frees!($prefix), &with_flags!($prefix)]
    };
}

/// `operator new` and `new[]`, plain, nothrow, aligned and both, as the Itanium ABI spells them.
macro_rules! operators_new {
    ($suffix:literal) => {
        [
            allocates(concat!("_Znwm", $suffix), 0).throwing(),
            allocates(concat!("_ZnwmRKSt9nothrow_t", $suffix), 0),
            allocates(concat!("_ZnwmSt11align_val_t", $suffix), 0).throwing(),
            allocates(concat!("_ZnwmSt11align_val_tRKSt9nothrow_t", $suffix), 0),
            allocates(concat!("_Znam", $suffix), 0).throwing(),
            allocates(concat!("_ZnamRKSt9nothrow_t", $suffix), 0),
            allocates(concat!("_ZnamSt11align_val_t", $suffix), 0).throwing(),
            allocates(concat!("_ZnamSt11align_val_tRKSt9nothrow_t", $suffix), 0),
        ]
    };
}

const OPERATORS_DELETE: &[AllocatorFunction] = &[
    frees("_ZdlPv"),
    frees("_ZdlPvRKSt9nothrow_t"),
    frees("_ZdlPvm"),
    frees("_ZdlPvSt11align_val_t"),
    frees("_ZdlPvSt11align_val_tRKSt9nothrow_t"),
    frees("_ZdlPvmSt11align_val_t"),
    frees("_ZdaPv"),
    frees("_ZdaPvRKSt9nothrow_t"),
    frees("_ZdaPvm"),
    frees("_ZdaPvSt11align_val_t"),
    frees("_ZdaPvSt11align_val_tRKSt9nothrow_t"),
    frees("_ZdaPvmSt11align_val_t"),
];

/// `mimalloc.h` of 2.0 and 3.3, beside what all have.
const MIMALLOC: &[AllocatorFunction] = &[
    allocates("mi_malloc_small", 0),
    allocates("mi_mallocn", 1).times(0),
    allocates("mi_zalloc", 0),
    allocates("mi_zalloc_small", 0),
    allocates("mi_malloc_aligned", 0),
    allocates("mi_malloc_aligned_at", 0),
    allocates("mi_zalloc_aligned", 0),
    allocates("mi_zalloc_aligned_at", 0),
    allocates("mi_calloc_aligned", 1).times(0),
    allocates("mi_calloc_aligned_at", 1).times(0),
    allocates("mi_new", 0).throwing(),
    allocates("mi_new_aligned", 0).throwing(),
    allocates("mi_new_nothrow", 0),
    allocates("mi_new_aligned_nothrow", 0),
    allocates("mi_new_n", 1).times(0).throwing(),
    allocates("mi_umalloc", 0),
    allocates("mi_umalloc_small", 0),
    allocates("mi_umalloc_aligned", 0),
    allocates("mi_ucalloc", 1).times(0),
    allocates("mi_uzalloc_small", 0),
    allocates("mi_uzalloc_aligned", 0),
    allocates("mi_expand", 1).instead_of(0),
    allocates("mi__expand", 1).instead_of(0),
    allocates("mi_reallocn", 2).times(1).instead_of(0),
    allocates("mi_reallocf", 1).instead_of(0),
    allocates("mi_realloc_aligned", 1).instead_of(0),
    allocates("mi_realloc_aligned_at", 1).instead_of(0),
    allocates("mi_rezalloc", 1).instead_of(0),
    allocates("mi_rezalloc_aligned", 1).instead_of(0),
    allocates("mi_rezalloc_aligned_at", 1).instead_of(0),
    allocates("mi_recalloc", 2).times(1).instead_of(0),
    allocates("mi_recalloc_aligned", 2).times(1).instead_of(0),
    allocates("mi_recalloc_aligned_at", 2).times(1).instead_of(0),
    allocates("mi_aligned_recalloc", 2).times(1).instead_of(0),
    allocates("mi_aligned_offset_recalloc", 2).times(1).instead_of(0),
    allocates("mi_new_realloc", 1).instead_of(0).throwing(),
    allocates("mi_new_reallocn", 2).times(1).instead_of(0).throwing(),
    allocates("mi_urealloc", 1).instead_of(0),
    frees("mi_free_size"),
    frees("mi_free_size_aligned"),
    frees("mi_free_aligned"),
    frees("mi_free_small"),
    frees("mi_ufree"),
];

/// The same, of a heap that is the first argument.
const MIMALLOC_HEAPS: &[AllocatorFunction] = &[
    allocates("mi_heap_malloc", 1),
    allocates("mi_heap_malloc_small", 1),
    allocates("mi_heap_mallocn", 2).times(1),
    allocates("mi_heap_zalloc", 1),
    allocates("mi_heap_zalloc_small", 1),
    allocates("mi_heap_calloc", 2).times(1),
    allocates("mi_heap_malloc_aligned", 1),
    allocates("mi_heap_malloc_aligned_at", 1),
    allocates("mi_heap_zalloc_aligned", 1),
    allocates("mi_heap_zalloc_aligned_at", 1),
    allocates("mi_heap_calloc_aligned", 2).times(1),
    allocates("mi_heap_calloc_aligned_at", 2).times(1),
    allocates("mi_heap_alloc_new", 1).throwing(),
    allocates("mi_heap_alloc_new_n", 2).times(1).throwing(),
    allocates("mi_heap_realloc", 2).instead_of(1),
    allocates("mi_heap_reallocn", 3).times(2).instead_of(1),
    allocates("mi_heap_reallocf", 2).instead_of(1),
    allocates("mi_heap_realloc_aligned", 2).instead_of(1),
    allocates("mi_heap_realloc_aligned_at", 2).instead_of(1),
    allocates("mi_heap_rezalloc", 2).instead_of(1),
    allocates("mi_heap_rezalloc_aligned", 2).instead_of(1),
    allocates("mi_heap_rezalloc_aligned_at", 2).instead_of(1),
    allocates("mi_heap_recalloc", 3).times(2).instead_of(1),
    allocates("mi_heap_recalloc_aligned", 3).times(2).instead_of(1),
    allocates("mi_heap_recalloc_aligned_at", 3).times(2).instead_of(1),
    allocates("mi_theap_malloc", 1),
    allocates("mi_theap_malloc_small", 1),
    allocates("mi_theap_zalloc", 1),
    allocates("mi_theap_zalloc_small", 1),
    allocates("mi_theap_calloc", 2).times(1),
    allocates("mi_theap_malloc_aligned", 1),
    allocates("mi_theap_realloc", 2).instead_of(1),
];

/// `gperftools/tcmalloc.h` of 2.10.
const GPERFTOOLS: &[AllocatorFunction] = &[
    allocates("tc_malloc", 0),
    allocates("tc_malloc_skip_new_handler", 0),
    allocates("tc_calloc", 0).times(1),
    allocates("tc_realloc", 1).instead_of(0),
    allocates("tc_memalign", 1),
    allocates("tc_posix_memalign", 2).stored_at(0),
    allocates("tc_valloc", 0),
    allocates("tc_pvalloc", 0),
    allocates("tc_new", 0).throwing(),
    allocates("tc_new_nothrow", 0),
    allocates("tc_new_aligned", 0).throwing(),
    allocates("tc_new_aligned_nothrow", 0),
    allocates("tc_newarray", 0).throwing(),
    allocates("tc_newarray_nothrow", 0),
    allocates("tc_newarray_aligned", 0).throwing(),
    allocates("tc_newarray_aligned_nothrow", 0),
    frees("tc_free"),
    frees("tc_free_sized"),
    frees("tc_cfree"),
    frees("tc_delete"),
    frees("tc_delete_sized"),
    frees("tc_delete_nothrow"),
    frees("tc_delete_aligned"),
    frees("tc_delete_sized_aligned"),
    frees("tc_delete_aligned_nothrow"),
    frees("tc_deletearray"),
    frees("tc_deletearray_sized"),
    frees("tc_deletearray_nothrow"),
    frees("tc_deletearray_aligned"),
    frees("tc_deletearray_sized_aligned"),
    frees("tc_deletearray_aligned_nothrow"),
];

/// `tcmalloc/tcmalloc.h` and `malloc_extension.h`. Those that return the size as well return
/// the block where all others do.
const TCMALLOC: &[AllocatorFunction] = &[
    allocates("TCMallocInternalMalloc", 0),
    allocates("TCMallocInternalCalloc", 0).times(1),
    allocates("TCMallocInternalRealloc", 1).instead_of(0),
    allocates("TCMallocInternalReallocArray", 1).times(2).instead_of(0),
    allocates("TCMallocInternalMemalign", 1),
    allocates("TCMallocInternalAlignedAlloc", 1),
    allocates("TCMallocInternalPosixMemalign", 2).stored_at(0),
    allocates("TCMallocInternalValloc", 0),
    allocates("TCMallocInternalPvalloc", 0),
    allocates("TCMallocInternalNew", 0).throwing(),
    allocates("TCMallocInternalNewNothrow", 0),
    allocates("TCMallocInternalNewAligned", 0).throwing(),
    allocates("TCMallocInternalNewAlignedNothrow", 0),
    allocates("TCMallocInternalNewArray", 0).throwing(),
    allocates("TCMallocInternalNewArrayNothrow", 0),
    allocates("TCMallocInternalNewArrayAligned", 0).throwing(),
    allocates("TCMallocInternalNewArrayAlignedNothrow", 0),
    allocates("TCMallocInternalNewHotCold", 0).throwing(),
    allocates("TCMallocInternalNewHotColdNothrow", 0),
    allocates("TCMallocInternalNewAlignedHotCold", 0).throwing(),
    allocates("TCMallocInternalNewAlignedHotColdNothrow", 0),
    allocates("TCMallocInternalNewArrayHotCold", 0).throwing(),
    allocates("TCMallocInternalNewArrayHotColdNothrow", 0),
    allocates("TCMallocInternalNewArrayAlignedHotCold", 0).throwing(),
    allocates("TCMallocInternalNewArrayAlignedHotColdNothrow", 0),
    allocates("TCMallocInternalSizeReturningNew", 0).throwing(),
    allocates("TCMallocInternalSizeReturningNewAligned", 0).throwing(),
    allocates("TCMallocInternalAllocAtLeast", 0),
    allocates("TCMallocInternalAlignedAllocAtLeast", 1),
    allocates("__size_returning_new", 0).throwing(),
    allocates("__size_returning_new_aligned", 0).throwing(),
    allocates("__size_returning_new_hot_cold", 0).throwing(),
    allocates("__size_returning_new_aligned_hot_cold", 0).throwing(),
    allocates("tcmalloc_size_returning_operator_new", 0).throwing(),
    allocates("tcmalloc_size_returning_operator_new_nothrow", 0),
    allocates("tcmalloc_size_returning_operator_new_aligned", 0).throwing(),
    allocates("tcmalloc_size_returning_operator_new_aligned_nothrow", 0),
    allocates("tcmalloc_size_returning_operator_new_hot_cold", 0).throwing(),
    allocates("tcmalloc_size_returning_operator_new_hot_cold_nothrow", 0),
    allocates("tcmalloc_size_returning_operator_new_aligned_hot_cold", 0).throwing(),
    allocates("tcmalloc_size_returning_operator_new_aligned_hot_cold_nothrow", 0),
    frees("TCMallocInternalFree"),
    frees("TCMallocInternalFreeSized"),
    frees("TCMallocInternalFreeAlignedSized"),
    frees("TCMallocInternalSdallocx"),
    frees("TCMallocInternalCfree"),
    frees("TCMallocInternalDelete"),
    frees("TCMallocInternalDeleteNothrow"),
    frees("TCMallocInternalDeleteSized"),
    frees("TCMallocInternalDeleteAligned"),
    frees("TCMallocInternalDeleteAlignedNothrow"),
    frees("TCMallocInternalDeleteSizedAligned"),
    frees("TCMallocInternalDeleteArray"),
    frees("TCMallocInternalDeleteArrayNothrow"),
    frees("TCMallocInternalDeleteArraySized"),
    frees("TCMallocInternalDeleteArrayAligned"),
    frees("TCMallocInternalDeleteArrayAlignedNothrow"),
    frees("TCMallocInternalDeleteArraySizedAligned"),
];

/// `rust.cc` of snmalloc, which says the alignment first.
const SNMALLOC_RUST: &[AllocatorFunction] = &[
    allocates("sn_rust_alloc", 1),
    allocates("sn_rust_alloc_zeroed", 1),
    allocates("sn_rust_realloc", 3).instead_of(0),
    frees("sn_rust_dealloc"),
];

/// All functions that are probed where a mapped file defines them, but for the loader's. Of several
/// names of one function, the first in this order is shown.
pub const ALLOCATORS: &[Allocator] = &[
    Allocator {
        name: "The C library, and whatever takes its place",
        naming: Naming::Shared,
        takes_pages: false,
        functions: &[&common!(""), &uncommon!(""), &sized_frees!("")],
    },
    Allocator {
        name: "jemalloc without a prefix",
        naming: Naming::Shared,
        takes_pages: true,
        functions: &[&with_flags!("")],
    },
    Allocator {
        name: "jemalloc, prefix `je_`",
        naming: Naming::Own,
        takes_pages: true,
        functions: jemalloc!("je_"),
    },
    Allocator {
        name: "jemalloc, prefix `_rjem_`",
        naming: Naming::Own,
        takes_pages: true,
        functions: jemalloc!("_rjem_"),
    },
    Allocator {
        name: "jemalloc, prefix `_rjem_je_`",
        naming: Naming::Own,
        takes_pages: true,
        functions: jemalloc!("_rjem_je_"),
    },
    Allocator {
        name: "mimalloc",
        naming: Naming::Own,
        takes_pages: true,
        functions: &[&common!("mi_"), &uncommon!("mi_"), MIMALLOC, MIMALLOC_HEAPS],
    },
    Allocator {
        name: "tcmalloc of gperftools",
        naming: Naming::Own,
        takes_pages: true,
        functions: &[GPERFTOOLS],
    },
    Allocator {
        name: "tcmalloc of Google",
        naming: Naming::Own,
        takes_pages: true,
        functions: &[TCMALLOC],
    },
    Allocator {
        name: "snmalloc",
        naming: Naming::Own,
        takes_pages: true,
        functions: &[&common!("sn_"), &uncommon!("sn_"), &sized_frees!("sn_"), SNMALLOC_RUST],
    },
    Allocator {
        name: "scudo, prefix `scudo_`",
        naming: Naming::Own,
        takes_pages: true,
        functions: &[&common!("scudo_"), &uncommon!("scudo_"), &sized_frees!("scudo_")],
    },
    Allocator {
        name: "C++",
        naming: Naming::Operator,
        takes_pages: false,
        functions: &[
            &operators_new!(""),
            // tcmalloc's `new_extension.h`.
            &operators_new!("12__hot_cold_t"),
            OPERATORS_DELETE,
        ],
    },
];
