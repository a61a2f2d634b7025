//! What the guest of the self-test has for memory, and the frames that SVM needs.

use crate::boot::layout::{DirectMap, KERNEL_BASE};
use core::arch::global_asm;
use core::fmt;
use offshoot::addr::{Gpa, Hpa, PAGE_SIZE, PageSize};
use offshoot::frames::{Frame, FrameAllocator, FrameError, PhysMem};
use offshoot::paging::{
    self, Amd64, Amd64Attr, Content, Emptied, Error, PhysTables, TableAlloc, TableReadOps,
};
use offshoot::svm::{IoMap, MsrMap};
use spin::Once;

/// Nested tables: the format of the CPU's own, with user at every level.
type Nested = Amd64<Gpa, Hpa>;
type Tables = PhysTables<'static, Nested, DirectMap, TableFrames>;

/// Where the guest has its own tables, what it needs of the CPU, its code and its stack.
const GUEST_TABLES: u64 = 0x1000;
const GUEST_IDT: u64 = 0x4000;
const GUEST_GDT: u64 = 0x4800;
const GUEST_CODE: u64 = 0x5000;
/// The end of its stack, and of what is there from the beginning.
pub const GUEST_STACK: u64 = 0x7000;
/// The top of its tables.
pub const GUEST_CR3: u64 = GUEST_TABLES;

global_asm!(include_str!("guest.S"));

macro_rules! in_code {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal;)*) => {
        $(
            $(#[$doc])*
            fn $name() -> u64 {
                unsafe extern "C" {
                    #[link_name = $symbol]
                    static SYMBOL: u8;
                }
                (&raw const SYMBOL) as u64
            }
        )*
    };
}

in_code! {
    code_start = "svm_guest_start";
    code_end = "svm_guest_end";
    on_gp = "svm_on_gp";
    on_interrupt = "svm_on_interrupt";
    count = "svm_guest_count";
    spin = "svm_guest_spin";
}

/// Where the guest sees what stands here in the image.
fn in_guest(address: u64) -> u64 {
    GUEST_CODE + (address - code_start())
}
/// The first instruction of the guest that makes every exit.
pub fn first_instruction() -> u64 {
    in_guest(code_start())
}
/// The first instruction of the guest that counts.
pub fn counting_instruction() -> u64 {
    in_guest(count())
}

/// The first instruction of the guest that does not end.
pub fn spinning_instruction() -> u64 {
    in_guest(spin())
}

/// Why there is no memory for the guest.
#[derive(Debug)]
pub enum MemoryError {
    Frames(FrameError),
    Tables(Error<Nested>),
    NoTable,
}

impl From<FrameError> for MemoryError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}
impl From<Error<Nested>> for MemoryError {
    fn from(error: Error<Nested>) -> Self {
        Self::Tables(error)
    }
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(error) => write!(f, "no memory for the self-test: {error}"),
            Self::Tables(error) => write!(f, "nested tables: {error}"),
            Self::NoTable => f.write_str("no memory for nested tables"),
        }
    }
}

