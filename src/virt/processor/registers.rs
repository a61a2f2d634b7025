//! The registers of a guest's processor that is loaded.

use core::fmt;

use crate::addr::Gva;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::{AccessRights, Breakpoints, CodeMode, Segment, SegmentRegister};

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

/// What the registers hold, and what they shall hold.
pub trait Registers {
    /// Why a part of its state could not be read or written: our bug.
    type Error: Copy + fmt::Debug;
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
    /// The four entries of the top table of PAE paging that are in use. `None`: those in the guest's memory.
    ///
    /// # Errors
    /// The state cannot be read.
    fn pdptes(&self) -> Result<Option<[u64; 4]>, Self::Error>;
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
    /// Sets one of [`SWITCHED_MSRS`](crate::virt::cpu::SWITCHED_MSRS).
    ///
    /// # Safety
    /// The CPU has it and accepts `value`.
    unsafe fn set_switched(&mut self, index: u32, value: u64);
    /// Sets XCR0.
    ///
    /// # Safety
    /// The CPU has XSAVE and accepts `value`.
    unsafe fn set_xcr0(&mut self, value: u64);
    /// XCR0, where the guest may have set it without an exit.
    #[inline(always)]
    fn unseen_xcr0(&self) -> Option<u64> {
        None
    }
}
