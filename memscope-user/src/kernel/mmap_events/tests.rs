//! Need the right to open system-wide perf events, and say so where it is missing.

use std::{
    fs::File,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
    time::{ClockId, clock_gettime},
    unistd::{ForkResult, fork},
};
use proptest::prelude::*;

use super::*;

const PAGE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

fn opened() -> Option<MmapEvents> {
    MmapEvents::open().inspect_err(|error| eprintln!("SKIPPED: perf events — {error:?}")).ok()
}

fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
}

/// What is told of a process, once its end is awaited.
fn told_of(events: &mut MmapEvents, pid: u32) -> Vec<AddressSpaceEvent> {
    let mut told = Vec::new();
    events.drain(|event| {
        if event.pid() == pid {
            told.push(event);
        }
    });
    assert!(told.is_sorted_by_key(AddressSpaceEvent::time_ns));
    told
}

fn mappings(told: &[AddressSpaceEvent]) -> Vec<MmapEvent> {
    let mapping = |event: &AddressSpaceEvent| match event {
        AddressSpaceEvent::Mapped(event) => Some(event.clone()),
        AddressSpaceEvent::Replaced { .. } => None,
    };
    told.iter().filter_map(mapping).collect()
}

fn map(length: usize, protection: i32, file: Option<(&File, i64)>) -> u64 {
    use std::os::fd::AsRawFd as _;
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    let flags = libc::MAP_PRIVATE | if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping, at a place that the kernel chooses.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset) };
    assert_ne!(address, libc::MAP_FAILED);
    address as u64
}

fn protect(avma: u64, length: usize, protection: i32) {
    // SAFETY: memory that a test has mapped and nobody else uses.
    let result = unsafe { libc::mprotect(avma as *mut libc::c_void, length, protection) };
    assert_eq!(result, 0);
}

/// A number that children of this process can write.
struct Shared(*mut u64);

impl Shared {
    fn new() -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        Self(address.cast())
    }

    fn set(&self, value: u64) {
        // SAFETY: it is mapped, writable and aligned as long as this process lives.
        unsafe { self.0.write_volatile(value) }
    }

    fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.read_volatile() }
    }
}

/// Runs this in a child, where nobody else maps anything; its process id.
fn in_child(act: impl FnOnce()) -> u32 {
    // SAFETY: the child takes no lock but those of the C library, which survive a fork, and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            // SAFETY: ends the process without running what the parent has registered.
            unsafe { libc::_exit(result.is_err().into()) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            child.as_raw().cast_unsigned()
        }
    }
}

fn file_of_pages(count: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0xc3; count * PAGE]).unwrap();
    file
}

#[test]
fn a_file_that_is_mapped_executable_is_told_with_place_file_and_time() {
    let Some(mut events) = opened() else { return };
    let file = file_of_pages(4);
    let metadata = file.as_file().metadata().unwrap();
    let address = Shared::new();
    let before_ns = monotonic_ns();
    let pid = in_child(|| {
        let place = Some((file.as_file(), 2 * PAGE as i64));
        address.set(map(2 * PAGE, libc::PROT_READ | libc::PROT_EXEC, place));
        map(PAGE, libc::PROT_READ, Some((file.as_file(), 0)));
    });
    let after_ns = monotonic_ns();
    let told = mappings(&told_of(&mut events, pid));
    let [event] = told.as_slice() else { panic!("one of both is executable: {told:#?}") };
    assert!((before_ns..after_ns).contains(&event.time_ns), "{event:?} in {before_ns}..{after_ns}");
    assert_eq!(event.start_avma, address.get());
    assert_eq!((event.length_bytes, event.file_offset), (2 * PAGE as u64, 2 * PAGE as u64));
    let device = metadata.dev();
    let device = (libc::major(device).cast_signed(), libc::minor(device).cast_signed());
    assert_eq!(event.identity, Some(FileIdentity { device, inode: metadata.ino() }));
    assert_eq!(event.path.as_deref(), file.path().to_str());
    assert_eq!(events.lost(), 0);
    assert!(told_of(&mut events, pid).is_empty(), "told once");
}

