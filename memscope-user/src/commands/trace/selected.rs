//! Processes that are traced by what they are: their program's name, their control group, or all.
//!
//! What begins later the eBPF side recognises by itself, as it executes a program. Here those are
//! found that run already, and those of control groups that the eBPF side cannot tell.

use std::collections::BTreeSet;

use anyhow::bail;
use rustc_hash::FxHashSet;

use super::session::Session;
use crate::{
    cli::TraceOptions,
    kernel::Selection,
    target::{ControlGroup, TargetProcess, all_pids},
};

/// How often processes are looked for that were begun while others were attached.
const ROUNDS: usize = 8;

/// What was asked for, looked up.
pub(super) struct Selected {
    comms: Vec<String>,
    excluded: Vec<String>,
    all: bool,
    groups: Vec<ControlGroup>,
    /// Those that could not be traced, and need not be tried again.
    refused: FxHashSet<(u32, u64)>,
}

impl Selected {
    /// Looks up the control groups.
    pub(super) fn find(options: &TraceOptions) -> anyhow::Result<Self> {
        let names = options.comm.len() + options.exclude.len();
        if names > Selection::MAX_COMMS || options.cgroup.len() > Selection::MAX_GROUPS {
            bail!(
                "no more than {} names of programs and {} control groups can be given",
                Selection::MAX_COMMS,
                Selection::MAX_GROUPS
            );
        }
        let groups = options.cgroup.iter().map(|name| ControlGroup::find(name));
        Ok(Self {
            comms: options.comm.clone(),
            excluded: options.exclude.clone(),
            all: options.all,
            groups: groups.collect::<Result<_, _>>()?,
            refused: FxHashSet::default(),
        })
    }

    /// The same, as the eBPF side needs it.
    pub(super) fn selection(&self) -> Selection {
        Selection {
            comms: self.comms.clone(),
            groups: self.groups.iter().filter_map(|group| group.unified).collect(),
            all: self.all,
            excluded: self.excluded.clone(),
        }
    }

    /// Attaches to all that run already; how many these are.
    pub(super) fn attach(&mut self, session: &mut Session) -> anyhow::Result<usize> {
        let mut found = 0;
        for _round in 0..ROUNDS {
            let members = self.members();
            let mut candidates = members.clone();
            if self.all || !self.comms.is_empty() {
                candidates.extend(all_pids()?);
            }
            let new = self.attach_once(session, &candidates, &members)?;
            if new == 0 {
                break;
            }
            found += new;
        }
        Ok(found)
    }

    /// Attaches to what has come into a control group of version 1 in the meantime.
    pub(super) fn look_again(&mut self, session: &mut Session) -> anyhow::Result<()> {
        if self.groups.iter().all(|group| group.unified.is_some()) {
            return Ok(());
        }
        let members = self.members();
        self.attach_once(session, &members, &members).map(drop)
    }

    /// In the order of their numbers.
    fn members(&self) -> BTreeSet<u32> {
        self.groups.iter().flat_map(ControlGroup::pids).collect()
    }

    fn attach_once(
        &mut self,
        session: &mut Session,
        pids: &BTreeSet<u32>,
        members: &BTreeSet<u32>,
    ) -> anyhow::Result<usize> {
        let mut attached = 0;
        for pid in pids.iter().copied().filter(|pid| *pid != std::process::id()) {
            if session.is_traced(pid) {
                continue;
            }
            // Kernel threads, and what has just ended.
            let Ok(process) = TargetProcess::open(pid) else { continue };
            let identity = (pid, process.start_ticks());
            if self.refused.contains(&identity) || !self.is_wanted(&process, members) {
                continue;
            }
            match session.attach_selected(process) {
                Ok(()) => attached += 1,
                Err(error) => {
                    log::debug!("process {pid} is not traced: {error:#}");
                    self.refused.insert(identity);
                }
            }
        }
        Ok(attached)
    }

    fn is_wanted(&self, process: &TargetProcess, members: &BTreeSet<u32>) -> bool {
        let comm = process.comm().unwrap_or_default();
        !self.excluded.contains(&comm)
            && !is_own_child(process)
            && (self.all || self.comms.contains(&comm) || members.contains(&process.pid()))
    }
}

/// Whether it is a child of memscope's own.
fn is_own_child(process: &TargetProcess) -> bool {
    process.parent_pid() == Some(std::process::id())
}
