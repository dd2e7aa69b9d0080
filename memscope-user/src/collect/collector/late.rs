//! Which images may have used an allocator before it was probed.
//!
//! Where files are probed in all processes, an image misses nothing of an allocator that was probed
//! before it was mapped. What is not probed when it is mapped is probed later, if ever; so the image is late, also
//! one that is over by then. When a file was probed is told by the attaching thread, what is mapped by
//! another one: of a file of which nothing was told yet it is not known until the end of the target.

use rustc_hash::FxHashMap;

use super::{
    Collector, ProcessView,
    target::{MAX_EARLIER_IMAGES, Target},
};
use crate::{
    collect::address_space::{Content, Use},
    model::{Item, ModuleId, Process},
};

/// How allocators are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// For each process by itself: one that begins has no probes yet, and an exec by another thread than the first takes
    /// them away. Who is late is told.
    Processes,
    /// In files, for all processes that have them mapped: they are there when a process begins, and stay
    /// whatever becomes of its threads.
    Files,
    /// Not at all: page faults are told, which children inherit.
    Nothing,
}

/// What is known of the probes.
#[derive(Debug)]
pub(super) struct Probes {
    pub(super) probing: Probing,
    /// Since when files are probed in all processes.
    files_since_ns: FxHashMap<ModuleId, u64>,
}

impl Probes {
    pub(super) fn new(probing: Probing) -> Self {
        Self { probing, files_since_ns: FxHashMap::default() }
    }
}

impl<V: ProcessView> Collector<V> {
    /// A file is probed in all processes, since a moment.
    pub fn file_probed(&mut self, module: ModuleId, since_ns: u64, mut give: impl FnMut(Item)) {
        self.known_probes.files_since_ns.entry(module).or_insert(since_ns);
        for target in self.targets.values_mut() {
            target.judge(&self.known_probes, 0, &mut give);
        }
    }

    /// A target runs and is recorded, since a moment. One that has begun by itself does so
    /// from its beginning.
    pub fn runs(&mut self, target: u16, since_ns: u64, mut give: impl FnMut(Item)) {
        if let Some(state) = self.targets.get_mut(&target) {
            state.runs_since_ns = Some(since_ns);
        }
        self.judge(target, &mut give);
    }

    /// An allocator was probed for a target after it could already use it.
    pub fn probed_late(&mut self, target: u16, mut give: impl FnMut(Item)) {
        if let Some(target) = self.targets.get_mut(&target) {
            mark(&mut target.process, &mut give);
        }
    }

    /// No file will be probed any more.
    pub fn finish(&mut self, mut give: impl FnMut(Item)) {
        for target in self.targets.values_mut() {
            if !target.has_ended() {
                target.judge_image(&self.known_probes, &mut give);
            }
            target.judge_whole(&self.known_probes, &mut give);
        }
    }

    /// Something new is known of what a target has mapped.
    pub(super) fn judge(&mut self, target: u16, give: &mut impl FnMut(Item)) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.judge(&self.known_probes, 0, give);
        }
    }
}

impl Target {
    /// Finds images that are late. About those that were over at `over_ns` nothing more will be told.
    fn judge(&mut self, probes: &Probes, over_ns: u64, give: &mut impl FnMut(Item)) {
        let Some(runs_since_ns) = self.recorded_since_ns(probes) else { return };
        let late = self.space.uses().filter_map(|used| {
            let Use { range, earliest_ns, seen_ns, until_ns } = used;
            let is_over = seen_ns.max(runs_since_ns) < over_ns;
            let probed_ns = match (range.content, &range.module) {
                (Content::Unknown, _) => u64::MAX,
                (Content::Allocator, Some(module)) => match probes.files_since_ns.get(&module.id) {
                    Some(since_ns) => *since_ns,
                    None if is_over => u64::MAX,
                    None => return None,
                },
                (Content::Allocator, None) | (Content::NoAllocator, _) => return None,
            };
            // If it was only seen the kernel may tell better when it was mapped.
            let mapped_ns = if is_over { earliest_ns } else { seen_ns };
            let used_ns = mapped_ns.max(runs_since_ns);
            (used_ns < until_ns && used_ns < probed_ns).then_some(used_ns)
        });
        for used_ns in late.collect::<Vec<u64>>() {
            self.mark_late(used_ns, give);
        }
    }

    /// Since when it can be late; none if it cannot.
    fn recorded_since_ns(&self, probes: &Probes) -> Option<u64> {
        self.runs_since_ns.filter(|_| probes.probing == Probing::Files)
    }

    /// The image that ran at a moment is late. One that is to come is judged when its exec has come, and
    /// one that is forgotten was before.
    fn mark_late(&mut self, time_ns: u64, give: &mut impl FnMut(Item)) {
        let process = if time_ns >= self.space.next_exec_ns() {
            return;
        } else if time_ns >= self.image_since_ns {
            Some(&mut self.process)
        } else {
            let mut earlier = self.earlier.iter_mut().rev();
            earlier.find(|(since_ns, _)| *since_ns <= time_ns).map(|(_, process)| process)
        };
        if let Some(process) = process {
            mark(process, give);
        }
    }

    /// The present image is over: if it is not known what it had mapped, it may have been an allocator.
    pub(super) fn judge_image(&mut self, probes: &Probes, give: &mut impl FnMut(Item)) {
        let until_ns = self.space.next_exec_ns();
        let is_known = self.space.has_mapped(self.image_since_ns, until_ns) && !self.is_unsure;
        if !is_known && self.recorded_since_ns(probes).is_some() {
            mark(&mut self.process, give);
        }
    }

    /// An exec has come: what its image has mapped is known in part, and the oldest image is given up.
    pub(super) fn judge_exec(&mut self, probes: &Probes, give: &mut impl FnMut(Item)) {
        let is_one_too_many = self.earlier.len() > MAX_EARLIER_IMAGES;
        let next_ns = self.earlier.get(1).map_or(self.image_since_ns, |(since_ns, _)| *since_ns);
        self.judge(probes, if is_one_too_many { next_ns } else { 0 }, give);
        if is_one_too_many {
            self.earlier.pop_front();
        }
    }

    /// It has ended, and all is known of it that will be.
    pub(super) fn judge_whole(&mut self, probes: &Probes, give: &mut impl FnMut(Item)) {
        self.judge(probes, u64::MAX, give);
    }
}

/// Says that an image is late, unless that was said before.
fn mark(process: &mut Process, give: &mut impl FnMut(Item)) {
    if !process.probed_late {
        process.probed_late = true;
        give(Item::Process(process.clone()));
    }
}
