use super::testing::{Fixed, Movable};
use super::*;
use crate::addr::{Address, Gpa, Gva, Hpa, PageSize};

const RW: Amd64Attr = Amd64Attr::READ_WRITE;

fn page(at: u64) -> Content<Gpa, Amd64Attr> {
    Content::Page {
        phys: Gpa::new(at),
        attr: RW,
    }
}

#[test]
fn a_range_is_mapped_in_the_largest_leaves_asked_for() {
    let mut tree = Fixed::<GuestAmd64>::new(100);
    map(
        &mut tree,
        Gva::new(0x1f_f000),
        0x20_2000,
        page(0x3f_f000),
        PageSize::Size2M,
    )
    .unwrap();
    let sizes: Vec<_> = tree
        .leaves()
        .iter()
        .map(|leaf| (leaf.virt.as_u64(), leaf.size))
        .collect();
    assert_eq!(
        sizes,
        [
            (0x1f_f000, PageSize::Size4K),
            (0x20_0000, PageSize::Size2M),
            (0x40_0000, PageSize::Size4K)
        ]
    );
    for at in [0x1f_f000, 0x20_0000, 0x30_1234, 0x40_0fff] {
        assert_eq!(
            virt_to_phys(&tree, Gva::new(at)),
            Ok(Some(Gpa::new(at + 0x20_0000)))
        );
    }
    unmap(&mut tree, Gva::new(0), 1 << 30, Emptied::Retire, |_| {}).unwrap();
    assert_eq!(tree.in_use(), 1);
}

#[test]
fn a_slot_of_a_forked_tree_is_written_in_private_tables() {
    let mut parent = Movable::<Ept>::new(100);
    let shared = Content::Page {
        phys: Hpa::new(0x5000),
        attr: EptAttr::READ_WRITE,
    };
    let at = Gpa::new(0x7000);
    map(&mut parent, at, 0x1000, shared, PageSize::Size4K).unwrap();
    let mut child = parent.fork();
    let private = Content::Page {
        phys: Hpa::new(0x9000),
        attr: EptAttr::READ_WRITE,
    };
    {
        let mut cursor = Cursor::new(&mut child, at, PageSize::Size4K).unwrap();
        assert_eq!(cursor.content(), shared);
        assert!(!cursor.is_ready());
        cursor.prepare().unwrap();
        assert!(cursor.is_ready());
        cursor.set(private).unwrap();
    }
    assert_eq!(virt_to_phys(&parent, at), Ok(Some(Hpa::new(0x5000))));
    assert_eq!(virt_to_phys(&child, at), Ok(Some(Hpa::new(0x9000))));
    assert_eq!(child.in_use(), 8);
    Movable::check_counts(&[&parent, &child]);
    drop(child);
    Movable::check_counts(&[&parent]);
    assert_eq!(parent.in_use(), 4);
}
