//! Fetching the instruction that made an access, and what was decoded before.
//!
//! The bytes are fetched anew at each exit, through the guest's tables as they are: what was decoded is found again by the
//! bytes that it was decoded from, so it holds whatever the guest does to its code.

use super::super::loader::GuestMemory;
use super::super::virtual_memory::{GuestVirtual, VirtualFault};
use super::{CodeMode, DecodeError, Instruction, LONGEST, Why, decode};
use crate::addr::Gva;

/// Bytes of code, the first one lowest; those that are not known are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    bytes: u128,
    known: u8,
}

impl Code {
    /// No bytes.
    pub const NONE: Self = Self { bytes: 0, known: 0 };

    /// The bytes, and how many of them are known.
    pub fn bytes(&self) -> ([u8; LONGEST], u8) {
        let mut first = [0; LONGEST];
        for (byte, known) in first.iter_mut().zip(self.bytes.to_le_bytes()) {
            *byte = known;
        }
        (first, self.known)
    }

    /// Fetches what follows, from `at` to the end of its page or until as much is known as an instruction can have.
    ///
    /// # Errors
    /// The fault of the fetch, or why the bytes are no instruction that can be carried out.
    #[inline(always)]
    fn fetch<M: GuestMemory>(
        &mut self,
        memory: &GuestVirtual<'_, M>,
        at: Gva,
    ) -> Result<(), VirtualFault<M::Error>> {
        let (words, in_page) = memory.code(at)?;
        let [low, middle, high] = words.map(u128::from);
        let skipped = 8 * (at.as_u64() % 8) as u32;
        // Three words, of which the first begins with up to 7 bytes of no interest.
        let mut fetched = (low | middle << 64) >> skipped;
        if skipped != 0 {
            fetched |= high << (128 - skipped);
        }
        self.bytes |= fetched << (8 * u32::from(self.known));
        self.known = (u64::from(self.known) + in_page).min(LONGEST as u64) as u8;
        self.bytes &= first(self.known);
        Ok(())
    }
}

/// The lowest bytes of 16, at most [`LONGEST`].
const fn first(len: u8) -> u128 {
    (1 << (8 * (len as u32 % 16))) - 1
}

/// An instruction that was decoded, and the bytes that made it.
#[derive(Clone, Copy, Debug)]
struct Known {
    mode: CodeMode,
    bytes: u128,
    instruction: Instruction,
}

/// Instructions that were decoded before, of any guest: what they are follows from their bytes alone.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// By where they were.
    slots: [Option<Known>; SLOTS],
}

const SLOTS: usize = 16;

impl Decoded {
    /// None.
    pub const NONE: Self = Self {
        slots: [None; SLOTS],
    };

    /// The instruction at the beginning of `code`, of which it looks no further than `decode` has.
    #[inline(always)]
    fn find(&self, mode: CodeMode, rip: Gva, code: &Code) -> Option<&Instruction> {
        let known = self.slots.get(slot(rip))?.as_ref()?;
        let length = known.instruction.length;
        let same = (known.bytes ^ code.bytes) & first(length) == 0;
        (same && length <= code.known && known.mode == mode).then_some(&known.instruction)
    }

    fn remember(&mut self, mode: CodeMode, rip: Gva, code: &Code, instruction: Instruction) {
        if let Some(slot) = self.slots.get_mut(slot(rip)) {
            *slot = Some(Known {
                mode,
                bytes: code.bytes,
                instruction,
            });
        }
    }
}

#[inline(always)]
fn slot(rip: Gva) -> usize {
    let rip = rip.as_u64() as usize;
    (rip ^ rip >> 4) % SLOTS
}

/// Fetches and decodes the instruction at the linear address `rip`. What was fetched is put into `code`.
///
/// # Errors
/// The fault of the fetch, or why the bytes are no instruction that can be carried out.
#[inline(always)]
pub fn fetch<M: GuestMemory>(
    memory: &GuestVirtual<'_, M>,
    mode: CodeMode,
    rip: Gva,
    decoded: &mut Decoded,
    code: &mut Code,
) -> Result<Instruction, Why> {
    code.fetch(memory, rip).map_err(why)?;
    if let Some(instruction) = decoded.find(mode, rip, code) {
        return Ok(*instruction);
    }
    fetch_new(memory, mode, rip, decoded, code)
}

