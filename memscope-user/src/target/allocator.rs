//! The functions that are probed.

/// What a call of a function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// Gives a block, and may end another one: probed at entry and return.
    Allocates,
    /// Ends a block: probed at entry.
    Frees,
    /// Follows a change of what is mapped: probed at entry.
    ChangesCode,
}

/// One row of the table: a function and which of its arguments mean what.
///
/// An argument is its position, 0 to 5; none if the function has no such argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatorFunction {
    /// Its symbol.
    pub name: &'static str,
    /// What a call means.
    pub kind: FunctionKind,
    /// Requested size in bytes.
    pub size: Option<u8>,
    /// Multiplies the size.
    pub count: Option<u8>,
    /// The existing block to free or reallocate.
    pub block: Option<u8>,
    /// Points to where the block's address is stored, the call returning 0 for success.
    pub result_slot: Option<u8>,
    /// Whether it calls no other function of this table, as it is written in all the
    /// allocators that have it. If one does all the same, in place of another module's, its
    /// inner calls are told by there being two modules.
    pub is_leaf: bool,
}

const fn allocates(name: &'static str, size: u8) -> AllocatorFunction {
    AllocatorFunction {
        name,
        kind: FunctionKind::Allocates,
        size: Some(size),
        count: None,
        block: None,
        result_slot: None,
        is_leaf: false,
    }
}

/// Functions of the C library (C17 7.22.3, POSIX, and glibc's own). What C++'s
/// operator new and Rust's default allocator call is among them.
pub const ALLOCATOR_FUNCTIONS: &[AllocatorFunction] = &[
    AllocatorFunction { is_leaf: true, ..allocates("malloc", 0) },
    AllocatorFunction { is_leaf: true, count: Some(1), ..allocates("calloc", 0) },
    AllocatorFunction { block: Some(0), ..allocates("realloc", 1) },
    AllocatorFunction { block: Some(0), count: Some(2), ..allocates("reallocarray", 1) },
    AllocatorFunction { result_slot: Some(0), ..allocates("posix_memalign", 2) },
    allocates("aligned_alloc", 1),
    allocates("memalign", 1),
    allocates("valloc", 0),
    allocates("pvalloc", 0),
    AllocatorFunction {
        name: "free",
        kind: FunctionKind::Frees,
        size: None,
        count: None,
        block: Some(0),
        result_slot: None,
        is_leaf: true,
    },
];

/// Called by the dynamic loader of glibc and musl when it has changed what is mapped
/// and before the new code runs; made for debuggers (`r_brk` in glibc's `link.h`).
pub(super) const LOADER_FUNCTION: AllocatorFunction = AllocatorFunction {
    name: "_dl_debug_state",
    kind: FunctionKind::ChangesCode,
    size: None,
    count: None,
    block: None,
    result_slot: None,
    is_leaf: true,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_distinct_and_make_sense() {
        for (position, function) in ALLOCATOR_FUNCTIONS.iter().enumerate() {
            let twin = ALLOCATOR_FUNCTIONS
                .iter()
                .skip(position + 1)
                .find(|other| other.name == function.name);
            assert_eq!(twin, None, "{} is listed twice", function.name);
            match function.kind {
                FunctionKind::Allocates => assert!(function.size.is_some(), "{}", function.name),
                FunctionKind::Frees => assert!(function.block.is_some(), "{}", function.name),
                FunctionKind::ChangesCode => panic!("{} is no allocator function", function.name),
            }
            let arguments = [function.size, function.count, function.block, function.result_slot];
            assert!(arguments.iter().flatten().all(|argument| *argument <= 5), "{}", function.name);
        }
    }
}
