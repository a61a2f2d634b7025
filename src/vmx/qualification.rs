//! What the exit qualification says, by exit reason (SDM "Exit Qualification", 29.2.1).

use bit_field::BitField;

use super::regs::Gpr;

/// A qualification that no CPU should give for its exit reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadQualification(pub u64);

impl core::fmt::Display for BadQualification {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "exit qualification {:#x} has no meaning for its exit reason",
            self.0
        )
    }
}

impl core::error::Error for BadQualification {}

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
    /// From an exit qualification.
    #[inline]
    pub fn decode(qualification: u64) -> Result<Self, BadQualification> {
        let register = match qualification.get_bits(0..4) {
            0 => Ok(ControlRegister::Cr0),
            3 => Ok(ControlRegister::Cr3),
            4 => Ok(ControlRegister::Cr4),
            8 => Ok(ControlRegister::Cr8),
            _ => Err(BadQualification(qualification)),
        };
        let gpr = Gpr::from_low_bits(qualification >> 8);
        Ok(match qualification.get_bits(4..6) {
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

/// A MOV to or from a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrAccess {
    /// Which debug register, 0 to 7.
    pub register: u8,
    /// Whether the guest reads it.
    pub read: bool,
    /// The other operand.
    pub gpr: Gpr,
}

impl DrAccess {
    /// From an exit qualification.
    #[inline]
    pub fn decode(qualification: u64) -> Self {
        Self {
            register: qualification.get_bits(0..3) as u8,
            read: qualification.get_bit(4),
            gpr: Gpr::from_low_bits(qualification >> 8),
        }
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
    /// From an exit qualification.
    #[inline]
    pub fn decode(qualification: u64) -> Result<Self, BadQualification> {
        let size = match qualification.get_bits(0..3) {
            0 => IoSize::Byte,
            1 => IoSize::Word,
            3 => IoSize::Dword,
            _ => return Err(BadQualification(qualification)),
        };
        Ok(Self {
            port: qualification.get_bits(16..32) as u16,
            size,
            input: qualification.get_bit(3),
            string: qualification.get_bit(4),
            rep: qualification.get_bit(5),
            immediate: qualification.get_bit(6),
        })
    }
}

/// An EPT violation: every bit that the manual defines (SDM "Exit Qualification for EPT Violations", table 29-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EptViolation {
    /// Bit 0: the access was a data read.
    pub read: bool,
    /// Bit 1: the access was a data write.
    pub write: bool,
    /// Bit 2: the access was an instruction fetch.
    pub fetch: bool,
    /// Bit 3: every entry of the walk allowed reads.
    pub readable: bool,
    /// Bit 4: every entry of the walk allowed writes.
    pub writable: bool,
    /// Bit 5: every entry of the walk allowed fetches (with mode-based execute control: of supervisor-mode addresses).
    pub executable: bool,
    /// Bit 6: with mode-based execute control, every entry allowed fetches of user-mode addresses.
    pub user_executable: bool,
    /// Bit 7: the guest-linear address field is valid.
    pub linear_address_valid: bool,
    /// Bit 8: the access was to the translation of the linear address. If not (and that is valid), it was to a
    /// guest's page-table entry.
    pub translated: bool,
    /// Bit 9: the linear address is a user-mode one. With bits 10 and 11 only where bits 7 and 8 are set and the CPU
    /// reports advanced exit information.
    pub user_page: bool,
    /// Bit 10: the guest's tables allow writes to the linear address.
    pub writable_page: bool,
    /// Bit 11: the guest's tables forbid fetches from the linear address.
    pub execute_disable_page: bool,
    /// Bit 12: the access was made by an IRET that had unblocked NMIs.
    pub nmi_unblocking: bool,
    /// Bit 13: it was a shadow-stack access.
    pub shadow_stack: bool,
    /// Bit 14: supervisor shadow-stack control forbade it.
    pub supervisor_shadow_stack: bool,
    /// Bit 15: guest-paging verification forbade it.
    pub guest_paging_verification: bool,
    /// Bit 16: the access was asynchronous to instruction execution.
    pub asynchronous: bool,
}

impl EptViolation {
    /// From an exit qualification.
    #[inline]
    pub fn decode(qualification: u64) -> Self {
        let bit = |n| qualification.get_bit(n);
        Self {
            read: bit(0),
            write: bit(1),
            fetch: bit(2),
            readable: bit(3),
            writable: bit(4),
            executable: bit(5),
            user_executable: bit(6),
            linear_address_valid: bit(7),
            translated: bit(8),
            user_page: bit(9),
            writable_page: bit(10),
            execute_disable_page: bit(11),
            nmi_unblocking: bit(12),
            shadow_stack: bit(13),
            supervisor_shadow_stack: bit(14),
            guest_paging_verification: bit(15),
            asynchronous: bit(16),
        }
    }
    /// Whether the access was to an entry of the guest's page tables, while a linear address was translated.
    pub const fn is_page_walk(self) -> bool {
        self.linear_address_valid && !self.translated
    }
}

/// What began a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitchSource {
    /// CALL.
    Call,
    /// IRET.
    Iret,
    /// JMP.
    Jmp,
    /// A task gate in the IDT.
    TaskGate,
}

/// A task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// The selector of the TSS.
    pub selector: u16,
    /// What began it.
    pub source: TaskSwitchSource,
}

