//! What it takes until a file can be unwound, on files of this machine. `MEMSCOPE_BENCH_ELF`
//! names another one, such as a compiler's library with millions of rows.

#![expect(clippy::unwrap_used, reason = "a failure must stop the benchmark")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    hint::black_box,
    path::PathBuf,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memscope::unwind::{TableCache, Tables, UnwindTable};

/// This program, its libraries, and the file asked for.
fn files() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from);
    mapped.chain(std::env::var_os("MEMSCOPE_BENCH_ELF").map(PathBuf::from)).collect()
}

fn make(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unwind table");
    group.sample_size(10);
    for path in files() {
        let bytes = fs::read(&path).unwrap();
        let rows = UnwindTable::from_elf(&bytes).unwrap().rows.len();
        assert!(rows > 100, "{}: {rows} rows", path.display());
        group.throughput(Throughput::Elements(rows as u64));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        group.bench_function(format!("{name}, made"), |bencher| {
            bencher.iter(|| {
                let table = UnwindTable::from_elf(black_box(&bytes)).unwrap();
                assert_eq!(table.rows.len(), rows);
            });
        });
        let file = File::open(&path).unwrap();
        group.bench_function(format!("{name}, through the cache"), |bencher| {
            bencher.iter(|| {
                let tables = Tables::new(TableCache::open().ok());
                assert_eq!(tables.load(&file).unwrap().rows.len(), rows);
                tables.keep_new();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, make);
criterion_main!(benches);
