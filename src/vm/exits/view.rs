//! The guest as an instruction that is carried out for it sees it.

use super::super::virtual_memory::Privilege;
use crate::addr::Gva;
use crate::virt::CodeMode;
use crate::virt::control_registers::ControlRegisters;

/// The guest as the instruction sees it, but how it translates addresses: that is large and stays where it is made.
pub(super) struct View {
    pub mode: CodeMode,
    pub registers: ControlRegisters,
    pub privilege: Privilege,
    pub linear_rip: Gva,
    /// Accesses have to be aligned: at CPL 3 with CR0.AM and RFLAGS.AC (SDM "Interrupt 17—Alignment Check Exception (#AC)").
    pub aligned: bool,
    pub dr7: u64,
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
}
