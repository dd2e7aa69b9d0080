use std::sync::{Arc, Mutex};

use memscope_common::record::{
    BEGUN_BY_CHILD_EXEC, BEGUN_BY_EXEC, BEGUN_BY_FORK, CodeChanged, KIND_ALLOCATOR_CALL,
    KIND_CODE_CHANGED, KIND_EXEC, KIND_MAPPING_CHANGE, KIND_PROCESS_BEGIN, KIND_PROCESS_EXIT,
    KIND_STACK, KIND_STACK_COPY, MAPPING_BY_ALLOCATOR, MAPPING_BY_UNKNOWN, MAPPING_CHANGE_BREAK,
    MAPPING_CHANGE_MAPPED, MAPPING_CHANGE_MOVED, MAPPING_KEEPS_OLD, MAPPING_OF_FILE,
    MAPPING_SHARED, MappingChange, ProcessBegin, ProcessExec, ProcessExit, StackCopy, StackHeader,
};

use super::*;
use crate::collect::Content;
use crate::model::{MappedBy, MappingKind, Module, Stack};

mod late;
mod threads;

const TARGET: u16 = 3;
const PROBE: u16 = 1;
/// In a copied stack, what cannot be walked at all.
const CANNOT_WALK: u64 = 0xbad;

/// Looks at what the test has put there.
struct FakeView(Arc<Mutex<Option<Observation>>>, Arc<Mutex<Vec<u16>>>);

impl ProcessView for FakeView {
    fn observe(&mut self, target: u16) -> Option<Observation> {
        // Others are gone before they can be looked at.
        self.0.lock().unwrap().clone().filter(|_| target == TARGET)
    }

    fn start_ticks(&self, _target: u16) -> Option<u64> {
        Some(77)
    }

    fn probes_gone(&mut self, target: u16) {
        self.1.lock().unwrap().push(target);
    }

    /// Walks as far as code is known, one frame per word.
    fn walk_copy<'code>(
        &mut self,
        target: u16,
        stack: &CopiedStack,
        range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> Option<WalkedCopy> {
        assert_eq!(target, TARGET);
        let words = stack.parts.iter().flat_map(|part| part.chunks_exact(8));
        let words = words.map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        let mut frames_avma = vec![stack.copy.return_avma];
        frames_avma.extend(words);
        if frames_avma.last() == Some(&CANNOT_WALK) {
            return None;
        }
        let unknown = frames_avma.iter().position(|frame| range_at(*frame).is_none());
        let unknown_avma = unknown.map(|position| frames_avma[position]);
        frames_avma.truncate(unknown.map_or(usize::MAX, |position| position + 1));
        let outcome = unknown.map_or(StackOutcome::Complete, |_| StackOutcome::UnknownCode);
        Some(WalkedCopy { frames_avma, outcome, used_frame_pointers: false, unknown_avma })
    }
}

struct Bench {
    collector: Collector<FakeView>,
    seen: Arc<Mutex<Option<Observation>>>,
    unprobed: Arc<Mutex<Vec<u16>>>,
    items: Vec<Item>,
}

fn module(id: u32) -> Arc<Module> {
    Arc::new(Module { id: ModuleId(id), path: format!("/lib/{id}.so"), build_id: vec![] })
}

fn range(start_avma: u64, module_id: Option<u32>) -> CodeRange {
    CodeRange {
        start_avma,
        end_avma: start_avma + 0x1000,
        file_offset: 0x4000,
        module: module_id.map(module),
        content: if module_id == Some(0) { Content::Allocator } else { Content::NoAllocator },
    }
}

fn observation(comm: &str, code: Vec<CodeRange>) -> Observation {
    Observation {
        comm: comm.to_owned(),
        exe: format!("/bin/{comm}"),
        code,
        ..Observation::default()
    }
}

fn header(kind: u8, image: u16, time_ns: u64) -> Header {
    Header { kind, padding: 0, probe: PROBE, image, target: TARGET, time_ns }
}

fn allocation(image: u16, time_ns: u64, stack: u32) -> Record {
    Record::Allocation(Allocation {
        of: OfImage { target: TARGET, image },
        probe: PROBE,
        thread: 7,
        time_ns,
        address_avma: 0x5000,
        size_bytes: 10,
        interval_bytes: 0,
        stack,
    })
}

fn stack(time_ns: u64, number: u64, outcome: u16, frames_avma: &[u64]) -> Record {
    Record::Stack(Box::new(StackFrames {
        header: StackHeader {
            header: header(KIND_STACK, 0, time_ns),
            stack: number,
            tables_read_ns: 0,
            outcome,
            flags: match outcome {
                OUTCOME_FRAME_POINTERS_ENDED => STACK_USED_FRAME_POINTERS,
                _ => 0,
            },
            frame_count: frames_avma.len() as u32,
        },
        frames_avma: frames_avma.to_vec(),
    }))
}

