//! The files mapped into the targets: each is looked into once, and held open so that
//! it can be probed and symbolized even when its path is gone.

use std::{
    collections::VecDeque,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc::UnboundedSender;

use super::{ahead::ReadFile, copies::FrameInfos, monotonic_ns};
use crate::{
    collect::{CodeRange, Content, CopiedStack, Observation, ProcessView, WalkedCopy},
    kernel::{AddressSpaceEvent, MmapEvent},
    model::{AllocatorId, Module, ModuleId, OwnerEvidence, Probe, ProbeId, ProbeOwner},
    symbols::SymbolSource,
    target::{
        CodeMapping, CodeSegment, Descriptions, FileIdentity, FunctionKind, MappedFile,
        ModuleFacts, Owner, PlannedProbe, Search, SiteRules, TargetError, TargetProcess,
        other_root, plan_probes, unseen_functions,
    },
};

/// Most files of which the draining thread remembers that it has opened them; beyond, they are
/// opened again.
const MAX_REMEMBERED_FILES: usize = 1 << 16;

/// Where files are that have no allocator, and are not opened without need.
const DEVICES: &str = "/dev/";

/// A mapped file.
#[derive(Debug)]
pub(super) struct LoadedModule {
    pub(super) module: Arc<Module>,
    /// None for code that the kernel provides.
    pub(super) file: Option<File>,
    /// What to attach, with the ids that events will refer to.
    pub(super) probes: Vec<(ProbeId, PlannedProbe)>,
    code: Vec<CodeSegment>,
    loader_state_svma: Option<u64>,
    identity: Option<FileIdentity>,
    /// See [`other_root`].
    root: Option<File>,
}

impl LoadedModule {
    /// What to add to an address of the file's own numbering to get that of a process
    /// that has this part of it mapped.
    pub(super) fn load_bias(&self, mapping: &CodeMapping) -> Option<u64> {
        self.load_bias_at(mapping.start_avma, mapping.end_avma, mapping.file_offset)
    }

    /// As [`Self::load_bias`], of what is mapped between two addresses.
    pub(super) fn load_bias_at(
        &self,
        start_avma: u64,
        end_avma: u64,
        file_offset: u64,
    ) -> Option<u64> {
        if self.file.is_none() {
            // The kernel's own image is linked at 0 and mapped whole.
            return (file_offset == 0).then_some(start_avma);
        }
        // A mapping begins at a page, where its segment may begin within it.
        let end_file_offset = file_offset.checked_add(end_avma.checked_sub(start_avma)?)?;
        let segment = self.code.iter().find(|segment| {
            segment.contains_file_offset(file_offset)
                || (file_offset..end_file_offset).contains(&segment.file_offset)
        })?;
        let start_svma =
            segment.start_svma.wrapping_add(file_offset).wrapping_sub(segment.file_offset);
        Some(start_avma.wrapping_sub(start_svma))
    }

    /// Where a process's loader says what it does, if this is its loader.
    pub(super) fn loader_state_avma(&self, mapping: &CodeMapping) -> Option<u64> {
        Some(self.loader_state_svma?.wrapping_add(self.load_bias(mapping)?))
    }

    /// Whether it is this file.
    pub(super) fn is_file(&self, identity: Option<FileIdentity>) -> bool {
        identity.is_some() && self.identity == identity
    }

    /// Whether it is a file that could not be opened by any way to it; another process may have a better one.
    pub(super) fn is_unseen(&self) -> bool {
        self.file.is_none() && self.identity.is_some()
    }

    fn content(&self) -> Content {
        if self.is_unseen() && !self.module.path.starts_with(DEVICES) {
            Content::Unknown
        } else if self.is_allocator() {
            Content::Allocator
        } else {
            Content::NoAllocator
        }
    }

    /// Whether blocks come from it.
    pub(super) fn is_allocator(&self) -> bool {
        self.probes.iter().any(|(_, probe)| probe.function.kind == FunctionKind::Allocates)
    }

    /// What the recording says of the probes that events refer to.
    pub(super) fn definitions(&self) -> impl Iterator<Item = (Probe, Option<ProbeOwner>)> {
        let of_blocks = self.probes.iter().filter(|(_, probe)| probe.function.kind.is_of_blocks());
        of_blocks.map(|(id, planned)| {
            let probe = Probe {
                id: *id,
                function: planned.function.name.to_owned(),
                module: self.module.id,
                file_offset: planned.file_offset,
                emulated: planned.site.emulated,
            };
            (probe, owner_of(*id, planned))
        })
    }
}

fn owner_of(probe: ProbeId, planned: &PlannedProbe) -> Option<ProbeOwner> {
    let known_by = match planned.owner? {
        Owner::Module => OwnerEvidence::Module,
        Owner::Described(_) => OwnerEvidence::Description,
    };
    let allocator = AllocatorId(planned.allocator.into());
    (planned.allocator != 0).then_some(ProbeOwner { probe, allocator, known_by })
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ModuleKey {
    File(FileIdentity),
    Kernel(String),
}

/// All files met so far. Shared by the thread that attaches and the one that collects;
/// neither asks it on the path of events.
#[derive(Debug)]
pub(super) struct ModuleCache {
    rules: SiteRules,
    by_key: FxHashMap<ModuleKey, Arc<LoadedModule>>,
    by_id: Vec<Arc<LoadedModule>>,
    probe_count: u16,
    allocator_count: u8,
    /// Those that were described, by their names.
    described_allocators: FxHashMap<&'static str, u8>,
    descriptions: Descriptions,
    /// Which of them were found in a file.
    described: FxHashSet<usize>,
    /// Files that were looked into before they were asked for.
    ahead: FxHashMap<FileIdentity, ReadFile>,
}

/// A cache that several threads hold.
pub(super) type SharedModules = Arc<Mutex<ModuleCache>>;

/// A panic in another thread cannot leave the cache half changed: entries are only added.
pub(super) fn lock(modules: &SharedModules) -> MutexGuard<'_, ModuleCache> {
    modules.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ModuleCache {
    pub(super) fn new(rules: SiteRules) -> Self {
        Self {
            rules,
            by_key: FxHashMap::default(),
            by_id: Vec::new(),
            probe_count: 0,
            allocator_count: 0,
            described_allocators: FxHashMap::default(),
            descriptions: Descriptions::default(),
            described: FxHashSet::default(),
            ahead: FxHashMap::default(),
        }
    }

    /// To be called before a file is looked into. `ahead`: files that were, with these descriptions.
    pub(super) fn describe(
        &mut self,
        descriptions: Descriptions,
        ahead: FxHashMap<FileIdentity, ReadFile>,
    ) {
        self.descriptions = descriptions;
        self.ahead = ahead;
    }

    /// Closes what was looked into and never asked for.
    pub(super) fn forget_ahead(&mut self) {
        self.ahead = FxHashMap::default();
    }

    /// What was looked for in a process's program in vain, and where.
    pub(super) fn explain(&self, process: &TargetProcess) -> String {
        let (Some(path), Ok(file)) = (process.exe(), process.open_exe()) else {
            return "its program cannot be opened".to_owned();
        };
        let root = other_root(process.pid());
        let search = Search { path: &path, root: root.as_ref(), descriptions: &self.descriptions };
        format!("{path}: {}", search.explain(&file))
    }

    /// Functions that were described and are in none of the files: their names, and where they
    /// were described.
    pub(super) fn not_found(&self) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.descriptions.all();
        missing
            .filter(|(number, ..)| !self.described.contains(number))
            .map(|(_, name, origin)| (name, origin))
    }

    /// What is behind a mapping; none for memory without a file.
    pub(super) fn load(
        &mut self,
        process: &TargetProcess,
        mapping: &CodeMapping,
    ) -> Option<Arc<LoadedModule>> {
        self.load_opened(process.pid(), mapping, || open_file(process, mapping))
    }

    /// As [`Self::load`]; `open` gives the file if it is needed.
    fn load_opened(
        &mut self,
        pid: u32,
        mapping: &CodeMapping,
        open: impl FnOnce() -> Option<File>,
    ) -> Option<Arc<LoadedModule>> {
        let (key, path, identity) = match &mapping.file {
            MappedFile::File { identity, path } => {
                (ModuleKey::File(*identity), path.as_str(), Some(*identity))
            }
            MappedFile::Kernel(name) => (ModuleKey::Kernel(name.clone()), name.as_str(), None),
            MappedFile::Anonymous => return None,
        };
        let known = match self.by_key.get(&key).cloned() {
            Some(known) if !known.is_unseen() => return Some(known),
            known => known,
        };
        let root = other_root(pid);
        let search = Search { path, root: root.as_ref(), descriptions: &self.descriptions };
        let ahead = identity.and_then(|identity| self.ahead.remove(&identity));
        let (file, facts) = ahead.or_else(|| Some(look_into(open()?, &search))).unzip();
        if known.is_some() && file.is_none() {
            return known;
        }
        let facts = match facts {
            Some(Ok(facts)) => facts,
            Some(Err(error)) => {
                log::debug!("nothing known of {path}: {error}");
                ModuleFacts::default()
            }
            None => ModuleFacts::default(),
        };
        self.described.extend(facts.described.iter().map(|found| found.description));
        for (function, obstacle) in unseen_functions(&facts) {
            log::warn!("blocks of {function} in {path} are not recorded: {obstacle}");
        }
        let module = Module {
            id: ModuleId(self.by_id.len() as u32),
            path: path.to_owned(),
            build_id: facts.build_id.clone(),
        };
        let loaded = Arc::new(LoadedModule {
            module: Arc::new(module),
            file,
            probes: self.number(plan_probes(&facts, self.rules)),
            code: facts.code,
            loader_state_svma: facts.loader_state_svma,
            identity,
            root,
        });
        self.by_id.push(Arc::clone(&loaded));
        self.by_key.insert(key, Arc::clone(&loaded));
        Some(loaded)
    }

    /// Probe ids start at 1 and fit the 16 bits that records have for them; what comes
    /// after 65,535 functions is not probed.
    fn number(&mut self, planned: Vec<PlannedProbe>) -> Vec<(ProbeId, PlannedProbe)> {
        let mut of_module = None;
        planned
            .into_iter()
            .map_while(|probe| {
                self.probe_count = self.probe_count.checked_add(1)?;
                let allocator = self.allocator_of(&probe, &mut of_module);
                Some((ProbeId(self.probe_count.into()), PlannedProbe { allocator, ..probe }))
            })
            .collect()
    }

    /// Allocators have numbers from 1 that fit the eight bits that cookies have for them; what comes
    /// after 255 of them is not known from others.
    fn allocator_of(&mut self, probe: &PlannedProbe, of_module: &mut Option<u8>) -> u8 {
        let known = match probe.owner {
            None => return 0,
            Some(Owner::Module) => *of_module,
            Some(Owner::Described(name)) => self.described_allocators.get(name).copied(),
        };
        if let Some(known) = known {
            return known;
        }
        let number = self.allocator_count.checked_add(1).unwrap_or(0);
        self.allocator_count = self.allocator_count.max(number);
        match probe.owner {
            Some(Owner::Described(name)) => {
                self.described_allocators.insert(name, number);
            }
            _ => *of_module = Some(number),
        }
        number
    }

    /// A module that was loaded.
    pub(super) fn module(&self, id: ModuleId) -> Option<Arc<LoadedModule>> {
        self.by_id.get(id.index()).cloned()
    }

    /// Where the names in a module come from; none for what has no file.
    pub(super) fn symbol_source(&self, module: ModuleId) -> Option<SymbolSource> {
        let module = self.by_id.get(module.index())?;
        let file = module.file.as_ref()?.try_clone().ok()?;
        let root = module.root.as_ref().and_then(|root| root.try_clone().ok());
        let path = PathBuf::from(&module.module.path);
        Some(SymbolSource::new(file, path, module.code.clone(), root))
    }
}

/// Looks into a file.
pub(super) fn look_into(file: File, search: &Search<'_>) -> ReadFile {
    let facts = ModuleFacts::search(&file, search);
    (file, facts)
}

/// The file behind a mapping, if there is one and it can be opened.
pub(super) fn open_file(process: &TargetProcess, mapping: &CodeMapping) -> Option<File> {
    let MappedFile::File { path, .. } = &mapping.file else { return None };
    process
        .open_mapped(mapping)
        .inspect_err(|error| {
            log::debug!("cannot open {path}, mapped by process {}: {error}", process.pid());
        })
        .ok()
}

/// The modules of a process in which there is something to probe, each once.
pub(super) fn probed_modules_of(
    modules: &SharedModules,
    process: &TargetProcess,
    mappings: &[CodeMapping],
) -> Vec<Arc<LoadedModule>> {
    let mut cache = lock(modules);
    let mut probed: Vec<Arc<LoadedModule>> = Vec::new();
    for mapping in mappings {
        if let Some(module) = cache.load(process, mapping)
            && !module.probes.is_empty()
            && !probed.iter().any(|known| Arc::ptr_eq(known, &module))
        {
            probed.push(module);
        }
    }
    probed
}

/// The targets of a trace.
#[derive(Debug, Default)]
pub(super) struct Processes {
    by_target: FxHashMap<u16, Arc<TargetProcess>>,
    by_pid: FxHashMap<u32, u16>,
}

/// The targets, as several threads see them.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedProcesses(Arc<Mutex<Processes>>);

impl SharedProcesses {
    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, target: u16) -> Option<Arc<TargetProcess>> {
        self.lock().by_target.get(&target).cloned()
    }

    pub(super) fn insert(&self, target: u16, process: Arc<TargetProcess>) {
        let mut processes = self.lock();
        processes.by_pid.insert(process.pid(), target);
        processes.by_target.insert(target, process);
    }

    /// Of a target that has ended.
    pub(super) fn remove(&self, target: u16) {
        let mut processes = self.lock();
        let Some(process) = processes.by_target.remove(&target) else { return };
        if processes.by_pid.get(&process.pid()) == Some(&target) {
            processes.by_pid.remove(&process.pid());
        }
    }

    fn by_pid(&self, pid: u32) -> Option<(u16, Arc<TargetProcess>)> {
        let processes = self.lock();
        let target = *processes.by_pid.get(&pid)?;
        Some((target, Arc::clone(processes.by_target.get(&target)?)))
    }
}

