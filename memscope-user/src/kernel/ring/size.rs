//! How large the rings are if nobody says so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use memscope_common::control::Slot;
use procfs::{Current as _, Meminfo};

use super::{
    super::{KernelError, SLOT_SHARE},
    possible_cpus,
};

/// So long all processors can do nothing but allocate and free before anything is lost, although
/// the collector does not get to run.
const PATIENCE_NS: u64 = 250_000_000;
/// No processor makes records faster, as each is the work of a hit: a probe that does nothing takes 600 to
/// 700 ns (`memscope doctor`), the floor of a pair of malloc and free, which makes two, is 1.8 us
/// (`cargo xtask bench`).
const NS_PER_RECORD: u64 = 500;
/// At most one part in so many of the memory that can be had goes into the rings.
const SHARE_OF_MEMORY: u64 = 16;
/// Copies of stacks need room even where there is one processor.
const MIN_BYTES: u64 = 4 << 20;
/// More takes long to be made ready, as the kernel clears all of it before anything is attached.
const MAX_BYTES: u64 = 512 << 20;

/// What the size of the ring buffer rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    /// The size.
    pub bytes: u32,
    /// Processors that there can be.
    pub cpus: u32,
    /// Memory that can be had.
    pub available_bytes: u64,
}

impl RingSize {
    /// By what this machine has.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell how many processors there can be.
    pub fn of_this_machine() -> Result<Self, KernelError> {
        let cpus = possible_cpus().map_err(KernelError::Cpus)?;
        let available_bytes = available_bytes();
        Ok(Self { bytes: ring_bytes(cpus, available_bytes), cpus, available_bytes })
    }
}

/// The size of the ring buffer:
///
/// ```text
/// power of two from   SLOT_SHARE * cpus * PATIENCE_NS / NS_PER_RECORD * size of a slot   on,
/// at most             the last one with which ring and slots, that is bytes + bytes / SLOT_SHARE,
///                     take no more than available_bytes / SHARE_OF_MEMORY
/// ```
///
/// and in any case from [`MIN_BYTES`] to [`MAX_BYTES`]. What most records go into are the slots,
/// which have one part in [`SLOT_SHARE`] of these bytes beside them.
fn ring_bytes(cpus: u32, available_bytes: u64) -> u32 {
    let share = u64::from(SLOT_SHARE);
    let slots = u64::from(cpus) * (PATIENCE_NS / NS_PER_RECORD);
    let wanted = (share * slots * size_of::<Slot>() as u64).next_power_of_two();
    let room = available_bytes / SHARE_OF_MEMORY * share / (share + 1);
    let affordable = room.checked_ilog2().map_or(0, |log2| 1 << log2);
    wanted.min(affordable).clamp(MIN_BYTES, MAX_BYTES) as u32
}

/// Memory that can be had without anything being taken from others, and within what the control
/// groups allow: BPF maps count against these.
fn available_bytes() -> u64 {
    let free = Meminfo::current().ok().map(|info| info.mem_available.unwrap_or(info.mem_free));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit_of_groups(&groups, |file| fs::read_to_string(file).ok());
    free.into_iter().chain(limit).min().unwrap_or_default()
}

/// The least memory that a process may have by its control groups, of either version, and those
/// above them; none if there is no limit.
fn limit_of_groups(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits_of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (mounted, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return None;
        };
        let group = PathBuf::from(format!("{mounted}{path}"));
        // In a container the path can be the host's, and nothing there; what is mounted is.
        let above = group.ancestors().take_while(|group| group.starts_with(mounted));
        above.filter_map(|group| read(&group.join(file))?.trim().parse::<u64>().ok()).min()
    };
    groups.lines().filter_map(limits_of_line).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn size_follows_processors_and_memory() {
        let cases = [
            (1, 24 * GIB, 32 * MIB),
            (2, 24 * GIB, 64 * MIB),
            (3, 24 * GIB, 128 * MIB),
            (8, 24 * GIB, 256 * MIB),
            (64, 256 * GIB, 512 * MIB),
            (u32::MAX, u64::MAX, 512 * MIB),
            (2, 2 * GIB, 64 * MIB),
            (2, GIB, 32 * MIB),
            (8, GIB, 32 * MIB),
            (64, 0, 4 * MIB),
            (0, GIB, 4 * MIB),
        ];
        for (cpus, available_bytes, expected) in cases {
            let bytes = ring_bytes(cpus, available_bytes);
            assert_eq!(u64::from(bytes), expected, "{cpus} CPUs, {available_bytes} bytes");
            assert!(bytes.is_power_of_two());
        }
    }

    #[test]
    fn least_limit_of_the_groups_and_those_above_counts() {
        let limit = |groups: &str, files: &[(&str, &str)]| {
            limit_of_groups(groups, |file| {
                let found = files.iter().find(|(path, _)| Path::new(path) == file);
                found.map(|(_, text)| (*text).to_owned())
            })
        };
        let second = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "4096\n"),
            ("/sys/fs/cgroup/memory.max", "8192\n"),
            ("/sys/fs/memory.max", "1\n"),
        ];
        assert_eq!(limit("0::/a/b\n", &second), Some(4096));
        assert_eq!(limit("0::/../c\n", &second), Some(8192), "of a container");
        let first = [
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2048\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit("5:cpu,memory:/a\n1:cpu:/b\n0::/\n", &first), Some(2048));
        assert_eq!(limit("1:cpu:/a\n", &first), None);
        assert_eq!(limit("nothing\n", &first), None);
    }
}
