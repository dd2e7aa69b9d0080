//! Random items of every kind, for tests.

use proptest::{collection::vec, option, prelude::*};

use crate::model::{
    AllocatedSince, AllocatorCall, AllocatorId, ControlGroupMemory, Counters, EndReason, Event,
    Fork, Frame, FrameId, FrameSymbols, FreeCaller, HeapMappings, Item, Location, LossCause,
    MappedBy, MappedMemory, MappingKind, MemoryReading, Module, ModuleId, OwnerEvidence, PageSums,
    Probe, ProbeId, ProbeOwner, Process, ProcessEnd, ProcessId, ProcessMemory, ResidentBytes,
    ResidentMemory, SourceFunction, Stack, StackId, StackOutcome, ThreadId, ThreadName, Window,
};

fn resident((anonymous, file, shared): (u64, u64, u64)) -> ResidentBytes {
    ResidentBytes { anonymous, file, shared }
}

fn page_sums() -> BoxedStrategy<PageSums> {
    let any_resident = || any::<(u64, u64, u64)>().prop_map(resident);
    (any_resident(), any_resident())
        .prop_map(|(elsewhere, gone)| PageSums { elsewhere, gone })
        .boxed()
}

/// Few ids, so that items refer to each other.
fn id() -> BoxedStrategy<u32> {
    prop_oneof![0..4_u32, Just(u32::MAX)].boxed()
}

/// Few addresses, so that blocks meet.
fn address() -> BoxedStrategy<u64> {
    prop_oneof![0..8_u64, any::<u64>()].boxed()
}

fn text() -> BoxedStrategy<String> {
    prop_oneof!["[a-z/.]{0,9}", any::<String>()].boxed()
}

fn event() -> BoxedStrategy<Event> {
    let common = (id(), id(), any::<u64>(), address());
    let begin = (any::<u64>(), id(), id(), address(), prop_oneof![3 => Just(0), 1 => any::<u64>()]);
    let of_blocks = (0..7, common, begin, any::<bool>()).prop_map(
        |(
            kind,
            (process, thread, time_ns, address_avma),
            (size_bytes, stack, probe, other, interval_bytes),
            allocator,
        )| {
            let (process, thread) = (ProcessId(process), ThreadId(thread));
            let (stack, probe) = (StackId(stack), ProbeId(probe));
            let ending = Some(probe).filter(|_| !other.is_multiple_of(3));
            let resident = resident((size_bytes, other, interval_bytes));
            let caller = if allocator { FreeCaller::AllocatorModule } else { FreeCaller::Program };
            match kind {
                0 => Event::Allocation {
                    process,
                    thread,
                    time_ns,
                    address_avma,
                    size_bytes,
                    stack,
                    probe,
                    interval_bytes,
                },
                1 => Event::Free { process, thread, time_ns, address_avma, probe: ending, caller },
                2 => Event::ReallocationBegin {
                    process,
                    thread,
                    time_ns,
                    old_address_avma: address_avma,
                    probe: ending,
                },
                3 => Event::ReallocationEnd {
                    process,
                    thread,
                    time_ns,
                    old_address_avma: address_avma,
                    new_address_avma: other,
                    size_bytes,
                    stack,
                    probe,
                    interval_bytes,
                },
                4 => Event::ThreadExit { process, thread, time_ns },
                5 => Event::PageFault {
                    process,
                    thread,
                    time_ns,
                    address_avma,
                    stack,
                    resident,
                    is_major: allocator,
                },
                _ => Event::Loss { first_lost_ns: other, time_ns, lost_count: size_bytes },
            }
        },
    );
    prop_oneof![7 => of_blocks, 3 => mapping_event()].boxed()
}

