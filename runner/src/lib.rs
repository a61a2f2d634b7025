//! Builds the Offshoot image, boots it in an emulator, streams its console and judges the run.
//!
//! One run goes through these modules in order: [`image`] builds the kernel and the sample guests, [`guest`] reads
//! what the user wants run, [`iso`] packs both for GRUB, [`emulator`] writes the command that boots it, [`watch`]
//! follows the console until the image has said how it ended, and [`report`] reads the figures it printed. [`run`]
//! strings them together; the emulator tests call the same function as `make run`. [`nested`] puts a Linux with KVM between
//! the emulator and the image.

pub mod backtrace;
pub mod bench;
pub mod emulator;
pub mod error;
pub mod guest;
pub mod image;
pub mod iso;
pub mod nested;
pub mod quantity;
pub mod report;
pub mod run;
pub mod verdict;
pub mod watch;

pub use emulator::{Boot, Emulator};
pub use error::Error;
pub use guest::Guest;
pub use image::Image;
pub use report::Report;
pub use run::Run;
pub use verdict::{Outcome, Verdict};
