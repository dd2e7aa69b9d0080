use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
};

use super::perf_map::{MAX_MAP_BYTES, PerfMap};
use crate::{model::SourceFunction, target::open_in_directory};

/// Most bytes read of `/proc/PID/status`, which has about 1,500.
const MAX_STATUS_BYTES: u64 = 1 << 16;

/// Why the generated code of a process has no names.
#[derive(Debug, thiserror::Error)]
pub enum GeneratedCodeError {
    /// It cannot be looked at.
    #[error("cannot read {path}")]
    Unreadable {
        /// What could not be read.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `/proc/PID/status` does not say whose it is.
    #[error("{path} does not say its number and owner")]
    NoStatus {
        /// Which file.
        path: String,
    },
}

/// The code that a process generates, and the map of it that its compiler writes:
/// `/tmp/perf-PID.map`, where both the folder and the number are those that the process
/// itself sees.
#[derive(Debug)]
pub struct GeneratedCode {
    /// The process's `/tmp`; it can be read from when the process is gone.
    folder: File,
    file_name: String,
    /// Whose map is believed.
    owners: Vec<u32>,
    read: Option<Version>,
    map: PerfMap,
}

/// What tells that a map has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    length_bytes: u64,
    modified: (i64, i64),
}

impl GeneratedCode {
    /// Finds out where a process that still runs would have its map.
    ///
    /// # Errors
    ///
    /// If it has ended, or may not be looked at.
    pub fn of(pid: u32) -> Result<Self, GeneratedCodeError> {
        let unreadable =
            |path: &str, source| GeneratedCodeError::Unreadable { path: path.to_owned(), source };
        let path = format!("/proc/{pid}/root/tmp");
        let folder = File::open(&path).map_err(|error| unreadable(&path, error))?;
        let path = format!("/proc/{pid}/status");
        let mut status = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_STATUS_BYTES).read_to_string(&mut status))
            .map_err(|error| unreadable(&path, error))?;
        let (own_pid, owners) =
            own_pid_and_owners(&status).ok_or(GeneratedCodeError::NoStatus { path })?;
        Ok(Self {
            folder,
            file_name: format!("perf-{own_pid}.map"),
            owners,
            read: None,
            map: PerfMap::default(),
        })
    }

    /// Reads the map again if it has changed; says whether it has.
    pub fn refresh(&mut self) -> bool {
        match self.read_map() {
            Ok(changed) => changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                log::debug!("no names from {}: {error}", self.file_name);
                false
            }
        }
    }

    fn read_map(&mut self) -> io::Result<bool> {
        let mut file = open_in_directory(&self.folder, &self.file_name)?;
        let metadata = file.metadata()?;
        // As perf does: others could tell lies of this process.
        if metadata.uid() != 0 && !self.owners.contains(&metadata.uid()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it belongs to user {}, as whom the process does not run", metadata.uid()),
            ));
        }
        let version = Version {
            inode: metadata.ino(),
            length_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        if self.read == Some(version) {
            return Ok(false);
        }
        let skipped = metadata.len().saturating_sub(MAX_MAP_BYTES);
        file.seek(SeekFrom::Start(skipped))?;
        let mut text = Vec::new();
        file.take(MAX_MAP_BYTES).read_to_end(&mut text)?;
        self.map = PerfMap::parse(after_cut(&text, skipped > 0));
        self.read = Some(version);
        if self.map.ignored_lines() > 0 {
            log::debug!("{}: {} lines make no sense", self.file_name, self.map.ignored_lines());
        }
        Ok(true)
    }

    /// The function that a return address leads back to, as the map said when it was
    /// last read.
    #[must_use]
    pub fn function(&self, return_avma: u64) -> Option<SourceFunction> {
        // A return address is that of the instruction after the call.
        let name = self.map.name_at(return_avma.checked_sub(1)?)?;
        Some(SourceFunction { name: name.to_owned(), file: None, line: None, inlined: false })
    }
}

/// Without the line that the cut went through.
fn after_cut(text: &[u8], is_cut: bool) -> &[u8] {
    if !is_cut {
        return text;
    }
    let end = text.iter().position(|byte| *byte == b'\n');
    end.and_then(|end| text.get(end + 1..)).unwrap_or_default()
}

