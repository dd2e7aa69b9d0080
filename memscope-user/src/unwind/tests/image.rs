//! Small ELF files with any call frame information.

use std::ops::Range;

use gimli::{
    Encoding, Format, LittleEndian, X86_64,
    write::{
        Address, CallFrameInstruction as Cfi, CommonInformationEntry, DebugFrame, EhFrame,
        EndianVec, Expression, FrameDescriptionEntry, FrameTable,
    },
};
use object::{
    Endianness, I64, U16, U32, U64,
    elf::{
        self, CompressionHeader64, Dyn64, FileHeader64, Ident, ProgramHeader64, SectionHeader64,
    },
    pod::{Pod, bytes_of},
};

const LE: Endianness = Endianness::Little;
/// Where the parts that are no code are loaded.
const DATA_SVMA: u64 = 0x10_0000;

/// Address, length, and what is said at which offset.
pub(super) type Function = (u64, u32, Vec<(u32, Cfi)>);

pub(super) fn cfa_expression(of: impl FnOnce(&mut Expression)) -> Cfi {
    let mut expression = Expression::new();
    of(&mut expression);
    Cfi::CfaExpression(expression)
}

/// A section that says this of functions, beginning with what every function begins with.
pub(super) fn frames(functions: &[Function], is_signal_frame: bool, is_debug: bool) -> Vec<u8> {
    let encoding = Encoding {
        format: Format::Dwarf32,
        version: if is_debug { 4 } else { 1 },
        address_size: 8,
    };
    let mut common = CommonInformationEntry::new(encoding, 1, -8, X86_64::RA);
    common.signal_trampoline = is_signal_frame;
    common.add_instruction(Cfi::Cfa(X86_64::RSP, 8));
    common.add_instruction(Cfi::Offset(X86_64::RA, -8));
    let mut table = FrameTable::default();
    let common = table.add_cie(common);
    for (start, length, instructions) in functions {
        let mut function = FrameDescriptionEntry::new(Address::Constant(*start), *length);
        for (offset, instruction) in instructions {
            function.add_instruction(*offset, instruction.clone());
        }
        table.add_fde(common, function);
    }
    if is_debug {
        let mut section = DebugFrame(EndianVec::new(LittleEndian));
        table.write_debug_frame(&mut section).unwrap();
        section.0.into_vec()
    } else {
        let mut section = EhFrame(EndianVec::new(LittleEndian));
        table.write_eh_frame(&mut section).unwrap();
        section.0.into_vec()
    }
}

/// What a file is made from.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) machine: elf::Machine,
    pub(super) code: Range<u64>,
    pub(super) code_file_offset: u64,
    pub(super) entry: u64,
    pub(super) needs_library: bool,
    pub(super) has_sections: bool,
    pub(super) eh_frame: Vec<u8>,
    pub(super) debug_frame: Vec<u8>,
    /// Says that its debug_frame has so many bytes, compressed.
    pub(super) compressed_debug_frame: Option<u64>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            machine: elf::EM_X86_64,
            code: 0x1000..0x2000,
            code_file_offset: 0x1000,
            entry: 0,
            needs_library: false,
            has_sections: true,
            eh_frame: Vec::new(),
            debug_frame: Vec::new(),
            compressed_debug_frame: None,
        }
    }
}

fn put<T: Pod>(bytes: &mut Vec<u8>, value: &T) {
    bytes.extend_from_slice(bytes_of(value));
}

fn segment(
    kind: elf::ProgramType,
    flags: elf::ProgramFlags,
    file: Range<u64>,
    svma: u64,
) -> ProgramHeader64<Endianness> {
    let length = U64::new(LE, file.end - file.start);
    ProgramHeader64 {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, flags),
        p_offset: U64::new(LE, file.start),
        p_vaddr: U64::new(LE, svma),
        p_paddr: U64::new(LE, svma),
        p_filesz: length,
        p_memsz: length,
        p_align: U64::new(LE, 1),
    }
}

fn section(
    name: u32,
    kind: elf::SectionType,
    flags: elf::SectionFlags,
    file: &Range<u64>,
) -> SectionHeader64<Endianness> {
    SectionHeader64 {
        sh_name: U32::new(LE, name),
        sh_type: U32::new(LE, kind),
        sh_flags: U64::new(LE, flags),
        sh_addr: U64::new(LE, DATA_SVMA + file.start),
        sh_offset: U64::new(LE, file.start),
        sh_size: U64::new(LE, file.end - file.start),
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, 0),
        sh_addralign: U64::new(LE, 1),
        sh_entsize: U64::new(LE, 0),
    }
}

