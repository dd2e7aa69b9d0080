//! Stacks of this process with the registers, as the eBPF side would get them.

pub(crate) mod signals;

use std::{fs, mem::MaybeUninit, ops::Range, sync::Arc};

use framehop::{
    CacheNative, ExplicitModuleSectionInfo, FrameAddress, MayAllocateDuringUnwind, Module,
    Unwinder as _, UnwinderNative, x86_64::UnwindRegsX86_64,
};
use memscope::{
    target::{CodeMapping, MappedFile, TargetProcess},
    unwind::{CodeAt, CopiedWalk, FrameInfo, MappedCode, UnwindTable, walk_copy},
};
use memscope_common::{
    record::{
        COPY_PART_BYTES, Header, KIND_STACK_COPY, MAX_FRAMES, OUTCOME_COMPLETE,
        OUTCOME_DEPTH_LIMIT, OUTCOME_FRAME_POINTERS_ENDED, OUTCOME_UNKNOWN_CODE, StackCopy,
    },
    unwind::{CFA_NONE, CFA_SIGNAL, Frame, Rule, Saved},
};
use memscope_ebpf::unwind::{SIGRETURN_CODE, Word, step};
use object::{Object as _, ObjectSection as _};

/// Enough for all stacks here; no limit is to be tested.
const MAX_STACK_BYTES: usize = 1 << 18;

/// A mapped file with code, and all that the unwinders want of it.
struct Mapped {
    code: Range<u64>,
    bias_avma: u64,
    table: UnwindTable,
    info: Arc<FrameInfo>,
    name: String,
}

/// All code of this process.
pub(crate) struct Code {
    mapped: Vec<Mapped>,
    framehop: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
}

impl Code {
    pub(crate) fn of_this_process() -> Self {
        let process = TargetProcess::open(std::process::id()).unwrap();
        let mut code = Self { mapped: Vec::new(), framehop: UnwinderNative::new() };
        for mapping in process.code_mappings().unwrap() {
            let (image, name) = match &mapping.file {
                MappedFile::File { path, .. } => (fs::read(path).unwrap(), path.clone()),
                MappedFile::Kernel(name) if name == "[vdso]" => {
                    let length = mapping.end_avma - mapping.start_avma;
                    (process.read_memory(mapping.start_avma, length).unwrap(), name.clone())
                }
                _ => continue,
            };
            code.add(&mapping, &image, name);
        }
        code
    }

    fn add(&mut self, mapping: &CodeMapping, image: &[u8], name: String) {
        let range = mapping.start_avma..mapping.end_avma;
        let elf = object::File::parse(image).unwrap();
        let bias_avma = bias_of(&elf, mapping);
        let section = |name: &str| elf.section_by_name(name);
        let svma = |name: &str| {
            section(name).map(|section| section.address()..section.address() + section.size())
        };
        let data = |name: &str| section(name).map(|section| section.data().unwrap().to_vec());
        let sections = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: svma(".text"),
            got_svma: svma(".got"),
            eh_frame_svma: svma(".eh_frame"),
            eh_frame: data(".eh_frame"),
            eh_frame_hdr_svma: svma(".eh_frame_hdr"),
            eh_frame_hdr: data(".eh_frame_hdr"),
            ..ExplicitModuleSectionInfo::default()
        };
        self.framehop.add_module(Module::new(name.clone(), range.clone(), bias_avma, sections));
        self.mapped.push(Mapped {
            code: range,
            bias_avma,
            table: UnwindTable::from_elf(image).unwrap(),
            info: Arc::new(FrameInfo::from_elf(image).unwrap()),
            name,
        });
    }

    fn at(&self, avma: u64) -> Option<&Mapped> {
        self.mapped.iter().find(|mapped| mapped.code.contains(&avma))
    }

    /// Addresses so that a difference can be looked up.
    pub(crate) fn shown(&self, frames_avma: &[u64]) -> Vec<String> {
        let shown = |avma: &u64| match self.at(*avma) {
            Some(mapped) => format!("{}+{:#x}", mapped.name, avma - mapped.bias_avma),
            None => format!("{avma:#x}"),
        };
        frames_avma.iter().map(shown).collect()
    }

    /// An address of code of which no file says how to unwind it: the end of a mapping, which is filled up to a page.
    fn without_information(&self) -> u64 {
        let mut ends = self.mapped.iter().map(|mapped| (mapped, mapped.code.end - 1));
        let is_without = |(mapped, avma): &(&Mapped, u64)| {
            mapped.table.rule_at(avma - mapped.bias_avma).cfa == CFA_NONE
        };
        ends.find(is_without).unwrap().1
    }

    /// As the eBPF side finds it.
    fn rule_at(&self, frame: &Frame) -> Option<Rule> {
        let avma = frame.pc_avma - frame.returns;
        let mapped = self.at(avma)?;
        let rule = mapped.table.rule_at(avma - mapped.bias_avma);
        let is_sigreturn = rule.cfa == CFA_NONE && code_word(frame.pc_avma) == SIGRETURN_CODE;
        Some(if is_sigreturn { Rule::of_kind(CFA_SIGNAL) } else { rule })
    }
}

