//! What the guest layer needs of a guest's processor that is loaded into the CPU, whoever made that: enter it, know why it left,
//! read and change its state, go on behind an instruction or with an event.
//!
//! What fails in it is our bug, but what it says is a fact: each access returns it.

use core::fmt;

use super::code_mode::CodeMode;
use super::control_registers::{ControlRegisters, CrAccess};
use super::cpu::EntryArea;
use super::event::{Event, EventKind};
use super::exit::ExitReason;
use super::io::{AddressSize, IoAccess};
use super::segment::{AccessRights, Segment, SegmentRegister};
use super::{BreakpointHits, Breakpoints};
use crate::addr::Gva;
use crate::ept::{Entered, Eptp, Invalidate, Space, Violation};
use crate::frames::{FrameAllocator, PhysMem};

/// An exit by a port instruction.
#[derive(Clone, Copy, Debug)]
pub struct PortExit<D, P> {
    /// IN or OUT of a byte. What it is else, [`Processor::port_access`] tells.
    pub byte: Option<IoAccess>,
    /// All that the CPU tells of it.
    pub detail: D,
    /// DR7.
    pub dr7: u64,
    /// Where it is, for [`Processor::advance_from`].
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

/// The guest as an instruction finds it that is carried out for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionState {
    /// The control registers, as the CPU runs with them.
    pub registers: ControlRegisters,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// The access rights of CS.
    pub cs: AccessRights,
    /// The base of CS.
    pub cs_base: u64,
    /// The access rights of SS.
    pub ss: AccessRights,
    /// DR7.
    pub dr7: u64,
}

/// What an entry ended with that is not the number of an exit reason alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialExit<E> {
    /// The guest did not run.
    EntryFailed(E),
    /// It did not run because the machine has failed: the host's handler reports that.
    MachineCheck(E),
    /// It left for this reason, and has locked the bus.
    BusLock(ExitReason),
    /// It left for this reason, and there is more to it that nothing asks for.
    Unexpected(ExitReason),
    /// It left for a reason that we do not know.
    Unknown(u16),
}

/// Why there is no event to be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEvent<E> {
    /// The state could not be accessed.
    State(E),
    /// What the CPU says was interrupted is nothing that can be.
    Impossible,
}

/// The bits of CR0 and CR4 that are the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterMasks {
    /// Of CR0.
    pub cr0: u64,
    /// Of CR4.
    pub cr4: u64,
}

impl RegisterMasks {
    /// What a guest sees of a CR0: its own bits from the real one, the host's from what it has written.
    pub const fn visible_cr0(&self, real: u64, written: u64) -> u64 {
        real & !self.cr0 | written & self.cr0
    }
    /// The same of a CR4.
    pub const fn visible_cr4(&self, real: u64, written: u64) -> u64 {
        real & !self.cr4 | written & self.cr4
    }
}

/// A guest's processor that is loaded into the CPU.
pub trait Processor: Invalidate {
    /// Why a part of its state could not be read or written: our bug.
    type Error: Copy + fmt::Debug;
    /// Why it could not be entered.
    type EntryError: Copy + fmt::Debug;
    /// What the CPU tells of a port instruction.
    type PortDetail: Copy;
    /// Where an instruction is that exited.
    type Place: Copy;

