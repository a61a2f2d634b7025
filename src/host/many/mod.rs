//! Many forks of one template on one CPU: who is alive, whose turn it is, and what it came to.
//!
//! The [`schedule`] knows nothing of guests: whoever makes, runs and resets forks implements [`Forks`]. There is no heap
//! in the hypervisor, so each fork brings the place in which it is kept: see [`Queue`].

mod end;
mod forks;
mod guests;
mod histogram;
mod linear_fit;
mod measure;
mod price;
mod queue;
mod schedule;
mod statistics;
mod summary;

pub use end::ForkEnd;
pub use forks::{After, Alive, Cost, ForkSlot, ForkTurn, Forks, Verdict};
pub use guests::{Checked, ForkTemplate, GuestForks, LivingFork, Wrong};
pub use histogram::{Distribution, Histogram};
pub use linear_fit::LinearFit;
pub use measure::measure;
pub use price::{Measurement, tell_counted};
pub use queue::{Linked, Queue};
pub use schedule::{ForkPlan, schedule};
pub use statistics::{FIRST_FAILURES, Failure, ForkStatistics, Generation, RECORDS_MAX, RunRecord};
pub use summary::{ForksSummary, GuestRun};

#[cfg(test)]
mod tests;
