//! GDT, TSS and the stacks of exceptions.

use core::cell::UnsafeCell;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// Bytes of the kernel's own stack.
pub const STACK_SIZE: usize = 256 * 1024;
const TRAP_STACK_SIZE: usize = 16 * 1024;

/// Exceptions run on stacks of their own: the prebuilt `core` keeps data below RSP, which a frame pushed there would
/// overwrite. NMI, double fault and machine check may arrive inside another handler and so have one each.
#[derive(Clone, Copy)]
#[repr(u16)]
pub enum TrapStack {
    Exception = 0,
    Nmi = 1,
    DoubleFault = 2,
    MachineCheck = 3,
}
const TRAP_STACKS: usize = 4;

/// A stack with a page below it that the kernel's tables leave unmapped.
#[repr(C, align(4096))]
pub struct Stack<const N: usize> {
    guard: UnsafeCell<[u8; 4096]>,
    bytes: UnsafeCell<[u8; N]>,
}

// SAFETY: nothing refers to the bytes but the CPU, through its stack pointer.
unsafe impl<const N: usize> Sync for Stack<N> {}

impl<const N: usize> Stack<N> {
    const fn new() -> Self {
        Self {
            guard: UnsafeCell::new([0; 4096]),
            bytes: UnsafeCell::new([0; N]),
        }
    }
    fn guard(&self) -> u64 {
        self.guard.get() as u64
    }
    fn bounds(&self) -> (u64, u64) {
        let bottom = self.bytes.get() as u64;
        (bottom, bottom + N as u64)
    }
}

/// The stack the boot code gives to Rust. Its guard page comes first, so its end is at `STACK_BYTES`.
pub static STACK: Stack<STACK_SIZE> = Stack::new();
/// Bytes of [`STACK`] with its guard page.
pub const STACK_BYTES: usize = STACK_SIZE + 4096;

static TRAP_STACK: [Stack<TRAP_STACK_SIZE>; TRAP_STACKS] = [const { Stack::new() }; TRAP_STACKS];

static TSS: Once<TaskStateSegment> = Once::new();
static GDT: Once<(GlobalDescriptorTable, SegmentSelector, SegmentSelector)> = Once::new();

/// Loads GDT and TSS. The data segments stay null, as 64-bit mode allows.
pub fn init() {
    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table = core::array::from_fn(|i| {
            VirtAddr::new(TRAP_STACK.get(i).map_or(0, |stack| stack.bounds().1))
        });
        tss
    });
    let (gdt, code, task) = GDT.call_once(|| {
        let mut gdt = GlobalDescriptorTable::new();
        let code = gdt.append(Descriptor::kernel_code_segment());
        let task = gdt.append(Descriptor::tss_segment(tss));
        (gdt, code, task)
    });
    gdt.load();
    // SAFETY: both selectors are of the table just loaded, which is static, and mean what these registers need.
    unsafe {
        CS::set_reg(*code);
        load_tss(*task);
    }
}

/// The addresses of all guard pages.
pub fn guard_pages() -> impl Iterator<Item = u64> {
    core::iter::once(STACK.guard()).chain(TRAP_STACK.iter().map(Stack::guard))
}

/// Whether the 16 bytes at `address` are on one of the kernel's stacks.
pub fn on_a_stack(address: u64) -> bool {
    core::iter::once(STACK.bounds())
        .chain(TRAP_STACK.iter().map(Stack::bounds))
        .any(|(bottom, top)| address >= bottom && address <= top - 16)
}