/// The collector's eyes: looks at a target and tells the attaching thread when there
/// are allocators that were not there before.
#[derive(Debug)]
pub(super) struct TargetView {
    pub(super) modules: SharedModules,
    pub(super) processes: SharedProcesses,
    pub(super) notices: UnboundedSender<Notice>,
    /// What copied stacks are walked by.
    pub(super) frame_infos: FrameInfos,
}

/// What the collector has noticed and the attaching thread must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// There are allocators in this target, perhaps new ones.
    Allocators(u16),
    /// This target has mapped this allocator. It may have ended since.
    AllocatorMapped(u16, ModuleId),
    /// The probes of this target are gone.
    ProbesGone(u16),
    /// Code of this target has come or gone, or it executes another program.
    CodeChanged(u16),
    /// The kernel side follows a process by itself.
    Begun {
        /// The target.
        target: u16,
        /// The target that has begun it, if one has.
        parent: Option<u16>,
        /// Whether it is a copy of that.
        is_copy: bool,
    },
    /// This target has ended.
    Ended(u16),
}

impl TargetView {
    /// What a target has mapped, to the collector. An allocator is told to the attaching thread.
    pub(super) fn code_range_of_event(&self, mapped: TargetMapping) -> CodeRange {
        let TargetMapping { target, mapping, file, .. } = mapped;
        let pid = self.processes.get(target).map_or(0, |process| process.pid());
        let loaded = lock(&self.modules).load_opened(pid, &mapping, || file);
        let range = code_range(&mapping, loaded);
        if let Some(module) = range.module.as_ref().filter(|_| range.is_allocator()) {
            self.notice(Notice::AllocatorMapped(target, module.id));
        }
        range
    }

