//! The tracers, each with how it comes to the program and how it shows that it has seen the work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bpftrace;
use super::memscope::{self, Mode};
use super::peers::{JEMALLOC_USUAL, Libraries, Peer};
use super::process::Output;
use super::results::MemscopeFigures;
use super::sites::{EmptyPrograms, Sites, Where};
use super::workloads::Launch;
use crate::process::find_in_path;

/// A row of the tables.
#[derive(Debug)]
pub(super) struct Tracer {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Memscope(Mode),
    /// memscope, tracing another process in a way that others notice.
    Elsewhere(Mode),
    /// Programs that do nothing.
    Empty(Where),
    Bpftrace,
    Peer(Peer),
}

pub(super) const NONE: &str = "none";
pub(super) const FULL: &str = "memscope";
pub(super) const CALLER: &str = "memscope-caller";
pub(super) const SAMPLED: &str = "memscope-sampled";
pub(super) const LIMITED: &str = "memscope-limited";
pub(super) const ELSEWHERE: &str = "memscope-elsewhere";
pub(super) const MAPPINGS: &str = "memscope-mappings";
pub(super) const MAPPINGS_ELSEWHERE: &str = "memscope-mappings-elsewhere";
pub(super) const FLOOR: &str = "floor";
pub(super) const EMPTY: &str = "empty";
pub(super) const BARE_TRAP: &str = "bare-trap";
pub(super) const BPFTRACE: &str = "bpftrace";
pub(super) const HEAPTRACK: &str = "heaptrack";
pub(super) const HEAPTRACK_RAW: &str = "heaptrack-raw";
pub(super) const MEMCHECK: &str = "memcheck";
pub(super) const MASSIF: &str = "massif";
pub(super) const DHAT: &str = "dhat";

/// Of memscope in ways that only some programs are measured in.
pub(super) const SPECIAL: &[&str] = &[LIMITED, MAPPINGS, MAPPINGS_ELSEWHERE];

/// In the order of the tables.
pub(super) const TRACERS: &[Tracer] = &[
    Tracer { name: NONE, title: "none", kind: Kind::None },
    Tracer {
        name: FULL,
        title: "**memscope**, every event with its stack",
        kind: Kind::Memscope(Mode::Full),
    },
    Tracer {
        name: CALLER,
        title: "**memscope** `--stacks caller`",
        kind: Kind::Memscope(Mode::Caller),
    },
    Tracer {
        name: SAMPLED,
        title: "**memscope** `--sample 512KiB`",
        kind: Kind::Memscope(Mode::Sampled),
    },
    Tracer {
        name: LIMITED,
        title: "**memscope** `--max-overhead 5%`",
        kind: Kind::Memscope(Mode::Limited),
    },
    Tracer {
        name: ELSEWHERE,
        title: "**memscope** `--probes host`, of another process",
        kind: Kind::Elsewhere(Mode::Everywhere),
    },
    Tracer {
        name: MAPPINGS,
        title: "**memscope** `--mappings`",
        kind: Kind::Memscope(Mode::Mappings),
    },
    Tracer {
        name: MAPPINGS_ELSEWHERE,
        title: "**memscope** `--mappings`, of another process",
        kind: Kind::Elsewhere(Mode::Mappings),
    },
    Tracer {
        name: FLOOR,
        title: "floor: programs that do nothing, at entry and return",
        kind: Kind::Empty(Where::EntryAndReturn),
    },
    Tracer {
        name: EMPTY,
        title: "empty: programs that do nothing, where memscope's are",
        kind: Kind::Empty(Where::AsMemscope),
    },
    Tracer {
        name: BARE_TRAP,
        title: "bare trap: the same, without the returns",
        kind: Kind::Empty(Where::NoReturn),
    },
    Tracer { name: BPFTRACE, title: "bpftrace, naive", kind: Kind::Bpftrace },
    Tracer { name: HEAPTRACK, title: "heaptrack", kind: Kind::Peer(Peer::Heaptrack) },
    Tracer {
        name: HEAPTRACK_RAW,
        title: "heaptrack `--raw`",
        kind: Kind::Peer(Peer::HeaptrackRaw),
    },
    Tracer { name: MEMCHECK, title: "valgrind memcheck", kind: Kind::Peer(Peer::Memcheck) },
    Tracer { name: MASSIF, title: "valgrind massif", kind: Kind::Peer(Peer::Massif) },
    Tracer { name: DHAT, title: "valgrind DHAT", kind: Kind::Peer(Peer::Dhat) },
    Tracer {
        name: "jemalloc",
        title: "jemalloc as the allocator, untraced",
        kind: Kind::Peer(Peer::Jemalloc),
    },
    Tracer {
        name: "jemalloc-prof",
        title: "jemalloc's profiler, a sample per 512 KiB",
        kind: Kind::Peer(Peer::JemallocProfile { sample: JEMALLOC_USUAL }),
    },
    Tracer {
        name: "jemalloc-prof-all",
        title: "jemalloc's profiler, every allocation",
        kind: Kind::Peer(Peer::JemallocProfile { sample: 0 }),
    },
    Tracer { name: "bytehound", title: "bytehound", kind: Kind::Peer(Peer::Bytehound) },
];

