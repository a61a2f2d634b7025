//! I/O instructions.

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

/// The width of the addresses of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressSize {
    Bits16,
    Bits32,
    Bits64,
}

impl AddressSize {
    /// The bits of an address.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
    /// `old` with the address part replaced: a 32-bit result clears the upper half, a 16-bit one keeps the rest.
    pub const fn replace(self, old: u64, new: u64) -> u64 {
        match self {
            Self::Bits16 => old & !0xffff | new & 0xffff,
            Self::Bits32 => new & 0xffff_ffff,
            Self::Bits64 => new,
        }
    }
}
