//! Segment registers with their hidden parts, as the VMCS holds them.

use bit_field::BitField;

use super::fields::{Field16, Field32, FieldNatural};
use super::vmcs::{Vmcs, VmcsError};

/// The access rights of a segment (SDM "Guest Register State", table 26-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// A register that was loaded with a null selector.
    pub const UNUSABLE: Self = Self(1 << 16);
    /// 64-bit code of privilege 0.
    pub const CODE64: Self = Self(0xa09b);
    /// 32-bit code of privilege 0, counted in 4 KiB.
    pub const CODE32: Self = Self(0xc09b);
    /// Writable data of privilege 0, counted in 4 KiB.
    pub const DATA: Self = Self(0xc093);
    /// 16-bit code as after a reset.
    pub const REAL_CODE: Self = Self(0x009b);
    /// 16-bit data as after a reset.
    pub const REAL_DATA: Self = Self(0x0093);
    /// A busy 32-bit or 64-bit TSS.
    pub const BUSY_TSS: Self = Self(0x008b);
    /// A busy 16-bit TSS.
    pub const BUSY_TSS16: Self = Self(0x0083);
    /// A local descriptor table.
    pub const LDT: Self = Self(0x0082);

    /// The segment type: bits 3:0.
    pub fn segment_type(self) -> u8 {
        self.0.get_bits(0..4) as u8
    }
    /// S: a code or data segment.
    pub fn is_code_or_data(self) -> bool {
        self.0.get_bit(4)
    }
    /// DPL.
    pub fn dpl(self) -> u8 {
        self.0.get_bits(5..7) as u8
    }
    /// P.
    pub fn present(self) -> bool {
        self.0.get_bit(7)
    }
    /// L, of a code segment.
    pub const fn long(self) -> bool {
        self.0 >> 13 & 1 != 0
    }
    /// D/B.
    pub const fn default_big(self) -> bool {
        self.0 >> 14 & 1 != 0
    }
    /// G.
    pub fn granularity(self) -> bool {
        self.0.get_bit(15)
    }
    /// Whether the register cannot be used.
    pub fn unusable(self) -> bool {
        self.0.get_bit(16)
    }
    /// Bits that must be 0.
    pub const fn reserved(self) -> u32 {
        self.0 & 0xfffe_0f00
    }
}

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base.
    pub base: u64,
    /// The limit, in bytes.
    pub limit: u32,
    /// The access rights.
    pub access: AccessRights,
}

impl Segment {
    /// A register loaded with a null selector.
    pub const UNUSABLE: Self = Self {
        selector: 0,
        base: 0,
        limit: 0,
        access: AccessRights::UNUSABLE,
    };

    /// A segment of base 0 and 4 GiB.
    pub const fn flat(selector: u16, access: AccessRights) -> Self {
        Self {
            selector,
            base: 0,
            limit: 0xffff_ffff,
            access,
        }
    }
    /// As the segment counts in real mode: code may be written too, where it may be read (SDM "Switching Back to Real-Address
    /// Mode", 11.9.2: what protected mode has left in the register stays, limit and type included).
    pub const fn in_real_mode(mut self) -> Self {
        const READABLE_CODE: u32 = 0b1010;
        if self.access.0 & READABLE_CODE == READABLE_CODE {
            // Data, writable, with limits that go up.
            self.access.0 &= !0b1100;
        }
        self
    }
    /// As the segment counts for CLFLUSH and its kin, which may be used on code that cannot be read (SDM "CLFLUSH—Flush Cache
    /// Line").
    pub const fn for_flush(mut self) -> Self {
        const CODE: u32 = 0b1000;
        const READABLE: u32 = 0b0010;
        if self.access.0 & CODE != 0 {
            self.access.0 |= READABLE;
        }
        self
    }
    /// A segment of 64 KiB as real mode has them, at 16 times the selector.
    pub const fn real_mode(selector: u16, access: AccessRights) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            access,
        }
    }
}

