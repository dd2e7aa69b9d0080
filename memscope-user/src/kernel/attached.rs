//! What is attached to the targets, and its coming and going in windows of time.

use std::{
    path::PathBuf,
    thread::{self, JoinHandle},
};

use super::{
    AttachRequest, Kernel, KernelError, OneTarget, load::OF_BLOCKS, probe_programs::CODE_CHANGED,
};
use crate::{model::ProbeId, target::PlannedProbe};

/// How many threads remove what is attached.
const CLOSING_THREADS: usize = 32;

/// What is attached goes when this is dropped.
type Link = Box<dyn Send>;

/// An [`AttachRequest`], to be met again.
struct Remembered {
    only: Option<OneTarget>,
    file: PathBuf,
    shown_path: String,
    probes: Vec<(ProbeId, PlannedProbe)>,
}

/// Everything that is attached.
pub(super) struct Attached {
    /// What tells of new code.
    lasting: Vec<Link>,
    /// What tells of blocks, and for which target it was attached, if for one.
    of_blocks: Vec<(Option<u16>, Link)>,
    /// None if nothing is taken off before the end.
    remembered: Option<Vec<Remembered>>,
    is_open: bool,
    /// Threads that take something off.
    closing: Vec<JoinHandle<()>>,
    /// Blocks that were drawn, and may be known to the programs still.
    drawn_before: u64,
}

impl Attached {
    pub(super) fn new(in_windows: bool) -> Self {
        Self {
            lasting: Vec::new(),
            of_blocks: Vec::new(),
            remembered: in_windows.then(Vec::new),
            is_open: true,
            closing: Vec::new(),
            drawn_before: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// What is taken off at the end only.
    pub(super) fn push_lasting(&mut self, link: Link) {
        self.lasting.push(link);
    }

    /// `target`: for which it is attached, if for one.
    pub(super) fn push(&mut self, program: &str, target: Option<u16>, link: Link) {
        if program == CODE_CHANGED {
            self.lasting.push(link);
        } else {
            self.of_blocks.push((target, link));
        }
    }

    pub(super) fn remember(&mut self, request: &AttachRequest<'_>) {
        if let Some(remembered) = &mut self.remembered {
            remembered.push(Remembered {
                only: request.only,
                file: request.file.to_owned(),
                shown_path: request.shown_path.to_owned(),
                probes: request.probes.to_vec(),
            });
        }
    }

    /// A target's probes are not needed again.
    pub(super) fn forget(&mut self, target: u16) {
        if let Some(remembered) = &mut self.remembered {
            let is_of = |request: &Remembered| request.only.is_some_and(|it| it.target == target);
            remembered.retain(|request| !is_of(request));
        }
    }

    /// Has links taken off by other threads: for each the kernel waits until nobody can be
    /// inside its program, and does so for several at once. Breakpoints go before it waits.
    fn take_off(&mut self, mut links: Vec<Link>) {
        self.closing.retain(|thread| !thread.is_finished());
        let count = links.len().div_ceil(CLOSING_THREADS).max(1);
        while !links.is_empty() {
            let some = links.split_off(links.len().saturating_sub(count));
            // Without another thread they are dropped here.
            match thread::Builder::new().spawn(move || drop(some)) {
                Ok(thread) => self.closing.push(thread),
                Err(error) => log::debug!("probes are removed one after the other: {error}"),
            }
        }
    }
}

impl Attached {
    /// Until everything that was taken off is gone.
    fn wait(&mut self) {
        for thread in self.closing.drain(..) {
            if thread.join().is_err() {
                log::debug!("a thread that removes probes has panicked");
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut links = std::mem::take(&mut self.lasting);
        links.extend(self.of_blocks.drain(..).map(|(_, link)| link));
        self.take_off(links);
        self.wait();
    }
}

impl Kernel {
    /// Takes off what tells of blocks, of all targets. Their recording must have been ended
    /// before.
    pub fn close_window(&mut self) {
        let links = self.attached.of_blocks.drain(..).map(|(_, link)| link).collect();
        self.attached.is_open = false;
        self.attached.take_off(links);
    }

    /// Attaches it again. `drawn` is how many blocks were drawn in the window before.
    ///
    /// # Errors
    ///
    /// If the kernel refuses all of it.
    pub fn open_window(&mut self, drawn: u64) -> Result<(), KernelError> {
        self.attached.drawn_before = self.attached.drawn_before.saturating_add(drawn);
        if self.begin_window_of_samples(self.attached.drawn_before)? {
            self.attached.drawn_before = 0;
        }
        let remembered = self.attached.remembered.take().unwrap_or_default();
        let mut result = Ok(());
        for request in &remembered {
            let linked = self.link(&request.as_request(), &OF_BLOCKS);
            // A process that ends while this is done is no obstacle to the others.
            result = result.and(linked);
        }
        self.attached.remembered = Some(remembered);
        if self.attached.of_blocks.is_empty() {
            result?;
        }
        // Even if there is nothing: what a target maps while the window lasts is probed in it.
        self.sample_work()?;
        self.attached.is_open = true;
        Ok(())
    }

    /// A target's probes are to be attached anew, as its first thread has ended, and with it the
    /// breakpoints. What was attached for it is taken off before, and that is waited for: it has
    /// no breakpoint any more, but runs at each that is made for others in the same process
    /// (`uprobe_prog_run` asks for the thread group, `uprobe_multi_link_filter` for the memory of
    /// that thread; kernel/trace/bpf_trace.c).
    pub fn forget_probes(&mut self, target: u16) {
        self.attached.forget(target);
        let all = std::mem::take(&mut self.attached.of_blocks);
        let (old, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(of, _)| *of == Some(target));
        self.attached.of_blocks = others;
        self.attached.take_off(old.into_iter().map(|(_, link)| link).collect());
        self.attached.wait();
    }
}

impl Remembered {
    fn as_request(&self) -> AttachRequest<'_> {
        AttachRequest {
            only: self.only,
            file: &self.file,
            shown_path: &self.shown_path,
            probes: &self.probes,
        }
    }
}
