//! Which bits of CR0 and CR4 are the guest's, and what it reads of the others.

use super::capability_msrs::FixedBits;
use super::fields::FieldNatural;
use super::register_bits::{CR0_CD, CR0_NE, CR0_NW, CR4_VMXE};
use super::vmcs::{Vmcs, VmcsError};

/// The guest/host masks and read shadows (SDM "Guest/Host Masks and Read Shadows for CR0 and CR4", 26.6.6).
///
/// A bit that is 1 in a mask is the host's: the guest reads it from the shadow, and an attempt to change it exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrShadows {
    /// The host's bits of CR0.
    pub cr0_mask: u64,
    /// What the guest reads of them.
    pub cr0_shadow: u64,
    /// The host's bits of CR4.
    pub cr4_mask: u64,
    /// What the guest reads of them.
    pub cr4_shadow: u64,
}

impl CrShadows {
    /// For a guest that is to read `cr0_seen` and `cr4_seen`, and may change `cr4_allowed` without an exit.
    ///
    /// The host's are all bits that VMX operation fixes, the caching bits (which an entry would not load), and every
    /// bit of CR4 that is not allowed. `cr0` is to be that of an unrestricted guest where the guest is one.
    pub const fn new(
        cr0: FixedBits,
        cr4: FixedBits,
        cr0_seen: u64,
        cr4_seen: u64,
        cr4_allowed: u64,
    ) -> Self {
        Self {
            cr0_mask: cr0.fixed0 | !cr0.fixed1 | CR0_CD | CR0_NW | CR0_NE,
            cr0_shadow: cr0_seen,
            cr4_mask: cr4.fixed0 | !cr4.fixed1 | CR4_VMXE | !cr4_allowed,
            cr4_shadow: cr4_seen & !CR4_VMXE,
        }
    }
    /// What the guest reads as CR0, `real` being what is there.
    pub const fn seen_cr0(&self, real: u64) -> u64 {
        real & !self.cr0_mask | self.cr0_shadow & self.cr0_mask
    }
    /// What the guest reads as CR4, `real` being what is there.
    pub const fn seen_cr4(&self, real: u64) -> u64 {
        real & !self.cr4_mask | self.cr4_shadow & self.cr4_mask
    }
    /// Writes masks and shadows into the VMCS.
    pub fn write(&self, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        vmcs.write_natural(FieldNatural::Cr0GuestHostMask, self.cr0_mask)?;
        vmcs.write_natural(FieldNatural::Cr0ReadShadow, self.cr0_shadow)?;
        vmcs.write_natural(FieldNatural::Cr4GuestHostMask, self.cr4_mask)?;
        vmcs.write_natural(FieldNatural::Cr4ReadShadow, self.cr4_shadow)
    }
    /// Reads masks and shadows from the VMCS.
    pub fn read(vmcs: &impl Vmcs) -> Result<Self, VmcsError> {
        Ok(Self {
            cr0_mask: vmcs.read_natural(FieldNatural::Cr0GuestHostMask)?,
            cr0_shadow: vmcs.read_natural(FieldNatural::Cr0ReadShadow)?,
            cr4_mask: vmcs.read_natural(FieldNatural::Cr4GuestHostMask)?,
            cr4_shadow: vmcs.read_natural(FieldNatural::Cr4ReadShadow)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::capabilities::Capabilities;
    use super::super::fake::{FakeVmcs, haswell};
    use super::super::register_bits::{CR0_PG, CR4_PAE};
    use super::*;

    fn shadows(cr4_allowed: u64) -> CrShadows {
        let c = Capabilities::discover(&haswell()).unwrap();
        CrShadows::new(c.cr0, c.cr4, 0x8001_0031, u64::MAX, cr4_allowed)
    }

    #[test]
    fn the_guest_never_sees_vmxe_nor_can_it_change_it() {
        let shadows = shadows(u64::MAX);
        assert_eq!(shadows.seen_cr4(CR4_VMXE | CR4_PAE), CR4_PAE | !0x17_27ff);
        assert_eq!(shadows.cr4_mask & CR4_VMXE, CR4_VMXE);
    }

    #[test]
    fn fixed_and_caching_bits_are_the_hosts() {
        let shadows = shadows(0);
        for bit in [CR0_PG, CR0_NE, CR0_CD, CR0_NW, 1 << 32] {
            assert_eq!(shadows.cr0_mask & bit, bit);
        }
        // TS, MP, EM, WP and AM are the guest's own.
        assert_eq!(shadows.cr0_mask & 0x5_000e, 0);
        assert_eq!(shadows.cr4_mask, u64::MAX);
        assert_eq!(shadows.seen_cr0(0x8000_0039), 0x8000_0039);
        let c = Capabilities::discover(&haswell()).unwrap();
        let unrestricted = c.cr0.for_unrestricted_guest();
        let shadows = CrShadows::new(unrestricted, c.cr4, 0x10, 0, 0);
        assert_eq!(shadows.cr0_mask & CR0_PG, 0);
        // NE must be 1 in CR0, and the guest that has it 0 reads 0.
        assert_eq!(shadows.seen_cr0(0x30), 0x10);
    }

    #[test]
    fn masks_and_shadows_come_back() {
        let mut vmcs = FakeVmcs::new();
        let shadows = shadows(CR4_PAE);
        shadows.write(&mut vmcs).unwrap();
        assert_eq!(CrShadows::read(&vmcs), Ok(shadows));
    }
}