    fn notice(&self, notice: Notice) {
        if self.notices.send(notice).is_err() {
            // The trace is ending: nothing is attached any more.
            log::debug!("after the end: {notice:?}");
        }
    }
}

/// What a process with these mappings looks like to the collector.
pub(super) fn observation_of(
    modules: &SharedModules,
    process: &TargetProcess,
    seen: &SeenMappings,
) -> Observation {
    let mut cache = lock(modules);
    let range = |mapping| code_range(mapping, cache.load(process, mapping));
    Observation {
        code: seen.mappings.iter().map(range).collect(),
        comm: process.comm().unwrap_or_default(),
        exe: process.exe().unwrap_or_default(),
        begun_ns: seen.begun_ns,
        done_ns: seen.done_ns,
    }
}

fn code_range(mapping: &CodeMapping, loaded: Option<Arc<LoadedModule>>) -> CodeRange {
    CodeRange {
        start_avma: mapping.start_avma,
        end_avma: mapping.end_avma,
        file_offset: mapping.file_offset,
        content: loaded.as_ref().map_or(Content::NoAllocator, |loaded| loaded.content()),
        module: loaded.map(|loaded| Arc::clone(&loaded.module)),
    }
}

/// The executable memory of a process, and when it was looked at.
#[derive(Debug)]
pub(super) struct SeenMappings {
    pub(super) mappings: Vec<CodeMapping>,
    /// `CLOCK_MONOTONIC` before and after.
    begun_ns: u64,
    done_ns: u64,
}

