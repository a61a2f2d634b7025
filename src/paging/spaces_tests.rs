//! Spaces that share at random, walked, rebuilt elsewhere and walked again.

use std::vec::Vec;

use proptest::prelude::*;

use super::format::FormatExt;
use super::model::TestFormat;
use super::testing::{Fixed, Tree};
use super::*;
use crate::addr::{Address, Gva};

/// Where an entry goes, and what it is: a table one level down, or a leaf.
type Edit = (u8, u16, u8, u16, bool);

/// Tables of each level, all of them linked at random: a graph in which anything may be shared.
fn graph<F: TestFormat, const M: bool>(edits: &[Edit]) -> (Tree<F, M>, Vec<F::Phys>) {
    let mut tree = Tree::<F, M>::new(1000);
    let levels: Vec<Vec<F::Phys>> = (0..F::LEVELS)
        .map(|_| (0..3).map(|_| tree.sibling().into_root()).collect())
        .collect();
    for &(place, index, target, seed, leaf) in edits {
        // The highest level gets most of the edits, so that most of them can be reached.
        let level = F::LEVELS - (place >> 4) % F::LEVELS;
        let table = levels[level as usize - 1][place as usize % 3];
        // Few slots, among them the first and the last one.
        let index = match index % 5 {
            0 => 0,
            1 => F::ENTRIES - 1,
            n => F::ENTRIES / 2 + n as usize - 3,
        };
        let entry = if level > 1 && (!leaf || F::leaf_size(level).is_none()) {
            let rights = [
                Rights::ALL,
                Rights::ALL,
                Rights::READ.or(Rights::EXECUTE).or(Rights::USER),
                Rights::READ.or(Rights::WRITE).or(Rights::EXECUTE),
            ];
            let child = levels[level as usize - 2][target as usize % 3];
            F::restricted_table(child, rights[seed as usize % 4])
        } else {
            let phys = F::Phys::new((target as u64 & 7) << 30 & ((1 << (F::PHYS_BITS - 1)) - 1));
            F::encode(
                level,
                Content::Page {
                    phys,
                    attr: F::attr(seed),
                },
            )
        };
        tree.poke(table, index, entry.to_bits());
    }
    let mut roots = levels[F::LEVELS as usize - 1].clone();
    // The same space twice.
    roots.push(roots[1]);
    (tree, roots)
}

fn leaves<F: Format, const M: bool>(tree: &mut Tree<F, M>, root: F::Phys) -> Vec<MappingOf<F>>
where
    Tree<F, M>: TableRoots<Format = F>,
{
    tree.select_root(root).unwrap();
    tree.leaves()
}

fn items<O: TableReadOps>(ops: &O, roots: &[TableOf<O>]) -> Vec<(usize, SpaceItemOf<O::Format>)> {
    let mut seen = vec![Seen::FREE; 200];
    let mut items = Vec::new();
    let show = |space, item| {
        items.push((space, item));
        Ok(())
    };
    walk_va_spaces(ops, roots, &mut seen, 1 << 20, show).unwrap();
    items
}

fn round_trip<F: TestFormat, const M: bool>(edits: &[Edit])
where
    Tree<F, M>: TableRoots<Format = F>,
{
    let (mut tree, roots) = graph::<F, M>(edits);
    let found = items(&tree, &roots);

    let mut copy = Tree::<F, M>::new(1000);
    let first = copy.root;
    let mut built = vec![None; roots.len()];
    for (space, item) in &found {
        space_aware_map(&mut copy, &mut built, *space, item)
            .unwrap_or_else(|error| panic!("{item:?}: {error}\n{found:?}"));
    }
    let built: Vec<F::Phys> = built
        .into_iter()
        .map(|root| root.unwrap_or_else(|| copy.sibling().into_root()))
        .collect();
    for (&theirs, &ours) in roots.iter().zip(&built) {
        assert_eq!(leaves(&mut tree, theirs), leaves(&mut copy, ours));
    }
    let again = items(&copy, &built);
    assert_eq!(found, again);
    copy.root = first;
    tree.forget();
    copy.forget();
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = (
        any::<u8>(),
        any::<u16>(),
        any::<u8>(),
        any::<u16>(),
        any::<bool>(),
    );
    prop::collection::vec(edit, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]
    #[test]
    fn amd64_spaces_survive_a_round_trip(edits in edits()) {
        round_trip::<GuestAmd64, false>(&edits);
    }
    #[test]
    fn ept_spaces_survive_a_round_trip(edits in edits()) {
        round_trip::<Ept, true>(&edits);
    }
    #[test]
    fn nested_spaces_survive_a_round_trip(edits in edits()) {
        round_trip::<Npt, true>(&edits);
    }
    #[test]
    fn i686_spaces_survive_a_round_trip(edits in edits()) {
        round_trip::<I686, false>(&edits);
    }
}

#[test]
fn a_shared_sub_tree_is_found_and_stays_shared_when_it_is_written() {
    // Two writable addresses of one page: after a rebuild a change through one must be seen through the other.
    let mut tree = Fixed::<GuestAmd64>::new(50);
    let first = tree.root;
    let at = Gva::new(0x1000);
    let page = Content::Page {
        phys: crate::addr::Gpa::new(0x5000),
        attr: Amd64Attr::READ_WRITE,
    };
    map(&mut tree, at, 0x1000, page, crate::addr::PageSize::Size4K).unwrap();
    let second = tree.sibling().into_root();
    let shared = tree.peek(first, 0);
    tree.poke(second, 7, shared.to_bits());
    let found = items(&tree, &[first, second]);
    let expected = SpaceReference {
        depth: 1,
        space: 0,
        our_va: Gva::new(7 << 39),
        their_va: Gva::new(0),
        rights: Rights::ALL,
    };
    assert_eq!(found.len(), 2);
    assert_eq!(found[1], (1, SpaceItem::AnotherSpace(expected)));
    tree.forget();
}

#[test]
fn a_walk_that_runs_out_of_room_says_so() {
    let (tree, roots) = graph::<GuestAmd64, false>(&[(0, 0, 0, 0, false), (1, 1, 1, 0, false)]);
    let mut seen = [Seen::FREE; 2];
    let last = walk_va_spaces(&tree, &roots, &mut seen, 1 << 20, |_, _| Ok(()));
    assert!(
        matches!(last, Err(PagingError::LimitReached { level: 4, .. })),
        "{last:?}"
    );
    let mut seen = [Seen::FREE; 20];
    let last = walk_va_spaces(&tree, &roots, &mut seen, 3, |_, _| Ok(()));
    assert!(
        matches!(last, Err(PagingError::LimitReached { .. })),
        "{last:?}"
    );
    tree.forget();
}
