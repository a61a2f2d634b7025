//! Basic blocks: where they begin, and in which of them a breakpoint still waits.
//!
//! A block begins where a jump or call goes, behind a conditional jump, and behind code that does not go on (a function, or
//! a case that a table of jumps leads to). All code is decoded from front to back, so that code which only pointers lead
//! to is found too. A place where decoding does not pass, though a jump goes there, is data or a trick: no breakpoint is
//! put there.

use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::amd64::{InstDecoder, Instruction, Opcode, Operand};

use super::code::{CodeRun, Codes};
use super::dictionary::{Dictionary, Token};
use super::page::Bits;
use crate::addr::Gva;
use crate::frames::{FrameAllocator, FrameError, PhysMem};

/// The breakpoint.
pub const INT3: u8 = 0xcc;

/// The blocks of a program.
pub struct Blocks<'i, 'f, M: PhysMem> {
    codes: Codes<'i>,
    /// Of every byte of code: whether a block begins there that was not reached yet.
    waiting: Bits<'f, M>,
    /// Whether a block begins there that was reached since [`Blocks::settle`].
    fresh: Bits<'f, M>,
    known: u32,
    reached: u32,
}

impl<'i, 'f, M: PhysMem> Blocks<'i, 'f, M> {
    /// Finds the blocks of `codes`, and adds what is compared with there to `dictionary`. Code beyond the first 2 MiB has
    /// no blocks.
    ///
    /// # Errors
    /// No frame for the list of blocks.
    pub fn find(
        codes: Codes<'i>,
        frames: &'f FrameAllocator<M>,
        dictionary: &mut Dictionary,
    ) -> Result<Self, FrameError> {
        let len = codes.iter().map(|code| code.bytes.len()).sum();
        let mut scan = Scan {
            codes: &codes,
            starts: Bits::new(frames, len)?,
            leaders: Bits::new(frames, len)?,
            dictionary,
        };
        let mut base = 0;
        for code in &codes {
            scan.code(code, base);
            base += code.bytes.len();
        }
        let Scan {
            starts,
            mut leaders,
            ..
        } = scan;
        leaders.intersect(&starts);
        let known = leaders.ones().count() as u32;
        drop(starts);
        Ok(Self {
            codes,
            waiting: leaders,
            fresh: Bits::new(frames, len)?,
            known,
            reached: 0,
        })
    }

    /// How many blocks there are.
    pub const fn known(&self) -> u32 {
        self.known
    }

    /// How many of them were reached.
    pub const fn reached(&self) -> u32 {
        self.reached
    }

    /// The blocks that were not reached yet: where they begin, and the byte that belongs there.
    pub fn waiting(&self) -> impl Iterator<Item = (Gva, u8)> + '_ {
        self.waiting.ones().filter_map(|index| self.place(index))
    }

    /// Keeps the blocks for which `keep` says so; the others count as not there. Ends at the first error.
    ///
    /// # Errors
    /// The first of `keep`.
    pub fn retain<E>(&mut self, mut keep: impl FnMut(Gva, u8) -> Result<bool, E>) -> Result<(), E> {
        let mut index = 0;
        while let Some((at, byte)) = self.place(index) {
            if self.waiting.get(index) && !keep(at, byte)? {
                self.waiting.set(index, false);
                self.known -= 1;
            }
            index += 1;
        }
        Ok(())
    }

    /// The block at `at` is reached. Returns the byte that belongs there if it was not before; else, this is no place where
    /// a breakpoint waits.
    pub fn reach(&mut self, at: Gva) -> Option<u8> {
        let index = self.take(at)?;
        self.fresh.set(index, true);
        self.reached += 1;
        self.place(index).map(|(_, byte)| byte)
    }

    /// Tells `each` of every block that was reached since this was called last, as [`Blocks::waiting`] does; ends at the
    /// first error.
    ///
    /// # Errors
    /// The first of `each`.
    pub fn settle<E>(&mut self, mut each: impl FnMut(Gva, u8) -> Result<(), E>) -> Result<(), E> {
        for (at, byte) in self.fresh.ones().filter_map(|index| self.place(index)) {
            each(at, byte)?;
        }
        self.fresh.clear();
        Ok(())
    }

    /// Stops waiting for the block at `at`, if it was waited for, and returns its number.
    fn take(&mut self, at: Gva) -> Option<usize> {
        let index = index_of(&self.codes, at.as_u64())?;
        let waiting = self.waiting.get(index);
        self.waiting.set(index, false);
        waiting.then_some(index)
    }

    fn place(&self, index: usize) -> Option<(Gva, u8)> {
        let mut base = 0;
        for code in &self.codes {
            let offset = index.checked_sub(base)?;
            if let Some(byte) = code.bytes.get(offset) {
                return Some((Gva::new(code.start.as_u64() + offset as u64), *byte));
            }
            base += code.bytes.len();
        }
        None
    }
}

/// The number of the byte at `at` among all bytes of code.
fn index_of(codes: &Codes<'_>, at: u64) -> Option<usize> {
    let mut base = 0;
    for code in codes {
        if let Some(offset) = at.checked_sub(code.start.as_u64())
            && offset < code.bytes.len() as u64
        {
            return Some(base + offset as usize);
        }
        base += code.bytes.len();
    }
    None
}

