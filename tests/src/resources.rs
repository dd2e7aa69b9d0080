//! What a process has used, and its end: for measurements of programs that the kit starts.

use std::fs;
use std::io;
use std::process::Child;
use std::thread;
use std::time::Duration;

/// `clock_getcpuclockid` of the C library makes the number of such a clock so (`CPUCLOCK_SCHED`).
const PROCESS_CPU_CLOCK: i32 = 2;

/// What a process had used when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// Processor time of all its threads and of its children that it waited for.
    pub cpu_ns: u64,
    /// Most memory that it had resident at once. Its parent's, if that was larger when it started the process.
    pub peak_rss_bytes: u64,
}

/// Processor time that all threads of a process have used so far, those that have ended included.
///
/// # Errors
///
/// If there is no such process.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    let clock = (!pid.cast_signed() << 3) | PROCESS_CPU_CLOCK;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to a place that is one.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let time = Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// While it lives, the thread that raised it, and what it starts, run before others.
#[derive(Debug)]
pub struct Priority {
    /// Of the whole session, where the kernel shares processors out between sessions first.
    session_before: Option<String>,
}

const SESSION_NICENESS: &str = "/proc/self/autogroup";

impl Priority {
    /// Gives that niceness.
    ///
    /// # Errors
    ///
    /// If it may not, as only root may.
    pub fn raise(niceness: i32) -> io::Result<Self> {
        // SAFETY: setpriority takes three numbers.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let session = fs::read_to_string(SESSION_NICENESS).unwrap_or_default();
        let session_before = niceness_of_session(&session).map(str::to_owned);
        if session_before.is_some() {
            fs::write(SESSION_NICENESS, niceness.to_string())?;
        }
        Ok(Self { session_before })
    }
}

/// `/autogroup-9 nice 0`; nothing for who belongs to no session, as what runs since the system's start without
/// `setsid`: such a one's niceness counts as it is, and the kernel refuses to take another
/// (`kernel/sched/autogroup.c`, `proc_sched_autogroup_show_task` and `sched_group_set_shares`).
fn niceness_of_session(text: &str) -> Option<&str> {
    text.rsplit_once(" nice ").map(|(_, niceness)| niceness.trim())
}

impl Drop for Priority {
    fn drop(&mut self) {
        if let Some(niceness) = &self.session_before
            && let Err(error) = fs::write(SESSION_NICENESS, niceness)
        {
            eprintln!("cannot set this session's priority back to {niceness}: {error}");
        }
    }
}

/// Does something on one processor, in a thread of its own.
///
/// # Errors
///
/// If there is no such processor, or it is not for this process.
pub fn on_processor<T: Send>(processor: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let bound = || {
        // SAFETY: a set is plain bits, of which none need be set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        if processor >= 8 * size_of_val(&set) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the number is one of a bit in the set.
        unsafe { libc::CPU_SET(processor, &mut set) };
        // SAFETY: the kernel reads a set of that size; 0 is this thread.
        if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(work())
    };
    thread::scope(|scope| {
        let working = scope.spawn(bound);
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks a process to end, as Ctrl-C does.
///
/// # Errors
///
/// If there is no such process.
pub fn interrupt(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGINT)
}

/// Ends a process at once.
///
/// # Errors
///
/// If there is no such process.
pub fn kill(pid: u32) -> io::Result<()> {
    signal(pid, libc::SIGKILL)
}

fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill has no memory effects.
    if unsafe { libc::kill(pid.cast_signed(), signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits for the end of a child, in its own way: the standard library does not learn of it. None if it is still
/// running after that time.
///
/// # Errors
///
/// If it has been waited for before.
pub fn wait(child: &mut Child, at_most: Duration) -> io::Result<Option<Ended>> {
    const LOOK: Duration = Duration::from_millis(5);
    let pid = child.id().cast_signed();
    for _ in 0..=at_most.as_millis() / LOOK.as_millis() {
        let mut status = 0;
        // SAFETY: all zero is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes an int and a rusage to places that are such.
        match unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 => std::thread::sleep(LOOK),
            ended if ended == pid => return Ok(Some(ended_by(status, &usage))),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(None)
}

fn ended_by(status: libc::c_int, usage: &libc::rusage) -> Ended {
    let ns = |time: libc::timeval| {
        1_000_000_000 * time.tv_sec.cast_unsigned() + 1000 * time.tv_usec.cast_unsigned()
    };
    Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        cpu_ns: ns(usage.ru_utime) + ns(usage.ru_stime),
        // Kibibytes, on Linux.
        peak_rss_bytes: 1024 * usage.ru_maxrss.cast_unsigned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_child_that_works_uses_time_and_memory_and_tells_its_code() {
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7";
        let mut child = Command::new("sh").args(["-c", work]).spawn().unwrap();
        let ended = wait(&mut child, PATIENCE).unwrap().unwrap();
        assert_eq!(ended.code, Some(7));
        assert!(ended.cpu_ns > 100_000, "{ended:?}");
        assert!(ended.peak_rss_bytes > 100_000, "{ended:?}");
        assert!(wait(&mut child, PATIENCE).is_err(), "it was waited for");
    }

    #[test]
    fn a_child_that_waits_is_still_running_and_can_be_interrupted() {
        // A shell's background job would have its children ignore the signal.
        let mut sleeping = Command::new("env");
        let sleeping = sleeping.args(["--default-signal=INT", "sleep", "100"]);
        let mut child = sleeping.stdin(Stdio::null()).spawn().unwrap();
        assert_eq!(wait(&mut child, Duration::from_millis(20)).unwrap(), None);
        assert!(cpu_ns(child.id()).unwrap() < PATIENCE.as_nanos() as u64);
        interrupt(child.id()).unwrap();
        assert_eq!(wait(&mut child, PATIENCE).unwrap().unwrap().code, None);
        assert!(cpu_ns(child.id()).is_err());
    }

    #[test]
    fn the_niceness_of_a_session_is_the_last_word_and_of_none_is_nothing() {
        assert_eq!(niceness_of_session("/autogroup-9 nice -10\n"), Some("-10"));
        assert_eq!(niceness_of_session(""), None);
    }

    #[test]
    fn the_clock_of_this_process_goes_on() {
        let before = cpu_ns(std::process::id()).unwrap();
        let mut sum = 0u64;
        while cpu_ns(std::process::id()).unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }
}
