//! Walks copied stacks by what the files say that were mapped when they were made.

use std::{os::unix::fs::FileExt as _, sync::Arc};

use rustc_hash::FxHashMap;

use super::modules::{LoadedModule, SharedModules, lock};
use crate::{
    collect::{CodeRange, CopiedStack, WalkedCopy},
    model::ModuleId,
    target::TargetProcess,
    unwind::{CodeAt, FrameInfo, MappedCode, UnwindError, walk_copy},
};

/// Call frame information that is held; more than all of a browser has.
const MAX_HELD_BYTES: usize = 1 << 29;
/// Modules of which it is held.
const MAX_HELD_MODULES: usize = 4096;

/// Call frame information of the files that copied stacks led through.
#[derive(Debug, Default)]
pub(super) struct FrameInfos {
    held: FxHashMap<ModuleId, Held>,
    held_bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Held {
    module: Arc<LoadedModule>,
    /// None if it cannot be had.
    info: Option<Arc<FrameInfo>>,
    last_use: u64,
}

impl FrameInfos {
    /// Walks a copied stack; `process` is none if its target is gone.
    pub(super) fn walk<'code>(
        &mut self,
        modules: &SharedModules,
        process: Option<&TargetProcess>,
        stack: &CopiedStack,
        range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> WalkedCopy {
        let mut code = Code { infos: self, modules, process, range_at };
        let walk = walk_copy(&stack.copy, &stack.parts, &mut code);
        WalkedCopy {
            frames_avma: walk.frames_avma,
            outcome: walk.outcome,
            used_frame_pointers: walk.used_frame_pointers,
            unknown_avma: walk.unknown_avma,
        }
    }

    fn get(
        &mut self,
        id: ModuleId,
        modules: &SharedModules,
        read: impl FnOnce(&LoadedModule) -> Option<Result<FrameInfo, UnwindError>>,
    ) -> Option<(Arc<LoadedModule>, Option<Arc<FrameInfo>>)> {
        self.uses += 1;
        if let Some(held) = self.held.get_mut(&id) {
            held.last_use = self.uses;
            return Some((Arc::clone(&held.module), held.info.clone()));
        }
        let module = lock(modules).module(id)?;
        let info = match read(&module) {
            Some(Ok(info)) => Some(Arc::new(info)),
            Some(Err(error)) => {
                log::debug!("no call frame information of {}: {error}", module.module.path);
                None
            }
            // It may be there another time.
            None => return Some((module, None)),
        };
        self.held_bytes += info.as_ref().map_or(0, |info| info.held_bytes());
        self.make_room();
        let held = Held { module: Arc::clone(&module), info: info.clone(), last_use: self.uses };
        self.held.insert(id, held);
        Some((module, info))
    }

    /// Forgets what was not used for the longest time.
    fn make_room(&mut self) {
        while self.held_bytes > MAX_HELD_BYTES || self.held.len() >= MAX_HELD_MODULES {
            let oldest = self.held.iter().min_by_key(|(_, held)| held.last_use).map(|(id, _)| *id);
            let Some(held) = oldest.and_then(|id| self.held.remove(&id)) else { return };
            self.held_bytes -= held.info.map_or(0, |info| info.held_bytes());
        }
    }
}

/// What was mapped where.
struct Code<'walk, 'code> {
    infos: &'walk mut FrameInfos,
    modules: &'walk SharedModules,
    process: Option<&'walk TargetProcess>,
    range_at: &'walk dyn Fn(u64) -> Option<&'code CodeRange>,
}

impl MappedCode for Code<'_, '_> {
    fn code_at(&mut self, avma: u64) -> CodeAt {
        let Some(range) = (self.range_at)(avma) else { return CodeAt::Unknown };
        let Some(module) = &range.module else { return CodeAt::WithoutFile };
        let process = self.process;
        let read = |module: &LoadedModule| match (&module.file, process) {
            (Some(file), _) => Some(FrameInfo::from_file(file)),
            // What the kernel provides is in the memory of the process only.
            (None, Some(process)) => {
                let length_bytes = range.end_avma.checked_sub(range.start_avma)?;
                let image = process.read_memory(range.start_avma, length_bytes).ok()?;
                Some(FrameInfo::from_elf(&image))
            }
            (None, None) => None,
        };
        let Some((module, info)) = self.infos.get(module.id, self.modules, read) else {
            return CodeAt::WithoutFile;
        };
        let bias_avma = module.load_bias_at(range.start_avma, range.end_avma, range.file_offset);
        match (info, bias_avma) {
            (Some(info), Some(bias_avma)) => CodeAt::File { info, bias_avma },
            _ => CodeAt::WithoutFile,
        }
    }

    fn word_at(&mut self, avma: u64) -> Option<u64> {
        let range = (self.range_at)(avma)?;
        let mut word = [0; 8];
        let module = range.module.as_ref()?;
        let module = lock(self.modules).module(module.id)?;
        let file_offset = avma.checked_sub(range.start_avma)?.checked_add(range.file_offset)?;
        module.file.as_ref()?.read_exact_at(&mut word, file_offset).ok()?;
        Some(u64::from_le_bytes(word))
    }
}