fn mapping_event() -> BoxedStrategy<Event> {
    let by = prop_oneof![
        Just(MappedBy::Program),
        Just(MappedBy::Unknown),
        id().prop_map(|probe| MappedBy::Allocator(ProbeId(probe)))
    ];
    let common = (id(), id(), any::<u64>(), id(), by);
    let kind = prop::sample::select(&MappingKind::ALL);
    let ranges = (address(), any::<u64>(), address(), any::<u64>(), any::<u64>());
    (0..3, common, kind, ranges, any::<bool>())
        .prop_map(|(event, (process, thread, time_ns, stack, by), kind, ranges, keeps_old)| {
            let (process, thread, stack) = (ProcessId(process), ThreadId(thread), StackId(stack));
            let (address_avma, size_bytes, new_address_avma, new_size_bytes, began_ns) = ranges;
            match event {
                0 => Event::Mapping {
                    process,
                    thread,
                    time_ns,
                    address_avma,
                    size_bytes,
                    stack,
                    kind,
                    by,
                },
                1 => Event::Unmapping { process, thread, time_ns, address_avma, size_bytes },
                _ => Event::Remapping {
                    process,
                    thread,
                    began_ns,
                    time_ns,
                    old_address_avma: address_avma,
                    old_size_bytes: size_bytes,
                    new_address_avma,
                    new_size_bytes,
                    keeps_old,
                    stack,
                    by,
                },
            }
        })
        .boxed()
}

fn process() -> BoxedStrategy<Process> {
    (
        (id(), any::<u32>(), any::<u64>(), any::<u32>()),
        any::<u64>(),
        text(),
        text(),
        vec(text(), 0..3),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(
                (id, pid, start_ticks, image),
                observed_from_ns,
                comm,
                exe,
                allocators,
                (from_start, probed_late),
            )| Process {
                id: ProcessId(id),
                pid,
                start_ticks,
                image,
                observed_from_ns,
                comm,
                exe,
                allocators,
                from_start,
                probed_late,
            },
        )
        .boxed()
}

fn end_reason() -> BoxedStrategy<EndReason> {
    prop_oneof![Just(EndReason::Exec), option::of(any::<i32>()).prop_map(EndReason::Exit)].boxed()
}

fn symbols() -> BoxedStrategy<FrameSymbols> {
    let function = (text(), option::of(text()), option::of(any::<u32>()), any::<bool>())
        .prop_map(|(name, file, line, inlined)| SourceFunction { name, file, line, inlined });
    (id(), vec(function, 0..4))
        .prop_map(|(frame, functions)| FrameSymbols { frame: FrameId(frame), functions })
        .boxed()
}

fn counters() -> BoxedStrategy<Counters> {
    let lost = vec((prop::sample::select(LossCause::ALL.to_vec()), any::<u64>()), 0..4);
    (any::<[u64; 6]>(), lost)
        .prop_map(|([attempted, recorded, nested, hits, malformed, in_flight], lost)| Counters {
            attempted,
            recorded,
            nested,
            hits,
            malformed,
            in_flight,
            lost,
        })
        .boxed()
}

fn window() -> BoxedStrategy<Window> {
    (any::<[u64; 11]>(), any::<u32>(), any::<bool>())
        .prop_map(|(numbers, budget_ppm, is_last)| Window {
            begin_ns: numbers[0],
            end_ns: numbers[1],
            observed_cpu_ns: numbers[2],
            missed_cpu_ns: numbers[3],
            probe_cost_ns: numbers[4],
            collector_cpu_ns: numbers[5],
            interval_bytes: numbers[6],
            hits: numbers[9],
            aftermath_ns: numbers[10],
            work_samples: numbers[7],
            probe_samples: numbers[8],
            budget_ppm,
            is_last,
        })
        .boxed()
}

fn memory() -> BoxedStrategy<MemoryReading> {
    let bytes = || option::of(any::<u64>());
    let resident = option::of(any::<[u64; 3]>());
    let group = option::of((text(), bytes()));
    let mapped = |mapped_bytes, resident_bytes| MappedMemory { mapped_bytes, resident_bytes };
    let heap = option::of(any::<[u64; 4]>().prop_map(move |of| HeapMappings {
        brk: mapped(of[0], of[1]),
        anonymous: mapped(of[2], of[3]),
    }));
    (id(), any::<u64>(), resident, (bytes(), bytes(), bytes()), group, heap)
        .prop_map(|(process, time_ns, resident, numbers, group, heap_mappings)| MemoryReading {
            process: ProcessId(process),
            time_ns,
            memory: ProcessMemory {
                resident: resident.map(|of| ResidentMemory {
                    anonymous_bytes: of[0],
                    file_bytes: of[1],
                    shared_bytes: of[2],
                }),
                peak_resident_bytes: numbers.0,
                swapped_bytes: numbers.1,
                proportional_bytes: numbers.2,
                control_group: group.map(|(path, bytes)| ControlGroupMemory { path, bytes }),
                heap_mappings,
            },
        })
        .boxed()
}

