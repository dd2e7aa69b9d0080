use std::{
    fs::File,
    io::{self, Cursor, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use procfs::{
    FromBufRead, ProcError,
    process::{MMPermissions, MMapPath, MemoryMaps, Process, Stat},
};

/// Most bytes read of a `maps` file: a million mappings of ordinary length, where the
/// kernel's default limit is 65,530 (`vm.max_map_count`).
const MAX_MAPS_BYTES: u64 = 1 << 27;

/// Most bytes read of a process's memory at once; the kernel's vDSO has some pages.
const MAX_IMAGE_BYTES: u64 = 1 << 20;

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is none of that number.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The number.
        pid: u32,
    },
    /// It has ended and waits for its parent to notice.
    #[error("process {pid} has already exited")]
    Exited {
        /// The number.
        pid: u32,
    },
    /// It has no memory of its own.
    #[error("process {pid} is a thread of the kernel: it has no memory of its own to trace")]
    KernelThread {
        /// The number.
        pid: u32,
    },
    /// Not ours to look at.
    #[error("not allowed to look at process {pid}: it takes root, or CAP_SYS_PTRACE")]
    NotAllowed {
        /// The number.
        pid: u32,
    },
    /// `/proc` could not be read or understood.
    #[error("cannot read {what} of process {pid}")]
    Unreadable {
        /// The number.
        pid: u32,
        /// Which file of `/proc/PID`.
        what: &'static str,
        /// Why.
        #[source]
        source: ProcError,
    },
}

/// Most threads of a process whose names are asked for.
const MAX_NAMED_THREADS: usize = 4096;

/// A process, held by a descriptor so that it stays the same one even when its number
/// is used again.
#[derive(Debug)]
pub struct TargetProcess {
    pid: u32,
    start_ticks: u64,
    /// None if it was gone before it could be looked at.
    process: Option<Process>,
}

/// Which file: it has moved or changed its name if the path says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdentity {
    /// Major and minor number of the device.
    pub device: (i32, i32),
    /// Inode number on it.
    pub inode: u64,
}

/// What is behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappedFile {
    /// A file.
    File {
        /// Which.
        identity: FileIdentity,
        /// Its path in the target's view, with ` (deleted)` after it if it is gone.
        path: String,
    },
    /// Code that the kernel provides, such as `[vdso]`.
    Kernel(String),
    /// Memory without a file: generated code.
    Anonymous,
}

/// The kernel's own code in a process that calls nothing: stacks never lead there. The first is emulated, the second holds copies
/// of single instructions, and the trampoline that stands for hidden return addresses. It appears when a
/// probe is first hit, which changes nothing of what stacks are walked by.
const WITHOUT_CALLS: [&str; 2] = ["[vsyscall]", "[uprobes]"];

impl MappedFile {
    fn is_without_calls(&self) -> bool {
        matches!(self, Self::Kernel(name) if WITHOUT_CALLS.contains(&name.as_str()))
    }
}

/// Executable memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeMapping {
    /// First address.
    pub start_avma: u64,
    /// First address after it.
    pub end_avma: u64,
    /// Position in the file of the first byte.
    pub file_offset: u64,
    /// What is mapped.
    pub file: MappedFile,
}

