//! Boots the real image in emulators and reads what it printed. What each run left is in `target/run/<test>/`.
//!
//! The tests share one build of the image, and at most two emulators run at a time.

mod apic;
mod bad_input;
mod booted;
mod differ;
mod dirty;
mod elf_file;
mod emulated;
mod forks;
mod fuzz;
mod hostile;
mod machines;
mod memory;
mod mmio;
mod mtrr;
mod nested;
mod pages;
mod passthrough;
// Guests use the rest of it.
#[allow(dead_code)]
#[path = "../../../guests/src/pattern.rs"]
mod pattern;
mod protect;
mod samples;
mod screen;
mod side_channels;
mod time;
mod traps;
