//! Which probes a module needs.

use std::collections::BTreeMap;

use super::{
    ExitObstacle,
    allocator::{
        AllocatorFunction, EXCEPTION_FUNCTIONS, EXIT, FunctionKind, LOADER_FUNCTION, Naming, Row,
        THREAD_END_FUNCTIONS, find,
    },
    module::{FunctionCode, ModuleFacts},
    site::{
        ArgumentPlaces, ArgumentSet, Calls, ProbeNeed, ProbeSite, SiteRules, choose_site,
        choose_sites, first_transfer,
    },
};

/// Whether a probe may be wanted on a function of this name.
#[must_use]
pub fn is_of_interest(name: &str) -> bool {
    name == LOADER_FUNCTION.name || notice_of(name).is_some() || find(name).is_some()
}

/// A function that neither gives nor ends blocks, but tells something of calls that do.
fn notice_of(name: &str) -> Option<AllocatorFunction> {
    let mut notices = EXCEPTION_FUNCTIONS.into_iter().chain(THREAD_END_FUNCTIONS);
    notices.find(|function| function.name == name)
}

/// Which allocator a function is of, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The one that its module has, which takes its memory from the kernel.
    Module,
    /// The one that somebody has described it to be of, by name.
    Described(&'static str),
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
    /// Whether its module can free blocks again that were freed already, as glibc does at a thread's end, and no probe
    /// tells when: then any call that the module makes itself can be of that kind.
    pub frees_again_unnoticed: bool,
    /// Which allocator the function is of, if that is known.
    pub owner: Option<Owner>,
    /// The number that this allocator was given; 0 for none.
    pub allocator: u8,
}

/// The probes of each function of interest that the module defines, most often one; a function with
/// several names (glibc's `memalign` and `aligned_alloc`) is probed once.
///
/// In the order in which they must be attached: what ends blocks first, so that no
/// block is seen to begin whose end would be missed.
#[must_use]
pub fn plan_probes(facts: &ModuleFacts, rules: SiteRules) -> Vec<PlannedProbe> {
    let mut by_offset: BTreeMap<u64, Vec<PlannedProbe>> = BTreeMap::new();
    let frees_again_unnoticed = frees_again_unnoticed(facts);
    for (found, function, owner) in wanted(facts) {
        let exits = facts.exits.get(&found.file_offset);
        let exits = exits.and_then(|exits| exits.as_ref().ok()).map_or(&[][..], Vec::as_slice);
        // What it gives would not be seen.
        if function.can_throw && exits.is_empty() {
            continue;
        }
        let planned = |function, file_offset, site, owner| {
            let code = facts.code.iter().find(|segment| segment.contains_file_offset(file_offset));
            let code_file_offsets = code.map_or((file_offset, file_offset), |segment| {
                (segment.file_offset, segment.file_offset.saturating_add(segment.length_bytes))
            });
            PlannedProbe {
                function,
                file_offset,
                code_file_offsets,
                site,
                frees_again_unnoticed,
                owner,
                allocator: 0,
            }
        };
        if function.can_throw {
            for exit in exits {
                let probe = planned(EXIT, *exit, ProbeSite::EXIT, None);
                by_offset.entry(*exit).or_insert_with(|| vec![probe]);
            }
        }
        by_offset.entry(found.file_offset).or_insert_with(|| {
            let sites = sites_of(&function, found, facts, rules).into_iter();
            let probes = sites.filter_map(|site| {
                let distance = site.inner.map_or(0, |inner| inner.distance);
                let begin = found.file_offset.checked_add_signed(distance)?;
                let file_offset = begin.checked_add(site.offset)?;
                Some(planned(found_at(function, site.places), file_offset, site, owner))
            });
            probes.collect()
        });
    }
    let mut probes: Vec<PlannedProbe> = by_offset.into_values().flatten().collect();
    probes.sort_by_key(|probe| match probe.function.kind {
        FunctionKind::Frees
        | FunctionKind::ChangesCode
        | FunctionKind::Throws
        | FunctionKind::Catches
        | FunctionKind::EndsThread
        | FunctionKind::Exits => 0,
        FunctionKind::Allocates if probe.function.block.is_some() => 1,
        FunctionKind::Allocates => 2,
    });
    probes
}