/// What tracers need of this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Kit {
    pub(super) memscope: PathBuf,
    /// What `memscope trace --help` prints.
    pub(super) trace_help: String,
    pub(super) libraries: Libraries,
}

/// A tracer that is ready for a program to start.
pub(super) struct Prepared {
    pub(super) launch: Launch,
    /// In the files that the program maps, if these are copies.
    copied: Option<Sites>,
}

/// A tracer at work.
pub(super) enum Attached {
    /// Nothing but what the program was started with.
    Launched,
    Memscope(memscope::Tracing),
    Elsewhere(memscope::TracingElsewhere),
    Empty(EmptyPrograms),
    Bpftrace(bpftrace::Tracing),
}

/// What a tracer has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// None where it does not count.
    pub(super) allocations: Option<u64>,
    pub(super) memscope: Option<MemscopeFigures>,
    /// Somebody else had the kernel count runs of programs, which takes time.
    pub(super) disturbed: bool,
}

impl Tracer {
    pub(super) fn named(name: &str) -> Option<&'static Tracer> {
        TRACERS.iter().find(|tracer| tracer.name == name)
    }

    /// Whether a program under it runs nearly as fast as without.
    pub(super) fn costs_next_to_nothing(&self) -> bool {
        matches!(
            self.kind,
            Kind::None
                | Kind::Peer(Peer::Jemalloc | Peer::JemallocProfile { sample: JEMALLOC_USUAL })
        )
    }

    /// Why it cannot be used here.
    pub(super) fn missing(&self, kit: &Kit) -> Option<String> {
        let program =
            |name: &str| find_in_path(name).is_none().then(|| format!("{name} is not installed"));
        match self.kind {
            Kind::None | Kind::Empty(_) => None,
            Kind::Memscope(mode) | Kind::Elsewhere(mode) => {
                let option = mode.missing(&kit.trace_help)?;
                Some(format!("this memscope has no {option}"))
            }
            Kind::Bpftrace => program("bpftrace"),
            Kind::Peer(Peer::Heaptrack) => program("heaptrack"),
            // Without zstd it packs what it records in another way.
            Kind::Peer(Peer::HeaptrackRaw) => program("heaptrack").or_else(|| program("zstd")),
            Kind::Peer(Peer::Memcheck | Peer::Massif | Peer::Dhat) => program("valgrind"),
            Kind::Peer(Peer::Jemalloc | Peer::JemallocProfile { .. }) => kit
                .libraries
                .jemalloc
                .is_none()
                .then(|| "libjemalloc.so.2 is not installed".to_owned()),
            Kind::Peer(Peer::Bytehound) => kit.libraries.bytehound.is_none().then(|| {
                "libbytehound.so is not installed, and no --bytehound says where it is".to_owned()
            }),
        }
    }

    pub(super) fn prepare(&self, kit: &Kit, sites: &Sites, folder: &Path) -> Result<Prepared> {
        Ok(match self.kind {
            Kind::Bpftrace | Kind::Empty(_) => {
                let (copied, launch) = sites.copied(folder)?;
                Prepared { launch, copied: Some(copied) }
            }
            Kind::Peer(peer) => {
                Prepared { launch: peer.launch(&kit.libraries, folder)?, copied: None }
            }
            Kind::None | Kind::Memscope(_) | Kind::Elsewhere(_) => {
                Prepared { launch: Launch::default(), copied: None }
            }
        })
    }

    /// Comes to a program that waits.
    pub(super) fn attach(
        &self,
        kit: &Kit,
        sites: &Sites,
        prepared: &Prepared,
        pid: u32,
        folder: &Path,
    ) -> Result<Attached> {
        let sites = prepared.copied.as_ref().unwrap_or(sites);
        Ok(match self.kind {
            Kind::None | Kind::Peer(_) => Attached::Launched,
            Kind::Memscope(mode) => {
                Attached::Memscope(memscope::Tracing::attach(&kit.memscope, mode, pid, folder)?)
            }
            Kind::Elsewhere(mode) => Attached::Elsewhere(memscope::TracingElsewhere::attach(
                &kit.memscope,
                mode,
                folder,
            )?),
            Kind::Empty(returns) => Attached::Empty(EmptyPrograms::attach(sites, pid, returns)?),
            Kind::Bpftrace => Attached::Bpftrace(bpftrace::Tracing::attach(sites, pid, folder)?),
        })
    }

    /// After the end of the program: what was seen of it, which must be all of its work.
    pub(super) fn check(
        &self,
        attached: Attached,
        program: &Output,
        at_least: u64,
        folder: &Path,
    ) -> Result<Seen> {
        let mut seen = Seen::default();
        match attached {
            Attached::Memscope(tracing) => {
                let (allocations, figures) = tracing.finish(at_least)?;
                seen.allocations = Some(allocations);
                seen.memscope = Some(figures);
            }
            Attached::Elsewhere(tracing) => seen.memscope = Some(tracing.finish()?),
            Attached::Bpftrace(tracing) => seen.allocations = Some(tracing.finish(at_least)?),
            // How often they ran is counted in a run of its own, because to count takes time.
            Attached::Empty(programs) => seen.disturbed = programs.runs()? > 0,
            Attached::Launched => {
                if let Kind::Peer(peer) = self.kind {
                    seen.allocations = peer.check(program, at_least, folder)?;
                }
            }
        }
        Ok(seen)
    }
}