/// Fetches code at the linear address `rip` until `is_enough` of its bytes are known, or as many as an instruction can have, or as
/// can be reached without a fault. Returns whether they are enough.
///
/// # Errors
/// The fault of the first fetch.
pub fn fetch_code<M: GuestMemory>(
    memory: &GuestVirtual<'_, M>,
    mode: CodeMode,
    rip: Gva,
    mut is_enough: impl FnMut(&[u8]) -> bool,
) -> Result<bool, Why> {
    let mut code = Code::NONE;
    code.fetch(memory, rip).map_err(why)?;
    loop {
        let (bytes, known) = code.bytes();
        if is_enough(bytes.get(..known.into()).unwrap_or_default()) {
            return Ok(true);
        }
        let next = rip.as_u64().wrapping_add(known.into()) & mode.linear_mask();
        if usize::from(known) >= LONGEST || code.fetch(memory, Gva::new(next)).is_err() {
            return Ok(false);
        }
    }
}

#[inline(never)]
fn fetch_new<M: GuestMemory>(
    memory: &GuestVirtual<'_, M>,
    mode: CodeMode,
    rip: Gva,
    decoded: &mut Decoded,
    code: &mut Code,
) -> Result<Instruction, Why> {
    loop {
        let (bytes, known) = code.bytes();
        let found = decode(mode, bytes.get(..known.into()).unwrap_or_default());
        match found {
            // The next page is looked at only where the instruction reaches into it.
            Err(DecodeError::TooShort) if usize::from(known) < LONGEST => {
                let next = rip.as_u64().wrapping_add(known.into()) & mode.linear_mask();
                code.fetch(memory, Gva::new(next)).map_err(why)?;
            }
            Err(error) => return Err(Why::Instruction(error)),
            Ok(instruction) => {
                decoded.remember(mode, rip, code, instruction);
                return Ok(instruction);
            }
        }
    }
}

