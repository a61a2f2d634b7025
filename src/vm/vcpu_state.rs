//! The state of a guest's processor at the moment in which it was frozen.

use core::fmt;

use super::backend::{Backend, OnVmx};
use crate::addr::Hpa;
use crate::frames::{FrameAllocator, PhysMem};
use crate::virt::Gpr;
use crate::virt::cpu::{EntryArea, Resident};

/// All that a guest's processor holds. The general registers, x87 and vector state are in an entry area in a frame of its
/// own, which whoever has the state holds.
#[derive(Clone, Debug)]
pub(super) struct VcpuState<B: Backend = OnVmx> {
    /// The frame of the entry area.
    pub area: Hpa,
    pub fields: B::State,
    pub resident: Resident,
    pub cr8: u8,
    /// The guest's time-stamp counter.
    pub tsc: u64,
}

/// In what a processor differs from the frozen one it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The register or field.
    pub name: &'static str,
    /// What it was when the guest was frozen.
    pub frozen: u64,
    /// What it is.
    pub now: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, frozen, now } = self;
        write!(f, "{name} is {now:#x} and was {frozen:#x}")
    }
}

const GENERAL: [(Gpr, &str); 15] = [
    (Gpr::Rax, "RAX"),
    (Gpr::Rbx, "RBX"),
    (Gpr::Rcx, "RCX"),
    (Gpr::Rdx, "RDX"),
    (Gpr::Rbp, "RBP"),
    (Gpr::Rsi, "RSI"),
    (Gpr::Rdi, "RDI"),
    (Gpr::R8, "R8"),
    (Gpr::R9, "R9"),
    (Gpr::R10, "R10"),
    (Gpr::R11, "R11"),
    (Gpr::R12, "R12"),
    (Gpr::R13, "R13"),
    (Gpr::R14, "R14"),
    (Gpr::R15, "R15"),
];

impl<B: Backend> VcpuState<B> {
    /// Tells `each` of everything in which `now` differs from this. Time goes on, so of the time-stamp counter only that
    /// it must not be behind. With `rax` RAX must hold that instead.
    pub fn differences<M: PhysMem>(
        &self,
        now: &Self,
        frames: &FrameAllocator<M>,
        rax: Option<u64>,
        mut each: impl FnMut(Difference),
    ) {
        let mut compare = |name, frozen, now| {
            if frozen != now {
                each(Difference { name, frozen, now });
            }
        };
        for ((name, frozen), (_, now)) in B::named(&self.fields).zip(B::named(&now.fields)) {
            compare(name, frozen, now);
        }
        for ((name, frozen), (_, now)) in self.resident.named().zip(now.resident.named()) {
            compare(name, frozen, now);
        }
        compare("CR8", self.cr8.into(), now.cr8.into());
        let area = |state: &Self| frames.mem().ptr(state.area).cast::<EntryArea>();
        // SAFETY: both areas were filled when they were made, and their frames are held by the guest and the template,
        // neither of which runs.
        let (frozen_area, now_area) = unsafe { (&*area(self), &*area(now)) };
        for (register, name) in GENERAL {
            let given = rax.filter(|_| register == Gpr::Rax);
            let frozen = given.unwrap_or_else(|| frozen_area.regs.get(register));
            compare(name, frozen, now_area.regs.get(register));
        }
        let components = |area: &EntryArea| area.extended.components();
        if !frozen_area.extended.is_same(&now_area.extended) {
            compare(
                "x87 or vector state",
                components(frozen_area),
                !components(now_area),
            );
        }
        // The guest may have set it to just before it begins again at 0.
        if (now.tsc.wrapping_sub(self.tsc) as i64) < 0 {
            compare("TSC", self.tsc, now.tsc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;
    use crate::vmx::GuestState;
    use crate::vmx::fake::FakeVmcs;

    #[test]
    fn of_the_time_and_of_a_message_only_what_is_wrong_is_told() {
        let frames = Arena::allocator(0x10_0000, 4);
        let area = frames.alloc().unwrap();
        // SAFETY: the frame is fresh, and large enough.
        unsafe {
            frames
                .mem()
                .ptr(area.address())
                .cast::<EntryArea>()
                .write(EntryArea::new())
        };
        let mut vmcs = FakeVmcs::new();
        vmcs.set(crate::vmx::FieldNatural::GuestCr0, 0);
        let at = |tsc| VcpuState::<OnVmx> {
            area: area.address(),
            fields: GuestState::capture(&vmcs).unwrap(),
            resident: Resident::RESET,
            cr8: 0,
            tsc,
        };
        for (frozen, now, differs) in [
            (5, 5, false),
            (5, 6, false),
            (5, 4, true),
            (u64::MAX - 1, 3, false),
            (3, u64::MAX - 1, true),
        ] {
            let mut told = vec![];
            let tell = |difference: Difference| told.push(difference.name);
            at(frozen).differences(&at(now), &frames, None, tell);
            let expected: &[&str] = if differs { &["TSC"] } else { &[] };
            assert_eq!(told, expected, "{frozen} {now}");
        }
        // It holds 0 in both; only that is right where a message of no byte was given, or none.
        for (rax, expected) in [(Some(0), None), (Some(16), Some((16, 0)))] {
            let mut told = None;
            let tell = |Difference { frozen, now, .. }| told = Some((frozen, now));
            at(5).differences(&at(5), &frames, rax, tell);
            assert_eq!(told, expected);
        }
        frames.release(area);
    }
}
