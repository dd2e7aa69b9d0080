//! The functions that are probed.

mod index;
mod rows;
#[cfg(test)]
mod tests;

pub(super) use index::{Row, find};
pub use rows::ALLOCATORS;

/// What a call of a function means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// Gives a block, and may end another one: probed at entry and return.
    Allocates,
    /// Ends a block: probed at entry.
    Frees,
    /// Follows a change of what is mapped: probed at entry.
    ChangesCode,
    /// Makes a C++ exception: probed at entry.
    Throws,
    /// Begins each handler of a C++ exception: probed at entry.
    Catches,
    /// Called by a thread that ends, before the C library frees blocks again that the thread has
    /// freed already: probed at entry.
    EndsThread,
    /// No function, but an instruction by which one returns that can throw.
    Exits,
}

impl FunctionKind {
    /// Whether events refer to such a function.
    #[must_use]
    pub fn is_of_blocks(self) -> bool {
        matches!(self, Self::Allocates | Self::Frees)
    }
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
    /// allocators that have it and no names of their own beside it. If one does all the same,
    /// in place of another module's, its inner calls are told by there being two modules.
    pub is_leaf: bool,
    /// Whether an exception can leave it. The C++ unwinder finds its way by return addresses, so
    /// that the kernel must not put its own in place of such a function's.
    pub can_throw: bool,
}

/// Whose a name is: what follows from a module's defining it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Any allocator may define it, and a program may have a function of its own that is called
    /// so. It counts if others can call it by that name.
    Shared,
    /// Any allocator may define it, and so does a library that is none and only hands calls on
    /// (libstdc++, libc++). It counts beside an allocator, unless it hands on in plain sight.
    Operator,
    /// One allocator's own. It counts even if it is hidden from other modules.
    Own,
}

/// Some rows that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    /// Whose functions they are, in words.
    pub name: &'static str,
    /// Whose names they have.
    pub naming: Naming,
    /// Whether a module that defines one which gives blocks has an allocator that takes its memory
    /// from the kernel, and not from another one. Names that anybody may define do not say so.
    pub takes_pages: bool,
    /// The rows, in parts that it has in common with others or alone.
    pub functions: &'static [&'static [AllocatorFunction]],
}

impl Allocator {
    /// The rows.
    pub fn functions(&self) -> impl Iterator<Item = &'static AllocatorFunction> + use<> {
        self.functions.iter().copied().flatten()
    }
}

/// A function that has no arguments of interest.
const fn plain(name: &'static str, kind: FunctionKind) -> AllocatorFunction {
    AllocatorFunction {
        name,
        kind,
        size: None,
        count: None,
        block: None,
        result_slot: None,
        is_leaf: true,
        can_throw: false,
    }
}

/// Called by the dynamic loader of glibc and musl when it has changed what is mapped
/// and before the new code runs; made for debuggers (`r_brk` in glibc's `link.h`).
pub(super) const LOADER_FUNCTION: AllocatorFunction =
    plain("_dl_debug_state", FunctionKind::ChangesCode);

/// Called by compilers' code for `throw`, and as a handler begins (Itanium C++ ABI, exception
/// handling, 2.4.2 and 2.5.3).
pub(super) const EXCEPTION_FUNCTIONS: [AllocatorFunction; 2] = [
    plain("__cxa_allocate_exception", FunctionKind::Throws),
    plain("__cxa_begin_catch", FunctionKind::Catches),
];

/// Called by glibc in each thread that ends, the second to empty the thread's cache by calling `free`, which is there since
/// 2.26 (`start_thread`, nptl/pthread_create.c). As a library it exports the first one since 2.18; in a static program the
/// first is there if something is to be destroyed, and the second always.
pub(super) const THREAD_END_FUNCTIONS: [AllocatorFunction; 2] = [
    plain("__call_tls_dtors", FunctionKind::EndsThread),
    plain("__libc_thread_freeres", FunctionKind::EndsThread),
];

/// Stands for where a function returns.
pub(super) const EXIT: AllocatorFunction = plain("ret", FunctionKind::Exits);
