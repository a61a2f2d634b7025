//! What all string instructions have in common: addresses of a certain width that go up or down, and a count of
//! elements, of which one exit moves only some.

use crate::virt::io::AddressSize;

/// The most elements that one exit moves. A repetition goes on at the next exit, when the same instruction is
/// executed again: as on hardware, interrupts and the end of the budget come in between.
pub const AT_ONCE: u64 = 48;

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
