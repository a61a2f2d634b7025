//! Instructions with one operand in memory.

use crate::address::{Address, RSP, mask};
use crate::case::Bytes;
use crate::descriptors::{CS, DS, ES, SS};
use crate::forms::Shape;
use crate::generate::Generator;
use crate::layout::HALF;
use crate::mode::Code;

const RAX: usize = 0;

impl Generator<'_> {
    pub fn plain(&mut self) -> bool {
        let code = self.case.mode.code;
        let absolute = self.form.shape == Shape::Absolute;
        let mut address = Address::pick(self.random, code, self.bits);
        let number = match self.segment {
            Some(number) => number,
            None if absolute => DS,
            None => address.default_segment(),
        };
        // What 64-bit code ignores.
        let number = match number {
            ES | CS | DS if code == Code::Bits64 => {
                if absolute {
                    DS
                } else {
                    address.default_segment()
                }
            }
            SS if code == Code::Bits64 && absolute => DS,
            number => number,
        };
        let position = self.position(1, false);
        let Some(offset) = self.reach(number, 0, position) else {
            return false;
        };
        // IRET to a 16-bit stack loads the lower half of ESP alone.
        let unknown_stack = !self.case.segments[SS].big && !self.case.mode.keeps_stack();
        if unknown_stack && !absolute && address.uses(RSP) {
            return false;
        }
        let register = match self.form.shape {
            Shape::Extended(extension) => extension,
            _ => self.register(),
        };
        let keeps_stack = self.case.mode.keeps_stack();
        let bit_number = self.form.bit_number;
        let mut wanted = offset;
        if bit_number {
            if unknown_stack && register == RSP {
                return false;
            }
            if address.uses(register) {
                return false;
            }
            let limit = if self.random.one_in(2) {
                1 << 9
            } else {
                1 << 15
            };
            let number = self.random.below(limit) as i64 - limit as i64 / 2;
            let slot = &mut self.case.registers[usize::from(register)];
            let mask = mask(8 * self.operand as u32);
            *slot = *slot & !mask | number as u64 & mask;
            let bits = 8 * self.operand as i64;
            wanted = offset.wrapping_add_signed(-number.div_euclid(bits) * self.operand as i64);
        }
        let fixed = |number: u8| number == RSP && keeps_stack || bit_number && number == register;
        if !absolute && !address.solve(&mut self.case.registers, fixed, wanted) {
            return false;
        }
        if self.form.compares && !address.uses(0) && self.random.one_in(2) {
            self.expect(position);
        }
        let mut bytes = Bytes::default();
        let rex = if absolute { 0 } else { address.rex() };
        let rex = match self.form.shape {
            Shape::Register => rex | (register & 8) >> 1,
            _ => rex,
        };
        if !self.begin(&mut bytes, rex) {
            return false;
        }
        if absolute {
            let offset = offset.to_le_bytes();
            if !bytes.push(&offset[..self.bits as usize / 8]) {
                return false;
            }
        } else if !address.encode(register, &mut bytes) {
            return false;
        }
        let immediate = match self.form.immediate {
            4 if self.operand == 2 => 2,
            bytes => bytes.into(),
        };
        let displaced = bytes.as_slice().len();
        let value = self.random.number().to_le_bytes();
        if !bytes.push(&value[..immediate]) {
            return false;
        }
        let next = self.case.at + bytes.as_slice().len() as u64;
        match address.relative_to(next, wanted) {
            Some(Ok(displacement)) if !absolute => {
                bytes.as_mut_slice()[displaced - 4..displaced].copy_from_slice(&displacement);
            }
            Some(Err(())) if !absolute => return false,
            _ => {}
        }
        self.case.instruction = bytes;
        self.case.reference = bytes;
        true
    }

    /// Makes RAX what CMPXCHG finds.
    fn expect(&mut self, position: i64) {
        let at = (HALF as i64 + position) as usize;
        let mut value = self.case.registers[RAX].to_le_bytes();
        for (byte, found) in value
            .iter_mut()
            .zip(&self.case.windows[0].bytes[at..])
            .take(self.width as usize)
        {
            *byte = *found;
        }
        self.case.registers[RAX] = u64::from_le_bytes(value);
    }
}