fn copied_stack(time_ns: u64, number: u32, frames_avma: &[u64]) -> Record {
    let (return_avma, rest) = frames_avma.split_first().unwrap();
    let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let copy = StackCopy {
        header: header(KIND_STACK_COPY, 0, time_ns),
        stack: number.into(),
        return_avma: *return_avma,
        sp_avma: 0x7000,
        rbp: 0,
        rbx: 0,
        r12_to_r15: [0; 4],
        outcome: OUTCOME_NO_TABLES,
        flags: 0,
        byte_count: bytes.len() as u32,
    };
    Record::StackCopy(Box::new(CopiedStack { copy, parts: vec![bytes.into()] }))
}

fn exec(image: u16, time_ns: u64, leader_replaced: u32) -> Record {
    let header = header(KIND_EXEC, image, time_ns);
    Record::Exec(ProcessExec { header, leader_replaced, padding: 0, comm: [0; 16] })
}

/// Another target than the first.
const CHILD: u16 = 4;

fn begin(begun_by: u32, image: u16, time_ns: u64) -> Record {
    let comm = *b"child\0another\0\0\0";
    Record::ProcessBegin(ProcessBegin {
        header: Header { target: CHILD, ..header(KIND_PROCESS_BEGIN, image, time_ns) },
        pid: 43,
        begun_by,
        parent_target: TARGET,
        parent_image: 0,
        padding: 0,
        comm,
    })
}

fn exit(wait_status: u32, time_ns: u64) -> Record {
    let header = Header { target: CHILD, ..header(KIND_PROCESS_EXIT, 0, time_ns) };
    Record::ProcessExit(ProcessExit { header, wait_status, padding: 0 })
}

impl Bench {
    fn new(code: Vec<CodeRange>) -> Self {
        let seen = Arc::new(Mutex::new(Some(observation("first", code))));
        let unprobed = Arc::default();
        let mut bench = Self {
            collector: Collector::new(
                FakeView(Arc::clone(&seen), Arc::clone(&unprobed)),
                Probing::Processes,
            ),
            seen,
            unprobed,
            items: Vec::new(),
        };
        let probe = Probe {
            id: ProbeId(PROBE.into()),
            function: "free".to_owned(),
            module: ModuleId(0),
            file_offset: 0x2000,
            emulated: true,
        };
        bench.collector.define_probe(probe, None, |item| bench.items.push(item));
        let start = TargetStart {
            target: TARGET,
            pid: 42,
            start_ticks: 5,
            time_ns: 0,
            from_start: false,
            heap_end_avma: None,
        };
        bench.collector.start_target(&start, |item| bench.items.push(item));
        bench
    }

    fn sees_at(&self, time_ns: u64, observation: Observation) {
        let seen = Observation { begun_ns: time_ns, done_ns: time_ns, ..observation };
        *self.seen.lock().unwrap() = Some(seen);
    }

    fn map(&mut self, time_ns: u64, range: CodeRange) {
        self.collector.mapped(TARGET, time_ns, range, |item| self.items.push(item));
    }

    /// Where the only frame of a stack is.
    fn place(&mut self, time_ns: u64, return_avma: u64) -> Location {
        let stack = stack(time_ns, time_ns, OUTCOME_FRAME_POINTERS_ENDED, &[return_avma]);
        let frames = self.take_stack(&stack).frames;
        self.location(frames[0])
    }

    /// What a record adds.
    fn take(&mut self, record: &Record) -> Vec<Item> {
        let before = self.items.len();
        self.collector.take(record, |item| self.items.push(item));
        self.items.split_off(before)
    }

    fn take_stack(&mut self, record: &Record) -> Stack {
        let items = self.take(record);
        let stack = items.iter().find_map(|item| match item {
            Item::Stack(stack) => Some(stack.clone()),
            _ => None,
        });
        for item in items {
            self.items.push(item);
        }
        stack.expect("the record defines a stack")
    }

    fn location(&self, frame: FrameId) -> Location {
        let found = self.items.iter().find_map(|item| match item {
            Item::Frame(defined) if defined.id == frame => Some(defined.location),
            _ => None,
        });
        found.expect("the frame was defined")
    }
}

#[test]
fn events_are_told_by_the_first_probe_of_their_function() {
    let mut bench = Bench::new(Vec::new());
    let probe = |id: u16, function: &str| Probe {
        id: ProbeId(id.into()),
        function: function.to_owned(),
        module: ModuleId(0),
        file_offset: u64::from(id),
        emulated: true,
    };
    for (id, function) in [(PROBE + 1, "malloc"), (PROBE + 2, "malloc"), (PROBE + 3, "free")] {
        bench.collector.define_probe(probe(id, function), None, |_item| ());
    }
    let known = |id: u16| bench.collector.known_probe(id);
    assert_eq!(known(PROBE + 2), Some(ProbeId((PROBE + 1).into())));
    assert_eq!(known(PROBE + 3), known(PROBE), "free has one already");
    assert_eq!(known(PROBE + 4), None);
}

