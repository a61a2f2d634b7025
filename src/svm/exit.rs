//! Why the CPU left the guest, with what it tells about it (APM "Instruction Intercepts", 15.9, and what follows).

use core::fmt;

use bit_field::BitField;

use super::feature::{Feature, Features};
use super::fields::{EXIT_CODE, EXIT_INFO_1, EXIT_INFO_2};
use super::nested_fault::NestedFault;
use super::neutral::{Gpr, IoSize};
use super::reason::{
    CR_READ, CR_WRITE, DR_READ, DR_WRITE, EXCEPTION, EXCEPTIONS_END, INVALID, Reason,
};
use super::vmcb::Vmcb;
use crate::addr::Gpa;

/// An access to a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterAccess {
    /// Which register.
    pub number: u8,
    /// Whether it is written.
    pub write: bool,
    /// The general register of a MOV. `None` where the CPU does not tell it: the instruction says which it is, or that it is
    /// none (CLTS, LMSW, SMSW).
    pub gpr: Option<Gpr>,
}

/// An exception that exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionExit {
    /// Its vector.
    pub vector: u8,
    /// Its error code, of one that has one.
    pub code: u32,
    /// The address, of #PF: CR2 still holds what was there before.
    pub address: u64,
}

/// An I/O instruction (APM "IN and OUT Behavior", 15.10.2).
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
    /// The instruction behind it.
    pub next_rip: u64,
}

impl IoAccess {
    /// From exit information, where it has a meaning.
    pub fn decode(information: u64, next_rip: u64) -> Option<Self> {
        let size = match information.get_bits(4..7) {
            1 => IoSize::Byte,
            2 => IoSize::Word,
            4 => IoSize::Dword,
            _ => return None,
        };
        Some(Self {
            port: information.get_bits(16..32) as u16,
            size,
            input: information.get_bit(0),
            string: information.get_bit(2),
            rep: information.get_bit(3),
            next_rip,
        })
    }
}

/// Why the guest was left, or was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// VMRUN refused the VMCB: the guest has not run.
    Invalid,
    /// A control register.
    Cr(RegisterAccess),
    /// A debug register.
    Dr(RegisterAccess),
    /// An exception.
    Exception(ExceptionExit),
    /// IN, OUT, INS or OUTS.
    Io(IoAccess),
    /// RDMSR, or WRMSR.
    Msr {
        /// Whether it is WRMSR.
        write: bool,
    },
    /// Nested tables do not allow an access.
    NestedFault(NestedFault),
    /// Anything else that the manual knows.
    Other(Reason),
    /// A code that it does not know, or information that it says not to exist.
    Unknown {
        /// The code.
        code: u64,
        /// The first field of information.
        information: u64,
    },
}

impl Exit {
    /// What the VMCB says of the last exit of a CPU with these features.
    #[inline]
    pub fn read(vmcb: &Vmcb, features: Features) -> Self {
        let code = vmcb.get(EXIT_CODE);
        let unknown = Self::Unknown {
            code,
            information: vmcb.get(EXIT_INFO_1),
        };
        let number = code as u32;
        if number == INVALID {
            return Self::Invalid;
        }
        if code >> 32 != 0 {
            return unknown;
        }
        if number < EXCEPTIONS_END {
            return Self::low(number, vmcb, features);
        }
        let information = vmcb.get(EXIT_INFO_1);
        match Reason::from_number(number) {
            Some(Reason::Ioio) => {
                IoAccess::decode(information, vmcb.get(EXIT_INFO_2)).map_or(unknown, Self::Io)
            }
            Some(Reason::Msr) => Self::Msr {
                write: information & 1 != 0,
            },
            Some(Reason::NestedPageFault) => {
                let gpa = Gpa::new(vmcb.get(EXIT_INFO_2));
                Self::NestedFault(NestedFault::decode(information, gpa))
            }
            Some(reason) => Self::Other(reason),
            None => unknown,
        }
    }

