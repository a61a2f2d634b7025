//! What `selftest=` does to guests: faults made on purpose, to see how they are reported.

use crate::boot::layout::DirectMap;
use offshoot::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE};
use offshoot::ept::{DeviceRange, Region, RegionKind};
use offshoot::vm::cmdline::Name;
use offshoot::vm::{Guest, Machine};
use offshoot::vmx::cpu::CurrentVmcs;
use offshoot::vmx::register_bits::BLOCKING_BY_NMI;
use offshoot::vmx::{Field32, FieldNatural, Vmcs};

/// What is done to every guest before it runs.
#[derive(Clone, Copy)]
pub enum GuestTest {
    /// Every VM entry fails on the guest's state.
    Entry,
    /// It begins as if in the handler of an NMI.
    Nmi,
    /// It is given a page of a device, with which it cannot be a template.
    Device,
}

/// The page of a device: the screen in text mode.
const SCREEN: u64 = 0xb_8000;
/// Where guests have it: the last page that guest-physical addresses of 36 bits have.
const GUEST_SCREEN: u64 = (1 << 36) - PAGE_SIZE;

impl GuestTest {
    pub const NAMES: &str = "entry, block-nmis, device";

    pub fn of(which: &str) -> Option<Self> {
        match which {
            "entry" => Some(Self::Entry),
            "block-nmis" => Some(Self::Nmi),
            "device" => Some(Self::Device),
            _ => None,
        }
    }

    pub fn apply(
        self,
        guest: &mut Guest<'_, DirectMap>,
        machine: &mut Machine<'_, DirectMap>,
        name: Name,
    ) {
        let change = |vmcs: &mut CurrentVmcs| match self {
            // Bit 1 of RFLAGS is always 1.
            Self::Entry => vmcs.write_natural(FieldNatural::GuestRflags, 0),
            Self::Nmi => vmcs.write32(Field32::GuestInterruptibilityState, BLOCKING_BY_NMI),
            Self::Device => Ok(()),
        };
        // SAFETY: both are guest state.
        if let Err(error) = unsafe { guest.with_vmcs(machine, change) } {
            log::error!("guest {name}: {error}");
        }
        let host = AddrRange::new(Hpa::new(SCREEN), PAGE_SIZE);
        let range = AddrRange::new(Gpa::new(GUEST_SCREEN), PAGE_SIZE);
        if let (Self::Device, Some(host), Some(range)) = (self, host, range) {
            // SAFETY: what is written to the screen goes nowhere else.
            let device = unsafe { DeviceRange::new(host) };
            let region = Region::new(range, RegionKind::PassThrough(device));
            if let Err(error) = guest.map(region) {
                log::error!("guest {name}: {error}");
            }
        }
    }
}
