//! The registers of a guest, most of them in its VMCB.

use super::super::fields::*;
use super::super::intercept::Intercept;
use super::super::neutral::{AccessRights, Segment, SegmentRegister};
use super::super::segment::{access_rights, place, read_segment};
use super::super::start_state::EFER_SVME;
use super::super::vmcb::Vmcb;
use super::{Loaded, OnCpu, UnknownInstruction};
use crate::addr::Gva;
use crate::virt::control_registers::ControlRegisters;
use crate::virt::processor::{InstructionState, RegisterMasks, Registers};

/// Has reads of CR0 and CR4 exit where what the guest sees is not what the CPU runs with.
pub(in crate::svm) fn intercept_reads(vmcb: &mut Vmcb) {
    let before = vmcb.intercepts();
    let mut intercepts = before;
    for (number, real, visible) in [(0, CR0, VISIBLE_CR0), (4, CR4, VISIBLE_CR4)] {
        let differs = vmcb.get(real) != vmcb.get(visible);
        intercepts.set(Intercept::cr_read(number), differs);
    }
    if intercepts != before {
        vmcb.set_intercepts(intercepts);
    }
}

impl<C: OnCpu> Registers for Loaded<'_, C> {
    type Error = UnknownInstruction;
    #[inline(always)]
    fn rip(&self) -> Result<Gva, UnknownInstruction> {
        Ok(Gva::new(self.vmcb.get(RIP)))
    }
    #[inline(always)]
    fn rsp(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(RSP))
    }
    #[inline(always)]
    fn set_rsp(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(RSP, value);
        Ok(())
    }
    #[inline(always)]
    fn rflags(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(RFLAGS))
    }
    #[inline(always)]
    fn set_rflags(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(RFLAGS, value);
        Ok(())
    }
    #[inline(always)]
    fn cr0(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(CR0))
    }
    #[inline(always)]
    fn cr4(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(CR4))
    }
    /// Without SVME, which is the host's.
    #[inline(always)]
    fn efer(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(EFER) & !EFER_SVME)
    }
    #[inline(always)]
    fn set_efer(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(EFER, value | EFER_SVME);
        Ok(())
    }
    fn control_registers(&self) -> Result<ControlRegisters, UnknownInstruction> {
        Ok(ControlRegisters {
            cr0: self.vmcb.get(CR0),
            cr3: self.vmcb.get(CR3),
            cr4: self.vmcb.get(CR4),
            efer: self.efer()?,
        })
    }
    fn visible_registers(
        &self,
        masks: &RegisterMasks,
    ) -> Result<ControlRegisters, UnknownInstruction> {
        let real = self.control_registers()?;
        Ok(ControlRegisters {
            cr0: masks.visible_cr0(real.cr0, self.vmcb.get(VISIBLE_CR0)),
            cr4: masks.visible_cr4(real.cr4, self.vmcb.get(VISIBLE_CR4)),
            ..real
        })
    }
    fn set_registers(
        &mut self,
        visible: &ControlRegisters,
        real_cr0: u64,
        real_cr4: u64,
    ) -> Result<(), UnknownInstruction> {
        for (field, value) in [
            (CR0, real_cr0),
            (VISIBLE_CR0, visible.cr0),
            (CR3, visible.cr3),
            (CR4, real_cr4),
            (VISIBLE_CR4, visible.cr4),
        ] {
            self.vmcb.set(field, value);
        }
        intercept_reads(self.vmcb);
        Ok(())
    }
    fn set_mode(&mut self, efer: u64) -> Result<(), UnknownInstruction> {
        self.set_efer(efer)
    }
    /// The CPU reads them from memory at each walk.
    #[cold]
    fn pdptes(&self) -> Result<Option<[u64; 4]>, UnknownInstruction> {
        Ok(None)
    }
    fn set_pdptes(&mut self, _: [u64; 4]) -> Result<(), UnknownInstruction> {
        Ok(())
    }
    #[inline(always)]
    fn segment(&self, register: SegmentRegister) -> Result<Segment, UnknownInstruction> {
        Ok(read_segment(self.vmcb, register))
    }
    #[inline(always)]
    fn access_rights(&self, register: SegmentRegister) -> Result<AccessRights, UnknownInstruction> {
        let attributes = self.vmcb.get(place(register).attributes);
        Ok(access_rights(attributes))
    }
    /// Not every exit leaves the DPL of SS as it is to be where SS is not usable.
    #[inline(always)]
    fn cpl(&self) -> Result<u8, UnknownInstruction> {
        Ok(self.vmcb.get(CPL))
    }
    fn instruction_state(&self) -> Result<InstructionState, UnknownInstruction> {
        Ok(InstructionState {
            registers: self.control_registers()?,
            rflags: self.vmcb.get(RFLAGS),
            rsp: self.vmcb.get(RSP),
            cs: self.access_rights(SegmentRegister::Cs)?,
            cs_base: self.vmcb.get(BASE_OF_CS),
            ss: self.stack_rights(),
            dr7: self.vmcb.get(DR7),
        })
    }
    #[inline(always)]
    fn pat(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(PAT))
    }
    #[inline(always)]
    fn set_pat(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(PAT, value);
        Ok(())
    }
    #[inline(always)]
    fn tsc_offset(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(TSC_OFFSET))
    }
    #[inline(always)]
    fn set_tsc_offset(&mut self, ticks: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(TSC_OFFSET, ticks);
        Ok(())
    }
    fn set_sysenter_esp(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(SYSENTER_ESP, value);
        Ok(())
    }
    fn set_sysenter_eip(&mut self, value: u64) -> Result<(), UnknownInstruction> {
        self.vmcb.set(SYSENTER_EIP, value);
        Ok(())
    }
    fn breakpoint_addresses(&self) -> [u64; 4] {
        self.cpu.breakpoint_addresses()
    }
    fn set_cr2(&mut self, address: Gva) {
        self.vmcb.set(CR2, address.as_u64());
    }
    unsafe fn set_switched(&mut self, index: u32, value: u64) {
        let field = match index {
            x86::msr::IA32_STAR => STAR,
            x86::msr::IA32_LSTAR => LSTAR,
            x86::msr::IA32_CSTAR => CSTAR,
            x86::msr::IA32_FMASK => SFMASK,
            x86::msr::IA32_KERNEL_GSBASE => KERNEL_GS_BASE,
            // SAFETY: the caller's; it is the only other one.
            _ => return unsafe { self.cpu.set_tsc_aux(value) },
        };
        self.vmcb.set(field, value);
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        // SAFETY: the caller's.
        unsafe { self.cpu.set_xcr0(value) };
    }
    fn unseen_xcr0(&self) -> Option<u64> {
        self.cpu.xcr0()
    }
}

impl<C: OnCpu> Loaded<'_, C> {
    /// SS as an instruction that is carried out sees it: with the privilege level as its DPL, whatever is left in SS.
    fn stack_rights(&self) -> AccessRights {
        let AccessRights(rights) = access_rights(self.vmcb.get(ATTRIBUTES_OF_SS));
        let cpl = u32::from(self.vmcb.get(CPL) & 3);
        AccessRights(rights & !(3 << 5) | cpl << 5)
    }
}
