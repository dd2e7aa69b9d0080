//! An ELF file's call frame information: any bytes give a table in order, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memscope::unwind::UnwindTable;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = UnwindTable::from_elf(bytes) {
        assert!(table.rows.windows(2).all(|pair| pair[0].offset < pair[1].offset));
        assert!(table.rows.iter().all(|row| (row.rule as usize) < table.rules.len()));
        for row in &table.rows {
            let rule = table.rule_at(table.base_svma.wrapping_add(row.offset.into()));
            assert_eq!(Some(&rule), table.rules.get(row.rule as usize));
        }
    }
});
