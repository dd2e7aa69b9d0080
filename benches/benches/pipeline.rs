//! What each stage costs per event, on the code that ships. Every measured run is
//! checked for its result: a stage that did nothing would fail, not win.

#![expect(clippy::unwrap_used, reason = "a failure must stop the benchmark")]

mod cpu_time;
mod raw_records;

use std::{hint::black_box, io::Cursor, time::Duration};

use cpu_time::CpuTime;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memscope::{
    collect::{Collector, Decoder, Probing},
    export::{Format, Weight, export},
    lifetimes::Tracker,
    model::Item,
    reports::{Analysis, Analyzer, Detail, View, analyze},
    store::{Reader, RecordingEnd, Writer},
};
use memscope_benches::{Expected, Workload};
use memscope_common::record::{
    self, Header, KIND_FREE, KIND_SMALL_ALLOCATION, KIND_SMALL_FREE, KIND_THREAD_NUMBER,
    SmallAllocation, ThreadNumber, address_and_thread, kind_and_time,
};
use raw_records::{NothingToSee, RawRecords};
use zerocopy::IntoBytes as _;

/// As in memscope itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 1_000_000;
/// Blocks live at once, few and many: an event may not cost more for it.
const LIVE: [usize; 2] = [10_000, 250_000];

fn check(analysis: &Analysis, expected: Expected) {
    let totals = &analysis.totals;
    let found = Expected {
        allocations: totals.allocations,
        allocated_bytes: totals.allocated_bytes,
        frees: totals.frees,
        live_blocks: totals.live_blocks,
        live_bytes: totals.live_bytes,
        peak_live_bytes: totals.peak_live_bytes,
    };
    assert_eq!(found, expected);
}

fn bytes_of(workload: &Workload, items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &workload.capture()).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    writer.finish(&workload.ending()).unwrap()
}

fn lifetimes(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("lifetimes");
    for live in LIVE {
        for (name, workload) in
            [("random", Workload::random(EVENTS, live)), ("server", Workload::server(EVENTS, live))]
        {
            group.throughput(Throughput::Elements(workload.events.len() as u64));
            group.bench_function(format!("{name}, {live} live"), |bencher| {
                bencher.iter(|| track(&workload));
            });
        }
    }
    group.finish();
}

fn track(workload: &Workload) -> Tracker {
    let mut tracker = Tracker::new();
    let mut ended = 0_u64;
    for event in black_box(&workload.events) {
        tracker.apply(event, |_| ended += 1);
    }
    let totals = tracker.totals();
    assert_eq!(ended, workload.expected.frees);
    assert_eq!(totals.allocations, workload.expected.allocations);
    assert_eq!(totals.live_bytes, workload.expected.live_bytes);
    assert_eq!(totals.peak_live_bytes, workload.expected.peak_live_bytes);
    tracker
}

fn store(criterion: &mut Criterion<CpuTime>) {
    for (name, workload) in [
        ("random", Workload::random(EVENTS, LIVE[0])),
        ("server", Workload::server(EVENTS, LIVE[0])),
    ] {
        let items = workload.items();
        let bytes = bytes_of(&workload, &items);
        let events = workload.events.len();
        println!("store/{name}: {:.2} bytes per event", bytes.len() as f64 / events as f64);
        let mut group = criterion.benchmark_group("store");
        group.throughput(Throughput::Elements(events as u64));
        group.bench_function(format!("write {name}"), |bencher| {
            bencher.iter(|| {
                let written = bytes_of(&workload, black_box(&items));
                assert_eq!(written.len(), bytes.len());
                written
            });
        });
        group.bench_function(format!("read and analyze {name}"), |bencher| {
            bencher.iter(|| {
                let reader = Reader::new(Cursor::new(black_box(&bytes))).unwrap();
                let analysis = analyze(reader).unwrap();
                assert!(analysis.is_complete());
                check(&analysis, workload.expected);
                analysis
            });
        });
        group.finish();
    }
}

/// What the collecting thread does with each event once it is in order.
fn tracker_and_writer(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("track and write");
    for live in LIVE {
        let workload = Workload::server(EVENTS, live);
        group.throughput(Throughput::Elements(workload.events.len() as u64));
        group.bench_function(format!("{live} live"), |bencher| {
            bencher.iter(|| {
                let mut analyzer = Analyzer::default();
                let mut writer = Writer::new(std::io::sink(), &workload.capture()).unwrap();
                let definitions = workload.definitions.iter().cloned();
                let events = black_box(&workload.events).iter();
                for item in definitions.chain(events.map(|event| Item::Event(*event))) {
                    analyzer.apply(&item, |_| {});
                    writer.push(&item).unwrap();
                }
                writer.flush().unwrap();
                let written_bytes = writer.written_bytes();
                assert!(written_bytes > workload.events.len() as u64, "{written_bytes}");
                let totals = analyzer.tracker().totals();
                assert_eq!(totals.frees, workload.expected.frees);
                assert_eq!(totals.live_bytes, workload.expected.live_bytes);
                assert_eq!(totals.peak_live_bytes, workload.expected.peak_live_bytes);
                analyzer
            });
        });
    }
    group.finish();
}

