//! Brings unwind tables of what the targets have mapped into the kernel.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Context as _;

use super::{
    modules::{LoadedModule, SharedModules, lock},
    monotonic_ns,
};
use crate::{
    kernel::{Kernel, WalkableCode},
    target::{CodeMapping, MappedFile, TargetProcess},
    unwind::UnwindTable,
};

/// A mapping and what is behind it.
type Mapped = (CodeMapping, Option<Arc<LoadedModule>>);

/// Looks at a target's address space, and has its stacks walked by the tables of what is
/// mapped there from now on.
pub(super) fn bring_tables(
    kernel: &mut Kernel,
    modules: &SharedModules,
    process: &TargetProcess,
    target: u16,
) -> anyhow::Result<()> {
    // Before the address space is looked at: what changes meanwhile makes it old.
    let epoch = kernel.epoch(target)?;
    let read_at_ns = monotonic_ns();
    let mappings = process.code_mappings()?;
    let mapped: Vec<Mapped> = {
        let mut cache = lock(modules);
        mappings
            .into_iter()
            .map(|mapping| {
                let module = cache.load(process, &mapping);
                (mapping, module)
            })
            .collect()
    };
    place_new(kernel, process, &mapped)?;
    let code: Vec<WalkableCode> = mapped
        .iter()
        .map(|(mapping, module)| walkable(kernel, mapping, module.as_deref()))
        .collect();
    kernel.publish_tables(target, &epoch, read_at_ns, &code)?;
    for (mapping, module) in &mapped {
        if let Some(avma) = module.as_ref().and_then(|module| module.loader_state_avma(mapping)) {
            kernel.set_loader_state(target, avma)?;
        }
    }
    Ok(())
}

fn walkable(kernel: &Kernel, mapping: &CodeMapping, module: Option<&LoadedModule>) -> WalkableCode {
    let table = module.and_then(|module| {
        let table = kernel.placed_table(module.module.id)??;
        Some((table, module.load_bias(mapping)?))
    });
    WalkableCode { start_avma: mapping.start_avma, end_avma: mapping.end_avma, table }
}

/// Makes the tables that are not there yet, several at once.
fn place_new(
    kernel: &mut Kernel,
    process: &TargetProcess,
    mapped: &[Mapped],
) -> anyhow::Result<()> {
    let mut new: Vec<(&CodeMapping, &Arc<LoadedModule>)> = Vec::new();
    for (mapping, module) in mapped {
        if let Some(module) = module
            && kernel.placed_table(module.module.id).is_none()
            && !new.iter().any(|(_, known)| Arc::ptr_eq(known, module))
        {
            new.push((mapping, module));
        }
    }
    if new.is_empty() {
        return Ok(());
    }
    let begun = Instant::now();
    let waiting = Mutex::new(new.iter());
    let made = Mutex::new(Vec::new());
    let workers =
        std::thread::available_parallelism().map_or(1, |count| count.get()).min(new.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((mapping, module)) = next else { return };
                    let table = make(process, mapping, module);
                    made.lock().unwrap_or_else(PoisonError::into_inner).push((*module, table));
                }
            });
        }
    });
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (module, table) in made {
        let path = &module.module.path;
        let table = match table {
            Ok(table) => table,
            Err(error) => {
                log::debug!("no unwind table of {path}: {error:#}");
                UnwindTable::default()
            }
        };
        log::debug!(
            "{path}: {} rows, {} rules; {}",
            table.rows.len(),
            table.rules.len(),
            table.problems
        );
        if kernel.place_table(module.module.id, &table)?.is_none() && !table.rows.is_empty() {
            log::warn!("no room for the unwind table of {path}: stacks will end there");
        }
    }
    log::info!("unwind tables of {} files made in {} ms", new.len(), begun.elapsed().as_millis());
    Ok(())
}

fn make(
    process: &TargetProcess,
    mapping: &CodeMapping,
    module: &LoadedModule,
) -> anyhow::Result<UnwindTable> {
    if let Some(file) = &module.file {
        // SAFETY: if the file is cut while it is read, this process gets a SIGBUS.
        let bytes = unsafe { memmap2::Mmap::map(file) }.context("cannot read it")?;
        return Ok(UnwindTable::from_elf(&bytes)?);
    }
    let MappedFile::Kernel(_) = &mapping.file else {
        anyhow::bail!("it cannot be opened");
    };
    let image = process.read_memory(mapping.start_avma, mapping.end_avma - mapping.start_avma)?;
    Ok(UnwindTable::from_elf(&image)?)
}
