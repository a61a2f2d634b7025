//! What the exit qualification says, by exit reason (SDM "Exit Qualification", 29.2.1).

use bit_field::BitField;

use crate::virt::Gpr;
use crate::virt::control_registers::{ControlRegister, CrAccess};
use crate::virt::io::{AddressSize, IoAccess, IoSize};

/// The control-register access that an exit qualification tells, where it has a meaning.
#[inline]
pub fn cr_access(qualification: u64) -> Option<CrAccess> {
    let register = match qualification.get_bits(0..4) {
        0 => Some(ControlRegister::Cr0),
        3 => Some(ControlRegister::Cr3),
        4 => Some(ControlRegister::Cr4),
        8 => Some(ControlRegister::Cr8),
        _ => None,
    };
    let gpr = Gpr::from_low_bits(qualification >> 8);
    Some(match qualification.get_bits(4..6) {
        0 => CrAccess::MovTo {
            register: register?,
            source: gpr,
        },
        1 => CrAccess::MovFrom {
            register: register?,
            target: gpr,
        },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw {
            source: qualification.get_bits(16..32) as u16,
            memory: qualification.get_bit(6),
        },
    })
}

/// The I/O instruction that an exit qualification tells, if it is IN or OUT of a byte.
#[inline(always)]
pub fn byte_access(qualification: u64) -> Option<IoAccess> {
    /// The size, 0 of a byte, and the bit of string instructions.
    const OTHER: u64 = 0b1_0111;
    (qualification & OTHER == 0).then(|| access_of(qualification, IoSize::Byte))
}

/// The I/O instruction that an exit qualification tells, where it has a meaning.
#[inline]
pub fn io_access(qualification: u64) -> Option<IoAccess> {
    let size = match qualification.get_bits(0..3) {
        0 => IoSize::Byte,
        1 => IoSize::Word,
        3 => IoSize::Dword,
        _ => return None,
    };
    Some(access_of(qualification, size))
}

#[inline(always)]
fn access_of(qualification: u64, size: IoSize) -> IoAccess {
    IoAccess {
        port: qualification.get_bits(16..32) as u16,
        size,
        input: qualification.get_bit(3),
        string: qualification.get_bit(4),
        rep: qualification.get_bit(5),
        immediate: qualification.get_bit(6),
    }
}

/// The width of the addresses, from the VM-exit instruction-information field of INS and OUTS (SDM "Information for VM Exits
/// Due to Instruction Execution", 29.2.5). There are no more than these three.
pub const fn address_size(information: u32) -> AddressSize {
    match information >> 7 & 7 {
        0 => AddressSize::Bits16,
        1 => AddressSize::Bits32,
        _ => AddressSize::Bits64,
    }
}

/// What the CPU says where an instruction took too long (SDM "Exit Qualification for Instruction Timeouts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionTimeout {
    /// The state in the VMCS is not that of the guest.
    pub context_is_lost: bool,
    /// The instruction was an IRET that had ended blocking by NMI.
    pub nmi_unblocked_by_iret: bool,
}

impl InstructionTimeout {
    /// Decodes the exit qualification.
    pub fn decode(qualification: u64) -> Self {
        Self {
            context_is_lost: qualification & 1 != 0,
            nmi_unblocked_by_iret: qualification & 1 << 12 != 0,
        }
    }
}

/// What a debug exception that exits would have put into DR6 (SDM "Exit Qualification for Debug Exceptions", table
/// 29-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugException(u64);

impl DebugException {
    const DEFINED: u64 = 0xf | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 16;
    /// Bits of DR6 with the opposite sense: 0 says that it happened.
    const ACTIVE_LOW: u64 = 1 << 11 | 1 << 16;
    /// DR6 where nothing has happened.
    const DR6_INITIAL: u64 = 0xffff_0ff0;

