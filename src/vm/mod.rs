//! A guest as a whole: policy on exits, CPUID and MSR tables, calls, loaders, devices.

pub mod cmdline;
pub mod loader;