#[test]
fn a_target_is_defined_with_what_was_seen() {
    let bench = Bench::new(vec![range(0x10_000, Some(0)), range(0x20_000, None)]);
    let process = bench.items.iter().rev().find_map(|item| match item {
        Item::Process(process) => Some(process.clone()),
        _ => None,
    });
    let process = process.unwrap();
    assert_eq!((process.pid, process.start_ticks, process.image), (42, 5, 0));
    assert_eq!((process.comm.as_str(), process.exe.as_str()), ("first", "/bin/first"));
    assert_eq!(process.allocators, ["/lib/0.so"]);
}

#[test]
fn frames_point_into_files_and_are_defined_once() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let first = bench.take_stack(&stack(1, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_010, 0x10_020]));
    assert_eq!(first.outcome, StackOutcome::WithFramePointers);
    let offset = |frame| match bench.location(frame) {
        Location::Module { file_offset, .. } => file_offset,
        Location::Unmapped { .. } => panic!("code of a file"),
    };
    assert_eq!(
        first.frames.iter().map(|frame| offset(*frame)).collect::<Vec<_>>(),
        [0x4010, 0x4020]
    );
    let second = bench.take_stack(&stack(2, 10, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_020]));
    assert_eq!(second.frames, first.frames[1..], "the same place is the same frame");
    assert_eq!(
        bench.take(&stack(3, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_010])),
        [],
        "sent again"
    );
}

#[test]
fn a_return_address_behind_the_last_call_of_a_mapping_belongs_to_it() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0)), range(0x11_000, Some(1))]);
    let stack = bench.take_stack(&stack(1, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x11_000]));
    assert_eq!(
        bench.location(stack.frames[0]),
        Location::Module { module: ModuleId(0), file_offset: 0x5000 }
    );
}

#[test]
fn frames_that_are_no_code_end_the_stack() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let cut =
        bench.take_stack(&stack(1, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_010, 0x7777, 0x10_020]));
    assert_eq!((cut.frames.len(), cut.outcome), (1, StackOutcome::FramePointerBroken));
    let caller = bench.take_stack(&stack(2, 10, OUTCOME_DEPTH_LIMIT, &[0x7777]));
    assert_eq!(caller.outcome, StackOutcome::DepthLimit);
    assert!(
        matches!(bench.location(caller.frames[0]), Location::Unmapped { address_avma: 0x7777, .. }),
        "the caller itself is known, whatever is mapped there"
    );
    let generated = bench.take_stack(&stack(3, 11, 99, &[0x10_010]));
    assert_eq!(generated.outcome, StackOutcome::UnknownReason);
}

#[test]
fn new_libraries_are_looked_for_when_the_loader_has_changed_something() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let code = vec![range(0x10_000, Some(0)), range(0x30_000, Some(2))];
    bench.sees_at(3, observation("first", code));
    bench.take(&Record::CodeChanged(CodeChanged { header: header(KIND_CODE_CHANGED, 0, 1) }));
    let stack = bench.take_stack(&stack(2, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x30_010]));
    assert_eq!(
        bench.location(stack.frames[0]),
        Location::Module { module: ModuleId(2), file_offset: 0x4010 }
    );
}

#[test]
fn unknown_code_is_looked_for_now_and_then() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    bench.sees_at(LOOK_AGAIN_NS + 20, observation("first", vec![range(0x40_000, None)]));
    let early = bench.take_stack(&stack(5, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_010, 0x40_010]));
    assert_eq!(early.frames.len(), 1, "looked at a moment ago");
    let later = LOOK_AGAIN_NS + 10;
    let late =
        bench.take_stack(&stack(later, 10, OUTCOME_FRAME_POINTERS_ENDED, &[0x40_010, 0x40_020]));
    assert_eq!(late.frames.len(), 2);
}

#[test]
fn exec_begins_another_process_even_if_its_record_is_lost() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let process_of = |items: &[Item]| match items.last() {
        Some(Item::Event(Event::Allocation { process, .. })) => *process,
        other => panic!("no allocation: {other:?}"),
    };
    assert_eq!(process_of(&bench.take(&allocation(0, 1, 9))), ProcessId(0));
    let items = bench.take(&exec(1, 2, 0));
    assert!(
        matches!(
            &items[..],
            [
                Item::ProcessEnd(ProcessEnd { process: ProcessId(0), reason: EndReason::Exec, .. }),
                Item::Process(Process { id: ProcessId(1), image: 1, .. })
            ]
        ),
        "{items:?}"
    );
    assert_eq!(process_of(&bench.take(&allocation(1, 3, 9))), ProcessId(1));
    assert_eq!(
        process_of(&bench.take(&allocation(3, 4, 9))),
        ProcessId(2),
        "two execs, records lost"
    );
    assert_eq!(bench.take(&allocation(1, 5, 9)), [], "of an image that has ended");
    assert_eq!(bench.collector.nonsense(), 1);
}

