//! Arenas for tests: tables that stay where they are, and tables that several trees share.

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use super::*;
use crate::addr::Address;

/// The first frame of an arena.
pub const BASE: u64 = 0x10_0000;

/// Tables of one format, allocated while `left` lasts. A table may be part of several trees: it counts who refers to it
/// and must move before it is written while that is more than one.
#[derive(Default)]
struct Pool {
    tables: Vec<Option<Table>>,
    free: Vec<usize>,
    left: u64,
}

/// The entries, and the count of references.
type Table = (Box<[u64; 1024]>, u32);

impl Pool {
    fn get(&self, table: u64) -> Option<&Table> {
        let index = table.checked_sub(BASE)? as usize;
        self.tables
            .get(index >> 12)?
            .as_ref()
            .filter(|_| index & 0xfff == 0)
    }
    fn get_mut(&mut self, table: u64) -> Option<&mut Table> {
        let index = table.checked_sub(BASE)? as usize;
        self.tables
            .get_mut(index >> 12)?
            .as_mut()
            .filter(|_| index & 0xfff == 0)
    }
    fn alloc(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.tables.push(None);
            self.tables.len() - 1
        });
        self.tables[index] = Some((Box::new([0xdead_beef; 1024]), 1));
        Some(BASE + index as u64 * 0x1000)
    }
    fn free(&mut self, table: u64) {
        let index = (table - BASE) as usize >> 12;
        assert_eq!(self.tables[index].take().map(|t| t.1).unwrap_or(0) & !1, 0);
        self.free.push(index);
        self.left += 1;
    }
    fn in_use(&self) -> usize {
        self.tables.len() - self.free.len()
    }
}

/// Access to one tree of a pool. With `MOVES` tables may be shared with other trees.
pub struct Tree<F: Format, const MOVES: bool> {
    pool: Rc<RefCell<Pool>>,
    pub root: F::Phys,
}

pub type Fixed<F> = Tree<F, false>;
pub type Movable<F> = Tree<F, true>;

impl<F: Format, const MOVES: bool> Tree<F, MOVES> {
    /// An empty tree in a pool of its own.
    pub fn new(tables: u64) -> Self {
        let pool = Rc::new(RefCell::new(Pool {
            left: tables,
            ..Pool::default()
        }));
        let mut tree = Self {
            pool,
            root: F::Phys::new(0),
        };
        tree.root = tree.empty_table();
        tree
    }
    /// Another empty tree in the same pool.
    pub fn sibling(&self) -> Self {
        let mut tree = Self {
            pool: self.pool.clone(),
            root: self.root,
        };
        tree.root = tree.empty_table();
        tree
    }
    fn empty_table(&mut self) -> F::Phys {
        let table = self.alloc().unwrap();
        self.pool
            .borrow_mut()
            .get_mut(table.as_u64())
            .unwrap()
            .0
            .fill(0);
        table
    }
    /// The root alone: the tree is not freed.
    pub fn into_root(self) -> F::Phys {
        let root = self.root;
        self.forget();
        root
    }
    /// Leaves the tables to the pool: they are not counted as a tree's.
    pub fn forget(mut self) {
        self.pool = Rc::default();
    }
    /// How many more tables there are.
    pub fn set_left(&self, left: u64) {
        self.pool.borrow_mut().left = left;
    }
    pub fn left(&self) -> u64 {
        self.pool.borrow().left
    }
    /// Tables in use by all trees of the pool.
    pub fn in_use(&self) -> usize {
        self.pool.borrow().in_use()
    }
    fn alloc(&mut self) -> Option<F::Phys> {
        self.pool.borrow_mut().alloc().map(F::Phys::new)
    }
    fn children(&self, table: u64, level: u8) -> Vec<u64> {
        let pool = self.pool.borrow();
        let entries = pool.get(table).unwrap().0.iter();
        entries
            .filter_map(|&bits| match F::decode(level, F::Entry::from_bits(bits)) {
                Ok(Decoded::Table { table, .. }) => Some(table.as_u64()),
                _ => None,
            })
            .collect()
    }
    fn drop_ref(&mut self, table: u64, level: u8) {
        let count = {
            let mut pool = self.pool.borrow_mut();
            let count = &mut pool.get_mut(table).unwrap().1;
            *count -= 1;
            *count
        };
        if count == 0 {
            for child in self.children(table, level) {
                self.drop_ref(child, level - 1);
            }
            self.pool.borrow_mut().free(table);
        }
    }
    /// Writes raw bits: a hostile guest, or hardware.
    pub fn poke(&mut self, table: F::Phys, index: usize, bits: u64) {
        self.pool.borrow_mut().get_mut(table.as_u64()).unwrap().0[index] = bits;
    }
    pub fn peek(&self, table: F::Phys, index: usize) -> F::Entry {
        // SAFETY: any address may be asked for.
        unsafe { self.read_entry(table, index) }.unwrap()
    }
    /// All that is mapped.
    pub fn leaves(&self) -> Vec<MappingOf<F>> {
        let all = translate(self, F::Virt::new(0), u64::MAX, u64::MAX);
        all.map(Result::unwrap).collect()
    }
    /// Whether the counts are those of the references from `trees`, and no table is lost.
    pub fn check_counts(trees: &[&Self]) {
        let mut counts = BTreeMap::new();
        fn visit<F: Format, const M: bool>(
            tree: &Tree<F, M>,
            table: u64,
            level: u8,
            counts: &mut BTreeMap<u64, u32>,
        ) {
            let count = counts.entry(table).or_insert(0);
            *count += 1;
            if *count == 1 {
                for child in tree.children(table, level) {
                    visit(tree, child, level - 1, counts);
                }
            }
        }
        for tree in trees {
            visit(tree, tree.root.as_u64(), F::LEVELS, &mut counts);
        }
        let pool = trees[0].pool.borrow();
        let found: BTreeMap<u64, u32> = (0..pool.tables.len() as u64)
            .map(|index| BASE + index * 0x1000)
            .filter_map(|table| pool.get(table).map(|t| (table, t.1)))
            .collect();
        assert_eq!(
            found, counts,
            "a table's count is the number of references to it"
        );
    }
}

