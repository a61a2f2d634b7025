//! A guest's memory that takes frames on the first write, and copies the host's pages on the first write:
//! `cargo run --example lazy_memory`.

use std::error::Error;

use offshoot::addr::{AddrRange, Gpa, Hpa, PAGE_SIZE};
use offshoot::ept::{
    Access, CpuId, EptCapability, Eptp, Fill, HostBytes, Invalidate, Region, RegionKind,
    Resolution, Spaces, Violation,
};
use offshoot::frames::{FrameAllocator, PageBytes, PageMemory, PhysMem};

/// No CPU ever runs on the tables of this program, so none has cached anything of them.
struct NoCpu(CpuId);

// SAFETY: what is never cached need not be dropped.
unsafe impl Invalidate for NoCpu {
    fn cpu(&self) -> CpuId {
        self.0
    }
    fn invept(&mut self, _: Eptp) {}
    fn invvpid(&mut self, _: Eptp) {}
}

const RAM: Gpa = Gpa::new(0);
const MODULE: Gpa = Gpa::new(0x4000_0000);

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut pages = vec![PageBytes::ZERO; 64];
    let memory = PageMemory::new(Hpa::new(0x10_0000), &mut pages).ok_or("no pages")?;
    let all = memory.range();
    // The first page is the host's: a file that guests may see, and write without changing it.
    let file = AddrRange::new(all.start(), PAGE_SIZE).ok_or("a page")?;
    // SAFETY: inside the memory, which nothing else uses.
    unsafe { memory.ptr(file.start()).write(b'A') };
    // SAFETY: the memory is this program's own; of the file's page no frame is made.
    let frames = unsafe { FrameAllocator::new(memory, [all], [file]) }?;
    let spaces = Spaces::new(&frames, EptCapability::typical())?;

    let mut space = spaces.create(36)?;
    let range = |start, len| AddrRange::new(start, len).ok_or("a range");
    space.map(Region::new(range(RAM, 1 << 30)?, RegionKind::Ram))?;
    // SAFETY: nobody writes the file's page from here on.
    let file = unsafe { HostBytes::new(file) };
    let copied = RegionKind::CopyOnWrite(file);
    space.map(Region::new(range(MODULE, PAGE_SIZE)?, copied))?;
    let before = frames.statistics().used;

    // What a guest tries ends in a violation, and the violation in a mapping.
    let mut touch = |gpa, access| match space.resolve(&Violation::new(gpa, access)) {
        Ok(Resolution::Retry(fill)) => Ok(fill),
        Ok(device) => Err(format!("{device:?} instead of memory")),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(touch(RAM, Access::READ)?, Fill::ZeroShared);
    assert_eq!(touch(RAM, Access::WRITE)?, Fill::Zeroed);
    assert_eq!(touch(MODULE, Access::READ)?, Fill::HostMapped);
    assert_eq!(touch(MODULE, Access::WRITE)?, Fill::Copied);
    assert!(touch(Gpa::new(1 << 35), Access::READ).is_err());

    // The host sees what the guest sees, and the copy is the guest's own.
    space.write(MODULE, b"B")?;
    let mut byte = [0];
    space.read(MODULE, &mut byte)?;
    assert_eq!(byte, *b"B");
    let used = frames.statistics().used - before;
    println!("1 GiB of memory takes {used} frames, tables and all");

    let mut cpu = NoCpu(CpuId::new(0).ok_or("a CPU")?);
    let mut ending = space.end();
    while !ending.step(&mut cpu, 100) {}
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
    Ok(())
}
