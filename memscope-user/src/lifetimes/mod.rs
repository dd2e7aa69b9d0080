//! Reconstructs every block's lifetime from the events: a pure state machine.
//!
//! Takes [`crate::model::Event`]s in order; keeps what is live, sums per site, and gives each
//! block that ends to the caller. Does no I/O and reads no clock. Its memory is
//! bounded by live blocks, distinct sites and threads, never by events.
//!
//! The rules are those of `docs/accounting.md`.

mod block;
mod estimate;
mod faults;
mod histogram;
mod live;
mod mappings;
mod mismatches;
mod sampled;
mod sites;
mod state;
mod threads;
mod tracker;
mod windows;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use block::{Block, LiveBlock, LossWindow, Totals, Weight};
pub use estimate::{Interval, Spread, deviations_for, interval, undrawn};
pub use faults::{FaultSite, FaultSums};
pub use histogram::{LifetimeSummary, Lifetimes};
pub use mappings::{MappingSite, MappingSums, MappingTotals};
pub use mismatches::Mismatch;
pub use sampled::{Sampled, Spreads};
pub use sites::{Resident, Site, SiteKey, SiteSums};
pub use threads::{ThreadRecord, ThreadSums};
pub use tracker::Tracker;
pub use windows::{Begun, Ledger, Windows};
