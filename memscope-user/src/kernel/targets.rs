//! The control blocks of targets, which of them a process is, and what becomes a target.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use memmap2::MmapMut;
use memscope_common::control::{
    COMM_BYTES, COMM_EXCLUDED, COMM_SELECTED, EXCLUDE_COMM, Group, MAX_GROUPS, MAX_TARGETS,
    NUMBER_OF_TARGETS, PROCESS_BORROWS, SELECT_ALL, SELECT_COMM, SELECT_GROUP, Target,
};

use super::{
    Kernel, KernelError,
    plain::Plain,
    sys,
    tables::{array_data, map_memory},
    take_map,
};

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h): only if there is none yet.
const ONLY_NEW: u64 = 1;

/// What programs are traced from their exec on, without anybody naming their process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Programs that are called so.
    pub comms: Vec<String>,
    /// Control groups (version 2): their numbers, and how many groups are above each.
    pub groups: Vec<(u64, u32)>,
    /// Whether all are.
    pub all: bool,
    /// Programs that are not, whatever else says so.
    pub excluded: Vec<String>,
}

impl Selection {
    pub(super) fn bits(&self) -> u32 {
        let bit = |bit: u32, is_set: bool| if is_set { bit } else { 0 };
        bit(SELECT_COMM, !self.comms.is_empty())
            | bit(SELECT_GROUP, !self.groups.is_empty())
            | bit(SELECT_ALL, self.all)
            | bit(EXCLUDE_COMM, !self.excluded.is_empty())
    }

    /// Most control groups.
    pub const MAX_GROUPS: usize = MAX_GROUPS;
    /// Most names.
    pub const MAX_COMMS: usize = 256;
    /// Longest name: the kernel cuts longer ones.
    pub const MAX_COMM_BYTES: usize = COMM_BYTES - 1;

    pub(super) fn tell(&self, ebpf: &mut Ebpf) -> Result<(), KernelError> {
        let mut comms: HashMap<_, [u8; COMM_BYTES], u32> = take_map(ebpf, "COMMS")?;
        let selected = self.comms.iter().map(|comm| (comm, COMM_SELECTED));
        let excluded = self.excluded.iter().map(|comm| (comm, COMM_EXCLUDED));
        for (comm, means) in selected.chain(excluded) {
            comms
                .insert(comm_bytes(comm), means, 0)
                .map_err(|source| KernelError::Map { map: "COMMS", source })?;
        }
        let mut groups: Array<_, Plain<Group>> = take_map(ebpf, "GROUPS")?;
        for (index, (id, level)) in (0..).zip(&self.groups) {
            groups
                .set(index, Plain(Group { id: *id, level: *level, padding: 0 }), 0)
                .map_err(|source| KernelError::Map { map: "GROUPS", source })?;
        }
        Ok(())
    }
}

/// A name as the kernel has it.
fn comm_bytes(comm: &str) -> [u8; COMM_BYTES] {
    let mut bytes = [0; COMM_BYTES];
    let length = comm.len().min(Selection::MAX_COMM_BYTES);
    for (place, byte) in bytes.iter_mut().zip(comm.bytes().take(length)) {
        *place = byte;
    }
    bytes
}

/// How many targets there have been. The programs count them as well.
#[derive(Clone)]
pub(super) struct Given(Arc<(MapData, MmapMut)>);

impl Given {
    fn number(&self) -> Option<&AtomicU64> {
        let at = NUMBER_OF_TARGETS as usize * size_of::<u64>();
        let word = self.0.1.get(at..at + size_of::<u64>())?;
        // SAFETY: an aligned word of memory that is shared with the programs, which change it by
        // atomic instructions only, and that lives as long as `self`.
        Some(unsafe { &*word.as_ptr().cast::<AtomicU64>() })
    }

    pub(super) fn count(&self) -> u32 {
        let given = self.number().map_or(0, |number| number.load(Ordering::Acquire));
        given.min(MAX_TARGETS.into()) as u32
    }

    fn next(&self) -> Option<u16> {
        let given = self.number()?.fetch_add(1, Ordering::AcqRel);
        (given < MAX_TARGETS.into()).then_some(given as u16)
    }
}

/// What the programs read of targets.
pub(super) struct Targets {
    blocks: MmapMut,
    new: MmapMut,
    given: Given,
    processes: HashMap<MapData, u32, u32>,
    // The maps behind the memory above.
    _maps: [MapData; 2],
}