#[test]
fn an_exec_that_replaces_the_leader_takes_the_probes_with_it_and_says_so() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let items = bench.take(&exec(1, 2, 1));
    assert_eq!(*bench.unprobed.lock().unwrap(), [TARGET]);
    assert!(
        matches!(items.last(), Some(Item::Process(Process { probed_late: true, image: 1, .. }))),
        "{items:?}"
    );
    let items = bench.take(&exec(2, 3, 0));
    assert!(
        matches!(items.last(), Some(Item::Process(Process { probed_late: false, .. }))),
        "{items:?}"
    );
}

#[test]
fn a_forked_child_has_what_its_parent_has() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let items = bench.take(&begin(BEGUN_BY_FORK, 0, 5));
    let [Item::Process(process), Item::Fork(fork)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((process.id, process.pid, process.start_ticks), (ProcessId(1), 43, 77));
    assert_eq!((process.comm.as_str(), process.exe.as_str()), ("child", "/bin/first"));
    assert_eq!(process.allocators, ["/lib/0.so"]);
    assert!(!process.from_start && process.probed_late, "its probes come later");
    assert_eq!(*fork, Fork { process: ProcessId(1), parent: ProcessId(0), time_ns: 5 });
    let space = &bench.collector.targets[&CHILD].space;
    assert!(space.range_at(0x10_100, 6).is_some());
    let items = bench.take(&exit(3 << 8, 9));
    let end = ProcessEnd { process: ProcessId(1), time_ns: 9, reason: EndReason::Exit(Some(3)) };
    assert_eq!(items, [Item::ProcessEnd(end)]);
    assert_eq!(bench.take(&exit(0, 10)), [], "it ends once");
}

#[test]
fn where_probes_are_everywhere_a_child_has_them_from_its_start() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    bench.collector.known_probes.probing = Probing::Files;
    let items = bench.take(&begin(BEGUN_BY_FORK, 0, 5));
    assert!(
        matches!(items[0], Item::Process(Process { from_start: true, probed_late: false, .. })),
        "{items:?}"
    );
    bench.take(&exec(1, 6, 1));
    assert_eq!(*bench.unprobed.lock().unwrap(), [] as [u16; 0], "and they are no thread's");
}

#[test]
fn a_child_that_is_followed_from_its_exec_has_what_that_has_mapped() {
    let mut bench = Bench::new(vec![]);
    let collector = &mut bench.collector;
    let mut told = Vec::new();
    for (time_ns, start_avma, module) in [(3, 0x10_000, 5), (4, 0x20_000, 0)] {
        let code = range(start_avma, Some(module));
        collector.mapped(CHILD, time_ns, code, |item| told.push(item));
    }
    assert!(matches!(told[..], [Item::Module(_), Item::Module(_)]), "{told:?}");
    let items = bench.take(&begin(BEGUN_BY_CHILD_EXEC, 0, 5));
    let [Item::Process(_), Item::Process(process)] = &items[..] else { panic!("{items:?}") };
    assert_eq!(process.exe, "/lib/5.so", "what was mapped first");
    assert_eq!(process.allocators, ["/lib/0.so"]);
    assert!(bench.collector.targets[&CHILD].space.range_at(0x20_100, 6).is_some());
}

/// It all happened before the batch of its first record was handed over.
#[test]
fn what_a_child_maps_by_an_exec_before_it_is_known_is_its_next_images() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(7))]);
    bench.collector.known_probes.probing = Probing::Files;
    bench.collector.replaced(CHILD, 6);
    bench.collector.mapped(CHILD, 7, range(0x20_000, Some(0)), |_| {});
    let items = bench.take(&begin(BEGUN_BY_FORK, 0, 5));
    assert!(matches!(&items[..], [Item::Process(_), Item::Fork(_)]), "{items:?}");
    let exec = ProcessExec {
        header: Header { target: CHILD, ..header(KIND_EXEC, 1, 8) },
        leader_replaced: 0,
        padding: 0,
        comm: [0; 16],
    };
    let items = bench.take(&Record::Exec(exec));
    let [Item::ProcessEnd(_), Item::Process(process)] = &items[..] else { panic!("{items:?}") };
    assert_eq!(
        (process.exe.as_str(), &process.allocators[..]),
        ("/lib/0.so", &["/lib/0.so".to_owned()][..])
    );
    let space = &bench.collector.targets[&CHILD].space;
    assert!(space.range_at(0x20_100, 9).is_some());
    assert!(space.range_at(0x10_100, 9).is_none(), "of its parent");
}

