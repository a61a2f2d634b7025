//! Runs that did not end well, each kind once.

use core::fmt;

use arrayvec::ArrayVec;

use super::corpus::INPUT_MAX;
use super::page::Page;
use crate::addr::Gva;
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::vm::outcome::Outcome;

/// The most different crashes that are kept.
pub const CRASHES_MAX: usize = 16;

/// How a run ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// How.
    pub outcome: Outcome,
    /// Where.
    pub rip: Gva,
}

impl Crash {
    /// Whether both are one to whoever looks for the cause: they ended in the same way at the same instruction. A program
    /// that goes on for ever is stopped anywhere.
    fn is_like(&self, other: &Self) -> bool {
        let same = self.outcome.name() == other.outcome.name();
        same && (self.rip == other.rip || self.outcome == Outcome::OutOfBudget)
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at RIP {:#x}", self.outcome, self.rip)
    }
}

/// A crash, the input that made it, and when it was found.
pub struct FoundCrash<'f, M: PhysMem> {
    /// The crash.
    pub crash: Crash,
    /// After how many executions.
    pub executions: u64,
    page: Page<'f, M>,
    len: usize,
}

impl<M: PhysMem> FoundCrash<'_, M> {
    /// The input.
    pub fn input(&self) -> &[u8] {
        self.page.get(..self.len).unwrap_or_default()
    }
}

/// The different crashes, in the order in which they were found.
pub struct Crashes<'f, M: PhysMem> {
    frames: &'f FrameAllocator<M>,
    found: ArrayVec<FoundCrash<'f, M>, CRASHES_MAX>,
}

impl<'f, M: PhysMem> Crashes<'f, M> {
    /// None yet.
    pub const fn new(frames: &'f FrameAllocator<M>) -> Self {
        Self {
            frames,
            found: ArrayVec::new_const(),
        }
    }

    /// All of them.
    pub fn all(&self) -> &[FoundCrash<'f, M>] {
        &self.found
    }

    /// Keeps a crash with its input, if it is a new one and there is room; returns whether.
    ///
    /// # Errors
    /// No frame for it; nothing is kept.
    pub fn add(&mut self, crash: Crash, input: &[u8], executions: u64) -> Result<bool, FrameError> {
        let known = self.found.iter().any(|found| found.crash.is_like(&crash));
        if known || self.found.is_full() {
            return Ok(false);
        }
        let mut page = Page::new(self.frames)?;
        let len = input.len().min(INPUT_MAX);
        for (to, from) in page.iter_mut().zip(input) {
            *to = *from;
        }
        let found = FoundCrash {
            crash,
            executions,
            page,
            len,
        };
        Ok(self.found.try_push(found).is_ok())
    }
}

/// Bytes as a dump: sixteen in a row, in hex and as characters.
pub struct HexDump<'b>(pub &'b [u8]);

impl fmt::Display for HexDump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (row, bytes) in self.0.chunks(16).enumerate() {
            write!(f, "{:04x} ", row * 16)?;
            for at in 0..16 {
                match bytes.get(at) {
                    Some(byte) => write!(f, " {byte:02x}")?,
                    None => f.write_str("   ")?,
                }
            }
            f.write_str("  |")?;
            for byte in bytes {
                let printable = byte.is_ascii_graphic() || *byte == b' ';
                let shown = if printable { char::from(*byte) } else { '.' };
                write!(f, "{shown}")?;
            }
            f.write_str("|\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;

    fn crash(outcome: Outcome, rip: u64) -> Crash {
        Crash {
            outcome,
            rip: Gva::new(rip),
        }
    }

    #[test]
    fn each_kind_is_kept_once() {
        let frames = Arena::allocator(0x10_0000, 32);
        let mut crashes = Crashes::new(&frames);
        let mut add = |outcome, rip| crashes.add(crash(outcome, rip), b"in", 5).unwrap();
        assert!(add(Outcome::TripleFault, 0x1000));
        assert!(!add(Outcome::TripleFault, 0x1000));
        assert!(add(Outcome::TripleFault, 0x1001));
        assert!(add(Outcome::Halted, 0x1000));
        assert!(add(Outcome::Exited(1), 0x2000));
        assert!(!add(Outcome::Exited(2), 0x2000));
        assert!(add(Outcome::OutOfBudget, 0x3000));
        assert!(!add(Outcome::OutOfBudget, 0x4000), "stopped anywhere");
        assert_eq!(crashes.all().len(), 5);
        assert_eq!(crashes.all()[1].input(), b"in");
        assert_eq!(
            crashes.all()[0].crash.to_string(),
            "triple fault at RIP 0x1000"
        );
        for rip in 0..100 {
            let _ = crashes.add(crash(Outcome::Halted, rip), &[0; INPUT_MAX + 1], 6);
        }
        assert_eq!(crashes.all().len(), CRASHES_MAX);
        assert_eq!(crashes.all()[CRASHES_MAX - 1].input().len(), INPUT_MAX);
        drop(crashes);
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn dumps_are_in_rows() {
        assert_eq!(HexDump(b"").to_string(), "");
        let text = HexDump(b"OFIM\x01\0\0\xff0123456789").to_string();
        let expected = concat!(
            "0000  4f 46 49 4d 01 00 00 ff 30 31 32 33 34 35 36 37  |OFIM....01234567|\n",
            "0010  38 39                                            |89|\n"
        );
        assert_eq!(text, expected);
    }
}
