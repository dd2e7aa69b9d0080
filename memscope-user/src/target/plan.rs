//! Which probes a module needs.

use std::collections::BTreeMap;

use super::{
    allocator::{ALLOCATOR_FUNCTIONS, AllocatorFunction, FunctionKind, LOADER_FUNCTION},
    module::ModuleFacts,
    site::{ArgumentPlaces, ArgumentSet, EmulatedForms, ProbeNeed, ProbeSite, choose_site},
};

/// Whether a probe may be wanted on a function of this name.
#[must_use]
pub fn is_of_interest(name: &str) -> bool {
    name == LOADER_FUNCTION.name || ALLOCATOR_FUNCTIONS.iter().any(|row| row.name == name)
}

/// A probe to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    /// What the function does. Its arguments are where they are at the site, so an argument's
    /// position is that of the register that holds it there.
    pub function: AllocatorFunction,
    /// Position of the instruction in the file.
    pub file_offset: u64,
    /// The code around it that is mapped with it: begin and end in the file.
    pub code_file_offsets: (u64, u64),
    /// How it was chosen.
    pub site: ProbeSite,
}

/// One probe for each function of interest that the module defines; a function with
/// several names (glibc's `memalign` and `aligned_alloc`) gets one.
///
/// In the order in which they must be attached: what ends blocks first, so that no
/// block is seen to begin whose end would be missed.
#[must_use]
pub fn plan_probes(facts: &ModuleFacts, forms: EmulatedForms) -> Vec<PlannedProbe> {
    let mut by_offset: BTreeMap<u64, PlannedProbe> = BTreeMap::new();
    for found in &facts.functions {
        // The loader's own first allocator is left alone: nobody frees its blocks.
        let rows = if facts.is_loader { &[LOADER_FUNCTION] } else { ALLOCATOR_FUNCTIONS };
        let Some(function) = rows.iter().find(|row| row.name == found.name) else {
            continue;
        };
        let site = choose_site(&found.code, need_of(function), forms);
        let Some(file_offset) = found.file_offset.checked_add(site.offset) else {
            continue;
        };
        let code = facts.code.iter().find(|segment| segment.contains_file_offset(file_offset));
        by_offset.entry(found.file_offset).or_insert(PlannedProbe {
            function: found_at(*function, site.places),
            file_offset,
            code_file_offsets: code.map_or((file_offset, file_offset), |segment| {
                (segment.file_offset, segment.file_offset.saturating_add(segment.length_bytes))
            }),
            site,
        });
    }
    let mut probes: Vec<PlannedProbe> = by_offset.into_values().collect();
    probes.sort_by_key(|probe| match probe.function.kind {
        FunctionKind::Frees | FunctionKind::ChangesCode => 0,
        FunctionKind::Allocates if probe.function.block.is_some() => 1,
        FunctionKind::Allocates => 2,
    });
    probes
}

/// What a probe on a function needs.
fn need_of(function: &AllocatorFunction) -> ProbeNeed {
    let read = [function.size, function.count, function.block, function.result_slot];
    ProbeNeed {
        arguments: ArgumentSet::of(read.into_iter().flatten()),
        block: function.block.filter(|_block| function.kind == FunctionKind::Frees),
    }
}

/// A function whose arguments are elsewhere than where they were passed.
fn found_at(function: AllocatorFunction, places: ArgumentPlaces) -> AllocatorFunction {
    let place = |argument: Option<u8>| argument.map(|argument| places.of(argument));
    AllocatorFunction {
        size: place(function.size),
        count: place(function.count),
        block: place(function.block),
        result_slot: place(function.result_slot),
        ..function
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::module::FunctionCode;

    const OLD_KERNEL: EmulatedForms = EmulatedForms { long_nops: false };

    fn function(name: &str, file_offset: u64) -> FunctionCode {
        FunctionCode { name: name.to_owned(), file_offset, code: vec![0x55] }
    }

    #[test]
    fn aliases_are_probed_once_and_ends_before_begins() {
        let facts = ModuleFacts {
            functions: vec![
                function("malloc", 0x100),
                function("realloc", 0x200),
                function("aligned_alloc", 0x300),
                function("memalign", 0x300),
                function("free", 0x400),
                function("strdup", 0x500),
            ],
            ..ModuleFacts::default()
        };
        let names: Vec<&str> =
            plan_probes(&facts, OLD_KERNEL).iter().map(|probe| probe.function.name).collect();
        assert_eq!(names, ["free", "realloc", "malloc", "aligned_alloc"]);
    }

    #[test]
    fn of_the_dynamic_loader_only_its_notice_is_probed() {
        let facts = ModuleFacts {
            functions: vec![function("malloc", 0x100), function("_dl_debug_state", 0x200)],
            is_loader: true,
            ..ModuleFacts::default()
        };
        let names: Vec<&str> =
            plan_probes(&facts, OLD_KERNEL).iter().map(|probe| probe.function.name).collect();
        assert_eq!(names, ["_dl_debug_state"]);
    }
}
