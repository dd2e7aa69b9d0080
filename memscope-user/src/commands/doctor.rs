//! `memscope doctor`: what this kernel and a process allow, and why not.

mod sites;
mod stacks;

use std::{io::Write as _, process::ExitCode};

use serde::Serialize;

use self::{
    sites::{AllocatorDiagnosis, HitDiagnosis},
    stacks::{CodeFile, StackDiagnosis},
};

use crate::{
    cli::DoctorOptions,
    kernel::{
        Kernel, KernelConfig, KernelError, MeasuredHits, Selection, features, held_map_bytes,
        kernel_and_arch, missing_capabilities,
    },
    model::{AttachMethod, MappingMethod, Observes, OnOverflow, StackMode},
    reports::counted,
    target::{
        CodeMapping, Descriptions, FileIdentity, MappedFile, ModuleFacts, Search, SiteRules,
        TargetError, TargetProcess, other_root,
    },
    text::{bytes, count, harmless},
    unwind::{TableCache, Tables},
};

/// Size of the ring for trying whether everything loads.
const TRIAL_RING_BYTES: u32 = 1 << 16;

#[derive(Serialize)]
struct Diagnosis {
    memscope: &'static str,
    kernel: String,
    arch: String,
    features: Vec<FeatureState>,
    missing_capabilities: Vec<&'static str>,
    /// Whether the eBPF programs could be loaded just now, and if not, why.
    programs_load: bool,
    programs_error: Option<String>,
    /// Why page faults cannot be observed (`trace --pages`), if nothing else is in the way.
    page_faults_error: Option<&'static str>,
    /// Why system calls cannot be observed (`trace --mappings`), if nothing else is in the way.
    mappings_error: Option<String>,
    /// Where they are observed.
    mappings_by: Option<&'static str>,
    /// The programs, as loaded.
    programs: Vec<ProgramState>,
    /// What a hit of a probe costs here, by each way to attach it.
    hits: Vec<HitDiagnosis>,
    /// Memory of their maps with the ring of the trial, `TRIAL_RING_BYTES`.
    map_bytes: Option<u64>,
    process: Option<ProcessDiagnosis>,
    can_trace: bool,
}

#[derive(Serialize)]
struct FeatureState {
    name: &'static str,
    available: bool,
    required: bool,
    purpose: &'static str,
}

#[derive(Serialize)]
struct ProgramState {
    name: String,
    verified_instructions: Option<u32>,
    translated_bytes: Option<u32>,
    machine_code_bytes: Option<u32>,
}

#[derive(Serialize)]
struct ProcessDiagnosis {
    pid: u32,
    comm: Option<String>,
    exe: Option<String>,
    threads: Option<u64>,
    /// Files mapped as code that were looked into.
    files: usize,
    files_unreadable: usize,
    allocators: Vec<AllocatorDiagnosis>,
    stacks: StackDiagnosis,
}

