//! What the exit qualification says, by exit reason (SDM "Exit Qualification", 29.2.1).

use bit_field::BitField;

use crate::virt::Gpr;

/// A control register whose accesses can exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ControlRegister {
    Cr0,
    Cr3,
    Cr4,
    Cr8,
}

/// A control-register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to a control register.
    MovTo {
        /// Which.
        register: ControlRegister,
        /// Whose value.
        source: Gpr,
    },
    /// MOV from a control register.
    MovFrom {
        /// Which.
        register: ControlRegister,
        /// Where to.
        target: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW. Only bits 3:0 of the operand count, and PE is never cleared.
    Lmsw {
        /// The operand.
        source: u16,
        /// Whether it was in memory; the guest-linear address field says where.
        memory: bool,
    },
}

impl CrAccess {
    /// From an exit qualification, where it has a meaning.
    #[inline]
    pub fn decode(qualification: u64) -> Option<Self> {
        let register = match qualification.get_bits(0..4) {
            0 => Some(ControlRegister::Cr0),
            3 => Some(ControlRegister::Cr3),
            4 => Some(ControlRegister::Cr4),
            8 => Some(ControlRegister::Cr8),
            _ => None,
        };
        let gpr = Gpr::from_low_bits(qualification >> 8);
        Some(match qualification.get_bits(4..6) {
            0 => Self::MovTo {
                register: register?,
                source: gpr,
            },
            1 => Self::MovFrom {
                register: register?,
                target: gpr,
            },
            2 => Self::Clts,
            _ => Self::Lmsw {
                source: qualification.get_bits(16..32) as u16,
                memory: qualification.get_bit(6),
            },
        })
    }
}

/// Bytes of one I/O access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IoSize {
    Byte = 1,
    Word = 2,
    Dword = 4,
}

/// An I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The first port.
    pub port: u16,
    /// Bytes per access.
    pub size: IoSize,
    /// Whether it is IN or INS.
    pub input: bool,
    /// Whether it is INS or OUTS.
    pub string: bool,
    /// Whether it has a REP prefix.
    pub rep: bool,
    /// Whether the port is in the instruction (else in DX).
    pub immediate: bool,
}

impl IoAccess {
    /// From an exit qualification, if it is IN or OUT of a byte.
    #[inline(always)]
    pub fn decode_byte(qualification: u64) -> Option<Self> {
        /// The size, 0 of a byte, and the bit of string instructions.
        const OTHER: u64 = 0b1_0111;
        (qualification & OTHER == 0).then(|| Self::of(qualification, IoSize::Byte))
    }

    /// From an exit qualification, where it has a meaning.
    #[inline]
    pub fn decode(qualification: u64) -> Option<Self> {
        let size = match qualification.get_bits(0..3) {
            0 => IoSize::Byte,
            1 => IoSize::Word,
            3 => IoSize::Dword,
            _ => return None,
        };
        Some(Self::of(qualification, size))
    }

    #[inline(always)]
    fn of(qualification: u64, size: IoSize) -> Self {
        Self {
            port: qualification.get_bits(16..32) as u16,
            size,
            input: qualification.get_bit(3),
            string: qualification.get_bit(4),
            rep: qualification.get_bit(5),
            immediate: qualification.get_bit(6),
        }
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
            CrAccess::decode(0x0f04),
            Some(CrAccess::MovTo {
                register: ControlRegister::Cr4,
                source: Gpr::R15
            })
        );
        assert_eq!(
            CrAccess::decode(0x0318),
            Some(CrAccess::MovFrom {
                register: ControlRegister::Cr8,
                target: Gpr::Rbx
            })
        );
        assert_eq!(
            CrAccess::decode(0x0403),
            Some(CrAccess::MovTo {
                register: ControlRegister::Cr3,
                source: Gpr::Rsp
            })
        );
        assert_eq!(CrAccess::decode(0x20), Some(CrAccess::Clts));
        assert_eq!(
            CrAccess::decode(0xbeef_0030),
            Some(CrAccess::Lmsw {
                source: 0xbeef,
                memory: false
            })
        );
        assert_eq!(
            CrAccess::decode(0x0001_0070),
            Some(CrAccess::Lmsw {
                source: 1,
                memory: true
            })
        );
        for register in [1, 2, 5, 6, 7, 9, 15] {
            assert_eq!(CrAccess::decode(register), None);
        }
    }

    #[test]
    fn io_instructions() {
        let out = IoAccess::decode(0x03f8_0000).unwrap();
        assert_eq!((out.port, out.size), (0x3f8, IoSize::Byte));
        assert!(!out.input && !out.string && !out.rep && !out.immediate);
        let rep_insd = IoAccess::decode(0xffff_003b).unwrap();
        assert_eq!((rep_insd.port, rep_insd.size), (0xffff, IoSize::Dword));
        assert!(rep_insd.input && rep_insd.string && rep_insd.rep);
        assert!(IoAccess::decode(0x0080_0041).unwrap().immediate);
        for size in [2, 4, 5, 6, 7] {
            assert!(IoAccess::decode(size).is_none());
        }
        // What is known to be a byte is decoded the same.
        for qualification in (0..0x80).map(|low| 0x03f8_0000 | low) {
            let byte = |access: &IoAccess| access.size == IoSize::Byte && !access.string;
            let expected = IoAccess::decode(qualification).filter(byte);
            assert_eq!(IoAccess::decode_byte(qualification), expected);
        }
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
