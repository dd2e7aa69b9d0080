//! `profile.proto` of pprof, gzipped: call chains with four values each, or two of page faults.
//!
//! <https://github.com/google/pprof/blob/main/proto/profile.proto>. The format has
//! no place for times, lifetimes or the peak.

pub(super) mod proto;
mod strings;

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use self::{
    proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType},
    strings::Strings,
};
use super::ExportError;
use crate::{
    lifetimes::SiteKey,
    model::{FrameId, Module, ModuleId, Observes, StackId, StackOutcome},
    reports::{Analysis, ProcessName, ResolvedFrame, Trust, check, missing_callers, place},
    text,
};

/// Writes the profile.
///
/// # Errors
///
/// See [`ExportError`].
pub fn export_pprof(analysis: &Analysis, out: &mut dyn Write) -> Result<(), ExportError> {
    check(analysis)?;
    let profile = Builder::new(analysis).build();
    let mut zipped = GzEncoder::new(out, Compression::default());
    zipped.write_all(&profile.encode_to_vec()).map_err(ExportError::Write)?;
    zipped.finish().and_then(|out| out.flush()).map_err(ExportError::Write)
}

/// The format's numbers have a sign; none of ours comes near its limit but in a
/// forged recording.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The values of a call chain, where allocations were observed.
const OF_BLOCKS: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];
/// The same, where page faults were.
const OF_FAULTS: [(&str, &str); 2] = [("page_faults", "count"), ("resident_space", "bytes")];

/// What a location of the profile stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Frame(FrameId),
    /// Callers that are missing from a call chain.
    Missing(&'static str),
}

struct Builder<'a> {
    analysis: &'a Analysis,
    strings: Strings,
    profile: Profile,
    mappings: BTreeMap<ModuleId, u64>,
    locations: BTreeMap<Place, u64>,
    functions: BTreeMap<(i64, i64), u64>,
}

impl<'a> Builder<'a> {
    fn new(analysis: &'a Analysis) -> Self {
        Self {
            analysis,
            strings: Strings::default(),
            profile: Profile::default(),
            mappings: BTreeMap::new(),
            locations: BTreeMap::new(),
            functions: BTreeMap::new(),
        }
    }