    /// From an exit qualification.
    pub const fn decode(qualification: u64) -> Self {
        Self(qualification & Self::DEFINED)
    }
    /// Whether a debug register was accessed while DR7.GD was set.
    pub fn debug_register_access(self) -> bool {
        self.0.get_bit(13)
    }
    /// DR6 as the guest is to find it, `dr6` being what it was: B0 to B3 are replaced, the others are sticky.
    pub const fn to_dr6(self, dr6: u64) -> u64 {
        let high = self.0 & !Self::ACTIVE_LOW;
        let low = self.0 & Self::ACTIVE_LOW;
        ((dr6 | Self::DR6_INITIAL & !Self::ACTIVE_LOW) & !0xf | high) & !low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_register_accesses() {
        assert_eq!(
            cr_access(0x0f04),
            Some(CrAccess::MovTo {
                register: ControlRegister::Cr4,
                source: Gpr::R15
            })
        );
        assert_eq!(
            cr_access(0x0318),
            Some(CrAccess::MovFrom {
                register: ControlRegister::Cr8,
                target: Gpr::Rbx
            })
        );
        assert_eq!(
            cr_access(0x0403),
            Some(CrAccess::MovTo {
                register: ControlRegister::Cr3,
                source: Gpr::Rsp
            })
        );
        assert_eq!(cr_access(0x20), Some(CrAccess::Clts));
        assert_eq!(
            cr_access(0xbeef_0030),
            Some(CrAccess::Lmsw {
                source: 0xbeef,
                memory: false
            })
        );
        assert_eq!(
            cr_access(0x0001_0070),
            Some(CrAccess::Lmsw {
                source: 1,
                memory: true
            })
        );
        for register in [1, 2, 5, 6, 7, 9, 15] {
            assert_eq!(cr_access(register), None);
        }
    }

    #[test]
    fn io_instructions() {
        let out = io_access(0x03f8_0000).unwrap();
        assert_eq!((out.port, out.size), (0x3f8, IoSize::Byte));
        assert!(!out.input && !out.string && !out.rep && !out.immediate);
        let rep_insd = io_access(0xffff_003b).unwrap();
        assert_eq!((rep_insd.port, rep_insd.size), (0xffff, IoSize::Dword));
        assert!(rep_insd.input && rep_insd.string && rep_insd.rep);
        assert!(io_access(0x0080_0041).unwrap().immediate);
        for size in [2, 4, 5, 6, 7] {
            assert!(io_access(size).is_none());
        }
        // What is known to be a byte is decoded the same.
        for qualification in (0..0x80).map(|low| 0x03f8_0000 | low) {
            let byte = |access: &IoAccess| access.size == IoSize::Byte && !access.string;
            let expected = io_access(qualification).filter(byte);
            assert_eq!(byte_access(qualification), expected);
        }
    }

    #[test]
    fn address_sizes_of_string_instructions() {
        use AddressSize::{Bits16, Bits32, Bits64};
        assert_eq!([0, 0x80, 0x100].map(address_size), [Bits16, Bits32, Bits64]);
    }

    #[test]
    fn a_debug_exception_lands_in_dr6_with_its_inverted_bits() {
        let step = DebugException::decode(1 << 14);
        assert!(!step.debug_register_access());
        assert!(DebugException::decode(1 << 13).debug_register_access());
        assert_eq!(step.to_dr6(0xffff_0ff0), 0xffff_4ff0);
        // B0 to B3 of before do not stay, BD does.
        let second = DebugException::decode(2);
        assert_eq!(second.to_dr6(0xffff_2ff1), 0xffff_2ff2);
        // A bus lock and an RTM abort clear their bits.
        assert_eq!(
            DebugException::decode(1 << 11).to_dr6(0xffff_0ff0),
            0xffff_07f0
        );
        assert_eq!(
            DebugException::decode(1 << 16).to_dr6(0xffff_0ff0),
            0xfffe_0ff0
        );
        assert_eq!(DebugException::decode(u64::MAX).0, 0x1_680f);
    }
}