#[test]
fn what_ends_a_process_is_told_as_a_shell_does() {
    for (wait_status, expected) in
        [(0, Some(0)), (7 << 8, Some(7)), (9, Some(137)), (0x86, Some(134)), (NO_STATUS, None)]
    {
        let mut bench = Bench::new(vec![]);
        bench.take(&begin(BEGUN_BY_EXEC, 0, 5));
        let items = bench.take(&exit(wait_status, 6));
        let [Item::ProcessEnd(end)] = &items[..] else { panic!("{items:?}") };
        assert_eq!(end.reason, EndReason::Exit(expected), "{wait_status:#x}");
    }
}

#[test]
fn the_same_number_in_another_image_is_another_stack() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let stack_of = |items: &[Item]| match items.last() {
        Some(Item::Event(Event::Allocation { stack, .. })) => *stack,
        other => panic!("no allocation: {other:?}"),
    };
    let before = stack_of(&bench.take(&allocation(0, 1, 9)));
    assert_eq!(stack_of(&bench.take(&allocation(0, 2, 9))), before);
    assert_ne!(stack_of(&bench.take(&allocation(1, 3, 9))), before);
}

#[test]
fn frees_by_the_allocators_own_module_are_told_apart() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    for (is_internal, expected) in
        [(false, FreeCaller::Program), (true, FreeCaller::AllocatorModule)]
    {
        let free = Record::Free(Free {
            of: OfImage { target: TARGET, image: 0 },
            probe: PROBE,
            thread: 7,
            time_ns: 1,
            address_avma: 0x5000,
            is_internal,
            allocated_since: false,
        });
        match bench.take(&free).as_slice() {
            [Item::Event(Event::Free { caller, .. })] => assert_eq!(*caller, expected),
            other => panic!("no free: {other:?}"),
        }
    }
}

#[test]
fn a_free_by_a_function_that_nobody_has_defined_is_a_free() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    for (number, expected) in [(PROBE, Some(ProbeId(PROBE.into()))), (PROBE + 1, None)] {
        let free = Record::Free(Free {
            of: OfImage { target: TARGET, image: 0 },
            probe: number,
            thread: 7,
            time_ns: 1,
            address_avma: 0x5000,
            is_internal: false,
            allocated_since: false,
        });
        match bench.take(&free).as_slice() {
            [Item::Event(Event::Free { probe, .. })] => assert_eq!(*probe, expected),
            other => panic!("no free: {other:?}"),
        }
    }
    assert_eq!(bench.collector.nonsense(), 0);
}

#[test]
fn allocators_that_nobody_knows_have_no_number() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let call = Record::AllocatorCall(record::AllocatorCall {
        header: header(KIND_ALLOCATOR_CALL, 0, 1),
        outer: 2,
        inner: 0,
        padding: 0,
    });
    let expected = AllocatorCall { outer: Some(AllocatorId(2)), inner: None };
    assert_eq!(bench.take(&call), [Item::AllocatorCall(expected)]);
}

#[test]
fn records_of_nobody_are_counted_and_passed_over() {
    let mut bench = Bench::new(vec![]);
    let mut unknown_target = allocation(0, 1, 9);
    if let Record::Allocation(record) = &mut unknown_target {
        record.of.target = 77;
    }
    let mut unknown_probe = allocation(0, 1, 9);
    if let Record::Allocation(record) = &mut unknown_probe {
        record.probe = 77;
    }
    assert_eq!(bench.take(&unknown_target), []);
    assert_eq!(bench.take(&unknown_probe), []);
    assert_eq!(bench.collector.nonsense(), 2);
}

#[test]
fn a_process_that_is_gone_keeps_what_was_seen_of_it() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    *bench.seen.lock().unwrap() = None;
    bench.take(&Record::CodeChanged(CodeChanged { header: header(KIND_CODE_CHANGED, 0, 1) }));
    let stack = bench.take_stack(&stack(2, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x10_010]));
    assert!(matches!(bench.location(stack.frames[0]), Location::Module { .. }));
    let mut ended = Vec::new();
    bench.collector.end_target(TARGET, 9, Some(0), |item| ended.push(item));
    bench.collector.end_target(TARGET, 9, Some(0), |item| ended.push(item));
    assert_eq!(
        ended,
        [Item::ProcessEnd(ProcessEnd {
            process: ProcessId(0),
            time_ns: 9,
            reason: EndReason::Exit(Some(0))
        })]
    );
}

fn in_module(id: u32) -> Location {
    Location::Module { module: ModuleId(id), file_offset: 0x4010 }
}

