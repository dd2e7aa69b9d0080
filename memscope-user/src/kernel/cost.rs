//! What probes cost the targets: counted hits, times what a hit was measured to cost, and how
//! long the programs ran.

use aya::maps::PerCpuArray;
use memscope_common::control::CostCounters;

use super::{HitCosts, Kernel, KernelError, plain::Plain};

/// What probes have cost since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProbeCost {
    /// Getting there and back: hits by their kind, times what such a one costs.
    pub traps_ns: u64,
    /// In the programs, by those runs that were timed.
    pub programs_ns: u64,
}

impl ProbeCost {
    /// Both.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.traps_ns.saturating_add(self.programs_ns)
    }

    fn of(counted: &CostCounters, costs: &HitCosts) -> Self {
        let CostCounters { runs, returns, stepped, timed_runs, timed_ns, .. } = *counted;
        let emulated = runs.saturating_sub(returns).saturating_sub(stepped);
        let traps_ns = emulated as f64 * costs.emulated_ns
            + stepped as f64 * costs.single_stepped_ns
            + returns as f64 * costs.of_return();
        let programs_ns =
            if timed_runs == 0 { 0.0 } else { timed_ns as f64 / timed_runs as f64 * runs as f64 };
        Self { traps_ns: traps_ns as u64, programs_ns: programs_ns as u64 }
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
            ] {
                *sum = sum.wrapping_add(part);
            }
        }
        Ok(ProbeCost::of(&sum, costs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_hits_by_kind_and_the_time_of_programs() {
        let costs =
            HitCosts { emulated_ns: 600.0, single_stepped_ns: 9000.0, with_return_ns: 900.0 };
        let counted = CostCounters {
            runs: 1000,
            returns: 200,
            stepped: 100,
            timed_runs: 10,
            timed_ns: 4000,
            zero: 0,
        };
        let cost = ProbeCost::of(&counted, &costs);
        assert_eq!(cost.traps_ns, 700 * 600 + 100 * 9000 + 200 * 300);
        assert_eq!(cost.programs_ns, 1000 * 400);
        assert_eq!(cost.total_ns(), cost.traps_ns + cost.programs_ns);
        assert_eq!(ProbeCost::of(&CostCounters::default(), &costs), ProbeCost::default());
    }
}
