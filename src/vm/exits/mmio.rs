//! Accesses to device memory: fetch the instruction, decode it, carry it out.

use super::super::Host;
use super::super::cr::Registers;
use super::super::devices::MmioDevices;
use super::super::mmio::{
    BusFault, Code, CodeMode, DecodeError, GuestBus, Instruction, Place, Places, Progress, Refusal,
    SegmentFault, State, Stop, Translated, Why, execute, fetch,
};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, Privilege, Translation, VirtualFault};
use crate::addr::{Gpa, Gva};
use crate::ept::{Access, AccessError, Cause, Reason, RegionKind, Space, Violation};
use crate::frames::PhysMem;
use crate::vmx::segment::{AccessRights, SegmentRegister};
use crate::vmx::{
    Event, Field32, Field64, FieldNatural, Gpr, Vmcs, VmcsError, advance_rip_by, repeat,
};

/// Vector of #SS.
const STACK_FAULT: u8 = 12;

/// What the CPU tells of an access.
pub(super) struct Reported {
    /// The address.
    pub gpa: Gpa,
    /// Its linear address.
    pub gva: Gva,
    /// Where the instruction is.
    pub rip: Gva,
    /// It was to be written.
    pub write: bool,
    /// See [`Translated::device`].
    pub device: Option<(u32, u64)>,
}

/// The guest as the instruction sees it that made the access.
struct View {
    mode: CodeMode,
    translation: Translation,
    privilege: Privilege,
    linear_rip: Gva,
    rip: u64,
    rsp: u64,
    rflags: u64,
}

impl<M: PhysMem, H: Host> Running<'_, '_, '_, M, H> {
    /// Carries out the access that `violation` reports, which is `device`'s to answer, or else is a write that a device is
    /// told of.
    pub(super) fn mmio_of(
        &mut self,
        violation: &Violation,
        device: Option<(u32, u64)>,
    ) -> Result<Next, VmcsError> {
        let reported = Reported {
            gpa: violation.gpa,
            gva: violation.gva().unwrap_or(Gva::new(0)),
            rip: violation.rip,
            write: violation.access.write,
            device,
        };
        let why = match violation.cause {
            _ if violation.during_delivery => Why::Delivery,
            Cause::Translation { .. } if !violation.asynchronous => return self.mmio(&reported),
            _ => Why::NoInstruction,
        };
        self.refuse(&reported, why, &Code::NONE)
    }

    /// Carries out an access that an instruction has made.
    #[inline(never)]
    pub(super) fn mmio(&mut self, reported: &Reported) -> Result<Next, VmcsError> {
        let mut code = Code::NONE;
        match self.try_mmio(reported, &mut code)? {
            Ok(next) => {
                self.devices.mmio.fits();
                Ok(next)
            }
            Err(why) => self.refuse(reported, why, &code),
        }
    }

    #[cold]
    fn refuse(&mut self, reported: &Reported, why: Why, code: &Code) -> Result<Next, VmcsError> {
        let (bytes, known) = code.bytes();
        let refusal = Refusal {
            why,
            gpa: reported.gpa,
            gva: reported.gva,
            rip: reported.rip,
            bytes,
            known,
        };
        match why {
            Why::NoCode | Why::CodeFaults { .. } | Why::Elsewhere => self.misfit(refusal),
            _ => self.stop(Outcome::Mmio(refusal)),
        }
    }

    #[inline(always)]
    fn try_mmio(
        &mut self,
        reported: &Reported,
        code: &mut Code,
    ) -> Result<Result<Next, Why>, VmcsError> {
        let view = self.instruction_view(reported.rip)?;
        let memory = GuestVirtual::new(self.space, &view.translation, view.privilege);
        let decoded = &mut self.machine.decoded;
        let instruction = match fetch(&memory, view.mode, view.linear_rip, decoded, code) {
            Ok(instruction) => instruction,
            Err(why) => return Ok(Err(why)),
        };
        let translated = Translated {
            gva: reported.gva,
            gpa: reported.gpa,
            write: reported.write,
            device: reported.device,
        };
        self.emulate(&instruction, &view, translated)
    }

    #[inline(always)]
    fn emulate(
        &mut self,
        instruction: &Instruction,
        view: &View,
        translated: Translated,
    ) -> Result<Result<Next, Why>, VmcsError> {
        let mut state = State {
            regs: self.area.regs,
            rip: view.rip,
            rflags: view.rflags,
        };
        state.regs.set(Gpr::Rsp, view.rsp);
        let vmcs = &self.vmcs;
        let mut bus = GuestBus {
            memory: self.space,
            devices: &mut self.devices.mmio,
            segments: |register: SegmentRegister| register.read(vmcs),
            translation: &view.translation,
            privilege: view.privilege,
            translated,
            linear_mask: view.mode.linear_mask(),
        };
        let executed = execute(instruction, view.mode, &mut state, translated.gva, &mut bus);
        self.set_state(view, &state)?;
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
            return match refusal.why {
                Why::CodeFaults { address, code } => {
                    self.virtual_fault(VirtualFault::Page { address, code })
                }
                _ => self.stop(Outcome::Mmio(refusal)),
            };
        }
        if let Err(fail) = self.flush_linear() {
            return self.stop(Outcome::EntryInstruction(fail));
        }
        crate::vmx::undo_step(&mut self.vmcs)?;
        Ok(Next::Resume)
    }

    /// How the instruction at `rip` sees the guest.
    #[inline(always)]
    fn instruction_view(&self, rip: Gva) -> Result<View, VmcsError> {
        let [cr0, cr3, efer, cr4] = self.vmcs.read_four([
            FieldNatural::GuestCr0.into(),
            FieldNatural::GuestCr3.into(),
            Field64::GuestEfer.into(),
            FieldNatural::GuestCr4.into(),
        ])?;
        let [rflags, rsp, cs_access, ss_access] = self.vmcs.read_four([
            FieldNatural::GuestRflags.into(),
            FieldNatural::GuestRsp.into(),
            Field32::GuestCsAccessRights.into(),
            Field32::GuestSsAccessRights.into(),
        ])?;
        let mode = CodeMode::of(efer, AccessRights(cs_access as u32));
        let base = match mode {
            CodeMode::Bits64 => 0,
            _ => self.vmcs.read_natural(FieldNatural::GuestCsBase)?,
        };
        let registers = Registers {
            cr0,
            cr3,
            cr4,
            efer,
        };
        let linear_rip = base.wrapping_add(rip.as_u64()) & mode.linear_mask();
        Ok(View {
            mode,
            translation: self.translation(&registers)?,
            privilege: Privilege::new((ss_access >> 5 & 3) as u8, cr0, cr4, rflags),
            linear_rip: Gva::new(linear_rip),
            rip: rip.as_u64(),
            rsp,
            rflags,
        })
    }

    #[inline(always)]
    fn set_state(&mut self, before: &View, after: &State) -> Result<(), VmcsError> {
        self.area.regs = after.regs;
        for (field, old, new) in [
            (FieldNatural::GuestRsp, before.rsp, after.regs.get(Gpr::Rsp)),
            (FieldNatural::GuestRflags, before.rflags, after.rflags),
        ] {
            if old != new {
                self.vmcs.write_natural(field, new)?;
            }
        }
        Ok(())
    }
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
                    _ => region
                        .refusal(Access::WRITE)
                        .unwrap_or(Reason::Denied { tag }),
                }
            }
        };
        Err(AccessError { gpa, reason })
    }
}
