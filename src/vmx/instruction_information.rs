//! The VM-exit instruction-information field of the exits whose instructions we carry out (SDM "Information for VM
//! Exits Due to Instruction Execution", 29.2.5).

use bit_field::BitField;

use super::segment::SegmentRegister;

/// How wide the addresses of an instruction are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressSize {
    Bits16,
    Bits32,
    Bits64,
}

impl AddressSize {
    /// The bits of RCX, RSI and RDI that count; the others are left as they are, or cleared with 32 bits.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
    /// `register` after its counting bits have become those of `value`.
    pub const fn merge(self, register: u64, value: u64) -> u64 {
        match self {
            Self::Bits16 => register & !0xffff | value & 0xffff,
            Self::Bits32 => value & 0xffff_ffff,
            Self::Bits64 => value,
        }
    }
}

/// INS or OUTS. Valid where [`reports_ins_outs`](super::capability_msrs::Basic::reports_ins_outs) is; the
/// guest-linear address field says where the memory operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// The width of RCX, RSI and RDI.
    pub address_size: AddressSize,
    /// The segment of the memory operand: always ES of INS.
    pub segment: SegmentRegister,
}

impl StringIo {
    /// From the field, or `None` where it says what the manual does not define. `input` is whether it is INS.
    pub fn decode(information: u32, input: bool) -> Option<Self> {
        let address_size = match information.get_bits(7..10) {
            0 => AddressSize::Bits16,
            1 => AddressSize::Bits32,
            2 => AddressSize::Bits64,
            _ => return None,
        };
        let segment = match information.get_bits(15..18) {
            // Not defined of INS.
            _ if input => SegmentRegister::Es,
            0 => SegmentRegister::Es,
            1 => SegmentRegister::Cs,
            2 => SegmentRegister::Ss,
            3 => SegmentRegister::Ds,
            4 => SegmentRegister::Fs,
            5 => SegmentRegister::Gs,
            _ => return None,
        };
        Some(Self {
            address_size,
            segment,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_io() {
        let outs = |information| StringIo::decode(information, false);
        let fs_32 = outs(4 << 15 | 1 << 7).unwrap();
        assert_eq!(fs_32.segment, SegmentRegister::Fs);
        assert_eq!(fs_32.address_size, AddressSize::Bits32);
        assert_eq!(outs(3 << 15).unwrap().address_size, AddressSize::Bits16);
        assert_eq!(outs(3 << 15 | 2 << 7).unwrap().segment, SegmentRegister::Ds);
        assert_eq!(outs(3 << 7), None);
        assert_eq!(outs(6 << 15), None);
        let ins = StringIo::decode(7 << 15 | 2 << 7, true).unwrap();
        assert_eq!(ins.segment, SegmentRegister::Es);
        // The bits around the two fields are not defined.
        assert_eq!(outs(!(7 << 15 | 7 << 7) | 3 << 15), outs(3 << 15));
    }

    #[test]
    fn a_register_is_changed_as_the_address_size_says() {
        let before = 0x1111_2222_3333_4444;
        let after = |size: AddressSize| size.merge(before, u64::MAX - 1);
        assert_eq!(after(AddressSize::Bits16), 0x1111_2222_3333_fffe);
        assert_eq!(after(AddressSize::Bits32), 0xffff_fffe);
        assert_eq!(after(AddressSize::Bits64), u64::MAX - 1);
        assert_eq!(AddressSize::Bits16.mask(), 0xffff);
    }
}
