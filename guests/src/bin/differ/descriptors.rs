//! Segments and interrupts: the tables that hold for all modes, and the segments of one case.

use crate::block::{BLOCK, Shared, TablePointer};
use crate::layout::{HANDLER_STACK, OWN_STACK, REAL, REAL_INTERRUPTS, top};
use crate::legacy::{self, REAL_STUB_SIZE};
use crate::long::{self, STUB_SIZE, VECTORS};
use core::arch::asm;
use core::fmt;

pub const CODE64: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE32: u16 = 0x18;
/// 16-bit code on the way to real mode.
pub const CODE16: u16 = 0x20;
const TASK64: u16 = 0x28;
pub const TASK32: u16 = 0x38;
/// The first of six segments for code under test, in the order of their numbers in encodings.
const TESTED: u16 = 0x48;
const ENTRIES: usize = 15;

/// Segment registers by their numbers.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;

const BREAKPOINT: usize = 3;
/// Dwords of a TSS.
const TASK_DWORDS: usize = 26;
/// Dwords of the map of ports behind it: all of those below 0x400 are allowed.
const PORT_DWORDS: usize = 32;
/// Bytes of both, and one more that ends the map.
const TASK_LIMIT: u64 = 4 * (TASK_DWORDS + PORT_DWORDS) as u64;

type Task = [u32; TASK_DWORDS + PORT_DWORDS + 1];

static GDT: Shared<[u64; ENTRIES]> = Shared::new([0; ENTRIES]);
static IDT64: Shared<[[u64; 2]; VECTORS]> = Shared::new([[0; 2]; VECTORS]);
static IDT32: Shared<[u64; VECTORS]> = Shared::new([0; VECTORS]);
static TASKS: Shared<[Task; 2]> = Shared::new([[0; TASK_DWORDS + PORT_DWORDS + 1]; 2]);

/// A segment of code under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub base: u64,
    /// 20 bits, in pages if `granular`.
    pub limit: u32,
    pub granular: bool,
    /// D or B.
    pub big: bool,
    /// The four bits of its type.
    pub kind: u8,
    /// Instead of all that, a null selector.
    pub null: bool,
}

pub const WRITABLE: u8 = 1 << 1;
pub const EXPAND_DOWN: u8 = 1 << 2;
pub const IS_CODE: u8 = 1 << 3;
const ACCESSED: u8 = 1;

impl Segment {
    /// All of the first 4 GiB, for data.
    pub const FLAT: Self = Self {
        base: 0,
        limit: 0xf_ffff,
        granular: true,
        big: true,
        kind: WRITABLE,
        null: false,
    };

    /// With the highest offset `limit`, or the closest that a descriptor can tell.
    pub fn with_limit(mut self, limit: u32) -> Self {
        self.granular = limit > 0xf_ffff;
        self.limit = if self.granular { limit >> 12 } else { limit };
        self
    }

    fn descriptor(&self, cpl: u8, long: bool) -> u64 {
        let base = self.base & 0xffff_ffff;
        let limit = u64::from(self.limit);
        let bit = |on: bool, at: u32| u64::from(on) << at;
        let access = self.kind | ACCESSED | 0x90 | cpl << 5;
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | u64::from(access) << 40
            | (limit >> 16) << 48
            | bit(long, 53)
            | bit(self.big && !long, 54)
            | bit(self.granular, 55)
            | (base >> 24) << 56
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.null {
            return f.write_str("null");
        }
        let pages = if self.granular { "p" } else { "" };
        let big = if self.big { "b" } else { "" };
        write!(
            f,
            "{:x}+{:x}{pages}:{:x}{big}",
            self.base, self.limit, self.kind
        )
    }
}

/// The selector of a segment of code under test, at CPL 0.
pub const fn selector(number: usize) -> u16 {
    TESTED + 8 * number as u16
}

