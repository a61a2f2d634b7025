//! The rows of the comparison, and who takes part in each.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hyperlight_common::vmem;
use memory_addr::{PhysAddr, VirtAddr};
use offshoot::addr::{Hpa, Hva, PageSize};
use offshoot::paging::{self, Amd64Attr, Content, Emptied, HostAmd64};
use page_table_multiarch::MappingFlags;

#[path = "../../tests/peers/mod.rs"]
mod peers;

const VIRT: u64 = 0x40_0000_0000;
const PHYS: u64 = 0x1_0000_0000;

const BASIC: vmem::MappingKind = vmem::MappingKind::Basic(vmem::BasicMapping {
    readable: true,
    writable: true,
    executable: false,
});
const FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);
const MULTIARCH_4K: page_table_multiarch::PageSize = page_table_multiarch::PageSize::Size4K;

/// One contestant in one row: does it once for as many pages as `order` names, in that order or as a range, and says how long the part that counts took.
pub type Run = fn(order: &[u64]) -> Duration;

fn len_of(order: &[u64]) -> u64 {
    (order.len() as u64) << 12
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

fn page(page: u64) -> Content<Hpa, Amd64Attr> {
    Content::Page {
        phys: Hpa::new(PHYS + (page << 12)),
        attr: Amd64Attr::READ_WRITE,
    }
}

mod ours {
    use super::*;

    type Tree = offshoot::paging::PhysTables<'static, HostAmd64, peers::Identity, peers::Frames>;

    fn empty() -> Tree {
        peers::reset();
        peers::ours()
    }
    fn full(order: &[u64]) -> Tree {
        let mut tree = empty();
        let done = paging::map(
            &mut tree,
            Hva::new(VIRT),
            len_of(order),
            page(0),
            PageSize::Size4K,
        );
        done.expect("room");
        tree
    }
    pub fn map_range(order: &[u64]) -> Duration {
        let mut tree = empty();
        timed(|| {
            let done = paging::map(
                &mut tree,
                Hva::new(VIRT),
                len_of(order),
                page(0),
                PageSize::Size4K,
            );
            done.expect("room");
        })
    }
    pub fn map_pages(order: &[u64]) -> Duration {
        let mut tree = empty();
        timed(|| {
            for &n in order {
                let at = Hva::new(VIRT + (n << 12));
                let done = paging::map(&mut tree, at, 0x1000, page(n), PageSize::Size4K);
                done.expect("room");
            }
        })
    }
    pub fn translate(order: &[u64]) -> Duration {
        let tree = full(order);
        timed(|| {
            let mut sum = 0;
            for leaf in paging::translate(&tree, Hva::new(VIRT), len_of(order), u64::MAX) {
                let leaf = leaf.expect("good tables");
                let Content::Page { phys, .. } = leaf.content else {
                    continue;
                };
                sum ^= phys.as_u64() ^ leaf.virt.as_u64();
            }
            sum
        })
    }
    pub fn query(order: &[u64]) -> Duration {
        let tree = full(order);
        timed(|| {
            let mut sum = 0;
            for &n in order {
                let phys = paging::virt_to_phys(&tree, Hva::new(VIRT + (n << 12)));
                let phys = phys.expect("good tables").expect("mapped");
                sum ^= phys.as_u64();
            }
            sum
        })
    }
    pub fn unmap(order: &[u64]) -> Duration {
        let mut tree = full(order);
        timed(|| {
            let done = paging::unmap(
                &mut tree,
                Hva::new(VIRT),
                len_of(order),
                Emptied::Keep,
                |_| {},
            );
            done.expect("good tables");
        })
    }
}

mod multiarch {
    use super::*;

    type Tree = std::mem::ManuallyDrop<page_table_multiarch::x86_64::X64PageTable<peers::Handler>>;

    fn empty() -> Tree {
        peers::reset();
        peers::multiarch()
    }
    fn map_all(tree: &mut Tree, order: &[u64]) {
        let phys = |at: VirtAddr| PhysAddr::from(at.as_usize() - VIRT as usize + PHYS as usize);
        let at = VirtAddr::from(VIRT as usize);
        let done = tree
            .cursor()
            .map_region(at, phys, len_of(order) as usize, FLAGS, false);
        done.expect("room");
    }
    pub fn map_range(order: &[u64]) -> Duration {
        let mut tree = empty();
        timed(|| map_all(&mut tree, order))
    }
    pub fn map_pages(order: &[u64]) -> Duration {
        let mut tree = empty();
        timed(|| {
            for &n in order {
                let at = VirtAddr::from((VIRT + (n << 12)) as usize);
                let phys = PhysAddr::from((PHYS + (n << 12)) as usize);
                tree.cursor()
                    .map(at, phys, MULTIARCH_4K, FLAGS)
                    .expect("room");
            }
        })
    }
    pub fn query(order: &[u64]) -> Duration {
        let mut tree = empty();
        map_all(&mut tree, order);
        timed(|| {
            let mut sum = 0;
            for &n in order {
                let at = VirtAddr::from((VIRT + (n << 12)) as usize);
                let (phys, ..) = tree.query(at).expect("mapped");
                sum ^= phys.as_usize();
            }
            sum
        })
    }
    pub fn unmap(order: &[u64]) -> Duration {
        let mut tree = empty();
        map_all(&mut tree, order);
        timed(|| {
            let at = VirtAddr::from(VIRT as usize);
            tree.cursor()
                .unmap_region(at, len_of(order) as usize)
                .expect("mapped");
        })
    }
}

mod hyperlight {
    use super::*;

    fn empty() -> peers::Hyperlight {
        peers::reset();
        peers::Hyperlight::new()
    }
    fn map(tree: &peers::Hyperlight, at: u64, len: u64, kind: vmem::MappingKind) {
        let mapping = vmem::Mapping {
            phys_base: PHYS + (at - VIRT),
            virt_base: at,
            len,
            kind,
        };
        // SAFETY: the tables are the peer's own, in memory of this process.
        unsafe { vmem::map(tree, mapping) };
    }
    pub fn map_range(order: &[u64]) -> Duration {
        let tree = empty();
        timed(|| map(&tree, VIRT, len_of(order), BASIC))
    }
    pub fn map_pages(order: &[u64]) -> Duration {
        let tree = empty();
        timed(|| {
            for &n in order {
                map(&tree, VIRT + (n << 12), 0x1000, BASIC);
            }
        })
    }
    pub fn translate(order: &[u64]) -> Duration {
        let tree = empty();
        map(&tree, VIRT, len_of(order), BASIC);
        timed(|| {
            let mut sum = 0;
            // SAFETY: as above.
            for leaf in unsafe { vmem::virt_to_phys(tree, VIRT, len_of(order)) } {
                sum ^= leaf.phys_base ^ leaf.virt_base;
            }
            sum
        })
    }
    pub fn query(order: &[u64]) -> Duration {
        let tree = empty();
        map(&tree, VIRT, len_of(order), BASIC);
        timed(|| {
            let mut sum = 0;
            for &n in order {
                // SAFETY: as above.
                let leaf = unsafe { vmem::virt_to_phys(tree, VIRT + (n << 12), 1) }.next();
                sum ^= leaf.expect("mapped").phys_base;
            }
            sum
        })
    }
    pub fn unmap(order: &[u64]) -> Duration {
        let tree = empty();
        map(&tree, VIRT, len_of(order), BASIC);
        timed(|| map(&tree, VIRT, len_of(order), vmem::MappingKind::Unmapped))
    }
}

/// What any way of mapping the range must do at least: zero the tables and store the entries.
fn stores(order: &[u64]) -> Duration {
    peers::reset();
    let tables: Vec<u64> = (0..order.len() / 512)
        .map(|_| peers::Hyperlight::new().root)
        .collect();
    timed(|| {
        let mut bits = PHYS | 3;
        for &table in &tables {
            // SAFETY: whole pages of the arena that nobody else uses now.
            unsafe { (table as *mut u8).write_bytes(0, 4096) };
            for index in 0..512 {
                // SAFETY: inside the page.
                unsafe { (table as *mut u64).add(index).write_volatile(bits) };
                bits += 0x1000;
            }
        }
    })
}

/// One operation.
pub struct Row {
    /// Its name in the report.
    pub name: &'static str,
    /// Whether the order of the pages is random.
    pub random: bool,
    /// Who does it, ours first.
    pub contestants: &'static [(&'static str, Run)],
}

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "map_range",
        random: false,
        contestants: &[
            ("ours", ours::map_range),
            ("multiarch", multiarch::map_range),
            ("hyperlight", hyperlight::map_range),
            ("stores", stores),
        ],
    },
    Row {
        name: "map_pages",
        random: false,
        contestants: &[
            ("ours", ours::map_pages),
            ("multiarch", multiarch::map_pages),
            ("hyperlight", hyperlight::map_pages),
        ],
    },
    Row {
        name: "map_random",
        random: true,
        contestants: &[
            ("ours", ours::map_pages),
            ("multiarch", multiarch::map_pages),
            ("hyperlight", hyperlight::map_pages),
        ],
    },
    Row {
        name: "translate_range",
        random: false,
        contestants: &[
            ("ours", ours::translate),
            ("hyperlight", hyperlight::translate),
        ],
    },
    Row {
        name: "query_random",
        random: true,
        contestants: &[
            ("ours", ours::query),
            ("multiarch", multiarch::query),
            ("hyperlight", hyperlight::query),
        ],
    },
    Row {
        name: "unmap_range",
        random: false,
        contestants: &[
            ("ours", ours::unmap),
            ("multiarch", multiarch::unmap),
            ("hyperlight", hyperlight::unmap),
        ],
    },
];

/// So many pages in order or in an order that looks random but is the same each time.
pub fn order(pages: u64, random: bool) -> Vec<u64> {
    let mut order: Vec<u64> = (0..pages).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for n in (1..if random { order.len() } else { 0 }).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        order.swap(n, (state >> 33) as usize % (n + 1));
    }
    order
}
