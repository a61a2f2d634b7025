//! What differs between two outcomes.

use crate::block::After;
use crate::case::{Case, Port};
use crate::mode::Code;
use crate::run::Outcome;
use crate::surroundings::RF;
use core::fmt;
use offshoot_guest::trap::{AC, BP, DB, GP, PF, SS};

const RCX: usize = 1;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// What differs, and all that is needed to understand why.
pub struct Difference<'c> {
    pub case: &'c Case,
    pub cpu: &'c Outcome,
    pub us: &'c Outcome,
}

/// Whether a repetition was interrupted by a trap between two elements. RF is 1 then (SDM "Instruction-Breakpoint
/// Exception Condition", 19.3.1.1), where Bochs pushes 0, and so where it
/// is on memory that the repetition is.
fn part_done(case: &Case, after: &After) -> bool {
    let moved = after.registers[RCX] as u16 != case.registers[RCX] as u16;
    case.repeats && after.vector == DB.into() && after.rip == case.rip() && moved
}

/// The bits in DR6 of breakpoints that are not enabled: whether they are set where others are met is the processor's
/// choice (SDM "Debug Status Register (DR6)", 19.2.3).
fn disabled(dr7: u64) -> u64 {
    (0..4)
        .filter(|number| dr7 >> (2 * number) & 3 == 0)
        .fold(0, |bits, number| bits | 1 << number)
}

/// Calls `tell` with each thing that differs: its name, what the processor left, and what we did.
fn each(case: &Case, cpu: &Outcome, us: &Outcome, mut tell: impl FnMut(&'static str, u64, u64)) {
    let mut check = |name, cpu: u64, us: u64| {
        if cpu != us {
            tell(name, cpu, us);
        }
    };
    let (a, b) = (&cpu.after, &us.after);
    // Which of these comes first is the processor's choice (SDM "Priority Among Concurrent Events", 7.9, notes).
    let unaligned_too = a.vector == AC.into() && [SS, GP, PF].map(u64::from).contains(&b.vector);
    if !unaligned_too {
        check("vector", a.vector, b.vector);
        check("error", a.error, b.error);
        check("cr2", a.cr2, b.cr2);
    }
    check("rip", a.rip, b.rip);
    check("cs", a.cs, b.cs);
    let resume = if part_done(case, a) { b.rflags & RF } else { 0 };
    let defined = |rflags: u64| rflags & !case.undefined;
    check("rflags", defined(a.rflags | resume), defined(b.rflags));
    check("rsp", a.rsp, b.rsp);
    check("ss", a.ss, b.ss);
    let met = !disabled(case.dr7);
    check("dr6", a.dr6 & met, b.dr6 & met);
    // Outside 64-bit mode the upper halves are undefined.
    let (mask, count) = match case.mode.code {
        Code::Bits64 => (u64::MAX, 16),
        _ => (u64::MAX >> 32, 8),
    };
    for (number, name) in NAMES.into_iter().enumerate().take(count) {
        let mut expected = a.registers[number];
        if number == 0 && case.port != Port::None {
            // What stands for a port instruction uses it.
            expected = case.registers[0];
        }
        let mask = match number {
            1 | 6 | 7 if case.low_halves => mask & 0xffff_ffff,
            _ => mask,
        };
        check(name, expected & mask, b.registers[number] & mask);
    }
    for (name, a, b) in [
        ("memory", &cpu.windows[0], &us.windows[0]),
        ("other memory", &cpu.windows[1], &us.windows[1]),
    ] {
        if let Some(at) = (0..a.len()).find(|&at| a[at] != b[at]) {
            let value = |bytes: &[u8]| {
                let bytes = bytes.iter().skip(at).take(7).rev();
                bytes.fold(0, |value, byte| value << 8 | u64::from(*byte)) << 8 | at as u64
            };
            check(name, value(a), value(b));
        }
    }
    for (name, number) in [("mark 0", 0), ("mark 1", 1), ("mark 2", 2), ("mark 3", 3)] {
        // Alignment may be looked at before tables are, or after.
        if a.vector == AC.into() {
            break;
        }
        // What a fault leaves of the marks is the processor's choice; only of what it does not access, there are none.
        let (cpu, us) = (cpu.marks[number], us.marks[number]);
        let faulted = ![BP, DB].map(u64::from).contains(&a.vector);
        check(name, if faulted { cpu & us } else { cpu }, us);
    }
}

/// Whether anything differs.
pub fn differs(case: &Case, cpu: &Outcome, us: &Outcome) -> bool {
    let mut differs = false;
    each(case, cpu, us, |_, _, _| differs = true);
    differs
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { case, cpu, us } = self;
        write!(
            f,
            "{}; vector {} -> {}:",
            case.instruction, cpu.after.vector, us.after.vector
        )?;
        let mut result = Ok(());
        each(case, cpu, us, |name, cpu, us| {
            result = result.and_then(|()| write!(f, " {name} {cpu:#x} -> {us:#x},"));
        });
        result
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "; at {:#x} flags {:#x} wp {} am {} smap {} nxe {}",
            self.at,
            self.rflags,
            u8::from(self.write_protect),
            u8::from(self.alignment_mask),
            u8::from(self.access_prevention),
            u8::from(self.no_execute)
        )?;
        for window in &self.windows {
            write!(f, "; bound {:#x}", window.bound)?;
            for page in window.pages {
                write!(f, " {:?} {:#x}", page.lead, page.flags)?;
            }
        }
        if self.dr7 != 0 {
            write!(f, "; dr7 {:#x}", self.dr7)?;
            for (address, _) in self.breakpoints {
                write!(f, " {address:#x}")?;
            }
        }
        f.write_str("; segments")?;
        for segment in &self.segments {
            write!(f, " {segment}")?;
        }
        write!(
            f,
            " fs {:#x} gs {:#x}; registers",
            self.fs_base, self.gs_base
        )?;
        for register in self.registers {
            write!(f, " {register:x}")?;
        }
        Ok(())
    }
}
