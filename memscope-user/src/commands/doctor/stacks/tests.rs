use memmap2::MmapMut;

use super::*;
use crate::commands::doctor::code_files;

fn of_this_process() -> StackDiagnosis {
    let process = TargetProcess::open(std::process::id()).unwrap();
    let mappings = process.code_mappings().unwrap();
    let files: Vec<CodeFile> =
        code_files(&process, &mappings, &crate::target::Descriptions::default())
            .into_iter()
            .map(|(file, _)| file)
            .collect();
    StackDiagnosis::of(&process, &files, &mappings, &Tables::default())
}

#[test]
fn nearly_all_code_of_this_process_is_covered() {
    let diagnosis = of_this_process();
    let sum = |number: fn(&FileDiagnosis) -> u64| diagnosis.files.iter().map(number).sum::<u64>();
    assert_eq!(diagnosis.rows, sum(|file| file.rows));
    assert_eq!(diagnosis.covered_code_bytes, sum(|file| file.covered_code_bytes));
    assert_eq!(diagnosis.uncovered_code_bytes, sum(|file| file.uncovered_code_bytes));
    let exe = std::env::current_exe().unwrap();
    let own = diagnosis.files.iter().find(|file| *exe == *file.path).unwrap();
    assert!(own.has_table && own.rows > 10_000, "{own:?}");
    assert!(own.covered_code_bytes > 20 * own.uncovered_code_bytes, "{own:?}");
    for name in ["libc.so.6", "[vdso]"] {
        let file = diagnosis.files.iter().find(|file| file.path.ends_with(name)).unwrap();
        assert!(file.has_table && file.covered_code_bytes > 0, "{file:?}");
    }
    assert_eq!(diagnosis.files_with_table, diagnosis.files.len() as u64, "{diagnosis:?}");
    assert!(diagnosis.tables_ns > 0);
    assert_eq!((diagnosis.kernel_bytes, diagnosis.tables_cached), (None, 0));
}

#[test]
fn executable_memory_without_a_file_is_generated_code() {
    let before = of_this_process().generated_code_bytes;
    let code = MmapMut::map_anon(3 << 12).unwrap().make_exec().unwrap();
    let after = of_this_process();
    assert_eq!(after.generated_code_bytes, before + code.len() as u64);
    assert!(after.lines()[0].starts_with("  no   stacks: "), "{:?}", after.lines());
}

#[test]
fn only_files_with_something_wrong_are_told() {
    let mut diagnosis = StackDiagnosis { tables_ns: 34_000_000, ..StackDiagnosis::default() };
    let good = FileDiagnosis {
        path: "/good".to_owned(),
        has_table: true,
        rows: 1200,
        covered_code_bytes: 3000,
        uncovered_code_bytes: 1000,
        ..FileDiagnosis::default()
    };
    diagnosis.add(good);
    assert_eq!(
        diagnosis.lines(),
        [
            "  yes  stacks: 1 of 1 files have unwind tables (1,200 rows, 0 that cannot be followed); 0 B of generated code",
            "       tables cover 75.0 % of 3.91 KiB of code in files; elsewhere frame pointers are followed",
            "       tables ready in 34.0 ms (0 from the cache); they take an unknown amount of kernel memory",
        ]
    );
    diagnosis.add(FileDiagnosis {
        path: "/bad\n".to_owned(),
        has_table: true,
        rows: 10,
        rows_not_followed: 3,
        problems: Some("2 overlapping functions".to_owned()),
        covered_code_bytes: 1000,
        ..FileDiagnosis::default()
    });
    let code = [0..0x800, 0x1000..0x1808];
    let missing = FileDiagnosis::of("/none", Err("it cannot be opened".to_owned()), &code);
    assert_eq!((missing.covered_code_bytes, missing.uncovered_code_bytes), (0, 0x1008));
    diagnosis.add(missing);
    diagnosis.add(FileDiagnosis::of("/empty", Ok(Arc::default()), &[]));
    diagnosis.generated_code_bytes = 4096;
    (diagnosis.kernel_bytes, diagnosis.files_refused) = (Some(1 << 20), Some(1));
    assert_eq!(
        diagnosis.lines(),
        [
            "  no   stacks: 2 of 4 files have unwind tables (1,210 rows, 3 that cannot be followed); 4.00 KiB of generated code",
            "       tables cover 43.9 % of 8.89 KiB of code in files; elsewhere frame pointers are followed",
            "       tables ready in 34.0 ms (0 from the cache); they take 1.00 MiB of kernel memory",
            "       files whose tables have no room in the kernel: 1; frame pointers are followed there",
            "       /bad\\u{a}: rows that cannot be followed: 3; 2 overlapping functions",
            "       no table: /none: it cannot be opened; frame pointers are followed",
            "       no table: /empty: it has no unwind information; frame pointers are followed",
        ]
    );
}
