//! What was asked for.

use core::ptr::read_volatile;

use memscope_common::control::Settings;

/// Written by the loader.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    caller_only: 0,
    slots_log2: 0,
    samples: 0,
    seed: 0,
    pauses: 0,
    counts_cost: 0,
    follows: 0,
    selects: 0,
};

/// The same place in the kernel's memory for all programs.
#[inline(always)]
pub(crate) fn place() -> *const Settings {
    &raw const SETTINGS
}

/// A function for each: one that read them all would, at each use, have them all read.
macro_rules! words {
    ($($word:ident),*) => {$(
        #[inline(always)]
        pub(crate) fn $word() -> u32 {
            // SAFETY: a constant of the object, written before it was loaded.
            unsafe { read_volatile(&raw const SETTINGS.$word) }
        }
    )*};
}

words!(caller_only, slots_log2, samples, seed, pauses, counts_cost, follows, selects);
