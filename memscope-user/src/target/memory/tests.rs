use std::hint::black_box;

use procfs::process::MountInfos;
use proptest::prelude::*;

use super::*;

/// Of Linux 6.12, shortened.
const SMAPS: &str = "\
55d0c0000000-55d0c0004000 rw-p 00000000 00:00 0                          [heap]
Size:                 16 kB
Rss:                   8 kB
Pss:                   4 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000021000 rw-p 00000000 00:00 0\x20
Size:                132 kB
Rss:                  12 kB
VmFlags: rd wr mr mw me nr
7f0000021000-7f0004000000 ---p 00000000 00:00 0\x20
Size:              65404 kB
Rss:                   0 kB
7f1000000000-7f1000002000 rw-p 00000000 00:00 0                          [anon:pool: x]
Rss:                   4 kB
7f2000000000-7f2000001000 rw-p 00001000 08:01 77                         /lib/a b.so
Rss:                   4 kB
7f3000000000-7f3000001000 rw-s 00000000 00:01 1024                       /dev/zero (deleted)
Rss:                   4 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  20 kB
";

#[test]
fn mappings_of_heaps_are_told_from_others() {
    let heap = heap_of_text(SMAPS).unwrap();
    let sizes = |mapped_bytes, resident_bytes| MappedMemory { mapped_bytes, resident_bytes };
    assert_eq!(heap.brk, sizes(0x4000, 8 << 10));
    assert_eq!(heap.anonymous, sizes(0x21000 + 0x2000, 16 << 10));
}

#[test]
fn names_of_files_cannot_hide_mappings() {
    for name in ["/SYSVx", "/SYSV1234567890", "/lib/a b.so", "//toolong"] {
        let smaps = SMAPS.replace("/lib/a b.so", name);
        assert_eq!(heap_of_text(&smaps), heap_of_text(SMAPS), "{name}");
    }
}

fn groups(mountinfo: &str) -> ControlGroups {
    let mounts = parse::<MountInfos>(mountinfo).unwrap();
    ControlGroups::of(mounts.iter().filter_map(Hierarchy::of))
}

const BOTH: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
/// As in a container that sees its own part only.
const PART: &str =
    "700 690 0:26 /docker/77 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";

#[test]
fn groups_are_found_in_either_version() {
    let both = groups(BOTH);
    let of_memory = both.memory.as_ref().unwrap();
    assert_eq!(of_memory.folder("/a/b").unwrap(), Path::new("/sys/fs/cgroup/memory/a/b"));
    assert_eq!(of_memory.folder("/").unwrap(), Path::new("/sys/fs/cgroup/memory"));
    let unified = both.unified.as_ref().unwrap();
    assert_eq!(unified.folder("/x").unwrap(), Path::new("/sys/fs/cgroup/unified/x"));
    let part = groups(PART);
    assert!(part.memory.is_none());
    let part = part.unified.unwrap();
    assert_eq!(part.folder("/docker/77/app").unwrap(), Path::new("/sys/fs/cgroup/app"));
    assert_eq!(part.folder("/docker/78"), None, "it is not mounted here");
    assert_eq!(of_memory.folder("/../other"), None, "it is outside of the namespace");
}

#[test]
fn the_group_with_the_memory_controller_is_taken() {
    let path_of = |text: &str| {
        let of_process = parse::<ProcessCGroups>(text).unwrap();
        ControlGroups::default().read(&of_process)
    };
    let unread = |path: &str| Some(ControlGroupMemory { path: path.to_owned(), bytes: None });
    assert_eq!(path_of("4:memory:/old\n1:cpu,cpuacct:/cpu\n0::/new\n"), unread("/old"));
    assert_eq!(
        path_of("1:name=systemd:/x\n0::/system.slice/a.service\n"),
        unread("/system.slice/a.service")
    );
    assert_eq!(path_of("1:cpu:/cpu\n"), None);
}

#[test]
fn a_process_without_memory_has_none() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = TargetProcess::open(child.id()).unwrap();
    let groups = ControlGroups::mounted();
    assert!(process.memory(&groups).is_some());
    child.kill().unwrap();
    // Not waited for, it stays as a zombie.
    while process.is_alive() {
        std::thread::yield_now();
    }
    assert_eq!(process.memory(&groups), None);
    assert_eq!(process.proportional_bytes(), None);
    child.wait().unwrap();
    assert_eq!(process.memory(&groups), None);
    assert_eq!(process.heap_mappings().unwrap_or_default(), HeapMappings::default());
}

#[test]
fn memory_that_this_process_touches_is_resident() {
    const BYTES: u64 = 48 << 20;
    let block = black_box(vec![1_u8; BYTES as usize]);
    let me = TargetProcess::open(std::process::id()).unwrap();
    let memory = me.memory(&ControlGroups::mounted()).unwrap();
    let heap = me.heap_mappings().unwrap();
    // Other tests run in this process at the same time, so there may be more.
    assert!(memory.resident.unwrap().anonymous_bytes >= BYTES, "{memory:?}");
    assert!(memory.peak_resident_bytes.unwrap() >= BYTES, "{memory:?}");
    assert!(heap.anonymous.resident_bytes >= BYTES, "{heap:?}");
    assert!(heap.anonymous.mapped_bytes >= heap.anonymous.resident_bytes, "{heap:?}");
    assert!(me.proportional_bytes().unwrap() >= BYTES);
    drop(block);
}

proptest! {
    #[test]
    fn anything_gives_something_or_nothing(text in any::<String>()) {
        memory_of_status(&text);
        heap_of_text(&text);
        parse::<ProcessCGroups>(&text).and_then(|groups| ControlGroups::default().read(&groups));
    }

    /// Whatever is at the place of one word of such a file.
    #[test]
    fn files_with_other_words_are_read_or_not(word in any::<prop::sample::Index>(), with in "[ -~]{0,20}") {
        let words: Vec<&str> = SMAPS.split(' ').collect();
        let mut words = words.clone();
        let index = word.index(words.len());
        words[index] = &with;
        heap_of_text(&words.join(" "));
    }
}
