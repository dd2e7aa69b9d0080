//! Which function of which process a probe's hit is of.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid};
use memscope_common::{
    control::{Cookie, PROCESS_TARGET, ThreadState, UNKNOWN_COOKIE, known_cookie_index},
    record::Header,
};

use crate::maps::{COOKIES, EPOCHS, PROCESSES, TARGETS};

/// One probe hit.
pub(crate) struct Hit {
    pub(crate) cookie: Cookie,
    /// Index of the target.
    pub(crate) index: u16,
    pub(crate) image: u32,
    /// What had been unmapped before, when it was last looked.
    pub(crate) removals: u32,
}

/// Where a program runs.
pub(crate) struct Spot {
    pub(crate) avma: u64,
    /// What is known of probes there.
    pub(crate) cookie: Option<Cookie>,
}

impl Spot {
    #[inline(always)]
    pub(crate) fn at(avma: u64) -> Self {
        Self { avma, cookie: cookie_near(avma) }
    }
}

impl Hit {
    /// At the entry of a function.
    #[inline(always)]
    pub(crate) fn at_entry(context: *mut c_void, index: u16, spot: &Spot) -> Option<Self> {
        // SAFETY: the helper reads the cookie of the link that called this program.
        let ask = || Cookie(unsafe { bpf_get_attach_cookie(context) });
        let known = spot.cookie.filter(|cookie| !matches!(*cookie, Cookie(0) | UNKNOWN_COOKIE));
        Self::of(known.unwrap_or_else(ask), index)
    }

    #[inline(always)]
    pub(crate) fn of(cookie: Cookie, index: u16) -> Option<Self> {
        let epoch = EPOCHS.get(u32::from(index))?;
        Some(Self { cookie, index, image: epoch.image, removals: epoch.removals })
    }

    /// Whether calls are recorded, and whether all blocks come from one module.
    #[inline(always)]
    pub(crate) fn modes(&self) -> (bool, bool) {
        // SAFETY: points to an element of an array map, which is never removed.
        TARGETS.get_ptr(u32::from(self.index)).map_or((false, false), |target| unsafe {
            ((*target).enabled != 0, (*target).single_allocator != 0)
        })
    }

    #[inline(always)]
    pub(crate) fn may_stop(&self) -> bool {
        let target = TARGETS.get_ptr(u32::from(self.index));
        // SAFETY: as in `modes`.
        target.is_some_and(|target| unsafe { (*target).may_stop } != 0)
    }

    #[inline(always)]
    pub(crate) fn thread(&self) -> u32 {
        bpf_get_current_pid_tgid() as u32
    }

    #[inline(always)]
    pub(crate) fn header(&self, kind: u8, time_ns: u64) -> Header {
        Header {
            kind,
            padding: 0,
            probe: self.cookie.probe(),
            image: self.image as u16,
            target: self.index,
            time_ns,
        }
    }
}

/// Which target the current thread is of; none if it is not traced, as probes can be those of all
/// processes that have mapped a file. A thread has state only while it is of a target.
#[inline(always)]
pub(crate) fn target_of(state: Option<*mut ThreadState>) -> Option<u16> {
    // SAFETY: this thread's own map value.
    let known = state.map_or(0, |state| unsafe { (*state).target_plus_1 });
    if known != 0 { Some((known - 1) as u16) } else { current_target() }
}

/// The same, looked up.
#[inline(always)]
pub(crate) fn current_target() -> Option<u16> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the map's values are words, and not freed while the program reads them (RCU).
    let word = *unsafe { PROCESSES.get(process) }?;
    Some((word & PROCESS_TARGET) as u16)
}

/// What is known of probes at an address, without a call: the cookie of the one there,
/// [`UNKNOWN_COOKIE`] if there can be several, or 0 if there are none.
///
/// It is right whatever has been mapped and unmapped in the meantime, noticed or not. Files are
/// mapped by whole pages, so a probed instruction has the same place in its page wherever it
/// comes to lie. A cookie is here only while no other probe has the same place: then no other can
/// be hit at such an address. The collector sees to that before it attaches one.
#[inline(always)]
fn cookie_near(avma: u64) -> Option<Cookie> {
    COOKIES.get(known_cookie_index(avma)).map(|cookie| Cookie(*cookie))
}
