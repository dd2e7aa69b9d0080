//! How well the stacks of a process can be walked.

use std::{fs::File, ops::Range, sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    kernel::{Kernel, KernelError},
    model::ModuleId,
    target::{CodeMapping, CodeSegment, MappedFile, TargetProcess},
    text::{bytes, count, duration_ns, harmless, percent},
    unwind::{Problems, Tables, UnwindTable},
};

/// A file that is mapped as code.
pub(super) struct CodeFile {
    pub(super) path: String,
    /// None if it could not be opened.
    pub(super) file: Option<File>,
    /// Empty if it could not be read.
    pub(super) segments: Vec<CodeSegment>,
    /// Where it is mapped.
    pub(super) mappings: Vec<CodeMapping>,
}

/// What stacks can be walked by.
#[derive(Debug, Default, Serialize)]
pub(super) struct StackDiagnosis {
    /// Files and the vDSO.
    files: Vec<FileDiagnosis>,
    files_with_table: u64,
    /// Rows of all tables.
    rows: u64,
    /// Rows that say that callers cannot be found there.
    rows_not_followed: u64,
    /// Bytes of mapped code that a row speaks of.
    covered_code_bytes: u64,
    /// Bytes of mapped code in files that no row speaks of, padding between functions
    /// among them: there frame pointers are followed.
    uncovered_code_bytes: u64,
    /// Executable memory without a file: there frame pointers are followed too.
    generated_code_bytes: u64,
    /// How long it took to have the tables.
    tables_ns: u64,
    /// Tables that were read from the cache on disk.
    tables_cached: u64,
    /// Memory that the tables take in the kernel; none if that could not be tried.
    kernel_bytes: Option<u64>,
    /// Files whose tables the kernel side has no room for; none if that could not be tried.
    files_refused: Option<u64>,
}

#[derive(Debug, Default, Serialize)]
struct FileDiagnosis {
    path: String,
    has_table: bool,
    /// Why it has none.
    error: Option<String>,
    rows: u64,
    rules: u64,
    rows_not_followed: u64,
    covered_code_bytes: u64,
    uncovered_code_bytes: u64,
    /// What the table lacks.
    problems: Option<String>,
    #[serde(skip)]
    table: Arc<UnwindTable>,
}

type Loaded = Result<Arc<UnwindTable>, String>;

impl StackDiagnosis {
    /// Makes the tables of all that a process has mapped.
    pub(super) fn of(
        process: &TargetProcess,
        files: &[CodeFile],
        mappings: &[CodeMapping],
        tables: &Tables,
    ) -> Self {
        let begun = Instant::now();
        let open: Vec<&File> = files.iter().filter_map(|file| file.file.as_ref()).collect();
        let mut loaded = tables.load_all(&open).into_iter();
        let mut diagnosis = Self::default();
        for file in files {
            let table = match &file.file {
                Some(_) => loaded.next().map_or_else(
                    || Err("it was not read".to_owned()),
                    |table| table.map_err(|error| told(error.into())),
                ),
                None => Err("it cannot be opened".to_owned()),
            };
            diagnosis.add(FileDiagnosis::of(&file.path, table, &code_of(file)));
        }
        for mapping in mappings {
            let length_bytes = mapping.end_avma.saturating_sub(mapping.start_avma);
            match &mapping.file {
                MappedFile::File { .. } => {}
                MappedFile::Kernel(name) if name == "[vdso]" => {
                    let image = process.read_memory(mapping.start_avma, length_bytes);
                    let table = image
                        .map_err(anyhow::Error::new)
                        .and_then(|image| Ok(tables.load_image(&image)?))
                        .map_err(told);
                    // It is linked at 0 and mapped whole; what is no code has no rows.
                    let code = 0..length_bytes;
                    diagnosis.add(FileDiagnosis::of(name, table, std::slice::from_ref(&code)));
                }
                MappedFile::Kernel(_) | MappedFile::Anonymous => {
                    diagnosis.generated_code_bytes += length_bytes;
                }
            }
        }
        diagnosis.tables_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        diagnosis.tables_cached = tables.counts().cached;
        tables.keep_new();
        diagnosis
    }

    fn add(&mut self, file: FileDiagnosis) {
        self.files_with_table += u64::from(file.has_table);
        self.rows += file.rows;
        self.rows_not_followed += file.rows_not_followed;
        self.covered_code_bytes += file.covered_code_bytes;
        self.uncovered_code_bytes += file.uncovered_code_bytes;
        self.files.push(file);
    }

