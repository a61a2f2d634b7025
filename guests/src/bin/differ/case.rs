//! One instruction, and everything that it is executed with.

use crate::block::Registers;
use crate::descriptors::{CS, Segment};
use crate::layout::{MEMORY, PAGE, WINDOW};
use crate::mode::{Code, Mode};
use core::fmt;

/// The longest that an instruction can be.
pub const LONGEST: usize = 15;

/// The bytes of an instruction.
#[derive(Clone, Copy, Default)]
pub struct Bytes {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Bytes {
    /// Adds bytes, and tells whether there was room.
    #[must_use]
    pub fn push(&mut self, more: &[u8]) -> bool {
        let room = self.bytes.get_mut(self.len..self.len + more.len());
        room.is_some_and(|room| {
            room.copy_from_slice(more);
            self.len += more.len();
            true
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x} ")?;
        }
        Ok(())
    }
}

/// Where a page of a window leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// To memory once, to the device the other time. Only in the first window.
    Target,
    /// To memory.
    Memory,
    /// To what the same page of the first window leads to.
    SameAsFirst,
}

/// A page of a window.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub lead: Lead,
    /// What its entry holds beside an address.
    pub flags: u64,
}

/// A window: the bytes before and after a bound between two pages.
#[derive(Clone, Copy)]
pub struct Window {
    /// The linear address of the bound.
    pub bound: u64,
    pub pages: [Page; 2],
    pub bytes: [u8; WINDOW as usize],
}

impl Window {
    /// The linear addresses of its pages.
    pub fn linear(&self) -> [u64; 2] {
        [self.bound.wrapping_sub(PAGE), self.bound]
    }
}

/// Where in physical memory the pages of window `number` are.
pub fn memory(number: usize) -> [u64; 2] {
    [MEMORY[number] - PAGE, MEMORY[number]]
}

/// What an INS or OUTS does, beside the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    None,
    /// Memory is written as by STOS of ones.
    In,
    /// Memory is read as by LODS.
    Out,
}

pub struct Case {
    pub mode: &'static Mode,
    pub instruction: Bytes,
    /// What stands for it where the processor executes it on memory.
    pub reference: Bytes,
    pub port: Port,
    pub registers: Registers,
    /// The linear address of the instruction.
    pub at: u64,
    pub rflags: u64,
    pub segments: [Segment; 6],
    pub fs_base: u64,
    pub gs_base: u64,
    /// Which segments lead to the first window.
    pub to_first: [bool; 6],
    pub windows: [Window; 2],
    /// DR0 to DR3, and which of them are in the first window.
    pub breakpoints: [(u64, bool); 4],
    pub dr7: u64,
    pub write_protect: bool,
    pub alignment_mask: bool,
    pub access_prevention: bool,
    pub no_execute: bool,
    /// It has REP or REPNE.
    pub repeats: bool,
    /// Flags that the instruction leaves undefined.
    pub undefined: u64,
    /// Processors differ in the upper halves of RCX, RSI and RDI: a repetition with 32-bit addresses has a count of 0.
    pub low_halves: bool,
}

impl Case {
    /// RIP at the instruction.
    pub fn rip(&self) -> u64 {
        match self.mode.code {
            Code::Bits64 => self.at,
            _ => self.at - self.segments[CS].base,
        }
    }
}
