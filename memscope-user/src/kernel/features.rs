//! What this kernel and this process allow.

use std::path::Path;

use caps::{CapSet, Capability};

use super::{
    mmap_events::MmapEvents,
    offsets::{self, kernel_offsets},
    types::KernelTypes,
};

/// Something that tracing needs, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name in exports.
    pub name: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What it is for, and where to look if it is missing.
    pub purpose: &'static str,
}

/// Capabilities that are needed and not held. CAP_SYS_ADMIN stands for the two newer
/// ones, as it did before Linux 5.8.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let admin = held.contains(&Capability::CAP_SYS_ADMIN);
    let needed = [
        (Capability::CAP_BPF, true, "CAP_BPF"),
        (Capability::CAP_PERFMON, true, "CAP_PERFMON"),
        (Capability::CAP_SYS_PTRACE, false, "CAP_SYS_PTRACE"),
    ];
    needed
        .into_iter()
        .filter(|(capability, admin_will_do, _)| {
            !(held.contains(capability) || admin && *admin_will_do)
        })
        .map(|(_, _, name)| name)
        .collect()
}

/// Release of the kernel and name of the architecture; empty if it does not say.
#[must_use]
pub fn kernel_and_arch() -> (String, String) {
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    nix::sys::utsname::uname().map_or_else(
        |_error| Default::default(),
        |name| (text(name.release()), text(name.machine())),
    )
}

/// What nothing works without. Asked at every start, so it asks for nothing else.
#[must_use]
pub(super) fn required_features() -> Vec<Feature> {
    let exists = |path: &str| Path::new(path).exists();
    vec![
        Feature {
            name: "kernel_5_17",
            available: kernel_is_at_least(5, 17),
            required: true,
            purpose: "Linux 5.17 or later: loops in BPF programs (bpf_loop), probes with cookies",
        },
        Feature {
            name: "btf",
            available: exists("/sys/kernel/btf/vmlinux"),
            required: true,
            purpose: "type information of the kernel (CONFIG_DEBUG_INFO_BTF): exec, exit and new code",
        },
        Feature {
            name: "uprobes",
            available: exists("/sys/bus/event_source/devices/uprobe/type"),
            required: true,
            purpose: "probes on user code (CONFIG_UPROBE_EVENTS): every event",
        },
    ]
}

pub(super) fn kernel_is_at_least(major: u8, minor: u8) -> bool {
    procfs::sys::kernel::Version::current()
        .is_ok_and(|version| (version.major, version.minor) >= (major, minor))
}

/// What the kernel offers, without loading any program.
#[must_use]
pub fn features() -> Vec<Feature> {
    let optional = [
        Feature {
            name: "uretprobe_syscall",
            available: kernel_is_at_least(6, 11),
            required: false,
            purpose: "cheaper return probes (Linux 6.11)",
        },
        Feature {
            name: "mmap_events",
            available: MmapEvents::open().is_ok(),
            required: false,
            purpose: "perf events of new code (CAP_PERFMON): names and whole stacks in code that is loaded during the trace, however briefly",
        },
        Feature {
            name: "uretprobe_addresses",
            available: kernel_offsets(KernelTypes::find(&offsets::TYPES).ok().as_ref()).known != 0,
            required: false,
            purpose: "return addresses that other tracers' return probes replace (type information of the kernel): stacks through such functions",
        },
    ];
    required_features().into_iter().chain(optional).collect()
}
