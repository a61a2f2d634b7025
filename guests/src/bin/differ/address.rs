//! How an instruction says where its operand in memory is.

use crate::block::Registers;
use crate::case::Bytes;
use crate::descriptors::{DS, SS};
use crate::mode::Code;
use offshoot_guests::random::Random;

const RAX: u8 = 0;
const RBX: u8 = 3;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
pub const RSI: u8 = 6;
pub const RDI: u8 = 7;

/// The bits of an address of so many bits.
pub const fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// An operand in memory by ModR/M.
#[derive(Clone, Copy, Default)]
pub struct Address {
    /// Bits of an address.
    pub bits: u32,
    base: Option<u8>,
    /// With the power of two that it is multiplied by.
    index: Option<(u8, u8)>,
    displacement: i64,
    displacement_len: u8,
    /// It counts from the next instruction.
    relative: bool,
    mode: u8,
    rm: u8,
    sib: Option<u8>,
}

impl Address {
    /// A form by chance.
    pub fn pick(random: &mut Random, code: Code, bits: u32) -> Self {
        let mode = random.below(3) as u8;
        if bits == 16 {
            return Self::pick_16(random, mode);
        }
        let registers = if code == Code::Bits64 { 16 } else { 8 };
        let rm = random.below(registers) as u8;
        let mut address = Self {
            bits,
            mode,
            rm,
            base: Some(rm),
            displacement_len: [0, 1, 4][usize::from(mode)],
            ..Self::default()
        };
        if rm & 7 == RSP {
            let (base, index, scale) = (
                rm & 8 | random.below(8) as u8,
                random.below(registers) as u8,
                random.below(4) as u8,
            );
            address.sib = Some(scale << 6 | (index & 7) << 3 | base & 7);
            address.base = Some(base);
            address.rm = RSP | base & 8;
            if index != RSP {
                address.index = Some((index, scale));
            }
            if base & 7 == RBP && mode == 0 {
                address.base = None;
                address.displacement_len = 4;
            }
        } else if rm & 7 == RBP && mode == 0 {
            address.base = None;
            address.displacement_len = 4;
            address.relative = code == Code::Bits64;
        }
        address.displacement = match address.displacement_len {
            0 => 0,
            1 => (random.number() as i8).into(),
            _ => (random.number() as i32).into(),
        };
        address
    }

    fn pick_16(random: &mut Random, mode: u8) -> Self {
        const FORMS: [(u8, Option<u8>); 8] = [
            (RBX, Some(RSI)),
            (RBX, Some(RDI)),
            (RBP, Some(RSI)),
            (RBP, Some(RDI)),
            (RSI, None),
            (RDI, None),
            (RBP, None),
            (RBX, None),
        ];
        let rm = random.below(8) as u8;
        let (base, index) = FORMS[usize::from(rm)];
        let absolute = rm == 6 && mode == 0;
        let displacement_len = if absolute { 2 } else { mode };
        Self {
            bits: 16,
            base: (!absolute).then_some(base),
            index: index.map(|index| (index, 0)),
            displacement: match displacement_len {
                0 => 0,
                1 => (random.number() as i8).into(),
                _ => (random.number() as i16).into(),
            },
            displacement_len,
            mode,
            rm,
            ..Self::default()
        }
    }

    /// The segment without a prefix.
    pub fn default_segment(&self) -> usize {
        match self.base {
            Some(RSP | RBP) => SS,
            _ => DS,
        }
    }

    /// Whether the address depends on this register.
    pub fn uses(&self, register: u8) -> bool {
        self.base == Some(register) || self.index.is_some_and(|(index, _)| index == register)
    }

    /// Makes it lead to `offset`, by a register that it may change or else by the displacement. What counts from the
    /// next instruction is left to [`Self::relative_to`]. Tells whether that was possible.
    pub fn solve(
        &mut self,
        registers: &mut Registers,
        fixed: impl Fn(u8) -> bool,
        offset: u64,
    ) -> bool {
        if self.relative {
            return true;
        }
        let mask = mask(self.bits);
        let value = |register: u8, registers: &Registers| registers[usize::from(register)];
        let base = self.base.map_or(0, |base| value(base, registers));
        let index = self
            .index
            .map_or(0, |(index, scale)| value(index, registers) << scale);
        let found = base
            .wrapping_add(index)
            .wrapping_add_signed(self.displacement);
        let more = offset.wrapping_sub(found) & mask;
        let mut add = |register: u8| {
            let slot = &mut registers[usize::from(register)];
            *slot = *slot & !mask | slot.wrapping_add(more) & mask;
        };
        match (self.base, self.index) {
            (Some(base), None) if !fixed(base) => add(base),
            (Some(base), Some((index, _))) if base != index && !fixed(base) => add(base),
            (base, Some((index, 0))) if base != Some(index) && !fixed(index) => add(index),
            _ if self.displacement_len < 2 => return more == 0,
            _ => {
                let wanted = self.displacement.wrapping_add(more as i64);
                let wanted = match self.bits {
                    16 => i64::from(wanted as i16),
                    32 => i64::from(wanted as i32),
                    _ => wanted,
                };
                if i64::from(wanted as i32) != wanted {
                    return false;
                }
                self.displacement = wanted;
            }
        }
        true
    }

    /// ModR/M and what belongs to it, with `reg` in its middle.
    pub fn encode(&self, reg: u8, into: &mut Bytes) -> bool {
        let modrm = self.mode << 6 | (reg & 7) << 3 | self.rm & 7;
        let displacement = self.displacement.to_le_bytes();
        into.push(&[modrm])
            && self.sib.is_none_or(|sib| into.push(&[sib]))
            && into.push(&displacement[..usize::from(self.displacement_len)])
    }

    /// Of what counts from the next instruction, at `next`: the displacement that leads to `offset`, if there is one.
    pub fn relative_to(&self, next: u64, offset: u64) -> Option<Result<[u8; 4], ()>> {
        self.relative.then(|| {
            let distance = offset.wrapping_sub(next) as i64;
            let near = distance as i32;
            let reached = next.wrapping_add_signed(near.into()) & mask(self.bits);
            if reached == offset & mask(self.bits) {
                Ok(near.to_le_bytes())
            } else {
                Err(())
            }
        })
    }

    /// Bits X and B of REX.
    pub fn rex(&self) -> u8 {
        let index = self.index.map_or(RAX, |(index, _)| index);
        // With a SIB byte without index, the number of the index is 4.
        (index & 8) >> 2 | (self.rm & 8) >> 3
    }
}
