//! Where the allocators of a process are probed, and what that costs here.

use serde::Serialize;

use crate::{
    kernel::{HitCosts, MeasuredHits},
    model::AttachMethod,
    target::{
        AllocatorFunction, FunctionKind, ModuleFacts, PlannedProbe, SiteRules, instruction_text,
        plan_probes, unseen_functions,
    },
    text::{duration_ns, harmless},
};

/// What a call costs whose probes run a program that does nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct HitDiagnosis {
    way: &'static str,
    /// Whether traces attach their probes so.
    in_use: bool,
    emulated_ns: u64,
    single_stepped_ns: u64,
    /// Of an emulated entry and of the return.
    with_return_ns: u64,
    #[serde(skip)]
    costs: HitCosts,
}

impl HitDiagnosis {
    /// `in_use`: how traces attach their probes; none if they cannot.
    pub(super) fn of(measured: &MeasuredHits, in_use: Option<AttachMethod>) -> Vec<Self> {
        measured.costs().iter().map(|(way, costs)| Self::new(*way, *costs, in_use)).collect()
    }

    fn new(way: AttachMethod, costs: HitCosts, in_use: Option<AttachMethod>) -> Self {
        Self {
            way: way.name(),
            in_use: in_use == Some(way),
            emulated_ns: costs.emulated_ns.round() as u64,
            single_stepped_ns: costs.single_stepped_ns.round() as u64,
            with_return_ns: costs.with_return_ns.round() as u64,
            costs,
        }
    }
}

/// What hits cost by the way that traces use; none if it could not be measured.
pub(super) fn in_use(hits: &[HitDiagnosis]) -> Option<HitCosts> {
    hits.iter().find(|hit| hit.in_use).map(|hit| hit.costs)
}

pub(super) fn hit_lines(hits: &[HitDiagnosis]) -> Vec<String> {
    let shown = |hit: &HitDiagnosis| {
        format!(
            "       a call probed by {:<14} {:>8} emulated, {:>8} single-stepped, {:>8} with its return{}",
            hit.way,
            duration_ns(hit.emulated_ns),
            duration_ns(hit.single_stepped_ns),
            duration_ns(hit.with_return_ns),
            if hit.in_use { " (in use)" } else { "" }
        )
    };
    if hits.is_empty() {
        vec!["       what a probed call costs could not be measured".to_owned()]
    } else {
        hits.iter().map(shown).collect()
    }
}

/// A file with an allocator.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct AllocatorDiagnosis {
    path: String,
    probes: Vec<ProbeDiagnosis>,
    /// Functions whose blocks are not recorded.
    unseen: Vec<UnseenDiagnosis>,
    /// Of a malloc and its free, with programs that do nothing; none if it could not be measured.
    pair_ns: Option<u64>,
}

/// A function that is not probed, because it cannot be said where it returns.
#[derive(Debug, PartialEq, Serialize)]
struct UnseenDiagnosis {
    function: &'static str,
    reason: String,
}

/// A probed function.
#[derive(Debug, PartialEq, Serialize)]
struct ProbeDiagnosis {
    function: &'static str,
    file_offset: u64,
    /// Of the probed instruction in the function.
    offset: u64,
    instruction: Option<String>,
    emulated: bool,
    /// Whether the call's return is probed as well.
    returns: bool,
    reason: &'static str,
    /// Of a call, with a program that does nothing; none if it could not be measured.
    cost_ns: Option<u64>,
}

impl AllocatorDiagnosis {
    /// None if nothing of the file is probed.
    pub(super) fn of(
        path: &str,
        facts: &ModuleFacts,
        rules: SiteRules,
        costs: Option<HitCosts>,
    ) -> Option<Self> {
        let probes: Vec<ProbeDiagnosis> = plan_probes(facts, rules)
            .iter()
            .filter(|probe| probe.function.kind.is_of_blocks())
            .map(|probe| ProbeDiagnosis::of(probe, facts, costs))
            .collect();
        // By the cheapest way through it, if there are several.
        let cost = |name| {
            let of = probes.iter().filter(|probe| probe.function == name);
            of.filter_map(|probe| probe.cost_ns).min()
        };
        let pair_ns = cost("malloc").zip(cost("free")).map(|(malloc, free)| malloc + free);
        let unseen = unseen_functions(facts).into_iter();
        let unseen: Vec<UnseenDiagnosis> = unseen
            .map(|(function, obstacle)| UnseenDiagnosis { function, reason: obstacle.to_string() })
            .collect();
        let is_allocator = !probes.is_empty() || !unseen.is_empty();
        is_allocator.then(|| Self { path: path.to_owned(), probes, unseen, pair_ns })
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let pair = self.pair_ns.map_or_else(String::new, |pair_ns| {
            format!(", {} a malloc and free", duration_ns(pair_ns))
        });
        let heading = format!("  yes  allocator: {}{pair}", harmless(&self.path));
        let unseen = self.unseen.iter().map(|unseen| {
            format!("       {:<16} not recorded: {}", unseen.function, unseen.reason)
        });
        let probes = self.probes.iter().map(ProbeDiagnosis::line);
        std::iter::once(heading).chain(probes).chain(unseen).collect()
    }
}

