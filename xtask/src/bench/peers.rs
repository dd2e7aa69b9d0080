//! Tracers that start the program themselves, and what they say they have seen.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::process::Output;
use super::workloads::Launch;
use crate::process::output;

/// Mean bytes between jemalloc's samples, as a power of two; its usual one.
pub(super) const JEMALLOC_USUAL: u8 = 19;
const MAX_PROFILE_BYTES: u64 = 256 << 20;

/// A tracer that starts the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Heaptrack,
    /// Without its interpreter, which gives names to addresses while the program runs.
    HeaptrackRaw,
    Memcheck,
    Massif,
    Dhat,
    /// jemalloc as the allocator, and nothing else: what its profiler is to be compared with.
    Jemalloc,
    JemallocProfile {
        sample: u8,
    },
    Bytehound,
}

/// Libraries that are preloaded.
#[derive(Clone, Debug, Default)]
pub(super) struct Libraries {
    pub(super) jemalloc: Option<PathBuf>,
    pub(super) bytehound: Option<PathBuf>,
}

impl Peer {
    pub(super) fn launch(self, libraries: &Libraries, folder: &Path) -> Result<Launch> {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut launch = Launch::default();
        match self {
            Peer::Heaptrack => {
                launch.wrapper = words(&["heaptrack", "-o"]);
                launch.wrapper.push(folder.join("heaptrack").into());
            }
            Peer::HeaptrackRaw => {
                launch.wrapper = words(&["heaptrack", "--raw", "-o"]);
                launch.wrapper.push(folder.join("heaptrack").into());
            }
            // What the C library would free only for valgrind's sake is left alone.
            Peer::Memcheck => {
                launch.wrapper =
                    words(&["valgrind", "--run-libc-freeres=no", "--run-cxx-freeres=no"]);
            }
            Peer::Massif => {
                launch.wrapper = words(&["valgrind", "--tool=massif", "--stats=yes"]);
                launch.wrapper.push(with_path("--massif-out-file=", folder.join("massif")));
            }
            Peer::Dhat => {
                launch.wrapper = words(&["valgrind", "--tool=dhat"]);
                launch.wrapper.push(with_path("--dhat-out-file=", folder.join("dhat")));
            }
            Peer::Jemalloc => launch.environment.push(preload(libraries.jemalloc.as_ref())?),
            Peer::JemallocProfile { sample } => {
                let options = format!(
                    "prof:true,prof_active:true,prof_accum:true,prof_final:true,lg_prof_sample:{sample},\
                     prof_prefix:{}",
                    folder.join("profile").display()
                );
                launch.environment =
                    vec![preload(libraries.jemalloc.as_ref())?, ("MALLOC_CONF", options.into())];
            }
            Peer::Bytehound => {
                let recording = folder.join("bytehound").into_os_string();
                launch.environment = vec![
                    preload(libraries.bytehound.as_ref())?,
                    ("MEMORY_PROFILER_OUTPUT", recording),
                ];
            }
        }
        Ok(launch)
    }

    /// How many allocations it says that it has seen; none where it does not count them.
    pub(super) fn check(
        self,
        output: &Output,
        at_least: u64,
        folder: &Path,
    ) -> Result<Option<u64>> {
        let stderr = &output.stderr;
        let seen = match self {
            Peer::Heaptrack => number_after(stderr, "\n\tallocations:"),
            Peer::HeaptrackRaw => Some(raw_allocations(&folder.join("heaptrack.raw.zst"))?),
            Peer::Memcheck => number_after(stderr, "total heap usage:"),
            Peer::Massif => number_after(stderr, "Massif: heap allocs:"),
            Peer::Dhat => dhat_blocks(stderr),
            Peer::Jemalloc => return Ok(None),
            Peer::JemallocProfile { sample } => {
                let recorded = recorded_by_jemalloc(&read_profile(folder, "profile.")?);
                if sample > 0 {
                    // Of sampled allocations only some are recorded: how many is a matter of chance.
                    return match recorded {
                        Some(recorded) if recorded > 0 => Ok(None),
                        _ => bail!("jemalloc's profile is empty"),
                    };
                }
                recorded
            }
            Peer::Bytehound => {
                let recorded = fs::metadata(folder.join("bytehound")).map_or(0, |file| file.len());
                if recorded < at_least {
                    bail!("bytehound's recording has {recorded} bytes for {at_least} allocations");
                }
                return Ok(None);
            }
        };
        let seen = seen.with_context(|| format!("{self:?} does not say what it has seen"))?;
        if seen < at_least {
            bail!("{self:?} saw {seen} allocations of at least {at_least}");
        }
        Ok(Some(seen))
    }
}

fn preload(library: Option<&PathBuf>) -> Result<(&'static str, OsString)> {
    let library = library.context("the library is not there")?;
    Ok(("LD_PRELOAD", library.clone().into_os_string()))
}

fn with_path(option: &str, path: PathBuf) -> OsString {
    let mut word = OsString::from(option);
    word.push(path);
    word
}