fn bias_of(elf: &object::File<'_>, mapping: &CodeMapping) -> u64 {
    use object::ObjectSegment as _;
    if matches!(mapping.file, MappedFile::Kernel(_)) {
        return mapping.start_avma;
    }
    let end_file_offset = mapping.file_offset + (mapping.end_avma - mapping.start_avma);
    let segment = elf.segments().find(|segment| {
        let is_code = segment.permissions().executable();
        is_code && (mapping.file_offset..end_file_offset).contains(&segment.file_range().0)
    });
    let segment = segment.unwrap();
    let start_svma = segment.address() + mapping.file_offset - segment.file_range().0;
    mapping.start_avma - start_svma
}

/// Of code that is mapped.
fn code_word(avma: u64) -> u64 {
    // SAFETY: it was found in a mapping of code, which this process does not unmap.
    unsafe { (avma as *const u64).read_unaligned() }
}

/// A moment of a thread.
#[derive(Clone)]
pub(crate) struct Recording {
    copy: StackCopy,
    /// The stack from the copy's start on.
    pub(crate) bytes: Vec<u8>,
    /// What the C runtime's unwinder found.
    pub(crate) truth: Vec<u64>,
    /// How many of its frames lie below the handler's caller, if there is one.
    handler_frames: Option<usize>,
}

impl Recording {
    /// With room for a stack, so that nothing needs to be allocated when it is recorded.
    pub(crate) fn new() -> Self {
        let header =
            Header { kind: KIND_STACK_COPY, padding: 0, probe: 0, image: 0, target: 0, time_ns: 0 };
        let copy = StackCopy {
            header,
            stack: 0,
            return_avma: 0,
            sp_avma: 0,
            rbp: 0,
            rbx: 0,
            r12_to_r15: [0; 4],
            outcome: 0,
            flags: 0,
            byte_count: 0,
        };
        Self {
            copy,
            bytes: Vec::with_capacity(MAX_STACK_BYTES),
            truth: Vec::with_capacity(MAX_FRAMES),
            handler_frames: None,
        }
    }

    /// What every walk must find. The unwinder of the C runtime was called by the same
    /// function, at another place.
    pub(crate) fn expected_frames(&self) -> Vec<u64> {
        let mut frames = self.truth.clone();
        frames[0] = self.copy.return_avma;
        if let Some(handler) = self.handler_frames {
            // What the handler returns to, and where the signal came in.
            frames[handler] += 1;
            frames[handler + 1] += 1;
        }
        frames
    }

    /// The same stack as if its innermost function were one without unwind information, whose frame pointer leads past all
    /// frames to the call of the last but `above`.
    pub(crate) fn interrupted_without_information(&self, code: &Code, above: usize) -> Self {
        let mut recording = self.clone();
        let return_avma = self.truth[self.truth.len() - 1 - above].to_ne_bytes();
        let words = self.bytes.chunks_exact(8);
        let last = words.enumerate().rfind(|(_, word)| *word == return_avma);
        let offset = last.unwrap().0 * 8 - 8;
        recording.copy.rbp = self.copy.start_avma() + offset as u64;
        recording.copy.return_avma = code.without_information() + 1;
        recording
    }

    fn word(&self, avma: u64) -> Word {
        let offset = usize::try_from(avma.wrapping_sub(self.copy.start_avma()));
        let word = offset.ok().and_then(|offset| self.bytes.get(offset..offset.checked_add(8)?));
        word.map_or(Word::unreadable(), |word| {
            Word::read(u64::from_ne_bytes(word.try_into().unwrap()))
        })
    }

    /// As `walk_up` and `walk_one` of the eBPF side; frames and outcome.
    pub(crate) fn walk_by_steps(&self, code: &Code) -> (Vec<u64>, u16) {
        let mut frame = Frame {
            pc_avma: self.copy.return_avma,
            returns: 1,
            sp_avma: self.copy.sp_avma,
            bp: self.copy.rbp,
            bx: Saved::value(self.copy.rbx),
            r10: Saved::unknown(),
        };
        let mut frames = Vec::new();
        let mut used_frame_pointers = false;
        while frames.len() < MAX_FRAMES {
            let Some(rule) = code.rule_at(&frame) else {
                frames.push(frame.pc_avma + 1 - frame.returns);
                return (frames, OUTCOME_UNKNOWN_CODE);
            };
            used_frame_pointers |= rule.cfa == CFA_NONE;
            let distance = if rule.cfa == CFA_SIGNAL { 1 } else { 1 - frame.returns };
            frames.push(frame.pc_avma + distance);
            let outcome = step(&mut frame, &rule, |avma, _| self.word(avma));
            match outcome {
                0 => {}
                OUTCOME_COMPLETE if used_frame_pointers => {
                    return (frames, OUTCOME_FRAME_POINTERS_ENDED);
                }
                outcome => return (frames, outcome),
            }
        }
        (frames, OUTCOME_DEPTH_LIMIT)
    }

