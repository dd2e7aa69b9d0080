use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    SiteReason::{
        ArgumentOverwritten, BehindNullTest, BlockKnown, EmulatedEntry, EnteredOtherwise,
        MemoryWritten, NoneNear, NothingBefore, PathEnds, StackPointerMoves,
    },
    *,
};
use crate::target::{FunctionCode, ModuleFacts, PlannedProbe, plan_probes};

mod inner;
mod machine;
mod midst;

const OLD: EmulatedForms = EmulatedForms { long_nops: false };
const NEW: EmulatedForms = EmulatedForms { long_nops: true };

/// The allocator functions of a library, and where each is to be probed, why.
struct Library {
    name: &'static str,
    /// For each function a line: its name, its size, its first bytes.
    fixture: &'static str,
    sites: &'static [(&'static str, u64, SiteReason)],
}

impl Library {
    fn functions(&self) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        self.fixture.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut words = line.split(' ');
            let name = words.next().unwrap();
            let digits = words.nth(1).unwrap();
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            (name, (0..digits.len()).step_by(2).map(byte).collect())
        })
    }

    fn code_of(&self, function: &str) -> Vec<u8> {
        self.functions().find(|(name, _)| *name == function).unwrap().1
    }
}

fn library(name: &str) -> &'static Library {
    LIBRARIES.iter().find(|library| library.name == name).unwrap()
}

/// As it is planned for a module that has this function only.
fn planned(name: &str, code: Vec<u8>, forms: EmulatedForms) -> PlannedProbe {
    let function = FunctionCode {
        name: name.to_owned(),
        file_offset: 0x1000,
        code,
        is_local: false,
        never_return: BTreeSet::new(),
        called: Vec::new(),
    };
    let facts = ModuleFacts { functions: vec![function], ..ModuleFacts::default() };
    plan_probes(&facts, SiteRules { forms, at_once: true })[0]
}

