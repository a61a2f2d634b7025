//! A space becomes a template, is forked, and the fork goes back to what it was: `cargo run --example forks`.

use std::error::Error;

use offshoot::addr::{AddrRange, Gpa, Hpa};
use offshoot::ept::{
    CpuId, EptCapability, Eptp, Invalidate, Region, RegionKind, Reset, Space, Spaces,
};
use offshoot::frames::{PageBytes, PageMemory, PhysMem};

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

const RAM: u64 = 16 << 20;

fn byte<M: PhysMem>(space: &Space<'_, M>, gpa: u64) -> Result<u8, Box<dyn Error>> {
    let mut byte = [0];
    space.read(Gpa::new(gpa), &mut byte)?;
    Ok(byte[0])
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut pages = vec![PageBytes::ZERO; 128];
    let frames = PageMemory::allocator(Hpa::new(0x10_0000), &mut pages)?;
    let spaces = Spaces::new(&frames, EptCapability::typical())?;
    let mut cpu = NoCpu(CpuId::new(0).ok_or("a CPU")?);

    let mut first = spaces.create(36)?;
    let ram = AddrRange::new(Gpa::new(0), RAM).ok_or("a range")?;
    first.map(Region::new(ram, RegionKind::Ram))?;
    for page in 0..32 {
        first.write(Gpa::new(page << 12), &[7])?;
    }
    // Nobody writes a template any more: all that it holds is shared with its forks until one writes.
    let mut template = first.freeze().map_err(|(error, _)| error)?;
    template.settle(&mut cpu);
    let used = frames.statistics().used;
    let mut fork = template.fork()?;
    println!("a fork takes {} frames", frames.statistics().used - used);

    fork.write(Gpa::new(0x5000), &[8])?;
    fork.write(Gpa::new(0x9000), &[9])?;
    let mut dirty = Vec::new();
    fork.harvest_dirty(ram, |page, _| dirty.push(page.as_u64()))?;
    assert_eq!(dirty, [0x5000, 0x9000]);
    assert_eq!(byte(&fork, 0x5000)?, 8);
    assert_eq!(byte(template.as_space(), 0x5000)?, 7);
    println!("two pages on: {} frames", frames.statistics().used - used);

    // Back to what the template holds; a warm fork keeps its frames for what it will write again.
    let restored = fork.reset(&template, Reset::Warm)?;
    println!("reset: {} bytes were copied back", restored.bytes());
    assert_eq!((byte(&fork, 0x5000)?, byte(&fork, 0x9000)?), (7, 7));
    spaces.audit([&fork, template.as_space()])?;

    for mut ending in [fork.end(), template.end()] {
        while !ending.step(&mut cpu, 100) {}
    }
    drop(spaces);
    assert_eq!(frames.statistics().used, 0);
    Ok(())
}