impl TaskSwitch {
    /// From an exit qualification.
    pub fn decode(qualification: u64) -> Self {
        Self {
            selector: qualification.get_bits(0..16) as u16,
            source: match qualification.get_bits(30..32) {
                0 => TaskSwitchSource::Call,
                1 => TaskSwitchSource::Iret,
                2 => TaskSwitchSource::Jmp,
                _ => TaskSwitchSource::TaskGate,
            },
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
    /// Which of the breakpoints 0 to 3 were met.
    pub fn breakpoints(self) -> u8 {
        self.0.get_bits(0..4) as u8
    }
    /// Whether a debug register was accessed while DR7.GD was set.
    pub fn debug_register_access(self) -> bool {
        self.0.get_bit(13)
    }
    /// Whether it was a single step (or a taken branch, with BTF).
    pub fn single_step(self) -> bool {
        self.0.get_bit(14)
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
            Ok(CrAccess::MovTo {
                register: ControlRegister::Cr4,
                source: Gpr::R15
            })
        );
        assert_eq!(
            CrAccess::decode(0x0318),
            Ok(CrAccess::MovFrom {
                register: ControlRegister::Cr8,
                target: Gpr::Rbx
            })
        );
        assert_eq!(
            CrAccess::decode(0x0403),
            Ok(CrAccess::MovTo {
                register: ControlRegister::Cr3,
                source: Gpr::Rsp
            })
        );
        assert_eq!(CrAccess::decode(0x20), Ok(CrAccess::Clts));
        assert_eq!(
            CrAccess::decode(0xbeef_0030),
            Ok(CrAccess::Lmsw {
                source: 0xbeef,
                memory: false
            })
        );
        assert_eq!(
            CrAccess::decode(0x0001_0070),
            Ok(CrAccess::Lmsw {
                source: 1,
                memory: true
            })
        );
        for register in [1, 2, 5, 6, 7, 9, 15] {
            let error = CrAccess::decode(register).unwrap_err();
            assert_eq!(error, BadQualification(register));
        }
    }

    #[test]
    fn debug_register_accesses() {
        let access = DrAccess::decode(0x0917);
        assert_eq!(
            (access.register, access.read, access.gpr),
            (7, true, Gpr::R9)
        );
        assert!(!DrAccess::decode(0x0900).read);
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
            assert!(IoAccess::decode(size).is_err());
        }
    }

    #[test]
    fn every_bit_of_an_ept_violation_is_kept() {
        let as_bits = |v: EptViolation| {
            [
                v.read,
                v.write,
                v.fetch,
                v.readable,
                v.writable,
                v.executable,
                v.user_executable,
                v.linear_address_valid,
                v.translated,
                v.user_page,
                v.writable_page,
                v.execute_disable_page,
                v.nmi_unblocking,
                v.shadow_stack,
                v.supervisor_shadow_stack,
                v.guest_paging_verification,
                v.asynchronous,
            ]
        };
        for bit in 0..17 {
            let bits = as_bits(EptViolation::decode(1 << bit));
            assert!(bits[bit], "bit {bit}");
            assert_eq!(bits.iter().filter(|b| **b).count(), 1, "bit {bit}");
        }
        assert_eq!(EptViolation::decode(!0x1_ffff), EptViolation::default());
        assert!(EptViolation::decode(0x82).is_page_walk());
        assert!(!EptViolation::decode(0x182).is_page_walk());
        assert!(!EptViolation::decode(0x2).is_page_walk());
    }

    #[test]
    fn task_switches() {
        let switch = TaskSwitch::decode(0xc000_0028);
        assert_eq!(switch.selector, 0x28);
        assert_eq!(switch.source, TaskSwitchSource::TaskGate);
        assert_eq!(TaskSwitch::decode(1 << 30).source, TaskSwitchSource::Iret);
    }

    #[test]
    fn a_debug_exception_lands_in_dr6_with_its_inverted_bits() {
        let step = DebugException::decode(1 << 14);
        assert!(step.single_step() && !step.debug_register_access());
        assert_eq!(step.to_dr6(0xffff_0ff0), 0xffff_4ff0);
        // B0 to B3 of before do not stay, BD does.
        let second = DebugException::decode(2);
        assert_eq!(second.breakpoints(), 2);
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
