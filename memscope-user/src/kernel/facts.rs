//! What the kernel says of the programs it took: the verifier's work and the memory.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::programs::{ProgramError, ProgramInfo, loaded_programs};

use super::Kernel;

/// What the kernel says of one loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    /// Its name in the object; the kernel keeps the first 15 bytes only.
    pub name: String,
    /// Instructions the verifier walked through, each path counted; the kernel refuses a
    /// program above one million (`BPF_COMPLEXITY_LIMIT_INSNS`). Linux 5.16 and later say it.
    pub verified_instructions: Option<u32>,
    /// Size as eBPF instructions after the verifier has rewritten and cut it.
    pub translated_bytes: Option<u32>,
    /// Size as machine code; none without the kernel's compiler (`net.core.bpf_jit_enable`).
    pub machine_code_bytes: Option<u32>,
}

impl Kernel {
    /// Facts about all loaded programs, by name.
    ///
    /// # Errors
    ///
    /// If the kernel tells nothing about a program.
    pub fn programs(&self) -> Result<Vec<ProgramFacts>, ProgramError> {
        let mut programs = Vec::new();
        for (name, program) in self.ebpf.programs() {
            match program.info() {
                Ok(info) => programs.push(ProgramFacts::of(name, &info)),
                // The ways of attaching each have programs of their own.
                Err(ProgramError::NotLoaded) => {}
                Err(error) => return Err(error),
            }
        }
        let ids: BTreeMap<u32, &str> = self
            .programs
            .iter()
            .filter_map(|(name, program)| Some((id_of(program)?, name)))
            .collect();
        for info in loaded_programs() {
            // Other programs of this machine come and go while they are listed.
            if let Ok(info) = info
                && let Some(name) = ids.get(&info.id())
            {
                programs.push(ProgramFacts::of(name, &info));
            }
        }
        programs.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(programs)
    }
}

impl ProgramFacts {
    fn of(name: &str, info: &ProgramInfo) -> Self {
        Self {
            name: name.to_owned(),
            verified_instructions: info.verified_instruction_count(),
            translated_bytes: info.size_translated(),
            machine_code_bytes: Some(info.size_jitted()).filter(|bytes| *bytes > 0),
        }
    }
}

/// The kernel's number for a program.
fn id_of(program: BorrowedFd<'_>) -> Option<u32> {
    let fdinfo = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let text = fs::read_to_string(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

/// Memory of all eBPF maps this process holds, each once, as the kernel accounts it: before
/// Linux 6.4 an estimate from sizes and numbers of entries. None if it says nothing.
#[must_use]
pub fn held_map_bytes() -> Option<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        // The descriptor of the listing itself is gone by now, and others may be.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        maps.extend(map_of(&text));
    }
    (!maps.is_empty()).then(|| maps.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)))
}

/// Number and memory of the map behind a descriptor, from its `fdinfo`
/// (`bpf_map_show_fdinfo` in `kernel/bpf/syscall.c`). None for anything but a map.
fn map_of(fdinfo: &str) -> Option<(u64, u64)> {
    let value = |key: &str| {
        fdinfo
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
    };
    let _is_a_map: u64 = value("map_type")?;
    Some((value("map_id")?, value("memlock")?))
}

#[cfg(test)]
mod tests {
    use super::map_of;

    #[test]
    fn only_maps_have_memory_here() {
        let map = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nmap_type:\t27\nkey_size:\t0\n\
                   max_entries:\t65536\nmap_extra:\t0x0\nmemlock:\t79232\nmap_id:\t12\nfrozen:\t0\n";
        assert_eq!(map_of(map), Some((12, 79232)));
        let program = "pos:\t0\nprog_type:\t2\nprog_jited:\t1\nmemlock:\t4096\nprog_id:\t9\n";
        assert_eq!(map_of(program), None);
        assert_eq!(map_of("map_type:\t27\nmap_id:\t1\nmemlock:\t-1\n"), None);
        assert_eq!(map_of("map_type:\t27\nmap_id:\t1\n"), None);
        assert_eq!(map_of(""), None);
    }
}
