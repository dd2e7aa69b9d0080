//! Where memscope probes on this system, and what its doctor says that costs.

use std::ffi::CStr;
use std::process::Command;

use memscope_tests::{TestProgram, Variant, programs};
use serde_json::Value;

use crate::kit::{memscope, number, run, skip};

/// What is chosen in glibc 2.36 as Debian 12 compiles it, where calls are followed to their return: distance of the
/// instruction, and the instruction. None: the entry, which is not emulated.
const DEBIAN_12: [(&str, Option<(u64, &str)>); 9] = [
    ("malloc", Some((0, "push %r12"))),
    ("calloc", Some((0, "push %r13"))),
    ("realloc", Some((0, "push %r15"))),
    ("reallocarray", None),
    ("free", Some((35, "jne"))),
    ("posix_memalign", Some((7, "push %r12"))),
    ("aligned_alloc", Some((7, "je "))),
    ("valloc", Some((7, "push %rbx"))),
    ("pvalloc", Some((7, "push %rbx"))),
];

/// The same of `malloc`, where calls can be told in their midst, and of what it calls where they can be told in that.
const MALLOC_DEBIAN_12: [(u64, &str); 14] = [
    (0x157, "jne "),
    (0x21e, "mov "),
    (0x28d, "jne "),
    (0x4bc, "je "),
    (0x4d4, "jmp "),
    (0x5d0, "jne "),
    (0x600, "mov "),
    (0x62d, "jne "),
    (0x6bd, "jne "),
    (0xbc2, "je "),
    (0xbda, "jmp "),
    (0xc45, "jne "),
    (0xd42, "jmp "),
    (0xd66, "jmp "),
];

fn diagnosis(arguments: &[&str]) -> Value {
    let doctor = run(memscope().args(["doctor", "--json"]).args(arguments));
    serde_json::from_str(&doctor.assert_code(0).stdout).unwrap()
}

fn hit_in_use(diagnosis: &Value) -> &Value {
    let mut hits = diagnosis["hits"].as_array().unwrap().iter();
    hits.find(|hit| hit["in_use"] == true).expect("one way is in use")
}

fn libc_version() -> String {
    // SAFETY: gives a constant string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().unwrap().to_owned()
}

#[test]
fn an_emulated_instruction_costs_less_than_one_that_is_stepped_through() {
    let diagnosis = diagnosis(&[]);
    for hit in diagnosis["hits"].as_array().unwrap() {
        let (emulated, stepped) = (number(hit, "emulated_ns"), number(hit, "single_stepped_ns"));
        assert!(0 < emulated && emulated < stepped, "{hit}");
        assert!(number(hit, "with_return_ns") > emulated, "{hit}");
        eprintln!("{hit}");
    }
    hit_in_use(&diagnosis);
    let text = run(memscope().arg("doctor")).assert_code(0).stdout.clone();
    assert!(text.contains("single-stepped") && text.contains("(in use)"), "{text}");
}

#[test]
fn doctor_shows_each_function_with_its_instruction_and_its_cost() {
    let program = programs::build("pairs.c", Variant::Default);
    let mut program = TestProgram::spawn(Command::new(program).args(["1", "32", "1", "wait"]));
    program.wait_ready();
    let pid = program.pid().to_string();
    let followed = diagnosis(&["--pid", &pid, "--attach-by", "perf-event"]);
    let diagnosis = diagnosis(&["--pid", &pid]);
    let text = run(memscope().args(["doctor", "--pid", &pid])).assert_code(0).stdout.clone();
    program.go();
    assert!(program.finish().1.success());

    let hit = hit_in_use(&diagnosis);
    let allocator = &diagnosis["process"]["allocators"][0];
    let probes = allocator["probes"].as_array().unwrap();
    let probe = |name: &str| probes.iter().find(|probe| probe["function"] == name).unwrap();
    for probe in probes {
        let cost = number(probe, "cost_ns");
        let stepped = number(hit, "single_stepped_ns");
        assert_eq!(cost >= stepped, probe["emulated"] == false, "{probe} {hit}");
        let instruction = probe["instruction"].as_str().unwrap();
        assert!(text.contains(instruction), "{instruction} is not in: {text}");
    }
    let pair = number(probe("malloc"), "cost_ns") + number(probe("free"), "cost_ns");
    assert_eq!(number(allocator, "pair_ns"), pair);
    let returns = probe("malloc")["returns"] == true;
    let of_malloc = if returns { "with_return_ns" } else { "emulated_ns" };
    assert_eq!(pair, number(hit, of_malloc) + number(hit, "emulated_ns"));

    let version = libc_version();
    let is_debian_12 = std::fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "VERSION_CODENAME=bookworm"));
    if version != "2.36" || !is_debian_12 {
        return skip("the instructions of glibc 2.36", &format!("this is glibc {version}"));
    }
    let site = |probe: &Value| {
        let instruction = probe["instruction"].as_str().unwrap().to_owned();
        (number(probe, "offset"), instruction)
    };
    if hit["way"] == "session" {
        let malloc = probes.iter().filter(|probe| probe["function"] == "malloc");
        let found: Vec<(u64, String)> = malloc.map(site).collect();
        assert_eq!(found.len(), MALLOC_DEBIAN_12.len(), "{found:?}");
        for ((offset, instruction), (found_offset, found)) in MALLOC_DEBIAN_12.iter().zip(&found) {
            assert!(offset == found_offset && found.starts_with(instruction), "{found}");
        }
    }
    let probes = followed["process"]["allocators"][0]["probes"].as_array().unwrap();
    let probe = |name: &str| probes.iter().find(|probe| probe["function"] == name).unwrap();
    for (function, site) in DEBIAN_12 {
        let probe = probe(function);
        assert_eq!(probe["emulated"], site.is_some(), "{probe}");
        if let Some((offset, instruction)) = site {
            assert_eq!(number(probe, "offset"), offset, "{probe}");
            assert!(probe["instruction"].as_str().unwrap().starts_with(instruction), "{probe}");
        }
    }
}
