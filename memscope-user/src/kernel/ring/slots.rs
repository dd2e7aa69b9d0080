//! The slots of each CPU (`send_small` of the eBPF side).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use memscope_common::control::{CpuRing, SPARE_SLOTS, Slot};

use super::Next;

/// The numbers of CPUs that there can be.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";
/// Fewest slots of a CPU, as a power of two: twice what is spare.
const MIN_SLOTS_LOG2: u32 = (2 * SPARE_SLOTS).trailing_zeros();

/// How many CPUs there can be, one more than the highest number.
pub(in crate::kernel) fn possible_cpus() -> io::Result<u32> {
    let text = std::fs::read_to_string(POSSIBLE_CPUS)?;
    let highest = text.trim().rsplit([',', '-']).next().and_then(|number| number.parse().ok());
    highest
        .and_then(|highest: u32| highest.checked_add(1))
        .ok_or_else(|| io::Error::other(format!("{POSSIBLE_CPUS}: {}", text.trim())))
}

/// How many slots a CPU has if all together may take so many bytes, as a power of two.
pub(in crate::kernel) fn slots_log2(bytes: u32, cpus: u32) -> u32 {
    let slots = bytes / size_of::<Slot>() as u32 / cpus.max(1);
    slots.checked_ilog2().unwrap_or(0).max(MIN_SLOTS_LOG2)
}

pub(super) struct Slots {
    slots: MmapRaw,
    rings: MmapRaw,
    slots_log2: u32,
    cpus: Vec<Cpu>,
    overwritten: u64,
}

/// How far one CPU's slots are read.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    /// How many were taken as it was looked at. What is taken since can refer to what was put
    /// into the ring buffer after that was looked at.
    head: u64,
    read: u64,
    told: u64,
    next: Next,
    last_ns: u64,
}

/// Which CPU has the earliest record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Earliest {
    /// That record, or whether any is not written yet.
    pub(super) next: Next,
    cpu: usize,
    /// The earliest of all others.
    others_ns: u64,
    /// If one is not written: time of the record before it, the least of several.
    pub(super) unwritten_after_ns: u64,
}

impl Earliest {
    /// `u64::MAX` if there is none.
    pub(super) fn time_ns(&self) -> u64 {
        match self.next {
            Next::At(time_ns) => time_ns,
            _ => u64::MAX,
        }
    }
}

