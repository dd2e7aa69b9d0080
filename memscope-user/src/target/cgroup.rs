//! Control groups, by the names that people have for them.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use procfs::{
    ProcError, ProcResult,
    process::{MountInfo, Process},
};

/// Most directories looked into, when a group is searched for and when its processes are listed.
const MAX_DIRECTORIES: usize = 1 << 16;
/// Shortest beginning of a container's id that is searched for: what `docker ps` shows.
const MIN_ID_CHARACTERS: usize = 12;
/// The hierarchies of version 1 that are looked into first: container engines use these all.
const PREFERRED: [&str; 3] = ["memory", "cpu", "systemd"];

/// Why a control group cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// `/proc` does not say where control groups are.
    #[error("cannot find out where control groups are mounted")]
    Mounts(#[source] ProcError),
    /// No hierarchy has it.
    #[error(
        "there is no control group {name:?} in {searched}: give a path below one of these, one as in /proc/PID/cgroup, or at least {MIN_ID_CHARACTERS} characters of a container's id"
    )]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        searched: String,
    },
    /// It cannot be looked at.
    #[error("cannot look at the control group {directory}")]
    Unreadable {
        /// Its directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlGroup {
    directory: PathBuf,
    /// Of version 2: its number, and how many groups are above it.
    pub unified: Option<(u64, u32)>,
}

/// A mounted hierarchy, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    mount_point: PathBuf,
    /// Which of its groups is mounted there.
    root: PathBuf,
    /// Whether it is that of version 2.
    pub(super) is_unified: bool,
    /// Whether it is one of version 1 with the memory controller.
    pub(super) has_memory: bool,
}

impl Hierarchy {
    /// What is mounted, in the order in which it was.
    pub(super) fn mounted() -> ProcResult<Vec<Self>> {
        Ok(Process::myself()?.mountinfo()?.iter().filter_map(Self::of).collect())
    }

    /// None if something else is mounted there.
    pub(super) fn of(mount: &MountInfo) -> Option<Self> {
        let is_unified = match mount.fs_type.as_str() {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        Some(Self {
            mount_point: mount.mount_point.clone(),
            root: PathBuf::from(&mount.root),
            is_unified,
            has_memory: !is_unified && mount.super_options.contains_key("memory"),
        })
    }

    /// Where a group is seen, if it is.
    pub(super) fn folder(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        // A group outside of memscope's own namespace begins with `/..`.
        below.components().all(|part| is_name(&part)).then(|| self.mount_point.join(below))
    }
}

impl ControlGroup {
    /// Finds a group by a path, or a container by its id.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn find(name: &str) -> Result<Self, GroupError> {
        find_in(&hierarchies().map_err(GroupError::Mounts)?, name)
    }

    /// Its processes, and those of the groups in it.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        each_directory(&self.directory, |directory| {
            let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
            None::<()>
        });
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    fn of(hierarchy: &Hierarchy, directory: PathBuf) -> Result<Self, GroupError> {
        let metadata = fs::metadata(&directory)
            .map_err(|source| GroupError::Unreadable { directory: directory.clone(), source })?;
        let below = directory.strip_prefix(&hierarchy.mount_point).unwrap_or(Path::new(""));
        let depth = |path: &Path| path.components().filter(is_name).count() as u32;
        let level = depth(&hierarchy.root) + depth(below);
        // A group's number is that of its directory (`kernfs_node.id`, cgroup_id()).
        let unified = hierarchy.is_unified.then_some((metadata.ino(), level));
        Ok(Self { directory, unified })
    }
}

fn is_name(component: &Component<'_>) -> bool {
    matches!(component, Component::Normal(_))
}