fn sites_of(
    function: &AllocatorFunction,
    found: &FunctionCode,
    facts: &ModuleFacts,
    rules: SiteRules,
) -> Vec<ProbeSite> {
    let need = need_of(function);
    let gives_in_register = rules.at_once
        && function.kind == FunctionKind::Allocates
        && function.block.is_none()
        && function.result_slot.is_none()
        && !function.can_throw;
    if gives_in_register {
        let calls = Calls { never_return: &found.never_return, called: &found.called };
        // What else is called malloc may stand in front of another one, and lead there by any call.
        let calls_no_other = function.is_leaf && facts.is_c_library;
        choose_sites(&found.code, need, rules.forms, calls_no_other.then_some(calls))
    } else {
        vec![choose_site(&found.code, need, rules.forms)]
    }
}

/// Only the C library does so, at a thread's end. Of functions that were described it is not known whose they are.
fn frees_again_unnoticed(facts: &ModuleFacts) -> bool {
    let may_be_c_library = facts.is_c_library || !facts.described.is_empty();
    let tells_end = |found: &FunctionCode| {
        notice_of(&found.name).is_some_and(|notice| notice.kind == FunctionKind::EndsThread)
    };
    may_be_c_library && !facts.functions.iter().any(tells_end)
}

/// Functions that would be probed, if it could be said where they return.
#[must_use]
pub fn unseen_functions(facts: &ModuleFacts) -> Vec<(&'static str, ExitObstacle)> {
    let obstacle = |found: &FunctionCode| facts.exits.get(&found.file_offset)?.as_ref().err();
    let unseen = wanted(facts).into_iter().filter(|(_, function, _)| function.can_throw);
    unseen.filter_map(|(found, function, _)| Some((function.name, *obstacle(found)?))).collect()
}

/// What of a module's functions is to be probed. Of several names the best known comes first,
/// before it what was described.
fn wanted(facts: &ModuleFacts) -> Vec<(&FunctionCode, AllocatorFunction, Option<Owner>)> {
    if facts.is_loader {
        // The loader's own first allocator is left alone: nobody frees its blocks.
        let notices = facts.functions.iter().filter(|found| found.name == LOADER_FUNCTION.name);
        return notices.map(|found| (found, LOADER_FUNCTION, None)).collect();
    }
    let mut rows: Vec<(&FunctionCode, Row)> = facts
        .functions
        .iter()
        .filter_map(|found| find(&found.name).map(|row| (found, row)))
        .filter(|(found, row)| row.naming == Naming::Own || !found.is_local)
        .collect();
    let is_allocator = rows.iter().any(|(_, row)| {
        row.naming != Naming::Operator && row.function.kind == FunctionKind::Allocates
    });
    // Functions that were described can be called by those of the table, and call them.
    let has_own_names =
        !facts.described.is_empty() || rows.iter().any(|(_, row)| row.naming == Naming::Own);
    let effects: BTreeMap<u64, Effect> =
        rows.iter().map(|(found, row)| (found.file_offset, effect_of(row.function))).collect();
    rows.retain(|(found, row)| match row.naming {
        Naming::Shared => true,
        Naming::Own => !hands_on(found, row.function, &effects),
        Naming::Operator => is_allocator && !hands_on(found, row.function, &effects),
    });
    rows.sort_by_key(|(_, row)| row.number);
    let owner = owner_of(facts, &rows);
    let functions = rows.into_iter().map(|(found, Row { function, .. })| {
        let is_leaf = function.is_leaf && !has_own_names;
        (found, AllocatorFunction { is_leaf, ..*function }, owner)
    });
    let notices =
        facts.functions.iter().filter_map(|found| Some((found, notice_of(&found.name)?, None)));
    // First, so that a description counts more than the table.
    let described = facts
        .described
        .iter()
        .map(|found| (&found.code, found.function, found.allocator.map(Owner::Described)));
    described.chain(functions).chain(notices).collect()
}