/// Runs the command: 0 if tracing is possible, 1 if not.
///
/// # Errors
///
/// If the process cannot be looked at.
pub fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    let descriptions = Descriptions::read(&options.allocator)?;
    let Loaded { kernel: mut loaded, page_faults_error, mappings_error } =
        load_all(options.attach_by);
    let in_use = loaded.as_ref().ok().map(Kernel::attach_method);
    let mappings_by = loaded.as_ref().ok().and_then(Kernel::mappings_by);
    // Its probes are removed at the end, when all is said.
    let measured = MeasuredHits::measure();
    let hits = HitDiagnosis::of(&measured, in_use);
    let rules = SiteRules::of_this_kernel(in_use.unwrap_or(AttachMethod::PerfEvent), false);
    let mut process =
        options.pid.map(|pid| diagnose_process(pid, rules, &hits, &descriptions)).transpose()?;
    let programs = loaded.as_ref().map_or_else(|_refused| Vec::new(), program_states);
    // The kernel side is still loaded: its maps are the only ones held.
    let map_bytes = loaded.as_ref().ok().and_then(|_kernel| held_map_bytes());
    if let (Some(process), Ok(kernel)) = (&mut process, &mut loaded)
        && let Err(error) = process.stacks.place(kernel)
    {
        log::warn!("what room the unwind tables take in the kernel is unknown: {error}");
    }
    let (kernel, arch) = kernel_and_arch();
    let features: Vec<FeatureState> = features()
        .into_iter()
        .map(|feature| FeatureState {
            name: feature.name,
            available: feature.available,
            required: feature.required,
            purpose: feature.purpose,
        })
        .collect();
    let has_allocator = process.as_ref().is_none_or(|process| !process.allocators.is_empty());
    let diagnosis = Diagnosis {
        memscope: env!("CARGO_PKG_VERSION"),
        kernel,
        arch,
        can_trace: loaded.is_ok() && has_allocator,
        features,
        missing_capabilities: missing_capabilities(),
        programs_load: loaded.is_ok(),
        page_faults_error,
        mappings_error,
        mappings_by: mappings_by.map(MappingMethod::name),
        map_bytes,
        programs,
        hits,
        programs_error: loaded.err().map(|error| format!("{:#}", anyhow::Error::new(error))),
        process,
    };
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &diagnosis)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", as_text(&diagnosis))?;
    }
    Ok(if diagnosis.can_trace { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The programs, as far as this kernel takes them.
struct Loaded {
    kernel: Result<Kernel, KernelError>,
    page_faults_error: Option<&'static str>,
    mappings_error: Option<String>,
}

/// Loads all programs, but those that are not needed always if the kernel refuses them.
fn load_all(attach_by: Option<AttachMethod>) -> Loaded {
    let (mut observes, mut page_faults_error, mut mappings_error) =
        (Observes::PageFaults, None, None);
    let mut kernel = load(attach_by, observes, true);
    if let Err(KernelError::Unsupported { what }) = kernel {
        page_faults_error = Some(what);
        observes = Observes::Allocations;
        kernel = load(attach_by, observes, true);
    }
    if let Err(error @ KernelError::SystemCalls { .. }) = kernel {
        mappings_error = Some(format!("{:#}", anyhow::Error::new(error)));
        kernel = load(attach_by, observes, false);
    }
    let kernel = kernel.and_then(|mut kernel| kernel.load_rest().map(|()| kernel));
    Loaded { kernel, page_faults_error, mappings_error }
}

fn load(
    attach_by: Option<AttachMethod>,
    observes: Observes,
    observes_mappings: bool,
) -> Result<Kernel, KernelError> {
    Kernel::load(KernelConfig {
        ring_bytes: TRIAL_RING_BYTES,
        log_level: 0,
        attach_by,
        stacks: StackMode::Full,
        sampling_interval_bytes: None,
        seed: 0,
        on_overflow: OnOverflow::Count,
        counts_cost: false,
        follows: true,
        selection: Selection::default(),
        observes,
        observes_mappings,
        mappings_by: None,
    })
}

fn program_states(kernel: &Kernel) -> Vec<ProgramState> {
    let facts = kernel.programs().unwrap_or_else(|error| {
        log::warn!("the kernel says nothing about its programs: {error}");
        Vec::new()
    });
    facts
        .into_iter()
        .map(|facts| ProgramState {
            name: facts.name,
            verified_instructions: facts.verified_instructions,
            translated_bytes: facts.translated_bytes,
            machine_code_bytes: facts.machine_code_bytes,
        })
        .collect()
}

fn diagnose_process(
    pid: u32,
    rules: SiteRules,
    hits: &[HitDiagnosis],
    descriptions: &Descriptions,
) -> Result<ProcessDiagnosis, TargetError> {
    let process = TargetProcess::open(pid)?;
    let mappings = process.code_mappings()?;
    let mut files = Vec::new();
    let mut allocators = Vec::new();
    for (file, facts) in code_files(&process, &mappings, descriptions) {
        let allocator = facts.as_ref().and_then(|facts| {
            AllocatorDiagnosis::of(&file.path, facts, rules, sites::in_use(hits))
        });
        allocators.extend(allocator);
        files.push((file, facts.is_some()));
    }
    let files_unreadable = files.iter().filter(|(_, is_readable)| !is_readable).count();
    let files: Vec<CodeFile> = files.into_iter().map(|(file, _)| file).collect();
    let cache = TableCache::open()
        .inspect_err(|error| log::debug!("unwind tables are not kept on disk: {error}"))
        .ok();
    Ok(ProcessDiagnosis {
        pid,
        comm: process.comm(),
        exe: process.exe(),
        threads: process.thread_count(),
        files: files.len(),
        files_unreadable,
        allocators,
        stacks: StackDiagnosis::of(&process, &files, &mappings, &Tables::new(cache)),
    })
}

/// The files that are mapped as code, each once, and what is known of them.
fn code_files(
    process: &TargetProcess,
    mappings: &[CodeMapping],
    descriptions: &Descriptions,
) -> Vec<(CodeFile, Option<ModuleFacts>)> {
    let root = other_root(process.pid());
    let mut identities: Vec<FileIdentity> = Vec::new();
    let mut files: Vec<(CodeFile, Option<ModuleFacts>)> = Vec::new();
    for mapping in mappings {
        let MappedFile::File { identity, path } = &mapping.file else {
            continue;
        };
        let known = identities.iter().position(|known| known == identity);
        if let Some((file, _)) = known.and_then(|known| files.get_mut(known)) {
            file.mappings.push(mapping.clone());
            continue;
        }
        let file = process.open_mapped(mapping).ok();
        let search = Search { path, root: root.as_ref(), descriptions };
        let facts = file.as_ref().and_then(|file| ModuleFacts::search(file, &search).ok());
        let segments = facts.as_ref().map(|facts| facts.code.clone()).unwrap_or_default();
        let mappings = vec![mapping.clone()];
        identities.push(*identity);
        files.push((CodeFile { path: path.clone(), file, segments, mappings }, facts));
    }
    files
}

fn as_text(diagnosis: &Diagnosis) -> String {
    let mut lines = vec![format!(
        "memscope {} on Linux {} ({})",
        diagnosis.memscope,
        harmless(&diagnosis.kernel),
        harmless(&diagnosis.arch)
    )];
    let mark = |good, required| match (good, required) {
        (true, _) => "yes",
        (false, true) => "NO ",
        (false, false) => "no ",
    };
    for feature in &diagnosis.features {
        lines.push(format!(
            "  {}  {}: {}",
            mark(feature.available, feature.required),
            feature.name,
            feature.purpose
        ));
    }
    let capabilities = if diagnosis.missing_capabilities.is_empty() {
        "all needed capabilities are held".to_owned()
    } else {
        format!("missing {}: run it with sudo", diagnosis.missing_capabilities.join(", "))
    };
    lines.push(format!(
        "  {}  capabilities: {capabilities}",
        mark(diagnosis.missing_capabilities.is_empty(), true)
    ));
    let programs =
        diagnosis.programs_error.as_deref().unwrap_or("the kernel takes memscope's programs");
    lines.push(format!(
        "  {}  programs: {}",
        mark(diagnosis.programs_load, true),
        harmless(programs)
    ));
    if let Some(what) = diagnosis.page_faults_error {
        lines.push(format!("  {}  page faults (trace --pages): {what}", mark(false, false)));
    }
    if let Some(what) = &diagnosis.mappings_error {
        let what = harmless(what);
        lines.push(format!("  {}  mappings (trace --mappings): {what}", mark(false, false)));
    }
    if let Some(by) = diagnosis.mappings_by {
        lines.push(format!("  {}  mappings (trace --mappings): by {by}", mark(true, false)));
    }
    lines.extend(program_lines(diagnosis));
    lines.extend(sites::hit_lines(&diagnosis.hits));
    if let Some(process) = &diagnosis.process {
        lines.extend(process_lines(process));
    }
    let verdict = if diagnosis.can_trace {
        "Tracing is possible."
    } else {
        "Tracing is NOT possible; see the lines marked NO."
    };
    lines.push(verdict.to_owned());
    lines.join("\n") + "\n"
}

fn program_lines(diagnosis: &Diagnosis) -> Vec<String> {
    let shown =
        |number: Option<u32>| number.map_or_else(|| "unknown".to_owned(), |n| count(n.into()));
    let mut lines: Vec<String> = diagnosis
        .programs
        .iter()
        .map(|program| {
            format!(
                "       {:<20} {:>7} instructions verified, {:>6} bytes of machine code",
                program.name,
                shown(program.verified_instructions),
                shown(program.machine_code_bytes)
            )
        })
        .collect();
    if let Some(map_bytes) = diagnosis.map_bytes {
        let (maps, ring) = (bytes(map_bytes), bytes(TRIAL_RING_BYTES.into()));
        lines.push(format!("       maps: {maps}, with a ring buffer of {ring}"));
    }
    lines
}

fn process_lines(process: &ProcessDiagnosis) -> Vec<String> {
    let shown =
        |text: &Option<String>| text.as_deref().map_or_else(|| "unknown".to_owned(), harmless);
    let mut lines = vec![format!(
        "process {} ({}), {}, {}, {} of code{}",
        process.pid,
        shown(&process.comm),
        shown(&process.exe),
        process.threads.map_or_else(
            || "an unknown number of threads".to_owned(),
            |threads| counted(threads, "thread")
        ),
        counted(process.files as u64, "file"),
        if process.files_unreadable > 0 {
            format!(", {} of them unreadable", process.files_unreadable)
        } else {
            String::new()
        },
    )];
    if process.allocators.is_empty() {
        lines.push("  NO   allocator: none of its files defines malloc".to_owned());
    }
    lines.extend(process.allocators.iter().flat_map(AllocatorDiagnosis::lines));
    lines.extend(process.stacks.lines());
    lines
}