/// Looks at the executable memory of a process.
pub(super) fn mappings_of(process: &TargetProcess) -> Result<SeenMappings, TargetError> {
    let begun_ns = monotonic_ns();
    let mappings = process.code_mappings()?;
    Ok(SeenMappings { mappings, begun_ns, done_ns: monotonic_ns() })
}

/// What a target has mapped, as the kernel told it.
#[derive(Debug)]
pub(super) struct TargetMapping {
    pub(super) target: u16,
    pub(super) time_ns: u64,
    pub(super) mapping: CodeMapping,
    /// The file, opened as soon as possible; none if somebody has it already.
    file: Option<File>,
}

/// What has happened to the address space of a target, as the kernel told it.
#[derive(Debug)]
pub(super) enum TargetEvent {
    Mapped(TargetMapping),
    Replaced { target: u16, time_ns: u64 },
}

impl TargetEvent {
    pub(super) fn time_ns(&self) -> u64 {
        match self {
            Self::Mapped(mapped) => mapped.time_ns,
            Self::Replaced { time_ns, .. } => *time_ns,
        }
    }
}

/// Finds those among the kernel's reports that concern targets, and holds the files they
/// speak of before they are gone.
#[derive(Debug)]
pub(super) struct EventFilter {
    processes: SharedProcesses,
    /// Files that were opened here before, and are in the hands of the collecting thread.
    opened: FxHashSet<FileIdentity>,
    /// What concerned no target: a process can become one by the exec that it is about.
    unclaimed: VecDeque<AddressSpaceEvent>,
    /// Whether that can be.
    keeps_unclaimed: bool,
}