impl Targets {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let (blocks, new) = (array_data(ebpf, "TARGETS")?, array_data(ebpf, "NEW_TARGET")?);
        let numbers = array_data(ebpf, "NUMBERS")?;
        let block_bytes = MAX_TARGETS as usize * size_of::<Target>();
        let number_bytes = (NUMBER_OF_TARGETS as usize + 1) * size_of::<u64>();
        let number_memory = map_memory("NUMBERS", &numbers, number_bytes)?;
        Ok(Self {
            blocks: map_memory("TARGETS", &blocks, block_bytes)?,
            new: map_memory("NEW_TARGET", &new, size_of::<Target>())?,
            given: Given(Arc::new((numbers, number_memory))),
            processes: take_map(ebpf, "PROCESSES")?,
            _maps: [blocks, new],
        })
    }

    pub(super) fn given(&self) -> &Given {
        &self.given
    }

    fn change(&mut self, target: u16, change: impl FnOnce(&mut Target)) {
        change_block(&mut self.blocks, target.into(), change);
    }

    fn end_all(&mut self) {
        let end = |target: &mut Target| {
            target.enabled = 0;
            target.is_over = 1;
        };
        change_block(&mut self.new, 0, end);
        for target in 0..self.given.count() as usize {
            change_block(&mut self.blocks, target, end);
        }
    }
}

fn change_block(memory: &mut MmapMut, index: usize, change: impl FnOnce(&mut Target)) {
    let Some(place) =
        memory.get_mut(index * size_of::<Target>()..(index + 1) * size_of::<Target>())
    else {
        return;
    };
    let place = place.as_mut_ptr().cast::<Target>();
    // SAFETY: one of the aligned blocks of the map's memory, of plain integers. The programs read
    // them at any time, a word at once, and write only those of indices that they give themselves.
    unsafe {
        let mut block = place.read_volatile();
        change(&mut block);
        place.write_volatile(block);
    }
}

impl Kernel {
    /// An index for another target; none if there were too many.
    pub fn new_target(&mut self) -> Option<u16> {
        self.targets.given.next()
    }

    /// From now on what a process does is told as a target's. False if it is traced already.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn watch_process(&mut self, target: u16, pid: u32) -> Result<bool, KernelError> {
        match self.targets.processes.insert(pid, u32::from(target), ONLY_NEW) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(source) => Err(KernelError::Map { map: "PROCESSES", source }),
        }
    }

    /// Which process a number stands for, if it is traced: its target, and whether it runs in the
    /// memory of that, which is then another process.
    #[must_use]
    pub fn target_of(&self, pid: u32) -> Option<(u16, bool)> {
        let word = self.targets.processes.get(&pid, 0).ok()?;
        Some((word as u16, word & PROCESS_BORROWS != 0))
    }

    /// A process has ended: what another process of the same number does is not its own.
    /// Its probes stay until all are removed, because the kernel waits for about a tenth
    /// of a second for each (`synchronize_rcu_tasks_trace`), and nothing hits them.
    pub fn forget_process(&mut self, target: u16, pid: u32) {
        self.attached.forget(target);
        self.tables.forget(target);
        // The programs do it themselves where the kernel tells them; the number can stand for
        // another process by now.
        if self.target_of(pid) == Some((target, false))
            && let Err(error) = self.targets.processes.remove(&pid)
        {
            log::debug!("process {pid} was not watched: {error}");
        }
    }

    /// Begins or ends recording of a target.
    pub fn set_enabled(&mut self, target: u16, enabled: bool) {
        self.targets.change(target, |target| target.enabled = enabled.into());
    }

    /// Begins to record programs that become targets by what they are.
    pub fn enable_new(&mut self) {
        change_block(&mut self.targets.new, 0, |target| target.enabled = 1);
    }

    /// Ends recording of all targets for good, also of those that only the programs know of. After
    /// [`Self::settle`] nothing is recorded but the ends of reallocations that are under way.
    pub fn end_all(&mut self) {
        self.targets.end_all();
    }

    /// Waits until the programs that run now have written what they are to write.
    pub fn settle(&mut self) {
        sys::wait_for_programs();
        // One of them may have begun a target, as the copy of one that was recorded still.
        self.targets.end_all();
        sys::wait_for_programs();
    }

    /// Tells whether all of a target's blocks come from one module.
    pub fn set_single_allocator(&mut self, target: u16, single: bool) {
        self.targets.change(target, |target| target.single_allocator = single.into());
    }

    /// Tells where a target's dynamic loader says what it is about to do.
    pub fn set_loader_state(&mut self, target: u16, avma: u64) {
        self.targets.change(target, |target| target.loader_state_avma = avma);
    }

    /// Tells that somebody sees to it that a target that was stopped goes on.
    pub fn let_stop(&mut self, target: u16) {
        self.targets.change(target, |target| target.may_stop = 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(&comm_bytes("redis-server"), b"redis-server\0\0\0\0");
        assert_eq!(&comm_bytes("a-name-that-is-too-long"), b"a-name-that-is-\0");
    }

    #[test]
    fn a_selection_says_what_it_has() {
        let comms = vec!["a".to_owned()];
        assert_eq!(Selection::default().bits(), 0);
        let all = Selection { all: true, excluded: comms.clone(), ..Selection::default() };
        assert_eq!(all.bits(), SELECT_ALL | EXCLUDE_COMM);
        let some = Selection { comms, groups: vec![(1, 0)], ..Selection::default() };
        assert_eq!(some.bits(), SELECT_COMM | SELECT_GROUP);
    }
}
