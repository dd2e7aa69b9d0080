//! Whom to trace: a read-only view of processes, the files mapped into them and the
//! allocator functions in those.
//!
//! Takes process ids, `/proc` and ELF files, all of them hostile; gives plain facts.
//! It only reads, but for one thing: it starts a command and holds it at its first
//! instruction, so that it can be looked at before it runs.

mod allocator;
mod blocks;
mod cgroup;
mod description;
mod endless;
mod exits;
mod extent;
mod launch;
mod memory;
mod module;
mod plan;
mod process;
mod separate;
mod site;

pub use allocator::{ALLOCATORS, Allocator, AllocatorFunction, FunctionKind, Naming};
pub use cgroup::{ControlGroup, GroupError};
pub use description::{Description, DescriptionError, Descriptions};
pub use exits::ExitObstacle;
pub use launch::{HeldCommand, Invoker, LaunchError, RunningCommand, Startup};
pub use memory::ControlGroups;
pub use module::{
    CalledCode, CodeSegment, DescribedCode, FunctionCode, ModuleError, ModuleFacts, Search,
};
pub use plan::{Owner, PlannedProbe, is_of_interest, plan_probes, unseen_functions};
pub use process::{
    CodeMapping, FileIdentity, MappedFile, TargetError, TargetProcess, all_pids, other_root,
    path_of_open,
};
pub use separate::DebugFileError;
pub(crate) use separate::{
    DebugFile, ElfFacts, Wanted, hexadecimal, open_in_directory, open_in_root,
};
pub use site::{
    ArgumentPlaces, ArgumentSet, Calls, EmulatedForms, FrameAt, Inner, InnerCall, MAX_INNER_CALLS,
    Midst, ProbeNeed, ProbeSite, SiteReason, SiteRules, choose_site, choose_sites,
    instruction_text,
};