#[test]
fn a_library_that_is_gone_when_its_records_come_is_found_all_the_same() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    bench.map(10, range(0x30_000, Some(2)));
    bench.map(20, range(0x30_000, Some(3)));
    bench.sees_at(30, observation("first", vec![range(0x10_000, Some(0))]));
    bench.take(&Record::CodeChanged(CodeChanged { header: header(KIND_CODE_CHANGED, 0, 12) }));
    assert_eq!(bench.place(15, 0x30_010), in_module(2));
    assert_eq!(bench.place(25, 0x30_010), in_module(3), "it took the place of the other");
    assert!(matches!(bench.place(35, 0x30_010), Location::Unmapped { .. }), "seen to be gone");
    let modules = bench.items.iter().filter(|item| matches!(item, Item::Module(_)));
    assert_eq!(modules.count(), 3);
}

#[test]
fn records_of_an_old_image_are_looked_up_in_it_though_the_new_one_is_known() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    bench.map(10, range(0x30_000, Some(2)));
    bench.collector.replaced(TARGET, 20);
    bench.map(21, range(0x30_000, Some(3)));
    bench.map(22, range(0x10_000, Some(0)));
    bench.collector.replaced(TARGET, 40);
    assert_eq!(bench.place(15, 0x30_010), in_module(2), "of the old image");
    // Both images are gone when their records come.
    *bench.seen.lock().unwrap() = None;
    let items = bench.take(&exec(1, 24, 0));
    assert!(
        matches!(items.last(), Some(Item::Process(process)) if process.allocators == ["/lib/0.so"]),
        "{items:?}"
    );
    let mut of_new = stack(30, 9, OUTCOME_FRAME_POINTERS_ENDED, &[0x30_010, 0x10_010]);
    if let Record::Stack(stack) = &mut of_new {
        stack.header.header.image = 1;
    }
    let frames = bench.take_stack(&of_new).frames;
    let places: Vec<Location> = frames.iter().map(|frame| bench.location(*frame)).collect();
    assert_eq!(places, [in_module(3), in_module(0)]);
    let items = bench.take(&exec(2, 44, 0));
    assert!(
        matches!(items.last(), Some(Item::Process(process)) if process.allocators.is_empty()),
        "of the third nothing was mapped yet: {items:?}"
    );
}

#[test]
fn an_allocator_that_is_mapped_is_listed_at_once() {
    let mut bench = Bench::new(vec![]);
    bench.map(10, range(0x10_000, Some(0)));
    assert!(
        matches!(bench.items.last(), Some(Item::Process(process)) if process.allocators == ["/lib/0.so"])
    );
    let known = bench.items.len();
    bench.map(20, range(0x50_000, Some(0)));
    assert_eq!(bench.items.len(), known, "nothing new");
}

#[test]
fn an_exec_from_before_the_trace_is_none_of_the_target() {
    let mut bench = Bench::new(vec![]);
    let start = TargetStart {
        target: TARGET,
        pid: 42,
        start_ticks: 5,
        time_ns: 100,
        from_start: true,
        heap_end_avma: None,
    };
    bench.sees_at(101, observation("first", vec![]));
    bench.collector.start_target(&start, |item| bench.items.push(item));
    bench.collector.replaced(TARGET, 90);
    bench.map(110, range(0x10_000, Some(0)));
    assert!(
        matches!(bench.items.last(), Some(Item::Process(process)) if process.allocators == ["/lib/0.so"]),
        "it belongs to the image that runs: {:?}",
        bench.items.last()
    );
}

#[test]
fn what_shows_a_later_image_is_not_taken_for_this_one() {
    let mut bench = Bench::new(vec![]);
    bench.collector.replaced(TARGET, 20);
    let later = observation("later", vec![range(0x10_000, Some(0))]);
    let seen = Observation { begun_ns: 25, done_ns: 26, ..later };
    bench.collector.saw(TARGET, seen, 25, |item| bench.items.push(item));
    assert!(
        !bench
            .items
            .iter()
            .any(|item| matches!(item, Item::Process(process) if process.comm == "later"))
    );
    let items = bench.take(&exec(1, 24, 0));
    assert!(
        matches!(items.last(), Some(Item::Process(process)) if process.allocators == ["/lib/0.so"]),
        "{items:?}"
    );
}

#[test]
fn after_a_loss_of_mappings_the_targets_are_looked_at() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let code = vec![range(0x10_000, Some(0)), range(0x30_000, Some(2))];
    bench.sees_at(20, observation("first", code));
    bench.collector.mappings_lost(0, |_| {});
    assert_eq!(bench.place(15, 0x30_010), in_module(2));
}

