//! From bytes of the ring to the items of a recording: decodes, and gives
//! processes, modules, frames and stacks their ids.
//!
//! Takes records of the kernel side (hostile, as everything from outside) and a
//! [`ProcessView`]; gives [`crate::model::Item`]s in order. Its memory is bounded by
//! distinct stacks and frames, never by events.

mod address_space;
mod collector;
mod decode;
mod stacks;

pub use address_space::{AddressSpace, CodeRange, Content, Observation, ProcessView, WalkedCopy};
pub use collector::{Collector, CopiedStacks, Probing, TargetStart};
pub use decode::{
    Allocation, CopiedStack, DecodeError, Decoder, Free, OfImage, Record, StackFrames, is_fork,
    parent_of,
};
pub use memscope_common::record::ProcessBegin;
