//! The plain model that the walker is tested against: a map from ranges to what they lead to, and random operations
//! on both, with the allocation of tables failing at every point.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::format::FormatExt;
use super::testing::{Fixed, Movable, Tree};
use super::*;
use crate::addr::{Address, PageSize};

/// What of a format the tests must know.
pub trait TestFormat: Format {
    /// Some attributes, chosen by random bits.
    fn attr(seed: u16) -> Self::Attr;
    fn with_write(attr: Self::Attr, write: Write) -> Self::Attr;
    /// The sizes of leaves, smallest first.
    const SIZES: &'static [PageSize];
}

impl<V: Address + 'static, P: Address + 'static, const L: u8> TestFormat for Amd64<V, P, L> {
    fn attr(seed: u16) -> Amd64Attr {
        Amd64Attr::READ
            .with_write([Write::Denied, Write::Allowed, Write::CopyFirst][seed as usize % 3])
            .with_execute(seed & 4 != 0)
            .with_user(seed & 8 != 0)
            .with_dirty(seed & 16 != 0)
            .with_accessed(seed & 32 != 0)
            .with_pat_index((seed >> 6) as u8)
            .with_soft(seed >> 3)
    }
    fn with_write(attr: Amd64Attr, write: Write) -> Amd64Attr {
        attr.with_write(write)
    }
    const SIZES: &'static [PageSize] = if L == 4 {
        &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G]
    } else {
        &[PageSize::Size4K, PageSize::Size2M]
    };
}
impl TestFormat for I686 {
    fn attr(seed: u16) -> I686Attr {
        I686Attr::READ
            .with_write([Write::Denied, Write::Allowed, Write::CopyFirst][seed as usize % 3])
            .with_user(seed & 8 != 0)
            .with_dirty(seed & 16 != 0)
            .with_accessed(seed & 32 != 0)
            .with_pat_index((seed >> 6) as u8)
            .with_soft(seed >> 3)
    }
    fn with_write(attr: I686Attr, write: Write) -> I686Attr {
        attr.with_write(write)
    }
    const SIZES: &'static [PageSize] = &[PageSize::Size4K, PageSize::Size4M];
}
impl TestFormat for Ept {
    fn attr(seed: u16) -> EptAttr {
        let types = [
            MemoryType::WriteBack,
            MemoryType::Uncacheable,
            MemoryType::WriteThrough,
        ];
        if seed & 7 == 7 {
            return EptAttr::EXECUTE.with_memory_type(types[seed as usize / 8 % 3]);
        }
        EptAttr::READ
            .with_write([Write::Denied, Write::Allowed, Write::CopyFirst][seed as usize % 3])
            .with_execute(seed & 4 != 0)
            .with_user_execute(seed & 8 != 0)
            .with_dirty(seed & 16 != 0)
            .with_accessed(seed & 32 != 0)
            .with_memory_type(types[seed as usize / 64 % 3])
            .with_soft(seed >> 3)
    }
    fn with_write(attr: EptAttr, write: Write) -> EptAttr {
        attr.with_write(write)
    }
    const SIZES: &'static [PageSize] = &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
}
impl TestFormat for Npt {
    fn attr(seed: u16) -> NptAttr {
        let types = [
            MemoryType::WriteBack,
            MemoryType::Uncacheable,
            MemoryType::WriteThrough,
        ];
        let attr = Npt::page(types[seed as usize / 64 % 3]).unwrap();
        Npt::with_fetch(attr, seed & 4 != 0)
            .with_write([Write::Denied, Write::Allowed, Write::CopyFirst][seed as usize % 3])
            .with_dirty(seed & 16 != 0)
            .with_accessed(seed & 32 != 0)
            .with_soft(seed >> 3)
    }
    fn with_write(attr: NptAttr, write: Write) -> NptAttr {
        attr.with_write(write)
    }
    const SIZES: &'static [PageSize] = &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
}

/// A tree that may be able to fork.
pub trait TestTree: TableOps + Sized {
    fn tree(tables: u64) -> Self;
    fn forked(&self) -> Option<Self>;
}
impl<F: Format> TestTree for Fixed<F> {
    fn tree(tables: u64) -> Self {
        Self::new(tables)
    }
    fn forked(&self) -> Option<Self> {
        None
    }
}
impl<F: Format> TestTree for Movable<F> {
    fn tree(tables: u64) -> Self {
        Self::new(tables)
    }
    fn forked(&self) -> Option<Self> {
        Some(self.fork())
    }
}

