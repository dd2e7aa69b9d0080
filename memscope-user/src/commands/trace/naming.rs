//! The thread that finds names for frames. No event waits for it.

use std::sync::mpsc::{Receiver, SyncSender};

use rustc_hash::FxHashMap;

use super::{
    modules::{SharedModules, lock},
    pipeline::Input,
};
use crate::{
    model::{FrameId, FrameSymbols, Item, Location, ModuleId, ProcessId},
    symbols::{Debuginfod, GeneratedCode, SymbolSource, Symbolizer},
};

/// Jobs taken at once.
const SYMBOL_BATCH: usize = 256;

/// What the thread is to know or to find out.
pub(super) enum SymbolJob {
    /// A process that may generate code.
    Process { process: ProcessId, pid: u32 },
    /// A process has ended: what it says of its code is complete.
    ProcessEnded(ProcessId),
    /// A frame in a file.
    InFile { frame: FrameId, module: ModuleId, file_offset: u64 },
    /// A frame in generated code.
    Generated { frame: FrameId, process: ProcessId, return_avma: u64 },
}

impl SymbolJob {
    /// What an item asks for, if anything.
    pub(super) fn of(item: &Item) -> Option<Self> {
        Some(match item {
            Item::Process(process) => Self::Process { process: process.id, pid: process.pid },
            Item::ProcessEnd(end) => Self::ProcessEnded(end.process),
            Item::Frame(frame) => match frame.location {
                Location::Module { module, file_offset } => {
                    Self::InFile { frame: frame.id, module, file_offset }
                }
                Location::Unmapped { process, address_avma } => {
                    Self::Generated { frame: frame.id, process, return_avma: address_avma }
                }
            },
            _ => return None,
        })
    }
}

/// Generated code of a process, and its frames that have no name yet.
#[derive(Default)]
struct Generating {
    /// None if the process was gone before it could be looked at.
    code: Option<GeneratedCode>,
    unnamed: Vec<(FrameId, u64)>,
}

impl Generating {
    fn of(pid: u32) -> Self {
        let code = GeneratedCode::of(pid)
            .inspect_err(|error| log::debug!("no names for code that {pid} generates: {error}"));
        Self { code: code.ok(), unnamed: Vec::new() }
    }

    /// Names what can be named now. A name that is given stays: what the map says later
    /// of the same address can be of other code.
    fn name(&mut self, is_new: bool, named: &mut Vec<FrameSymbols>) {
        let Some(code) = self.code.as_mut().filter(|_| !self.unnamed.is_empty()) else { return };
        if !code.refresh() && !is_new {
            return;
        }
        self.unnamed.retain(|(frame, return_avma)| match code.function(*return_avma) {
            Some(function) => {
                named.push(FrameSymbols { frame: *frame, functions: vec![function] });
                false
            }
            None => true,
        });
    }
}

/// State of the thread.
struct Naming<'a> {
    modules: &'a SharedModules,
    symbolizer: Symbolizer,
    sources: FxHashMap<ModuleId, Option<SymbolSource>>,
    generating: FxHashMap<ProcessId, Generating>,
    named: Vec<FrameSymbols>,
}

/// Names frames until no more come.
pub(super) fn symbolize(
    jobs: &Receiver<SymbolJob>,
    modules: &SharedModules,
    debuginfod: Option<Debuginfod>,
    output: &SyncSender<Input>,
) {
    super::set_niceness(super::SYMBOLS_NICENESS);
    let mut naming = Naming {
        modules,
        symbolizer: Symbolizer::new(debuginfod),
        sources: FxHashMap::default(),
        generating: FxHashMap::default(),
        named: Vec::new(),
    };
    while let Ok(first) = jobs.recv() {
        naming.take(std::iter::once(first).chain(jobs.try_iter().take(SYMBOL_BATCH)));
        let named = std::mem::take(&mut naming.named);
        if !named.is_empty() && output.send(Input::Symbols(named)).is_err() {
            return;
        }
    }
    // Compilers write their maps late: what was not there when a frame was new may be now.
    for generating in naming.generating.values_mut() {
        generating.name(false, &mut naming.named);
    }
    if output.send(Input::Symbols(naming.named)).is_err() {
        log::debug!("names came after the end");
    }
}

impl Naming<'_> {
    fn take(&mut self, jobs: impl Iterator<Item = SymbolJob>) {
        let mut in_files: FxHashMap<ModuleId, Vec<(FrameId, u64)>> = FxHashMap::default();
        let mut generated: Vec<ProcessId> = Vec::new();
        for job in jobs {
            match job {
                SymbolJob::Process { process, pid } => {
                    self.generating.entry(process).or_insert_with(|| Generating::of(pid));
                }
                SymbolJob::ProcessEnded(process) => {
                    if let Some(mut generating) = self.generating.remove(&process) {
                        generating.name(true, &mut self.named);
                    }
                }
                SymbolJob::InFile { frame, module, file_offset } => {
                    in_files.entry(module).or_default().push((frame, file_offset));
                }
                SymbolJob::Generated { frame, process, return_avma } => {
                    if let Some(generating) = self.generating.get_mut(&process) {
                        generating.unnamed.push((frame, return_avma));
                        generated.push(process);
                    }
                }
            }
        }
        generated.dedup();
        // Before the files, which take longer: a process may end at any time.
        for process in generated {
            if let Some(generating) = self.generating.get_mut(&process) {
                generating.name(true, &mut self.named);
            }
        }
        for (module, frames) in in_files {
            self.name_in_file(module, &frames);
        }
    }

    fn name_in_file(&mut self, module: ModuleId, frames: &[(FrameId, u64)]) {
        let source =
            self.sources.entry(module).or_insert_with(|| lock(self.modules).symbol_source(module));
        let Some(source) = source else { return };
        let offsets: Vec<u64> = frames.iter().map(|(_, offset)| *offset).collect();
        let functions = self.symbolizer.functions(source, &offsets);
        let named = frames.iter().zip(functions).filter(|(_, functions)| !functions.is_empty());
        self.named
            .extend(named.map(|((frame, _), functions)| FrameSymbols { frame: *frame, functions }));
    }
}
