//! VMCALL.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::call::{AfterCall, CallRegisters, CallSink, HarvestRequest, call};
use super::super::console::Printer;
use super::super::devices::Devices;
use super::super::figure::{Figure, FigureName, Unit};
use super::super::outcome::{Outcome, Turn};
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, VirtualMemory};
use crate::addr::{AddrRange, Gpa};
use crate::ept::{Region, Space};
use crate::frames::PhysMem;
use crate::paging::Nested;
use crate::virt::{CodeMode, Gpr};
use offshoot_abi::{Call, Error, HARVEST_MAX, to_rax};

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// The call that does nothing is what round trips are measured with, so it stays out of the way of the others.
    #[inline(always)]
    pub fn call(&mut self) -> Result<Next, P::Error> {
        if self.area.regs.get(Gpr::Rax) == Call::Nop as u64 && self.processor.cpl()? == 0 {
            self.area.regs.set(Gpr::Rax, 0);
            return self.advance();
        }
        Ok(self.other_call())
    }

    /// Any other call. An error becomes the outcome.
    #[inline(never)]
    fn other_call(&mut self) -> Next {
        self.area.flush_is_due();
        let handled = self.any_call();
        self.settle(handled)
    }

    fn any_call(&mut self) -> Result<Next, P::Error> {
        let regs = &self.area.regs;
        let registers = CallRegisters {
            rax: regs.get(Gpr::Rax),
            rdi: regs.get(Gpr::Rdi),
            rsi: regs.get(Gpr::Rsi),
            rdx: regs.get(Gpr::Rdx),
        };
        let registers = match self.processor.code_mode()? {
            CodeMode::Bits64 => registers,
            CodeMode::Bits32 | CodeMode::Bits16 => registers.lower_halves(),
        };
        let cpl = self.processor.cpl()?;
        let (translation, privilege) = self.view()?;
        let mut memory = GuestVirtual::new(self.space, &translation, privilege);
        let mut sink = Sink {
            devices: self.devices,
            host: self.host,
        };
        match call(registers, cpl, &mut memory, &mut sink) {
            AfterCall::Return(rax) => {
                self.area.regs.set(Gpr::Rax, rax);
                if self.devices.console.owes() {
                    self.printed()?;
                }
            }
            AfterCall::Exit(status) => return self.stop(Outcome::Exited(status)),
            AfterCall::HarvestDirty(request) => {
                let told = self.harvest_dirty(request)?;
                self.answer(told);
            }
            AfterCall::Discard(range) => {
                let done = self.discard(range)?;
                self.answer(done.map(|()| 0));
            }
            AfterCall::Protect(range, permissions) => {
                let done = self.protect(range, permissions)?;
                self.answer(done.map(|()| 0));
            }
            AfterCall::Freeze(buffer) => return self.asks_freeze(buffer),
        }
        self.advance()
    }

    /// Has the call return this.
    fn answer(&mut self, result: Result<u64, Error>) {
        self.area.regs.set(Gpr::Rax, to_rax(result));
    }

    /// Stops the guest behind the call, which has failed unless the host freezes it.
    fn asks_freeze(&mut self, buffer: AddrRange<Gpa>) -> Result<Next, P::Error> {
        let writable = |region: &Region| region.kind.is_memory() && region.is_writable();
        let error =
            if buffer.is_empty() || self.space.region_at(buffer.start()).is_some_and(writable) {
                self.message = Some(buffer);
                self.turn = Turn::AsksFreeze;
                Error::NotNow
            } else {
                Error::BadAddress
            };
        self.answer(Err(error));
        let next = self.advance()?;
        Ok(if self.message.is_some() {
            Next::Stop
        } else {
            next
        })
    }

    /// Tells the guest its dirty pages. The bitmap is written before too: so it can be, and it is dirty for sure.
    fn harvest_dirty(&mut self, request: HarvestRequest) -> Result<Result<u64, Error>, P::Error> {
        let mut bytes = [0; HARVEST_MAX as usize / 8];
        let Some(bitmap) = bytes.get_mut(..request.pages.div_ceil(8) as usize) else {
            return Ok(Err(Error::Invalid));
        };
        let (translation, privilege) = self.view()?;
        let write = |space: &mut Space<'_, M, F>, bitmap: &[u8]| {
            GuestVirtual::new(space, &translation, privilege)
                .write(request.bitmap, bitmap)
                .map_err(|_| Error::BadAddress)
        };
        if let Err(error) = write(self.space, bitmap) {
            return Ok(Err(error));
        }
        let told = self.harvest_bitmap(request.first, request.pages, bitmap)?;
        if told.is_none() {
            return Ok(Err(Error::Invalid));
        }
        let found = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
        Ok(write(self.space, bitmap).map(|()| found))
    }
}

struct Sink<'s, H> {
    devices: &'s mut Devices,
    host: &'s mut H,
}

impl<H: Host> CallSink for Sink<'_, H> {
    fn print(&mut self, bytes: &[u8]) {
        let host = &mut *self.host;
        let out = &mut |from: &Printer, line: &[u8]| host.print(from, line);
        self.devices.console.print(bytes, out);
    }
    fn figure(&mut self, name: FigureName, value: u64, unit: Unit) -> bool {
        self.host.figure(Figure {
            guest: self.devices.console.from.name,
            host: false,
            name,
            value,
            unit,
        })
    }
}
