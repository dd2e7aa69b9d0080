//! `memscope dump`: a recording as text, record by record.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use super::{open_recording, warn_of_damage};
use crate::{
    cli::FileOptions,
    model::{
        Counters, Event, ExactCounts, Frame, FrameSymbols, Item, Location, MappedBy, MappedMemory,
        MemoryReading, Probe, Process, ResidentBytes, ResidentMemory, Stack, Window,
    },
    store::{Chunk, RecordingEnd},
    text::{harmless, hex},
};

/// Runs the command.
///
/// # Errors
///
/// If the recording cannot be read.
pub fn run(options: &FileOptions) -> anyhow::Result<ExitCode> {
    let mut reader = open_recording(&options.file)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let capture = reader.capture();
    let started_at_ns = capture.started_at_ns;
    writeln!(
        out,
        "capture memscope={} kernel={} arch={} started_at_ns={} ring_bytes={} sampling_interval_bytes={} stacks={} command={:?}",
        harmless(&capture.memscope_version),
        harmless(&capture.kernel),
        harmless(&capture.arch),
        capture.started_at_ns,
        capture.ring_bytes,
        capture.sampling_interval_bytes.unwrap_or(0),
        capture.stacks.name(),
        capture.command,
    )?;
    while let Some(chunk) = reader.next_chunk()? {
        match chunk {
            Chunk::Items(items) => {
                for item in &items {
                    write_item(&mut out, item, started_at_ns)?;
                }
            }
            Chunk::Ending(ending) => {
                writeln!(out, "end at_ns={} reason={:?}", ending.ended_at_ns, ending.reason)?;
            }
            Chunk::Unknown { kind } => writeln!(out, "unknown-chunk kind={kind}")?,
        }
    }
    out.flush()?;
    warn_of_damage(&options.file, reader.damage_count(), reader.end() == RecordingEnd::Truncated);
    Ok(ExitCode::SUCCESS)
}

fn write_item(out: &mut impl Write, item: &Item, started_at_ns: u64) -> io::Result<()> {
    match item {
        Item::Process(process) => write_process(out, process),
        Item::ProcessEnd(end) => {
            writeln!(
                out,
                "process-end {} at_ns={} reason={:?}",
                end.process, end.time_ns, end.reason
            )
        }
        Item::Module(module) => {
            let path = harmless(&module.path);
            writeln!(out, "module {} build_id={} path={path}", module.id, hex(&module.build_id))
        }
        Item::Probe(probe) => write_probe(out, probe),
        Item::Frame(Frame { id, location: Location::Module { module, file_offset } }) => {
            writeln!(out, "frame {id} module={module} file_offset={file_offset:#x}")
        }
        Item::Frame(Frame { id, location: Location::Unmapped { process, address_avma } }) => {
            writeln!(out, "frame {id} process={process} address_avma={address_avma:#x}")
        }
        Item::Stack(Stack { id, process, outcome, frames }) => {
            let frames: Vec<String> = frames.iter().map(ToString::to_string).collect();
            let (outcome, frames) = (outcome.name(), frames.join(","));
            writeln!(out, "stack {id} process={process} outcome={outcome} frames={frames}")
        }
        Item::Symbols(symbols) => write_symbols(out, symbols),
        Item::Event(event) => write_event(out, event, started_at_ns),
        Item::Counters(counters) => write_counters(out, counters),
        Item::ExactCounts(exact) => write_exact(out, exact),
        Item::Counted(counted) => writeln!(
            out,
            "counted process={} stack={} allocations={} bytes={}",
            counted.process.0, counted.stack.0, counted.allocations, counted.bytes
        ),
        Item::Window(window) => write_window(out, window, started_at_ns),
        Item::Fork(fork) => writeln!(
            out,
            "fork process={} parent={} at_ns={}",
            fork.process, fork.parent, fork.time_ns
        ),
        Item::Memory(reading) => write_memory(out, reading, started_at_ns),
        Item::PageSums(sums) => writeln!(
            out,
            "page-sums elsewhere={} gone={}",
            resident_text(&sums.elsewhere),
            resident_text(&sums.gone)
        ),
        Item::MappingsObserved => writeln!(out, "mappings observed"),
        Item::Owner(owner) => writeln!(
            out,
            "owner probe={} allocator={} known_by={:?}",
            owner.probe, owner.allocator, owner.known_by
        ),
        Item::AllocatedSince(thread) => {
            writeln!(out, "allocated-since process={} thread={}", thread.process, thread.thread)
        }
        Item::ThreadName(named) => writeln!(
            out,
            "thread-name process={} thread={} name={}",
            named.process,
            named.thread,
            harmless(&named.name)
        ),
        Item::AllocatorCall(call) => {
            writeln!(out, "allocator-call outer={} inner={}", known(call.outer), known(call.inner))
        }
    }
}