const LIBRARIES: &[Library] = &[
    Library {
        name: "glibc-2.31-debian11",
        fixture: include_str!("fixtures/glibc-2.31-debian11.txt"),
        sites: &[
            ("malloc", 7, NothingBefore),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 17, NothingBefore),
            ("posix_memalign", 0, EmulatedEntry),
            ("aligned_alloc", 4, NothingBefore),
            ("memalign", 4, NothingBefore),
            ("valloc", 6, NothingBefore),
            ("pvalloc", 6, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.36-debian12",
        fixture: include_str!("fixtures/glibc-2.36-debian12.txt"),
        sites: &[
            ("malloc", 0, EmulatedEntry),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 35, BehindNullTest),
            ("posix_memalign", 7, NothingBefore),
            ("aligned_alloc", 7, NothingBefore),
            ("memalign", 7, NothingBefore),
            ("valloc", 7, NothingBefore),
            ("pvalloc", 7, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.41-debian13",
        fixture: include_str!("fixtures/glibc-2.41-debian13.txt"),
        sites: &[
            ("malloc", 0, EmulatedEntry),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 45, BehindNullTest),
            ("posix_memalign", 7, NothingBefore),
            ("aligned_alloc", 0, EmulatedEntry),
            ("memalign", 7, NothingBefore),
            ("valloc", 7, NothingBefore),
            ("pvalloc", 7, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.43-debian-sid",
        fixture: include_str!("fixtures/glibc-2.43-debian-sid.txt"),
        sites: &[
            ("malloc", 3, NothingBefore),
            ("calloc", 6, NothingBefore),
            ("realloc", 6, NothingBefore),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 13, BehindNullTest),
            ("posix_memalign", 23, NothingBefore),
            ("aligned_alloc", 7, NothingBefore),
            ("memalign", 0, EmulatedEntry),
            ("valloc", 14, NothingBefore),
            ("pvalloc", 21, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.31-ubuntu20.04",
        fixture: include_str!("fixtures/glibc-2.31-ubuntu20.04.txt"),
        sites: &[
            ("malloc", 11, NothingBefore),
            ("calloc", 4, NothingBefore),
            ("realloc", 4, NothingBefore),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 21, NothingBefore),
            ("posix_memalign", 4, NothingBefore),
            ("aligned_alloc", 11, NothingBefore),
            ("memalign", 11, NothingBefore),
            ("valloc", 10, NothingBefore),
            ("pvalloc", 10, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.35-ubuntu22.04",
        fixture: include_str!("fixtures/glibc-2.35-ubuntu22.04.txt"),
        sites: &[
            ("malloc", 4, NothingBefore),
            ("calloc", 4, NothingBefore),
            ("realloc", 4, NothingBefore),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 39, BehindNullTest),
            ("posix_memalign", 11, NothingBefore),
            ("aligned_alloc", 4, NothingBefore),
            ("memalign", 4, NothingBefore),
            ("valloc", 4, NothingBefore),
            ("pvalloc", 4, NothingBefore),
        ],
    },
    Library {
        name: "glibc-2.33-arch",
        fixture: include_str!("fixtures/glibc-2.33-arch.txt"),
        sites: &[
            ("malloc", 11, NothingBefore),
            ("calloc", 4, NothingBefore),
            ("realloc", 4, NothingBefore),
            ("reallocarray", 0, ArgumentOverwritten),
            ("free", 23, NothingBefore),
            ("posix_memalign", 4, NothingBefore),
            ("aligned_alloc", 8, NothingBefore),
            ("memalign", 8, NothingBefore),
            ("valloc", 10, NothingBefore),
            ("pvalloc", 10, NothingBefore),
        ],
    },
    Library {
        name: "musl-1.2.3-debian12",
        fixture: include_str!("fixtures/musl-1.2.3-debian12.txt"),
        sites: &[
            ("malloc", 0, EmulatedEntry),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("reallocarray", 6, NothingBefore),
            ("free", 0, EmulatedEntry),
            ("posix_memalign", 0, EmulatedEntry),
            ("aligned_alloc", 0, EmulatedEntry),
            ("memalign", 0, EmulatedEntry),
            ("valloc", 8, NothingBefore),
        ],
    },
    Library {
        name: "musl-1.2.6-debian-sid",
        fixture: include_str!("fixtures/musl-1.2.6-debian-sid.txt"),
        sites: &[
            ("malloc", 4, NothingBefore),
            ("calloc", 0, StackPointerMoves),
            ("realloc", 4, NothingBefore),
            ("reallocarray", 13, NothingBefore),
            ("free", 4, NothingBefore),
            ("posix_memalign", 13, NothingBefore),
            ("aligned_alloc", 0, StackPointerMoves),
            ("memalign", 4, NothingBefore),
            ("valloc", 12, NothingBefore),
        ],
    },
    Library {
        name: "jemalloc-5.3.0-debian12",
        fixture: include_str!("fixtures/jemalloc-5.3.0-debian12.txt"),
        sites: &[
            ("malloc", 110, BlockKnown),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("free", 48, NothingBefore),
            ("posix_memalign", 0, EmulatedEntry),
            ("aligned_alloc", 0, EmulatedEntry),
            ("memalign", 0, EmulatedEntry),
            ("valloc", 0, EmulatedEntry),
        ],
    },
    Library {
        name: "mimalloc-2.0.9-debian12",
        fixture: include_str!("fixtures/mimalloc-2.0.9-debian12.txt"),
        sites: &[
            ("malloc", 43, BlockKnown),
            ("calloc", 0, ArgumentOverwritten),
            ("realloc", 20, NothingBefore),
            ("reallocarray", 0, EmulatedEntry),
            ("free", 76, BehindNullTest),
            ("posix_memalign", 0, EmulatedEntry),
            ("aligned_alloc", 0, EmulatedEntry),
            ("memalign", 0, EmulatedEntry),
            ("valloc", 0, EmulatedEntry),
            ("pvalloc", 0, EmulatedEntry),
        ],
    },
    Library {
        name: "mimalloc-3.6.0-debian-sid",
        fixture: include_str!("fixtures/mimalloc-3.6.0-debian-sid.txt"),
        sites: &[
            ("malloc", 47, BlockKnown),
            ("calloc", 8, NothingBefore),
            ("realloc", 21, NothingBefore),
            ("reallocarray", 4, NothingBefore),
            ("free", 32, NothingBefore),
            ("posix_memalign", 4, NothingBefore),
            ("aligned_alloc", 4, NothingBefore),
            ("memalign", 4, NothingBefore),
            ("valloc", 4, NothingBefore),
            ("pvalloc", 4, NothingBefore),
        ],
    },
    Library {
        name: "tcmalloc-2.10-debian12",
        fixture: include_str!("fixtures/tcmalloc-2.10-debian12.txt"),
        sites: &[
            ("malloc", 10, NothingBefore),
            ("calloc", 0, EmulatedEntry),
            ("realloc", 0, EmulatedEntry),
            ("free", 10, NothingBefore),
            ("posix_memalign", 11, NothingBefore),
            ("aligned_alloc", 10, NothingBefore),
            ("memalign", 10, NothingBefore),
            ("valloc", 0, EmulatedEntry),
            ("pvalloc", 0, EmulatedEntry),
        ],
    },
    Library {
        name: "tcmalloc-2.18-debian-sid",
        fixture: include_str!("fixtures/tcmalloc-2.18-debian-sid.txt"),
        sites: &[
            ("malloc", 12, NothingBefore),
            ("calloc", 7, NothingBefore),
            ("realloc", 4, NothingBefore),
            ("free", 15, NothingBefore),
            ("posix_memalign", 15, NothingBefore),
            ("aligned_alloc", 14, NothingBefore),
            ("memalign", 14, NothingBefore),
            ("valloc", 17, NothingBefore),
            ("pvalloc", 4, NothingBefore),
        ],
    },
];

#[test]
fn real_functions_are_probed_where_it_is_cheapest() {
    for library in LIBRARIES {
        let mut names = Vec::new();
        for (name, code) in library.functions() {
            names.push(name);
            let (_, offset, reason) =
                library.sites.iter().find(|(expected, ..)| *expected == name).unwrap();
            for forms in [OLD, NEW] {
                let probe = planned(name, code.clone(), forms);
                let what = format!("{name} of {}", library.name);
                assert_eq!((probe.site.offset, probe.site.reason), (*offset, *reason), "{what}");
                let emulated =
                    matches!(reason, EmulatedEntry | NothingBefore | BehindNullTest | BlockKnown);
                assert_eq!(probe.site.emulated, emulated, "{what}");
                assert_eq!(probe.file_offset, 0x1000 + offset, "{what}");
            }
        }
        assert_eq!(names, library.sites.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
    }
}

#[test]
fn arguments_are_found_where_they_have_been_moved() {
    let probe = |of: &str, name: &str| planned(name, library(of).code_of(name), OLD).function;
    let malloc = probe("mimalloc-2.0.9-debian12", "malloc");
    assert_eq!(malloc.size, Some(1), "mov %rdi,%rsi");
    let realloc = probe("mimalloc-2.0.9-debian12", "realloc");
    assert_eq!((realloc.size, realloc.block), (Some(2), Some(1)));
    let free = probe("mimalloc-2.0.9-debian12", "free");
    assert_eq!(free.block, Some(3), "mov %rdi,%rcx");
    let reallocarray = probe("musl-1.2.6-debian-sid", "reallocarray");
    assert_eq!(
        (reallocarray.block, reallocarray.size, reallocarray.count),
        (Some(0), Some(3), Some(2))
    );
    let posix_memalign = probe("glibc-2.43-debian-sid", "posix_memalign");
    assert_eq!((posix_memalign.size, posix_memalign.result_slot), (Some(2), Some(0)));
}

/// Offset, the register of the block, and the condition; or that the call leads on.
type Shown = (u64, Option<(u8, Option<u8>)>);

fn given(site: &ProbeSite) -> Option<(u8, Option<u8>)> {
    match site.midst? {
        Midst::Gives { register, condition, .. } => Some((register?, condition)),
        Midst::Notes => None,
    }
}

/// None that never return, and none that is known.
const NO_CALLS: Calls<'static> = Calls { never_return: &BTreeSet::new(), called: &[] };

fn sites(code: &[u8], arguments: &[u8]) -> Vec<Shown> {
    let need = ProbeNeed { arguments: ArgumentSet::of(arguments.iter().copied()), block: None };
    let sites = choose_sites(code, need, OLD, Some(NO_CALLS)).into_iter();
    sites.map(|site| (site.offset, given(&site))).collect()
}

#[test]
fn of_lists_of_free_blocks_the_first_is_known_before_it_is_given() {
    let of = |name: &str| sites(&library(name).code_of("malloc"), &[0]);
    let (not_equal, r11, rdx, rcx) = (Some(5), 11, 2, 1);
    let code = library("jemalloc-5.3.0-debian12").code_of("malloc");
    let rules = SiteRules { forms: OLD, at_once: false };
    let function = FunctionCode {
        name: "malloc".to_owned(),
        file_offset: 0x1000,
        code,
        is_local: false,
        never_return: BTreeSet::new(),
        called: Vec::new(),
    };
    let facts = ModuleFacts { functions: vec![function], ..ModuleFacts::default() };
    let probes = plan_probes(&facts, rules);
    let offsets: Vec<_> =
        probes.iter().map(|probe| (probe.site.offset, probe.site.midst)).collect();
    assert_eq!(offsets, [(7, None)], "where programs cannot tell");
    // Where the list has come to its low mark, there are some left or there are none.
    let jemalloc = [(0x6e, Some((r11, not_equal))), (0xa0, None), (0xb0, Some((r11, not_equal)))];
    assert_eq!(of("jemalloc-5.3.0-debian12"), jemalloc);
    let mimalloc = [(0x2b, Some((rdx, not_equal))), (0x44, None), (0x52, None)];
    assert_eq!(of("mimalloc-2.0.9-debian12"), mimalloc);
    assert_eq!(of("mimalloc-3.6.0-debian-sid"), [(0x2f, Some((rcx, not_equal))), (0x5a, None)]);
    for name in ["glibc-2.36-debian12", "musl-1.2.3-debian12", "tcmalloc-2.10-debian12"] {
        let places = of(name);
        assert!(matches!(places[..], [(_, None)]), "{name}: {places:?}");
    }
}

/// glibc's, which moves the stack pointer at its begin.
#[test]
fn of_a_cache_behind_saved_registers_the_block_is_known_as_well() {
    let code = library("glibc-2.36-debian12").code_of("malloc");
    let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
    // Calls of __libc_message and malloc_printerr.
    let endless = BTreeSet::from([0x205, 0x2b3, 0x2f7]);
    let sites = choose_sites(&code, need, OLD, Some(Calls { never_return: &endless, called: &[] }));
    let gives = |register, condition, was_noted| Midst::Gives { register, condition, was_noted };
    let (equal, rsi, rbx) = (Some(4), 1, 6);
    let expected = [
        // je: the cache's block is one, or the program is at its end
        (0x157, gives(Some(0), equal, false), rbx, Some(16)),
        // call _int_malloc with the main arena, whose address is put into %rbx
        (0x195, Midst::Notes, rsi, Some(16)),
        // je: behind it
        (0x19d, gives(Some(0), None, true), 0, Some(16)),
        // jg: behind that of another arena
        (0xaa, gives(Some(0), None, false), rbx, Some(16)),
        // jne: behind the second attempt
        (0x28d, gives(Some(0), None, false), rbx, Some(16)),
        // mov: too large a size
        (0x21e, gives(None, None, false), rbx, None),
    ];
    for (offset, midst, size, rbp_depth_bytes) in expected {
        let site = sites.iter().find(|site| site.offset == offset).unwrap();
        assert_eq!((site.midst, site.emulated), (Some(midst), offset != 0x21e), "{offset:#x}");
        let frame = FrameAt { depth_bytes: 40, rbp_depth_bytes, rbx_depth_bytes: Some(24) };
        assert_eq!((site.places.of(0), site.frame), (size, frame), "{offset:#x}");
    }
    assert_eq!(sites.len(), expected.len());
    // If they may return, some ways are told twice, or never.
    let known = |site: &ProbeSite| site.midst.is_some();
    assert!(!choose_sites(&code, need, OLD, Some(NO_CALLS)).iter().any(known));
}

#[test]
fn of_other_versions_of_it_too() {
    let sites = |name: &str, endless: &[u64]| -> Vec<(u64, Option<Midst>)> {
        let code = library(name).code_of("malloc");
        let need = ProbeNeed { arguments: ArgumentSet::of([0]), block: None };
        let endless = endless.iter().copied().collect();
        let calls = Calls { never_return: &endless, called: &[] };
        let sites = choose_sites(&code, need, OLD, Some(calls));
        sites.iter().map(|site| (site.offset, site.midst)).collect()
    };
    let gives =
        |register, condition, was_noted| Some(Midst::Gives { register, condition, was_noted });
    let (rax, equal) = (Some(0), Some(4));
    let expected = [
        (0x66, gives(rax, equal, false)),
        (0x10f, gives(rax, None, false)),
        (0x18e, gives(None, None, false)),
        (0x1d9, gives(rax, None, false)),
        (0x1fd, Some(Midst::Notes)),
        (0x205, gives(rax, None, true)),
        // je: without an arena; behind it others come that were told
        (0x273, gives(None, equal, false)),
        (0x29c, gives(rax, None, false)),
    ];
    assert_eq!(sites("glibc-2.41-debian13", &[0x17b, 0x267, 0x2c7]), expected);
    // A small block's cache, where others are looked for, and large blocks' cache.
    let expected = [
        (0x4b, gives(rax, equal, false)),
        (0x76, None),
        (0xd0, gives(rax, equal, false)),
        (0x10c, gives(rax, equal, false)),
    ];
    assert_eq!(sites("glibc-2.43-debian-sid", &[0xfb]), expected);
}

#[test]
fn each_way_passes_one_place_or_there_is_but_one_site() {
    // mov (%rsi),%rcx; test %rcx,%rcx; je +4; mov %rcx,%rax; ret; jmp away
    let list =
        [0x48, 0x8b, 0x0e, 0x48, 0x85, 0xc9, 0x74, 4, 0x48, 0x89, 0xc8, 0xc3, 0xe9, 0, 1, 0, 0];
    assert_eq!(sites(&list, &[0]), [(6, Some((1, Some(5)))), (12, None)]);
    let with = |at: usize, bytes: &[u8]| [&list[..at], bytes, &list[at..]].concat();
    // xor %edi,%edi at the begin: the size is gone
    assert_eq!(sites(&with(0, &[0x31, 0xff]), &[0]), [(0, None)]);
    assert_eq!(sites(&list[..8], &[0]), [(6, None)], "it ends in the midst");
    // push %rbx at the begin: it leads on there
    assert_eq!(sites(&with(0, &[0x53]), &[0]), [(0, None)]);
    // mov (%rcx),%rbx behind the load: what is the caller's is gone
    assert_eq!(sites(&with(3, &[0x48, 0x8b, 0x19]), &[0]), [(9, None)]);
    // xor %eax,%eax; ret in place of the jump away: what fails gives what is in the register, too
    let fails = [&list[..12], &[0x31, 0xc0, 0xc3]].concat();
    assert_eq!(sites(&fails, &[0]), [(6, Some((1, None)))]);
    assert_eq!(choose_sites(&fails, need(None), OLD, None), [choose_site(&fails, need(None), OLD)]);
    // call *%rcx in place of it: it may lead to another allocator
    let calls = [&list[..12], &[0xff, 0xd1, 0xc3]].concat();
    assert_eq!(sites(&calls, &[0]), [(6, None)]);
    // sub $8,%rsp in place of it: the kernel does not emulate that
    let lowers = [&list[..12], &[0x48, 0x83, 0xec, 8]].concat();
    assert_eq!(sites(&lowers, &[0]), [(6, None)]);
    // jmp back to the test in place of it: round and round
    let round = [&list[..12], &[0xeb, 0xf5]].concat();
    assert_eq!(sites(&round, &[0]), [(0, None)]);
}

#[test]
fn instructions_are_shown_with_addresses_of_the_file() {
    let glibc = library("glibc-2.36-debian12");
    let text = |function, offset| instruction_text(&glibc.code_of(function), offset, 0x1000);
    assert_eq!(text("free", 3).as_deref(), Some("je 0x10c8"));
    assert_eq!(text("free", 9).as_deref(), Some("push %rbp"));
    assert_eq!(text("posix_memalign", 0).as_deref(), Some("cmpb $0,0x140201(%rip)"));
    assert_eq!(text("free", 4000), None);
    assert_eq!(instruction_text(&[0x06], 0, 0), None, "no instruction");
}

/// A need of the first two arguments, the first of which may be a block.
fn need(block: Option<u8>) -> ProbeNeed {
    ProbeNeed { arguments: ArgumentSet::of([0, 1]), block }
}

#[track_caller]
fn check(code: &[u8], block: Option<u8>, offset: u64, reason: SiteReason) {
    let site = choose_site(code, need(block), OLD);
    assert_eq!((site.offset, site.reason), (offset, reason));
}

#[test]
fn what_matters_is_never_walked_over() {
    // endbr64; push %rbp
    check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55], None, 4, NothingBefore);
    // sub $8,%rsp; push %rbx: the return address is no longer on top
    check(&[0x48, 0x83, 0xec, 8, 0x53], None, 0, StackPointerMoves);
    // mov %rsi,%rdi; push %rbx: an argument is gone
    check(&[0x48, 0x89, 0xf7, 0x53], None, 0, ArgumentOverwritten);
    // mov %edi,%edi (clears the upper half); push %rbx
    check(&[0x89, 0xff, 0x53], None, 0, ArgumentOverwritten);
    // mov %rsi,%rdx; mov %rdi,%rsi; push %rbx: the second argument is elsewhere
    check(&[0x48, 0x89, 0xf2, 0x48, 0x89, 0xfe, 0x53], None, 6, NothingBefore);
    // mov %rdx,%rcx; xor %edx,%edx; push %rbx: nobody needs the third
    check(&[0x48, 0x89, 0xd1, 0x31, 0xd2, 0x53], None, 5, NothingBefore);
    // xchg %rdi,%rcx; push %rbx
    check(&[0x48, 0x87, 0xcf, 0x53], None, 0, ArgumentOverwritten);
    // mov %rax,(%rsi); push %rbx
    check(&[0x48, 0x89, 0x06, 0x53], None, 0, MemoryWritten);
    // syscall; push %rbx
    check(&[0x0f, 0x05, 0x53], None, 0, PathEnds);
    check(&[0xc3], None, 0, PathEnds);
    check(&[], None, 0, NoneNear);
    // 40 times xor %eax,%eax; push %rbx
    check(&[[0x31, 0xc0].repeat(40), vec![0x53]].concat(), None, 0, NoneNear);
}

/// What ends a block has no return that matters: its return address may be anywhere, if it is known where.
#[test]
fn what_ends_a_block_is_probed_where_its_return_address_is_found() {
    let at = |code: &[u8]| {
        let site = choose_site(code, need(Some(0)), OLD);
        (site.offset, site.frame.depth_bytes, site.reason)
    };
    // sub $8,%rsp; push %rbx
    assert_eq!(at(&[0x48, 0x83, 0xec, 8, 0x53]), (4, 8, NothingBefore));
    // push %rbp; push %rbx; sub $0x18,%rsp; mov (%rdi),%rbx; mov -8(%rdi),%rax; jne +0: costs less than a push
    let jump =
        [0x55, 0x53, 0x48, 0x83, 0xec, 0x18, 0x48, 0x8b, 0x1f, 0x48, 0x8b, 0x47, 0xf8, 0x75, 0];
    assert_eq!(at(&jump), (13, 40, NothingBefore));
    let frame = FrameAt { depth_bytes: 40, rbp_depth_bytes: None, rbx_depth_bytes: Some(16) };
    assert_eq!(choose_site(&jump, need(Some(0)), OLD).frame, frame, "%rbp holds it still");
    // test %rdi,%rdi; je +2; push %rbx; xor %edi,%edi; jne +0: behind the push the block is gone
    let overwritten = [0x48, 0x85, 0xff, 0x74, 2, 0x53, 0x31, 0xff, 0x75, 0];
    assert_eq!(at(&overwritten), (5, 0, BehindNullTest));
    // test %rdi,%rdi; je +2; push %rbx; call +0; jne +0: what is called may end it
    let called = [0x48, 0x85, 0xff, 0x74, 2, 0x53, 0xe8, 0, 0, 0, 0, 0x75, 0];
    assert_eq!(at(&called), (5, 0, BehindNullTest));
    // mov %rax,-8(%rsp); push %rbx: what is written may be more than that
    assert_eq!(at(&[0x48, 0x89, 0x44, 0x24, 0xf8, 0x53]), (0, 0, MemoryWritten));
    // and $-16,%rsp; push %rbx: nobody knows where
    assert_eq!(at(&[0x48, 0x83, 0xe4, 0xf0, 0x53]), (0, 0, StackPointerMoves));
    // sub $0x100,%rsp; push %rbx: farther than a probe can say
    assert_eq!(at(&[0x48, 0x81, 0xec, 0, 1, 0, 0, 0x53]), (0, 0, StackPointerMoves));
    // pop %rax; push %rbx: above the return address
    assert_eq!(at(&[0x58, 0x53]), (0, 0, StackPointerMoves));
    // mov (%rdi),%rbx; push %rbx: the caller's is gone, and its stack cannot be walked
    assert_eq!(at(&[0x48, 0x8b, 0x1f, 0x53]), (0, 0, StackPointerMoves));
}

#[test]
fn a_site_is_reached_once_a_call() {
    // xor %eax,%eax; push %rbx; jmp -3 (back to the push)
    check(&[0x31, 0xc0, 0x53, 0xeb, 0xfd], None, 0, EnteredOtherwise);
    // xor %eax,%eax; push %rbx; jmp -4 (into the middle of the xor)
    check(&[0x31, 0xc0, 0x53, 0xeb, 0xfc], None, 0, EnteredOtherwise);
    // xor %eax,%eax; push %rbx; jmp *%rax; jmp -5 (back to the push), which only the
    // jump before it may lead to
    check(&[0x31, 0xc0, 0x53, 0xff, 0xe0, 0xeb, 0xfb], None, 0, EnteredOtherwise);
    // xor %eax,%eax; push %rbx; jmp -5 (back to the entry): a call like any other
    check(&[0x31, 0xc0, 0x53, 0xeb, 0xfb], None, 2, NothingBefore);
}

#[test]
fn a_call_without_a_block_is_left_aside_where_that_can_be() {
    // test %rdi,%rdi; je +2; push %rbx; ret; xor %eax,%eax; ret
    let test_and_leave = [0x48, 0x85, 0xff, 0x74, 2, 0x53, 0xc3, 0x31, 0xc0, 0xc3];
    check(&test_and_leave, Some(0), 5, BehindNullTest);
    check(&test_and_leave, None, 3, NothingBefore);
    check(&test_and_leave, Some(1), 3, NothingBefore);
    // cmp $0,%rdi; jne +1; ret; mov %rax,%rcx; push %rbx: where there is one, it jumps
    let compare = [0x48, 0x83, 0xff, 0, 0x75, 1, 0xc3, 0x48, 0x89, 0xc1, 0x53];
    check(&compare, Some(0), 10, BehindNullTest);
    // test %rdi,%rdi; jne +2; xor %edi,%edi; push %rbx: both come to the push
    check(&[0x48, 0x85, 0xff, 0x75, 2, 0x31, 0xff, 0x53], Some(0), 3, NothingBefore);
    // mov %rdi,%rax; test %rax,%rax; je +4; mov %rdi,%rsi; push %rbx: of no use behind it
    let moved = [0x48, 0x89, 0xf8, 0x48, 0x85, 0xc0, 0x74, 4, 0x48, 0x89, 0xfe, 0x53];
    check(&moved, Some(0), 6, NothingBefore);
    // test %rdi,%rdi; add %rax,%rcx; je +1; push %rbx: the flags tell of something else
    check(&[0x48, 0x85, 0xff, 0x48, 1, 0xc1, 0x74, 1, 0x53], Some(0), 6, NothingBefore);
    // test %rdi,%rdi; jne -5: round and round
    check(&[0x48, 0x85, 0xff, 0x75, 0xfb], Some(0), 3, NothingBefore);
    // nopl 0x0(%rax,%rax); test %rdi,%rdi; je +1; push %rbx
    let patchable = [0x0f, 0x1f, 0x44, 0, 0, 0x48, 0x85, 0xff, 0x74, 1, 0x53];
    for forms in [OLD, NEW] {
        assert_eq!(choose_site(&patchable, need(Some(0)), forms).offset, 10);
    }
    assert_eq!(choose_site(&patchable, need(None), NEW).reason, EmulatedEntry);
    assert_eq!(choose_site(&patchable, need(None), OLD).offset, 8);
}

proptest! {
    #[test]
    fn any_bytes_give_an_instruction_within_them(code: Vec<u8>, long_nops: bool) {
        for block in [None, Some(0)] {
            let site = choose_site(&code, need(block), EmulatedForms { long_nops });
            prop_assert!(site.offset == 0 || (site.offset as usize) < code.len());
            prop_assert!(site.emulated || site.offset == 0);
        }
        for site in choose_sites(&code, need(None), EmulatedForms { long_nops }, Some(NO_CALLS)) {
            prop_assert!(site.offset == 0 || (site.offset as usize) < code.len());
            prop_assert!(given(&site).is_none_or(|(register, _)| register < 16 && site.emulated));
        }
    }

    #[test]
    fn a_machine_that_runs_the_code_finds_all_at_the_site(
        pieces in prop::collection::vec(machine::piece(), 1..24),
        has_block: bool,
        may_lack_block: bool,
    ) {
        let need = need(may_lack_block.then_some(0));
        let site = choose_site(&machine::assemble(&pieces), need, OLD);
        prop_assert_eq!(machine::objection(&pieces, &site, has_block, may_lack_block), None);
    }

    #[test]
    fn a_machine_that_runs_the_code_passes_one_place(
        pieces in prop::collection::vec(machine::piece(), 1..24),
    ) {
        let sites = choose_sites(&machine::assemble(&pieces), need(None), OLD, None);
        if sites.iter().any(|site| site.midst.is_some()) {
            prop_assert_eq!(machine::objection_to_places(&pieces, &sites), None);
        }
    }
}