/// The number behind the first such words, whatever groups its digits.
fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    rest.split_whitespace().next()?.replace(',', "").parse().ok()
}

/// Lines of allocations in what heaptrack has recorded: `+ <size> <stack> <address>`.
fn raw_allocations(recording: &Path) -> Result<u64> {
    const COUNT: &str = "zstd --decompress --stdout \"$1\" | grep --count '^+ '";
    let mut count = Command::new("sh");
    let lines = output(count.args(["-c", COUNT, "sh"]).arg(recording))?;
    lines.trim().parse().context("grep counts lines")
}

/// `Total:     3,200,000 bytes in 100,000 blocks`
fn dhat_blocks(stderr: &str) -> Option<u64> {
    let line = stderr.lines().find(|line| line.contains("Total:"))?;
    number_after(line, " bytes in ")
}

/// The file that jemalloc writes at the end.
fn read_profile(folder: &Path, beginning: &str) -> Result<String> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("cannot read a folder")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        if name.starts_with(beginning) && bytes <= MAX_PROFILE_BYTES {
            let profile = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
            return Ok(String::from_utf8_lossy(&profile).into_owned());
        }
    }
    bail!("jemalloc wrote no profile")
}

/// `  t*: 1: 81920 [200001: 6481920]`, the first such line: blocks that were ever recorded.
fn recorded_by_jemalloc(profile: &str) -> Option<u64> {
    let line = profile.lines().find_map(|line| line.trim_start().strip_prefix("t*:"))?;
    let (recorded, _) = line.split_once('[')?.1.split_once(':')?;
    recorded.parse().ok()
}

#[cfg(test)]
mod tests {
    use memscope_tests::resources::Ended;

    use super::*;

    fn seen(peer: Peer, stderr: &str, at_least: u64) -> Result<Option<u64>> {
        let ended = Ended { code: Some(0), cpu_ns: 1, peak_rss_bytes: 1 };
        let output = Output { ended, stdout: String::new(), stderr: stderr.to_owned() };
        let scratch = tempfile::tempdir().unwrap();
        peer.check(&output, at_least, scratch.path())
    }

    #[test]
    fn each_peers_own_count_is_read() {
        let heaptrack = "allocations 7\nheaptrack stats:\n\tallocations:          \t100001\n\
                         \tleaked allocations:   \t0\n\ttemporary allocations:\t100000\n";
        let memcheck =
            "==7== HEAP SUMMARY:\n==7==   total heap usage: 1,234 allocs, 1,200 frees, 5 bytes\n";
        let massif = "--7-- Massif: heap allocs:           100000\n--7-- Massif: ignored heap allocs:   0x\n";
        let dhat = "==7== Total:     3,200,000 bytes in 100,000 blocks\n==7== At t-end:  0 bytes in 0 blocks\n";
        assert_eq!(seen(Peer::Heaptrack, heaptrack, 1).unwrap(), Some(100_001));
        assert_eq!(seen(Peer::Memcheck, memcheck, 1234).unwrap(), Some(1234));
        assert_eq!(seen(Peer::Massif, massif, 1).unwrap(), Some(100_000));
        assert_eq!(seen(Peer::Dhat, dhat, 100_000).unwrap(), Some(100_000));
    }

    #[test]
    fn a_peer_that_saw_less_or_says_nothing_has_no_result() {
        let memcheck = "==7==   total heap usage: 1,234 allocs, 1,200 frees, 5 bytes\n";
        assert!(seen(Peer::Memcheck, memcheck, 1235).is_err());
        for peer in [Peer::Heaptrack, Peer::Memcheck, Peer::Massif, Peer::Dhat] {
            assert!(seen(peer, "", 0).is_err(), "{peer:?}");
        }
        assert!(seen(Peer::JemallocProfile { sample: 0 }, "", 0).is_err());
    }

    #[test]
    fn allocations_of_a_raw_recording_are_its_lines_that_begin_with_a_plus() {
        let scratch = tempfile::tempdir().unwrap();
        let (raw, packed) = (scratch.path().join("raw"), scratch.path().join("raw.zst"));
        assert!(raw_allocations(&packed).is_err());
        fs::write(&raw, "v 1\n+ 10 1 2\n- 2\nt + 1\n+ 20 1 2\n").unwrap();
        // Without zstd this tracer is left out.
        if output(Command::new("zstd").arg("--quiet").arg(&raw)).is_ok() {
            assert_eq!(raw_allocations(&packed).unwrap(), 2);
        }
    }

    #[test]
    fn jemallocs_profile_has_what_was_ever_recorded() {
        let profile = "heap_v2/1\n  t*: 1: 81920 [200001: 6481920]\n  t0: 1: 81920 [7: 6]\n@ 0x1\n  t*: 0: 0 [2: 3]\n";
        assert_eq!(recorded_by_jemalloc(profile), Some(200_001));
        assert_eq!(recorded_by_jemalloc("heap_v2/1\n"), None);
    }
}