    fn build(mut self) -> Profile {
        let (types, default): (&[(&str, &str)], _) = match self.analysis.observed() {
            Observes::Allocations => (&OF_BLOCKS, "inuse_space"),
            Observes::PageFaults => (&OF_FAULTS, "resident_space"),
        };
        self.profile.sample_type =
            types.iter().map(|(name, unit)| self.value_type(name, unit)).collect();
        self.profile.default_sample_type = self.strings.index_of(default);
        self.profile.period_type = Some(self.value_type("space", "bytes"));
        let interval_bytes = self.analysis.capture.sampling_interval_bytes;
        self.profile.period = signed(interval_bytes.unwrap_or(1));
        self.main_mapping();
        match self.analysis.observed() {
            Observes::Allocations => {
                for site in &self.analysis.sites {
                    let sums = &site.sums;
                    if sums.allocations > 0 {
                        let live = [sums.live_blocks(), sums.live_bytes()];
                        let all = [sums.allocations, sums.allocated_bytes];
                        self.sample(site.key, &[all, live].concat());
                    }
                }
            }
            Observes::PageFaults => {
                for site in &self.analysis.fault_sites {
                    self.sample(site.key, &[site.sums.faults, site.sums.resident.total()]);
                }
            }
        }
        let capture = &self.analysis.capture;
        self.profile.time_nanos = signed(
            capture
                .started_at_unix_seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(u64::from(capture.started_at_unix_nanoseconds)),
        );
        self.profile.duration_nanos = signed(self.analysis.duration_ns());
        let comment = Trust::of(self.analysis).sentence;
        self.profile.comment = vec![self.strings.index_of(&comment)];
        self.profile.string_table = self.strings.into_table();
        self.profile
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { r#type: self.strings.index_of(name), unit: self.strings.index_of(unit) }
    }

    fn sample(&mut self, key: SiteKey, values: &[u64]) {
        let value = values.iter().copied().map(signed).collect();
        let process = ProcessName::of(self.analysis, key.process);
        let mut label = Vec::new();
        if let (Some(pid), Some(comm)) = (process.pid, process.comm) {
            label.push(Label {
                key: self.strings.index_of("pid"),
                num: i64::from(pid),
                ..Label::default()
            });
            label.push(Label {
                key: self.strings.index_of("comm"),
                str: self.strings.index_of(&text::harmless(comm)),
                ..Label::default()
            });
        }
        let location_id = self.chain(key.stack);
        self.profile.sample.push(Sample { location_id, value, label });
    }

    /// The locations of a call chain, innermost first.
    fn chain(&mut self, stack: StackId) -> Vec<u64> {
        let known = self.analysis.definitions.stacks.get(&stack);
        let outcome = known.map_or(StackOutcome::FramesLost, |stack| stack.outcome);
        let frames = known.map(|stack| stack.frames.as_slice()).unwrap_or_default();
        let mut chain: Vec<_> =
            frames.iter().map(|frame| self.location(Place::Frame(*frame))).collect();
        if let Some(missing) = missing_callers(outcome) {
            chain.push(self.location(Place::Missing(missing)));
        }
        chain
    }

    fn location(&mut self, place: Place) -> u64 {
        if let Some(known) = self.locations.get(&place) {
            return *known;
        }
        let id = self.locations.len() as u64 + 1;
        self.locations.insert(place, id);
        let location = match place {
            Place::Frame(frame) => self.frame_location(id, frame),
            Place::Missing(missing) => Location {
                id,
                line: vec![Line { function_id: self.function(missing, None), line: 0 }],
                ..Location::default()
            },
        };
        self.profile.location.push(location);
        id
    }

    fn frame_location(&mut self, id: u64, frame: FrameId) -> Location {
        let (module, address) = place(&self.analysis.definitions, frame);
        let frames = ResolvedFrame::all_of(&self.analysis.definitions, frame);
        let mapping_id = module.map_or(0, |module| self.mapping(module, address, &frames));
        let lines = frames.iter().map(|frame| Line {
            function_id: self.function(&frame.name(), frame.file),
            line: frame.line.map_or(0, i64::from),
        });
        let line = lines.collect();
        // Within the call, as the format has it, and not after it.
        Location { id, mapping_id, address: address.saturating_sub(1), line }
    }

    /// The mapping of a module, of which a frame at `address` was seen. Locations
    /// give offsets in the file, so every mapping begins at 0.
    fn mapping(&mut self, module: ModuleId, address: u64, frames: &[ResolvedFrame<'_>]) -> u64 {
        let id = match self.mappings.get(&module) {
            Some(known) => *known,
            None => self.new_mapping(module),
        };
        let index = (id - 1) as usize;
        if let Some(mapping) = self.profile.mapping.get_mut(index) {
            mapping.memory_limit = mapping.memory_limit.max(address.saturating_add(1));
            let any = |has: fn(&ResolvedFrame<'_>) -> bool| frames.iter().any(has);
            // One unnamed place is enough to let pprof look for names itself.
            mapping.has_functions &= !any(|frame| frame.function.is_none());
            mapping.has_filenames |= any(|frame| frame.file.is_some());
            mapping.has_line_numbers |= any(|frame| frame.line.is_some());
            mapping.has_inline_frames |= any(|frame| frame.inlined);
        }
        id
    }

    /// By convention the first mapping is that of the main executable.
    fn main_mapping(&mut self) {
        let definitions = &self.analysis.definitions;
        let Some(process) = definitions.processes.values().next() else {
            return;
        };
        let is_main = |(_, module): &(&ModuleId, &Module)| module.path == process.exe;
        if let Some((module, _)) =
            definitions.modules.iter().filter(is_main).min_by_key(|(id, _)| **id)
        {
            self.new_mapping(*module);
        }
    }

    fn new_mapping(&mut self, module: ModuleId) -> u64 {
        let id = self.mappings.len() as u64 + 1;
        self.mappings.insert(module, id);
        let defined = self.analysis.definitions.modules.get(&module);
        let (path, build_id) = defined.map_or((String::new(), String::new()), |module| {
            (text::harmless(&module.path), text::hex(&module.build_id))
        });
        self.profile.mapping.push(Mapping {
            id,
            filename: self.strings.index_of(&path),
            build_id: self.strings.index_of(&build_id),
            has_functions: true,
            ..Mapping::default()
        });
        id
    }

    fn function(&mut self, name: &str, file: Option<&str>) -> u64 {
        let name = self.strings.index_of(&text::harmless(name));
        let filename = self.strings.index_of(&file.map(text::harmless).unwrap_or_default());
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.profile.function.push(Function {
                id,
                name,
                system_name: name,
                filename,
                start_line: 0,
            });
        }
        id
    }
}
