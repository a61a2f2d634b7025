//! What all string instructions have in common: addresses of a certain width that go up or down, and a count of
//! elements, of which one exit moves only some.

/// The most elements that one exit moves. A repetition goes on at the next exit, when the same instruction is
/// executed again: as on hardware, interrupts and the end of the budget come in between.
pub const AT_ONCE: u64 = 48;

/// The width of the addresses of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressSize {
    Bits16,
    Bits32,
    Bits64,
}

impl AddressSize {
    /// From the VM-exit instruction-information field of INS and OUTS (SDM "Information for VM Exits Due to Instruction
    /// Execution", 29.2.5). There are no more than these three.
    pub const fn from_instruction_information(information: u32) -> Self {
        match information >> 7 & 7 {
            0 => Self::Bits16,
            1 => Self::Bits32,
            _ => Self::Bits64,
        }
    }
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

/// How a string instruction goes through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The width of addresses and of the count.
    pub address_size: AddressSize,
    /// Bytes of an element.
    pub bytes: u64,
    /// RFLAGS.DF: addresses go down.
    pub down: bool,
    /// The count in RCX holds.
    pub rep: bool,
}

impl Steps {
    /// How many elements there are to move.
    pub const fn left(&self, rcx: u64) -> u64 {
        if self.rep {
            rcx & self.address_size.mask()
        } else {
            1
        }
    }
    /// `address` so many elements further.
    pub const fn moved(&self, address: u64, elements: u64) -> u64 {
        let bytes = elements.wrapping_mul(self.bytes);
        if self.down {
            address.wrapping_sub(bytes)
        } else {
            address.wrapping_add(bytes)
        }
    }
    /// RSI or RDI so many elements further.
    pub const fn index_after(&self, index: u64, elements: u64) -> u64 {
        self.address_size
            .replace(index, self.moved(index, elements))
    }
    /// RCX so many elements further.
    pub const fn rcx_after(&self, rcx: u64, elements: u64) -> u64 {
        if !self.rep {
            return rcx;
        }
        let left = self.left(rcx).saturating_sub(elements);
        self.address_size.replace(rcx, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_sizes_from_the_exit() {
        let of = AddressSize::from_instruction_information;
        assert_eq!(
            [of(0), of(0x80), of(0x100)],
            [
                AddressSize::Bits16,
                AddressSize::Bits32,
                AddressSize::Bits64
            ]
        );
    }
}
