//! Tables on disk, so that those of large files are made once.
//!
//! `docs/decisions/0006-unwind-table-cache.md` says where, and why nobody else can
//! change what is read here.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use memscope_common::unwind::{CFA_UNSUPPORTED, Rule, SAVED_AT_BP};
use rustc_hash::FxHashSet;
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, renameat, statat,
        unlinkat,
    },
    io::Errno,
    process::{geteuid, getpid},
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{FIRST_RULES, MAX_FILE_RULES, MAX_ROWS, PAGE_BYTES, Problems, UnwindRow, UnwindTable};

/// Room for some ten of the largest tables.
const MAX_CACHE_BYTES: u64 = 1 << 28;
/// Files looked at when room is made.
const MAX_CACHE_FILES: usize = 1 << 14;
/// Changes with the form of the file and with the rules that are made of the same input.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"memscopU";
const SUFFIX: &str = ".table";
const UNFINISHED_SUFFIX: &str = ".new";

/// Tells apart what tables are made from.
pub(super) type Digest = [u8; 32];

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
    #[error("there is no home directory for it")]
    NoHome,
    /// A directory cannot be made or opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could change what is in it.
    #[error("{} belongs to somebody else or is writable for others", path.display())]
    NotPrivate {
        /// Which.
        path: PathBuf,
    },
}

/// What stands at the beginning of a file; the rules and the rows follow.
#[repr(C)]
#[derive(
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    Clone,
    Copy,
)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// CRC-32C of all that follows.
    checksum: u32,
    digest: Digest,
    base_svma: u64,
    rules: u64,
    rows: u64,
    problems: Problems,
}

const CHECKED_FROM: usize = std::mem::offset_of!(Header, digest);

/// A directory of tables.
#[derive(Debug)]
pub struct TableCache {
    directory: OwnedFd,
    max_bytes: u64,
    written: AtomicU64,
}

impl TableCache {
    /// Opens the cache of the effective user; makes it if needed.
    ///
    /// # Errors
    ///
    /// If there is no place for it, or others could change it.
    pub fn open() -> Result<Self, CacheError> {
        let parent = if geteuid().is_root() {
            PathBuf::from("/var/cache")
        } else {
            let absolute = |name, below: &str| {
                let path = PathBuf::from(std::env::var_os(name)?).join(below);
                path.is_absolute().then_some(path)
            };
            absolute("XDG_CACHE_HOME", "")
                .or_else(|| absolute("HOME", ".cache"))
                .ok_or(CacheError::NoHome)?
        };
        Self::open_below(&parent, MAX_CACHE_BYTES)
    }

    pub(super) fn open_below(parent: &Path, max_bytes: u64) -> Result<Self, CacheError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |path: &Path| {
            let path = path.to_owned();
            |errno: Errno| CacheError::Open { path, source: errno.into() }
        };
        let mut directory = openat(CWD, parent, flags, Mode::empty()).map_err(failed(parent))?;
        let mut path = parent.to_owned();
        for name in ["memscope", "unwind"] {
            path.push(name);
            match mkdirat(&directory, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(&path)(errno)),
            }
            directory = openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(failed(&path))?;
            if !is_private(&fstat(&directory).map_err(failed(&path))?) {
                return Err(CacheError::NotPrivate { path });
            }
        }
        Ok(Self { directory, max_bytes, written: AtomicU64::new(0) })
    }

    /// The table that was made from this; none if it is not there. What is damaged is an
    /// error, and is replaced by the next [`TableCache::store`].
    pub(super) fn load(&self, digest: &Digest) -> io::Result<Option<UnwindTable>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name(digest), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_private(&stat) {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        let mut file = File::from(file);
        let table = read(&mut file, u64::try_from(stat.st_size).unwrap_or(0), digest)?;
        // The least recently used go first.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            log::debug!("a cached unwind table keeps its age: {error}");
        }
        Ok(Some(table))
    }

    /// Keeps a table, and removes what was not used for longest if there is no room.
    pub(super) fn store(&self, digest: &Digest, table: &UnwindTable) -> io::Result<()> {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let unfinished =
            format!("{}.{}.{number}{UNFINISHED_SUFFIX}", name(digest), getpid().as_raw_nonzero());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.directory, &unfinished, flags, Mode::RUSR | Mode::WUSR)?;
        let written = write(&mut File::from(file), digest, table).and_then(|()| {
            Ok(renameat(&self.directory, &unfinished, &self.directory, name(digest))?)
        });
        if written.is_err() {
            self.remove(&unfinished);
        }
        written?;
        self.make_room()
    }

    fn remove(&self, name: impl rustix::path::Arg) {
        if let Err(errno) = unlinkat(&self.directory, name, AtFlags::empty()) {
            log::debug!("a cached unwind table cannot be removed: {errno}");
        }
    }

    fn make_room(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in Dir::read_from(&self.directory)?.take(MAX_CACHE_FILES) {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if !bytes.ends_with(SUFFIX.as_bytes()) && !bytes.ends_with(UNFINISHED_SUFFIX.as_bytes())
            {
                continue;
            }
            if let Ok(stat) = statat(&self.directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            {
                let used_at = (stat.st_mtime, stat.st_mtime_nsec);
                let bytes = u64::try_from(stat.st_size).unwrap_or(0);
                files.push((used_at, bytes, entry.file_name().to_owned()));
            }
        }
        let mut sum = files.iter().fold(0_u64, |sum, (_, bytes, _)| sum.saturating_add(*bytes));
        files.sort_unstable();
        for (_, bytes, name) in files {
            if sum <= self.max_bytes {
                break;
            }
            self.remove(name.as_c_str());
            sum = sum.saturating_sub(bytes);
        }
        Ok(())
    }
}

