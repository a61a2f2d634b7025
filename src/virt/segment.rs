//! Segment registers with their hidden parts.

use bit_field::BitField;

/// The access rights of a segment: bits 55:40 of its descriptor, and bit 16 of a register that cannot be used. That is how a
/// VMCS has them (SDM "Guest Register State", table 26-2).
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