impl TargetProcess {
    /// Looks a process up.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot be traced.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        let number = i32::try_from(pid).map_err(|_overflow| TargetError::NoSuchProcess { pid })?;
        let process =
            Process::new(number).map_err(|error| classify(pid, "the directory", error))?;
        let stat = process.stat().map_err(|error| classify(pid, "stat", error))?;
        check_traceable(pid, &stat)?;
        Ok(Self { pid, start_ticks: stat.starttime, process: Some(process) })
    }

    /// A process that was gone before it could be looked at.
    #[must_use]
    pub fn gone(pid: u32) -> Self {
        Self { pid, start_ticks: 0, process: None }
    }

    /// The file that this program is, by the numbers that mappings have: those of `stat` can be
    /// others (btrfs, layered overlayfs).
    #[must_use]
    pub fn own_file() -> Option<FileIdentity> {
        let here_avma = Self::own_file as *const () as u64;
        let mut mappings = Self::open(std::process::id()).ok()?.code_mappings().ok()?.into_iter();
        let code = mappings.find(|code| (code.start_avma..code.end_avma).contains(&here_avma))?;
        match code.file {
            MappedFile::File { identity, .. } => Some(identity),
            MappedFile::Kernel(_) | MappedFile::Anonymous => None,
        }
    }

    pub(super) fn process(&self) -> Result<&Process, ProcError> {
        self.process.as_ref().ok_or(ProcError::NotFound(None))
    }

    fn stat(&self) -> Option<Stat> {
        self.process().ok()?.stat().ok()
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since boot.
    #[must_use]
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Name of its main thread.
    #[must_use]
    pub fn comm(&self) -> Option<String> {
        self.stat().map(|stat| stat.comm)
    }

    /// The process that has begun it.
    #[must_use]
    pub fn parent_pid(&self) -> Option<u32> {
        self.stat().and_then(|stat| u32::try_from(stat.ppid).ok())
    }

    /// Path of its executable.
    #[must_use]
    pub fn exe(&self) -> Option<String> {
        self.process().ok()?.exe().ok().map(|path| path.to_string_lossy().into_owned())
    }

    /// The program it runs.
    ///
    /// # Errors
    ///
    /// If the process is gone or may not be read.
    pub fn open_exe(&self) -> io::Result<File> {
        File::open(format!("/proc/{}/exe", self.pid))
    }

    /// Its executable memory, in the order of addresses.
    ///
    /// # Errors
    ///
    /// If the process is gone or may not be read.
    pub fn code_mappings(&self) -> Result<Vec<CodeMapping>, TargetError> {
        let mappings = executable(self.maps()?);
        // Whatever runs has code; a process that is exiting has given its memory back.
        if mappings.is_empty() {
            return Err(TargetError::Exited { pid: self.pid });
        }
        Ok(mappings)
    }

    /// Where the heap ends that `brk` moves; none if there is no such heap.
    ///
    /// # Errors
    ///
    /// If the process is gone or may not be read.
    pub fn heap_end_avma(&self) -> Result<Option<u64>, TargetError> {
        let is_heap = |map: &procfs::process::MemoryMap| map.pathname == MMapPath::Heap;
        Ok(self.maps()?.into_iter().rfind(is_heap).map(|map| map.address.1))
    }

    fn maps(&self) -> Result<Vec<procfs::process::MemoryMap>, TargetError> {
        let unreadable = |source| classify(self.pid, "maps", source);
        let mut text = Vec::new();
        self.process()
            .and_then(|process| process.open_relative("maps"))
            .map_err(unreadable)?
            .take(MAX_MAPS_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| unreadable(ProcError::Io(error, None)))?;
        // A path that is no UTF-8 must not hide the mappings after it.
        Ok(parse_maps(&String::from_utf8_lossy(&text)).map_err(unreadable)?.0)
    }

    /// Opens the file behind a mapping: the very file, even if its path now leads to
    /// another one or to none.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, or is no longer mapped there.
    pub fn open_mapped(&self, mapping: &CodeMapping) -> io::Result<File> {
        let MappedFile::File { identity, path } = &mapping.file else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no file is mapped there"));
        };
        let CodeMapping { start_avma, end_avma, .. } = mapping;
        let link = format!("/proc/{}/map_files/{start_avma:x}-{end_avma:x}", self.pid);
        let mut in_root = PathBuf::from(format!("/proc/{}/root", self.pid));
        in_root.push(path.trim_start_matches('/'));
        // map_files needs CAP_CHECKPOINT_RESTORE, where the path will often do; and
        // once the process is gone, its path as seen from here is all that is left.
        open_identical(Path::new(&link), *identity)
            .or_else(|_refused| open_identical(&in_root, *identity))
            .or_else(|_gone| open_identical(Path::new(path), *identity))
    }

    /// What is in its memory, for what no file holds.
    ///
    /// # Errors
    ///
    /// If it is more than a megabyte, or not there.
    pub fn read_memory(&self, start_avma: u64, length_bytes: u64) -> io::Result<Vec<u8>> {
        if length_bytes > MAX_IMAGE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much to read at once"));
        }
        let memory = self.process().and_then(Process::mem).map_err(io::Error::other)?;
        let mut bytes = vec![0; length_bytes as usize];
        memory.read_exact_at(&mut bytes, start_avma)?;
        Ok(bytes)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.stat().is_some_and(|stat| stat.starttime == self.start_ticks && stat.state != 'Z')
    }

    /// The threads that it has now, and what they are called; of many thousands the first.
    #[must_use]
    pub fn thread_names(&self) -> Vec<(u32, String)> {
        let Some(tasks) = self.process().ok().and_then(|process| process.tasks().ok()) else {
            return Vec::new();
        };
        let named = tasks.flatten().filter_map(|task| {
            let thread = u32::try_from(task.tid).ok()?;
            Some((thread, task.stat().ok()?.comm))
        });
        let names: Vec<(u32, String)> = named.take(MAX_NAMED_THREADS).collect();
        // Else they can be those of a process that was given its number.
        if self.is_alive() { names } else { Vec::new() }
    }

    /// Number of its threads.
    #[must_use]
    pub fn thread_count(&self) -> Option<u64> {
        self.stat().and_then(|stat| u64::try_from(stat.num_threads).ok())
    }
}