/// Most of what concerned no target that is kept.
const MAX_UNCLAIMED: usize = 4096;

impl EventFilter {
    pub(super) fn new(processes: SharedProcesses, keeps_unclaimed: bool) -> Self {
        Self {
            processes,
            opened: FxHashSet::default(),
            unclaimed: VecDeque::new(),
            keeps_unclaimed,
        }
    }

    /// A process has become a target: gives what was told of it before, since a moment. What is older is of a process that
    /// had the number before it.
    pub(super) fn claim(&mut self, pid: u32, since_ns: u64, mut give: impl FnMut(TargetEvent)) {
        let (of_process, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.unclaimed).into_iter().partition(|event| event.pid() == pid);
        self.unclaimed = others;
        for event in of_process.into_iter().filter(|event| event.time_ns() >= since_ns) {
            self.take(event, &mut give);
        }
    }

    /// What of a report concerns targets. A number that has been given to another process since a
    /// target ended is taken for the target's, which can do no harm: all records of
    /// that are from before.
    pub(super) fn take(&mut self, event: AddressSpaceEvent, mut give: impl FnMut(TargetEvent)) {
        let Some((target, process)) = self.processes.by_pid(event.pid()) else {
            if self.keeps_unclaimed {
                if self.unclaimed.len() == MAX_UNCLAIMED {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back(event);
            }
            return;
        };
        give(match &event {
            AddressSpaceEvent::Mapped(event) => {
                let mapping = mapping_of_event(event);
                let file = self.open_once(&process, &mapping);
                let time_ns = event.time_ns;
                TargetEvent::Mapped(TargetMapping { target, time_ns, mapping, file })
            }
            AddressSpaceEvent::Replaced { time_ns, .. } => {
                TargetEvent::Replaced { target, time_ns: *time_ns }
            }
        });
    }

    fn open_once(&mut self, process: &TargetProcess, mapping: &CodeMapping) -> Option<File> {
        let MappedFile::File { identity, .. } = &mapping.file else { return None };
        if self.opened.contains(identity) {
            return None;
        }
        let file = open_file(process, mapping)?;
        if self.opened.len() == MAX_REMEMBERED_FILES {
            self.opened.clear();
        }
        self.opened.insert(*identity);
        Some(file)
    }
}

/// The mapping that an event speaks of, in the words of `/proc/PID/maps`.
fn mapping_of_event(event: &MmapEvent) -> CodeMapping {
    let path = event.path.clone();
    let file = match (event.identity, path) {
        (Some(identity), path) => MappedFile::File { identity, path: path.unwrap_or_default() },
        (None, Some(name)) if name.starts_with("[v") => MappedFile::Kernel(name),
        // Stack and heap are memory like other, if code is in them.
        (None, _) => MappedFile::Anonymous,
    };
    CodeMapping {
        start_avma: event.start_avma,
        end_avma: event.start_avma.saturating_add(event.length_bytes),
        file_offset: event.file_offset,
        file,
    }
}

impl ProcessView for TargetView {
    fn observe(&mut self, target: u16) -> Option<Observation> {
        let process = self.processes.get(target)?;
        let seen = mappings_of(&process).ok()?;
        let observation = observation_of(&self.modules, &process, &seen);
        if observation.code.iter().any(CodeRange::is_allocator) {
            self.notice(Notice::Allocators(target));
        }
        Some(observation)
    }