#[test]
fn memory_that_becomes_executable_is_told() {
    let Some(mut events) = opened() else { return };
    let (read_write, read_execute) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    let address = Shared::new();
    let pid = in_child(|| {
        let generated = map(3 * PAGE, read_write, None);
        address.set(generated);
        protect(generated, PAGE, read_execute);
        protect(generated, PAGE, read_write);
        map(PAGE, read_execute, None);
    });
    let told = mappings(&told_of(&mut events, pid));
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!(told[0].start_avma, address.get());
    for event in told {
        assert_eq!((event.identity, event.path.as_deref()), (None, None));
        assert_eq!((event.length_bytes, event.file_offset), (PAGE as u64, 0));
    }
}

#[test]
fn an_exec_is_told_between_the_mappings_of_both_images() {
    let Some(mut events) = opened() else { return };
    let mut command = Command::new("/bin/true");
    // SAFETY: it maps memory, which takes no lock.
    unsafe {
        command.pre_exec(|| {
            map(PAGE, libc::PROT_READ | libc::PROT_EXEC, None);
            Ok(())
        });
    }
    let before_ns = monotonic_ns();
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    let told = told_of(&mut events, pid);
    let replaced: Vec<usize> = (0..told.len())
        .filter(|index| matches!(told[*index], AddressSpaceEvent::Replaced { .. }))
        .collect();
    let [exec] = replaced.as_slice() else { panic!("one exec: {told:#?}") };
    assert!(told[*exec].time_ns() > before_ns);
    let (old, new) = (mappings(&told[..*exec]), mappings(&told[*exec..]));
    assert!(old.iter().any(|event| event.identity.is_none()), "{old:#?}");
    let program = std::fs::canonicalize("/bin/true").unwrap();
    let maps = |name: &str| {
        new.iter().any(|event| event.path.as_deref().is_some_and(|path| path.ends_with(name)))
    };
    assert!(maps(program.file_name().unwrap().to_str().unwrap()), "{new:#?}");
    assert!(maps("[vdso]"), "{new:#?}");
    assert!(new.iter().all(|event| event.identity.is_some() || event.path.is_some()));
}

#[test]
fn what_comes_faster_than_it_is_taken_is_counted_and_wakes_the_reader() {
    let Some(mut events) = opened() else { return };
    // Each CPU has a ring; the child stays on one in the worst case.
    let most = events.as_fds().count() * RING_BYTES / 96;
    let pid = in_child(|| {
        for _ in 0..2 * most {
            let avma = map(PAGE, libc::PROT_EXEC, None);
            // SAFETY: memory that was just mapped, which nobody uses.
            unsafe { libc::munmap(avma as *mut libc::c_void, PAGE) };
        }
    });
    let begun = Instant::now();
    let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut watched: Vec<PollFd<'_>> = events.as_fds().map(watched).collect();
    assert!(poll(&mut watched, PollTimeout::from(10_000_u16)).unwrap() > 0);
    drop(watched);
    assert!(begun.elapsed() < PATIENCE);
    let got = told_of(&mut events, pid).len();
    assert!((1..=most).contains(&got), "{got} of {most}");
    // A loss is told with the next record that finds room on that CPU.
    while events.lost() == 0 && begun.elapsed() < PATIENCE {
        in_child(|| {
            map(PAGE, libc::PROT_EXEC, None);
        });
        told_of(&mut events, pid);
    }
    assert!(events.lost() >= (2 * most - got) as u64 / 2, "{} of {}", events.lost(), 2 * most);
}

/// Descriptors and mappings of perf events in this process.
fn perf_events_held() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("[perf_event]"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors.count(), maps.matches("[perf_event]").count())
}