const NAMES: &[u8] = b"\0.eh_frame\0.debug_frame\0.shstrtab\0";
const HEADER_BYTES: usize = size_of::<FileHeader64<Endianness>>();
const SEGMENTS: usize = 4;

impl Image {
    /// The parts that are no headers, one after the other.
    fn parts(&self) -> (Vec<u8>, [Range<u64>; 5]) {
        let start = HEADER_BYTES + SEGMENTS * size_of::<ProgramHeader64<Endianness>>();
        let mut bytes = vec![0; start];
        let mut add = |part: &[u8]| {
            let start = bytes.len() as u64;
            bytes.extend_from_slice(part);
            start..bytes.len() as u64
        };
        let eh_frame = add(&self.eh_frame);
        let debug_frame = match self.compressed_debug_frame {
            None => add(&self.debug_frame),
            Some(ch_size) => add(bytes_of(&CompressionHeader64 {
                ch_type: U32::new(LE, elf::ELFCOMPRESS_ZLIB),
                ch_reserved: U32::new(LE, 0),
                ch_size: U64::new(LE, ch_size),
                ch_addralign: U64::new(LE, 1),
            })),
        };
        // Version, an absolute pointer, no count, no table.
        let mut header = vec![1, 0, 0xff, 0xff];
        header.extend_from_slice(&(DATA_SVMA + eh_frame.start).to_le_bytes());
        let header = add(&header);
        let mut dynamic = Vec::new();
        for tag in self.needs_library.then_some(elf::DT_NEEDED).into_iter().chain([elf::DT_NULL]) {
            put(&mut dynamic, &Dyn64 { d_tag: I64::new(LE, tag), d_val: U64::new(LE, 0) });
        }
        let dynamic = add(&dynamic);
        let names = add(NAMES);
        (bytes, [eh_frame, debug_frame, header, dynamic, names])
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let (mut bytes, [eh_frame, debug_frame, header, dynamic, names]) = self.parts();
        let sections_at = bytes.len() as u64;
        let code_file =
            self.code_file_offset..self.code_file_offset + (self.code.end - self.code.start);
        let segments = [
            segment(elf::PT_LOAD, elf::PF_R | elf::PF_X, code_file, self.code.start),
            segment(elf::PT_LOAD, elf::PF_R, 0..sections_at, DATA_SVMA),
            segment(elf::PT_GNU_EH_FRAME, elf::PF_R, header.clone(), DATA_SVMA + header.start),
            segment(elf::PT_DYNAMIC, elf::PF_R, dynamic.clone(), DATA_SVMA + dynamic.start),
        ];
        let nothing = elf::SectionFlags(0);
        let is_compressed = self.compressed_debug_frame.is_some();
        let debug_flags = if is_compressed { elf::SHF_COMPRESSED } else { nothing };
        let sections = [
            section(0, elf::SHT_NULL, nothing, &(0..0)),
            section(1, elf::SHT_PROGBITS, elf::SHF_ALLOC, &eh_frame),
            section(11, elf::SHT_PROGBITS, debug_flags, &debug_frame),
            section(24, elf::SHT_STRTAB, nothing, &names),
        ];
        let count = if self.has_sections { sections.len() } else { 0 };
        let size = |size: usize| U16::new(LE, u16::try_from(size).unwrap());
        let file_header = FileHeader64 {
            e_ident: Ident {
                magic: elf::ELFMAG,
                class: elf::ELFCLASS64,
                data: elf::ELFDATA2LSB,
                version: elf::EV_CURRENT,
                os_abi: elf::ELFOSABI_SYSV,
                abi_version: 0,
                padding: [0; 7],
            },
            e_type: U16::new(LE, elf::ET_DYN),
            e_machine: U16::new(LE, self.machine),
            e_version: U32::new(LE, 1),
            e_entry: U64::new(LE, self.entry),
            e_phoff: U64::new(LE, HEADER_BYTES as u64),
            e_shoff: U64::new(LE, if self.has_sections { sections_at } else { 0 }),
            e_flags: U32::new(LE, elf::FileFlags(0)),
            e_ehsize: size(HEADER_BYTES),
            e_phentsize: size(size_of::<ProgramHeader64<Endianness>>()),
            e_phnum: size(SEGMENTS),
            e_shentsize: size(size_of::<SectionHeader64<Endianness>>()),
            e_shnum: size(count),
            e_shstrndx: U16::new(LE, elf::SymbolSection(if self.has_sections { 3 } else { 0 })),
        };
        let mut headers = bytes_of(&file_header).to_vec();
        segments.iter().for_each(|segment| put(&mut headers, segment));
        bytes[..headers.len()].copy_from_slice(&headers);
        sections[..count].iter().for_each(|section| put(&mut bytes, section));
        bytes
    }
}
