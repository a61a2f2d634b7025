//! The VMCB of a guest: made, given a state, loaded, ended.

use x86_64::registers::xcontrol::XCr0;

use super::super::advance::code_mode;
use super::super::asid::Asid;
use super::super::fields::{CR4, IDTR_BASE, INTERCEPT_EXCEPTION, TSC_OFFSET, VISIBLE_CR4};
use super::super::guest_state::GuestState;
use super::super::loaded::{Loaded, OnCpu, Refused, Taken, intercept_reads};
use super::super::neutral::{CodeMode, Start64};
use super::super::start_state::{write_controls, write_start};
use super::super::vmcb::Vmcb;
use super::Svm;
use super::operation::{Operation, Platform};
use crate::addr::Hpa;
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use crate::virt::cpu::{self, EntryArea};

/// The VMCB of a guest. It ends by [`GuestVmcb::end`].
#[must_use = "a VMCB that is dropped without `end` leaks its frame"]
#[derive(Debug)]
pub struct GuestVmcb {
    frame: Frame,
    /// What is in the frame.
    vmcb: &'static mut Vmcb,
    asid: Asid,
}

impl GuestVmcb {
    /// One without any state.
    ///
    /// # Errors
    /// No frame for it.
    pub fn new<M: PhysMem>(frames: &FrameAllocator<M>) -> Result<Self, FrameError> {
        let frame = frames.alloc_zeroed()?;
        let at = frames.mem().ptr(frame.address()).cast::<Vmcb>();
        Ok(Self {
            frame,
            // SAFETY: the frame is fresh and a page, and any bytes are a VMCB. It is held until `end`, which gives the reference up
            // before; frames stay where they are seen as long as there are guests.
            vmcb: unsafe { &mut *at },
            asid: Asid::new(),
        })
    }

    /// Writes all of it but the guest's state. `nested_cr3` is where its nested tables are.
    fn set_up(&mut self, cpu: &Operation, nested_cr3: Hpa) {
        let addresses = cpu.addresses(nested_cr3);
        write_controls(self.vmcb, &cpu.found().chosen, &addresses);
        self.vmcb.is_new_to_the_cpu();
    }

    /// Has the guest start in 64-bit mode at `start`, in the space behind `nested_cr3`. `real_cr4` gives the CR4 that the CPU runs
    /// with for the one that the guest sees.
    pub fn start_at(
        &mut self,
        cpu: &Operation,
        nested_cr3: Hpa,
        start: &Start64,
        real_cr4: impl FnOnce(u64) -> u64,
    ) {
        self.set_up(cpu, nested_cr3);
        write_start(self.vmcb, start);
        let real = real_cr4(self.vmcb.get(VISIBLE_CR4));
        self.vmcb.set(CR4, real);
        intercept_reads(self.vmcb);
    }

    /// Has the guest begin with a state that was captured, in the space behind `nested_cr3`, and with this offset of its time-stamp
    /// counter.
    pub fn assume(
        &mut self,
        cpu: &Operation,
        nested_cr3: Hpa,
        state: &GuestState,
        tsc_offset: impl FnOnce() -> u64,
    ) {
        self.set_up(cpu, nested_cr3);
        self.restore(state, tsc_offset);
    }

    /// Brings the guest back to a state of the template that it was made of.
    pub fn restore(&mut self, state: &GuestState, tsc_offset: impl FnOnce() -> u64) {
        state.write(self.vmcb);
        // Its page tables may hold other bytes than those that the CPU has cached translations of.
        self.asid.outdate();
        self.vmcb.set(TSC_OFFSET, tsc_offset());
    }

    /// Takes the guest's state, and the offset of its time-stamp counter.
    pub fn capture(&self) -> (GuestState, u64) {
        (GuestState::capture(self.vmcb), self.vmcb.get(TSC_OFFSET))
    }

    /// Has INT3 exit, and every exception where there is no interrupt-descriptor table: its base is still what it was at
    /// the start, 0, where nothing is mapped.
    pub fn exit_on_breakpoints(&mut self) {
        let exiting = match self.vmcb.get(IDTR_BASE) {
            0 => u32::MAX,
            _ => self.vmcb.get(INTERCEPT_EXCEPTION) | 1 << 3,
        };
        self.vmcb.set(INTERCEPT_EXCEPTION, exiting);
    }

    /// Loads the guest's processor into the CPU, but what entries and exits do not switch.
    pub fn load<'c>(&'c mut self, cpu: &'c mut Operation) -> Loaded<'c, OnThisCpu<'c>> {
        let Operation {
            svm,
            found,
            resident,
            platform,
            ..
        } = cpu;
        let on_cpu = OnThisCpu {
            svm,
            at: self.frame.address(),
            offered_xcr0: resident.xcr0,
            platform: *platform,
        };
        let features = found.chosen.features;
        Loaded::new(
            on_cpu,
            self.vmcb,
            &mut self.asid,
            &found.capabilities,
            features,
        )
    }

    /// Gives its frame back.
    pub fn end<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        frames.release(self.frame);
    }
}