#[test]
fn copied_stacks_are_walked_and_those_with_the_same_frames_are_one() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let by_tables = bench.take_stack(&stack(1, 9, OUTCOME_COMPLETE, &[0x10_010, 0x10_020]));
    let stack_of = |items: &[Item]| match items.last() {
        Some(Item::Event(Event::Allocation { stack, .. })) => *stack,
        other => panic!("no allocation: {other:?}"),
    };
    for number in 100..200 {
        assert_eq!(bench.take(&copied_stack(2, number, &[0x10_010, 0x10_020])), []);
        assert_eq!(stack_of(&bench.take(&allocation(0, 3, number))), by_tables.id);
    }
    let other = bench.take_stack(&copied_stack(4, 200, &[0x10_010, 0x10_030]));
    assert_eq!((other.frames.len(), other.outcome), (2, StackOutcome::Complete));
    assert_eq!(stack_of(&bench.take(&allocation(0, 5, 200))), other.id);
    let cannot = bench.take_stack(&copied_stack(6, 201, &[0x10_010, 0x10_030, CANNOT_WALK]));
    assert_eq!((cannot.frames.len(), cannot.outcome), (1, StackOutcome::NoTables));
    let mut by_old_tables = copied_stack(7, 202, &[0x10_020, CANNOT_WALK]);
    if let Record::StackCopy(stack) = &mut by_old_tables {
        (stack.copy.outcome, stack.copy.flags) = (OUTCOME_COMPLETE, STACK_TABLES_OLD);
    }
    assert_eq!(bench.take_stack(&by_old_tables).outcome, StackOutcome::TablesOutdated);
    let mut nonsense = copied_stack(8, 203, &[0x10_030, CANNOT_WALK]);
    if let Record::StackCopy(stack) = &mut nonsense {
        stack.copy.outcome = OUTCOME_COMPLETE;
    }
    assert_eq!(bench.take_stack(&nonsense).outcome, StackOutcome::UnknownReason, "one frame");
}

#[test]
fn code_that_a_copied_stack_leads_to_is_looked_for() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let both = vec![range(0x10_000, Some(0)), range(0x30_000, Some(2))];
    bench.sees_at(LOOK_AGAIN_NS + 10, observation("first", both));
    let early = bench.take_stack(&copied_stack(5, 100, &[0x10_010, 0x30_010]));
    assert_eq!((early.frames.len(), early.outcome), (2, StackOutcome::UnknownCode));
    let later = LOOK_AGAIN_NS + 10;
    let late = bench.take_stack(&copied_stack(later, 101, &[0x10_010, 0x30_010, 0x30_020]));
    assert_eq!((late.frames.len(), late.outcome), (3, StackOutcome::Complete));
}

/// Whatever was unmapped meanwhile, what the walk has led through was there all the time.
#[test]
fn stacks_walked_by_old_tables_are_trusted_where_nothing_has_changed() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0)), range(0x30_000, Some(1))]);
    let made_ns = LOOK_AGAIN_NS;
    let both = vec![range(0x10_000, Some(0)), range(0x30_000, Some(1))];
    let seen = Observation { begun_ns: made_ns, done_ns: made_ns, ..observation("first", both) };
    bench.collector.saw(TARGET, seen, made_ns, |item| bench.items.push(item));
    let replaced_ns = made_ns + 10;
    let mut outcome = |time_ns, number, frames_avma: &[u64]| {
        let mut walked = stack(time_ns, number, OUTCOME_COMPLETE, frames_avma);
        if let Record::Stack(stack) = &mut walked {
            stack.header.flags = STACK_TABLES_OLD;
            stack.header.tables_read_ns = made_ns;
        }
        bench.collector.mapped(TARGET, replaced_ns, range(0x30_000, Some(2)), |_| {});
        bench.take_stack(&walked).outcome
    };
    assert_eq!(outcome(replaced_ns + 1, 9, &[0x10_010, 0x10_020]), StackOutcome::Complete);
    assert_eq!(
        outcome(replaced_ns + 1, 10, &[0x10_010, 0x30_020]),
        StackOutcome::TablesOutdated,
        "another library lies there"
    );
}

#[test]
fn memory_is_that_of_the_image_that_runs_then() {
    let mut bench = Bench::new(vec![range(0x10_000, Some(0))]);
    let read = |bench: &mut Bench, target, time_ns| {
        let mut items = Vec::new();
        let memory = ProcessMemory { swapped_bytes: Some(time_ns), ..ProcessMemory::default() };
        bench.collector.memory_read(target, time_ns, memory, |item| items.push(item));
        items
    };
    let reading = |process, time_ns| {
        let memory = ProcessMemory { swapped_bytes: Some(time_ns), ..ProcessMemory::default() };
        [Item::Memory(MemoryReading { process: ProcessId(process), time_ns, memory })]
    };
    assert_eq!(read(&mut bench, TARGET, 5), reading(0, 5));
    bench.take(&exec(1, 6, 0));
    assert_eq!(read(&mut bench, TARGET, 7), reading(1, 7));
    assert_eq!(read(&mut bench, TARGET + 1, 8), [], "there is no such target");
    bench.collector.end_target(TARGET, 9, Some(0), |_| {});
    assert_eq!(read(&mut bench, TARGET, 9), [], "it has ended");
}