    pub(crate) fn walk_copied(&self, code: &Code) -> CopiedWalk {
        let parts: Vec<Arc<[u8]>> = self.bytes.chunks(COPY_PART_BYTES).map(Arc::from).collect();
        walk_copy(&self.copy, &parts, &mut CopiedCode(code))
    }

    /// Frames, and whether it came to the end.
    pub(crate) fn walk_by_framehop(&self, code: &Code) -> (Vec<u64>, bool) {
        let mut cache = CacheNative::new();
        let mut registers =
            UnwindRegsX86_64::new(self.copy.return_avma, self.copy.sp_avma, self.copy.rbp);
        let mut address = FrameAddress::from_return_address(self.copy.return_avma).unwrap();
        let mut read = |avma| {
            let word = self.word(avma);
            if word.is_read { Ok(word.value) } else { Err(()) }
        };
        let mut frames = vec![self.copy.return_avma];
        loop {
            match code.framehop.unwind_frame(address, &mut registers, &mut cache, &mut read) {
                Ok(Some(avma)) => {
                    frames.push(avma);
                    address = FrameAddress::from_return_address(avma).unwrap();
                }
                Ok(None) => return (frames, true),
                Err(_) => return (frames, false),
            }
        }
    }
}

struct CopiedCode<'code>(&'code Code);

impl MappedCode for CopiedCode<'_> {
    fn code_at(&mut self, avma: u64) -> CodeAt {
        self.0.at(avma).map_or(CodeAt::Unknown, |mapped| CodeAt::File {
            info: Arc::clone(&mapped.info),
            bias_avma: mapped.bias_avma,
        })
    }

    fn word_at(&mut self, avma: u64) -> Option<u64> {
        self.0.at(avma).map(|_| code_word(avma))
    }
}

/// Where the stack that this thread runs on ends, as far as it is mapped.
fn stack_end(sp_avma: u64) -> u64 {
    if let Some(end) = signals::other_stack_end(sp_avma) {
        return end;
    }
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut start, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are made by the first call, and given back after the second.
    unsafe {
        assert_eq!(libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()), 0);
        assert_eq!(
            libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut size),
            0
        );
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    start as u64 + size as u64
}

/// Records the stack of the function that calls this, which is its first frame.
#[inline(never)]
pub(crate) fn record(into: &mut Recording) {
    let mut end_avma = 0;
    record_until(into, &mut end_avma);
}

/// As [`record`]; of a stack whose end is known, this allocates nothing.
#[inline(never)]
fn record_until(into: &mut Recording, end_avma: &mut u64) {
    let mut context = MaybeUninit::<libc::ucontext_t>::uninit();
    let mut truth = [std::ptr::null_mut(); MAX_FRAMES];
    // SAFETY: it fills the context; nothing ever goes there. The array is as long as said.
    let (context, count) = unsafe {
        assert_eq!(libc::getcontext(context.as_mut_ptr()), 0);
        (context.assume_init(), libc::backtrace(truth.as_mut_ptr(), MAX_FRAMES as i32))
    };
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as u64;
    into.copy.return_avma = register(libc::REG_RIP);
    into.copy.sp_avma = register(libc::REG_RSP);
    into.copy.rbp = register(libc::REG_RBP);
    into.copy.rbx = register(libc::REG_RBX);
    into.copy.r12_to_r15 =
        [libc::REG_R12, libc::REG_R13, libc::REG_R14, libc::REG_R15].map(register);
    into.truth.extend(truth.iter().take(count as usize).map(|frame| *frame as u64));
    if *end_avma == 0 {
        *end_avma = stack_end(into.copy.sp_avma);
    }
    let start = into.copy.start_avma();
    assert_eq!(start % COPY_PART_BYTES as u64, 0);
    let length = ((*end_avma - start) as usize).min(MAX_STACK_BYTES);
    // SAFETY: from the stack pointer's page to the stack's end it is mapped, and nobody
    // changes the frames above this one; there is room.
    unsafe {
        std::ptr::copy_nonoverlapping(start as *const u8, into.bytes.as_mut_ptr(), length);
        into.bytes.set_len(length);
    }
}