/// The numbers of all processes there are now.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn all_pids() -> Result<Vec<u32>, io::Error> {
    let processes = procfs::process::all_processes().map_err(io::Error::other)?;
    Ok(processes.flatten().filter_map(|process| u32::try_from(process.pid).ok()).collect())
}

/// Path under which this process can reach an open file, whatever its own path is.
#[must_use]
pub fn path_of_open(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open_identical(path: &Path, identity: FileIdentity) -> io::Result<File> {
    // Looked at before it is opened for reading, as opening a device or a pipe could have effects; and held
    // meanwhile, as the same path can lead to another file a moment later. Libraries that come and go at one
    // address are at one path in map_files.
    let held = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    let metadata = held.metadata()?;
    if metadata.file_type().is_fifo() || metadata.ino() != identity.inode {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the path leads to another file"));
    }
    File::open(path_of_open(&held))
}

fn check_traceable(pid: u32, stat: &Stat) -> Result<(), TargetError> {
    /// The task's mm is not its own (`PF_KTHREAD`, include/linux/sched.h).
    const PF_KTHREAD: u32 = 0x0020_0000;
    if stat.flags & PF_KTHREAD != 0 {
        return Err(TargetError::KernelThread { pid });
    }
    if matches!(stat.state, 'Z' | 'X' | 'x') {
        return Err(TargetError::Exited { pid });
    }
    Ok(())
}

fn classify(pid: u32, what: &'static str, source: ProcError) -> TargetError {
    match source {
        ProcError::NotFound(_) => TargetError::NoSuchProcess { pid },
        ProcError::PermissionDenied(_) => TargetError::NotAllowed { pid },
        // What reading a file of /proc gives when its process is gone.
        ProcError::Io(error, _) if error.raw_os_error() == Some(libc::ESRCH) => {
            TargetError::Exited { pid }
        }
        source => TargetError::Unreadable { pid, what, source },
    }
}

/// What `maps`, `smaps` or `smaps_rollup` says.
pub(super) fn parse_maps(text: &str) -> Result<MemoryMaps, ProcError> {
    // The parser takes eight digits after this for granted, as System V's shared memory has; but
    // any file can be called so.
    MemoryMaps::from_buf_read(Cursor::new(text.replace("/SYSV", "/sysv").as_bytes()))
}

/// What of a process's memory is executable.
fn executable(maps: Vec<procfs::process::MemoryMap>) -> Vec<CodeMapping> {
    let executable = |map: &procfs::process::MemoryMap| map.perms.contains(MMPermissions::EXECUTE);
    let mappings = maps.into_iter().filter(executable).map(code_mapping);
    mappings.filter(|mapping| !mapping.file.is_without_calls()).collect()
}

fn code_mapping(map: procfs::process::MemoryMap) -> CodeMapping {
    let file = match map.pathname {
        MMapPath::Path(path) => MappedFile::File {
            identity: FileIdentity { device: map.dev, inode: map.inode },
            path: path.to_string_lossy().into_owned(),
        },
        MMapPath::Vdso => MappedFile::Kernel("[vdso]".to_owned()),
        MMapPath::Vsyscall => MappedFile::Kernel("[vsyscall]".to_owned()),
        MMapPath::Other(name) => MappedFile::Kernel(format!("[{name}]")),
        _ => MappedFile::Anonymous,
    };
    CodeMapping {
        start_avma: map.address.0,
        end_avma: map.address.1,
        file_offset: map.offset,
        file,
    }
}

/// The root directory of a process that sees other file systems than memscope does, as in
/// a container; held open, so that it can be searched even when the process has ended.
#[must_use]
pub fn other_root(pid: u32) -> Option<File> {
    let identity = |path: &str| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let own = [identity("/proc/self/root/"), identity("/proc/self/ns/mnt")];
    let theirs =
        [identity(&format!("/proc/{pid}/root/")), identity(&format!("/proc/{pid}/ns/mnt"))];
    if own == theirs {
        return None;
    }
    File::open(format!("/proc/{pid}/root/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_file_stops_the_reading_of_maps() {
        let line =
            |name: &str| format!("7f0000000000-7f0000001000 r-xp 00000000 fe:00 9   {name}\n");
        for name in ["/SYSV", "/SYSVx", "/SYSV00000000 (deleted)", "/a b", "/lib/\u{fffd}.so"] {
            let maps = format!("{}{}", line(name), line("/lib/libc.so.6"));
            let found = executable(parse_maps(&maps).unwrap().0);
            assert_eq!(found.len(), 2, "{name}");
            assert!(matches!(found[1].file, MappedFile::File { .. }), "{name}");
        }
    }

    #[test]
    fn what_the_kernel_maps_for_probes_is_no_code_of_the_process() {
        let maps = "7ffe71b5a000-7ffe71b5b000 r-xp 00000000 00:00 0   [vdso]\n\
            7fffffffe000-7ffffffff000 --xp 00000000 00:00 0   [uprobes]\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]\n";
        let found = executable(parse_maps(maps).unwrap().0);
        let files: Vec<&MappedFile> = found.iter().map(|mapping| &mapping.file).collect();
        assert_eq!(files, [&MappedFile::Kernel("[vdso]".to_owned())]);
    }

    #[test]
    fn this_process_maps_its_own_executable() {
        let me = TargetProcess::open(std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        let inode = std::fs::metadata(&exe).unwrap().ino();
        let mappings = me.code_mappings().unwrap();
        let own = mappings.iter().find(|mapping| matches!(&mapping.file, MappedFile::File { identity, .. } if identity.inode == inode));
        let file = me.open_mapped(own.expect("the test's own code is mapped")).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), inode);
        assert_eq!(TargetProcess::own_file().unwrap().inode, inode);
        // Its allocator has asked for one.
        assert!(me.heap_end_avma().unwrap().is_some_and(|end_avma| end_avma % 4096 == 0));
        assert!(me.is_alive());
    }

    #[test]
    fn a_file_is_never_taken_for_the_one_that_was_at_its_path_before() {
        const REPLACEMENTS: usize = 20_000;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("library");
        let files = ["one", "other"].map(|name| place.path().join(name));
        for file in &files {
            std::fs::write(file, "").unwrap();
        }
        let inode = std::fs::metadata(&files[0]).unwrap().ino();
        let wanted = FileIdentity { device: (0, 0), inode };
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                let mut opened = 0;
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok(file) = open_identical(&path, wanted) {
                        assert_eq!(file.metadata().unwrap().ino(), inode);
                        opened += 1;
                    }
                }
                opened
            });
            let link = place.path().join("link");
            for round in 0..REPLACEMENTS {
                std::fs::hard_link(&files[round % 2], &link).unwrap();
                std::fs::rename(&link, &path).unwrap();
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            opening.join().unwrap()
        });
        assert!(opened > 0, "it was never found");
    }

    #[test]
    fn processes_that_cannot_be_traced_are_told_apart() {
        assert!(matches!(TargetProcess::open(u32::MAX), Err(TargetError::NoSuchProcess { .. })));
        assert!(matches!(
            TargetProcess::open(4_194_304 + 1),
            Err(TargetError::NoSuchProcess { .. })
        ));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        // Not waited for, it stays as a zombie once it has exited.
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        let opened = TargetProcess::open(pid);
        child.wait().unwrap();
        assert!(matches!(opened, Err(TargetError::Exited { .. })), "{opened:?}");
    }
}