/// The CPU that a guest is loaded into.
pub struct OnThisCpu<'c> {
    svm: &'c mut Svm<'static>,
    /// Where the guest's VMCB is.
    at: Hpa,
    /// What of XCR0 guests may have, on a CPU that has it.
    offered_xcr0: Option<u64>,
    platform: &'static dyn Platform,
}

// SAFETY: `Svm::enter` pays what is owed.
unsafe impl OnCpu for OnThisCpu<'_> {
    #[inline(always)]
    unsafe fn enter<const X87_SELECTORS: bool>(
        &mut self,
        vmcb: &mut Vmcb,
        asid: &mut Asid,
        area: &mut EntryArea,
    ) -> Result<(), Refused> {
        // SAFETY: the caller's; the VMCB and its place are those of the guest that is loaded.
        unsafe { self.svm.enter(vmcb, self.at, asid, area)? };
        if X87_SELECTORS {
            area.keep_selectors(|| code_mode(vmcb) == CodeMode::Bits64);
        }
        // Not every CPU has XSETBV exit: a guest may have switched on what is not saved for it.
        if let (Some(offered), Some(xcr0)) = (self.offered_xcr0, self.xcr0())
            && xcr0 & !offered != 0
        {
            // SAFETY: without what is not offered it is one that the CPU accepts: nothing that is offered needs that.
            unsafe { self.set_xcr0(xcr0 & offered) };
        }
        Ok(())
    }
    fn refused(&self) -> &Vmcb {
        self.svm.refused()
    }
    fn set_timer(&mut self, ticks: u64) {
        self.platform.set_timer(ticks);
    }
    fn take_interrupt(&mut self) -> Taken {
        self.platform.take_interrupt()
    }
    fn breakpoint_addresses(&self) -> [u64; 4] {
        cpu::breakpoint_addresses()
    }
    unsafe fn set_tsc_aux(&mut self, value: u64) {
        // SAFETY: the caller's; the guest is loaded, so what is in the CPU is its own.
        unsafe { cpu::write_switched(x86::msr::IA32_TSC_AUX, value) };
    }
    #[inline(always)]
    fn xcr0(&self) -> Option<u64> {
        // `Found::prepare` has switched XSAVE on where the CPU has it.
        self.offered_xcr0.map(|_| XCr0::read_raw())
    }
    unsafe fn set_xcr0(&mut self, value: u64) {
        // SAFETY: the caller's; CR4.OSXSAVE is on in the host where the CPU has XSAVE.
        unsafe { cpu::xsetbv(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;

    #[test]
    fn a_state_goes_from_one_guest_to_another() {
        let frames = Arena::allocator(0x10_0000, 4);
        let first = GuestVmcb::new(&frames).unwrap();
        let start = Start64 {
            rip: 0x1000,
            rsp: 0x2000,
            cr3: 0x3000,
        };
        write_start(first.vmcb, &start);
        first.vmcb.set(TSC_OFFSET, 7);
        let (state, offset) = first.capture();
        assert_eq!(offset, 7);
        let mut second = GuestVmcb::new(&frames).unwrap();
        second.restore(&state, || 9);
        assert_eq!(second.capture(), (state, 9));
        // What was cached of another state is not used.
        let mut asids = crate::svm::Asids::new(16, true);
        let tag = asids.make_ready(&mut second.asid);
        asids.entered(&mut second.asid, tag);
        let (state, _) = first.capture();
        second.restore(&state, || 0);
        let tag = asids.make_ready(&mut second.asid);
        assert_eq!(tag.control, crate::svm::TlbControl::FlushAsid);
        first.end(&frames);
        second.end(&frames);
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn breakpoints_exit_and_without_a_table_all_exceptions() {
        let frames = Arena::allocator(0x10_0000, 4);
        let mut guest = GuestVmcb::new(&frames).unwrap();
        guest.vmcb.set(INTERCEPT_EXCEPTION, 1 << 1);
        guest.vmcb.set(IDTR_BASE, 0x5000);
        guest.exit_on_breakpoints();
        assert_eq!(guest.vmcb.get(INTERCEPT_EXCEPTION), 0b1010);
        guest.vmcb.set(IDTR_BASE, 0);
        guest.exit_on_breakpoints();
        assert_eq!(guest.vmcb.get(INTERCEPT_EXCEPTION), u32::MAX);
        guest.end(&frames);
    }
}
