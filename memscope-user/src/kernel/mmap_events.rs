//! What the kernel tells of new code in processes: its perf records of executable mappings.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use perf_event::{
    Builder, Clock, SampleFlag, Sampler,
    data::{
        Comm, Lost, Mmap2, RecordMetadata, Visitor,
        endian::Native,
        parse::{ParseConfig, ParseResult, Parser},
    },
    events::Software,
};

use super::KernelError;
use crate::target::FileIdentity;

/// Size of the ring of each CPU. A record takes 100 to 200 bytes, and a process start makes
/// about six of them.
const RING_BYTES: usize = 64 * 1024;
/// Records taken from a ring at once: more than fit in it at the same time, as none is
/// shorter than 32 bytes with its header, its process and its time.
const MAX_RECORDS_AT_ONCE: usize = RING_BYTES / 32;
/// The name that the kernel gives to memory without a file.
const ANONYMOUS: &str = "//anon";

/// Code has been mapped, or memory made executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmapEvent {
    /// `CLOCK_MONOTONIC`, nanoseconds: after the mapping was made, before its code can run.
    pub time_ns: u64,
    /// The process, as a number of the pid namespace that memscope runs in.
    pub pid: u32,
    /// First address. If the kernel has joined the mapping to one beside it, that of the whole.
    pub start_avma: u64,
    /// Length of the whole.
    pub length_bytes: u64,
    /// Position in the file of the first byte; 0 without a file.
    pub file_offset: u64,
    /// The file; none for memory without one, and for code that the kernel provides.
    pub identity: Option<FileIdentity>,
    /// The file's path in the process's view, or the name that the kernel has for the memory;
    /// none for memory without either.
    pub path: Option<String>,
}

/// What the kernel tells of the address space of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressSpaceEvent {
    /// Code has been mapped.
    Mapped(MmapEvent),
    /// An exec has emptied it.
    Replaced {
        /// `CLOCK_MONOTONIC`, nanoseconds: after the old image is gone and before the first
        /// mapping of the new one.
        time_ns: u64,
        /// The process, as in [`MmapEvent`].
        pid: u32,
    },
}

impl AddressSpaceEvent {
    /// When it happened.
    #[must_use]
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Mapped(event) => event.time_ns,
            Self::Replaced { time_ns, .. } => *time_ns,
        }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match self {
            Self::Mapped(event) => event.pid,
            Self::Replaced { pid, .. } => *pid,
        }
    }
}

/// The kernel's reports of executable mappings, of all processes.
///
/// They come from perf events that count nothing (`PERF_COUNT_SW_DUMMY`), one per CPU that
/// was online when they were opened. What the kernel does for them it does when code is mapped
/// or made executable and when a thread gets a name (`perf_event_mmap` and `perf_event_comm` in
/// kernel/events/core.c): it looks up the path and writes a record, about 1 µs next to the mapping itself.
/// They have no part in page faults, allocations or context switches, and the latter are not
/// asked for. Unmapping, and moving by `mremap`, are not reported at all.
///
/// `mprotect` that makes memory executable is reported as well, with the whole of the mapping
/// that results. Names of threads are asked for because an exec is told by them, at the
/// moment between the last mapping of the old image and the first of the new one.
///
/// Processes are given by their numbers in the pid namespace of who opens this; those that have
/// none there by 0. CPUs that come online later are not covered.
pub struct MmapEvents {
    samplers: Vec<Sampler>,
    lost: u64,
}

impl MmapEvents {
    /// Asks for the reports from now on. They end, and everything made for them goes, when
    /// this is dropped.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: it takes `CAP_PERFMON`, or root before Linux 5.8; and perf events in
    /// the kernel at all, Linux 4.12 or later.
    pub fn open() -> Result<Self, KernelError> {
        let cpus = aya::util::online_cpus().map_err(|(_, source)| KernelError::Cpus(source))?;
        let samplers = cpus
            .into_iter()
            .map(|cpu| sampler(cpu).map_err(|source| KernelError::MmapEvents { cpu, source }))
            .collect::<Result<Vec<Sampler>, KernelError>>()?;
        Ok(Self { samplers, lost: 0 })
    }

