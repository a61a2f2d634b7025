//! Many forks of one template on one CPU: who is alive, whose turn it is, and what it came to.
//!
//! The [`schedule`] knows nothing of guests: whoever makes, runs and resets forks implements [`Forks`]. There is no heap
//! in the hypervisor, so each fork brings the place in which it is kept: see [`Queue`].

mod end;
mod forks;
mod guests;
mod line;
mod measure;
mod price;
mod queue;
mod schedule;
mod spread;
mod summary;
mod tally;

pub use end::ForkEnd;
pub use forks::{After, Alive, Cost, Forks, Slot, Turn, Verdict};
pub use guests::{Checked, GuestForks, LivingFork, Template, Wrong};
pub use line::Line;
pub use measure::{Measurement, measure};
pub use price::tell_counted;
pub use queue::{Linked, Queue};
pub use schedule::{Plan, schedule};
pub use spread::{Spread, SpreadFigures};
pub use summary::{ForksSummary, GuestRun};
pub use tally::{FIRST_FAILURES, Failure, Generation, RECORDS_MAX, RunRecord, Tally};

#[cfg(test)]
mod tests;