fn find_in(hierarchies: &[Hierarchy], name: &str) -> Result<ControlGroup, GroupError> {
    // Below the tops of hierarchies it is the same with and without a slash before it.
    let below = name.trim_start_matches('/');
    let group = format!("/{below}");
    let path = Path::new(&group);
    if !name.is_empty() && !path.components().any(|part| part == Component::ParentDir) {
        let holder = hierarchies.iter().find(|hierarchy| path.starts_with(&hierarchy.mount_point));
        if let Some(hierarchy) = holder.filter(|_| path.is_dir()) {
            return ControlGroup::of(hierarchy, path.to_owned());
        }
        for hierarchy in hierarchies {
            // As `/proc/PID/cgroup` says it, or from what is mounted on.
            let directory =
                hierarchy.folder(&group).unwrap_or_else(|| hierarchy.mount_point.join(below));
            if directory.is_dir() {
                return ControlGroup::of(hierarchy, directory);
            }
        }
    }
    let is_id = name.len() >= MIN_ID_CHARACTERS && name.chars().all(|c| c.is_ascii_hexdigit());
    for hierarchy in hierarchies.iter().filter(|_| is_id) {
        let found = each_directory(&hierarchy.mount_point, |directory| {
            let own = directory.file_name()?.to_str()?;
            own.contains(name).then(|| directory.to_owned())
        });
        if let Some(directory) = found {
            return ControlGroup::of(hierarchy, directory);
        }
    }
    let searched: Vec<String> =
        hierarchies.iter().map(|hierarchy| hierarchy.mount_point.display().to_string()).collect();
    let searched = if searched.is_empty() { "this system".to_owned() } else { searched.join(", ") };
    Err(GroupError::NotFound { name: name.to_owned(), searched })
}

/// The mounted hierarchies: that of version 2 first.
fn hierarchies() -> ProcResult<Vec<Hierarchy>> {
    let mut found = Hierarchy::mounted()?;
    found.sort_by_key(|hierarchy| {
        let name = hierarchy.mount_point.file_name().and_then(|name| name.to_str());
        let preferred = PREFERRED
            .iter()
            .position(|preferred| name.unwrap_or_default().split(',').any(|n| n == *preferred));
        (!hierarchy.is_unified, preferred.unwrap_or(PREFERRED.len()))
    });
    Ok(found)
}

/// Visits a directory and all in it until something is found. Links are not followed.
fn each_directory<T>(top: &Path, mut visit: impl FnMut(&Path) -> Option<T>) -> Option<T> {
    let mut waiting = vec![top.to_owned()];
    for _visited in 0..MAX_DIRECTORIES {
        let directory = waiting.pop()?;
        if let Some(found) = visit(&directory) {
            return Some(found);
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        waiting.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn tree() -> (tempfile::TempDir, Vec<Hierarchy>) {
        let top = tempfile::tempdir().unwrap();
        let (new, old) = (top.path().join("unified"), top.path().join("memory"));
        fs::create_dir_all(new.join("system.slice/a.service")).unwrap();
        fs::create_dir_all(old.join(format!("docker/{ID}/inner"))).unwrap();
        fs::write(old.join(format!("docker/{ID}/cgroup.procs")), "12\n7\n").unwrap();
        fs::write(old.join(format!("docker/{ID}/inner/cgroup.procs")), "9\n12\nx\n").unwrap();
        let hierarchy = |mount_point: PathBuf, is_unified| Hierarchy {
            mount_point,
            root: PathBuf::from("/"),
            is_unified,
            has_memory: !is_unified,
        };
        let hierarchies = vec![hierarchy(new, true), hierarchy(old, false)];
        (top, hierarchies)
    }

    #[test]
    fn groups_are_found_by_path_and_id() {
        let (top, hierarchies) = tree();
        let service = top.path().join("unified/system.slice/a.service");
        for name in ["/system.slice/a.service", "system.slice/a.service", service.to_str().unwrap()]
        {
            let found = find_in(&hierarchies, name).unwrap();
            let number = fs::metadata(&service).unwrap().ino();
            assert_eq!(found.unified, Some((number, 2)), "{name}");
        }
        for name in [ID, &ID[..12], &format!("/docker/{ID}")] {
            let found = find_in(&hierarchies, name).unwrap();
            assert_eq!((found.unified, found.pids()), (None, vec![7, 9, 12]), "{name}");
        }
    }

    #[test]
    fn what_is_no_group_is_told() {
        let (_top, hierarchies) = tree();
        for name in ["/nothing", "nothing", "", "0123", "/../..", "/etc"] {
            let error = find_in(&hierarchies, name).unwrap_err();
            assert!(error.to_string().contains("there is no control group"), "{name}: {error}");
        }
    }

    #[test]
    fn the_groups_of_this_machine_are_found() {
        for hierarchy in hierarchies().unwrap() {
            let group = ControlGroup::of(&hierarchy, hierarchy.mount_point.clone()).unwrap();
            assert_eq!(group.unified.is_some(), hierarchy.is_unified);
        }
    }
}