    /// Gives what has been reported, in the order of time. Everything that had happened when this
    /// was called is among it.
    pub fn drain(&mut self, give: impl FnMut(AddressSpaceEvent)) {
        let mut events = Vec::new();
        for sampler in &mut self.samplers {
            for _ in 0..MAX_RECORDS_AT_ONCE {
                let Some(record) = sampler.next_record() else { break };
                let bytes = whole(&record);
                // It must be let go before the configuration can be borrowed.
                drop(record);
                match parse(&bytes, sampler.config()) {
                    Ok(Parsed::Event(event)) => events.push(event),
                    Ok(Parsed::Lost(count)) => self.lost = self.lost.saturating_add(count),
                    Ok(Parsed::Other) => {}
                    Err(error) => {
                        log::debug!("a perf record that cannot be read: {error}");
                        self.lost = self.lost.saturating_add(1);
                    }
                }
            }
        }
        events.sort_by_key(AddressSpaceEvent::time_ns);
        events.into_iter().for_each(give);
    }

    /// How many reports were lost until now, because they came faster than they were taken.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// To be polled: readable when a ring is half full.
    pub fn as_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.samplers.iter().map(|sampler| {
            // SAFETY: the sampler owns the descriptor, and is borrowed as long as the result.
            unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) }
        })
    }
}

fn sampler(cpu: u32) -> std::io::Result<Sampler> {
    let counter = Builder::new(Software::DUMMY)
        .any_pid()
        .one_cpu(cpu as usize)
        .exclude_kernel(true)
        .exclude_hv(true)
        .mmap(true)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .sample(SampleFlag::TID | SampleFlag::TIME)
        .sample_id_all(true)
        .clockid(Clock::MONOTONIC)
        .wakeup_watermark(RING_BYTES / 2)
        .enabled(true)
        .build()?;
    counter.sampled(RING_BYTES)
}

/// What a perf record says.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Event(AddressSpaceEvent),
    /// So many records are missing here.
    Lost(u64),
    /// Nothing of interest.
    Other,
}

/// A record with its header, which the crate has taken off.
fn whole(record: &perf_event::Record<'_>) -> Vec<u8> {
    let body = record.to_contiguous();
    // The length is that of a `u16` less the header.
    let size = (body.len() + HEADER_BYTES) as u16;
    let mut bytes = Vec::with_capacity(size.into());
    bytes.extend(record.ty().to_ne_bytes());
    bytes.extend(record.misc().to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Length of `struct perf_event_header`.
const HEADER_BYTES: usize = 8;

fn parse(bytes: &[u8], config: &ParseConfig<Native>) -> ParseResult<Parsed> {
    Parser::new(bytes, config.clone()).parse_record(Interpreter)
}

struct Interpreter;

impl<'a> Visitor<'a> for Interpreter {
    type Output = Parsed;

    fn visit_unimplemented(self, _metadata: RecordMetadata) -> Parsed {
        Parsed::Other
    }

    fn visit_lost(self, record: Lost, _metadata: RecordMetadata) -> Parsed {
        Parsed::Lost(record.lost)
    }

    fn visit_comm(self, record: Comm<'a>, metadata: RecordMetadata) -> Parsed {
        /// The name is that of a new image (include/uapi/linux/perf_event.h).
        const PERF_RECORD_MISC_COMM_EXEC: u16 = 1 << 13;
        match metadata.sample_id().time() {
            Some(time_ns) if metadata.misc() & PERF_RECORD_MISC_COMM_EXEC != 0 => {
                Parsed::Event(AddressSpaceEvent::Replaced { time_ns, pid: record.pid })
            }
            _ => Parsed::Other,
        }
    }

    fn visit_mmap2(self, record: Mmap2<'a>, metadata: RecordMetadata) -> Parsed {
        let is_executable = record.prot & libc::PROT_EXEC.cast_unsigned() != 0;
        let Some(time_ns) = metadata.sample_id().time().filter(|_| is_executable) else {
            return Parsed::Other;
        };
        let identity = match (record.maj(), record.min(), record.ino()) {
            (Some(major), Some(minor), Some(inode)) if inode != 0 => {
                Some(FileIdentity { device: (major.cast_signed(), minor.cast_signed()), inode })
            }
            _ => None,
        };
        let path = String::from_utf8_lossy(&record.filename);
        Parsed::Event(AddressSpaceEvent::Mapped(MmapEvent {
            time_ns,
            pid: record.pid,
            start_avma: record.addr,
            length_bytes: record.len,
            file_offset: if identity.is_some() { record.pgoff } else { 0 },
            identity,
            path: (path != ANONYMOUS).then(|| path.into_owned()),
        }))
    }
}

#[cfg(test)]
mod tests;
