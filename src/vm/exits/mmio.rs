//! Accesses to device memory: fetch the instruction, decode it, carry it out.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::mmio::MmioDevices;
use super::super::mmio::{Code, Place, Places, Refusal, Translated, Why};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::VirtualFault;
use crate::addr::{Gpa, Gva};
use crate::ept::{Access, AccessError, Cause, Reason, RegionKind, Space, Violation};
use crate::frames::PhysMem;
use crate::paging::Nested;

/// What the CPU tells of an access.
pub(super) struct Reported {
    /// The access, and where it led.
    pub access: Translated,
    /// Where the instruction is.
    pub rip: Gva,
}

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Carries out the access that `violation` reports, which is `device`'s to answer, or else is a write that a device is
    /// told of.
    pub(super) fn mmio_of(
        &mut self,
        violation: Violation,
        device: Option<(u32, u64)>,
    ) -> Result<Next, P::Error> {
        let gva = self.processor.linear_address()?;
        let rip = self.processor.rip()?;
        let reported = Reported {
            access: Translated {
                gpa: violation.gpa(),
                gva: match violation.cause() {
                    Cause::NoLinearAddress => Gva::new(0),
                    Cause::Translation | Cause::PageWalk => gva,
                },
                write: violation.is_write(),
                device,
            },
            rip,
        };
        let why = match violation.cause() {
            _ if self.processor.was_delivering()? => Why::Delivery,
            Cause::Translation if !violation.is_asynchronous() => return self.mmio(&reported),
            _ => Why::NoInstruction,
        };
        self.refuse(&reported, why, &Code::NONE)
    }

    /// The linear address of the exit, where the CPU tells it.
    pub(super) fn told_address(&self) -> Result<Option<Gva>, P::Error> {
        match P::TELLS_LINEAR_ADDRESSES {
            true => self.processor.linear_address().map(Some),
            false => Ok(None),
        }
    }

    /// Carries out an access that an instruction has made.
    #[inline(never)]
    pub(super) fn mmio(&mut self, reported: &Reported) -> Result<Next, P::Error> {
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
    pub(super) fn refuse(
        &mut self,
        reported: &Reported,
        why: Why,
        code: &Code,
    ) -> Result<Next, P::Error> {
        let (bytes, known) = code.bytes();
        let refusal = Refusal {
            why,
            gpa: reported.access.gpa,
            gva: P::TELLS_LINEAR_ADDRESSES.then_some(reported.access.gva),
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
    ) -> Result<Result<Next, Why>, P::Error> {
        let view = self.instruction_view(reported.rip)?;
        let translation = self.translation(&view.registers)?;
        let instruction = match self.fetch(&view, &translation, code) {
            Ok(instruction) => instruction,
            Err(why) => return Ok(Err(why)),
        };
        let translated = match P::TELLS_LINEAR_ADDRESSES {
            true => Some(&reported.access),
            false => None,
        };
        self.emulate::<false>(&instruction, &view, &translation, translated)
    }

    /// The instruction is not one that makes the access. That can be because the guest has changed its tables, and the
    /// CPU still used what they said before: it shall look again, once.
    fn misfit(&mut self, refusal: Refusal) -> Result<Next, P::Error> {
        if self.devices.mmio.misfits_again((refusal.rip, refusal.gpa)) {
            return match refusal.why {
                Why::CodeFaults { address, code } => {
                    self.virtual_fault(VirtualFault::Page { address, code })
                }
                _ => self.stop(Outcome::Mmio(refusal)),
            };
        }
        if let Err(error) = self.processor.flush_linear() {
            return self.stop(Outcome::Entry(error.into()));
        }
        self.processor.undo_step()?;
        Ok(Next::Resume)
    }
}

impl<M: PhysMem, F: Nested> Places for Space<'_, M, F> {
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
