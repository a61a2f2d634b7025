//! The instruction that has exited: how long it is and which registers it names, by the CPU or by its code.

use super::super::advance::{advance_by, advance_to, code_mode};
use super::super::event::Injection;
use super::super::exit::Exit;
use super::super::exiting::{asking_instruction, exiting_instruction};
use super::super::feature::Feature;
use super::super::fields::{EXIT_CODE, EXIT_INFO_2, NEXT_RIP, RIP, RSP};
use super::super::neutral::{Event, EventKind, Gpr, GuestRegs};
use super::super::reason::{DR_READ, EXCEPTION, Reason};
use super::told::Told;
use super::{Loaded, OnCpu, UnknownInstruction};
use crate::virt::control_registers::{ControlRegister, CrAccess};

/// What the other maker's instruction for a call is here.
const INVALID_OPCODE: u8 = 6;
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

impl<C: OnCpu> Loaded<'_, C> {
    /// Whether the CPU does not say enough of the instruction that has exited.
    #[inline(always)]
    pub(super) fn lacks_code(&self) -> bool {
        let code = self.vmcb.get(EXIT_CODE);
        if code < DR_READ.into() {
            return self.lacks_register();
        }
        const BREAKPOINT: u64 = EXCEPTION as u64 + 3;
        const MSR: u64 = Reason::Msr as u64;
        const CPUID: u64 = Reason::Cpuid as u64;
        const VMMCALL: u64 = Reason::Vmmcall as u64;
        const HLT: u64 = Reason::Hlt as u64;
        const INVD: u64 = Reason::Invd as u64;
        const WBINVD: u64 = Reason::Wbinvd as u64;
        const XSETBV: u64 = Reason::Xsetbv as u64;
        match code {
            // The rest raises an exception in their place, or is no instruction.
            CPUID | VMMCALL | MSR | HLT | INVD | WBINVD | XSETBV => {
                !self.features.has(Feature::NextRipSave)
            }
            // Its length is not told by any.
            BREAKPOINT => true,
            _ => false,
        }
    }

    fn lacks_register(&self) -> bool {
        let told = matches!(self.exit(), Exit::Cr(access) if access.gpr.is_some());
        !(told && self.features.has(Feature::NextRipSave))
    }

    /// Takes from the code of the instruction what the CPU does not tell.
    pub(super) fn tell(&mut self, code: &[u8], regs: &GuestRegs) -> bool {
        let (exit, mode) = (self.exit(), code_mode(self.vmcb));
        let told = match exit {
            Exit::Exception(exception) if exception.vector == INVALID_OPCODE => {
                code.starts_with(&VMCALL).then_some(Told {
                    length: VMCALL.len() as u8,
                    cr: None,
                })
            }
            Exit::Exception(_) => {
                let breakpoint = Injection::of(Event::plain(3, EventKind::SoftwareException));
                asking_instruction(breakpoint, mode, code).map(|length| Told { length, cr: None })
            }
            _ => exiting_instruction(&exit, mode, code).and_then(|found| {
                let length = found.length;
                let cr = match exit {
                    Exit::Cr(_) => {
                        let code = code.get(..length.into())?;
                        Some(self.cr_instruction(&exit, code, found.gpr, regs)?)
                    }
                    _ => None,
                };
                Some(Told { length, cr })
            }),
        };
        self.told = told;
        told.is_some()
    }

    /// The access to a control register by the instruction whose bytes these are. SMSW is none that is carried out: it exits only
    /// where CR0 is not what the guest sees.
    fn cr_instruction(
        &self,
        exit: &Exit,
        code: &[u8],
        gpr: Option<Gpr>,
        regs: &GuestRegs,
    ) -> Option<CrAccess> {
        let Some(gpr) = gpr else {
            return Some(CrAccess::Clts);
        };
        const GROUP_7: u8 = 0x01;
        match code {
            [.., 0x0f, GROUP_7, _] => match exit {
                Exit::Cr(access) if access.write => Some(CrAccess::Lmsw {
                    source: self.register(gpr, regs) as u16,
                    memory: false,
                }),
                _ => None,
            },
            _ => mov(exit, gpr),
        }
    }

    fn register(&self, gpr: Gpr, regs: &GuestRegs) -> u64 {
        match gpr {
            Gpr::Rsp => self.vmcb.get(RSP),
            other => regs.get(other),
        }
    }

    /// The access to a control register by which the guest has left.
    pub(super) fn register_access(&self) -> Option<CrAccess> {
        match (self.told, self.exit()) {
            (Some(Told { cr: Some(cr), .. }), _) => Some(cr),
            (_, exit @ Exit::Cr(access)) => mov(&exit, access.gpr?),
            _ => None,
        }
    }

    /// The bytes of the instruction that has exited.
    pub(super) fn length(&self) -> Result<u8, UnknownInstruction> {
        match self.told {
            Some(Told { length, .. }) => Ok(length),
            None if self.features.has(Feature::NextRipSave) => {
                Ok(self.vmcb.get(NEXT_RIP).wrapping_sub(self.vmcb.get(RIP)) as u8)
            }
            None => Err(UnknownInstruction),
        }
    }

    /// Goes on behind the instruction that exited.
    #[inline(always)]
    pub(super) fn step_over(&mut self) -> Result<(), UnknownInstruction> {
        if let Some(Told { length, .. }) = self.told {
            advance_by(self.vmcb, length);
        } else if self.vmcb.get(EXIT_CODE) == Reason::Ioio as u64 {
            let next = self.vmcb.get(EXIT_INFO_2);
            advance_to(self.vmcb, next);
        } else if self.features.has(Feature::NextRipSave) {
            let next = self.vmcb.get(NEXT_RIP);
            advance_to(self.vmcb, next);
        } else {
            return Err(UnknownInstruction);
        }
        Ok(())
    }
}

/// MOV from or to a control register, if it is one that there is.
fn mov(exit: &Exit, gpr: Gpr) -> Option<CrAccess> {
    let Exit::Cr(access) = exit else {
        return None;
    };
    let register = match access.number {
        0 => ControlRegister::Cr0,
        3 => ControlRegister::Cr3,
        4 => ControlRegister::Cr4,
        8 => ControlRegister::Cr8,
        _ => return None,
    };
    Some(match access.write {
        true => CrAccess::MovTo {
            register,
            source: gpr,
        },
        false => CrAccess::MovFrom {
            register,
            target: gpr,
        },
    })
}
