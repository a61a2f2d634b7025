//! How a guest translates addresses at one moment: the tables of its mode, and what its processor demands of them.

use super::super::cpuid::Features;
use crate::addr::Gpa;
use crate::virt::control_registers::ControlRegisters;

/// How the guest translates addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub(super) paging: Paging,
    /// The bits that no present entry of 64 bits may have: of addresses beyond the guest's width, and no-execute while
    /// EFER.NXE is 0 (SDM "Reserved-Bit Checking" and the formats of entries, 5.4, 5.5).
    pub(super) reserved: u64,
    /// There are leaves of 1 GiB.
    pub(super) gib_pages: bool,
}

/// The tables of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    /// None.
    Off,
    /// 4-level paging, with the root table here.
    FourLevel(Gpa),
    /// PAE paging, with the entries that the CPU has loaded of the top table.
    Pae([u64; 4]),
    /// 32-bit paging.
    ThirtyTwoBit {
        /// The page directory.
        root: Gpa,
        /// With CR4.PSE, the bits that a leaf of 4 MiB may not have.
        large: Option<u64>,
    },
}

/// No execute, in an entry of 64 bits.
pub(super) const NO_EXECUTE: u64 = 1 << 63;
/// The bits of an address in an entry of 64 bits.
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In an entry of 64 bits with PAE paging: beside the address, only no-execute may stand there.
const HIGH: u64 = 0x7ff << 52;

impl Translation {
    /// Addresses are physical ones.
    pub const OFF: Self = Self {
        paging: Paging::Off,
        reserved: 0,
        gib_pages: false,
    };

    /// 4-level paging with the root table at `root`, 40 bits of addresses, no-execute, no leaves of 1 GiB.
    #[cfg(test)]
    pub(in super::super) const fn four_level(root: Gpa) -> Self {
        Self {
            paging: Paging::FourLevel(root),
            reserved: 0x000f_ff00_0000_0000,
            gib_pages: false,
        }
    }

    /// Of a guest with these registers. `top` returns the entries that the CPU holds with PAE paging.
    ///
    /// # Errors
    /// Of `top`.
    #[inline(always)]
    pub fn new<E>(
        registers: &ControlRegisters,
        features: &Features,
        top: impl FnOnce() -> Result<[u64; 4], E>,
    ) -> Result<Self, E> {
        const PAGING: u64 = 1 << 31;
        const NXE: u64 = 1 << 11;
        const LONG_MODE_ACTIVE: u64 = 1 << 10;
        let ControlRegisters { cr0, cr3, efer, .. } = *registers;
        if cr0 & PAGING == 0 {
            return Ok(Self::OFF);
        }
        let no_execute = if efer & NXE == 0 { NO_EXECUTE } else { 0 };
        let four_level = Self {
            // PCIDs and the bits above the address do not count (SDM "Linear-Address Masking", 4.4, has two there).
            paging: Paging::FourLevel(Gpa::new(cr3 & ADDRESS)),
            reserved: features.beyond_physical | no_execute,
            gib_pages: features.gib_pages,
        };
        if efer & LONG_MODE_ACTIVE != 0 {
            return Ok(four_level);
        }
        four_level.legacy(registers, features, top)
    }

    #[cold]
    fn legacy<E>(
        self,
        registers: &ControlRegisters,
        features: &Features,
        top: impl FnOnce() -> Result<[u64; 4], E>,
    ) -> Result<Self, E> {
        const PSE: u64 = 1 << 4;
        const PAE: u64 = 1 << 5;
        if registers.cr4 & PAE != 0 {
            return Ok(Self {
                paging: Paging::Pae(top()?),
                reserved: self.reserved | HIGH,
                ..self
            });
        }
        let large = registers.cr4 & PSE != 0;
        Ok(Self {
            paging: Paging::ThirtyTwoBit {
                root: Gpa::new(registers.cr3 & 0xffff_f000),
                large: large.then(|| reserved_in_4_mib(features)),
            },
            reserved: 0,
            gib_pages: false,
        })
    }

    /// Whether the error code of a page fault tells fetches from reads, beside where SMEP does (SDM "Page-Fault
    /// Exceptions", 5.7).
    pub(super) const fn tells_fetches(&self) -> bool {
        match self.paging {
            Paging::FourLevel(_) | Paging::Pae(_) => self.reserved & NO_EXECUTE == 0,
            Paging::Off | Paging::ThirtyTwoBit { .. } => false,
        }
    }
}

/// The bits that a leaf of 4 MiB may not have: those from bit 13 to bit 21 that hold no bit of an address above the 32nd (SDM
/// table "Format of a 32-Bit Page-Directory Entry that Maps a 4-MByte Page", 5.3).
fn reserved_in_4_mib(features: &Features) -> u64 {
    let width = if features.wide_4_mib_pages {
        features.physical_bits.clamp(32, 40)
    } else {
        32
    };
    let first = 13 + (width - 32);
    (1 << 22) - (1 << first)
}
