//! String instructions, which may have two.

use crate::address::mask;
use crate::case::Bytes;
use crate::descriptors::{CS, DS, ES, SS};
use crate::forms::StringKind;
use crate::generate::Generator;
use crate::layout::{BOUNDS, HALF};
use crate::mode::Code;
use crate::surroundings::DF;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;
/// A port at which nothing is.
const PORT: u64 = 0x80;

impl Generator<'_> {
    pub fn string(&mut self, kind: StringKind) -> bool {
        let down = self.case.rflags & DF != 0;
        let count = match self.repeat {
            None => 1,
            Some(_) if self.random.one_in(16) => 0,
            Some(_) => {
                let most = if self.random.one_in(3) {
                    2 * HALF / self.width
                } else {
                    8
                };
                1 + self.random.below(most)
            }
        };
        let long = self.case.mode.code == Code::Bits64;
        let source = match self.segment {
            Some(ES | CS | SS) if long => DS,
            Some(number) => number,
            None => DS,
        };
        // Which windows: one of them is the first. A segment that has both sides has both in one.
        let mut windows = match self.random.below(4) {
            0 | 1 => (0, 1),
            2 => (1, 0),
            _ => (0, 0),
        };
        if !(kind.has_source() && kind.has_destination()) || source == ES {
            windows = (0, 0);
        }
        if kind.has_source() && !self.side(RSI, source, windows.0, count, down) {
            return false;
        }
        if kind.has_destination() && !self.side(RDI, ES, windows.1, count, down) {
            return false;
        }
        if self.repeat.is_some() {
            self.case.low_halves = long && self.bits == 32 && count == 0;
            let mask = mask(self.bits);
            let rcx = &mut self.case.registers[RCX];
            *rcx = *rcx & !mask | count;
        }
        if kind.is_port() {
            let rdx = &mut self.case.registers[RDX];
            *rdx = *rdx & !0xffff | PORT;
        }
        // Something to be found equal.
        if self.random.one_in(2) {
            let value = self.case.windows[0].bytes[0];
            self.case.registers[RAX] = u64::from_le_bytes([value; 8]);
        }
        let mut bytes = Bytes::default();
        if !self.begin(&mut bytes, 0) {
            return false;
        }
        self.case.instruction = bytes;
        if kind.is_port()
            && let Some(opcode) = bytes.as_mut_slice().last_mut()
        {
            // STOS for INS, LODS for OUTS.
            *opcode = *opcode & 1 | if kind == StringKind::Ins { 0xaa } else { 0xac };
        }
        self.case.reference = bytes;
        true
    }

    /// One side of a string instruction.
    fn side(
        &mut self,
        register: usize,
        number: usize,
        window: usize,
        count: u64,
        down: bool,
    ) -> bool {
        let position = self.position(count, down);
        let Some(offset) = self.reach(number, window, position) else {
            return false;
        };
        let more = count.saturating_sub(1) * self.width;
        let mask = mask(self.bits);
        let (wraps_up, wraps_down) = (
            !down
                && offset
                    .checked_add(more + self.width - 1)
                    .is_none_or(|last| last > mask),
            down && offset < more,
        );
        let low = self.case.windows[0].bound == BOUNDS[0];
        let to_the_other = self.bits == 16
            && self.case.mode.is_paged()
            && low
            && (wraps_up && window == 0 || wraps_down && window == 1);
        let legal = !wraps_up && !wraps_down
            || self.bits == 32 && self.case.mode.code != Code::Bits64
            || to_the_other;
        let slot = &mut self.case.registers[register];
        *slot = *slot & !mask | offset;
        legal
    }
}
