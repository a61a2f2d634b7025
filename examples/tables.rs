//! Builds x86-64 page tables in memory of this program, and walks them: `cargo run --example tables`.

use std::error::Error;

use offshoot::addr::{Hpa, Hva, PAGE_SIZE, PageSize};
use offshoot::frames::{PageBytes, PageMemory};
use offshoot::paging::{
    Amd64Attr, Content, Emptied, HostAmd64, PhysTables, RunsExt, TableAlloc, Write, map, path,
    protect, query, translate, unmap, virt_to_phys,
};

/// The frames that tables may be made of.
struct Free(Vec<Hpa>);

impl TableAlloc for Free {
    fn alloc(&mut self) -> Option<Hpa> {
        self.0.pop()
    }
    fn free(&mut self, frame: Hpa) {
        self.0.push(frame);
    }
}

/// What is to be mapped: 4 MiB and a page, of which the middle begins a large page.
const START: Hva = Hva::new(0xffff_8000_0020_0000);
const LEN: u64 = 0x40_1000;
const TARGET: Hpa = Hpa::new(0x7_0000_0000);

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut pages = vec![PageBytes::ZERO; 16];
    let memory = PageMemory::new(Hpa::new(0x10_0000), &mut pages).ok_or("no pages")?;
    let start = memory.range().start().as_u64();
    let free = Free((0..16).map(|n| Hpa::new(start + n * PAGE_SIZE)).collect());
    // SAFETY: the frames are those of the memory, and nothing else uses it.
    let tables = unsafe { PhysTables::<HostAmd64, _, _>::create(&memory, free) };
    let mut tables = tables.ok_or("no frame for the top table")?;

    let attr = Amd64Attr::READ.with_write(Write::Allowed);
    let content = Content::Page { phys: TARGET, attr };
    map(&mut tables, START, LEN, content, PageSize::Size2M)?;
    // Two large pages and a small one, in one table of each level.
    let leaves = translate(&tables, START, LEN, 1000).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(leaves.len(), 3);
    assert_eq!(tables.allocator().0.len(), 16 - 4);
    for step in path(&tables, START) {
        println!("level {}: {:#x} at {:?}", step.level, step.bits, step.table);
    }

    // A page of a large one becomes read-only: the large one is split, and the others stay as they were.
    let page = Hva::new(START.as_u64() + 0x5000);
    protect(&mut tables, page, PAGE_SIZE, |attr| {
        attr.with_write(Write::Denied)
    })?;
    let leaf = query(&tables, page)?.ok_or("it is mapped")?;
    assert_eq!(leaf.size, PageSize::Size4K);
    assert_eq!(
        virt_to_phys(&tables, page)?,
        Some(Hpa::new(TARGET.as_u64() + 0x5000))
    );
    for run in translate(&tables, START, LEN, 1000).runs() {
        let run = run?;
        println!("{:?}: {:#x} bytes, {:?}", run.virt, run.len, run.content);
    }

    // What is taken away is told leaf by leaf; the tables that hold nothing any more are given back.
    let mut bytes = 0;
    unmap(&mut tables, START, LEN, Emptied::Retire, |leaf| {
        bytes += leaf.size.bytes();
    })?;
    assert_eq!((bytes, query(&tables, START)?), (LEN, None));
    assert_eq!(tables.allocator().0.len(), 16 - 1);
    Ok(())
}
