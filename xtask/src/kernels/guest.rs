//! An emulated machine: what runs in it, and how its output is had.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Traced;
use crate::process::show;

/// A machine whose every instruction is emulated needs about 20 s on a quiet computer.
const DEADLINE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(100);

/// Two processors, because what runs on several goes wrong in other ways. They take turns
/// in one thread, which is no slower here: with a thread each (QEMU 7.2) Linux 6.12 once
/// panicked at an `int3` in the middle of `__schedule`, where it patches its own code.
const MACHINE: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "1G",
    "-no-reboot",
    "-display",
    "none",
];
/// The first serial line is the kernel's. It speaks in need only, and a machine that
/// panics ends.
const KERNEL_OPTIONS: &str = "console=ttyS0 loglevel=4 panic=1 rdinit=/init";

/// What the messages that tell of a fault have in them.
const ERRORS: &[&str] = &["memscope: ", "Oops", "Kernel panic", "BUG:", "WARNING:"];
const MAX_MESSAGES: usize = 10;

/// `chain.c` is `/bin/chain`.
pub(super) fn program_name(source: &str) -> &str {
    source.split('.').next().unwrap_or(source)
}

/// The first program, and the only one: a shell script. Standard output of each command
/// goes to the second serial line between two marks, messages to the first.
pub(super) fn init(traced: &[Traced]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh
PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmp /tmp
exec </dev/null >/dev/ttyS1 2>/dev/ttyS0
run() {
    name=$1
    shift
    echo \"@begin $name\"
    \"$@\"
    status=$?
    echo
    echo \"@end $name $status\"
}
run doctor memscope doctor --json
",
    );
    for Traced { name, source, arguments, options } in traced {
        let program = program_name(source);
        // Writing to a string cannot fail.
        write!(
            script,
            "run trace-{name} memscope trace {options} -o /tmp/{name}.mscope -- /bin/{program} {arguments}
run verify-{name} memscope verify /tmp/{name}.mscope
run export-{name} memscope export /tmp/{name}.mscope --format json
"
        )
        .unwrap_or_default();
    }
    // A restart ends the emulator, and needs no firmware that knows how to power off.
    script + "busybox sync\nbusybox reboot -f\n"
}

/// Boots the kernel and waits for its end; what the commands printed.
pub(super) fn boot(series: &str, kernel: &Path, image: &Path, folder: &Path) -> Result<String> {
    let console = folder.join(format!("{series}.console"));
    let printed = folder.join(format!("{series}.printed"));
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(MACHINE).arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    qemu.args(["-append", KERNEL_OPTIONS]);
    for line in [&console, &printed] {
        // What an earlier machine said must not be taken for this one's.
        File::create(line).with_context(|| format!("cannot make {}", line.display()))?;
        qemu.arg("-serial").arg(format!("file:{}", line.display()));
    }
    let shown = show(&qemu);
    eprintln!("$ {shown}");
    let mut machine = qemu.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let ended = wait(&mut machine, &shown);
    let printed =
        fs::read(&printed).with_context(|| format!("cannot read {}", printed.display()))?;
    ended.map(|()| String::from_utf8_lossy(&printed).into_owned())
}

fn wait(machine: &mut Child, shown: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match machine.try_wait().with_context(|| format!("cannot wait for `{shown}`"))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("`{shown}` failed: {status}"),
            None if begun.elapsed() > DEADLINE => {
                machine.kill().and_then(|()| machine.wait()).context("cannot end the machine")?;
                bail!("the machine was still running after {} s", DEADLINE.as_secs());
            }
            None => thread::sleep(LOOK),
        }
    }
}

/// The errors of memscope on the kernel's serial line, each once, and the kernel's last
/// words if it had to stop.
pub(super) fn messages(series: &str, folder: &Path) -> Result<Vec<String>> {
    let console = folder.join(format!("{series}.console"));
    let said = fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
    let said = String::from_utf8_lossy(&said);
    let mut messages: Vec<String> = Vec::new();
    for line in said.lines().filter(|line| ERRORS.iter().any(|error| line.contains(error))) {
        let message = format!("Linux {series} said: {}", line.trim_end());
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    messages.truncate(MAX_MESSAGES);
    Ok(messages)
}

/// What one command printed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    pub(super) status: i32,
    pub(super) text: &'a str,
}

/// The output of the command that ran under this name.
pub(super) fn section<'a>(printed: &'a str, name: &str) -> Result<Section<'a>> {
    let cut = || {
        let (_, rest) = printed.split_once(&format!("@begin {name}\n"))?;
        let (text, rest) = rest.split_once(&format!("\n@end {name} "))?;
        let status = rest.lines().next()?.trim().parse().ok()?;
        Some(Section { status, text })
    };
    cut().with_context(|| format!("the machine ended before `{name}` did"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_by_name_and_only_whole() {
        let printed = "@begin a\none\ntwo\n\n@end a 0\n@begin b\n\n@end b 3\n@begin c\nhalf";
        let a = section(printed, "a").unwrap();
        assert_eq!(a, Section { status: 0, text: "one\ntwo\n" });
        assert_eq!(section(printed, "b").unwrap().status, 3);
        assert!(section(printed, "c").is_err());
        assert!(section(printed, "d").is_err());
    }

    #[test]
    fn the_script_runs_each_program_under_memscope() {
        let script = init(&[Traced {
            name: "few",
            source: "mix.c",
            arguments: "1 20",
            options: "--stacks full",
        }]);
        assert!(script.starts_with("#!/bin/busybox sh\n"));
        assert!(script.contains(
            "run trace-few memscope trace --stacks full -o /tmp/few.mscope -- /bin/mix 1 20\n"
        ));
        assert!(script.ends_with("busybox reboot -f\n"));
    }
}
