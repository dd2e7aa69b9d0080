use std::path::Path;

use btf_rs::{Btf, Type};
use memscope_common::unwind::KernelOffsets;

/// The types of the running kernel.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

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
pub(super) fn kernel_offsets() -> KernelOffsets {
    let lockdown = std::fs::read_to_string(LOCKDOWN).unwrap_or_default();
    if !may_read_kernel(&lockdown) {
        log::debug!("{LOCKDOWN} lets no program read the kernel's memory");
        return KernelOffsets::default();
    }
    let found = Btf::from_file(Path::new(KERNEL_BTF)).ok().and_then(|btf| {
        Some(KernelOffsets {
            task_utask: member_offset(&btf, "task_struct", "utask")?,
            utask_return_instances: member_offset(&btf, "uprobe_task", "return_instances")?,
            instance_stack: member_offset(&btf, "return_instance", "stack")?,
            instance_return: member_offset(&btf, "return_instance", "orig_ret_vaddr")?,
            instance_next: member_offset(&btf, "return_instance", "next")?,
            known: 1,
        })
    });
    found.unwrap_or_else(|| {
        log::debug!("{KERNEL_BTF} does not say where return addresses are kept");
        KernelOffsets::default()
    })
}

fn may_read_kernel(lockdown: &str) -> bool {
    !lockdown.contains("[confidentiality]")
}

/// Byte offset of a direct member of a struct.
fn member_offset(btf: &Btf, type_name: &str, member_name: &str) -> Option<u32> {
    let types = btf.resolve_types_by_name(type_name).ok()?;
    let found = types.iter().find_map(|found| match found {
        Type::Struct(found) => Some(found),
        _ => None,
    })?;
    let named =
        |member: &&btf_rs::Member| btf.resolve_name(*member).is_ok_and(|name| name == member_name);
    let member = found.members.iter().find(named)?;
    Some(member.bit_offset() / 8)
}

#[cfg(test)]
mod tests {
    use super::may_read_kernel;

    #[test]
    fn only_the_strictest_lockdown_forbids_to_read_the_kernel() {
        assert!(!may_read_kernel("none integrity [confidentiality]\n"));
        assert!(may_read_kernel("none [integrity] confidentiality\n"));
        assert!(may_read_kernel("[none] integrity confidentiality\n"));
        assert!(may_read_kernel(""), "it does not say");
    }
}
