//! The exits that the guest of the self-test makes, in their order, and what is done at each.

use super::failed::Failed;
use super::guest::Guest;
use super::memory::MemoryError;
use crate::boot::console::say;
use core::fmt::{self, Write};
use offshoot::addr::Gpa;
use offshoot::svm::advance::{advance_by, advance_to, code_mode, next_rip, raise};
use offshoot::svm::cpu::Svm;
use offshoot::svm::event::{close_interrupt_window, open_interrupt_window};
use offshoot::svm::exiting::{asking_instruction, exiting_instruction};
use offshoot::svm::fields::{CR0, EVENT_INJECTION, RIP};
use offshoot::svm::{Exit, Injection, Reason};
use offshoot::virt::{Event, Gpr};

/// What the host does at an exit.
#[derive(Clone, Copy)]
enum Reaction {
    /// Answers for CPUID.
    Answer,
    /// Finds each register as the guest has set it, and changes one.
    CheckRegisters,
    /// Steps over the instruction.
    Skip,
    /// Gives the guest a value in these registers, and steps over the instruction.
    Give(u64, u64),
    /// Gives CR0 to the register that the instruction names.
    ReadCr0,
    /// Writes CR0 from that register.
    WriteCr0,
    /// Gives the guest a page, with this in its first word.
    Fill(u64),
    /// Raises #GP(0) in the instruction's place.
    Raise,
    /// Wants to know when an interrupt can be taken.
    OpenWindow,
    /// Now it can.
    Interrupt,
    /// Gives the guest the page that an event needs, and delivers that again.
    Redeliver,
    /// Puts another page in the place of one.
    Replace(u64),
    /// It is the last.
    End,
}

/// What the guest has in R14 and R15.
const FOURTEEN: u64 = 0x0e0e_0e0e_0e0e_0e0e;
const FIFTEEN: u64 = 0x0f0f_0f0f_0f0f_0f0f;
/// The page that is filled, and replaced.
const PAGE: Gpa = Gpa::new(0x1_0000);

static SCRIPT: &[(&str, Reaction)] = &[
    ("CPUID (exit code 0x72)", Reaction::Answer),
    ("VMMCALL (exit code 0x81)", Reaction::CheckRegisters),
    ("OUT, port 0x3f8, 1 bytes", Reaction::Skip),
    ("IN, port 0x70, 4 bytes", Reaction::Give(0x1234_5678, 0)),
    ("RDMSR", Reaction::Give(0xd01, 0)),
    ("read of CR0", Reaction::ReadCr0),
    ("write of CR0", Reaction::WriteCr0),
    (
        "nested page fault at 0x10000: read, not present",
        Reaction::Fill(FIFTEEN),
    ),
    (
        "nested page fault at 0x11008: write, not present",
        Reaction::Fill(0),
    ),
    ("VMMCALL (exit code 0x81)", Reaction::Raise),
    ("VMMCALL (exit code 0x81)", Reaction::OpenWindow),
    ("virtual interrupt (exit code 0x64)", Reaction::Interrupt),
    (
        "nested page fault at 0x12ff8: write, not present",
        Reaction::Redeliver,
    ),
    ("VMMCALL (exit code 0x81)", Reaction::Replace(FOURTEEN)),
    ("HLT (exit code 0x78)", Reaction::End),
];

/// Compares what is written with a text, of which it must be the beginning: a register that the CPU tells may follow.
struct Begins<'t>(&'t str);

impl Write for Begins<'_> {
    fn write_str(&mut self, written: &str) -> fmt::Result {
        let same = self.0.len().min(written.len());
        let begins = self
            .0
            .get(..same)
            .is_some_and(|left| written.starts_with(left));
        self.0 = self.0.get(same..).unwrap_or_default();
        if begins { Ok(()) } else { Err(fmt::Error) }
    }
}

fn is(exit: &Exit, text: &str) -> bool {
    let mut left = Begins(text);
    write!(left, "{exit}").is_ok() && left.0.is_empty()
}

/// Runs the guest through the script.
pub fn every_exit(svm: &mut Svm<'_>, mut guest: Guest) -> Result<(), Failed> {
    for (expected, reaction) in SCRIPT {
        let exit = guest.enter(svm)?;
        say!("svm: {exit}");
        if !is(&exit, expected) {
            return Err(Failed::Exit { expected, exit });
        }
        if guest.vmcb.get(EVENT_INJECTION) >> 31 & 1 != 0 {
            return Err(Failed::Wrong("an event that was delivered is still there"));
        }
        guest.react(&exit, *reaction)?;
    }
    let told = next_rip(guest.vmcb, &Exit::Other(Reason::Hlt), guest.chosen.features);
    say!(
        "svm: the guest has made all {} exits, instructions measured by {}",
        SCRIPT.len(),
        if told.is_some() {
            "the CPU"
        } else {
            "our decoder"
        }
    );
    Ok(())
}

/// Counts the instructions, or what else the TSC counts, that a CPUID takes to the exit and back: the least of many.
pub fn count(svm: &mut Svm<'_>, mut guest: Guest) -> Result<(), Failed> {
    /// The guest's own between its two time stamps.
    const OWN: u64 = 4;
    loop {
        match guest.enter(svm)? {
            Exit::Other(Reason::Cpuid) => advance_by(guest.vmcb, 2),
            Exit::Other(Reason::Hlt) => break,
            exit => {
                let expected = "CPUID";
                return Err(Failed::Exit { expected, exit });
            }
        }
    }
    let least = guest.area.regs.get(Gpr::R14);
    say!(
        "svm: from exit to entry {} ticks",
        least.saturating_sub(OWN)
    );
    Ok(())
}

