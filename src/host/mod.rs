//! What the product adds to the library: command lines, the report of a run, many forks at a time, and fuzzing.

pub mod acpi;
pub mod cmdline;
pub mod console;
pub mod figures;
pub mod fuzz;
pub mod many;
pub mod modules;
pub mod quota;
pub mod report;
pub mod screen;
#[cfg(any(test, feature = "kernel"))]
pub mod serial;
