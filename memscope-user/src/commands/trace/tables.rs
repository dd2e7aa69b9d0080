//! Brings unwind tables of what the targets have mapped into the kernel.

use std::{fs::File, sync::Arc, time::Instant};

use super::{
    modules::{LoadedModule, SharedModules, lock},
    monotonic_ns,
};
use crate::{
    kernel::{Kernel, WalkableCode},
    target::{CodeMapping, TargetProcess},
    unwind::{Tables, UnwindTable},
};

/// A mapping and what is behind it.
type Mapped = (CodeMapping, Option<Arc<LoadedModule>>);

/// Looks at a target's address space, and has its stacks walked by the tables of what is
/// mapped there from now on.
pub(super) fn bring_tables(
    kernel: &mut Kernel,
    tables: &Tables,
    modules: &SharedModules,
    process: &TargetProcess,
    target: u16,
) -> anyhow::Result<()> {
    // Before the address space is looked at: what changes meanwhile makes it old.
    let epoch = kernel.tables().epoch(target)?;
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
    place_new(kernel, tables, process, &mapped)?;
    let code: Vec<WalkableCode> = mapped
        .iter()
        .map(|(mapping, module)| walkable(kernel, mapping, module.as_deref()))
        .collect();
    kernel.tables_mut().publish(target, &epoch, read_at_ns, &code)?;
    for (mapping, module) in &mapped {
        if let Some(avma) = module.as_ref().and_then(|module| module.loader_state_avma(mapping)) {
            kernel.set_loader_state(target, avma);
        }
    }
    Ok(())
}

fn walkable(kernel: &Kernel, mapping: &CodeMapping, module: Option<&LoadedModule>) -> WalkableCode {
    let table = module.and_then(|module| {
        let table = kernel.tables().placed(module.module.id)??;
        Some((table, module.load_bias(mapping)?))
    });
    WalkableCode { start_avma: mapping.start_avma, end_avma: mapping.end_avma, table }
}

/// Makes the tables that are not there yet, several at once.
fn place_new(
    kernel: &mut Kernel,
    tables: &Tables,
    process: &TargetProcess,
    mapped: &[Mapped],
) -> anyhow::Result<()> {
    let mut new: Vec<(&CodeMapping, &Arc<LoadedModule>)> = Vec::new();
    for (mapping, module) in mapped {
        if let Some(module) = module
            && kernel.tables().placed(module.module.id).is_none()
            && !new.iter().any(|(_, known)| Arc::ptr_eq(known, module))
        {
            new.push((mapping, module));
        }
    }
    if new.is_empty() {
        return Ok(());
    }
    let begun = Instant::now();
    let (files, images): (Vec<_>, Vec<_>) =
        new.into_iter().partition(|(_, module)| module.file.is_some());
    let open: Vec<&File> = files.iter().filter_map(|(_, module)| module.file.as_ref()).collect();
    let made = files.iter().map(|(_, module)| *module).zip(tables.load_all(&open));
    let images =
        images.into_iter().map(|(mapping, module)| (module, image_table(tables, process, mapping)));
    let mut placed_files = 0_u64;
    for (module, table) in
        made.map(|(module, table)| (module, table.map_err(Into::into))).chain(images)
    {
        placed_files += 1;
        place(kernel, module, table)?;
    }
    let used = kernel.tables().table_use();
    log::info!(
        "unwind tables of {placed_files} files made in {} ms; in all {} rows, {} rules, {} of kernel memory",
        begun.elapsed().as_millis(),
        used.rows,
        used.rules,
        crate::text::bytes(used.bytes)
    );
    Ok(())
}

fn place(
    kernel: &mut Kernel,
    module: &LoadedModule,
    table: anyhow::Result<Arc<UnwindTable>>,
) -> anyhow::Result<()> {
    let path = &module.module.path;
    let table = table.unwrap_or_else(|error| {
        log::debug!("no unwind table of {path}: {error:#}");
        Arc::default()
    });
    log::debug!(
        "{path}: {} rows, {} rules; {}",
        table.rows.len(),
        table.rules.len(),
        table.problems
    );
    if kernel.tables_mut().place(module.module.id, &table)?.is_none() && !table.rows.is_empty() {
        log::warn!("no room for the unwind table of {path}: its frame pointers are followed");
    }
    Ok(())
}

/// The table of what the kernel has mapped, such as the vDSO.
fn image_table(
    tables: &Tables,
    process: &TargetProcess,
    mapping: &CodeMapping,
) -> anyhow::Result<Arc<UnwindTable>> {
    let image = process.read_memory(mapping.start_avma, mapping.end_avma - mapping.start_avma)?;
    Ok(tables.load_image(&image)?)
}
