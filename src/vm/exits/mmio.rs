//! Accesses to device memory: fetch the instruction, decode it, carry it out.

use super::super::Host;
use super::super::devices::MmioDevices;
use super::super::mmio::{
    BusFault, CodeMode, DecodeError, GuestBus, Instruction, LONGEST, Place, Places, Progress,
    Refusal, SegmentFault, State, Stop, Translated, Why, decode, execute,
};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{
    GuestVirtual, Privilege, Translation, VirtualFault, VirtualMemory,
};
use crate::addr::{Address, Gpa, Gva, PAGE_SIZE};
use crate::ept::{AccessError, Cause, Reason, RegionKind, Space, Violation};
use crate::frames::PhysMem;
use crate::vmx::register_bits::EFER_LMA;
use crate::vmx::segment::SegmentRegister;
use crate::vmx::{
    Event, Field32, Field64, FieldNatural, Gpr, Vmcs, VmcsError, advance_rip_by, repeat,
};

/// L and D/B of the access rights of a code segment.
const CS_LONG: u32 = 1 << 13;
const CS_DEFAULT_32: u32 = 1 << 14;
/// Vector of #SS.
const STACK_FAULT: u8 = 12;

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Carries out the access that `violation` reports.
    #[inline(never)]
    pub(super) fn mmio(&mut self, violation: &Violation) -> Result<Next, VmcsError> {
        let mut refusal = Refusal {
            why: Why::NoInstruction,
            gpa: violation.gpa,
            gva: violation.gva().unwrap_or(Gva::new(0)),
            rip: violation.rip,
            bytes: [0; LONGEST],
            known: 0,
        };
        match self.try_mmio(violation, &mut refusal)? {
            Ok(next) => {
                self.devices.mmio.fits();
                Ok(next)
            }
            Err(why @ (Why::NoCode | Why::Elsewhere)) => self.misfit(Refusal { why, ..refusal }),
            Err(why) => self.stop(Outcome::Mmio(Refusal { why, ..refusal })),
        }
    }

    fn try_mmio(
        &mut self,
        violation: &Violation,
        refusal: &mut Refusal,
    ) -> Result<Result<Next, Why>, VmcsError> {
        if violation.during_delivery {
            return Ok(Err(Why::Delivery));
        }
        let gva = match violation.cause {
            Cause::Translation { gva, .. } if !violation.asynchronous => gva,
            _ => return Ok(Err(Why::NoInstruction)),
        };
        let (translation, privilege) = self.view()?;
        let (mode, rip) = self.code(violation.rip)?;
        // SMAP is about data.
        let fetching = Privilege {
            smap: false,
            ..privilege
        };
        let mut memory = GuestVirtual::new(self.space, translation, fetching);
        let instruction = match fetch(&mut memory, mode, rip, refusal) {
            Ok(instruction) => instruction,
            Err(why) => return Ok(Err(why)),
        };
        let translated = Translated {
            gva,
            gpa: violation.gpa,
            write: violation.access.write,
        };
        self.emulate(&instruction, mode, translated, translation, privilege)
    }

    fn emulate(
        &mut self,
        instruction: &Instruction,
        mode: CodeMode,
        translated: Translated,
        translation: Translation,
        privilege: Privilege,
    ) -> Result<Result<Next, Why>, VmcsError> {
        let mut state = self.state()?;
        let before = state;
        let vmcs = &self.vmcs;
        let mut bus = GuestBus {
            memory: self.space,
            devices: &mut self.devices.mmio,
            segments: |register: SegmentRegister| register.read(vmcs),
            translation,
            privilege,
            translated,
            linear_mask: mode.linear_mask(),
        };
        let executed = execute(instruction, mode, &mut state, translated.gva, &mut bus);
        self.set_state(&before, &state)?;
        match executed {
            Ok(Progress::Done) => advance_rip_by(&mut self.vmcs, instruction.length)?,
            Ok(Progress::Again) => repeat(&mut self.vmcs)?,
            Err(Stop::Bus(BusFault::Virtual(fault))) => return self.virtual_fault(fault).map(Ok),
            Err(Stop::Bus(BusFault::Vmcs(error))) => return Err(error),
            Err(Stop::Bus(BusFault::NoDevice(_))) => return Ok(Err(Why::NoDevice)),
            Err(Stop::Segment(SegmentFault { stack })) => {
                let stack_fault = Event::exception(STACK_FAULT, Some(0));
                let event = match stack_fault {
                    Ok(event) if stack => event,
                    _ => Event::GENERAL_PROTECTION,
                };
                return self.raise(event).map(Ok);
            }
            Err(Stop::Elsewhere) => return Ok(Err(Why::Elsewhere)),
            Err(Stop::NotCarriedOut) => {
                return Ok(Err(Why::Instruction(DecodeError::NotCarriedOut)));
            }
        }
        Ok(Ok(Next::Resume))
    }

    /// The instruction is not one that makes the access. That can be because the guest has changed its tables, and the
    /// CPU still used what they said before: it shall look again, once.
    fn misfit(&mut self, refusal: Refusal) -> Result<Next, VmcsError> {
        if self.devices.mmio.misfits_again((refusal.rip, refusal.gpa)) {
            return self.stop(Outcome::Mmio(refusal));
        }
        if self.vcpu.vpid != 0 {
            // SAFETY: VPIDs are chosen only on a CPU that has INVVPID.
            let flushed = unsafe { self.machine.vmx.invvpid(self.vcpu.vpid) };
            if let Err(fail) = flushed {
                return self.stop(Outcome::EntryInstruction(fail));
            }
        }
        // Without VPID, the next VM entry drops all linear translations.
        crate::vmx::undo_step(&mut self.vmcs)?;
        Ok(Next::Resume)
    }

    /// What kind of code the guest runs, and the linear address of `rip`.
    fn code(&self, rip: Gva) -> Result<(CodeMode, Gva), VmcsError> {
        let access = self.vmcs.read32(Field32::GuestCsAccessRights)?;
        let long = self.vmcs.read64(Field64::GuestEfer)? & EFER_LMA != 0;
        let mode = match (long && access & CS_LONG != 0, access & CS_DEFAULT_32 != 0) {
            (true, _) => return Ok((CodeMode::Bits64, rip)),
            (false, true) => CodeMode::Bits32,
            (false, false) => CodeMode::Bits16,
        };
        let base = self.vmcs.read_natural(FieldNatural::GuestCsBase)?;
        let linear = base.wrapping_add(rip.as_u64()) & mode.linear_mask();
        Ok((mode, Gva::new(linear)))
    }

    fn state(&self) -> Result<State, VmcsError> {
        let mut regs = self.area.regs;
        regs.set(Gpr::Rsp, self.vmcs.read_natural(FieldNatural::GuestRsp)?);
        Ok(State {
            regs,
            rip: self.vmcs.read_natural(FieldNatural::GuestRip)?,
            rflags: self.vmcs.read_natural(FieldNatural::GuestRflags)?,
        })
    }

    fn set_state(&mut self, before: &State, after: &State) -> Result<(), VmcsError> {
        self.area.regs = after.regs;
        for (field, old, new) in [
            (
                FieldNatural::GuestRsp,
                before.regs.get(Gpr::Rsp),
                after.regs.get(Gpr::Rsp),
            ),
            (FieldNatural::GuestRflags, before.rflags, after.rflags),
        ] {
            if old != new {
                self.vmcs.write_natural(field, new)?;
            }
        }
        Ok(())
    }
}