fn change(change: u16, flags: u16, address_avma: u64, size_bytes: u64) -> MappingChange {
    MappingChange {
        header: header(KIND_MAPPING_CHANGE, 0, 9),
        address_avma,
        size_bytes,
        old_address_avma: 0,
        old_size_bytes: 0,
        began_ns: 0,
        stack: 0,
        thread: 7,
        change,
        flags,
        padding: 0,
    }
}

fn changed(bench: &mut Bench, change: MappingChange) -> Option<Event> {
    bench.take(&Record::MappingChange(change)).into_iter().find_map(|item| match item {
        Item::Event(event) => Some(event),
        _ => None,
    })
}

#[test]
fn mappings_say_what_they_are_and_who_wants_them() {
    let mut bench = Bench::new(Vec::new());
    let mut of = |flags: u16| match changed(
        &mut bench,
        change(MAPPING_CHANGE_MAPPED, flags, 0x1000, 4096),
    ) {
        Some(Event::Mapping { kind, by, address_avma: 0x1000, size_bytes: 4096, .. }) => (kind, by),
        other => panic!("no mapping: {other:?}"),
    };
    let (program, unknown) = (MappedBy::Program, MappedBy::Unknown);
    assert_eq!(of(0), (MappingKind::Anonymous, program));
    assert_eq!(of(MAPPING_SHARED), (MappingKind::Shared, program));
    assert_eq!(of(MAPPING_OF_FILE | MAPPING_SHARED), (MappingKind::File, program));
    assert_eq!(of(MAPPING_BY_UNKNOWN), (MappingKind::Anonymous, unknown));
    let by_allocator = MappingChange {
        header: Header { probe: PROBE, ..header(KIND_MAPPING_CHANGE, 0, 9) },
        ..change(MAPPING_CHANGE_MAPPED, MAPPING_BY_ALLOCATOR, 0x1000, 4096)
    };
    let event = changed(&mut bench, by_allocator);
    let probe = MappedBy::Allocator(ProbeId(PROBE.into()));
    assert!(matches!(event, Some(Event::Mapping { by, .. }) if by == probe), "{event:?}");
    let moved = MappingChange {
        old_address_avma: 0x5000,
        old_size_bytes: 4096,
        began_ns: 8,
        ..change(MAPPING_CHANGE_MOVED, MAPPING_KEEPS_OLD, 0x1000, 8192)
    };
    let event = changed(&mut bench, moved);
    assert!(
        matches!(
            event,
            Some(Event::Remapping {
                began_ns: 8,
                time_ns: 9,
                old_address_avma: 0x5000,
                old_size_bytes: 4096,
                new_address_avma: 0x1000,
                new_size_bytes: 8192,
                keeps_old: true,
                ..
            })
        ),
        "{event:?}"
    );
    assert_eq!(changed(&mut bench, change(77, 0, 0x1000, 4096)), None);
    assert_eq!(bench.collector.nonsense(), 1);
}

#[test]
fn the_heap_grows_and_shrinks_from_where_it_ended() {
    let mut bench = Bench::new(Vec::new());
    let mut moved_to =
        |end_avma: u64| match changed(&mut bench, change(MAPPING_CHANGE_BREAK, 0, end_avma, 0)) {
            Some(Event::Mapping { address_avma, size_bytes, kind: MappingKind::Heap, .. }) => {
                Some((true, address_avma, size_bytes))
            }
            Some(Event::Unmapping { address_avma, size_bytes, .. }) => {
                Some((false, address_avma, size_bytes))
            }
            None => None,
            other => panic!("{other:?}"),
        };
    // Where it ended before is not known until it is asked.
    assert_eq!(moved_to(0x10_000), None);
    assert_eq!(moved_to(0x10_000), None);
    assert_eq!(moved_to(0x13_000), Some((true, 0x10_000, 0x3000)));
    assert_eq!(moved_to(0x11_000), Some((false, 0x11_000, 0x2000)));
    // A child has the heap of its parent, and a new image has none.
    bench.take(&begin(BEGUN_BY_FORK, 0, 20));
    let of_child = MappingChange {
        header: Header { target: CHILD, ..header(KIND_MAPPING_CHANGE, 0, 21) },
        ..change(MAPPING_CHANGE_BREAK, 0, 0x12_000, 0)
    };
    let event = changed(&mut bench, of_child);
    assert!(
        matches!(event, Some(Event::Mapping { address_avma: 0x11_000, size_bytes: 0x1000, .. })),
        "{event:?}"
    );
    bench.take(&exec(1, 30, 0));
    let of_image = MappingChange {
        header: header(KIND_MAPPING_CHANGE, 1, 31),
        ..change(MAPPING_CHANGE_BREAK, 0, 0x90_000, 0)
    };
    assert_eq!(changed(&mut bench, of_image), None);
}
