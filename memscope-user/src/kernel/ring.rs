use std::{io, time::Duration};

use aya::maps::{Array, MapData, MapError, RingBuf};
use memscope_common::control::Consumer;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::os::fd::{AsFd as _, BorrowedFd};

use super::plain::Plain;

/// Why waiting for records failed.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// poll failed.
    #[error("cannot wait for records")]
    Wait(#[source] io::Error),
    /// The kernel side could not be told that the reader sleeps.
    #[error("cannot tell the eBPF side that the reader sleeps")]
    Consumer(#[source] MapError),
}

/// Reading end of the ring buffer.
pub struct EventRing {
    ring: RingBuf<MapData>,
    consumer: Array<MapData, Plain<Consumer>>,
    ring_bytes: u32,
}

impl EventRing {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        consumer: Array<MapData, Plain<Consumer>>,
        ring_bytes: u32,
    ) -> Self {
        Self { ring, consumer, ring_bytes }
    }

    /// The reader is woken early, because copies of stacks fill the ring quickly; they may not
    /// take more than half of it.
    fn state(&self, waiting: bool) -> Consumer {
        Consumer {
            waiting: waiting.into(),
            watermark_bytes: self.ring_bytes / 8,
            copy_limit_bytes: self.ring_bytes / 2,
            padding: 0,
        }
    }

    /// Gives at most `limit` waiting records, each as its bytes; how many there were.
    pub fn drain(
        &mut self,
        limit: usize,
        limit_bytes: usize,
        mut record: impl FnMut(&[u8]),
    ) -> usize {
        let (mut count, mut bytes) = (0, 0_usize);
        while count < limit && bytes < limit_bytes {
            let Some(item) = self.ring.next() else { break };
            bytes = bytes.saturating_add(item.len());
            record(&item);
            count += 1;
        }
        count
    }

    /// Sleeps until much has come together, here or behind one of the other descriptors, at most
    /// for the given time. Waking up is costly for the target, so it happens by time unless the
    /// ring fills quickly.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn wait<'a>(
        &mut self,
        at_most: Duration,
        others: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> Result<(), RingError> {
        self.consumer.set(0, Plain(self.state(true)), 0).map_err(RingError::Consumer)?;
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        let mut watched = vec![PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        watched.extend(others.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(RingError::Wait(error.into())),
        }
    }
}