fn outputs(criterion: &mut Criterion<CpuTime>) {
    let workload = Workload::random(EVENTS / 10, LIVE[0]);
    let mut analyzer = Analyzer::default();
    workload.items().iter().for_each(|item| analyzer.apply(item, |_| {}));
    let analysis = analyzer.finish(workload.capture(), RecordingEnd::Complete(workload.ending()));
    check(&analysis, workload.expected);
    let mut group = criterion.benchmark_group("outputs");
    group.throughput(Throughput::Elements(analysis.sites.len() as u64));
    for view in [View::Summary, View::Leaks] {
        group.bench_function(format!("report {}", view.name()), |bencher| {
            bencher.iter(|| {
                let text =
                    view.report(black_box(&analysis), "recording", Some(10), Detail::Folded).text();
                assert!(text.contains("Complete: all "));
                text
            });
        });
    }
    for format in Format::ALL {
        group.bench_function(format!("export {}", format.name()), |bencher| {
            bencher.iter_batched(
                Vec::new,
                |mut out| {
                    export(format, black_box(&analysis), Weight::AllocatedBytes, None, &mut out)
                        .unwrap();
                    assert!(out.len() > 1000);
                    out
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// From what the kernel side writes to the file, on one core: what the draining thread does, and
/// the collecting one.
fn ring_to_file(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("ring to file");
    for live in LIVE {
        let workload = Workload::server(EVENTS, live);
        let raw = RawRecords::of(&workload);
        group.throughput(Throughput::Elements(workload.events.len() as u64));
        group.bench_function(format!("{live} live"), |bencher| {
            bencher.iter(|| {
                let mut decoder = Decoder::default();
                let mut collector = Collector::new(NothingToSee, Probing::Processes);
                let mut analyzer = Analyzer::default();
                let mut writer = Writer::new(std::io::sink(), &workload.capture()).unwrap();
                let mut give = |item: Item| {
                    analyzer.apply(&item, |_| {});
                    writer.push(&item).unwrap();
                };
                raw.begin(&mut collector, &mut give);
                black_box(&raw).each(&mut decoder, |record| collector.take(record, &mut give));
                writer.flush().unwrap();
                let written_bytes = writer.written_bytes();
                assert!(written_bytes > workload.events.len() as u64, "{written_bytes}");
                assert_eq!(collector.nonsense(), 0);
                let totals = analyzer.tracker().totals();
                assert_eq!(totals.allocations, workload.expected.allocations);
                assert_eq!(totals.frees, workload.expected.frees);
                assert_eq!(totals.live_bytes, workload.expected.live_bytes);
                assert_eq!(totals.peak_live_bytes, workload.expected.peak_live_bytes);
                analyzer
            });
        });
    }
    group.finish();
}

/// What the kernel side writes to records, as the drain thread does it: small ones, and those
/// that have no place among them.
fn decoding(criterion: &mut Criterion<CpuTime>) {
    const RECORDS: u64 = 100_000;
    const THREAD: u32 = 1;
    let header =
        |kind, time_ns| Header { kind, padding: 0, probe: 1, image: 0, target: 0, time_ns };
    let number =
        ThreadNumber { header: header(KIND_THREAD_NUMBER, 0), number: THREAD, thread: 900 };
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(number.as_bytes()), Ok(None));
    let small: Vec<[u64; 3]> = (0..RECORDS)
        .map(|time_ns| {
            let address = address_and_thread(time_ns << 4, THREAD.into());
            if time_ns % 2 == 0 {
                let pack = SmallAllocation::pack(time_ns as u32 % 100, time_ns, 1);
                [kind_and_time(KIND_SMALL_ALLOCATION, time_ns), address, pack]
            } else {
                [kind_and_time(KIND_SMALL_FREE, time_ns), address, 0]
            }
        })
        .collect();
    let large: Vec<Vec<u8>> = (0..RECORDS)
        .map(|time_ns| {
            let record = record::Free {
                header: header(KIND_FREE, time_ns),
                address_avma: time_ns << 4,
                thread: THREAD,
                is_internal: 0,
                allocated_since: 0,
            };
            record.as_bytes().to_vec()
        })
        .collect();
    let expected = RECORDS * (RECORDS - 1) / 2;
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("small records", |bencher| {
        bencher.iter(|| {
            let times = small.iter().map(|words| {
                decoder.decode_small(black_box(*words)).map_or(0, |record| record.time_ns())
            });
            let time_sum: u64 = times.sum();
            assert_eq!(time_sum, expected, "every record was read");
            time_sum
        });
    });
    group.bench_function("records of the ring buffer", |bencher| {
        bencher.iter(|| {
            let mut time_sum = 0;
            for bytes in &large {
                if let Ok(Some(record)) = decoder.decode(black_box(bytes)) {
                    time_sum += record.time_ns();
                }
            }
            assert_eq!(time_sum, expected, "every record was read");
            time_sum
        });
    });
    group.finish();
}

criterion_group! {
    name = pipeline;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4));
    targets = decoding, ring_to_file, lifetimes, store, tracker_and_writer, outputs
}
criterion_main!(pipeline);
