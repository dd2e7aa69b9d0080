//! Stacks recorded by signal handlers. What these do must need no lock and no memory.

use std::{
    cell::{Cell, RefCell},
    ffi::c_int,
    mem::MaybeUninit,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{Recording, record_until, stack_end};

/// Recordings at most; later signals are passed over.
const MAX_RECORDINGS: usize = 2000;
const OTHER_STACK_BYTES: usize = 1 << 16;

thread_local! {
    /// Needs no destructor, so that a handler in any thread may look at it.
    static IS_RECORDED: Cell<bool> = const { Cell::new(false) };
    /// Made before the first signal; a handler only fills what is there.
    static EMPTY: RefCell<Vec<Recording>> = const { RefCell::new(Vec::new()) };
    static FILLED: RefCell<Vec<Recording>> = const { RefCell::new(Vec::new()) };
    static STACK_END: Cell<u64> = const { Cell::new(0) };
    static OTHER_STACK: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Handlers belong to the process, and tests run at once.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) fn other_stack_end(sp_avma: u64) -> Option<u64> {
    let (start, end) = OTHER_STACK.get();
    (start..end).contains(&sp_avma).then_some(end)
}

extern "C" fn handle(_signal: c_int) {
    // Another thread may get it.
    if !IS_RECORDED.get() {
        return;
    }
    let Some(mut recording) = EMPTY.with_borrow_mut(Vec::pop) else { return };
    let here = &raw const recording as u64;
    let mut end = other_stack_end(here).unwrap_or(STACK_END.get());
    record_until(&mut recording, &mut end);
    // `record_until`, this, and then what it returns to.
    recording.handler_frames = Some(2);
    FILLED.with_borrow_mut(|filled| filled.push(recording));
}

/// Runs something and gives the stacks of the signals that this thread got meanwhile.
pub(crate) fn record_each(signal: c_int, flags: c_int, run: impl FnOnce()) -> Vec<Recording> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let local = 0_u8;
    STACK_END.set(stack_end(&raw const local as u64));
    EMPTY.set((0..MAX_RECORDINGS).map(|_| Recording::new()).collect());
    FILLED.set(Vec::with_capacity(MAX_RECORDINGS));
    // It loads libgcc the first time, which a handler must not.
    super::record(&mut Recording::new());
    IS_RECORDED.set(true);
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeros are an action without flags and with an empty mask; the handler lives as
    // long as the process.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, action, before.as_mut_ptr()), 0);
    }
    run();
    // SAFETY: it was filled by the call above. A signal that comes late is to do nothing.
    unsafe {
        let before = before.assume_init_mut();
        before.sa_sigaction = libc::SIG_IGN;
        assert_eq!(libc::sigaction(signal, before, std::ptr::null_mut()), 0);
    }
    IS_RECORDED.set(false);
    EMPTY.set(Vec::new());
    drop(guard);
    FILLED.take()
}

/// Signals this thread, and returns when the handler has.
#[inline(never)]
pub(crate) fn raise(signal: c_int) {
    // SAFETY: there is a handler for it.
    unsafe { assert_eq!(libc::raise(signal), 0) };
}

/// Has handlers of this thread run on a stack of their own meanwhile.
pub(crate) fn with_other_stack(run: impl FnOnce()) {
    let mut memory = vec![0_u64; OTHER_STACK_BYTES / 8];
    let start = memory.as_mut_ptr() as u64;
    OTHER_STACK.set((start, start + OTHER_STACK_BYTES as u64));
    let stack = libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: OTHER_STACK_BYTES,
    };
    let mut before =
        libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: the memory outlives its use, which the second call ends.
    unsafe { assert_eq!(libc::sigaltstack(&raw const stack, &raw mut before), 0) };
    run();
    // SAFETY: it is the one that was there.
    unsafe { assert_eq!(libc::sigaltstack(&raw const before, std::ptr::null_mut()), 0) };
    OTHER_STACK.set((0, 0));
    drop(memory);
}

/// Has this process signalled by `SIGPROF` at intervals of its running time; whichever
/// thread runs gets it.
pub(crate) fn with_timer(interval: Duration, run: impl FnOnce()) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: interval.as_micros() as i64 };
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let set = |interval: libc::timeval| {
        let timer = libc::itimerval { it_interval: interval, it_value: interval };
        // SAFETY: it reads the timer, and writes to nobody.
        let result =
            unsafe { setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    };
    set(interval);
    run();
    set(none);
}

unsafe extern "C" {
    fn setitimer(which: c_int, new: *const libc::itimerval, old: *mut libc::itimerval) -> c_int;
}
