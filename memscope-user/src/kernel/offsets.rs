use memscope_common::{control::TaskOffsets, unwind::KernelOffsets};

use super::types::{KERNEL_BTF, KernelTypes, Kind};

/// The types that say it.
pub(super) const TYPES: [(Kind, &str); 5] = [
    (Kind::Struct, "task_struct"),
    (Kind::Struct, "uprobe_task"),
    (Kind::Struct, "return_instance"),
    (Kind::Struct, "signal_struct"),
    (Kind::Struct, "thread_info"),
];

/// The lockdown modes that the kernel has, the one it is in between brackets
/// (security/lockdown/lockdown.c, `lockdown_read`).
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Where the running kernel keeps the return addresses that uretprobes have replaced;
/// all 0 if it does not say, or lets no program read its memory. Then a stack that passes a
/// function with another tracer's uretprobe ends there, as unknown code.
///
/// The kernel refuses a program that calls a helper it may not call
/// (`bpf_tracing_func_proto`, kernel/trace/bpf_trace.c, `LOCKDOWN_BPF_READ_KERNEL`). The
/// offsets are constants to its verifier: with all of them 0 it never comes to that call.
pub(super) fn kernel_offsets(types: Option<&KernelTypes<'_>>) -> KernelOffsets {
    if !may_read_kernel() {
        log::debug!("{LOCKDOWN} lets no program read the kernel's memory");
        return KernelOffsets::default();
    }
    let found = types.and_then(|types| {
        Some(KernelOffsets {
            task_utask: types.member_offset("task_struct", "utask")?,
            utask_return_instances: types.member_offset("uprobe_task", "return_instances")?,
            instance_stack: types.member_offset("return_instance", "stack")?,
            instance_return: types.member_offset("return_instance", "orig_ret_vaddr")?,
            instance_next: types.member_offset("return_instance", "next")?,
            known: 1,
        })
    });
    found.unwrap_or_else(|| {
        log::debug!("{KERNEL_BTF} does not say where return addresses are kept");
        KernelOffsets::default()
    })
}

/// Where the running kernel keeps what is asked of its tasks; all 0 as in [`kernel_offsets`].
/// Then no child can be followed.
pub(super) fn task_offsets(types: &KernelTypes<'_>) -> TaskOffsets {
    if !may_read_kernel() {
        return TaskOffsets::default();
    }
    let of_task = |member| types.member_offset("task_struct", member);
    let of_signal = |member| types.member_offset("signal_struct", member);
    let found = || {
        Some(TaskOffsets {
            tgid: of_task("tgid")?,
            memory: of_task("mm")?,
            exit_code: of_task("exit_code")?,
            leader: of_task("group_leader")?,
            signal: of_task("signal")?,
            live: of_signal("live")?,
            flags: of_signal("flags")?,
            group_exit_code: of_signal("group_exit_code")?,
            system_call_status: of_task("thread_info")?
                .checked_add(types.member_offset("thread_info", "status")?)?,
            known: 1,
        })
    };
    found().unwrap_or_else(|| {
        log::debug!("{KERNEL_BTF} does not say how processes end");
        TaskOffsets::default()
    })
}

/// Whether programs may read the kernel's memory.
pub(super) fn may_read_kernel() -> bool {
    lets_read_kernel(&std::fs::read_to_string(LOCKDOWN).unwrap_or_default())
}

fn lets_read_kernel(lockdown: &str) -> bool {
    !lockdown.contains("[confidentiality]")
}

#[cfg(test)]
mod tests {
    use super::lets_read_kernel;

    #[test]
    fn only_the_strictest_lockdown_forbids_to_read_the_kernel() {
        assert!(!lets_read_kernel("none integrity [confidentiality]\n"));
        assert!(lets_read_kernel("none [integrity] confidentiality\n"));
        assert!(lets_read_kernel("[none] integrity confidentiality\n"));
        assert!(lets_read_kernel(""), "it does not say");
    }
}
