//! What the VMCB says of an exit.

use super::super::event::Injection;
use super::super::exit::{self, Exit};
use super::super::feature::Feature;
use super::super::fields::{CR0, DR7, EXIT_INFO_2, EXIT_INTERRUPTION, RIP};
use super::super::nested_fault::NestedFault;
use super::super::neutral::{Event, EventKind, GuestRegs, IoSize, SegmentRegister};
use super::super::reason::Reason;
use super::{Loaded, OnCpu, UnknownInstruction};
use crate::addr::{Gpa, Gva};
use crate::ept::Violation;
use crate::register_bits::CR0_PE;
use crate::virt::control_registers::CrAccess;
use crate::virt::event::has_error_code;
use crate::virt::io::{AddressSize, IoAccess};
use crate::virt::processor::{ExceptionExit, Exits, NoEvent, PortExit, PortString};

/// In exit interruption information: an event was being delivered.
const VALID: u64 = 1 << 31;

/// Where the instruction behind one is that exited.
#[derive(Clone, Copy, Debug)]
pub struct Place(pub(super) u64);

/// What the exit says of a port instruction, if it is one that there is.
fn port_access(information: u64) -> Option<IoAccess> {
    let access = exit::IoAccess::decode(information, 0)?;
    Some(IoAccess {
        port: access.port,
        size: access.size,
        input: access.input,
        string: access.string,
        rep: access.rep,
        // Nobody says.
        immediate: false,
    })
}

impl<C: OnCpu> Exits for Loaded<'_, C> {
    /// The first field of information.
    type PortDetail = u64;
    type Place = Place;
    const TELLS_LINEAR_ADDRESSES: bool = false;
    const MAY_WANT_CODE: bool = true;
    #[inline(always)]
    fn wants_code(&self) -> bool {
        self.lacks_code()
    }
    fn take_code(&mut self, code: &[u8], regs: &GuestRegs) -> bool {
        self.tell(code, regs)
    }
    #[inline(always)]
    fn port_exit(&self) -> Result<PortExit<u64, Place>, UnknownInstruction> {
        let detail = self.information();
        let of_byte = |access: &IoAccess| access.size == IoSize::Byte && !access.string;
        Ok(PortExit {
            byte: port_access(detail).filter(of_byte),
            detail,
            dr7: self.vmcb.get(DR7),
            place: Place(self.vmcb.get(EXIT_INFO_2)),
        })
    }
    fn port_access(detail: u64) -> Option<IoAccess> {
        port_access(detail)
    }
    fn port_string(&self) -> Result<Option<PortString>, UnknownInstruction> {
        // What gives the segment gives the width of addresses, too.
        if !self.features.has(Feature::DecodeAssists) {
            return Ok(None);
        }
        let information = self.information();
        let segment = match information >> 10 & 7 {
            0 => SegmentRegister::Es,
            1 => SegmentRegister::Cs,
            2 => SegmentRegister::Ss,
            3 => SegmentRegister::Ds,
            4 => SegmentRegister::Fs,
            5 => SegmentRegister::Gs,
            _ => return Ok(None),
        };
        let address_size = match information >> 7 & 7 {
            1 => AddressSize::Bits16,
            2 => AddressSize::Bits32,
            4 => AddressSize::Bits64,
            _ => return Ok(None),
        };
        let next = self.vmcb.get(EXIT_INFO_2);
        let length = next.wrapping_sub(self.vmcb.get(RIP)) as u8;
        Ok(Some(PortString {
            address_size,
            segment,
            length,
        }))
    }
    #[inline(always)]
    fn violation(&self) -> Result<(Violation, bool), UnknownInstruction> {
        let gpa = Gpa::new(self.vmcb.get(EXIT_INFO_2));
        let fault = NestedFault::decode(self.information(), gpa);
        Ok((
            fault.violation(),
            self.vmcb.get(EXIT_INTERRUPTION) & VALID == 0,
        ))
    }
    fn physical_address(&self) -> Result<u64, UnknownInstruction> {
        Ok(self.vmcb.get(EXIT_INFO_2))
    }
    #[inline(always)]
    fn linear_address(&self) -> Result<Gva, UnknownInstruction> {
        Ok(Gva::new(0))
    }
    fn was_delivering(&self) -> Result<bool, UnknownInstruction> {
        Ok(self.vmcb.get(EXIT_INTERRUPTION) & VALID != 0)
    }
    fn cr_access(&self) -> Result<Option<CrAccess>, UnknownInstruction> {
        Ok(self.register_access())
    }
    fn exception(&self) -> Result<Option<ExceptionExit>, UnknownInstruction> {
        let protected = self.vmcb.get(CR0) & CR0_PE != 0;
        Ok(match self.exit() {
            Exit::Exception(exit) => Some(ExceptionExit {
                vector: exit.vector,
                // Which instruction has raised it, if any has, makes no difference: RIP is where it is to be raised.
                kind: EventKind::HardwareException,
                has_error_code: protected && has_error_code(exit.vector),
            }),
            Exit::Other(Reason::Nmi) => Some(ExceptionExit {
                vector: 2,
                kind: EventKind::Nmi,
                has_error_code: false,
            }),
            _ => None,
        })
    }
    fn error_code(&self) -> Result<u32, UnknownInstruction> {
        Ok(self.information() as u32)
    }
    fn fault_address(&self) -> Result<Gva, UnknownInstruction> {
        Ok(Gva::new(self.vmcb.get(EXIT_INFO_2)))
    }
    fn interrupt_vector(&self) -> Result<u8, UnknownInstruction> {
        Ok(self.interrupt)
    }
    fn instruction_length(&self) -> Result<u32, UnknownInstruction> {
        self.length().map(u32::from)
    }
    fn interrupted(&self) -> Result<Option<Event>, NoEvent<UnknownInstruction>> {
        match Injection::interrupted(self.vmcb) {
            Ok(event) => Ok(event
                .filter(|event| !self.comes_again(*event))
                .map(Injection::event)),
            Err(_) => Err(NoEvent::Impossible),
        }
    }
}
