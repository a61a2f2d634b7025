//! A CPU for tests: VMCBs whose entries run what a test has written down instead of a guest.

use std::collections::VecDeque;

use super::asid::{Asid, Asids, TlbControl};
use super::event::is_injecting;
use super::fields::{EVENT_INJECTION, EXIT_CODE, EXIT_INFO_1, EXIT_INFO_2, EXIT_INTERRUPTION, RAX};
use super::loaded::{OnCpu, Refused, Taken};
use super::vmcb::Vmcb;
use crate::virt::cpu::EntryArea;
use crate::virt::{Gpr, GuestRegs};

/// What happens between an entry and its exit.
pub(crate) type Step = Box<dyn FnOnce(&mut Vmcb, &mut GuestRegs) -> Result<(), Refused>>;

/// An exit with this code, before which the guest does this.
pub(crate) fn left(code: u64, guest: impl FnOnce(&mut Vmcb, &mut GuestRegs) + 'static) -> Step {
    Box::new(move |vmcb, regs| {
        guest(vmcb, regs);
        vmcb.set(EXIT_CODE, code);
        Ok(())
    })
}

/// The VMCB is refused; as on some CPUs, the save area holds nothing of use then.
pub(crate) fn refuse() -> Step {
    Box::new(|vmcb, _| {
        vmcb.copy_save_area(&Vmcb::ZERO);
        vmcb.set(EXIT_CODE, 0xffff_ffff);
        Err(Refused)
    })
}

/// What is to come, and the registers that entries and exits do not switch.
pub(crate) struct ScriptedCpu {
    pub script: VecDeque<Step>,
    pub dr: [u64; 4],
    pub xcr0: u64,
    pub tsc_aux: u64,
    /// What the timer was set to.
    pub timer: Vec<u64>,
    /// The interrupts that are taken.
    pub interrupts: VecDeque<Taken>,
    asids: Asids,
    /// What each entry had the CPU drop.
    pub dropped: Vec<TlbControl>,
    entered: Box<Vmcb>,
}

impl ScriptedCpu {
    pub fn new(script: Vec<Step>) -> Self {
        Self {
            script: script.into(),
            dr: [0; 4],
            xcr0: 1,
            tsc_aux: 0,
            timer: vec![],
            interrupts: VecDeque::new(),
            asids: Asids::new(16, true),
            dropped: vec![],
            entered: Box::new(Vmcb::ZERO),
        }
    }
}

// SAFETY: nothing is cached.
unsafe impl OnCpu for ScriptedCpu {
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        vmcb: &mut Vmcb,
        asid: &mut Asid,
        area: &mut EntryArea,
    ) -> Result<(), Refused> {
        let tag = self.asids.make_ready(asid);
        self.dropped.push(tag.control);
        vmcb.set(RAX, area.regs.get(Gpr::Rax));
        self.entered.copy_control_area(vmcb);
        self.entered.copy_save_area(vmcb);
        for field in [EXIT_INFO_1, EXIT_INFO_2, EXIT_INTERRUPTION] {
            vmcb.set(field, 0);
        }
        let step = self.script.pop_front().expect("one entry too many");
        step(vmcb, &mut area.regs)?;
        self.asids.entered(asid, tag);
        if is_injecting(vmcb) {
            let bits = vmcb.get(EVENT_INJECTION);
            vmcb.set(EVENT_INJECTION, bits & !(1 << 31));
        }
        vmcb.is_known_to_the_cpu();
        Ok(())
    }
    fn refused(&self) -> &Vmcb {
        &self.entered
    }
    fn set_timer(&mut self, ticks: u64) {
        self.timer.push(ticks);
    }
    fn take_interrupt(&mut self) -> Taken {
        self.interrupts
            .pop_front()
            .expect("an interrupt that is not there")
    }
    fn breakpoint_addresses(&self) -> [u64; 4] {
        self.dr
    }
    unsafe fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
    }
    fn xcr0(&self) -> Option<u64> {
        Some(self.xcr0)
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
}
