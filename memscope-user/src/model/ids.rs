use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            /// As a position in a list of definitions.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// One image of one process.
    ProcessId
    /// A file mapped as code.
    ModuleId
    /// A place in code.
    FrameId
    /// A call chain of a process.
    StackId
    /// A probed function of a module.
    ProbeId
    /// An allocator that is known from others, by a number from 1.
    AllocatorId
    /// A thread, by its number in the initial pid namespace.
    ThreadId
}
