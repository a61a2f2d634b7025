//! What `selftest=` does to guests: faults made on purpose, to see how they are reported.

use crate::boot::layout::DirectMap;
use offshoot::vm::name::Name;
use offshoot::vm::{Backend, Guest, Machine, OnSvm, OnVmx};
use offshoot::vmx::cpu::CurrentVmcs;
use offshoot::vmx::guest_state::BLOCKING_BY_NMI;
use offshoot::vmx::{Field32, FieldNatural, Vmcs};

/// What is done to every guest before it runs.
#[derive(Clone, Copy)]
pub enum GuestTest {
    /// Every VM entry fails on the guest's state.
    Entry,
    /// It begins as if in the handler of an NMI.
    Nmi,
}

impl GuestTest {
    pub const NAMES: &str = "entry, block-nmis";

    pub fn of(which: &str) -> Option<Self> {
        match which {
            "entry" => Some(Self::Entry),
            "block-nmis" => Some(Self::Nmi),
            _ => None,
        }
    }
}

/// A way to run guests, as the kernel knows it.
pub trait OnKernel: Backend {
    /// Does to a guest what the test is.
    fn apply(
        test: GuestTest,
        guest: &mut Guest<'_, DirectMap, Self>,
        machine: &mut Machine<'_, DirectMap, Self>,
        name: Name,
    );
}

impl OnKernel for OnVmx {
    fn apply(
        test: GuestTest,
        guest: &mut Guest<'_, DirectMap>,
        machine: &mut Machine<'_, DirectMap>,
        name: Name,
    ) {
        let change = |vmcs: &mut CurrentVmcs| match test {
            // Bit 1 of RFLAGS is always 1.
            GuestTest::Entry => vmcs.write_natural(FieldNatural::GuestRflags, 0),
            GuestTest::Nmi => vmcs.write32(Field32::GuestInterruptibilityState, BLOCKING_BY_NMI),
        };
        // SAFETY: both are guest state.
        if let Err(error) = unsafe { guest.with_vmcs(machine, change) } {
            log::error!("guest {name}: {error}");
        }
    }
}

impl OnKernel for OnSvm {
    fn apply(
        _: GuestTest,
        _: &mut Guest<'_, DirectMap, Self>,
        _: &mut Machine<'_, DirectMap, Self>,
        name: Name,
    ) {
        log::error!("guest {name}: this self-test is of VMX; selftest=svm tries SVM");
    }
}
