//! In which modes of the processor instructions are tried.

/// What code the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Bits16,
    Bits32,
    Bits64,
}

/// Which page tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// None: a linear address is a physical one.
    Off,
    /// 32-bit paging.
    TwoLevel,
    /// PAE paging.
    Pae,
    /// 4-level paging, so IA-32e mode.
    FourLevel,
}

/// How segments work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// By descriptors; in 64-bit code by FS and GS alone.
    Protected,
    /// Real mode. Bases and limits are left over from protected mode.
    Real,
    /// Virtual-8086 mode: bases are selectors.
    Virtual8086,
}

/// A mode with a privilege level.
#[derive(Debug, PartialEq, Eq)]
pub struct Mode {
    pub name: &'static str,
    pub code: Code,
    pub paging: Paging,
    pub segmentation: Segmentation,
    pub user: bool,
}

impl Mode {
    const fn new(name: &'static str, code: Code, paging: Paging, user: bool) -> Self {
        Self {
            name,
            code,
            paging,
            segmentation: Segmentation::Protected,
            user,
        }
    }

    const fn with(mut self, segmentation: Segmentation) -> Self {
        self.segmentation = segmentation;
        self
    }

    /// Outside IA-32e mode: guests get there where they may switch paging off.
    pub fn is_legacy(&self) -> bool {
        self.paging != Paging::FourLevel
    }

    pub fn is_paged(&self) -> bool {
        self.paging != Paging::Off
    }

    pub fn is_protected(&self) -> bool {
        self.segmentation == Segmentation::Protected
    }

    /// An exception does not change stacks, so SS and RSP must lead to one.
    pub fn keeps_stack(&self) -> bool {
        self.is_legacy() && !self.user
    }

    /// The privilege level.
    pub fn cpl(&self) -> u8 {
        if self.user { 3 } else { 0 }
    }
}

use Code::{Bits16, Bits32, Bits64};
use Paging::{FourLevel, Off, Pae, TwoLevel};

pub static MODES: [Mode; 21] = [
    Mode::new("64-bit.cpl0", Bits64, FourLevel, false),
    Mode::new("64-bit.cpl3", Bits64, FourLevel, true),
    Mode::new("compat32.cpl0", Bits32, FourLevel, false),
    Mode::new("compat32.cpl3", Bits32, FourLevel, true),
    Mode::new("compat16.cpl0", Bits16, FourLevel, false),
    Mode::new("compat16.cpl3", Bits16, FourLevel, true),
    Mode::new("32-bit.unpaged.cpl0", Bits32, Off, false),
    Mode::new("32-bit.unpaged.cpl3", Bits32, Off, true),
    Mode::new("16-bit.unpaged.cpl0", Bits16, Off, false),
    Mode::new("16-bit.unpaged.cpl3", Bits16, Off, true),
    Mode::new("32-bit.two-level.cpl0", Bits32, TwoLevel, false),
    Mode::new("32-bit.two-level.cpl3", Bits32, TwoLevel, true),
    Mode::new("16-bit.two-level.cpl0", Bits16, TwoLevel, false),
    Mode::new("16-bit.two-level.cpl3", Bits16, TwoLevel, true),
    Mode::new("32-bit.pae.cpl0", Bits32, Pae, false),
    Mode::new("32-bit.pae.cpl3", Bits32, Pae, true),
    Mode::new("16-bit.pae.cpl0", Bits16, Pae, false),
    Mode::new("16-bit.pae.cpl3", Bits16, Pae, true),
    Mode::new("real", Bits16, Off, false).with(Segmentation::Real),
    Mode::new("virtual-8086.two-level", Bits16, TwoLevel, true).with(Segmentation::Virtual8086),
    Mode::new("virtual-8086.pae", Bits16, Pae, true).with(Segmentation::Virtual8086),
];