impl Slots {
    pub(super) fn map(
        slots: BorrowedFd<'_>,
        rings: BorrowedFd<'_>,
        count: u32,
        slots_log2: u32,
    ) -> io::Result<Self> {
        let memory = |fd: BorrowedFd<'_>, bytes: usize| {
            MmapOptions::new().len(bytes).map_raw(fd.as_raw_fd())
        };
        let cpu = Cpu { head: 0, read: 0, told: 0, next: Next::Nothing, last_ns: 0 };
        Ok(Self {
            slots: memory(slots, (count as usize * size_of::<Slot>()) << slots_log2)?,
            rings: memory(rings, count as usize * size_of::<CpuRing>())?,
            slots_log2,
            cpus: vec![cpu; count as usize],
            overwritten: 0,
        })
    }

    pub(super) fn count_per_cpu(&self) -> u32 {
        1 << self.slots_log2
    }

    pub(super) fn taken(&self) -> u64 {
        (0..self.cpus.len()).map(|cpu| self.head(cpu)).sum()
    }

    fn head(&self, cpu: usize) -> u64 {
        self.ring_word(cpu, std::mem::offset_of!(CpuRing, head)).load(Ordering::Acquire)
    }

    pub(super) fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// Whether all that were taken have been read.
    pub(super) fn is_empty(&self) -> bool {
        self.most_waiting() == 0
    }

    /// How many slots wait on the CPU that has most of them.
    pub(super) fn most_waiting(&self) -> u64 {
        let waiting =
            (0..).zip(&self.cpus).map(|(cpu, state)| self.head(cpu).saturating_sub(state.read));
        waiting.max().unwrap_or(0)
    }

    /// A word that the eBPF side writes or reads as well.
    fn ring_word(&self, cpu: usize, offset: usize) -> &AtomicU64 {
        // SAFETY: `cpu` is below the number of rings that were mapped, the offset is that of a
        // word of one, and the mapping lives as long as `self`.
        unsafe {
            &*self.rings.as_ptr().add(cpu * size_of::<CpuRing>() + offset).cast::<AtomicU64>()
        }
    }

    fn slot(&self, cpu: usize, number: u64) -> *const Slot {
        let index = cpu << self.slots_log2 | number as usize & ((1 << self.slots_log2) - 1);
        // SAFETY: the index is below the number of slots that were mapped.
        unsafe { self.slots.as_ptr().cast::<Slot>().add(index) }
    }

    /// Finds out what is next on each CPU.
    pub(super) fn look(&mut self) {
        for cpu in 0..self.cpus.len() {
            let head = self.head(cpu);
            if let Some(state) = self.cpus.get_mut(cpu) {
                state.head = head;
            }
            self.look_at(cpu);
        }
    }

    fn look_at(&mut self, cpu: usize) {
        let Some(mut state) = self.cpus.get(cpu).copied() else { return };
        state.next = Next::Nothing;
        while state.read < state.head {
            let slot = self.slot(cpu, state.read);
            // SAFETY: the slot lies in the mapping; its words are written whole.
            let sequence = unsafe { &*(&raw const (*slot).sequence).cast::<AtomicU64>() };
            let found = sequence.load(Ordering::Acquire);
            if found == state.read + 1 {
                // SAFETY: as above; the sequence says that it is written, and the eBPF side
                // takes the slot again only when it is told that it was read.
                let first = unsafe { (&raw const (*slot).words[0]).read_volatile() };
                state.next = Next::At(first >> 4);
                break;
            }
            if found > state.read + 1 {
                self.overwritten += 1;
                state.read += 1;
                continue;
            }
            state.next = Next::Unwritten;
            break;
        }
        if let Some(place) = self.cpus.get_mut(cpu) {
            *place = state;
        }
    }

    pub(super) fn earliest(&self) -> Earliest {
        let mut earliest = Earliest {
            next: Next::Nothing,
            cpu: 0,
            others_ns: u64::MAX,
            unwritten_after_ns: u64::MAX,
        };
        let mut earliest_ns = u64::MAX;
        let mut unwritten = false;
        for (cpu, state) in self.cpus.iter().enumerate() {
            match state.next {
                Next::At(time_ns) if time_ns < earliest_ns => {
                    earliest.others_ns = earliest_ns;
                    (earliest_ns, earliest.cpu) = (time_ns, cpu);
                    earliest.next = Next::At(time_ns);
                }
                Next::At(time_ns) => earliest.others_ns = earliest.others_ns.min(time_ns),
                Next::Unwritten => {
                    unwritten = true;
                    earliest.unwritten_after_ns = earliest.unwritten_after_ns.min(state.last_ns);
                }
                Next::Nothing => {}
            }
        }
        if unwritten && earliest_ns > earliest.unwritten_after_ns {
            earliest.next = Next::Unwritten;
        }
        earliest
    }

    /// Gives the records of the CPU that has the earliest, up to `limit`, as far as no other
    /// CPU has an earlier one and none is later than `until_ns`; how many.
    pub(super) fn take(
        &mut self,
        earliest: Earliest,
        until_ns: u64,
        limit: usize,
        mut record: impl FnMut([u64; 3]),
    ) -> usize {
        let until_ns = until_ns.min(earliest.others_ns).min(earliest.unwritten_after_ns);
        let mut count = 0;
        while count < limit {
            let Some(state) = self.cpus.get_mut(earliest.cpu) else { break };
            let Next::At(time_ns) = state.next else { break };
            if time_ns > until_ns {
                break;
            }
            let number = state.read;
            state.read += 1;
            state.last_ns = state.last_ns.max(time_ns);
            let slot = self.slot(earliest.cpu, number);
            // SAFETY: as in `look_at`, which has found it written.
            record(unsafe { (&raw const (*slot).words).read_volatile() });
            count += 1;
            self.look_at(earliest.cpu);
        }
        count
    }

    /// Gives slots back to the eBPF side.
    pub(super) fn tell(&mut self) {
        for cpu in 0..self.cpus.len() {
            let Some(state) = self.cpus.get(cpu).copied().filter(|cpu| cpu.read != cpu.told) else {
                continue;
            };
            self.ring_word(cpu, std::mem::offset_of!(CpuRing, tail))
                .store(state.read, Ordering::Release);
            if let Some(place) = self.cpus.get_mut(cpu) {
                place.told = state.read;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_the_room_that_is_given() {
        assert_eq!(slots_log2(32 << 20, 2), 19);
        assert_eq!(slots_log2(32 << 20, 3), 18);
        assert_eq!(slots_log2(2048, 2), 5, "at least some");
        assert_eq!(slots_log2(0, 0), 5);
    }

    #[test]
    fn this_machine_has_cpus() {
        assert!(possible_cpus().unwrap() >= 1);
    }
}