    /// Before a run in the space behind `eptp`, of so many ticks at most.
    ///
    /// # Errors
    /// The state cannot be written.
    fn get_ready(&mut self, eptp: Eptp, ticks: u64) -> Result<(), Self::Error>;
    /// Makes the guest exit after so many ticks of its own, or as many as the CPU can count.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_timer(&mut self, ticks: u64) -> Result<(), Self::Error>;
    /// Whether the timer goes on over an exit.
    fn timer_is_saved(&self) -> bool;
    /// Enters the guest and returns at its next exit with the number of an [`ExitReason`], or with a larger number of which
    /// [`Processor::special_exit`] knows what it means. `X87_SELECTORS`: the CPU has
    /// [`ResidentFeatures::x87_selectors`](super::cpu::ResidentFeatures::x87_selectors).
    ///
    /// # Safety
    /// The processor is loaded: its state is complete, [`Processor::get_ready`] was called with the space of `right`, `area` is
    /// its own, and what entries do not switch is in the CPU.
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        right: Entered<'_>,
        area: &mut EntryArea,
    ) -> u64;
    /// What [`Processor::enter`] ended with, where that is no reason's number.
    ///
    /// # Errors
    /// The state cannot be read.
    fn special_exit(&self, entered: u64) -> Result<SpecialExit<Self::EntryError>, Self::Error>;
    /// Drops what the CPU has cached of the guest by linear addresses, where an entry does not.
    ///
    /// # Errors
    /// The CPU does not.
    fn flush_linear(&mut self) -> Result<(), Self::EntryError>;

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
    /// After an instruction that took too long: whether its state is still the guest's.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn survives_timeout(&mut self) -> Result<bool, Self::Error>;
    /// Does to DR6 and DR7 what the debug exception would have done without an exit.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn note_debug_exception(&mut self) -> Result<(), Self::Error>;

    /// RIP.
    ///
    /// # Errors
    /// The state cannot be read.
    fn rip(&self) -> Result<Gva, Self::Error>;
    /// RSP.
    ///
    /// # Errors
    /// The state cannot be read.
    fn rsp(&self) -> Result<u64, Self::Error>;
    /// Sets RSP.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_rsp(&mut self, value: u64) -> Result<(), Self::Error>;
    /// RFLAGS.
    ///
    /// # Errors
    /// The state cannot be read.
    fn rflags(&self) -> Result<u64, Self::Error>;
    /// Sets RFLAGS.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_rflags(&mut self, value: u64) -> Result<(), Self::Error>;
    /// CR0, as the CPU runs with it.
    ///
    /// # Errors
    /// The state cannot be read.
    fn cr0(&self) -> Result<u64, Self::Error>;
    /// CR4, as the CPU runs with it.
    ///
    /// # Errors
    /// The state cannot be read.
    fn cr4(&self) -> Result<u64, Self::Error>;
    /// EFER.
    ///
    /// # Errors
    /// The state cannot be read.
    fn efer(&self) -> Result<u64, Self::Error>;
    /// Sets EFER. LMA stays as it is.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_efer(&mut self, value: u64) -> Result<(), Self::Error>;
    /// The control registers, as the CPU runs with them.
    ///
    /// # Errors
    /// The state cannot be read.
    fn control_registers(&self) -> Result<ControlRegisters, Self::Error>;
    /// The control registers as the guest sees them: where a mask is 1, what it has written itself.
    ///
    /// # Errors
    /// The state cannot be read.
    fn visible_registers(&self, masks: &RegisterMasks) -> Result<ControlRegisters, Self::Error>;
    /// Sets what the guest sees of its control registers, and the CR0 and CR4 that the CPU runs with.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn set_registers(
        &mut self,
        visible: &ControlRegisters,
        real_cr0: u64,
        real_cr4: u64,
    ) -> Result<(), Self::Error>;
    /// Sets EFER together with LMA.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn set_mode(&mut self, efer: u64) -> Result<(), Self::Error>;
    /// The four entries of the top table of PAE paging that are in use.
    ///
    /// # Errors
    /// The state cannot be read.
    fn pdptes(&self) -> Result<[u64; 4], Self::Error>;
    /// Sets them.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_pdptes(&mut self, entries: [u64; 4]) -> Result<(), Self::Error>;
    /// A segment register.
    ///
    /// # Errors
    /// The state cannot be read.
    fn segment(&self, register: SegmentRegister) -> Result<Segment, Self::Error>;
    /// The access rights of a segment register.
    ///
    /// # Errors
    /// The state cannot be read.
    fn access_rights(&self, register: SegmentRegister) -> Result<AccessRights, Self::Error>;
    /// The privilege level: DPL of SS.
    ///
    /// # Errors
    /// The state cannot be read.
    #[inline(always)]
    fn cpl(&self) -> Result<u8, Self::Error> {
        Ok(self.access_rights(SegmentRegister::Ss)?.dpl())
    }
    /// What code the guest is at.
    ///
    /// # Errors
    /// The state cannot be read.
    fn code_mode(&self) -> Result<CodeMode, Self::Error> {
        let cs = self.access_rights(SegmentRegister::Cs)?;
        Ok(CodeMode::of(self.efer()?, cs))
    }
    /// What an instruction that is carried out needs to know, at once.
    ///
    /// # Errors
    /// The state cannot be read.
    fn instruction_state(&self) -> Result<InstructionState, Self::Error>;
    /// IA32_PAT.
    ///
    /// # Errors
    /// The state cannot be read.
    fn pat(&self) -> Result<u64, Self::Error>;
    /// Sets IA32_PAT.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_pat(&mut self, value: u64) -> Result<(), Self::Error>;
    /// What the guest's time-stamp counter is ahead of the CPU's.
    ///
    /// # Errors
    /// The state cannot be read.
    fn tsc_offset(&self) -> Result<u64, Self::Error>;
    /// Sets it.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_tsc_offset(&mut self, ticks: u64) -> Result<(), Self::Error>;
    /// Sets IA32_SYSENTER_ESP.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_sysenter_esp(&mut self, value: u64) -> Result<(), Self::Error>;
    /// Sets IA32_SYSENTER_EIP.
    ///
    /// # Errors
    /// The state cannot be written.
    fn set_sysenter_eip(&mut self, value: u64) -> Result<(), Self::Error>;

    /// The breakpoints, if this DR7 enables any.
    #[inline(always)]
    fn breakpoints(&self, dr7: u64, cr4: u64) -> Option<Breakpoints> {
        Breakpoints::are_enabled(dr7)
            .then(|| Breakpoints::new(dr7, cr4, self.breakpoint_addresses()))
    }
    /// DR0 to DR3.
    fn breakpoint_addresses(&self) -> [u64; 4];
    /// Sets CR2.
    fn set_cr2(&mut self, address: Gva);
    /// Sets one of [`SWITCHED_MSRS`](super::cpu::SWITCHED_MSRS).
    ///
    /// # Safety
    /// The CPU has it and accepts `value`.
    unsafe fn set_switched(&mut self, index: u32, value: u64);
    /// Sets XCR0.
    ///
    /// # Safety
    /// The CPU has XSAVE and accepts `value`.
    unsafe fn set_xcr0(&mut self, value: u64);

    /// Goes on behind the instruction that exited, with all that its completion entails.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance(&mut self) -> Result<(), Self::Error>;
    /// The same for an instruction of `length` bytes, at an exit that does not tell it.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance_by(&mut self, length: u8) -> Result<(), Self::Error>;
    /// The same for an instruction of which the place is known.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn advance_from(&mut self, place: Self::Place) -> Result<(), Self::Error>;
    /// What the completion of some elements of a repeated string instruction entails: it is executed again for the others.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn repeat(&mut self) -> Result<(), Self::Error>;
    /// Has an instruction executed again from its beginning that has exited because the host wanted it to.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn restart(&mut self) -> Result<(), Self::Error>;
    /// Takes back what is pending of an instruction that was not completed.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn undo_step(&mut self) -> Result<(), Self::Error>;
    /// Has the next entry deliver #DB for breakpoints that were met, where the instruction is completed.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn pend_breakpoints(&mut self, met: BreakpointHits) -> Result<(), Self::Error>;
    /// To be called when an exit for #DB is to go back to the guest: what an entry demands of a guest that is stepped.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn pend_single_step(&mut self) -> Result<(), Self::Error>;
    /// Raises an exception at the instruction that exited, in its place.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn raise(&mut self, event: Event) -> Result<(), Self::Error>;
    /// The event whose delivery the exit interrupted, if there is one.
    ///
    /// # Errors
    /// It is none that can be delivered, or the state cannot be read.
    fn interrupted(&self) -> Result<Option<Event>, NoEvent<Self::Error>>;
    /// Delivers an event again, once the reason of the exit is dealt with.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn reinject(&mut self, event: Event) -> Result<(), Self::Error>;
    /// Blocks NMIs again where an IRET had unblocked them, but the exit undid that IRET. Returns what is blocked then, as the
    /// CPU has it.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn block_nmis_again(&mut self) -> Result<u32, Self::Error>;

    /// Whether the CPU can log the pages that it marks dirty.
    fn can_log(&self) -> bool;
    /// Has it do so.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn begin_log(&mut self) -> Result<(), Self::Error>;
    /// Hands what the CPU has logged to the space.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn drain_log<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        space: &mut Space<'_, M>,
    ) -> Result<(), Self::Error>;
    /// After an exit because the log is full: the access is made again.
    ///
    /// # Errors
    /// The state cannot be accessed.
    fn retry_logged(&mut self) -> Result<(), Self::Error>;

    /// Writes on one line where the guest was and why it left.
    ///
    /// # Errors
    /// What `out` refuses.
    fn summarize(&self, out: &mut impl fmt::Write) -> fmt::Result;
    /// Writes all that the CPU keeps of the guest.
    ///
    /// # Errors
    /// What `out` refuses.
    fn dump(&self, out: &mut impl fmt::Write) -> fmt::Result;
    /// Writes what can be said about an entry that failed.
    ///
    /// # Errors
    /// What `out` refuses.
    fn report_failed_entry(
        &self,
        error: Self::EntryError,
        out: &mut impl fmt::Write,
    ) -> fmt::Result;
}
