//! What files say that will be needed, read while the kernel verifies the programs: that takes it a tenth of a second, in which
//! there is nothing else to do.

use std::fs::File;

use rustc_hash::FxHashMap;

use super::modules::{look_into, mappings_of, open_file};
use crate::{
    target::{
        Descriptions, FileIdentity, MappedFile, ModuleError, ModuleFacts, Search, TargetProcess,
        other_root,
    },
    unwind::{TableCache, Tables},
};

/// A file that is open, and what is in it.
pub(super) type ReadFile = (File, Result<ModuleFacts, ModuleError>);

/// What was read.
pub(super) struct Ahead {
    pub(super) files: FxHashMap<FileIdentity, ReadFile>,
    pub(super) tables: Tables,
}

impl Ahead {
    /// Of what these processes have mapped. Without any, of the libraries that memscope has itself: most programs that are to be
    /// traced and do not run yet will have them, above all the C library.
    pub(super) fn read(processes: &[TargetProcess], descriptions: &Descriptions) -> Self {
        let cache = TableCache::open()
            .inspect_err(|error| log::debug!("unwind tables are not kept on disk: {error}"))
            .ok();
        let mut ahead = Self { files: FxHashMap::default(), tables: Tables::new(cache) };
        for process in processes {
            ahead.read_files_of(process, descriptions);
        }
        if processes.is_empty() {
            match TargetProcess::open(std::process::id()) {
                Ok(own) => ahead.read_files_of(&own, descriptions),
                Err(error) => log::debug!("nothing is read ahead: {error}"),
            }
        }
        let open: Vec<&File> = ahead.files.values().map(|(file, _)| file).collect();
        ahead.tables.load_ahead(&open);
        ahead
    }

    /// Whatever cannot be read now is tried again when it is needed, and told then.
    fn read_files_of(&mut self, process: &TargetProcess, descriptions: &Descriptions) {
        let own = TargetProcess::own_file();
        let root = other_root(process.pid());
        for mapping in mappings_of(process).map(|seen| seen.mappings).unwrap_or_default() {
            let MappedFile::File { identity, path } = &mapping.file else { continue };
            if Some(*identity) == own || self.files.contains_key(identity) {
                continue;
            }
            if let Some(file) = open_file(process, &mapping) {
                let search = Search { path, root: root.as_ref(), descriptions };
                self.files.insert(*identity, look_into(file, &search));
            }
        }
    }
}
