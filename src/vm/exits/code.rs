//! The code of an instruction at whose exit the CPU does not tell enough of it.

use super::super::Host;
use super::super::backend::Cpu;
use super::super::mmio::{Why, fetch_code};
use super::super::outcome::Outcome;
use super::super::run::{Next, Running};
use super::super::virtual_memory::{GuestVirtual, VirtualFault};
use crate::frames::PhysMem;
use crate::paging::Nested;

impl<M: PhysMem, H: Host, P: Cpu, F: Nested> Running<'_, '_, M, H, P, F> {
    /// Whether the code at RIP, which is none of the CPU's instructions, is the other maker's for a call. The processor has been
    /// given it then.
    #[cold]
    pub fn is_others_call(&mut self) -> Result<bool, P::Error> {
        Ok(matches!(self.take_code()?, Ok(true)))
    }

    /// Has the processor take the code at RIP, and returns whether that can be what has exited.
    #[inline(never)]
    fn take_code(&mut self) -> Result<Result<bool, Why>, P::Error> {
        let rip = self.processor.rip()?;
        let view = self.instruction_view(rip)?;
        let translation = self.translation(&view.registers)?;
        let memory = GuestVirtual::new(self.space, &translation, view.privilege);
        let (processor, regs) = (&mut self.processor, &self.area.regs);
        Ok(fetch_code(&memory, view.mode, view.linear_rip, |code| {
            processor.take_code(code, regs)
        }))
    }

    /// Gives the processor the code at RIP. Returns what comes in place of the handling of the exit: where the guest's tables do not
    /// lead to the code any more, the page fault of its fetch.
    pub fn give_code(&mut self) -> Result<Option<Next>, P::Error> {
        match self.take_code()? {
            Ok(true) => Ok(None),
            Err(Why::CodeFaults { address, code }) => {
                let fault = VirtualFault::Page { address, code };
                self.virtual_fault(fault).map(Some)
            }
            Ok(false) | Err(_) => {
                let what = "an instruction that exits, of which its code does not tell enough";
                self.stop(Outcome::Unsupported(what)).map(Some)
            }
        }
    }
}
