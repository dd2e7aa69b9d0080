//! How much memory a process has, as `/proc` and the control groups tell.

use std::{
    fs::File,
    io::{Cursor, Read},
    path::Path,
};

use procfs::{
    FromBufRead, ProcResult, ProcessCGroups,
    process::{MMPermissions, MMapPath, MemoryMaps, Status},
};

use super::{TargetProcess, cgroup::Hierarchy, process::parse_maps};
use crate::model::{ControlGroupMemory, HeapMappings, MappedMemory, ProcessMemory, ResidentMemory};

/// Most bytes read of `status`, `cgroup` and `smaps_rollup`, which have a few thousand.
const MAX_SMALL_FILE_BYTES: u64 = 1 << 17;
/// More than most of them have.
const USUAL_SMALL_FILE_BYTES: usize = 4096;
/// Most bytes read of `smaps`: as many mappings as the kernel allows by default
/// (`vm.max_map_count`), at a kilobyte each.
const MAX_SMAPS_BYTES: u64 = 1 << 26;
/// Most bytes read of a file that holds one number.
const MAX_NUMBER_BYTES: u64 = 32;
/// Kibibytes, as `status` counts.
const KIB: u64 = 1024;

impl TargetProcess {
    /// What is cheap to read: counters that the kernel keeps anyhow. None if the process is gone,
    /// or has no memory of its own any more.
    #[must_use]
    pub fn memory(&self, groups: &ControlGroups) -> Option<ProcessMemory> {
        let mut memory = memory_of_status(&self.text("status", MAX_SMALL_FILE_BYTES)?)?;
        memory.control_group = self
            .text("cgroup", MAX_SMALL_FILE_BYTES)
            .and_then(|text| parse::<ProcessCGroups>(&text))
            .and_then(|of_process| groups.read(&of_process));
        Some(memory)
    }

    /// Its share of resident pages (PSS). The kernel walks through its pages for it, and keeps
    /// its mappings from being changed meanwhile.
    #[must_use]
    pub fn proportional_bytes(&self) -> Option<u64> {
        let text = self.text("smaps_rollup", MAX_SMALL_FILE_BYTES)?;
        let maps = readable(parse_maps(&text))?;
        maps.0.first()?.extension.map.get("Pss").copied()
    }

    /// Sizes of the mappings in which allocators keep blocks; at the same price for each of its
    /// mappings.
    #[must_use]
    pub fn heap_mappings(&self) -> Option<HeapMappings> {
        heap_of_text(&self.text("smaps", MAX_SMAPS_BYTES)?)
    }

    /// Names in it may be no UTF-8. None if there is more than `max_bytes` of it.
    fn text(&self, name: &str, max_bytes: u64) -> Option<String> {
        // Else it is read in many small steps, as such files have no length.
        let mut bytes = Vec::with_capacity(USUAL_SMALL_FILE_BYTES);
        let file = self.process().ok()?.open_relative(name).ok()?;
        file.take(max_bytes).read_to_end(&mut bytes).ok()?;
        let is_whole = (bytes.len() as u64) < max_bytes;
        is_whole.then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn parse<T: FromBufRead>(text: &str) -> Option<T> {
    readable(T::from_buf_read(Cursor::new(text.as_bytes())))
}

fn readable<T>(parsed: ProcResult<T>) -> Option<T> {
    parsed.inspect_err(|error| log::debug!("cannot read a file of /proc: {error}")).ok()
}

/// None for a process that has given its memory back.
fn memory_of_status(text: &str) -> Option<ProcessMemory> {
    let status: Status = parse(text)?;
    let bytes = |kib: Option<u64>| kib.and_then(|kib| kib.checked_mul(KIB));
    let resident = ResidentMemory {
        anonymous_bytes: bytes(status.rssanon)?,
        file_bytes: bytes(status.rssfile)?,
        shared_bytes: bytes(status.rssshmem)?,
    };
    Some(ProcessMemory {
        resident: Some(resident),
        peak_resident_bytes: bytes(status.vmhwm),
        swapped_bytes: bytes(status.vmswap),
        ..ProcessMemory::default()
    })
}

fn heap_of_text(text: &str) -> Option<HeapMappings> {
    readable(parse_maps(text)).as_ref().map(heap_of)
}

fn heap_of(maps: &MemoryMaps) -> HeapMappings {
    let mut heap = HeapMappings::default();
    let is_own = MMPermissions::WRITE | MMPermissions::PRIVATE;
    for map in maps.0.iter().filter(|map| map.perms.contains(is_own)) {
        let sum = match &map.pathname {
            MMapPath::Heap => &mut heap.brk,
            MMapPath::Anonymous => &mut heap.anonymous,
            // Named by the program (prctl PR_SET_VMA_ANON_NAME).
            MMapPath::Other(name) if name.starts_with("anon:") => &mut heap.anonymous,
            _ => continue,
        };
        let MappedMemory { mapped_bytes, resident_bytes } = sum;
        let size = map.address.1.saturating_sub(map.address.0);
        *mapped_bytes = mapped_bytes.saturating_add(size);
        let resident = map.extension.map.get("Rss").copied().unwrap_or(0);
        *resident_bytes = resident_bytes.saturating_add(resident);
    }
    heap
}

/// Where the groups are seen that memory is charged to.
#[derive(Clone, Debug, Default)]
pub struct ControlGroups {
    /// Of version 1, with the memory controller.
    memory: Option<Hierarchy>,
    /// Of version 2.
    unified: Option<Hierarchy>,
}

impl ControlGroups {
    /// As memscope itself sees them.
    #[must_use]
    pub fn mounted() -> Self {
        match Hierarchy::mounted() {
            Ok(mounted) => Self::of(mounted),
            Err(error) => {
                log::debug!("the memory of control groups is not read: {error}");
                Self::default()
            }
        }
    }

    fn of(mounted: impl IntoIterator<Item = Hierarchy>) -> Self {
        let mut groups = Self::default();
        for hierarchy in mounted {
            if hierarchy.is_unified {
                groups.unified.get_or_insert(hierarchy);
            } else if hierarchy.has_memory {
                groups.memory.get_or_insert(hierarchy);
            }
        }
        groups
    }

    /// The group of a process that has the memory controller.
    fn read(&self, of_process: &ProcessCGroups) -> Option<ControlGroupMemory> {
        let has_memory = |controllers: &[String]| controllers.iter().any(|name| name == "memory");
        let old = of_process.0.iter().find(|group| has_memory(&group.controllers));
        let (group, hierarchy, file) = match old {
            Some(group) => (group, &self.memory, "memory.usage_in_bytes"),
            None => {
                let unified = of_process.0.iter().find(|group| group.hierarchy == 0)?;
                (unified, &self.unified, "memory.current")
            }
        };
        let folder = hierarchy.as_ref().and_then(|hierarchy| hierarchy.folder(&group.pathname));
        let bytes = folder.and_then(|folder| number_in(&folder.join(file)));
        Some(ControlGroupMemory { path: group.pathname.clone(), bytes })
    }
}

fn number_in(path: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_NUMBER_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests;