/// Bytes of a MOV of 8 bytes to a register.
const MOVABS_LENGTH: usize = 10;

fn length(instruction: &Instruction) -> usize {
    instruction.len().to_const() as usize
}

struct Scan<'a, 'i, 'f, M: PhysMem> {
    codes: &'a Codes<'i>,
    /// Where instructions begin.
    starts: Bits<'f, M>,
    /// Where blocks would begin.
    leaders: Bits<'f, M>,
    dictionary: &'a mut Dictionary,
}

impl<M: PhysMem> Scan<'_, '_, '_, M> {
    /// Decodes one run of code, whose first byte has the number `base`.
    fn code(&mut self, code: &CodeRun<'_>, base: usize) {
        let decoder = InstDecoder::default();
        let mut offset = 0;
        let mut begins = true;
        while let Some(rest) = code.bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            let Ok(instruction) = decoder.decode_slice(rest) else {
                // What this is nobody can tell; after it, only jumps say where blocks begin.
                offset += 1;
                begins = false;
                continue;
            };
            let int3 = rest.first() == Some(&INT3);
            let padding = int3 || instruction.opcode() == Opcode::NOP;
            self.starts.set(base + offset, !padding || !begins);
            if begins && !padding {
                self.leaders.set(base + offset, true);
            }
            offset += length(&instruction).max(1);
            let next = code.start.as_u64().wrapping_add(offset as u64);
            begins = self.instruction(&instruction, next) || int3 || begins && padding;
        }
    }

    /// Notes what follows from one instruction, behind which the next begins at `next`; returns whether a block begins there.
    fn instruction(&mut self, instruction: &Instruction, next: u64) -> bool {
        let opcode = instruction.opcode();
        let (jumps, ends) = match opcode {
            Opcode::JMP => (true, true),
            Opcode::CALL => (true, false),
            Opcode::LOOP | Opcode::LOOPZ | Opcode::LOOPNZ | Opcode::JRCXZ => (true, true),
            opcode if opcode.is_jcc() => (true, true),
            Opcode::RETURN
            | Opcode::RETF
            | Opcode::JMPF
            | Opcode::UD2
            | Opcode::HLT
            | Opcode::IRET
            | Opcode::IRETD
            | Opcode::IRETQ
            | Opcode::SYSRET => (false, true),
            Opcode::CMP | Opcode::SUB | Opcode::XOR => {
                self.compared(instruction);
                (false, false)
            }
            // No comparison has a constant of 8 bytes: it goes to a register first.
            Opcode::MOV if length(instruction) == MOVABS_LENGTH => {
                self.compared(instruction);
                (false, false)
            }
            _ => (false, false),
        };
        if jumps {
            let distance = match instruction.operand(0) {
                Operand::ImmediateI8 { imm } => Some(i64::from(imm)),
                Operand::ImmediateI32 { imm } => Some(i64::from(imm)),
                _ => None,
            };
            let target = distance.map(|distance| next.wrapping_add_signed(distance));
            if let Some(index) = target.and_then(|target| index_of(self.codes, target)) {
                self.leaders.set(index, true);
            }
        }
        ends
    }

    /// A comparison, or what compilers put in its place: the constant goes to the dictionary.
    fn compared(&mut self, instruction: &Instruction) {
        let memory = instruction.mem_size().and_then(|size| size.bytes_size());
        let width = memory.or(instruction.operand(0).width());
        let value = match instruction.operand(1) {
            Operand::ImmediateI16 { imm } => imm as u64,
            Operand::ImmediateU16 { imm } => imm.into(),
            Operand::ImmediateI32 { imm } => imm as u64,
            Operand::ImmediateU32 { imm } => imm.into(),
            Operand::ImmediateI64 { imm } => imm as u64,
            Operand::ImmediateU64 { imm } => imm,
            _ => return,
        };
        if let Some(token) = width.and_then(|width| Token::of(value, width)) {
            self.dictionary.add(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;

    fn codes<'i>(runs: &[(u64, &'i [u8])]) -> Codes<'i> {
        runs.iter()
            .map(|&(start, bytes)| CodeRun {
                start: Gva::new(start),
                bytes,
            })
            .collect()
    }

    fn leaders(runs: &[(u64, &[u8])]) -> (Vec<u64>, Dictionary) {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut dictionary = Dictionary::default();
        let blocks = Blocks::find(codes(runs), &frames, &mut dictionary).unwrap();
        let all: Vec<_> = blocks.waiting().map(|(at, _)| at.as_u64()).collect();
        assert_eq!(all.len(), blocks.known() as usize);
        (all, dictionary)
    }

    #[test]
    fn blocks_begin_at_targets_and_behind_jumps() {
        let code = [
            0x3d, b'H', b'E', b'A', b'D', // 1000 cmp eax, "HEAD"
            0x75, 0x06, // 1005 jne 100d
            0xe8, 0x09, 0, 0, 0,    // 1007 call 1015
            0x90, // 100c nop
            0x31, 0xc0, // 100d xor eax, eax
            0xc3, // 100f ret
            0x66, 0x90, 0xcc, // 1010 padding
            0xff, 0xc0, // 1013 inc eax: only pointers lead here
            0xe2, 0xfe, // 1015 loop 1015
            0xeb, 0xe7, // 1017 jmp 1000
        ];
        let (all, dictionary) = leaders(&[(0x1000, &code)]);
        assert_eq!(all, [0x1000, 0x1007, 0x100d, 0x1013, 0x1015, 0x1017]);
        let tokens: Vec<_> = dictionary.tokens().iter().map(|t| t.bytes()).collect();
        assert_eq!(tokens, [b"HEAD"]);
    }

    #[test]
    fn no_block_begins_inside_an_instruction() {
        // jmp into the middle of a mov, and beyond all code.
        let code = [
            0xeb, 0x02, 0xb8, 1, 2, 3, 4, 0xe9, 0, 0, 0x70, 0, 0xc3, 0x06, 0x06, 0xc3,
        ];
        let (all, _) = leaders(&[(0x1000, &code)]);
        assert_eq!(all, [0x1000, 0x1002, 0x100c]);
        // The bytes that are no instruction begin nothing, nor does what follows them.
        assert!(!all.contains(&0x100d) && !all.contains(&0x100f));
    }

    #[test]
    fn jumps_lead_from_one_run_to_another() {
        let first = [0xe9, 0xfc, 0x0f, 0, 0]; // jmp 2001
        let second = [0x55, 0x50, 0xc3];
        let (all, _) = leaders(&[(0x1000, &first), (0x2000, &second)]);
        assert_eq!(all, [0x1000, 0x2000, 0x2001]);
    }

    #[test]
    fn constants_of_every_width() {
        let code = [
            0x48, 0x3d, 0x44, 0x33, 0x22, 0x11, // cmp rax, 11223344
            0x66, 0x81, 0xf9, 0x34, 0x12, // cmp cx, 1234
            0x81, 0x3b, b'P', b'A', b'L', b'T', // cmp dword [rbx], "PALT"
            0x66, 0x81, 0x3b, b'O', b'K', // cmp word [rbx], "OK"
            0x83, 0xf8, 0x07, // cmp eax, 7
            0x81, 0xec, 0, 0x10, 0, 0, // sub esp, 1000
            0x48, 0xb9, b'o', b'f', b'f', b's', b'h', b'o', b'o',
            b't', // movabs rcx, "offshoot"
            0x48, 0xc7, 0xc1, 0, 0, 0, 1, // mov rcx, 1000000: no comparison
        ];
        let (_, dictionary) = leaders(&[(0x1000, &code)]);
        let tokens: Vec<_> = dictionary.tokens().iter().map(|t| t.bytes()).collect();
        let wide = [0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0];
        let frame = [0, 0x10, 0, 0];
        assert_eq!(
            tokens,
            [
                &wide[..],
                &[0x34, 0x12],
                b"PALT",
                b"OK",
                &frame,
                b"offshoot"
            ]
        );
    }

    #[test]
    fn a_block_is_reached_once() {
        let frames = Arena::allocator(0x10_0000, 16);
        let code = [0x74, 0x00, 0x50, 0x74, 0xfd, 0xc3];
        let runs = codes(&[(0x1000, &code), (0x3000, &[0xc3])]);
        let mut blocks = Blocks::find(runs, &frames, &mut Dictionary::default()).unwrap();
        assert_eq!((blocks.known(), blocks.reached()), (4, 0));
        assert_eq!(blocks.reach(Gva::new(0x1002)), Some(0x50));
        assert_eq!(blocks.reach(Gva::new(0x1002)), None);
        for at in [0xfff, 0x1001, 0x1006, 0x2fff, 0x3001, u64::MAX] {
            assert_eq!(blocks.reach(Gva::new(at)), None, "{at:#x}");
        }
        assert_eq!(blocks.reach(Gva::new(0x3000)), Some(0xc3));
        let keep = |at: Gva, _| Ok::<_, ()>(at != Gva::new(0x1000));
        blocks.retain(keep).unwrap();
        blocks.retain(keep).unwrap();
        assert_eq!((blocks.known(), blocks.reached()), (3, 2));
        assert!(blocks.waiting().eq([(Gva::new(0x1005), 0xc3)]));
        assert_eq!(blocks.settle(|_, _| Err(())), Err(()));
        let mut settled = Vec::new();
        for _ in 0..2 {
            let each = |at: Gva, byte| {
                settled.push((at.as_u64(), byte));
                Ok::<_, ()>(())
            };
            blocks.settle(each).unwrap();
        }
        assert_eq!(settled, [(0x1002, 0x50), (0x3000, 0xc3)], "each once");
        drop(blocks);
        assert_eq!(frames.statistics().used, 0);
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(256)))]
        /// Whatever the bytes, blocks begin inside the code, and at most one at each byte.
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let (all, _) = leaders(&[(0x1000, &bytes)]);
            assert!(all.iter().all(|at| (0x1000..0x1000 + bytes.len() as u64).contains(at)));
        }
    }
}
