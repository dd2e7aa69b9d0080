//! Which function of which process a probe's hit is of.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid};
use memscope_common::{
    control::{Cookie, Target, ThreadState, known_cookie_index},
    record::Header,
};

use crate::maps::{COOKIES, EPOCHS, TARGETS};

/// One probe hit.
pub(crate) struct Hit {
    pub(crate) cookie: Cookie,
    pub(crate) target: *const Target,
    pub(crate) image: u32,
}

impl Hit {
    /// At the entry of a function, at this address.
    #[inline(always)]
    pub(crate) fn at_entry(
        context: *mut c_void,
        state: Option<*mut ThreadState>,
        avma: u64,
    ) -> Option<Self> {
        // SAFETY: the helper reads the cookie of the link that called this program.
        let ask = || Cookie(unsafe { bpf_get_attach_cookie(context) });
        let known = cookie_near(state, avma).filter(|cookie| cookie.can_be_at(avma));
        Self::of(known.unwrap_or_else(ask))
    }

    #[inline(always)]
    pub(crate) fn of(cookie: Cookie) -> Option<Self> {
        let index = u32::from(cookie.target());
        let target = TARGETS.get_ptr(index)?;
        let image = EPOCHS.get(index)?.image;
        Some(Self { cookie, target, image })
    }

    #[inline(always)]
    pub(crate) fn enabled(&self) -> bool {
        // SAFETY: points to an element of an array map, which is never removed.
        unsafe { (*self.target).enabled != 0 }
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
            target: self.cookie.target(),
            time_ns,
        }
    }
}

/// What is known of probes at an address and beside it, without a call: the cookie of one of them,
/// or [`UNKNOWN_COOKIE`], or 0 if there are none. None if nothing is known.
///
/// It is right whatever has been mapped and unmapped in the meantime, noticed or not. Files are
/// mapped by whole pages, so a probed instruction has the same place in its page wherever it
/// comes to lie. A cookie is here only while no other probe of its target has the same place:
/// then no other can be hit at such an address. The collector sees to that before it attaches
/// one.
///
/// [`UNKNOWN_COOKIE`]: memscope_common::control::UNKNOWN_COOKIE
#[inline(always)]
pub(crate) fn cookie_near(state: Option<*mut ThreadState>, avma: u64) -> Option<Cookie> {
    // SAFETY: this thread's own map value.
    let target = unsafe { (*state?).target_plus_1 }.wrapping_sub(1);
    // Without a target it is the highest number, which no target has: the map ends before.
    COOKIES.get(known_cookie_index(target as u16, avma)).map(|cookie| Cookie(*cookie))
}