impl ProbeDiagnosis {
    fn of(probe: &PlannedProbe, facts: &ModuleFacts, costs: Option<HitCosts>) -> Self {
        let AllocatorFunction { name, kind, can_throw, .. } = probe.function;
        let offset = probe.site.offset;
        let start = probe.file_offset.saturating_sub(offset);
        let code = facts.code_at(start);
        let with_return =
            kind == FunctionKind::Allocates && !can_throw && probe.site.midst.is_none();
        let cost_of_call = |costs: HitCosts| {
            // Such a function's return is a stepped instruction.
            let at_exit_ns = if can_throw { costs.single_stepped_ns } else { 0.0 };
            (costs.of_call(probe.site.emulated, with_return) + at_exit_ns).round() as u64
        };
        Self {
            function: name,
            file_offset: probe.file_offset,
            offset,
            instruction: code.and_then(|code| instruction_text(code, offset, start)),
            emulated: probe.site.emulated,
            returns: with_return,
            reason: probe.site.reason.as_str(),
            cost_ns: costs.map(cost_of_call),
        }
    }

    fn line(&self) -> String {
        let cost = self.cost_ns.map_or_else(|| "unknown".to_owned(), duration_ns);
        format!(
            "       {:<16} {cost:>8}  {:#x}: {} ({}{})",
            self.function,
            self.file_offset,
            self.instruction.as_deref().unwrap_or("no instruction"),
            if self.emulated { "" } else { "single-stepped: " },
            self.reason
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::target::{EmulatedForms, ExitObstacle, FunctionCode};

    const RULES: SiteRules = SiteRules { forms: EmulatedForms { long_nops: false }, at_once: true };
    const COSTS: HitCosts = HitCosts {
        emulated_ns: 600.4,
        single_stepped_ns: 9000.0,
        with_return_ns: 900.0,
        aftermath_ns: 30.0,
    };

    fn facts() -> ModuleFacts {
        let function = |name: &str, file_offset, code: &[u8]| FunctionCode {
            name: name.to_owned(),
            file_offset,
            code: code.to_vec(),
            is_local: false,
            never_return: BTreeSet::new(),
            called: Vec::new(),
        };
        ModuleFacts {
            functions: vec![
                // push %r12
                function("malloc", 0x100, &[0x41, 0x54]),
                // test %rdi,%rdi; je +1; push %rbp; ret
                function("free", 0x200, &[0x48, 0x85, 0xff, 0x74, 1, 0x55, 0xc3]),
                // mul %rdx; ret
                function("reallocarray", 0x300, &[0x48, 0xf7, 0xe2, 0xc3]),
            ],
            ..ModuleFacts::default()
        }
    }

    #[test]
    fn each_function_is_shown_with_its_site_and_its_cost() {
        let allocator =
            AllocatorDiagnosis::of("/lib/some.so", &facts(), RULES, Some(COSTS)).unwrap();
        assert_eq!(
            allocator.lines(),
            [
                "  yes  allocator: /lib/some.so, 1.50 µs a malloc and free",
                "       free               600 ns  0x205: push %rbp (emulated, and not reached without a block)",
                "       reallocarray      9.30 µs  0x300: mul %rdx (single-stepped: it ends or goes on elsewhere before any emulated instruction)",
                "       malloc             900 ns  0x100: push %r12 (the entry is emulated)",
            ]
        );
        let mut throwing = facts();
        throwing.functions[0].name = "_Znwm".to_owned();
        throwing.functions[2].name = "malloc".to_owned();
        throwing.exits.insert(0x100, Ok(vec![0x120]));
        let throwing =
            AllocatorDiagnosis::of("/lib/some.so", &throwing, RULES, Some(COSTS)).unwrap();
        assert_eq!(
            throwing.lines()[2],
            "       _Znwm             9.60 µs  0x100: push %r12 (the entry is emulated)"
        );
        let mut unseen = facts();
        unseen.functions[2].name = "_Znwm".to_owned();
        unseen.exits.insert(0x300, Err(ExitObstacle::JumpsAnywhere(0x1302)));
        let unseen = AllocatorDiagnosis::of("/lib/some.so", &unseen, RULES, None).unwrap();
        assert_eq!(
            unseen.lines()[3],
            "       _Znwm            not recorded: the jump at 0x1302 goes where only the process knows"
        );
        let unknown = AllocatorDiagnosis::of("/lib/some.so", &facts(), RULES, None).unwrap();
        assert_eq!(unknown.pair_ns, None);
        assert!(unknown.lines()[1].contains(" unknown  0x205"), "{:?}", unknown.lines());
        assert_eq!(
            AllocatorDiagnosis::of("/lib/other.so", &ModuleFacts::default(), RULES, None),
            None
        );
    }

    #[test]
    fn the_way_in_use_is_the_one_that_counts() {
        let hits = [
            HitDiagnosis::new(
                AttachMethod::Multi,
                HitCosts { emulated_ns: 1.0, ..COSTS },
                Some(AttachMethod::Session),
            ),
            HitDiagnosis::new(AttachMethod::Session, COSTS, Some(AttachMethod::Session)),
        ];
        assert_eq!(in_use(&hits), Some(COSTS));
        assert_eq!(
            hit_lines(&hits)[1],
            "       a call probed by session          600 ns emulated,  9.00 µs single-stepped,   900 ns with its return (in use)"
        );
        assert_eq!(in_use(&hits[..1]), None);
        assert_eq!(hit_lines(&[]).len(), 1);
    }
}
