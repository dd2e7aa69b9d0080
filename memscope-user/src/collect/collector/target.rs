//! What the collector knows of a target.

use std::collections::VecDeque;

use super::super::address_space::{AddressSpace, CodeRange};
use crate::model::{EndReason, Item, Process, ProcessEnd, ProcessId};

/// Images of a target that have ended and are known still, as what was missed of them can turn out later; the
/// oldest are forgotten.
pub(super) const MAX_EARLIER_IMAGES: usize = 16;

#[derive(Debug)]
pub(super) struct Target {
    pub(super) process: Process,
    pub(super) space: AddressSpace,
    /// Since when its address space is that of its present image.
    pub(super) image_since_ns: u64,
    /// What was seen is known to be old.
    pub(super) outdated: bool,
    pub(super) looked_at_ns: u64,
    pub(super) ended_ns: Option<u64>,
    /// Where its heap ends; none until it has asked, as every C library does first.
    pub(super) heap_end_avma: Option<u64>,
    /// Since when it runs and is recorded; none as long as it does not.
    pub(super) runs_since_ns: Option<u64>,
    /// Something of what it has mapped may be unknown, and it was not looked at since.
    pub(super) is_unsure: bool,
    /// Its images before, each with its beginning; the oldest first.
    pub(super) earlier: VecDeque<(u64, Process)>,
}

/// What happened to the memory of a process, and when.
#[derive(Debug)]
pub(super) enum Early {
    Mapped(u64, CodeRange),
    Replaced(u64),
}

impl Target {
    /// One that has mapped nothing yet, as far as is known.
    pub(super) fn new(process: Process, heap_end_avma: Option<u64>) -> Self {
        let begun_ns = process.observed_from_ns;
        Self {
            process,
            space: AddressSpace::default(),
            image_since_ns: begun_ns,
            outdated: true,
            looked_at_ns: begun_ns,
            ended_ns: None,
            heap_end_avma,
            runs_since_ns: None,
            is_unsure: false,
            earlier: VecDeque::new(),
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended_ns.is_some()
    }

    /// Code was mapped; whether that says something new of the process.
    pub(super) fn map(&mut self, time_ns: u64, range: CodeRange) -> bool {
        // That of a later image is for its own entry, once its exec has come.
        let is_of_image = time_ns < self.space.next_exec_ns() && time_ns >= self.image_since_ns;
        let is_new = is_of_image && note_allocator(&mut self.process, &range);
        self.space.map(time_ns, range);
        is_of_image && self.note_program() || is_new
    }

    /// A new image, which is so many execs later, begins with this number. The old one's end is to be told
    /// before.
    pub(super) fn exec(&mut self, id: ProcessId, execs: u16, time_ns: u64) {
        self.earlier.push_back((self.image_since_ns, self.process.clone()));
        let process = &mut self.process;
        process.id = id;
        process.image += u32::from(execs);
        process.observed_from_ns = time_ns;
        // The probes sit in files, so the new image is observed from its start as far
        // as it uses the same ones; if it does not, `probed_late` says so.
        process.from_start = true;
        process.probed_late = false;
        // Records of the old image have all come, as they share the ring with this one. Of the
        // new image the kernel may have told already.
        self.image_since_ns = self.space.exec(time_ns);
        let until_ns = self.space.next_exec_ns();
        self.process.allocators = self.space.allocators_of(self.image_since_ns, until_ns);
        self.process.exe.clear();
        self.heap_end_avma = None;
        self.note_program();
        self.outdated = true;
    }

    /// It has exited; what is to be told of it.
    pub(super) fn end(&mut self, time_ns: u64, status: Option<i32>) -> Item {
        self.ended_ns = Some(time_ns);
        let reason = EndReason::Exit(status);
        Item::ProcessEnd(ProcessEnd { process: self.process.id, time_ns, reason })
    }

    /// What it had mapped does not matter any more.
    pub(super) fn forget(&mut self) {
        self.earlier = VecDeque::new();
        self.space = AddressSpace::default();
    }

    /// Says which program its image is, if nobody has, by what was mapped first; whether that is
    /// new.
    fn note_program(&mut self) -> bool {
        if !self.process.exe.is_empty() {
            return false;
        }
        let until_ns = self.space.next_exec_ns();
        let first = self.space.first_file_of(self.image_since_ns, until_ns);
        self.process.exe = first.map(|module| module.path.clone()).unwrap_or_default();
        !self.process.exe.is_empty()
    }
}

/// Lists the allocator that a range belongs to; whether it is a new one. None is taken off the list
/// when it is unmapped, as blocks came from it all the same.
pub(super) fn note_allocator(process: &mut Process, range: &CodeRange) -> bool {
    let module = range.module.as_ref().filter(|_| range.is_allocator());
    let new = module.filter(|module| !process.allocators.contains(&module.path));
    process.allocators.extend(new.map(|module| module.path.clone()));
    new.is_some()
}
