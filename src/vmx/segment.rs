//! Segment registers with their hidden parts, as the VMCS holds them.

use bit_field::BitField;

use super::fields::{Field, Field16, Field32, FieldNatural};
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
    /// A busy 32-bit or 64-bit TSS.
    pub const BUSY_TSS: Self = Self(0x008b);

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

    /// The fields of its selector, base, limit and access rights.
    pub(super) const fn fields(self) -> [Field; 4] {
        FIELDS[self as usize]
    }

    /// Writes the register into the VMCS.
    ///
    /// # Errors
    /// The first field that cannot be written.
    pub fn write(self, segment: &Segment, vmcs: &mut impl Vmcs) -> Result<(), VmcsError> {
        let Segment {
            selector,
            base,
            limit,
            access,
        } = *segment;
        let values = [selector.into(), base, limit.into(), access.0.into()];
        vmcs.write_four::<0, 4>(self.fields(), &values)
    }
    /// Reads the register from the VMCS.
    ///
    /// # Errors
    /// The first field that cannot be read.
    pub fn read(self, vmcs: &impl Vmcs) -> Result<Segment, VmcsError> {
        let [selector, base, limit, access] = vmcs.read_four(self.fields())?;
        Ok(Segment {
            selector: selector as u16,
            base,
            limit: limit as u32,
            access: AccessRights(access as u32),
        })
    }
}

/// The fields of every register. The manual numbers them in the order of [`SegmentRegister::ALL`].
const FIELDS: [[Field; 4]; 8] = {
    let of_es = [
        Field::Bits16(Field16::GuestEsSelector),
        Field::Natural(FieldNatural::GuestEsBase),
        Field::Bits32(Field32::GuestEsLimit),
        Field::Bits32(Field32::GuestEsAccessRights),
    ];
    let mut fields = [of_es; 8];
    let mut at = 0;
    while at < 4 * 8 {
        let (register, part) = (at / 4, at % 4);
        let encoding = of_es[part].encoding() + 2 * register as u32;
        fields[register][part] = Field::from_encoding(encoding).unwrap();
        at += 1;
    }
    fields
};

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
        for register in SegmentRegister::ALL {
            let name = format!("guest {register:?} ").to_uppercase();
            for (field, part) in
                register
                    .fields()
                    .iter()
                    .zip(["selector", "base", "limit", "access rights"])
            {
                assert_eq!(
                    field.name().to_uppercase(),
                    format!("{name}{part}").to_uppercase()
                );
            }
        }
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
                base: 0xf_0000,
                ..Segment::flat(0xf000, AccessRights(left))
            };
            let counting = segment.in_real_mode();
            assert_eq!(counting.access, AccessRights(counts), "{left:#x}");
            assert_eq!((counting.base, counting.limit), (0xf_0000, 0xffff_ffff));
        }
    }

    #[test]
    fn a_flush_reads_code_and_no_more() {
        for (access, counts) in [(0x99, 0x9b), (0x9b, 0x9b), (0x91, 0x91), (0x97, 0x97)] {
            let segment = Segment::flat(0, AccessRights(access));
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
    }
}