/// Ranges of translated bits by their start: the last one, and what the start leads to.
#[derive(Clone, Debug)]
struct Model<F: Format>(BTreeMap<u64, (u64, ContentOf<F>)>);

fn advanced<F: Format>(content: ContentOf<F>, bytes: u64) -> ContentOf<F> {
    match content {
        Content::Page { phys, attr } => Content::Page {
            phys: F::Phys::new(phys.as_u64() + bytes),
            attr,
        },
        other => other,
    }
}

impl<F: Format> Model<F> {
    /// Makes a range start at `at` where one passes it.
    fn cut(&mut self, at: u64) {
        if let Some((&start, &(last, content))) = self.0.range(..at).next_back()
            && last >= at
        {
            self.0.insert(start, (at - 1, content));
            self.0
                .insert(at, (last, advanced::<F>(content, at - start)));
        }
    }
    fn take(&mut self, va: u64, last: u64) -> Vec<(u64, u64, ContentOf<F>)> {
        self.cut(va);
        self.cut(last + 1);
        let starts: Vec<u64> = self.0.range(va..=last).map(|(&start, _)| start).collect();
        let take = |start| {
            self.0
                .remove(&start)
                .map(|(last, content)| (start, last, content))
        };
        starts.into_iter().filter_map(take).collect()
    }
    fn is_free(&self, va: u64, last: u64) -> bool {
        self.0
            .range(..=last)
            .next_back()
            .is_none_or(|(_, &(end, _))| end < va)
    }
    fn put(&mut self, va: u64, last: u64, content: ContentOf<F>) {
        if content != Content::Unmapped {
            self.0.insert(va, (last, content));
        }
    }
    /// The ranges, joined as far as they can be.
    fn runs(&self) -> Vec<(u64, u64, ContentOf<F>)> {
        let mut runs: Vec<(u64, u64, ContentOf<F>)> = Vec::new();
        for (&start, &(last, content)) in &self.0 {
            match runs.last_mut() {
                Some(run)
                    if run.1 + 1 == start
                        && advanced::<F>(run.2, start - run.0) == content
                        // The lower and the upper half are not neighbours.
                        && !(F::SIGN_EXTENDED && start == 1 << (F::VIRT_BITS - 1)) =>
                {
                    run.1 = last;
                }
                _ => runs.push((start, last, content)),
            }
        }
        runs
    }
}

