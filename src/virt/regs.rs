//! The general registers of a guest, by their number in instruction encodings and exit qualifications.

use numeric_enum_macro::numeric_enum;

numeric_enum! {
    #[repr(u8)]
    /// A general register by its encoding.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(missing_docs)]
    pub enum Gpr {
        Rax = 0,
        Rcx = 1,
        Rdx = 2,
        Rbx = 3,
        Rsp = 4,
        Rbp = 5,
        Rsi = 6,
        Rdi = 7,
        R8 = 8,
        R9 = 9,
        R10 = 10,
        R11 = 11,
        R12 = 12,
        R13 = 13,
        R14 = 14,
        R15 = 15,
    }
}

impl Gpr {
    /// The register that bits 3:0 of `number` encode.
    pub const fn from_low_bits(number: u64) -> Self {
        use Gpr::*;
        const BY_NUMBER: [Gpr; 16] = [
            Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15,
        ];
        BY_NUMBER[(number & 15) as usize]
    }
}

/// The general registers. RSP has its place in the VMCS while the guest runs; its slot here is only valid where the
/// exit handler has copied it in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuestRegs([u64; 16]);

impl GuestRegs {
    /// All zero.
    pub const ZERO: Self = Self([0; 16]);

    /// The value of `register`.
    pub const fn get(&self, register: Gpr) -> u64 {
        self.0[register as usize]
    }
    /// Gives `register` a new value.
    pub const fn set(&mut self, register: Gpr, value: u64) {
        self.0[register as usize] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_are_a_register() {
        for number in 0..64 {
            let register = Gpr::from_low_bits(number);
            assert_eq!(register as u64, number % 16);
            assert_eq!(Gpr::try_from(register as u8), Ok(register));
        }
    }
}