/// Fills what holds for all modes, and loads it.
pub fn install() {
    let tasks = TASKS.address();
    // SAFETY: one CPU, which looks at these tables when they are loaded, below.
    unsafe {
        let [long, legacy] = &mut *TASKS.0.get();
        for task in [&mut *long, &mut *legacy] {
            task[25] = (4 * TASK_DWORDS as u32) << 16;
            task[TASK_DWORDS + PORT_DWORDS] = !0;
        }
        // RSP0 and IST1; ESP0 and SS0.
        for at in [1, 9] {
            long[at] = top(&HANDLER_STACK) as u32;
        }
        (legacy[1], legacy[2]) = (top(&HANDLER_STACK) as u32, DATA.into());
        let gdt = &mut *GDT.0.get();
        gdt[1..4].copy_from_slice(&[
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
        ]);
        gdt[4] = 0x0000_9b00_0000_ffff | REAL << 16;
        for vector in 0..VECTORS {
            let dpl = if vector == BREAKPOINT { 0x6000 } else { 0 };
            let stub = long::stubs as *const () as u64 + (vector * STUB_SIZE) as u64;
            let gate = |stub: u64, selector: u16, low: u64| {
                stub & 0xffff
                    | u64::from(selector) << 16
                    | (0x8e00 | dpl | low) << 32
                    | (stub >> 16 & 0xffff) << 48
            };
            (*IDT64.0.get())[vector] = [gate(stub, CODE64, 0) | 1 << 32, stub >> 32];
            (*IDT32.0.get())[vector] = gate(legacy::stub(vector), CODE32, 0);
            let real = (REAL as u32 >> 4) << 16 | (vector * REAL_STUB_SIZE) as u32;
            (REAL_INTERRUPTS as *mut u32)
                .add(vector)
                .write_volatile(real);
        }
        let (code, len) = legacy::real_code();
        core::ptr::copy_nonoverlapping(code, REAL as *mut u8, len);
        (*BLOCK.0.get()).own.stack = top(&OWN_STACK);
        let gdt = TablePointer::new(GDT.address(), 8 * ENTRIES);
        asm!(
            "lgdt [{gdt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov {scratch:e}, {data}",
            "mov ss, {scratch:e}",
            "mov ds, {scratch:e}",
            "mov es, {scratch:e}",
            gdt = in(reg) &raw const gdt.limit,
            scratch = out(reg) _,
            code = const CODE64,
            data = const DATA,
        );
    }
    assert!(tasks >> 32 == 0 && tasks & 3 == 0);
    load();
}

/// Loads IDT and TR of 64-bit code, and makes ready a task for 32-bit code.
pub fn load() {
    let idt = TablePointer::new(IDT64.address(), size_of::<[[u64; 2]; VECTORS]>());
    let describe = |task: u64| {
        0x8900_0000_0000 | TASK_LIMIT | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56
    };
    let long = TASKS.address();
    let legacy = long + size_of::<Task>() as u64;
    // SAFETY: the tables are complete.
    unsafe {
        let gdt = &mut *GDT.0.get();
        // Neither is busy.
        gdt[usize::from(TASK64 / 8)] = describe(long);
        gdt[usize::from(TASK64 / 8) + 1] = 0;
        gdt[usize::from(TASK32 / 8)] = describe(legacy);
        asm!(
            "lidt [{idt}]",
            "ltr {task:x}",
            idt = in(reg) &raw const idt.limit,
            task = in(reg) u32::from(TASK64),
            options(nostack)
        );
    }
}

/// The interrupt table of protected or real mode.
pub fn interrupts(real: bool) -> TablePointer {
    if real {
        TablePointer::new(REAL_INTERRUPTS, 4 * 256)
    } else {
        TablePointer::new(IDT32.address(), size_of::<[u64; VECTORS]>())
    }
}

/// Describes the segments of a case and returns their selectors. CS is 64-bit code if `long`.
pub fn describe(segments: &[Segment; 6], cpl: u8, long: bool) -> [u64; 6] {
    core::array::from_fn(|number| {
        let segment = &segments[number];
        let descriptor = segment.descriptor(cpl, long && number == CS);
        // SAFETY: no register holds this selector while this program itself runs.
        unsafe { (*GDT.0.get())[usize::from(TESTED / 8) + number] = descriptor };
        if segment.null {
            // Of a null SS, RPL counts.
            if number == SS { cpl.into() } else { 0 }
        } else {
            u64::from(selector(number)) | u64::from(cpl)
        }
    })
}
