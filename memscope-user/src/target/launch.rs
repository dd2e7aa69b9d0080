//! Starts a command so that it can be looked at before it has run anything.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, User, getgrouplist, setgid, setgroups, setuid},
};

use super::{TargetError, TargetProcess, process::MappedFile};

/// Who the command is to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Invoker {
    /// The user that `sudo` was called by, told by `SUDO_UID` and `SUDO_GID`; none if
    /// there are none, or they say root.
    #[must_use]
    pub fn from_sudo() -> Option<Self> {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let (uid, gid) = (Uid::from_raw(number("SUDO_UID")?), Gid::from_raw(number("SUDO_GID")?));
        if !Uid::effective().is_root() || uid.is_root() {
            return None;
        }
        let named = User::from_uid(uid).ok().flatten();
        let groups = named
            .and_then(|user| std::ffi::CString::new(user.name).ok())
            .and_then(|name| getgrouplist(&name, gid).ok())
            .unwrap_or_else(|| vec![gid]);
        Some(Self { uid, gid, groups })
    }

    /// User and group, as numbers.
    #[must_use]
    pub fn owner(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no such file in `PATH`, or not at the given path.
    #[error("cannot run {command}: there is no such file; check the name, or give its path")]
    NotFound {
        /// What was to be run.
        command: String,
    },
    /// It may not be run.
    #[error("cannot run {command}: it is not executable for this user; check `ls -l`")]
    NotExecutable {
        /// What was to be run.
        command: String,
    },
    /// Something else is in the way.
    #[error("cannot run {command}")]
    Spawn {
        /// What was to be run.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be held at its first instructions.
    #[error("cannot hold {command} at its start ({step})")]
    Hold {
        /// What was to be run.
        command: String,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It could not be looked at.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// How far a held command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    /// It has mapped new code, and has not run it.
    CodeMapped,
    /// Its dynamic loader has loaded everything, and nothing of it has run yet.
    Loaded,
    /// It is gone already.
    Ended,
}

/// A command held by ptrace while its libraries are loaded.
#[derive(Debug)]
pub struct HeldCommand {
    command: String,
    pid: Pid,
    /// Code of the dynamic loader; empty for a static program.
    loader_avma: std::ops::Range<u64>,
    inside_system_call: bool,
    exit_code: Option<i32>,
}

/// A command that was let go.
#[derive(Debug)]
pub struct RunningCommand {
    pid: Pid,
    exit_code: Option<i32>,
}

impl RunningCommand {
    /// Waits for its end; its exit code, or 128 + the signal that ended it.
    ///
    /// # Errors
    ///
    /// If somebody else has waited for it.
    pub fn wait(&mut self) -> Result<i32, Errno> {
        loop {
            if let Some(code) = self.exit_code {
                return Ok(code);
            }
            match waitpid(self.pid, None) {
                Ok(status) => self.exit_code = exit_code(&status),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends it a signal. One that has ended already needs none.
    pub fn signal(&self, signal: Signal) {
        if self.exit_code.is_none()
            && let Err(error) = nix::sys::signal::kill(self.pid, signal)
        {
            log::debug!("no signal to process {}: {error}", self.pid);
        }
    }
}

fn exit_code(status: &WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(*code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + *signal as i32),
        _ => None,
    }
}

impl HeldCommand {
    /// Starts a command and holds it before its first instruction. To be called, like
    /// everything here, by one and the same thread.
    ///
    /// # Errors
    ///
    /// If it cannot be run.
    pub fn start(command: &[String], invoker: Option<&Invoker>) -> Result<Self, LaunchError> {
        let shown = command.first().cloned().unwrap_or_default();
        let mut to_run = Command::new(&shown);
        to_run.args(command.iter().skip(1));
        let invoker = invoker.cloned();
        let prepare = move || -> io::Result<()> {
            if let Some(Invoker { uid, gid, groups }) = &invoker {
                setgroups(groups)?;
                setgid(*gid)?;
                setuid(*uid)?;
            }
            ptrace::traceme()?;
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls only: it allocates
        // nothing and takes no lock.
        unsafe { to_run.pre_exec(prepare) };
        let child = to_run.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LaunchError::NotFound { command: shown.clone() },
            io::ErrorKind::PermissionDenied => {
                LaunchError::NotExecutable { command: shown.clone() }
            }
            _ => LaunchError::Spawn { command: shown.clone(), source },
        })?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let mut held = Self {
            command: shown,
            pid,
            loader_avma: 0..0,
            inside_system_call: false,
            exit_code: None,
        };
        held.wait_for_stop("wait for its exec")?;
        if held.exit_code.is_none() {
            ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD)
                .map_err(|source| held.failed("set ptrace options", source))?;
            held.loader_avma = held.find_loader()?;
        }
        Ok(held)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Lets it run on to the next point at which something is to be done.
    ///
    /// # Errors
    ///
    /// If the operating system refuses to follow it.
    pub fn step(&mut self) -> Result<Startup, LaunchError> {
        let mut signal = None;
        loop {
            if self.exit_code.is_some() {
                return Ok(Startup::Ended);
            }
            if self.loader_avma.is_empty() {
                return Ok(Startup::Loaded);
            }
            match ptrace::syscall(self.pid, signal.take()) {
                Ok(()) => {}
                // Killed while it was held; waiting tells how.
                Err(Errno::ESRCH) => {}
                Err(source) => return Err(self.failed("follow its system calls", source)),
            }
            match self.wait_for_stop("wait for a system call")? {
                None => {}
                Some(Stop::Signal(delivered)) => signal = Some(delivered),
                Some(Stop::SystemCall) => {
                    self.inside_system_call = !self.inside_system_call;
                    if let Some(startup) = self.judge_system_call()? {
                        return Ok(startup);
                    }
                }
            }
        }
    }

    /// Lets it go.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn release(self) -> Result<RunningCommand, LaunchError> {
        let running = RunningCommand { pid: self.pid, exit_code: self.exit_code };
        match ptrace::detach(self.pid, None) {
            Ok(()) | Err(Errno::ESRCH) => Ok(running),
            Err(source) => {
                Err(LaunchError::Hold { command: self.command, step: "let it go", source })
            }
        }
    }

    /// The loader's own calls map the libraries. The first call from elsewhere means
    /// that the loader has done its work and code of the libraries runs.
    fn judge_system_call(&mut self) -> Result<Option<Startup>, LaunchError> {
        let registers = match ptrace::getregs(self.pid) {
            Ok(registers) => registers,
            Err(Errno::ESRCH) => return Ok(None),
            Err(source) => return Err(self.failed("read its registers", source)),
        };
        if self.inside_system_call {
            let from_loader = self.loader_avma.contains(&registers.rip);
            return Ok((!from_loader).then_some(Startup::Loaded));
        }
        let maps_code = registers.orig_rax == libc::SYS_mmap as u64
            && registers.rdx & libc::PROT_EXEC as u64 != 0;
        Ok(maps_code.then_some(Startup::CodeMapped))
    }

    /// Code of the dynamic loader. After exec there are the program, its loader if it
    /// has one, and what the kernel provides.
    fn find_loader(&self) -> Result<std::ops::Range<u64>, LaunchError> {
        let process = TargetProcess::open(self.pid())?;
        let exe = std::fs::metadata(format!("/proc/{}/exe", self.pid())).ok();
        let exe_inode = exe.map(|exe| std::os::unix::fs::MetadataExt::ino(&exe));
        let loader = process.code_mappings()?.into_iter().find(|mapping| match &mapping.file {
            MappedFile::File { identity, .. } => Some(identity.inode) != exe_inode,
            MappedFile::Kernel(_) | MappedFile::Anonymous => false,
        });
        Ok(loader.map_or(0..0, |mapping| mapping.start_avma..mapping.end_avma))
    }

    /// Waits until it stops or ends; why it stopped, if that asks for something.
    fn wait_for_stop(&mut self, step: &'static str) -> Result<Option<Stop>, LaunchError> {
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                Err(source) => return Err(self.failed(step, source)),
                Ok(WaitStatus::PtraceSyscall(_)) => return Ok(Some(Stop::SystemCall)),
                // The stop at exec.
                Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => return Ok(None),
                Ok(WaitStatus::Stopped(_, signal)) => return Ok(Some(Stop::Signal(signal))),
                Ok(status) => {
                    self.exit_code = exit_code(&status);
                    return Ok(None);
                }
            }
        }
    }

    fn failed(&self, step: &'static str, source: Errno) -> LaunchError {
        LaunchError::Hold { command: self.command.clone(), step, source }
    }
}

enum Stop {
    SystemCall,
    Signal(Signal),
}