/// Whether only we can change it.
fn is_private(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw()
        && !Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH)
}

fn name(digest: &Digest) -> String {
    use std::fmt::Write as _;
    let mut name = String::with_capacity(2 * digest.len() + SUFFIX.len());
    for byte in digest {
        // Writing to a string does not fail.
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    name + SUFFIX
}

fn write(file: &mut File, digest: &Digest, table: &UnwindTable) -> io::Result<()> {
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        checksum: 0,
        digest: *digest,
        base_svma: table.base_svma,
        rules: table.rules.len() as u64,
        rows: table.rows.len() as u64,
        problems: table.problems,
    };
    let (rules, rows) = (table.rules.as_bytes(), table.rows.as_bytes());
    header.checksum = checksum(&header, rules, rows);
    file.write_all(header.as_bytes())?;
    file.write_all(rules)?;
    file.write_all(rows)
}

fn checksum(header: &Header, rules: &[u8], rows: &[u8]) -> u32 {
    let header = header.as_bytes().get(CHECKED_FROM..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(header), rules), rows)
}

/// Reads a table whose file has this length; checks all of it.
fn read(file: &mut File, length: u64, digest: &Digest) -> io::Result<UnwindTable> {
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut header = Header::new_zeroed();
    file.read_exact(header.as_mut_bytes())?;
    if header.magic != MAGIC || header.version != VERSION || header.digest != *digest {
        return Err(damaged("another kind or version of file"));
    }
    let count =
        |count: u64, limit: usize| usize::try_from(count).ok().filter(|count| *count <= limit);
    let (Some(rules), Some(rows)) =
        (count(header.rules, MAX_FILE_RULES), count(header.rows, MAX_ROWS))
    else {
        return Err(damaged("more than the limits"));
    };
    let bytes = size_of::<Header>() + rules * size_of::<Rule>() + rows * size_of::<UnwindRow>();
    if u64::try_from(bytes).ok() != Some(length) {
        return Err(damaged("not as long as it says"));
    }
    let mut table = UnwindTable {
        base_svma: header.base_svma,
        rows: vec![UnwindRow::new_zeroed(); rows],
        rules: vec![Rule::new_zeroed(); rules],
        problems: header.problems,
    };
    file.read_exact(table.rules.as_mut_bytes())?;
    file.read_exact(table.rows.as_mut_bytes())?;
    if checksum(&header, table.rules.as_bytes(), table.rows.as_bytes()) != header.checksum {
        return Err(damaged("a wrong checksum"));
    }
    if is_valid(&table) { Ok(table) } else { Err(damaged("values that no table has")) }
}

/// Whether a table is as its type says.
fn is_valid(table: &UnwindTable) -> bool {
    let is_rule = |rule: &Rule| {
        rule.cfa <= CFA_UNSUPPORTED && rule.rbp <= SAVED_AT_BP && rule.rbx <= SAVED_AT_BP
    };
    let distinct: FxHashSet<&Rule> = table.rules.iter().collect();
    let follows = |pair: &[UnwindRow]| match pair {
        [before, after] => before.offset < after.offset && before.rule != after.rule,
        _ => true,
    };
    table.base_svma.is_multiple_of(PAGE_BYTES)
        && table.rules.starts_with(&FIRST_RULES)
        && distinct.len() == table.rules.len()
        && table.rules.iter().all(is_rule)
        && table.rows.iter().all(|row| (row.rule as usize) < table.rules.len())
        && table.rows.windows(2).all(follows)
}
