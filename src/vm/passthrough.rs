//! Which addresses of the machine a guest may be given as a device: none that anybody has a use for as memory.

use core::fmt;

use crate::addr::{AddrRange, Hpa};

/// Whose addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Memory, whether it is used or not.
    Memory,
    /// The hypervisor's code and data.
    Hypervisor,
    /// A boot module.
    Module,
    /// What the boot loader left for the hypervisor.
    BootLoader,
    /// The registers of the local APIC.
    LocalApic,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory of the host",
            Self::Hypervisor => "the hypervisor",
            Self::Module => "a boot module",
            Self::BootLoader => "what the boot loader left",
            Self::LocalApic => "the local APIC, which the hypervisor needs",
        })
    }
}

/// Why a guest is not given a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassThroughError {
    /// The addresses that were asked for.
    pub device: AddrRange<Hpa>,
    /// What is there, at least in part.
    pub at: AddrRange<Hpa>,
    /// Whose that is.
    pub owner: Owner,
}

impl fmt::Display for PassThroughError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, at, owner } = self;
        write!(f, "passthrough: {device} is no device: {at} is {owner}")
    }
}

impl core::error::Error for PassThroughError {}

/// Whether all of `device` is nobody's.
///
/// # Errors
/// Whose a part of it is.
pub fn check(
    device: AddrRange<Hpa>,
    owned: impl IntoIterator<Item = (AddrRange<Hpa>, Owner)>,
) -> Result<(), PassThroughError> {
    let mut owned = owned.into_iter();
    match owned.find(|(range, _)| range.overlaps(device)) {
        Some((at, owner)) => Err(PassThroughError { device, at, owner }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> AddrRange<Hpa> {
        AddrRange::new(Hpa::new(start), len).unwrap()
    }

    #[test]
    fn nothing_of_the_hosts_is_a_device() {
        let owned = [
            (range(0x10_0000, 0x8_0000), Owner::Hypervisor),
            (range(0x20_0000, 0x123), Owner::Module),
            (range(0x10_0000, 0x1ff0_0000), Owner::Memory),
            (range(0xfee0_0000, 0x1000), Owner::LocalApic),
        ];
        let check = |start, len| check(range(start, len), owned).map_err(|error| error.owner);
        for (start, len) in [
            (0xa_0000, 0x2_0000),
            (0xfed0_0000, 0x1000),
            (0x2000_0000, 0x1000),
        ] {
            assert_eq!(check(start, len), Ok(()));
        }
        for (start, len, owner) in [
            (0xf_f000, 0x2000, Owner::Hypervisor),
            (0x17_f000, 0x1000, Owner::Hypervisor),
            (0x20_0000, 0x1000, Owner::Module),
            (0x20_1000, 0x1000, Owner::Memory),
            (0x1fff_f000, 0x2000, Owner::Memory),
            (0xfed0_0000, 0x20_0000, Owner::LocalApic),
            (0xfee0_0000, 0x1000, Owner::LocalApic),
        ] {
            assert_eq!(check(start, len), Err(owner), "{start:#x}");
        }
        let error = PassThroughError {
            device: range(0xfee0_0000, 0x1000),
            at: range(0xfee0_0000, 0x1000),
            owner: Owner::LocalApic,
        };
        assert_eq!(
            error.to_string(),
            "passthrough: [0xfee00000, 0xfee00fff] is no device: [0xfee00000, 0xfee00fff] is the local APIC, which the \
             hypervisor needs"
        );
    }
}