/// Whose the functions of the table are in a module. Of names that anybody may define it is not
/// known, as they can hand on to another module; nor where blocks are given or end that are not seen.
fn owner_of(facts: &ModuleFacts, rows: &[(&FunctionCode, Row)]) -> Option<Owner> {
    let any = |is: &dyn Fn(&Row) -> bool| rows.iter().any(|(_, row)| is(row));
    let gives = |row: &Row| row.function.kind == FunctionKind::Allocates;
    let takes_pages = facts.is_c_library || any(&|row| row.takes_pages && gives(row));
    let is_whole = any(&gives)
        && any(&|row| row.function.kind == FunctionKind::Frees)
        && facts.exits.values().all(Result::is_ok);
    (takes_pages && is_whole).then_some(Owner::Module)
}

/// What a call does to blocks: whether it gives one, and whether it ends one.
type Effect = (FunctionKind, bool);

fn effect_of(function: &AllocatorFunction) -> Effect {
    (function.kind, function.block.is_some())
}

/// Whether every call of a function leads on into another one that does the same, which is probed
/// or leads on in turn: a second probe would say nothing more, and cost as much again.
fn hands_on(
    found: &FunctionCode,
    function: &AllocatorFunction,
    effects: &BTreeMap<u64, Effect>,
) -> bool {
    first_transfer(&found.code)
        .and_then(|distance| found.file_offset.checked_add_signed(distance))
        .filter(|target| *target != found.file_offset)
        .is_some_and(|target| effects.get(&target) == Some(&effect_of(function)))
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::target::{module::DescribedCode, site::EmulatedForms};

    const OLD_KERNEL: SiteRules =
        SiteRules { forms: EmulatedForms { long_nops: false }, at_once: true };

    fn function(name: &str, file_offset: u64) -> FunctionCode {
        FunctionCode {
            name: name.to_owned(),
            file_offset,
            code: vec![0x55],
            is_local: false,
            never_return: BTreeSet::new(),
            called: Vec::new(),
        }
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

    fn names(facts: &ModuleFacts) -> Vec<&'static str> {
        plan_probes(facts, OLD_KERNEL).iter().map(|probe| probe.function.name).collect()
    }

    #[test]
    fn operators_are_probed_beside_an_allocator_only() {
        let operators = [function("_ZdlPv", 0x100), function("_Znwm", 0x200)];
        let mut facts = ModuleFacts { functions: operators.to_vec(), ..ModuleFacts::default() };
        assert_eq!(names(&facts), [""; 0], "libstdc++");
        facts.functions.push(function("free", 0x300));
        assert_eq!(names(&facts), ["free"], "what only frees is no allocator");
        facts.functions.push(function("malloc", 0x400));
        assert_eq!(names(&facts), ["_ZdlPv", "free", "malloc"]);
    }

    fn owners(facts: &ModuleFacts) -> Vec<Option<Owner>> {
        plan_probes(facts, OLD_KERNEL).iter().map(|probe| probe.owner).collect()
    }

    #[test]
    fn whose_functions_are_is_known_of_allocators_that_take_pages_only() {
        let functions = |names: &[&str]| ModuleFacts {
            functions: (0x100..)
                .step_by(0x100)
                .zip(names)
                .map(|(at, name)| function(name, at))
                .collect(),
            ..ModuleFacts::default()
        };
        let own = Some(Owner::Module);
        // An allocator that stands in front of another one has these names, too.
        let mut any = functions(&["malloc", "free"]);
        assert_eq!(owners(&any), [None, None]);
        any.is_c_library = true;
        assert_eq!(owners(&any), [own, own]);
        any.functions.pop();
        assert_eq!(owners(&any), [None], "what it gives ends elsewhere");
        for names in [
            ["malloc", "mallocx", "free"],
            ["malloc", "mi_malloc", "free"],
            ["_Znwm", "_rjem_malloc", "_rjem_free"],
        ] {
            let mut facts = functions(&names);
            facts.exits.insert(0x100, Ok(vec![0x180]));
            let known = owners(&facts).into_iter().flatten().collect::<Vec<_>>();
            assert_eq!(known, [Owner::Module; 3], "{names:?}");
        }
        let unseen = ModuleFacts {
            exits: BTreeMap::from([(0x100, Err(ExitObstacle::StackMoves))]),
            ..functions(&["_Znwm", "tc_malloc", "tc_free"])
        };
        assert_eq!(owners(&unseen), [None, None], "blocks begin that are not seen");
    }

    #[test]
    fn what_is_described_is_of_the_allocator_that_was_named() {
        let described = |name, file_offset, allocator| DescribedCode {
            description: 0,
            function: *find("je_free").unwrap().function,
            allocator,
            code: function(name, file_offset),
        };
        let facts = ModuleFacts {
            functions: vec![function("malloc", 0x100), function("free", 0x200)],
            described: vec![
                described("free", 0x200, None),
                described("pool_free", 0x300, Some("pool")),
            ],
            is_c_library: true,
            ..ModuleFacts::default()
        };
        let mut owners = owners(&facts);
        owners.sort_by_key(|owner| format!("{owner:?}"));
        assert_eq!(owners, [None, Some(Owner::Described("pool")), Some(Owner::Module)]);
    }

    /// mimalloc's, as optimised.
    #[test]
    fn own_names_that_hand_on_to_what_does_the_same_are_not_probed() {
        let jump = |name: &str, file_offset, distance: u8| FunctionCode {
            code: vec![0xe9, distance, 0, 0, 0],
            ..function(name, file_offset)
        };
        let functions = vec![
            jump("mi_malloc_aligned", 0x100, 0xfb),
            function("mi_theap_malloc_aligned", 0x200),
            jump("mi_free_size", 0x300, 0xfb),
            jump("mi_realloc", 0x380, 0x7b),
            function("mi_free", 0x400),
        ];
        let facts = ModuleFacts { functions, ..ModuleFacts::default() };
        assert_eq!(names(&facts), ["mi_free", "mi_realloc", "mi_theap_malloc_aligned"]);
    }

    /// libstdc++ beside a C library, linked statically into a program.
    #[test]
    fn operators_that_hand_on_are_not_probed() {
        let code = |name: &str, file_offset, code: &[u8]| FunctionCode {
            code: code.to_vec(),
            ..function(name, file_offset)
        };
        let functions = vec![
            // push %rbx; mov %rdi,%rbx; call malloc
            code("_Znwm", 0x100, &[0x53, 0x48, 0x89, 0xfb, 0xe8, 0xf7, 0x02, 0, 0]),
            // jmp _Znwm
            code("_Znam", 0x200, &[0xe9, 0xfb, 0xfe, 0xff, 0xff]),
            // jmp free
            code("_ZdlPv", 0x300, &[0xe9, 0xfb, 0x01, 0, 0]),
            // test %rdi,%rdi; je +5; jmp free
            code("_ZdaPv", 0x380, &[0x48, 0x85, 0xff, 0x74, 5, 0xe9, 0x76, 0x01, 0, 0]),
            function("malloc", 0x400),
            function("free", 0x500),
        ];
        let facts = ModuleFacts { functions, ..ModuleFacts::default() };
        assert_eq!(names(&facts), ["_ZdaPv", "free", "malloc"], "those that decide stay");
    }

    #[test]
    fn of_the_names_of_one_function_the_best_known_is_taken() {
        let functions = ["_ZdaPv", "_ZdlPv", "cfree", "free", "mi_free"]
            .map(|name| function(name, 0x100))
            .to_vec();
        let mut facts = ModuleFacts { functions, ..ModuleFacts::default() };
        facts.functions.push(function("mi_malloc", 0x200));
        assert_eq!(names(&facts), ["free", "mi_malloc"]);
    }

    #[test]
    fn what_can_throw_is_probed_where_it_begins_and_where_it_returns() {
        let mut facts = ModuleFacts {
            functions: vec![
                function("malloc", 0x100),
                function("_Znwm", 0x200),
                function("_Znam", 0x300),
                function("_ZnwmSt11align_val_t", 0x400),
                function("__cxa_begin_catch", 0x500),
                function("__cxa_allocate_exception", 0x600),
            ],
            ..ModuleFacts::default()
        };
        let of_exceptions = ["__cxa_begin_catch", "__cxa_allocate_exception"];
        let with = |others: &[&'static str]| [&of_exceptions, others].concat();
        assert_eq!(names(&facts), with(&["malloc"]), "where they return is not known");
        facts.exits = BTreeMap::from([
            (0x200, Ok(vec![0x210, 0x220])),
            (0x300, Ok(vec![0x220, 0x310])),
            (0x400, Err(ExitObstacle::JumpsAnywhere(0x410))),
        ]);
        let probes = plan_probes(&facts, OLD_KERNEL);
        let exits = probes.iter().filter(|probe| probe.function.kind == FunctionKind::Exits);
        let exits: Vec<u64> = exits.map(|probe| probe.file_offset).collect();
        assert_eq!(exits, [0x210, 0x220, 0x310], "each once, before the entries");
        let entries = probes.iter().filter(|probe| probe.function.can_throw);
        let entries: Vec<&str> = entries.map(|probe| probe.function.name).collect();
        assert_eq!(entries, ["_Znwm", "_Znam"]);
        let unseen = [("_ZnwmSt11align_val_t", ExitObstacle::JumpsAnywhere(0x410))];
        assert_eq!(unseen_functions(&facts), unseen);
    }

    #[test]
    fn the_end_of_threads_is_probed_before_frees_where_the_c_library_tells_it() {
        let facts = |names: &[&str], is_c_library| ModuleFacts {
            functions: (0x100..)
                .step_by(0x100)
                .zip(names)
                .map(|(at, name)| function(name, at))
                .collect(),
            is_c_library,
            ..ModuleFacts::default()
        };
        let unnoticed = |facts: &ModuleFacts| {
            plan_probes(facts, OLD_KERNEL).iter().any(|probe| probe.frees_again_unnoticed)
        };
        let told = facts(&["__call_tls_dtors", "free", "malloc"], true);
        assert_eq!(names(&told), ["__call_tls_dtors", "free", "malloc"]);
        assert!(!unnoticed(&told));
        let untold = facts(&["free", "malloc"], true);
        assert!(unnoticed(&untold), "an old one, or one in a static program");
        let another = facts(&["free", "malloc", "mallocx"], false);
        assert!(!unnoticed(&another), "jemalloc empties its caches otherwise");
    }

    #[test]
    fn hidden_functions_count_if_nobody_else_has_such_names() {
        let functions = ["calloc", "_Znwm", "mi_malloc", "free"].into_iter().zip(1..);
        let functions = functions
            .map(|(name, n)| FunctionCode { is_local: name != "free", ..function(name, n * 256) })
            .collect();
        let facts = ModuleFacts { functions, ..ModuleFacts::default() };
        assert_eq!(names(&facts), ["free", "mi_malloc"]);
    }

    #[test]
    fn what_has_names_of_its_own_beside_is_no_leaf() {
        let leaves = |functions: &[FunctionCode]| -> Vec<&'static str> {
            let facts = ModuleFacts { functions: functions.to_vec(), ..ModuleFacts::default() };
            let probes = plan_probes(&facts, OLD_KERNEL);
            let leaves = probes.iter().filter(|probe| probe.function.is_leaf);
            leaves.map(|probe| probe.function.name).collect()
        };
        let mut functions = vec![function("malloc", 0x100), function("realloc", 0x200)];
        assert_eq!(leaves(&functions), ["malloc"]);
        functions.push(function("TCMallocInternalMalloc", 0x300));
        assert_eq!(leaves(&functions), [""; 0], "malloc can call it");
    }
}