    fn start_ticks(&self, target: u16) -> Option<u64> {
        self.processes.get(target).map(|process| process.start_ticks()).filter(|ticks| *ticks != 0)
    }

    fn probes_gone(&mut self, target: u16) {
        self.notice(Notice::ProbesGone(target));
    }

    fn walk_copy<'code>(
        &mut self,
        target: u16,
        stack: &CopiedStack,
        range_at: &dyn Fn(u64) -> Option<&'code CodeRange>,
    ) -> Option<WalkedCopy> {
        let process = self.processes.get(target);
        Some(self.frame_infos.walk(&self.modules, process.as_deref(), stack, range_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AttachMethod;

    /// The kernel's reports can be read before the record by which a process becomes a target.
    #[test]
    fn what_was_told_of_a_process_before_it_was_a_target_is_told_of_it_then() {
        let processes = SharedProcesses::default();
        let mut filter = EventFilter::new(processes.clone(), true);
        let mut given = Vec::new();
        for (pid, time_ns) in [(7, 10), (8, 15), (7, 20), (7, 30)] {
            let event = AddressSpaceEvent::Replaced { time_ns, pid };
            filter.take(event, |event| given.push(event.time_ns()));
        }
        assert_eq!(given, [] as [u64; 0]);
        processes.insert(3, Arc::new(TargetProcess::gone(7)));
        filter.claim(7, 20, |event| given.push(event.time_ns()));
        assert_eq!(given, [20, 30], "what is older is of another process");
        processes.insert(4, Arc::new(TargetProcess::gone(8)));
        filter.claim(8, 0, |event| given.push(event.time_ns()));
        filter.claim(7, 0, |event| given.push(event.time_ns()));
        assert_eq!(given, [20, 30, 15]);
    }

    /// A process that is over can leave no way to its file, as in a root directory of its own; the next
    /// one that has it mapped is another matter.
    #[test]
    fn a_file_that_could_not_be_opened_is_looked_into_when_it_can() {
        let me = TargetProcess::open(std::process::id()).unwrap();
        let mappings = me.code_mappings().unwrap();
        let own = mappings.iter().find(|mapping| matches!(mapping.file, MappedFile::File { .. }));
        let own = own.unwrap();
        let mut cache = ModuleCache::new(SiteRules::of_this_kernel(AttachMethod::PerfEvent, false));
        let load =
            |cache: &mut ModuleCache, file| cache.load_opened(me.pid(), own, || file).unwrap();
        let unseen = load(&mut cache, None);
        assert_eq!(unseen.content(), Content::Unknown);
        assert!(Arc::ptr_eq(&unseen, &load(&mut cache, None)), "it is known that it is not known");
        let seen = load(&mut cache, Some(me.open_mapped(own).unwrap()));
        assert_ne!(seen.content(), Content::Unknown);
        assert!(!seen.code.is_empty());
        assert!(Arc::ptr_eq(&seen, &load(&mut cache, None)), "it is not opened twice");
        assert_ne!(seen.module.id, unseen.module.id);
    }
}