fn why<E>(fault: VirtualFault<E>) -> Why {
    match fault {
        VirtualFault::Page { address, code } => Why::CodeFaults { address, code },
        _ => Why::NoCode,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::virtual_memory::{Privilege, Translation};
    use super::*;
    use crate::addr::Gpa;

    /// Two pages; the rest is nothing.
    struct Memory(Vec<u8>);
    impl GuestMemory for Memory {
        type Error = ();
        fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), ()> {
            let at = from.as_u64() as usize;
            into.copy_from_slice(self.0.get(at..at + into.len()).ok_or(())?);
            Ok(())
        }
        fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), ()> {
            let at = to.as_u64() as usize;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn fetched(
        memory: &mut Memory,
        decoded: &mut Decoded,
        mode: CodeMode,
        rip: u64,
    ) -> (Result<Instruction, Why>, Code) {
        let privilege = Privilege::new(0, 0, 0, 0);
        let memory = GuestVirtual::new(memory, &Translation::OFF, privilege);
        let mut code = Code::NONE;
        let found = fetch(&memory, mode, Gva::new(rip), decoded, &mut code);
        (found, code)
    }

    #[test]
    fn code_is_fetched_from_anywhere_and_no_further_than_needed() {
        use CodeMode::Bits64;
        // mov dword ptr [rax + rcx * 8 + 0x11223344], 0x55667788
        const LONG: [u8; 11] = [
            0xc7, 0x84, 0xc8, 0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55,
        ];
        let expected = decode(Bits64, &LONG).unwrap();
        for rip in (0x800..0x820)
            .chain(0xff0..0x1008)
            .chain(0x1ff5 - 8..=0x1ff5)
        {
            let mut memory = Memory(vec![0x90; 0x2000]);
            memory.0[rip as usize..][..LONG.len()].copy_from_slice(&LONG);
            let mut decoded = Decoded::NONE;
            // The first time, and from what was decoded then.
            for _ in 0..2 {
                let (found, code) = fetched(&mut memory, &mut decoded, Bits64, rip);
                assert_eq!(found, Ok(expected), "{rip:#x}");
                let (bytes, known) = code.bytes();
                let known = usize::from(known);
                assert_eq!(bytes[..known], memory.0[rip as usize..][..known]);
                assert!(known == LONGEST || (rip as usize + known).is_multiple_of(0x1000));
                assert!(bytes[known..].iter().all(|&byte| byte == 0));
            }
        }
        // Where it goes on where nothing is.
        let mut memory = Memory(vec![0x90; 0x2000]);
        memory.0[0x1ff6..].copy_from_slice(&LONG[..10]);
        let (found, code) = fetched(&mut memory, &mut Decoded::NONE.clone(), Bits64, 0x1ff6);
        assert_eq!((found, code.bytes().1), (Err(Why::NoCode), 10));
        let (found, _) = fetched(&mut memory, &mut Decoded::NONE.clone(), Bits64, 0x2000);
        assert_eq!(found, Err(Why::NoCode));
    }

    #[test]
    fn code_that_must_not_be_fetched_is_a_page_fault() {
        let mut memory = Memory(vec![0; 0x5000]);
        for (at, entry) in [
            (0, 0x1007_u64),
            (0x1000, 0x2007),
            (0x2000, 0x3007),
            (0x3000, 0x4003),
        ] {
            memory.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        let tables = Translation::four_level(Gpa::new(0));
        let mut found = |entry: u64, privilege| {
            memory.0[0x3000..0x3008].copy_from_slice(&entry.to_le_bytes());
            let guest = GuestVirtual::new(&mut memory, &tables, privilege);
            let mut decoded = Decoded::NONE;
            fetch(
                &guest,
                CodeMode::Bits64,
                Gva::new(4),
                &mut decoded,
                &mut Code::NONE.clone(),
            )
            .map(drop)
        };
        let fault = |code| {
            Err(Why::CodeFaults {
                address: Gva::new(4),
                code,
            })
        };
        let [kernel, kept_out, user] =
            [(0, 0), (0, 1 << 20), (3, 0)].map(|(cpl, cr4)| Privilege::new(cpl, 0, cr4, 0));
        const NO_EXECUTE: u64 = 1 << 63;
        for (entry, privilege, expected) in [
            (0x4003, kernel, Ok(())),
            (0x4007, user, Ok(())),
            (0x4007, kept_out, fault(0x11)),
            (0x4003, kept_out, Ok(())),
            (0x4003, user, fault(0x15)),
            (0x4003 | NO_EXECUTE, kernel, fault(0x11)),
            (0x4003 | 1 << 45, kernel, fault(0x19)),
            (0x4002, kernel, fault(0x10)),
        ] {
            assert_eq!(found(entry, privilege), expected, "{entry:#x}");
        }
    }

    #[test]
    fn code_that_changes_is_decoded_anew() {
        use CodeMode::{Bits16, Bits32, Bits64};
        let mut memory = Memory(vec![0; 0x2000]);
        let mut decoded = Decoded::NONE;
        // The same place in one mode after the other, with one byte after the other changed, at the end of memory too.
        for (rip, len) in [(0x100, 16), (0x1ffa, 6)] {
            for mode in [Bits64, Bits32, Bits16, Bits64] {
                for (offset, byte) in [
                    (0, 0x66),
                    (1, 0xc7),
                    (2, 0x40),
                    (3, 7),
                    (4, 1),
                    (1, 0x89),
                    (0, 0x8b),
                    (0, 0xf0),
                ] {
                    memory.0[rip + offset] = byte;
                    let expected = decode(mode, &memory.0[rip..][..len.min(LONGEST)]);
                    let (found, _) = fetched(&mut memory, &mut decoded, mode, rip as u64);
                    let expected = expected.map_err(|error| match error {
                        DecodeError::TooShort => Why::NoCode,
                        error => Why::Instruction(error),
                    });
                    assert_eq!(found, expected, "{rip:#x} {mode:?} {offset} {byte:#x}");
                }
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(256)))]

        /// What comes behind an instruction does not change what it is: so it may be found by its own bytes alone.
        #[test]
        fn an_instruction_is_its_own_bytes(
            chunks in proptest::collection::vec(proptest::array::uniform15(proptest::num::u8::ANY), 64),
            other in proptest::array::uniform15(proptest::num::u8::ANY),
        ) {
            for bytes in chunks {
                for mode in [CodeMode::Bits16, CodeMode::Bits32, CodeMode::Bits64] {
                    let Ok(instruction) = decode(mode, &bytes) else { continue };
                    let length = usize::from(instruction.length);
                    let mut changed = other;
                    changed[..length].copy_from_slice(&bytes[..length]);
                    proptest::prop_assert_eq!(decode(mode, &changed), Ok(instruction));
                    proptest::prop_assert_eq!(decode(mode, &bytes[..length]), Ok(instruction));
                }
            }
        }
    }
}