/// Fetches and decodes the instruction at `rip`. What was fetched is put into `refusal`.
fn fetch<M: PhysMem>(
    memory: &mut GuestVirtual<'_, Space<'_, M>>,
    mode: CodeMode,
    rip: Gva,
    refusal: &mut Refusal,
) -> Result<Instruction, Why> {
    // The next page is looked at only where the instruction reaches into it.
    let in_page = (PAGE_SIZE - rip.page_offset()).min(LONGEST as u64) as usize;
    let mut known = 0;
    for end in [in_page, LONGEST] {
        let from = Gva::new(rip.as_u64().wrapping_add(known as u64) & mode.linear_mask());
        let into = refusal.bytes.get_mut(known..end).unwrap_or_default();
        memory.read(from, into).map_err(|fault| match fault {
            VirtualFault::LegacyPaging => Why::LegacyPaging,
            _ => Why::NoCode,
        })?;
        known = end;
        refusal.known = known as u8;
        match decode(mode, refusal.bytes.get(..known).unwrap_or_default()) {
            Err(DecodeError::TooShort) if known < LONGEST => {}
            decoded => return decoded.map_err(Why::Instruction),
        }
    }
    Err(Why::Instruction(DecodeError::Invalid))
}

impl<M: PhysMem> Places for Space<'_, M> {
    fn place(&self, gpa: Gpa, write: bool) -> Result<Place, AccessError> {
        let reason = match self.region_at(gpa) {
            None => Reason::NoRegion,
            Some(region) => {
                let tag = region.tag;
                let offset = region.offset(gpa);
                match region.kind {
                    RegionKind::Mmio => return Ok(Place::Device { tag, offset }),
                    RegionKind::PassThrough(_) => Reason::NotMemory { tag },
                    _ if !write || region.is_writable() => return Ok(Place::Memory),
                    _ if MmioDevices::takes_denied_writes(tag) => {
                        return Ok(Place::Device { tag, offset });
                    }
                    _ => Reason::Denied { tag },
                }
            }
        };
        Err(AccessError { gpa, reason })
    }
}