#[test]
fn nothing_is_left_behind() {
    // In a process where no other test opens any meanwhile.
    in_child(|| {
        let before = perf_events_held();
        let Some(events) = opened() else { return };
        let cpus = events.as_fds().count();
        assert_eq!(perf_events_held(), (before.0 + cpus, before.1 + cpus));
        drop(events);
        assert_eq!(perf_events_held(), before);
    });
}

/// The configuration that records are parsed with.
fn config() -> ParseConfig<Native> {
    let mut builder = Builder::new(Software::DUMMY);
    builder.sample(SampleFlag::TID | SampleFlag::TIME).sample_id_all(true);
    ParseConfig::from(*builder.attrs())
}

/// A record of a kind, with its header and the process and time behind it.
fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(misc.to_ne_bytes());
    bytes.extend(((HEADER_BYTES + body.len() + 16) as u16).to_ne_bytes());
    bytes.extend(body);
    bytes.extend([7_u32.to_ne_bytes(), 8_u32.to_ne_bytes()].concat());
    bytes.extend(99_u64.to_ne_bytes());
    bytes
}

const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_COMM: u32 = 3;
const PERF_RECORD_MMAP2: u32 = 10;

fn mmap2(protection: i32, path: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([7_u32.to_ne_bytes(), 8_u32.to_ne_bytes()].concat());
    for number in [0x7000_u64, 0x2000, 0x1000] {
        body.extend(number.to_ne_bytes());
    }
    body.extend([253_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat());
    body.extend([42_u64.to_ne_bytes(), 0_u64.to_ne_bytes()].concat());
    body.extend([protection.to_ne_bytes(), libc::MAP_PRIVATE.to_ne_bytes()].concat());
    body.extend(path);
    body
}

#[test]
fn records_are_read_as_the_kernel_documents_them() {
    let parsed = |bytes: &[u8]| parse(bytes, &config()).unwrap();
    let path = b"/lib/a\xff.so\0\0\0\0\0\0\0";
    let event = AddressSpaceEvent::Mapped(MmapEvent {
        time_ns: 99,
        pid: 7,
        start_avma: 0x7000,
        length_bytes: 0x2000,
        file_offset: 0x1000,
        identity: Some(FileIdentity { device: (253, 1), inode: 42 }),
        path: Some("/lib/a\u{fffd}.so".to_owned()),
    });
    let executable = mmap2(libc::PROT_EXEC, path);
    assert_eq!(parsed(&record(PERF_RECORD_MMAP2, 0, &executable)), Parsed::Event(event));
    let data = mmap2(libc::PROT_READ, path);
    assert_eq!(parsed(&record(PERF_RECORD_MMAP2, 0, &data)), Parsed::Other);
    let lost = [1_u64.to_ne_bytes(), 12_u64.to_ne_bytes()].concat();
    assert_eq!(parsed(&record(PERF_RECORD_LOST, 0, &lost)), Parsed::Lost(12));
    let name = [&7_u32.to_ne_bytes()[..], &8_u32.to_ne_bytes(), b"a name\0\0"].concat();
    let exec = AddressSpaceEvent::Replaced { time_ns: 99, pid: 7 };
    assert_eq!(parsed(&record(PERF_RECORD_COMM, 1 << 13, &name)), Parsed::Event(exec));
    assert_eq!(parsed(&record(PERF_RECORD_COMM, 0, &name)), Parsed::Other, "a thread's name");
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_an_error(kind in 0_u32..32, misc: u16, size: u16, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = record(kind, misc, &body);
        prop_assume!(kind != 9, "samples are not asked for");
        let well_formed = parse(&bytes, &config());
        if let Ok(Parsed::Event(event)) = well_formed {
            prop_assert_eq!(event.time_ns(), 99);
        }
        bytes[6..8].copy_from_slice(&size.to_ne_bytes());
        if let Ok(Parsed::Event(event)) = parse(&bytes, &config()) {
            prop_assert!(usize::from(size) <= bytes.len(), "{:?}", event);
        }
    }
}
