//! Exceptions that a guest has no handler for.

use core::fmt;

use crate::addr::Gva;

/// The vector of a page fault.
pub(super) const PAGE_FAULT: u8 = 14;

/// An exception of a guest that has no interrupt-descriptor table, at the instruction that raised it. Delivering it would
/// only lead to a triple fault, which tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unhandled {
    /// Its vector.
    pub vector: u8,
    /// Its error code, if it has one.
    pub code: Option<u32>,
    /// Of a page fault, the address that was accessed.
    pub address: Option<Gva>,
}

impl Unhandled {
    /// What the Intel manual calls it.
    pub const fn name(&self) -> &'static str {
        match self.vector {
            0 => "divide error",
            4 => "overflow",
            5 => "bound range exceeded",
            6 => "invalid opcode",
            7 => "device not available",
            8 => "double fault",
            10 => "invalid TSS",
            11 => "segment not present",
            12 => "stack fault",
            13 => "general protection",
            PAGE_FAULT => "page fault",
            16 => "x87 error",
            19 => "SIMD error",
            _ => "exception",
        }
    }
}

impl fmt::Display for Unhandled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception {}, {}", self.vector, self.name())?;
        match (self.address, self.code) {
            (Some(address), Some(code)) => {
                let access = match code {
                    code if code & 1 << 4 != 0 => "fetch from",
                    code if code & 1 << 1 != 0 => "write to",
                    _ => "read of",
                };
                let why = match code & 1 {
                    0 => "not mapped",
                    _ => "not allowed",
                };
                write!(f, ": {access} {address:#x}, {why}")?;
            }
            (_, Some(code)) => write!(f, ", code {code:#x}")?,
            _ => {}
        }
        f.write_str(", without a handler")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_faults_tell_what_was_accessed() {
        let text = |vector, code, address: Option<u64>| {
            let address = address.map(Gva::new);
            Unhandled {
                vector,
                code,
                address,
            }
            .to_string()
        };
        assert_eq!(
            text(14, Some(2), Some(0xfe9000)),
            "exception 14, page fault: write to 0xfe9000, not mapped, without a handler"
        );
        assert!(text(14, Some(0x11), Some(0)).contains("fetch from 0x0, not allowed"));
        assert!(text(14, Some(0), Some(8)).contains("read of 0x8, not mapped"));
        assert_eq!(
            text(13, Some(0), None),
            "exception 13, general protection, code 0x0, without a handler"
        );
        assert_eq!(
            text(6, None, None),
            "exception 6, invalid opcode, without a handler"
        );
    }
}
