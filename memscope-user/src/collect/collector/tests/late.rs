//! Which images are said to have begun before an allocator of theirs was probed.

use super::*;

/// Something that happens to a child of the process that a bench begins with, at a time.
#[derive(Clone, Copy)]
enum Step {
    /// It is known since its exec.
    Begins,
    /// It is a copy of its parent.
    Forks,
    Executes,
    Ends,
    /// The kernel tells that it maps a file. The allocator is file 0.
    Maps(u32),
    /// It maps a file that nobody can open.
    MapsUnseen,
    /// The file is probed since then.
    Probed(u32),
    /// The kernel has lost what it had to tell.
    Lost,
    /// Nobody is interested in it any more.
    Forgotten,
    /// The trace is over.
    Finished,
}

use Step::*;

const NONE: [u32; 0] = [];

/// Numbers of the images that are late in the end, the parent's first, which is 0.
fn late(probing: Probing, steps: &[(u64, Step)]) -> Vec<u32> {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    bench.collector.known_probes.probing = probing;
    let mut image = 0;
    let mut maps = 0;
    for (time_ns, step) in steps.iter().copied() {
        image += u16::from(matches!(step, Executes));
        let header = |kind| Header { target: CHILD, ..header(kind, image, time_ns) };
        let collector = &mut bench.collector;
        let items = &mut bench.items;
        let mut give = |item| items.push(item);
        let mut map = |module, content| {
            maps += 0x10_000;
            let range = CodeRange { content, ..range(0x100_000 + maps, Some(module)) };
            collector.mapped(CHILD, time_ns, range, &mut give);
        };
        match step {
            Begins => collector.take(&begin(BEGUN_BY_EXEC, 0, time_ns), give),
            Forks => collector.take(&begin(BEGUN_BY_FORK, 0, time_ns), give),
            Executes => {
                let header = header(KIND_EXEC);
                let (leader_replaced, padding, comm) = (0, 0, [0; 16]);
                let exec = ProcessExec { header, leader_replaced, padding, comm };
                collector.take(&Record::Exec(exec), give);
            }
            Ends => {
                let header = header(KIND_PROCESS_EXIT);
                let exit = ProcessExit { header, wait_status: 0, padding: 0 };
                collector.take(&Record::ProcessExit(exit), give);
            }
            Maps(0) => map(0, Content::Allocator),
            Maps(module) => map(module, Content::NoAllocator),
            MapsUnseen => map(9, Content::Unknown),
            Probed(module) => collector.file_probed(ModuleId(module), time_ns, give),
            Lost => collector.mappings_lost(time_ns, give),
            Forgotten => collector.forget_target(CHILD, give),
            Finished => collector.finish(give),
        }
    }
    let mut processes = FxHashMap::default();
    for item in bench.items {
        if let Item::Process(process) = item {
            processes.insert(process.id.0, process.probed_late);
        }
    }
    let mut late: Vec<u32> =
        processes.into_iter().filter(|(_, late)| *late).map(|(id, _)| id).collect();
    late.sort_unstable();
    late
}

#[test]
fn what_is_probed_before_it_is_mapped_is_not_late() {
    let steps = [(2, Probed(0)), (3, Maps(5)), (4, Maps(0)), (5, Begins), (9, Ends)];
    assert_eq!(late(Probing::Files, &steps), NONE);
    // The attaching thread tells it by another way, and at the end all is told.
    let steps = [(3, Maps(0)), (5, Begins), (9, Ends), (2, Probed(0)), (10, Finished)];
    assert_eq!(late(Probing::Files, &steps), NONE);
}