impl<F: Format> Movable<F> {
    fn copy_shared(&mut self, from: F::Phys, level: u8, to: F::Phys) {
        for child in self.children(from.as_u64(), level) {
            self.pool.borrow_mut().get_mut(child).unwrap().1 += 1;
        }
        let mut pool = self.pool.borrow_mut();
        let (entries, count) = pool.get_mut(from.as_u64()).unwrap();
        *count -= 1;
        let copy = entries.clone();
        pool.get_mut(to.as_u64()).unwrap().0 = copy;
    }
    /// A tree that shares everything with this one.
    pub fn fork(&self) -> Self {
        let root = self.root;
        self.pool.borrow_mut().get_mut(root.as_u64()).unwrap().1 += 1;
        Self {
            pool: self.pool.clone(),
            root,
        }
    }
}

impl<F: Format, const MOVES: bool> Drop for Tree<F, MOVES> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.pool.borrow().get(self.root.as_u64()).is_some() {
            self.drop_ref(self.root.as_u64(), F::LEVELS);
        }
    }
}

impl<F: Format, const MOVES: bool> TableReadOps for Tree<F, MOVES> {
    type Format = F;
    fn root(&self) -> F::Phys {
        self.root
    }
    fn is_root(&self, table: F::Phys) -> bool {
        self.pool.borrow().get(table.as_u64()).is_some()
    }
    unsafe fn read_entry(&self, table: F::Phys, index: usize) -> Option<F::Entry> {
        let pool = self.pool.borrow();
        let (entries, _) = pool.get(table.as_u64())?;
        Some(F::Entry::from_bits(entries[index]))
    }
}

impl<F: Format, const MOVES: bool> Tree<F, MOVES> {
    fn write(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        let mut pool = self.pool.borrow_mut();
        let (entries, count) = pool.get_mut(table.as_u64())?;
        assert_eq!(*count, 1, "a shared table is not written");
        entries[index] = entry.to_bits();
        Some(())
    }
}

impl<F: Format> TableOps for Fixed<F> {
    type Movability = MayNotMoveTable;
    fn alloc_table(&mut self) -> Option<F::Phys> {
        self.alloc()
    }
    unsafe fn free_table(&mut self, table: F::Phys) {
        self.pool.borrow_mut().free(table.as_u64());
    }
    unsafe fn write_entry(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        self.write(table, index, entry)
    }
}

impl<F: Format> TableOps for Movable<F> {
    type Movability = MayMoveTable;
    fn alloc_table(&mut self) -> Option<F::Phys> {
        self.alloc()
    }
    unsafe fn free_table(&mut self, table: F::Phys) {
        self.pool.borrow_mut().free(table.as_u64());
    }
    unsafe fn write_entry(&mut self, table: F::Phys, index: usize, entry: F::Entry) -> Option<()> {
        self.write(table, index, entry)
    }
    fn must_move(&self, table: F::Phys, _level: u8) -> Option<F::Phys> {
        let pool = self.pool.borrow();
        let shared = pool.get(table.as_u64()).is_some_and(|e| e.1 > 1);
        shared.then_some(table)
    }
    unsafe fn move_table(&mut self, from: F::Phys, level: u8, to: F::Phys) -> Result<(), F::Phys> {
        self.copy_shared(from, level, to);
        Ok(())
    }
    unsafe fn drop_shared(&mut self, from: F::Phys, level: u8) {
        self.drop_ref(from.as_u64(), level);
    }
    unsafe fn set_root(&mut self, _from: F::Phys, to: F::Phys) {
        self.root = to;
    }
}

impl<F: Format, const MOVES: bool> TableRoots for Tree<F, MOVES>
where
    Self: TableOps<Format = F>,
{
    fn select_root(&mut self, root: F::Phys) -> Option<()> {
        self.pool.borrow().get(root.as_u64())?;
        self.root = root;
        Some(())
    }
    fn share_table(&mut self, table: F::Phys, _level: u8) {
        self.pool.borrow_mut().get_mut(table.as_u64()).unwrap().1 += 1;
    }
}