    /// Brings the tables into the kernel, to see what room they take there.
    pub(super) fn place(&mut self, kernel: &mut Kernel) -> Result<(), KernelError> {
        let before = kernel.tables().table_use();
        for (number, file) in self.files.iter().enumerate() {
            kernel.tables_mut().place(ModuleId(number as u32), &file.table)?;
        }
        let after = kernel.tables().table_use();
        self.kernel_bytes = Some(after.row_bytes.saturating_sub(before.row_bytes));
        self.files_refused = Some(after.refused_files.saturating_sub(before.refused_files));
        Ok(())
    }

    /// As text; of the files, those are told of which something is missing.
    pub(super) fn lines(&self) -> Vec<String> {
        let good = self.files_with_table == self.files.len() as u64
            && self.generated_code_bytes == 0
            && self.files_refused.unwrap_or(0) == 0;
        let covered_of = self.covered_code_bytes + self.uncovered_code_bytes;
        let mut lines = vec![
            format!(
                "  {}  stacks: {} of {} files have unwind tables ({} rows, {} that cannot be followed); {} of generated code",
                if good { "yes" } else { "no " },
                count(self.files_with_table),
                count(self.files.len() as u64),
                count(self.rows),
                count(self.rows_not_followed),
                bytes(self.generated_code_bytes)
            ),
            format!(
                "       tables cover {} of {} of code in files; elsewhere frame pointers are followed",
                percent(self.covered_code_bytes, covered_of),
                bytes(covered_of)
            ),
            format!(
                "       tables ready in {} ({} from the cache); they take {} of kernel memory",
                duration_ns(self.tables_ns),
                count(self.tables_cached),
                self.kernel_bytes.map_or_else(|| "an unknown amount".to_owned(), bytes)
            ),
        ];
        if let Some(refused) = self.files_refused.filter(|refused| *refused > 0) {
            lines.push(format!(
                "       files whose tables have no room in the kernel: {}; frame pointers are followed there",
                count(refused)
            ));
        }
        lines.extend(self.files.iter().filter_map(FileDiagnosis::line));
        lines
    }
}

impl FileDiagnosis {
    /// `code` is what is mapped of it, in the file's own numbering.
    fn of(path: &str, table: Loaded, code: &[Range<u64>]) -> Self {
        let (table, error) = match table {
            Ok(table) if table.rows.is_empty() => {
                (table, Some("it has no unwind information".to_owned()))
            }
            Ok(table) => (table, None),
            Err(error) => (Arc::default(), Some(error)),
        };
        let covered_code_bytes = code.iter().map(|range| table.covered_bytes(range)).sum();
        let code_bytes: u64 = code.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        Self {
            path: path.to_owned(),
            has_table: error.is_none(),
            error,
            rows: table.rows.len() as u64,
            rules: table.rules.len() as u64,
            rows_not_followed: table.rows_not_followed(),
            covered_code_bytes,
            uncovered_code_bytes: code_bytes.saturating_sub(covered_code_bytes),
            problems: (table.problems != Problems::default()).then(|| table.problems.to_string()),
            table,
        }
    }

    /// None if nothing is wrong with it.
    fn line(&self) -> Option<String> {
        let path = harmless(&self.path);
        if let Some(error) = &self.error {
            let error = harmless(error);
            return Some(format!("       no table: {path}: {error}; frame pointers are followed"));
        }
        let mut told = Vec::new();
        if self.rows_not_followed > 0 {
            told.push(format!("rows that cannot be followed: {}", count(self.rows_not_followed)));
        }
        told.extend(self.problems.clone());
        (!told.is_empty()).then(|| format!("       {path}: {}", told.join("; ")))
    }
}

fn told(error: anyhow::Error) -> String {
    format!("{error:#}")
}

/// What of a file's code is mapped, in the file's own numbering. Of a file that could not be
/// read all that is mapped is taken for code.
fn code_of(file: &CodeFile) -> Vec<Range<u64>> {
    let mut code = Vec::new();
    for mapping in &file.mappings {
        let length_bytes = mapping.end_avma.saturating_sub(mapping.start_avma);
        let (from, until) = (mapping.file_offset, mapping.file_offset.saturating_add(length_bytes));
        if file.segments.is_empty() {
            code.push(from..until);
        }
        for segment in &file.segments {
            let end = segment.file_offset.saturating_add(segment.length_bytes).min(until);
            let start = segment.file_offset.max(from);
            let start_svma = segment.start_svma.checked_add(start - segment.file_offset);
            if let (Some(start_svma), Some(length)) = (start_svma, end.checked_sub(start)) {
                code.push(start_svma..start_svma.saturating_add(length));
            }
        }
    }
    code
}

#[cfg(test)]
mod tests;