fn frame() -> BoxedStrategy<Frame> {
    (id(), id(), any::<u64>(), any::<bool>())
        .prop_map(|(id, whose, place, mapped)| Frame {
            id: FrameId(id),
            location: if mapped {
                Location::Module { module: ModuleId(whose), file_offset: place }
            } else {
                Location::Unmapped { process: ProcessId(whose), address_avma: place }
            },
        })
        .boxed()
}

/// An item of any kind, with any content.
pub(crate) fn item() -> BoxedStrategy<Item> {
    let process_end = (id(), any::<u64>(), end_reason()).prop_map(|(process, time_ns, reason)| {
        ProcessEnd { process: ProcessId(process), time_ns, reason }
    });
    let module = (id(), text(), vec(any::<u8>(), 0..20)).prop_map(|(id, path, build_id)| Module {
        id: ModuleId(id),
        path,
        build_id,
    });
    let probe = (id(), text(), id(), any::<u64>(), any::<bool>()).prop_map(
        |(id, function, module, file_offset, emulated)| Probe {
            id: ProbeId(id),
            function,
            module: ModuleId(module),
            file_offset,
            emulated,
        },
    );
    let outcome = prop::sample::select(StackOutcome::ALL.to_vec());
    let stack = (id(), id(), outcome, vec(id().prop_map(FrameId), 0..6)).prop_map(
        |(id, process, outcome, frames)| Stack {
            id: StackId(id),
            process: ProcessId(process),
            outcome,
            frames,
        },
    );
    prop_oneof![
        1 => process().prop_map(Item::Process),
        1 => process_end.prop_map(Item::ProcessEnd),
        1 => module.prop_map(Item::Module),
        1 => probe.prop_map(Item::Probe),
        1 => frame().prop_map(Item::Frame),
        1 => stack.prop_map(Item::Stack),
        1 => symbols().prop_map(Item::Symbols),
        8 => event().prop_map(Item::Event),
        1 => counters().prop_map(Item::Counters),
        1 => window().prop_map(Item::Window),
        1 => any::<(u32, u32, u64)>().prop_map(|(process, parent, time_ns)| Item::Fork(Fork {
            process: ProcessId(process),
            parent: ProcessId(parent),
            time_ns,
        })),
        1 => memory().prop_map(Item::Memory),
        1 => page_sums().prop_map(Item::PageSums),
        1 => Just(Item::MappingsObserved),
        1 => (id(), any::<u32>(), any::<bool>()).prop_map(|(probe, allocator, described)| {
            let known_by =
                if described { OwnerEvidence::Description } else { OwnerEvidence::Module };
            let (probe, allocator) = (ProbeId(probe), AllocatorId(allocator));
            Item::Owner(ProbeOwner { probe, allocator, known_by })
        }),
        1 => any::<[Option<u32>; 2]>().prop_map(|ids| {
            let [outer, inner] = ids.map(|id| id.map(AllocatorId));
            Item::AllocatorCall(AllocatorCall { outer, inner })
        }),
        1 => any::<(u32, u32)>().prop_map(|(process, thread)| {
            let (process, thread) = (ProcessId(process), ThreadId(thread));
            Item::AllocatedSince(AllocatedSince { process, thread })
        }),
        1 => (any::<(u32, u32)>(), text()).prop_map(|((process, thread), name)| {
            let (process, thread) = (ProcessId(process), ThreadId(thread));
            Item::ThreadName(ThreadName { process, thread, name })
        }),
    ]
    .boxed()
}
