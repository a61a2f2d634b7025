//! Executing a case, once with its target in memory and once in the device.

use crate::block::{After, BLOCK};
use crate::case::{Case, Lead};
use crate::layout::{HALF, MEMORY, PAGE, WINDOW};
use crate::mode::Paging;
use crate::registers::{
    CR0_AM, CR4_SMAP, EFER_LME, EFER_NXE, clear_breakpoints, control0, load_cr3, set_breakpoints,
    set_cr0, set_cr4, set_efer,
};
use crate::tables::{self, ACCESSED, DIRTY, leaf};
use crate::{descriptors, legacy, long};
use core::arch::asm;

const INT3: u8 = 0xcc;

type Bytes = [u8; WINDOW as usize];

/// Where the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Memory,
    Device,
}

/// What an instruction left.
#[derive(Clone, Copy)]
pub struct Outcome {
    pub after: After,
    pub windows: [Bytes; 2],
    /// Accessed and dirty of the pages of both windows.
    pub marks: [u64; 4],
}

/// The processor as this program runs on it.
pub struct Runner {
    pub device: u64,
    pub cr0: u64,
    pub cr4: u64,
}

impl Runner {
    /// With tables, segments and interrupts of its own.
    pub fn new(device: u64) -> Self {
        tables::build();
        load_cr3(tables::root(Paging::FourLevel));
        descriptors::install();
        let (cr0, cr4): (u64, u64);
        // SAFETY: reads registers.
        unsafe {
            asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack))
        };
        let runner = Self {
            device,
            cr0: cr0 & !CR0_AM,
            cr4,
        };
        // SAFETY: one CPU; the block is used by what is called here only.
        let own = unsafe { &mut (*BLOCK.0.get()).own };
        own.cr0 = runner.cr0;
        own.cr3 = tables::root(Paging::FourLevel);
        own.cr4 = cr4;
        own.efer = EFER_LME | EFER_NXE;
        runner
    }

    /// Where the bytes of the first window are in the device, which both of its pages are.
    fn device_window(&self) -> u64 {
        self.device + PAGE - HALF
    }

    /// Executes the case.
    pub fn run(&mut self, case: &Case, side: Side) -> Outcome {
        self.fill(case, side);
        self.map(case, side);
        let before = self.before(case, side);
        // SAFETY: as in `new`.
        unsafe {
            (*BLOCK.0.get()).before = before;
            (*BLOCK.0.get()).after = After::NONE;
        }
        set_breakpoints(case, |first| self.shift(case, side, first));
        if case.mode.is_legacy() {
            // SAFETY: the state is complete, and exceptions find handlers.
            unsafe { legacy::enter() };
            descriptors::load();
        } else {
            self.enter_long(case);
        }
        clear_breakpoints();
        // SAFETY: as in `new`.
        let after = unsafe { (*BLOCK.0.get()).after };
        Outcome {
            after,
            windows: [self.first_window(case, side), self.second_window()],
            marks: self.marks(case),
        }
    }

    /// Executes in IA-32e mode. Of control registers, only what differs is written.
    fn enter_long(&self, case: &Case) {
        let cr0 = control0(self.cr0, case);
        let cr4 = self.cr4 | if case.access_prevention { CR4_SMAP } else { 0 };
        set_cr0(cr0);
        if cr4 != self.cr4 {
            set_cr4(cr4);
        }
        if !case.no_execute {
            set_efer(EFER_LME);
        }
        load_cr3(tables::root(case.mode.paging));
        // SAFETY: as in `run`.
        unsafe { long::enter() };
        if !case.no_execute {
            set_efer(EFER_LME | EFER_NXE);
        }
        if cr4 != self.cr4 {
            set_cr4(self.cr4);
        }
        set_cr0(self.cr0);
    }

    /// By how much what is in the first window is moved for the device, where no tables lead there.
    pub fn shift(&self, case: &Case, side: Side, first: bool) -> u64 {
        if first && side == Side::Device && !case.mode.is_paged() {
            self.device + PAGE - MEMORY[0]
        } else {
            0
        }
    }

    /// Bytes and code.
    fn fill(&self, case: &Case, side: Side) {
        // SAFETY: memory that only code under test uses, and the device.
        unsafe {
            for (window, bound) in case.windows.iter().zip(MEMORY) {
                copy(window.bytes.as_ptr() as u64, bound - HALF);
            }
            if side == Side::Device {
                copy(case.windows[0].bytes.as_ptr() as u64, self.device_window());
            }
            let code = match side {
                Side::Memory => &case.reference,
                Side::Device => &case.instruction,
            };
            let code = code.as_slice();
            let at = case.at as *mut u8;
            core::ptr::copy_nonoverlapping(code.as_ptr(), at, code.len());
            at.add(code.len()).write_bytes(INT3, 4);
        }
    }

    /// The bytes of the first window.
    fn first_window(&self, case: &Case, side: Side) -> Bytes {
        let mut bytes = [0; WINDOW as usize];
        // SAFETY: as in `fill`.
        unsafe {
            copy(MEMORY[0] - HALF, bytes.as_mut_ptr() as u64);
            if side == Side::Device {
                let mut of_device = [0; WINDOW as usize];
                copy(self.device_window(), of_device.as_mut_ptr() as u64);
                for (page, half) in [0..HALF as usize, HALF as usize..WINDOW as usize]
                    .into_iter()
                    .enumerate()
                {
                    if case.windows[0].pages[page].lead == Lead::Target {
                        bytes[half.clone()].copy_from_slice(&of_device[half]);
                    }
                }
            }
        }
        bytes
    }

    /// Those of the second.
    fn second_window(&self) -> Bytes {
        let mut bytes = [0; WINDOW as usize];
        // SAFETY: as in `fill`.
        unsafe { copy(MEMORY[1] - HALF, bytes.as_mut_ptr() as u64) };
        bytes
    }

    fn marks(&self, case: &Case) -> [u64; 4] {
        let [a, b] = case.windows[0].linear();
        let [c, d] = case.windows[1].linear();
        [a, b, c, d].map(|linear| leaf(case.mode.paging, linear).get() & (ACCESSED | DIRTY))
    }
}

/// Copies the bytes of a window.
///
/// # Safety
/// Both must be memory for that, or the device.
unsafe fn copy(from: u64, to: u64) {
    // SAFETY: as the caller says.
    unsafe {
        asm!("rep movsq", inout("rcx") WINDOW / 8 => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack));
    }
}

/// Whether the outcome is one of this program's own mistakes: the exception was not raised where code under test is.
pub fn is_mistake(case: &Case, outcome: &Outcome) -> bool {
    let len = case.instruction.as_slice().len() as u64;
    // INT3 ends behind itself.
    !(case.rip()..=case.rip() + len + 1).contains(&outcome.after.rip)
}
