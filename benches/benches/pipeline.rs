//! What each stage costs per event, on the code that ships. Every measured run is
//! checked for its result: a stage that did nothing would fail, not win.

#![expect(clippy::unwrap_used, reason = "a failure must stop the benchmark")]

mod cpu_time;

use std::{hint::black_box, io::Cursor, time::Duration};

use cpu_time::CpuTime;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memscope::{
    collect::decode,
    export::{Format, Weight, export},
    lifetimes::Tracker,
    model::Item,
    reports::{Analysis, Analyzer, View, Wrappers, analyze},
    store::{Reader, RecordingEnd, Writer},
};
use memscope_benches::{Expected, Workload};
use memscope_common::record::{self, Header, KIND_ALLOCATION, KIND_FREE};
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
                let text = view
                    .report(black_box(&analysis), "recording", Some(10), Wrappers::Folded)
                    .text();
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

/// Bytes of the ring to records, as the drain thread does it.
fn decoding(criterion: &mut Criterion<CpuTime>) {
    const RECORDS: u64 = 100_000;
    let records: Vec<Vec<u8>> = (0..RECORDS)
        .map(|number| {
            let header =
                |kind| Header { kind, padding: 0, probe: 1, image: 0, target: 0, time_ns: number };
            if number % 2 == 0 {
                let record = record::Allocation {
                    header: header(KIND_ALLOCATION),
                    address_avma: number << 4,
                    size_bytes: number,
                    stack: number % 100,
                    thread: 1,
                    padding: 0,
                };
                record.as_bytes().to_vec()
            } else {
                let record = record::Free {
                    header: header(KIND_FREE),
                    address_avma: number << 4,
                    thread: 1,
                    caller_distance_bytes: 0,
                };
                record.as_bytes().to_vec()
            }
        })
        .collect();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("allocations and frees", |bencher| {
        bencher.iter(|| {
            let time_sum: u64 = records
                .iter()
                .map(|bytes| decode(black_box(bytes)).map_or(0, |record| record.time_ns()))
                .sum();
            assert_eq!(time_sum, RECORDS * (RECORDS - 1) / 2, "every record was read");
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
    targets = decoding, lifetimes, store, tracker_and_writer, outputs
}
criterion_main!(pipeline);