impl Guest {
    /// Steps over the instruction that exited, by the CPU's word or by our own.
    fn skip(&mut self, exit: &Exit) -> Result<Option<Gpr>, Failed> {
        let bytes = self.memory.code(self.vmcb.get(RIP))?;
        let found = exiting_instruction(exit, code_mode(self.vmcb), &bytes);
        match (next_rip(self.vmcb, exit, self.chosen.features), found) {
            (Some(next), found) => {
                let by_bytes = found.map(|found| self.vmcb.get(RIP) + u64::from(found.length));
                if by_bytes.is_some_and(|by_bytes| by_bytes != next) {
                    return Err(Failed::Wrong("the CPU and our decoder differ on a length"));
                }
                advance_to(self.vmcb, next);
            }
            (None, Some(found)) => advance_by(self.vmcb, found.length),
            (None, None) => return Err(Failed::Wrong("an instruction of unknown length")),
        }
        Ok(found.and_then(|found| found.gpr))
    }

    fn give(&mut self, low: u64, high: u64) {
        self.area.regs.set(Gpr::Rax, low);
        self.area.regs.set(Gpr::Rdx, high);
    }

    fn react(&mut self, exit: &Exit, reaction: Reaction) -> Result<(), Failed> {
        match reaction {
            Reaction::Answer => {
                // "Offo", as the guest wants it.
                self.area.regs.set(Gpr::Rbx, 0x6f66_664f);
                self.skip(exit)?;
            }
            Reaction::CheckRegisters => self.check_registers(exit)?,
            Reaction::Skip => {
                self.skip(exit)?;
            }
            Reaction::Give(low, high) => {
                self.give(low, high);
                self.skip(exit)?;
            }
            Reaction::ReadCr0 => {
                let gpr = self.skip(exit)?.ok_or(Failed::Wrong("no register"))?;
                self.area.regs.set(gpr, self.vmcb.get(CR0));
            }
            Reaction::WriteCr0 => {
                let gpr = self.skip(exit)?.ok_or(Failed::Wrong("no register"))?;
                if self.area.regs.get(gpr) != self.vmcb.get(CR0) {
                    return Err(Failed::Wrong(
                        "CR0 has changed on its way through the guest",
                    ));
                }
                self.vmcb.set(CR0, self.area.regs.get(gpr));
            }
            Reaction::Fill(value) => self.fill(exit, value)?,
            Reaction::Raise => {
                raise(self.vmcb, Event::GENERAL_PROTECTION);
            }
            Reaction::OpenWindow => {
                open_interrupt_window(self.vmcb);
                self.skip(exit)?;
            }
            Reaction::Interrupt => {
                close_interrupt_window(self.vmcb);
                Injection::interrupt(0x30).inject(self.vmcb);
            }
            Reaction::Redeliver => {
                self.fill(exit, 0)?;
                self.redeliver()?;
            }
            Reaction::Replace(value) => {
                self.memory.remove_page(PAGE)?;
                self.memory.add_page(PAGE)?;
                self.memory.write(PAGE.as_u64(), value)?;
                self.asid.outdate();
                self.skip(exit)?;
            }
            Reaction::End => {}
        }
        Ok(())
    }

    fn fill(&mut self, exit: &Exit, value: u64) -> Result<(), MemoryError> {
        if let Exit::NestedFault(fault) = exit {
            self.memory.add_page(fault.gpa())?;
            self.memory.write(fault.gpa().as_u64() & !0xfff, value)?;
        }
        Ok(())
    }

    /// The guest has put its number into every byte of each register.
    fn check_registers(&mut self, exit: &Exit) -> Result<(), Failed> {
        for (register, byte) in [
            (Gpr::Rcx, 1),
            (Gpr::Rdx, 2),
            (Gpr::Rbx, 3),
            (Gpr::Rbp, 5),
            (Gpr::Rsi, 6),
            (Gpr::Rdi, 7),
            (Gpr::R8, 8),
            (Gpr::R9, 9),
            (Gpr::R10, 10),
            (Gpr::R11, 11),
            (Gpr::R14, 14),
            (Gpr::R15, 15),
        ] {
            if self.area.regs.get(register) != u64::from_le_bytes([byte; 8]) {
                return Err(Failed::Wrong(
                    "a register has changed on its way out of the guest",
                ));
            }
        }
        self.area.regs.set(Gpr::R9, u64::from_le_bytes([4; 8]));
        self.skip(exit)?;
        Ok(())
    }

    /// Delivers the event again that the last exit has interrupted: an INT n, which pushes what comes behind it.
    fn redeliver(&mut self) -> Result<(), Failed> {
        let event = match Injection::interrupted(self.vmcb) {
            Ok(Some(event)) if event.is_software() => event,
            _ => return Err(Failed::Wrong("the exit tells nothing of the INT 30h")),
        };
        let bytes = self.memory.code(self.vmcb.get(RIP))?;
        let length = asking_instruction(event, code_mode(self.vmcb), &bytes);
        let length = length.ok_or(Failed::Wrong("RIP is not at the INT 30h"))?;
        advance_by(self.vmcb, length);
        event.inject(self.vmcb);
        Ok(())
    }
}
