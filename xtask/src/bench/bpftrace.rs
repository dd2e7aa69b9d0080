//! The tracer that anybody would write first, in bpftrace: probes at the first instruction and the return of malloc and
//! at the first instruction of free, a call stack counted for each allocation, the live blocks in a map.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use memscope_tests::resources;
use serde_json::Value;

use super::process::Process;
use super::sites::Sites;

/// Rows of a map, so many that the live blocks of every workload have one.
const MAP_ROWS: &str = "1000000";

fn script<'a>(files: impl Iterator<Item = &'a Path>) -> String {
    // bpftrace attaches the last probe first, so this one speaks when all are attached.
    let mut text = "interval:ms:100 { printf(\"attached\\n\"); }\n".to_owned();
    for file in files {
        let file = file.display();
        text += &format!(
            "uprobe:{file}:malloc {{ @sizes[tid] = arg0; @stacks[ustack] = count(); @allocations = count(); }}\n\
             uretprobe:{file}:malloc {{ @live[retval] = @sizes[tid]; delete(@sizes[tid]); }}\n\
             uprobe:{file}:free {{ delete(@live[arg0]); @frees = count(); }}\n"
        );
    }
    // To print all stacks would take longer than to count them.
    text + "END { clear(@stacks); clear(@live); clear(@sizes); }\n"
}

/// bpftrace, attached.
pub(super) struct Tracing(Process);

impl Tracing {
    pub(super) fn attach(sites: &Sites, pid: u32, folder: &Path) -> Result<Self> {
        let program = folder.join("naive.bt");
        let files = sites.files.iter().map(|file| file.path.as_path());
        fs::write(&program, script(files)).context("cannot write bpftrace's program")?;
        let mut command = Command::new("bpftrace");
        command.env("BPFTRACE_MAP_KEYS_MAX", MAP_ROWS);
        command.args(["-f", "json", "-p", &pid.to_string()]).arg(program);
        let mut process = Process::spawn(&mut command, folder.join("bpftrace-stderr"))?;
        process.wait_for(r#"{"type": "printf", "data": "attached"#)?;
        Ok(Self(process))
    }

    /// How many allocations it has seen.
    pub(super) fn finish(self, at_least: u64) -> Result<u64> {
        // With the program that it was given it may have ended by itself.
        if !self.0.has_ended() {
            resources::interrupt(self.0.pid()).context("cannot end bpftrace")?;
        }
        let printed = self.0.finish()?.stdout;
        let (allocations, frees) = (sum(&printed, "@allocations"), sum(&printed, "@frees"));
        let allocations = allocations.context("bpftrace printed no sum of allocations")?;
        if allocations < at_least || frees.is_none_or(|frees| frees == 0) {
            bail!("bpftrace saw {allocations} allocations of at least {at_least}, {frees:?} frees");
        }
        Ok(allocations)
    }
}

/// A map without keys.
fn sum(printed: &str, map: &str) -> Option<u64> {
    let objects = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    objects.filter(|object| object["type"] == "map").find_map(|object| object["data"][map].as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_from_the_maps() {
        let printed = "{\"type\": \"printf\", \"data\": \"attached\\n\"}\nnoise\n\
                       {\"type\": \"map\", \"data\": {\"@frees\": 9}}\n\
                       {\"type\": \"map\", \"data\": {\"@allocations\": 12}}\n";
        assert_eq!(sum(printed, "@allocations"), Some(12));
        assert_eq!(sum(printed, "@frees"), Some(9));
        assert_eq!(sum(printed, "@live"), None);
    }

    #[test]
    fn each_file_has_three_probes() {
        let text = script(["/a/libc.so.6", "/a/b.so"].map(Path::new).into_iter());
        assert_eq!(text.matches("probe:/a/libc.so.6:").count(), 3);
        assert_eq!(text.matches("uretprobe:").count(), 2);
        assert!(text.starts_with("interval:"));
    }
}
