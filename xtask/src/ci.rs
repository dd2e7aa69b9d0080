//! `ci`: what the continuous integration runs, so that it can be run anywhere.

use anyhow::Result;

use crate::steps::Steps;
use crate::{build_ebpf, kernels, lint, setup, test};

pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.run("setup", || Ok(setup::install(setup::Parts::ALL, false)));
    lint::add_steps(&mut steps);
    steps.run("build-ebpf --check", || build_ebpf::run(true));
    steps.run("test", || test::run(true, true, &[]));
    steps.run("kernels", || kernels::run(false));
    steps.finish()
}
