//! Debug information from servers, by build id, through the client that distributions
//! ship (`debuginfod-find`): it has the proxies, certificates, limits and the cache that
//! other tools use. `docs/decisions/0007-debuginfod.md` says why it is not linked in.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::unistd::{Uid, User};

use crate::target::{Invoker, hexadecimal, open_in_root};

/// The client.
const CLIENT: &str = "debuginfod-find";
/// Where it finds its servers.
const SERVERS_VARIABLE: &str = "DEBUGINFOD_URLS";
/// How long a server may send nothing of note, in seconds, unless the environment says
/// something else.
const SILENCE_SECONDS: (&str, &str) = ("DEBUGINFOD_TIMEOUT", "15");
/// How long one file may take, in seconds.
const FILE_SECONDS: (&str, &str) = ("DEBUGINFOD_MAXTIME", "60");
/// How large one file may be, in bytes: the debug information of a browser has less.
const FILE_BYTES: (&str, &str) = ("DEBUGINFOD_MAXSIZE", "4294967296");
/// How long one file may take, whatever the client thinks of it.
const FILE_PATIENCE: Duration = Duration::from_secs(90);
/// How long all files of a trace together may take: the end of the trace waits for them.
const TRACE_PATIENCE: Duration = Duration::from_secs(180);
/// How often the client is looked after.
const LOOK: Duration = Duration::from_millis(20);
/// Longest path that the client may print.
const MAX_PATH_BYTES: u64 = 4096;

/// Why no server can be asked.
#[derive(Debug, thiserror::Error)]
pub enum DebuginfodError {
    /// No server is named.
    #[error(
        "--debuginfod needs servers: set DEBUGINFOD_URLS, and have sudo keep it \
         (sudo --preserve-env=DEBUGINFOD_URLS)"
    )]
    NoServers,
    /// The client is not installed.
    #[error(
        "--debuginfod needs the program debuginfod-find: install the package debuginfod \
         (Debian, Ubuntu) or elfutils-debuginfod-client (Fedora)"
    )]
    NoClient,
}

/// Asks servers for debug files.
#[derive(Debug)]
pub struct Debuginfod {
    client: PathBuf,
    servers: OsString,
    /// As whom the client runs: user, group, and their home directory.
    user: Option<(u32, u32, PathBuf)>,
    /// Where it keeps what it got, if not where it does by itself.
    cache: Option<PathBuf>,
    /// How much longer all that is still to come may take.
    patience: Duration,
}

impl Debuginfod {
    /// As the environment says. With an invoker the client runs as that user and with
    /// that user's cache, so that nothing from the network reaches root.
    ///
    /// # Errors
    ///
    /// If no servers are named, or there is no client.
    pub fn from_environment(invoker: Option<&Invoker>) -> Result<Self, DebuginfodError> {
        let servers = std::env::var_os(SERVERS_VARIABLE)
            .filter(|servers| !servers.is_empty())
            .ok_or(DebuginfodError::NoServers)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let client = std::env::split_paths(&path)
            .map(|folder| folder.join(CLIENT))
            .find(|path| path.is_file())
            .ok_or(DebuginfodError::NoClient)?;
        let user = invoker.and_then(|invoker| {
            let (uid, gid) = invoker.owner();
            let home = User::from_uid(Uid::from_raw(uid)).ok().flatten()?.dir;
            Some((uid, gid, home))
        });
        Ok(Self { client, servers, user, cache: None, patience: TRACE_PATIENCE })
    }

    /// The debug file of this build id, as the client says; it is to be checked. None if
    /// no server has it, or it takes too long.
    pub(super) fn fetch(&mut self, build_id: &[u8]) -> Option<File> {
        if self.patience.is_zero() {
            return None;
        }
        let begun = Instant::now();
        let build_id = hexadecimal(build_id);
        log::debug!("asking for the debug information of build {build_id}");
        let fetched = self.ask(&build_id, self.patience.min(FILE_PATIENCE));
        self.patience = self.patience.saturating_sub(begun.elapsed());
        if self.patience.is_zero() {
            log::warn!("debug information takes long to fetch: no more is asked for in this trace");
        }
        fetched
            .inspect_err(|error| log::debug!("no debug information of build {build_id}: {error}"))
            .ok()
    }

    /// Asks this server and keeps what it sends here.
    #[cfg(test)]
    pub(super) fn at(url: &str, cache: &Path) -> Self {
        Self {
            client: CLIENT.into(),
            servers: url.into(),
            user: None,
            cache: Some(cache.to_owned()),
            patience: TRACE_PATIENCE,
        }
    }

    #[cfg(test)]
    pub(super) fn limit_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn ask(&self, build_id: &str, patience: Duration) -> io::Result<File> {
        let mut child = self.command(build_id).spawn()?;
        let status = wait(&mut child, patience)?;
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_PATH_BYTES).read_to_end(&mut printed)?;
        }
        if !status {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the servers do not have it"));
        }
        let path = Path::new(OsStr::from_bytes(printed.trim_ascii_end()));
        open_in_root(File::open("/")?, path)
    }

    fn command(&self, build_id: &str) -> Command {
        let mut command = Command::new(&self.client);
        command.args(["debuginfo", build_id]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env(SERVERS_VARIABLE, &self.servers).env_remove("DEBUGINFOD_PROGRESS");
        for (name, value) in [SILENCE_SECONDS, FILE_SECONDS, FILE_BYTES] {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
        if let Some((uid, gid, home)) = &self.user {
            command.uid(*uid).gid(*gid).env("HOME", home).env_remove("XDG_CACHE_HOME");
        }
        if let Some(cache) = &self.cache {
            command.env("DEBUGINFOD_CACHE_PATH", cache);
        }
        command
    }
}

/// Waits for the client; whether it has found anything. One that takes too long is ended.
fn wait(child: &mut Child, patience: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if begun.elapsed() >= patience {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        std::thread::sleep(LOOK);
    }
}