/// An id, if there is one.
fn known(id: Option<impl ToString>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

/// Bytes: `anonymous/file/shared`.
fn resident_text(resident: &ResidentBytes) -> String {
    format!("{}/{}/{}", resident.anonymous, resident.file, resident.shared)
}

fn write_probe(out: &mut impl Write, probe: &Probe) -> io::Result<()> {
    writeln!(
        out,
        "probe {} function={} module={} file_offset={:#x} emulated={}",
        probe.id,
        harmless(&probe.function),
        probe.module,
        probe.file_offset,
        probe.emulated
    )
}

fn write_process(out: &mut impl Write, process: &Process) -> io::Result<()> {
    writeln!(
        out,
        "process {} pid={} start_ticks={} image={} from_ns={} comm={} exe={} from_start={} allocators={}",
        process.id,
        process.pid,
        process.start_ticks,
        process.image,
        process.observed_from_ns,
        harmless(&process.comm),
        harmless(&process.exe),
        process.from_start,
        harmless(&process.allocators.join(",")),
    )
}

fn write_symbols(out: &mut impl Write, symbols: &FrameSymbols) -> io::Result<()> {
    for function in &symbols.functions {
        writeln!(
            out,
            "symbol frame={} function={} file={} line={} inlined={}",
            symbols.frame,
            harmless(&function.name),
            function.file.as_deref().map_or_else(|| "-".to_owned(), harmless),
            function.line.map_or_else(|| "-".to_owned(), |line| line.to_string()),
            function.inlined
        )?;
    }
    Ok(())
}

fn write_counters(out: &mut impl Write, counters: &Counters) -> io::Result<()> {
    let lost = counters.lost.iter().map(|(cause, count)| format!(" {}={count}", cause.name()));
    writeln!(
        out,
        "counters attempted={} recorded={} nested={} hits={} in_flight={}{}",
        counters.attempted,
        counters.recorded,
        counters.nested,
        counters.hits,
        counters.in_flight,
        lost.collect::<String>()
    )
}

fn write_exact(out: &mut impl Write, exact: &ExactCounts) -> io::Result<()> {
    let classes = exact.classes.iter();
    let classes = classes.map(|class| format!(" {}:{}/{}", class.bits, class.calls, class.bytes));
    let (calls, bytes) = (exact.calls(), exact.bytes());
    writeln!(
        out,
        "exact calls={calls} bytes={bytes} frees_dropped={} by bits of size:{}",
        exact.frees_dropped,
        classes.collect::<String>()
    )
}

fn write_window(out: &mut impl Write, window: &Window, started_at_ns: u64) -> io::Result<()> {
    let since = |time_ns: u64| time_ns.saturating_sub(started_at_ns);
    writeln!(
        out,
        "window from={} until={} observed_cpu_ns={} missed_cpu_ns={} probe_cost_ns={} hits={} aftermath_ns={} work_samples={} probe_samples={} collector_cpu_ns={} interval={} budget_ppm={}{}",
        since(window.begin_ns),
        since(window.end_ns),
        window.observed_cpu_ns,
        window.missed_cpu_ns,
        window.probe_cost_ns,
        window.hits,
        window.aftermath_ns,
        window.work_samples,
        window.probe_samples,
        window.collector_cpu_ns,
        window.interval_bytes,
        window.budget_ppm,
        if window.is_last { " last" } else { "" }
    )
}

/// What was not read is left out.
fn write_memory(
    out: &mut impl Write,
    reading: &MemoryReading,
    started_at_ns: u64,
) -> io::Result<()> {
    let MemoryReading { process, time_ns, memory } = reading;
    let at_ns = time_ns.wrapping_sub(started_at_ns).cast_signed();
    write!(out, "memory +{at_ns} process={process}")?;
    if let Some(resident) = memory.resident {
        let ResidentMemory { anonymous_bytes, file_bytes, shared_bytes } = resident;
        write!(out, " anonymous={anonymous_bytes} file={file_bytes} shared={shared_bytes}")?;
    }
    for (name, bytes) in [
        ("peak_resident", memory.peak_resident_bytes),
        ("swapped", memory.swapped_bytes),
        ("proportional", memory.proportional_bytes),
    ] {
        if let Some(bytes) = bytes {
            write!(out, " {name}={bytes}")?;
        }
    }
    if let Some(heap) = memory.heap_mappings {
        for (name, size) in [("brk", heap.brk), ("anonymous", heap.anonymous)] {
            let MappedMemory { mapped_bytes, resident_bytes } = size;
            write!(out, " {name}_mapped={mapped_bytes} {name}_mapped_resident={resident_bytes}")?;
        }
    }
    if let Some(group) = &memory.control_group {
        let bytes = group.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        write!(out, " group_bytes={bytes} group={}", harmless(&group.path))?;
    }
    writeln!(out)
}

/// Times are given from the beginning of the trace.
fn write_event(out: &mut impl Write, event: &Event, started_at_ns: u64) -> io::Result<()> {
    let at_ns = event.time_ns().wrapping_sub(started_at_ns).cast_signed();
    match *event {
        Event::Allocation {
            process,
            thread,
            address_avma,
            size_bytes,
            stack,
            probe,
            interval_bytes,
            ..
        } => {
            writeln!(
                out,
                "allocation +{at_ns} process={process} thread={thread} address={address_avma:#x} size={size_bytes} stack={stack} probe={probe} interval={interval_bytes}"
            )
        }
        Event::Free { process, thread, address_avma, probe, caller, .. } => writeln!(
            out,
            "free +{at_ns} process={process} thread={thread} address={address_avma:#x} caller={caller:?} probe={}",
            known(probe)
        ),
        Event::ReallocationBegin { process, thread, old_address_avma, probe, .. } => writeln!(
            out,
            "reallocation-begin +{at_ns} process={process} thread={thread} old={old_address_avma:#x} probe={}",
            known(probe)
        ),
        Event::ReallocationEnd {
            process,
            thread,
            old_address_avma,
            new_address_avma,
            size_bytes,
            stack,
            probe,
            interval_bytes,
            ..
        } => writeln!(
            out,
            "reallocation-end +{at_ns} process={process} thread={thread} old={old_address_avma:#x} new={new_address_avma:#x} size={size_bytes} stack={stack} probe={probe} interval={interval_bytes}"
        ),
        Event::ThreadExit { process, thread, .. } => {
            writeln!(out, "thread-exit +{at_ns} process={process} thread={thread}")
        }
        Event::Loss { first_lost_ns, lost_count, .. } => writeln!(
            out,
            "loss +{at_ns} from=+{} lost={lost_count}",
            first_lost_ns.wrapping_sub(started_at_ns).cast_signed()
        ),
        Event::PageFault { process, thread, address_avma, stack, resident, is_major, .. } => {
            writeln!(
                out,
                "page-fault +{at_ns} process={process} thread={thread} address={address_avma:#x} resident={} stack={stack}{}",
                resident_text(&resident),
                if is_major { " major" } else { "" }
            )
        }
        Event::Mapping { .. } | Event::Unmapping { .. } | Event::Remapping { .. } => {
            write_mapping(out, event, started_at_ns)
        }
    }
}

fn write_mapping(out: &mut impl Write, event: &Event, started_at_ns: u64) -> io::Result<()> {
    let at_ns = event.time_ns().wrapping_sub(started_at_ns).cast_signed();
    match *event {
        Event::Mapping { process, thread, address_avma, size_bytes, stack, kind, by, .. } => {
            writeln!(
                out,
                "mapping +{at_ns} process={process} thread={thread} address={address_avma:#x} size={size_bytes} kind={} by={} stack={stack}",
                kind.name(),
                mapped_by_text(by)
            )
        }
        Event::Unmapping { process, thread, address_avma, size_bytes, .. } => writeln!(
            out,
            "unmapping +{at_ns} process={process} thread={thread} address={address_avma:#x} size={size_bytes}"
        ),
        Event::Remapping {
            process,
            thread,
            began_ns,
            old_address_avma,
            old_size_bytes,
            new_address_avma,
            new_size_bytes,
            keeps_old,
            stack,
            by,
            ..
        } => writeln!(
            out,
            "remapping +{at_ns} began=+{} process={process} thread={thread} old={old_address_avma:#x} old_size={old_size_bytes} new={new_address_avma:#x} size={new_size_bytes} by={} stack={stack}{}",
            began_ns.wrapping_sub(started_at_ns).cast_signed(),
            mapped_by_text(by),
            if keeps_old { " keeps-old" } else { "" }
        ),
        _ => Ok(()),
    }
}

fn mapped_by_text(by: MappedBy) -> String {
    match by {
        MappedBy::Allocator(probe) => format!("allocator:{probe}"),
        by => by.name().to_owned(),
    }
}
