//! Snapshot fuzzing: a guest is frozen when it is ready for input, and run from there again and again.
//!
//! The guest asks to be frozen with a message buffer. Each run is given an input there that a [`Mutator`] has made of
//! those that reached something new before; then the guest is reset. What a run reaches is seen by breakpoints: an INT3
//! stands where each basic block begins that was not reached yet. It costs one exit, once in the whole campaign, as the
//! byte is put back in the template too. So code that is known runs at full speed.

mod blocks;
mod campaign;
mod code;
mod corpus;
mod crash;
mod dictionary;
mod mutate;
mod page;
mod snapshot;
mod stats;
mod watch;

pub use blocks::{Blocks, INT3};
pub use campaign::{Campaign, CampaignLimits, CampaignStep, Execution, Target};
pub use code::{CodeRun, Codes, codes};
pub use corpus::{CORPUS_MAX, Corpus, INPUT_MAX};
pub use crash::{CRASHES_MAX, Crash, Crashes, FoundCrash, HexDump};
pub use dictionary::{Dictionary, TOKENS_MAX, Token};
pub use mutate::{Draft, Mutator};
pub use page::BITS_MAX as CODE_MAX;
pub use snapshot::{Example, Snapshot, SnapshotError, run_to_freeze};
pub use stats::Stats;
