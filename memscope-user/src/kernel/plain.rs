use memscope_common::{
    control::{
        Consumer, CostCounters, CpuCounters, ExactCounters, Gaps, Group, Overflow, OverflowKey,
        PageCpu, PageOffsets, ProbeSurroundings, Sampling, Settings, TaskOffsets,
    },
    unwind::{Epoch, KernelOffsets},
};

/// A value of a map that is shared with the programs.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T: Copy>(pub(super) T);

macro_rules! plain {
    ($($type:ty),*) => {$(
        // SAFETY: the contract's types are repr(C) integers without padding, valid for
        // any bytes.
        unsafe impl aya::Pod for Plain<$type> {}
    )*};
}
plain!(
    Group,
    TaskOffsets,
    Consumer,
    CostCounters,
    CpuCounters,
    ProbeSurroundings,
    Settings,
    Sampling,
    Gaps,
    ExactCounters,
    Overflow,
    OverflowKey,
    PageCpu,
    PageOffsets,
    Epoch,
    KernelOffsets
);
