//! A guest as a whole: policy on exits, CPUID and MSR tables, calls, loaders, devices.

pub mod cmdline;
pub mod cpuid;
pub mod loader;
pub mod msr;
pub mod xcr0;