    /// Registers and exceptions.
    fn low(number: u32, vmcb: &Vmcb, features: Features) -> Self {
        let information = vmcb.get(EXIT_INFO_1);
        let assists = features.has(Feature::DecodeAssists);
        let low = (number & 15) as u8;
        let access = |is_mov: bool| RegisterAccess {
            number: low,
            write: number & 0x10 != 0,
            gpr: is_mov.then(|| Gpr::from_low_bits(information)),
        };
        if (CR_READ..CR_WRITE + 16).contains(&number) {
            return Self::Cr(access(assists && information.get_bit(63)));
        }
        if (DR_READ..DR_WRITE + 16).contains(&number) {
            return Self::Dr(access(assists));
        }
        Self::Exception(ExceptionExit {
            vector: (number - EXCEPTION) as u8,
            code: information as u32,
            address: vmcb.get(EXIT_INFO_2),
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = |f: &mut fmt::Formatter<'_>, kind, access: &RegisterAccess| {
            let done = if access.write { "write of" } else { "read of" };
            write!(f, "{done} {kind}{}", access.number)?;
            match access.gpr {
                Some(gpr) => write!(f, ", {gpr:?}"),
                None => Ok(()),
            }
        };
        match self {
            Self::Invalid => f.write_str("VMRUN refused the VMCB (exit code -1)"),
            Self::Cr(access) => register(f, "CR", access),
            Self::Dr(access) => register(f, "DR", access),
            Self::Exception(exception) => write!(
                f,
                "exception {}, error code {:#x}",
                exception.vector, exception.code
            ),
            Self::Io(access) => {
                let done = match (access.input, access.string) {
                    (true, false) => "IN",
                    (true, true) => "INS",
                    (false, false) => "OUT",
                    (false, true) => "OUTS",
                };
                let rep = if access.rep { "REP " } else { "" };
                write!(
                    f,
                    "{rep}{done}, port {:#x}, {} bytes",
                    access.port, access.size as u8
                )
            }
            Self::Msr { write: false } => f.write_str("RDMSR"),
            Self::Msr { write: true } => f.write_str("WRMSR"),
            Self::NestedFault(fault) => write!(f, "{fault}"),
            Self::Other(reason) => write!(f, "{reason}"),
            Self::Unknown { code, information } => {
                write!(
                    f,
                    "unknown exit code {code:#x}, information {information:#x}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(features: Features, code: u64, first: u64, second: u64) -> Exit {
        let mut vmcb = Vmcb::ZERO;
        vmcb.set(EXIT_CODE, code);
        vmcb.set(EXIT_INFO_1, first);
        vmcb.set(EXIT_INFO_2, second);
        Exit::read(&vmcb, features)
    }
    fn plain(code: u64, first: u64, second: u64) -> Exit {
        exit(Features::EMPTY, code, first, second)
    }
    const ASSISTS: Features = Features::EMPTY.with(Feature::DecodeAssists);

    #[test]
    fn a_refused_vmcb_is_told_by_the_low_half() {
        for code in [u64::MAX, 0xffff_ffff] {
            assert_eq!(plain(code, 0, 0), Exit::Invalid);
        }
        let unknown = |code| Exit::Unknown {
            code,
            information: 7,
        };
        for code in [0x1_0000_0072, 0x9f, 0x404, 0x8000_0000] {
            assert_eq!(plain(code, 7, 0), unknown(code));
        }
    }

    #[test]
    fn every_code_is_one_exit() {
        for reason in Reason::ALL {
            let exit = plain(*reason as u64, 0x10, 0);
            match reason {
                Reason::Ioio => assert!(matches!(exit, Exit::Io(_))),
                Reason::Msr => assert_eq!(exit, Exit::Msr { write: false }),
                Reason::NestedPageFault => assert!(matches!(exit, Exit::NestedFault(_))),
                _ => assert_eq!(exit, Exit::Other(*reason)),
            }
        }
        assert_eq!(plain(0x7c, 1, 0), Exit::Msr { write: true });
    }

    #[test]
    fn registers_of_a_mov_are_told_where_the_cpu_helps() {
        let access = |number, write, gpr| RegisterAccess { number, write, gpr };
        for (features, code, information, expected) in [
            (
                ASSISTS,
                0x03,
                1 << 63 | 5,
                Exit::Cr(access(3, false, Some(Gpr::Rbp))),
            ),
            (
                ASSISTS,
                0x18,
                1 << 63 | 15,
                Exit::Cr(access(8, true, Some(Gpr::R15))),
            ),
            // LMSW and CLTS.
            (ASSISTS, 0x10, 5, Exit::Cr(access(0, true, None))),
            (
                Features::EMPTY,
                0x14,
                1 << 63 | 5,
                Exit::Cr(access(4, true, None)),
            ),
            (ASSISTS, 0x27, 4, Exit::Dr(access(7, false, Some(Gpr::Rsp)))),
            (ASSISTS, 0x30, 0, Exit::Dr(access(0, true, Some(Gpr::Rax)))),
            (Features::EMPTY, 0x36, 4, Exit::Dr(access(6, true, None))),
        ] {
            assert_eq!(exit(features, code, information, 0), expected, "{code:#x}");
        }
    }

    #[test]
    fn exceptions_have_a_code_and_an_address() {
        for (code, vector) in [(0x41, 1), (0x4e, 14), (0x5f, 31)] {
            let expected = ExceptionExit {
                vector,
                code: 7,
                address: 0xdead_b000,
            };
            assert_eq!(plain(code, 7, 0xdead_b000), Exit::Exception(expected));
        }
    }

    #[test]
    fn io_instructions() {
        // As QEMU and the manual have them: size in one of three bits, the port above.
        let Exit::Io(out) = plain(0x7b, 0x03f8_0010, 0x1002) else {
            panic!("no I/O");
        };
        assert_eq!(
            (out.port, out.size, out.next_rip),
            (0x3f8, IoSize::Byte, 0x1002)
        );
        assert!(!out.input && !out.string && !out.rep);
        let Exit::Io(ins) = plain(0x7b, 0xffff_024d, 0) else {
            panic!("no I/O");
        };
        assert_eq!((ins.port, ins.size), (0xffff, IoSize::Dword));
        assert!(ins.input && ins.string && ins.rep);
        for size in [0, 3, 5, 6, 7] {
            assert!(matches!(plain(0x7b, size << 4, 0), Exit::Unknown { .. }));
        }
    }

    #[test]
    fn every_exit_has_words() {
        for (exit, words) in [
            (
                plain(u64::MAX, 0, 0),
                "VMRUN refused the VMCB (exit code -1)",
            ),
            (plain(0x72, 0, 0), "CPUID (exit code 0x72)"),
            (exit(ASSISTS, 0x10, 1 << 63 | 3, 0), "write of CR0, Rbx"),
            (plain(0x27, 0, 0), "read of DR7"),
            (plain(0x4d, 0x18, 0), "exception 13, error code 0x18"),
            (plain(0x7b, 0x6_002d, 0), "REP INS, port 0x6, 2 bytes"),
            (plain(0x7b, 0x80_0010, 0), "OUT, port 0x80, 1 bytes"),
            (plain(0x7c, 1, 0), "WRMSR"),
            (plain(0x9f, 2, 0), "unknown exit code 0x9f, information 0x2"),
        ] {
            assert_eq!(exit.to_string(), words);
        }
    }
}
