//! Why a guest has left, with all that its CPU tells of it.

use super::registers::Registers;
use crate::addr::Gva;
use crate::ept::Violation;
use crate::virt::control_registers::CrAccess;
use crate::virt::event::{Event, EventKind};
use crate::virt::io::{AddressSize, IoAccess};
use crate::virt::{GuestRegs, SegmentRegister};

/// An exit by a port instruction.
#[derive(Clone, Copy, Debug)]
pub struct PortExit<D, P> {
    /// IN or OUT of a byte. What it is else, [`Exits::port_access`] tells.
    pub byte: Option<IoAccess>,
    /// All that the CPU tells of it.
    pub detail: D,
    /// DR7.
    pub dr7: u64,
    /// Where it is, for [`Progress::advance_from`](super::Progress::advance_from).
    pub place: P,
}

/// What the CPU tells of INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortString {
    /// The width of its addresses.
    pub address_size: AddressSize,
    /// The segment of OUTS; of INS it means nothing.
    pub segment: SegmentRegister,
    /// The length of the instruction, in bytes.
    pub length: u8,
}

/// An exit by an exception or an NMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionExit {
    /// The vector.
    pub vector: u8,
    /// Which kind of an event it is.
    pub kind: EventKind,
    /// Whether it has an error code.
    pub has_error_code: bool,
}

/// Why there is no event to be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEvent<E> {
    /// The state could not be accessed.
    State(E),
    /// What the CPU says was interrupted is nothing that can be.
    Impossible,
}

/// What an exit says. What is asked for must be of the exit that it was.
pub trait Exits: Registers {
    /// What the CPU tells of a port instruction.
    type PortDetail: Copy;
    /// Where an instruction is that exited.
    type Place: Copy;
    /// Whether violations say at which linear address they were: where they do not, [`Exits::linear_address`] means nothing.
    const TELLS_LINEAR_ADDRESSES: bool = true;
    /// Whether there are CPUs that do not tell enough of an instruction that exits, which its code must: see
    /// [`Exits::wants_code`].
    const MAY_WANT_CODE: bool = false;

    /// Whether the exit can only be handled with the code of the instruction that has exited: [`Exits::take_code`] comes first.
    #[inline(always)]
    fn wants_code(&self) -> bool {
        false
    }
    /// Takes from its code, as many bytes as are known, what the CPU does not tell of the instruction that has exited, and
    /// returns whether it is one that can have done so.
    fn take_code(&mut self, _code: &[u8], _regs: &GuestRegs) -> bool {
        true
    }
    /// The exit by a port instruction.
    ///
    /// # Errors
    /// The state cannot be read.
    fn port_exit(&self) -> Result<PortExit<Self::PortDetail, Self::Place>, Self::Error>;
    /// The port instruction of which this is told, if it is one that there is.
    fn port_access(detail: Self::PortDetail) -> Option<IoAccess>;
    /// What the CPU tells of INS or OUTS, on one that does.
    ///
    /// # Errors
    /// The state cannot be read.
    fn port_string(&self) -> Result<Option<PortString>, Self::Error>;
    /// The violation by which the guest has left, and whether there is nothing else to it: no event was being delivered, and
    /// nothing is pending.
    ///
    /// # Errors
    /// The state cannot be read.
    fn violation(&self) -> Result<(Violation, bool), Self::Error>;
    /// The guest-physical address of the exit.
    ///
    /// # Errors
    /// The state cannot be read.
    fn physical_address(&self) -> Result<u64, Self::Error>;
    /// The linear address of the exit, where it has one.
    ///
    /// # Errors
    /// The state cannot be read.
    fn linear_address(&self) -> Result<Gva, Self::Error>;
    /// Whether the exit came while an event was delivered.
    ///
    /// # Errors
    /// The state cannot be read.
    fn was_delivering(&self) -> Result<bool, Self::Error>;
    /// The access to a control register, if it is one that there is.
    ///
    /// # Errors
    /// The state cannot be read.
    fn cr_access(&self) -> Result<Option<CrAccess>, Self::Error>;
    /// The exception or NMI by which the guest has left.
    ///
    /// # Errors
    /// The state cannot be read.
    fn exception(&self) -> Result<Option<ExceptionExit>, Self::Error>;
    /// The error code of that exception.
    ///
    /// # Errors
    /// The state cannot be read.
    fn error_code(&self) -> Result<u32, Self::Error>;
    /// The address of a page fault by which the guest has left.
    ///
    /// # Errors
    /// The state cannot be read.
    fn fault_address(&self) -> Result<Gva, Self::Error>;
    /// The vector of the interrupt by which the guest has left, which was acknowledged.
    ///
    /// # Errors
    /// The state cannot be read.
    fn interrupt_vector(&self) -> Result<u8, Self::Error>;
    /// The length in bytes of the instruction that exited.
    ///
    /// # Errors
    /// The state cannot be read.
    fn instruction_length(&self) -> Result<u32, Self::Error>;
    /// The event whose delivery the exit interrupted, if there is one.
    ///
    /// # Errors
    /// It is none that can be delivered, or the state cannot be read.
    fn interrupted(&self) -> Result<Option<Event>, NoEvent<Self::Error>>;
}