/// Frames for the nested tables.
struct TableFrames(&'static FrameAllocator<DirectMap>);

impl TableAlloc for TableFrames {
    fn alloc(&mut self) -> Option<Hpa> {
        self.0.alloc().ok().map(Frame::into_raw)
    }
    fn free(&mut self, frame: Hpa) {
        // SAFETY: it came out of `alloc`, whose reference is this one.
        self.0.release(unsafe { Frame::from_raw(frame) });
    }
}

/// A page for the hypervisor's use, zeroed, for ever.
pub fn page(frames: &'static FrameAllocator<DirectMap>) -> Result<Hpa, MemoryError> {
    Ok(frames.alloc_zeroed()?.into_raw())
}

/// The permission maps, in which every port exits: they are larger than a frame, and lie in the image.
pub fn permission_maps(msrs: MsrMap) -> (Hpa, Hpa) {
    static MAPS: Once<(MsrMap, IoMap)> = Once::new();
    let (msrs, ports) = MAPS.call_once(|| (msrs, IoMap::ALL));
    let physical = |address: u64| Hpa::new(address - KERNEL_BASE);
    (
        physical(&raw const *msrs as u64),
        physical(&raw const *ports as u64),
    )
}

/// The guest's memory.
pub struct GuestMemory {
    frames: &'static FrameAllocator<DirectMap>,
    tables: Tables,
}

impl GuestMemory {
    /// With the guest's code and all that it needs to begin.
    pub fn new(frames: &'static FrameAllocator<DirectMap>) -> Result<Self, MemoryError> {
        // SAFETY: the frames are the allocator's, and these tables nobody else's.
        let tables = unsafe { PhysTables::create(&DirectMap, TableFrames(frames)) };
        let mut this = Self {
            frames,
            tables: tables.ok_or(MemoryError::NoTable)?,
        };
        for gpa in (GUEST_TABLES..GUEST_STACK).step_by(PAGE_SIZE as usize) {
            this.add_page(Gpa::new(gpa))?;
        }
        this.fill()?;
        Ok(this)
    }

    /// The root of the nested tables.
    pub fn root(&self) -> Hpa {
        self.tables.root()
    }

    /// Gives the guest a zeroed page at the page of `gpa`.
    pub fn add_page(&mut self, gpa: Gpa) -> Result<(), MemoryError> {
        let page = Content::Page {
            phys: self.frames.alloc_zeroed()?.into_raw(),
            attr: Amd64Attr::READ_WRITE.with_user(true).with_execute(true),
        };
        let start = Gpa::new(gpa.as_u64() & !(PAGE_SIZE - 1));
        Ok(paging::map(
            &mut self.tables,
            start,
            PAGE_SIZE,
            page,
            PageSize::Size4K,
        )?)
    }

    /// Takes the page of `gpa` away. What CPUs have cached of it stays.
    pub fn remove_page(&mut self, gpa: Gpa) -> Result<(), MemoryError> {
        // The frame is not used again: the run ends with the test.
        Ok(paging::unmap(
            &mut self.tables,
            gpa,
            PAGE_SIZE,
            Emptied::Keep,
            |_| {},
        )?)
    }

    /// Where the word at `gpa`, in a page that is there, is.
    fn word(&self, gpa: u64) -> Result<*mut u64, MemoryError> {
        let found = paging::virt_to_phys(&self.tables, Gpa::new(gpa & !7))?;
        Ok(DirectMap.ptr(found.ok_or(MemoryError::NoTable)?).cast())
    }
    pub fn write(&mut self, gpa: u64, value: u64) -> Result<(), MemoryError> {
        let word = self.word(gpa)?;
        // SAFETY: the word is in a frame that only the guest has, which does not run.
        unsafe { word.write_volatile(value) };
        Ok(())
    }
    pub fn read(&self, gpa: u64) -> Result<u64, MemoryError> {
        // SAFETY: as in `write`.
        Ok(unsafe { self.word(gpa)?.read_volatile() })
    }
    /// The bytes of the instruction at `gpa`.
    pub fn code(&self, gpa: u64) -> Result<[u8; 15], MemoryError> {
        let mut bytes = [0; 15];
        for (at, byte) in (gpa..).zip(&mut bytes) {
            *byte = (self.read(at)? >> (8 * (at & 7))) as u8;
        }
        Ok(bytes)
    }

    fn fill(&mut self) -> Result<(), MemoryError> {
        // Its own tables: one page of 2 MiB, at 0.
        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 1 << 7;
        self.write(GUEST_TABLES, (GUEST_TABLES + 0x1000) | PRESENT_WRITABLE)?;
        self.write(
            GUEST_TABLES + 0x1000,
            (GUEST_TABLES + 0x2000) | PRESENT_WRITABLE,
        )?;
        self.write(GUEST_TABLES + 0x2000, LARGE | PRESENT_WRITABLE)?;
        // 64-bit code, and data.
        self.write(GUEST_GDT + 8, 0x00af_9b00_0000_ffff)?;
        self.write(GUEST_GDT + 16, 0x00cf_9300_0000_ffff)?;
        for (vector, handler) in [(13, on_gp()), (0x30, on_interrupt())] {
            let (at, handler) = (GUEST_IDT + 16 * vector, in_guest(handler));
            // An interrupt gate into 64-bit code. The handlers are below 64 KiB.
            self.write(at, handler & 0xffff | 0x8 << 16 | 0x8e00 << 32)?;
        }
        for offset in (0..code_end() - code_start()).step_by(8) {
            let from = (code_start() + offset) as *const u64;
            // SAFETY: the code is in the image, aligned; what is read past its end is still in its section's padding or in
            // what follows in the image.
            let word = unsafe { from.read_unaligned() };
            self.write(GUEST_CODE + offset, word)?;
        }
        Ok(())
    }
}