#[test]
fn a_process_that_was_over_before_its_allocator_was_probed_is_late() {
    let until = |last: &[(u64, Step)]| {
        let steps = [(3, Maps(5)), (4, Maps(0)), (5, Begins), (9, Ends)];
        late(Probing::Files, &[&steps, last].concat())
    };
    assert_eq!(until(&[(12, Probed(0))]), [1]);
    assert_eq!(until(&[]), NONE, "it is not known yet");
    assert_eq!(until(&[(12, Finished)]), [1], "it was never probed");
    assert_eq!(until(&[(12, Forgotten)]), [1]);
    assert_eq!(until(&[(12, Probed(5)), (2, Probed(0)), (13, Finished)]), NONE);
    let whole = [(4, Maps(0)), (5, Begins), (9, Ends), (12, Probed(0))];
    assert_eq!(late(Probing::Nothing, &whole), NONE, "nothing is to be probed");
}

/// Also one that is over by then, and not the one that runs when it is known.
#[test]
fn the_image_is_late_that_has_mapped_it() {
    let steps =
        [(3, Maps(5)), (5, Begins), (7, Executes), (8, Maps(0)), (9, Executes), (10, Maps(5))];
    let until = |last: &[(u64, Step)]| late(Probing::Files, &[&steps, last].concat());
    assert_eq!(until(&[(12, Probed(0))]), [2]);
    assert_eq!(until(&[(12, Ends), (13, Probed(0))]), [2]);
    assert_eq!(until(&[(12, Finished)]), [2]);
    let many = (20..60).map(|time_ns| (time_ns, if time_ns % 2 == 0 { Executes } else { Maps(5) }));
    assert_eq!(until(&many.collect::<Vec<_>>()), [2], "and it is not forgotten for others");
}

#[test]
fn a_copy_is_late_if_it_was_made_before_the_file_was_probed() {
    let forked = |probed_ns| {
        late(Probing::Files, &[(5, Forks), (9, Ends), (probed_ns, Probed(0)), (20, Finished)])
    };
    // The parent is none that is recorded yet.
    assert_eq!(forked(12), [1]);
    assert_eq!(forked(4), NONE);
}

#[test]
fn what_cannot_be_looked_into_may_be_an_allocator() {
    let steps = [(3, Maps(5)), (4, MapsUnseen), (5, Begins)];
    assert_eq!(late(Probing::Files, &steps), [1]);
}

#[test]
fn a_process_of_which_nothing_is_known_may_have_had_an_allocator() {
    assert_eq!(late(Probing::Files, &[(5, Begins), (9, Ends)]), [1]);
    assert_eq!(late(Probing::Files, &[(5, Begins), (9, Executes), (10, Maps(5)), (12, Ends)]), [1]);
    assert_eq!(late(Probing::Files, &[(4, Maps(5)), (5, Begins), (9, Ends)]), NONE);
    assert_eq!(late(Probing::Nothing, &[(5, Begins), (9, Ends)]), NONE);
    // Or not all.
    let lost =
        |lost_ns| late(Probing::Files, &[(4, Maps(5)), (5, Begins), (9, Ends), (lost_ns, Lost)]);
    assert_eq!(lost(8), [1]);
    assert_eq!(lost(10), NONE, "since then");
    let steps = [(4, Maps(5)), (5, Begins), (6, Lost), (9, Ends)];
    assert_eq!(late(Probing::Files, &steps), [1]);
}

/// A command is held until its allocators are probed, a running process is recorded when they are.
#[test]
fn what_is_probed_before_a_process_runs_is_not_late() {
    let late_if_it_runs_since = |runs_since_ns, probed_ns| {
        let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
        bench.collector.known_probes.probing = Probing::Files;
        let items = &mut bench.items;
        bench.collector.file_probed(ModuleId(0), probed_ns, |item| items.push(item));
        bench.collector.runs(TARGET, runs_since_ns, |item| items.push(item));
        bench.map(runs_since_ns + 1, range(0x20_000, Some(0)));
        let late = |item: &Item| matches!(item, Item::Process(process) if process.probed_late);
        bench.items.iter().any(late)
    };
    assert!(!late_if_it_runs_since(20, 10));
    assert!(late_if_it_runs_since(20, 30));
}
