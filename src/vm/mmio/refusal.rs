//! What is said of an access to device memory that is not carried out.

use core::fmt;

use super::{DecodeError, LONGEST};
use crate::addr::{Gpa, Gva};

/// Why an access to device memory is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// An event was being delivered: the stack lies there, or a table that delivery reads.
    Delivery,
    /// It is not the access of an instruction.
    NoInstruction,
    /// The code cannot be read any more where the CPU has just fetched it.
    NoCode,
    /// By the guest's tables as they are, the fetch of the code is a page fault.
    CodeFaults {
        /// For CR2.
        address: Gva,
        /// The error code.
        code: u32,
    },
    /// The bytes are no instruction, or none that is carried out.
    Instruction(DecodeError),
    /// The instruction accesses another address.
    Elsewhere,
    /// No device has this region.
    NoDevice,
}

/// An access to device memory that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// The address that was accessed.
    pub gpa: Gpa,
    /// Its linear address, where the CPU tells it.
    pub gva: Option<Gva>,
    /// Where the instruction is.
    pub rip: Gva,
    /// Its bytes, and more.
    pub bytes: [u8; LONGEST],
    /// How many of them are known.
    pub known: u8,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "made by the delivery of an event",
            Self::NoInstruction => "not made by an instruction",
            Self::NoCode | Self::CodeFaults { .. } => "the code is not where the CPU fetched it",
            Self::Instruction(DecodeError::NotCarriedOut) => "this instruction is not emulated",
            Self::Instruction(DecodeError::TooShort | DecodeError::Invalid) => {
                "these bytes are no instruction"
            }
            Self::Elsewhere => "this instruction does not access that address",
            Self::NoDevice => "no device answers there",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            why, gpa, gva, rip, ..
        } = self;
        write!(f, "access to device memory at GPA {gpa:#x}")?;
        if let Some(gva) = gva {
            write!(f, ", GVA {gva:#x}")?;
        }
        write!(f, ", RIP {rip:#x}: {why}")?;
        let known = self.bytes.get(..self.known.into()).unwrap_or_default();
        if !known.is_empty() {
            f.write_str(": bytes")?;
        }
        for byte in known {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}

impl core::error::Error for Refusal {}