/// The process id that the process itself sees, and the users it runs as: real and
/// effective.
fn own_pid_and_owners(status: &str) -> Option<(u32, Vec<u32>)> {
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let values = status.lines().find_map(|line| line.strip_prefix(key))?;
        values.split_whitespace().map(|value| value.parse().ok()).collect()
    };
    // The last one is that of the innermost pid namespace.
    let own_pid = numbers("NSpid:").or_else(|| numbers("Pid:"))?.pop()?;
    let owners = numbers("Uid:")?.into_iter().take(2).collect();
    Some((own_pid, owners))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write as _, os::unix::fs::symlink};

    fn generated(folder: &std::path::Path, owners: Vec<u32>) -> GeneratedCode {
        GeneratedCode {
            folder: File::open(folder).unwrap(),
            file_name: "perf-7.map".to_owned(),
            owners,
            read: None,
            map: PerfMap::default(),
        }
    }

    fn me() -> u32 {
        nix::unistd::Uid::current().as_raw()
    }

    #[test]
    fn the_map_is_read_again_when_it_has_grown() {
        let folder = tempfile::tempdir().unwrap();
        let mut code = generated(folder.path(), vec![me()]);
        assert!(!code.refresh(), "there is none yet");
        let path = folder.path().join("perf-7.map");
        let mut map = File::create(&path).unwrap();
        map.write_all(b"1000 10 first\n").unwrap();
        assert!(code.refresh() && !code.refresh());
        let name = |code: &GeneratedCode, address| code.function(address).map(|found| found.name);
        assert_eq!(name(&code, 0x1000), None, "the call before it is elsewhere");
        assert_eq!(name(&code, 0x1010).as_deref(), Some("first"), "a call at the very end");
        map.write_all(b"2000 10 second\n").unwrap();
        assert!(code.refresh());
        assert_eq!(name(&code, 0x2001).as_deref(), Some("second"));
        std::fs::remove_file(&path).unwrap();
        assert!(!code.refresh());
        assert_eq!(name(&code, 0x2001).as_deref(), Some("second"), "what was read stays");
    }

    #[test]
    fn neither_links_nor_the_files_of_others_are_believed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("elsewhere"), "1000 10 lie\n").unwrap();
        symlink("elsewhere", folder.path().join("perf-7.map")).unwrap();
        let mut code = generated(folder.path(), vec![me()]);
        assert!(!code.refresh() && code.function(0x1001).is_none());
        std::fs::remove_file(folder.path().join("perf-7.map")).unwrap();
        std::fs::write(folder.path().join("perf-7.map"), "1000 10 lie\n").unwrap();
        if me() == 0 {
            std::os::unix::fs::chown(folder.path().join("perf-7.map"), Some(12_345), None).unwrap();
        }
        let mut code = generated(folder.path(), vec![54_321]);
        assert!(!code.refresh() && code.function(0x1001).is_none());
    }

    #[test]
    fn a_process_in_a_container_sees_another_number() {
        let status = "Name:\tnode\nUid:\t1000\t1001\t1002\t1003\nPid:\t4711\nNSpid:\t4711\t17\t3\n";
        assert_eq!(own_pid_and_owners(status), Some((3, vec![1000, 1001])));
        let old = "Uid:\t0\t0\t0\t0\nPid:\t4711\n";
        assert_eq!(own_pid_and_owners(old), Some((4711, vec![0, 0])));
        for bad in ["", "NSpid:\nUid:\t0\n", "NSpid:\tx\nUid:\t0\n", "NSpid:\t1\n"] {
            assert_eq!(own_pid_and_owners(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn of_a_long_map_the_end_counts() {
        assert_eq!(after_cut(b"00 10 torn\n200 10 whole\n", true), b"200 10 whole\n");
        assert_eq!(after_cut(b"100 10 a\n", false), b"100 10 a\n");
        assert_eq!(after_cut(b"no end", true), b"");
    }

    #[test]
    fn this_process_has_a_place_for_its_map() {
        let pid = std::process::id();
        let code = GeneratedCode::of(pid).unwrap();
        assert_eq!(code.file_name, format!("perf-{pid}.map"));
        assert!(code.owners.contains(&me()));
        assert!(matches!(GeneratedCode::of(u32::MAX), Err(GeneratedCodeError::Unreadable { .. })));
    }
}
