//! What the processor is given for a case: page tables, segments, registers.

use crate::block::Before;
use crate::case::{Case, Lead, Port, memory};
use crate::descriptors::{self, CS, DS, ES, FS, GS, SS};
use crate::layout::{CODE, OWN_STACK, PAGE, REAL, REAL_REGISTERS, STACK, top};
use crate::mode::{Code, Paging, Segmentation};
use crate::registers::{CR0_PE, CR0_PG, CR4_PAE, CR4_PSE, CR4_SMAP, EFER_NXE, control0};
use crate::run::{Runner, Side};
use crate::segments::STACK_TOP;
use crate::surroundings::VM;
use crate::tables::{self, ACCESSED, DIRTY, PRESENT, USER, WRITABLE, leaf};

impl Runner {
    pub fn map(&self, case: &Case, side: Side) {
        let paging = case.mode.paging;
        if !case.mode.is_paged() {
            return;
        }
        let memory = [memory(0), memory(1)];
        let target = match side {
            Side::Memory => memory[0],
            Side::Device => [self.device, self.device + PAGE],
        };
        let first = |page: usize| match case.windows[0].pages[page].lead {
            Lead::Target => target[page],
            Lead::Memory | Lead::SameAsFirst => memory[0][page],
        };
        for (number, window) in case.windows.iter().enumerate() {
            for (at, page) in window.pages.iter().enumerate() {
                let leads = match page.lead {
                    Lead::Target => target[at],
                    Lead::Memory => memory[number][at],
                    Lead::SameAsFirst => first(at),
                };
                leaf(paging, window.linear()[at]).set(leads | page.flags);
            }
        }
        let rest = PRESENT | WRITABLE | ACCESSED | DIRTY;
        let user = if case.mode.user { USER } else { 0 };
        for page in [CODE, CODE + PAGE] {
            leaf(paging, page).set(page | rest | user);
        }
        leaf(paging, STACK).set(STACK | rest);
    }

    pub fn before(&mut self, case: &Case, side: Side) -> Before {
        let mode = case.mode;
        let mut segments = case.segments;
        for (segment, first) in segments.iter_mut().zip(case.to_first) {
            let shift = self.shift(case, side, first);
            segment.base = segment.base.wrapping_add(shift) & 0xffff_ffff;
        }
        let long = mode.code == Code::Bits64;
        let mut selectors = descriptors::describe(&segments, mode.cpl(), long);
        if mode.segmentation == Segmentation::Virtual8086 {
            selectors = segments.map(|segment| segment.base >> 4);
        }
        let mut before = Before {
            registers: case.registers,
            rip: case.rip(),
            cs: selectors[CS],
            rflags: case.rflags,
            ss: selectors[SS],
            ds: selectors[DS],
            es: selectors[ES],
            fs: selectors[FS],
            gs: selectors[GS],
            fs_base: case.fs_base,
            gs_base: case.gs_base,
            ..Before::NONE
        };
        if case.port == Port::In && side == Side::Memory {
            before.registers[0] = u64::MAX;
        }
        if mode.is_legacy() {
            self.legacy_before(case, &mut before);
        }
        before
    }

    fn legacy_before(&self, case: &Case, before: &mut Before) {
        let mode = case.mode;
        let real = mode.segmentation == Segmentation::Real;
        let (paging, cr4) = match mode.paging {
            Paging::Off => (0, 0),
            Paging::TwoLevel => (CR0_PG, CR4_PSE),
            Paging::Pae | Paging::FourLevel => (CR0_PG, CR4_PAE),
        };
        before.cr0 = control0(self.cr0, case) & !CR0_PG | CR0_PE | paging;
        before.cr4 = self.cr4 & !(CR4_PAE | CR4_PSE) | cr4;
        if case.access_prevention {
            before.cr4 |= CR4_SMAP;
        }
        before.cr3 = tables::root(mode.paging);
        before.efer = if case.no_execute { EFER_NXE } else { 0 };
        before.idt = descriptors::interrupts(real);
        before.real = real.into();
        if real {
            before.cs = case.segments[CS].base >> 4;
            // SAFETY: memory that only the way to real mode uses.
            unsafe {
                let at = (REAL + u64::from(REAL_REGISTERS)) as *mut [u64; 16];
                at.write_volatile(before.registers);
            }
        }
        let virtual_8086 = case.rflags & VM != 0;
        // What IRETD takes, and where.
        let frame = [
            before.rip as u32,
            before.cs as u32,
            before.rflags as u32,
            before.registers[4] as u32,
            before.ss as u32,
            before.es as u32,
            before.ds as u32,
            before.fs as u32,
            before.gs as u32,
        ];
        let (len, at) = match (virtual_8086, mode.user) {
            (true, _) => (9, top(&OWN_STACK) - 256),
            (_, true) => (5, top(&OWN_STACK) - 256),
            _ => (3, STACK_TOP - 12),
        };
        // SAFETY: stacks that are not in use.
        unsafe { core::ptr::copy_nonoverlapping(frame.as_ptr(), at as *mut u32, len) };
        if len == 3 {
            before.stack = (before.registers[4] as u32).wrapping_sub(12);
            before.stack_segment = before.ss as u32;
            if real {
                before.stack_segment = descriptors::selector(SS).into();
            }
        } else {
            before.stack = at as u32;
            before.stack_segment = descriptors::DATA.into();
        }
        if virtual_8086 {
            // Until IRETD loads the others.
            for segment in [
                &mut before.ds,
                &mut before.es,
                &mut before.fs,
                &mut before.gs,
            ] {
                *segment = descriptors::DATA.into();
            }
        }
    }
}