/// The tracers of these names, or all; always with what the others are compared with, first.
pub(super) fn chosen(names: &[String]) -> Result<Vec<&'static Tracer>> {
    if names.is_empty() {
        return Ok(TRACERS.iter().collect());
    }
    for name in names {
        Tracer::named(name).with_context(|| format!("no tracer is named {name}"))?;
    }
    let is_chosen = |tracer: &&Tracer| {
        tracer.kind == Kind::None || names.iter().any(|name| name == tracer.name)
    };
    Ok(TRACERS.iter().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_known() {
        for tracer in TRACERS {
            assert_eq!(Tracer::named(tracer.name).unwrap().kind, tracer.kind, "{}", tracer.name);
        }
        for name in [
            NONE,
            FULL,
            CALLER,
            SAMPLED,
            LIMITED,
            ELSEWHERE,
            FLOOR,
            BARE_TRAP,
            BPFTRACE,
            HEAPTRACK,
            MEMCHECK,
            MASSIF,
            DHAT,
            MAPPINGS,
            MAPPINGS_ELSEWHERE,
        ] {
            assert!(Tracer::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_untraced_program_is_always_measured() {
        let chosen = chosen(&["dhat".to_owned()]).unwrap();
        assert_eq!(chosen.iter().map(|tracer| tracer.name).collect::<Vec<_>>(), [NONE, DHAT]);
        assert!(super::chosen(&["none such".to_owned()]).is_err());
    }

    #[test]
    fn what_is_missing_is_told() {
        let kit = Kit { trace_help: "--stacks <WHICH>".to_owned(), ..Kit::default() };
        let missing = |name| Tracer::named(name).unwrap().missing(&kit);
        assert_eq!(missing(CALLER), None);
        assert_eq!(missing(SAMPLED).unwrap(), "this memscope has no --sample");
        assert!(missing("bytehound").unwrap().contains("--bytehound"));
        assert!(missing("jemalloc").unwrap().contains("libjemalloc"));
    }
}