fn runs_of<O: TableOps>(ops: &O) -> Vec<(u64, u64, ContentOf<O::Format>)> {
    translate(ops, VirtOf::<O>::new(0), u64::MAX, u64::MAX)
        .runs()
        .map(|run| {
            let run = run.expect("our own tables are good");
            let va = run.virt.as_u64() & FormatOf::<O>::VIRT_MASK;
            (va, va + (run.len - 1), run.content)
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: Place,
        phys: u64,
        attr: u16,
        zero: bool,
        largest: usize,
    },
    Unmap {
        at: Place,
        retire: bool,
    },
    Protect {
        at: Place,
        write: u8,
    },
    Modify {
        at: Place,
        attr: u16,
    },
    Set {
        at: Place,
        attr: u16,
    },
    Split {
        at: Place,
    },
    Merge {
        at: Place,
    },
    Fork,
    Switch(u8),
    Drop,
}

/// A range: near one of the interesting addresses, of a number of pages or of larger units.
#[derive(Clone, Copy, Debug)]
struct Place {
    anchor: u8,
    units: i8,
    unit: u8,
    offset: i8,
    count: u8,
    extra: i8,
}

impl Place {
    fn range<F: TestFormat>(self) -> (u64, u64) {
        let unit = F::SIZES[self.unit as usize % F::SIZES.len()].bytes();
        let mask = F::VIRT_MASK;
        let half = 1u64 << (F::VIRT_BITS - 1);
        // The beginning, the middle (for some formats a hole), a border of the highest level, and the end.
        let border = 3 << FormatExtShift::<F>::top();
        let anchor = [0, half, border, mask + 1][self.anchor as usize % 4];
        let start = anchor
            .wrapping_add_signed(self.units as i64 * unit as i64)
            .wrapping_add_signed(self.offset as i64 * 0x1000)
            & mask;
        let bytes = (self.count as u64 * unit).saturating_add_signed(self.extra as i64 * 0x1000);
        // To the end of the half at most, so that most ranges are good.
        let end = if F::SIGN_EXTENDED && start < half {
            half
        } else {
            mask + 1
        };
        (start, bytes.min(end - start))
    }
}

struct FormatExtShift<F>(std::marker::PhantomData<F>);
impl<F: Format> FormatExtShift<F> {
    fn top() -> u32 {
        F::shift(F::LEVELS)
    }
}

fn place() -> impl Strategy<Value = Place> {
    let anchor = prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2), 4 => Just(3)];
    let offset = prop_oneof![3 => Just(0i8), 1 => -3i8..=3];
    let extra = prop_oneof![3 => Just(0i8), 1 => -3i8..=3];
    let unit = prop_oneof![2 => Just(0u8), 4 => Just(1), 2 => Just(2)];
    let count = prop_oneof![4 => Just(1u8), 1 => Just(0), 3 => 2u8..4];
    (anchor, -2i8..=2, unit, offset, count, extra).prop_map(
        |(anchor, units, unit, offset, count, extra)| Place {
            anchor,
            units,
            unit,
            offset,
            count,
            extra,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let phys = prop_oneof![
        4 => (0u64..8).prop_map(|n| n << 30),
        2 => (0u64..64).prop_map(|n| n << 22),
        1 => (0u64..64).prop_map(|n| n << 12)
    ];
    let largest = prop_oneof![1 => Just(0usize), 2 => Just(1), 3 => Just(2)];
    let map = (place(), phys, any::<u16>(), 0u8..5, largest);
    prop_oneof![
        12 => map.prop_map(|(at, phys, attr, zero, largest)| Op::Map {
            at, phys, attr, zero: zero == 0, largest
        }),
        6 => (place(), any::<bool>()).prop_map(|(at, retire)| Op::Unmap { at, retire }),
        4 => (place(), 0u8..3).prop_map(|(at, write)| Op::Protect { at, write }),
        3 => (place(), any::<u16>()).prop_map(|(at, attr)| Op::Modify { at, attr }),
        3 => (place(), any::<u16>()).prop_map(|(at, attr)| Op::Set { at, attr }),
        2 => place().prop_map(|at| Op::Split { at }),
        3 => place().prop_map(|at| Op::Merge { at }),
        2 => Just(Op::Fork),
        2 => any::<u8>().prop_map(Op::Switch),
        1 => Just(Op::Drop),
    ]
}

/// More leaves than this make a test slow rather than thorough.
const MANY: u64 = 2 << 20;

/// Does the operation on the model; `None` where it must be refused, with the error's kind left to the caller.
fn on_model<F: TestFormat>(model: &mut Model<F>, op: &Op) -> Option<()> {
    match *op {
        Op::Map {
            at,
            phys,
            attr,
            zero,
            ..
        } => {
            let (va, len) = at.range::<F>();
            if len == 0 {
                return Some(());
            }
            let last = va + (len - 1);
            if !model.is_free(va, last) {
                return None;
            }
            let attr = F::attr(attr);
            let content = if zero {
                Content::ZeroOnDemand { attr }
            } else {
                Content::Page {
                    phys: F::Phys::new(narrow::<F>(phys)),
                    attr,
                }
            };
            model.put(va, last, content);
        }
        Op::Unmap { at, .. } => {
            let (va, len) = at.range::<F>();
            if len > 0 {
                model.take(va, va + (len - 1));
            }
        }
        Op::Protect { at, write } => {
            let (va, len) = at.range::<F>();
            if len > 0 {
                for (va, last, content) in model.take(va, va + (len - 1)) {
                    model.put(va, last, with_write::<F>(content, write));
                }
            }
        }
        Op::Modify { at, attr } => {
            let (va, len) = at.range::<F>();
            if len > 0 {
                for (va, last, content) in model.take(va, va + (len - 1)) {
                    model.put(va, last, changed::<F>(content, attr));
                }
            }
        }
        Op::Set { at, attr } => {
            let (va, _) = at.range::<F>();
            let content = Content::Page {
                phys: F::Phys::new(0x7000),
                attr: F::attr(attr),
            };
            model.take(va, va | 0xfff);
            model.put(va, va | 0xfff, content);
        }
        Op::Split { .. } | Op::Merge { .. } | Op::Fork | Op::Switch(_) | Op::Drop => {}
    }
    Some(())
}

fn with_write<F: TestFormat>(content: ContentOf<F>, write: u8) -> ContentOf<F> {
    let write = [Write::Denied, Write::Allowed, Write::CopyFirst][write as usize % 3];
    match content {
        Content::Page { phys, attr } => Content::Page {
            phys,
            attr: F::with_write(attr, write),
        },
        Content::ZeroOnDemand { attr } => Content::ZeroOnDemand {
            attr: F::with_write(attr, write),
        },
        Content::Unmapped => Content::Unmapped,
    }
}

/// A physical address that leaves room for the range in every format.
fn narrow<F: Format>(phys: u64) -> u64 {
    phys & ((1 << (F::PHYS_BITS - 1)) - 1)
}

/// What `modify` makes of a leaf: pages become zero-on-demand or move by 4 GiB, zero-on-demand goes.
fn changed<F: TestFormat>(content: ContentOf<F>, attr: u16) -> ContentOf<F> {
    match content {
        Content::Page { .. } if attr & 1 == 0 => Content::ZeroOnDemand {
            attr: F::attr(attr),
        },
        Content::Page { phys, .. } => {
            // Narrow addresses would wrap some time.
            let up = if F::PHYS_BITS > 40 { 1 << 30 } else { 0 };
            Content::Page {
                phys: F::Phys::new(phys.as_u64() + up),
                attr: F::attr(attr),
            }
        }
        _ => Content::Unmapped,
    }
}

fn on_tree<O: TestTree>(ops: &mut O, op: &Op) -> Result<(), Error<O::Format>>
where
    O::Format: TestFormat,
{
    let sizes = O::Format::SIZES;
    match *op {
        Op::Map {
            at,
            phys,
            attr,
            zero,
            largest,
        } => {
            let (va, len) = at.range::<O::Format>();
            let attr = O::Format::attr(attr);
            let content = if zero {
                Content::ZeroOnDemand { attr }
            } else {
                Content::Page {
                    phys: TableOf::<O>::new(narrow::<O::Format>(phys)),
                    attr,
                }
            };
            let largest = sizes[largest % sizes.len()];
            let start = O::Format::virt(va);
            map(ops, start, len, content, largest)
        }
        Op::Unmap { at, retire } => {
            let (va, len) = at.range::<O::Format>();
            let emptied = if retire {
                Emptied::Retire
            } else {
                Emptied::Keep
            };
            unmap(ops, O::Format::virt(va), len, emptied, |_| {})
        }
        Op::Protect { at, write } => {
            let (va, len) = at.range::<O::Format>();
            protect(ops, O::Format::virt(va), len, |attr| {
                let write = [Write::Denied, Write::Allowed, Write::CopyFirst][write as usize % 3];
                O::Format::with_write(attr, write)
            })
        }
        Op::Modify { at, attr } => {
            let (va, len) = at.range::<O::Format>();
            modify(ops, O::Format::virt(va), len, |leaf| {
                match changed::<O::Format>(leaf.content(), attr) {
                    Content::Page { phys, attr } => leaf.set_page(phys, attr).unwrap(),
                    Content::ZeroOnDemand { attr } => leaf.set_zero_on_demand(attr),
                    Content::Unmapped => leaf.unmap(),
                }
            })
        }
        Op::Set { at, attr } => {
            let (va, _) = at.range::<O::Format>();
            let start = O::Format::virt(va);
            split(ops, start, PageSize::Size4K)?;
            let attr = O::Format::attr(attr);
            let content = Content::Page {
                phys: TableOf::<O>::new(0x7000),
                attr,
            };
            Cursor::new(ops, start, PageSize::Size4K)?.set(content)
        }
        Op::Split { at } => {
            let (va, _) = at.range::<O::Format>();
            split(
                ops,
                O::Format::virt(va),
                sizes[at.count as usize % sizes.len()],
            )
        }
        Op::Merge { at } => {
            let (va, len) = at.range::<O::Format>();
            merge(ops, O::Format::virt(va), len, sizes[sizes.len() - 1]).map(drop)
        }
        Op::Fork | Op::Switch(_) | Op::Drop => Ok(()),
    }
}

/// Whether the operation would make very many leaves.
fn is_heavy<F: TestFormat>(op: &Op) -> bool {
    match *op {
        Op::Map {
            at, phys, largest, ..
        } => {
            let (va, len) = at.range::<F>();
            let largest = F::SIZES[largest % F::SIZES.len()].bytes();
            let aligned = (va | phys) & (largest - 1) == 0;
            len > MANY && (largest == 0x1000 || !aligned && len / 0x1000 > 2048)
        }
        _ => false,
    }
}

fn check<F: TestFormat, const M: bool>(ops: &[Op])
where
    Tree<F, M>: TestTree + TableOps<Format = F>,
{
    const PLENTY: u64 = 1 << 20;
    let mut trees = vec![<Tree<F, M> as TestTree>::tree(PLENTY)];
    let mut models = vec![Model::<F>(BTreeMap::new())];
    let mut now = 0;
    for op in ops {
        match *op {
            Op::Fork if trees.len() < 4 => {
                if let Some(fork) = trees[now].forked() {
                    trees.push(fork);
                    models.push(models[now].clone());
                }
            }
            Op::Switch(n) => now = n as usize % trees.len(),
            Op::Drop if trees.len() > 1 => {
                trees.swap_remove(now);
                models.swap_remove(now);
                now = 0;
            }
            _ if is_heavy::<F>(op) => continue,
            _ => {
                let tree = &mut trees[now];
                let before = runs_of(tree);
                let mut after = models[now].clone();
                let expected = on_model(&mut after, op);
                let mut done = None;
                // With 0 tables, with 1, ... until there are enough.
                for left in (0..10).chain([30, 300, PLENTY]) {
                    let in_use = tree.in_use();
                    tree.set_left(left);
                    let result = on_tree(tree, op);
                    if result == Err(PagingError::OutOfTables) {
                        // A split before a cursor's turn may have been done; it changes no mapping.
                        assert_eq!(runs_of(tree), before, "a failure changes nothing: {op:?}");
                        if !matches!(op, Op::Set { .. }) {
                            assert_eq!(tree.in_use(), in_use, "no table is lost: {op:?}");
                        }
                        continue;
                    }
                    done = Some(result);
                    break;
                }
                tree.set_left(PLENTY);
                match (expected, done) {
                    (Some(()), Some(Ok(()))) => models[now] = after,
                    (None, Some(Err(PagingError::AlreadyMapped { .. }))) => {}
                    (expected, done) => panic!("{op:?}: expected {expected:?}, got {done:?}"),
                }
            }
        }
        for (tree, model) in trees.iter().zip(&models) {
            assert_eq!(runs_of(tree), model.runs(), "after {op:?}");
        }
        Tree::check_counts(&trees.iter().collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]
    #[test]
    fn amd64_tables_do_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        check::<GuestAmd64, false>(&ops);
    }
    #[test]
    fn ept_tables_do_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        check::<Ept, false>(&ops);
    }
    #[test]
    fn nested_tables_do_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        check::<Npt, false>(&ops);
    }
    #[test]
    fn pae_tables_do_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        check::<GuestPae, false>(&ops);
    }
    #[test]
    fn i686_tables_do_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        check::<I686, false>(&ops);
    }
    #[test]
    fn movable_amd64_tables_do_what_maps_do(ops in prop::collection::vec(op(), 1..40)) {
        check::<HostAmd64, true>(&ops);
    }
    #[test]
    fn movable_ept_tables_do_what_maps_do(ops in prop::collection::vec(op(), 1..40)) {
        check::<Ept, true>(&ops);
    }
    #[test]
    fn movable_nested_tables_do_what_maps_do(ops in prop::collection::vec(op(), 1..40)) {
        check::<Npt, true>(&ops);
    }
    #[test]
    fn movable_i686_tables_do_what_maps_do(ops in prop::collection::vec(op(), 1..40)) {
        check::<I686, true>(&ops);
    }
}
