//! The walker and its two peers, over the same memory in the same way: tables are pages of the process, their
//! physical address is where they are.
#![allow(dead_code)] // each user needs a part of it

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;

use hyperlight_common::vmem;
use memory_addr::{PhysAddr, VirtAddr};
use offshoot::addr::Hpa;
use offshoot::frames::PhysMem;
use offshoot::paging::{PhysTables, TableAlloc};
use page_table_multiarch::PagingHandler;

/// Tables for each contestant, one after the other. Freed ones come back only by [`reset`]: no row of the comparison
/// frees.
const TABLES: usize = 2048;

#[repr(C, align(4096))]
struct Page(#[allow(unused)] [u64; 512]);

thread_local! {
    static MEMORY: RefCell<Vec<Page>> = const { RefCell::new(Vec::new()) };
    static NEXT: Cell<u64> = const { Cell::new(0) };
    static END: Cell<u64> = const { Cell::new(0) };
}

/// Forgets all tables.
pub fn reset() {
    MEMORY.with_borrow_mut(|memory| {
        if memory.is_empty() {
            memory.extend((0..TABLES).map(|_| Page([0; 512])));
        }
        let start = memory.as_ptr() as u64;
        NEXT.set(start);
        END.set(start + (TABLES * 4096) as u64);
    });
}

#[inline(always)]
fn next_table() -> Option<u64> {
    let at = NEXT.get();
    (at < END.get()).then(|| {
        NEXT.set(at + 4096);
        at
    })
}

/// The process's own memory as physical memory.
pub struct Identity;

// SAFETY: `Frames` gives whole, aligned pages of `MEMORY`, which is never moved once it is there.
unsafe impl PhysMem for Identity {
    #[inline(always)]
    fn ptr(&self, address: Hpa) -> *mut u8 {
        address.as_u64() as *mut u8
    }
}

/// Where our tables come from.
pub struct Frames;

impl TableAlloc for Frames {
    #[inline(always)]
    fn alloc(&mut self) -> Option<Hpa> {
        next_table().map(Hpa::new)
    }
    fn free(&mut self, _frame: Hpa) {}
}

/// An empty tree of ours.
pub fn ours<F: offshoot::paging::Format<Phys = Hpa>>() -> PhysTables<'static, F, Identity, Frames> {
    // SAFETY: as `Identity` says; `reset` and the tree's user take turns.
    unsafe { PhysTables::create(&Identity, Frames) }.expect("a table")
}

/// `page_table_multiarch` over the same memory.
pub struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
        assert_eq!(num, 1);
        next_table().map(|at| PhysAddr::from(at as usize))
    }
    fn dealloc_frames(_at: PhysAddr, _num: usize) {}
    #[inline(always)]
    fn phys_to_virt(at: PhysAddr) -> VirtAddr {
        VirtAddr::from(at.as_usize())
    }
}

/// An empty amd64 tree of `page_table_multiarch`. Dropping it would visit every table.
pub fn multiarch() -> ManuallyDrop<page_table_multiarch::x86_64::X64PageTable<Handler>> {
    ManuallyDrop::new(page_table_multiarch::x86_64::X64PageTable::try_new().expect("a table"))
}

/// `hyperlight-common` over the same memory.
#[derive(Clone, Copy)]
pub struct Hyperlight {
    pub root: u64,
}

impl Hyperlight {
    /// An empty tree.
    pub fn new() -> Self {
        Self { root: zeroed() }
    }
}

fn zeroed() -> u64 {
    let at = next_table().expect("a table");
    // SAFETY: a page of `MEMORY` that nobody else uses.
    unsafe { (at as *mut u8).write_bytes(0, 4096) };
    at
}

impl AsRef<Hyperlight> for Hyperlight {
    fn as_ref(&self) -> &Hyperlight {
        self
    }
}

impl vmem::TableReadOps for Hyperlight {
    type TableAddr = u64;
    #[inline(always)]
    fn entry_addr(addr: u64, entry_offset: u64) -> u64 {
        addr + entry_offset
    }
    #[inline(always)]
    unsafe fn read_entry(&self, addr: u64) -> u64 {
        // SAFETY: an entry of a table of `MEMORY`.
        unsafe { (addr as *const u64).read_volatile() }
    }
    #[inline(always)]
    fn to_phys(addr: u64) -> u64 {
        addr
    }
    #[inline(always)]
    fn from_phys(addr: u64) -> u64 {
        addr
    }
    #[inline(always)]
    fn root_table(&self) -> u64 {
        self.root
    }
}

impl vmem::TableOps for Hyperlight {
    type TableMovability = vmem::MayNotMoveTable;
    unsafe fn alloc_table(&self) -> u64 {
        zeroed()
    }
    #[inline(always)]
    unsafe fn write_entry(&self, addr: u64, entry: u64) -> Option<vmem::Void> {
        // SAFETY: an entry of a table of `MEMORY`.
        unsafe { (addr as *mut u64).write_volatile(entry) };
        None
    }
    unsafe fn update_root(&self, impossible: vmem::Void) {
        match impossible {}
    }
}
