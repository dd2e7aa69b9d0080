//! Tables of many files, each made once.

use std::{
    fs::{File, Metadata},
    num::NonZero,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use rustc_hash::FxHashMap;

use super::{
    UnwindError, UnwindTable,
    cache::{Digest, TableCache},
    elf::{CallFrames, Parts},
    layout,
};

/// Call frame information from which on the cache on disk is used: less is read in some
/// milliseconds, which is not worth a file.
pub(super) const MIN_CACHED_BYTES: usize = 1 << 18;
/// Files read at once at most.
const MAX_THREADS: usize = 8;

/// Which file, and whether it has been written to since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_at: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            changed_at: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Where tables came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Made from a file's call frame information.
    pub made: u64,
    /// Read from the cache.
    pub cached: u64,
    /// The same as one that is in use already, of a file with the same contents.
    pub shared: u64,
    /// Files of the cache that could not be read or written, or were damaged.
    pub cache_failures: u64,
}

/// Makes tables of files, or takes them from the cache.
#[derive(Debug, Default)]
pub struct Tables {
    cache: Option<TableCache>,
    in_use: Mutex<FxHashMap<Digest, Weak<UnwindTable>>>,
    /// Of files that nobody has asked for yet.
    ahead: Mutex<FxHashMap<FileState, Arc<UnwindTable>>>,
    /// To be written into the cache.
    new: Mutex<Vec<(Digest, Arc<UnwindTable>)>>,
    made: AtomicU64,
    cached: AtomicU64,
    shared: AtomicU64,
    cache_failures: AtomicU64,
}

impl Tables {
    /// Without a cache, all tables are made anew.
    #[must_use]
    pub fn new(cache: Option<TableCache>) -> Self {
        Self { cache, ..Self::default() }
    }

    /// The table of a file. Files that say the same share one while it is in use.
    ///
    /// # Errors
    ///
    /// As [`UnwindTable::from_elf`], and if the file cannot be read. A cache that fails is
    /// none.
    pub fn load(&self, file: &File) -> Result<Arc<UnwindTable>, UnwindError> {
        // Pipes and devices have no length that could be trusted.
        let metadata = file.metadata().map_err(UnwindError::Read)?;
        if !metadata.is_file() {
            return Err(UnwindError::Read(std::io::ErrorKind::InvalidInput.into()));
        }
        if let Some(table) = lock(&self.ahead).remove(&FileState::of(&metadata)) {
            return Ok(table);
        }
        let parts = Parts::of(file);
        self.of(&CallFrames::read(&parts)?)
    }

    /// Makes the tables of files that will be asked for.
    pub fn load_ahead(&self, files: &[&File]) {
        for (file, table) in files.iter().zip(self.load_all(files)) {
            // What fails now fails again when it is asked for, and is told then.
            if let (Ok(metadata), Ok(table)) = (file.metadata(), table) {
                lock(&self.ahead).insert(FileState::of(&metadata), table);
            }
        }
    }

    /// Gives up those that nobody has asked for.
    pub fn forget_ahead(&self) {
        lock(&self.ahead).clear();
    }

    /// The table of an image in memory, such as the vDSO.
    ///
    /// # Errors
    ///
    /// As [`UnwindTable::from_elf`].
    pub fn load_image(&self, image: &[u8]) -> Result<Arc<UnwindTable>, UnwindError> {
        self.of(&CallFrames::read(image)?)
    }

    /// The tables of many files, in their order, on several threads.
    pub fn load_all(&self, files: &[&File]) -> Vec<Result<Arc<UnwindTable>, UnwindError>> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let count = processors.min(MAX_THREADS).min(files.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(number) else { return done };
                done.push((number, self.load(file)));
            }
        };
        let mut done = thread::scope(|threads| {
            let others: Vec<_> = (1..count)
                .filter_map(|_| {
                    // Without the thread, those that there are do it all.
                    thread::Builder::new()
                        .name("memscope-unwind".to_owned())
                        .spawn_scoped(threads, work)
                        .ok()
                })
                .collect();
            let mut done = work();
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        done.sort_unstable_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, table)| table).collect()
    }

    /// Writes what was made since the last time into the cache. That takes longer than making it
    /// does, and is left until those who wait for a table have it.
    pub fn keep_new(&self) {
        let Some(cache) = &self.cache else { return };
        let new = std::mem::take(&mut *lock(&self.new));
        for (digest, table) in new {
            if let Err(error) = cache.store(&digest, &table) {
                self.cache_failed("written", &error);
            }
        }
    }

    /// Where the tables came from so far.
    #[must_use]
    pub fn counts(&self) -> TableCounts {
        TableCounts {
            made: self.made.load(Ordering::Relaxed),
            cached: self.cached.load(Ordering::Relaxed),
            shared: self.shared.load(Ordering::Relaxed),
            cache_failures: self.cache_failures.load(Ordering::Relaxed),
        }
    }

    fn of(&self, file: &CallFrames<'_>) -> Result<Arc<UnwindTable>, UnwindError> {
        let digest = file.digest();
        if let Some(table) = lock(&self.in_use).get(&digest).and_then(Weak::upgrade) {
            self.shared.fetch_add(1, Ordering::Relaxed);
            return Ok(table);
        }
        let table = self.cached_or_made(file, &digest)?;
        let mut in_use = lock(&self.in_use);
        in_use.retain(|_, table| table.strong_count() > 0);
        in_use.insert(digest, Arc::downgrade(&table));
        Ok(table)
    }

    fn cached_or_made(
        &self,
        file: &CallFrames<'_>,
        digest: &Digest,
    ) -> Result<Arc<UnwindTable>, UnwindError> {
        let cache = self.cache.as_ref().filter(|_| file.bytes() >= MIN_CACHED_BYTES);
        match cache.map(|cache| cache.load(digest)) {
            Some(Ok(Some(table))) => {
                self.cached.fetch_add(1, Ordering::Relaxed);
                return Ok(Arc::new(table));
            }
            Some(Err(error)) => self.cache_failed("read", &error),
            Some(Ok(None)) | None => {}
        }
        let table = Arc::new(layout::table(file)?);
        self.made.fetch_add(1, Ordering::Relaxed);
        if cache.is_some() {
            lock(&self.new).push((*digest, Arc::clone(&table)));
        }
        Ok(table)
    }

    fn cache_failed(&self, what: &str, error: &std::io::Error) {
        self.cache_failures.fetch_add(1, Ordering::Relaxed);
        log::debug!("a cached unwind table cannot be {what}: {error}");
    }
}

/// What is guarded is never left half changed.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
