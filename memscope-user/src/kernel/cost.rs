//! What probes cost the targets: counted hits, times what a hit was measured to cost, and how
//! long the programs ran; and samples of what the targets are at.

use aya::{
    maps::PerCpuArray,
    programs::{
        PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use memscope_common::control::CostCounters;

use super::{HitCosts, Kernel, KernelError, load::program, plain::Plain};

/// The program that samples.
const WORK_SAMPLED: &str = "work_sampled";
/// How often, on each processor, while targets are observed. No multiple of what programs do
/// regularly.
const SAMPLES_PER_SECOND: u64 = 3989;

/// What probes have cost since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProbeCost {
    /// Getting there and back: hits by their kind, times what such a one costs.
    pub traps_ns: u64,
    /// In the programs, by those runs that were timed.
    pub programs_ns: u64,
    /// Hits of probes.
    pub hits: u64,
    /// What the targets' own code is slower behind them.
    pub aftermath_ns: u64,
    /// How often, when it was looked at from time to time, a target was at work.
    pub work_samples: u64,
    /// How often it was in a probe.
    pub probe_samples: u64,
}

impl ProbeCost {
    /// Time in the kernel.
    #[must_use]
    pub fn kernel_ns(&self) -> u64 {
        self.traps_ns.saturating_add(self.programs_ns)
    }

    fn of(counted: &CostCounters, costs: &HitCosts) -> Self {
        let CostCounters {
            runs,
            returns,
            stepped,
            timed_runs,
            timed_ns,
            work_samples,
            probe_samples,
            ..
        } = *counted;
        let emulated = runs.saturating_sub(returns).saturating_sub(stepped);
        let traps_ns = emulated as f64 * costs.emulated_ns
            + stepped as f64 * costs.single_stepped_ns
            + returns as f64 * costs.of_return();
        let programs_ns =
            if timed_runs == 0 { 0.0 } else { timed_ns as f64 / timed_runs as f64 * runs as f64 };
        Self {
            traps_ns: traps_ns as u64,
            programs_ns: programs_ns as u64,
            hits: runs,
            aftermath_ns: (runs as f64 * costs.aftermath_ns) as u64,
            work_samples,
            probe_samples,
        }
    }
}

impl Kernel {
    /// What probes have cost until now, if that is counted.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn probe_cost(&self, costs: &HitCosts) -> Result<ProbeCost, KernelError> {
        let source = |source| KernelError::Map { map: "COSTS", source };
        let map = self.ebpf.map("COSTS").ok_or(KernelError::Missing { what: "map COSTS" })?;
        let cpus: PerCpuArray<_, Plain<CostCounters>> =
            PerCpuArray::try_from(map).map_err(source)?;
        let cpus = cpus.get(&0, 0).map_err(source)?;
        let mut sum = CostCounters::default();
        for Plain(cpu) in cpus.iter() {
            for (sum, part) in [
                (&mut sum.runs, cpu.runs),
                (&mut sum.returns, cpu.returns),
                (&mut sum.stepped, cpu.stepped),
                (&mut sum.timed_runs, cpu.timed_runs),
                (&mut sum.timed_ns, cpu.timed_ns),
                (&mut sum.work_samples, cpu.work_samples),
                (&mut sum.probe_samples, cpu.probe_samples),
            ] {
                *sum = sum.wrapping_add(part);
            }
        }
        Ok(ProbeCost::of(&sum, costs))
    }

    /// From now on, as long as the window lasts, it is sampled what the targets are at.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn sample_work(&mut self) -> Result<(), KernelError> {
        let refused = |source| KernelError::Program { program: WORK_SAMPLED, source };
        let cpus = online_cpus().map_err(|(_file, error)| KernelError::Cpus(error))?;
        for cpu in cpus {
            let sampler: &mut PerfEvent = program(&mut self.ebpf, WORK_SAMPLED)?;
            let link = sampler
                .attach(
                    PerfEventConfig::Software(SoftwareEvent::CpuClock),
                    PerfEventScope::AllProcessesOneCpu { cpu },
                    SamplePolicy::Frequency(SAMPLES_PER_SECOND),
                    false,
                )
                .and_then(|link| sampler.take_link(link))
                .map_err(refused)?;
            self.attached.push(WORK_SAMPLED, None, Box::new(link));
        }
        Ok(())
    }

    pub(super) fn load_sampler(ebpf: &mut aya::Ebpf) -> Result<(), KernelError> {
        let sampler: &mut PerfEvent = program(ebpf, WORK_SAMPLED)?;
        sampler.load().map_err(|source| KernelError::Program { program: WORK_SAMPLED, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_hits_by_kind_and_the_time_of_programs() {
        let costs = HitCosts {
            emulated_ns: 600.0,
            single_stepped_ns: 9000.0,
            with_return_ns: 900.0,
            aftermath_ns: 100.0,
        };
        let counted = CostCounters {
            runs: 1000,
            returns: 200,
            stepped: 100,
            timed_runs: 10,
            timed_ns: 4000,
            work_samples: 3,
            probe_samples: 7,
            ..CostCounters::default()
        };
        let cost = ProbeCost::of(&counted, &costs);
        assert_eq!(cost.traps_ns, 700 * 600 + 100 * 9000 + 200 * 300);
        assert_eq!(cost.programs_ns, 1000 * 400);
        assert_eq!((cost.work_samples, cost.probe_samples), (3, 7));
        assert_eq!(cost.kernel_ns(), cost.traps_ns + cost.programs_ns);
        assert_eq!((cost.hits, cost.aftermath_ns), (1000, 1000 * 100));
        assert_eq!(ProbeCost::of(&CostCounters::default(), &costs), ProbeCost::default());
    }
}
