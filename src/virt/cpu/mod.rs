//! What only the kernel can do, on the CPU that it runs on: the guest state that neither maker's entry and exit switch.

mod area;
mod extended;
pub(crate) mod guard;
mod resident;
mod this_cpu;

pub use area::{DUE, EntryArea, GUARDS, REGS, RSP, SELECTORS};
pub use extended::{ExtendedState, restore_vector, save_vector};
pub use guard::Guard;
pub use resident::{
    Resident, ResidentFeatures, SWITCHED_MSRS, breakpoint_addresses, predict_nothing, update_dr6,
    write_cr2, write_switched, xsetbv,
};
pub use this_cpu::ThisCpu;