/// The eight segment registers of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentRegister {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];

    /// From the VM-exit instruction-information field of OUTS; of INS it says nothing (SDM "Information for VM Exits Due to
    /// Instruction Execution", 29.2.5).
    pub const fn from_instruction_information(information: u32) -> Self {
        match information >> 15 & 7 {
            0 => Self::Es,
            1 => Self::Cs,
            2 => Self::Ss,
            4 => Self::Fs,
            5 => Self::Gs,
            _ => Self::Ds,
        }
    }

    /// The field of its selector.
    pub const fn selector_field(self) -> Field16 {
        match self {
            Self::Es => Field16::GuestEsSelector,
            Self::Cs => Field16::GuestCsSelector,
            Self::Ss => Field16::GuestSsSelector,
            Self::Ds => Field16::GuestDsSelector,
            Self::Fs => Field16::GuestFsSelector,
            Self::Gs => Field16::GuestGsSelector,
            Self::Ldtr => Field16::GuestLdtrSelector,
            Self::Tr => Field16::GuestTrSelector,
        }
    }
    /// The field of its base.
    pub const fn base_field(self) -> FieldNatural {
        match self {
            Self::Es => FieldNatural::GuestEsBase,
            Self::Cs => FieldNatural::GuestCsBase,
            Self::Ss => FieldNatural::GuestSsBase,
            Self::Ds => FieldNatural::GuestDsBase,
            Self::Fs => FieldNatural::GuestFsBase,
            Self::Gs => FieldNatural::GuestGsBase,
            Self::Ldtr => FieldNatural::GuestLdtrBase,
            Self::Tr => FieldNatural::GuestTrBase,
        }
    }
    /// The field of its limit.
    pub const fn limit_field(self) -> Field32 {
        match self {
            Self::Es => Field32::GuestEsLimit,
            Self::Cs => Field32::GuestCsLimit,
            Self::Ss => Field32::GuestSsLimit,
            Self::Ds => Field32::GuestDsLimit,
            Self::Fs => Field32::GuestFsLimit,
            Self::Gs => Field32::GuestGsLimit,
            Self::Ldtr => Field32::GuestLdtrLimit,
            Self::Tr => Field32::GuestTrLimit,
        }
    }
    /// The field of its access rights.
    pub const fn access_field(self) -> Field32 {
        match self {
            Self::Es => Field32::GuestEsAccessRights,
            Self::Cs => Field32::GuestCsAccessRights,
            Self::Ss => Field32::GuestSsAccessRights,
            Self::Ds => Field32::GuestDsAccessRights,
            Self::Fs => Field32::GuestFsAccessRights,
            Self::Gs => Field32::GuestGsAccessRights,
            Self::Ldtr => Field32::GuestLdtrAccessRights,
            Self::Tr => Field32::GuestTrAccessRights,
        }
    }

    /// Writes the register into the VMCS.
    pub fn write(self, segment: &Segment, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        vmcs.write16(self.selector_field(), segment.selector)?;
        vmcs.write_natural(self.base_field(), segment.base)?;
        vmcs.write32(self.limit_field(), segment.limit)?;
        vmcs.write32(self.access_field(), segment.access.0)
    }
    /// Reads the register from the VMCS.
    pub fn read(self, vmcs: &impl Vmcs) -> Result<Segment, VmcsError> {
        Ok(Segment {
            selector: vmcs.read16(self.selector_field())?,
            base: vmcs.read_natural(self.base_field())?,
            limit: vmcs.read32(self.limit_field())?,
            access: AccessRights(vmcs.read32(self.access_field())?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeVmcs;
    use super::*;

    #[test]
    fn the_segment_of_outs_is_decoded() {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        for (number, register) in [Es, Cs, Ss, Ds, Fs, Gs, Ds, Ds].into_iter().enumerate() {
            let information = (number as u32) << 15 | 0x100;
            let found = SegmentRegister::from_instruction_information(information);
            assert_eq!(found, register);
        }
    }

    #[test]
    fn every_register_has_fields_of_its_own() {
        let mut vmcs = FakeVmcs::new();
        let segment = |n: u16| Segment {
            selector: n,
            base: u64::from(n) << 32 | 1,
            limit: u32::from(n) << 12,
            access: AccessRights(u32::from(n) << 1),
        };
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            register.write(&segment(n), &mut vmcs).unwrap();
        }
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            assert_eq!(register.read(&vmcs), Ok(segment(n)), "{register:?}");
        }
        assert_eq!(vmcs.written().count(), 32);
    }

    #[test]
    fn in_real_mode_code_is_writable_where_it_is_readable() {
        // Readable code, conforming too; execute-only code; data, read-only and expand-down.
        for (left, counts) in [
            (0x9b, 0x93),
            (0x409f, 0x4093),
            (0x99, 0x99),
            (0x93, 0x93),
            (0x91, 0x91),
            (0x97, 0x97),
            (0x1_0000, 0x1_0000),
        ] {
            let segment = Segment {
                limit: 0xffff_ffff,
                ..Segment::real_mode(0xf000, AccessRights(left))
            };
            let counting = segment.in_real_mode();
            assert_eq!(counting.access, AccessRights(counts), "{left:#x}");
            assert_eq!((counting.base, counting.limit), (0xf_0000, 0xffff_ffff));
        }
    }

    #[test]
    fn a_flush_reads_code_and_no_more() {
        for (access, counts) in [(0x99, 0x9b), (0x9b, 0x9b), (0x91, 0x91), (0x97, 0x97)] {
            let segment = Segment::real_mode(0, AccessRights(access));
            assert_eq!(segment.for_flush().access, AccessRights(counts));
        }
    }

    #[test]
    fn access_rights_have_their_bits_where_the_manual_has_them() {
        let code = AccessRights::CODE64;
        assert_eq!(code.segment_type(), 11);
        assert!(code.is_code_or_data() && code.present() && code.long() && code.granularity());
        assert!(!code.default_big() && !code.unusable());
        assert_eq!(AccessRights(0x60).dpl(), 3);
        let tss = AccessRights::BUSY_TSS;
        assert!(!tss.is_code_or_data() && tss.segment_type() == 11);
        assert_eq!(AccessRights(0xffff_ffff).reserved(), 0xfffe_0f00);
        for access in [
            AccessRights::UNUSABLE,
            AccessRights::CODE32,
            AccessRights::DATA,
            AccessRights::LDT,
        ] {
            assert_eq!(access.reserved(), 0);
        }
    }
}
