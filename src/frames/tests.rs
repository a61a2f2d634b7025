//! Tests of the allocator as a whole.

use super::arena::Arena;
use super::*;
use crate::addr::{AddrRange, Address, Hpa, PAGE_SIZE, PageSize};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MIB2: u64 = 2 << 20;

fn range(start: u64, len: u64) -> AddrRange<Hpa> {
    AddrRange::new(Hpa::new(start), len).unwrap()
}

/// A reference that the test knows to be somewhere, or not to be.
fn lent(address: Hpa) -> FrameRef<'static> {
    // SAFETY: it is shared, read or compared only, in the test's own memory.
    unsafe { FrameRef::from_raw(address) }
}

/// The reference to a part of a block that the test has split.
fn part(address: Hpa) -> Frame {
    // SAFETY: each part is taken once.
    unsafe { Frame::from_raw(address) }
}

fn merge(
    frames: &FrameAllocator<Arena>,
    first: &mut Frame,
    size: PageSize,
) -> Result<(), FrameError> {
    // SAFETY: the test holds all parts.
    unsafe { frames.merge(first, size) }
}

/// Ends all.
fn release(frames: &FrameAllocator<Arena>, all: impl IntoIterator<Item = Frame>) {
    all.into_iter().for_each(|frame| frames.release(frame));
}

fn drain(frames: &FrameAllocator<Arena>) -> Vec<Frame> {
    std::iter::from_fn(|| frames.alloc().ok()).collect()
}

#[test]
fn nothing_reserved_is_ever_handed_out() {
    let arena = Arena::new(0x10_0000, 64);
    let usable = [
        range(0x11_0000, 0xf800),
        range(0x10_0000, 0x8000),
        range(0x10_4000, 0x8001),
    ];
    let reserved = [
        range(0x10_27ff, 2),
        range(0x11_3000, 0x1000),
        range(0, 0x10_0001),
        range(0x11_8000, 0),
    ];
    let may = |a: u64| {
        let inside = |r: &AddrRange<Hpa>| r.contains_range(range(a, PAGE_SIZE));
        // The second and third overlap, so a frame may lie across both.
        (inside(&usable[0]) || range(0x10_0000, 0xc001).contains_range(range(a, PAGE_SIZE)))
            && !reserved.iter().any(|r| r.overlaps(range(a, PAGE_SIZE)))
    };
    // SAFETY: the arena is new.
    let frames = unsafe { FrameAllocator::new(arena, usable, reserved) }.unwrap();
    let all = drain(&frames);
    let distinct: BTreeSet<_> = all.iter().map(|f| f.address()).collect();
    assert_eq!(distinct.len(), all.len());
    assert!(distinct.iter().all(|a| may(a.as_u64())));
    let expected = (0x100..0x140).filter(|n| may(n * PAGE_SIZE)).count() as u64;
    assert_eq!(
        frames.statistics().total + frames.statistics().counts,
        expected
    );
    assert_eq!(all.len() as u64, frames.statistics().total);
    assert_eq!(frames.alloc(), Err(FrameError::OutOfFrames));
    release(&frames, all);
    let figures = frames.statistics();
    assert_eq!(
        (figures.used, figures.free, figures.peak),
        (0, figures.total, figures.total)
    );
}

#[test]
fn frame_zero_is_not_managed() {
    let frames = Arena::allocator(0, 16);
    let all = drain(&frames);
    assert!(all.iter().all(|f| f.address() != Hpa::new(0)));
    assert_eq!(
        frames.share(&lent(Hpa::new(0))),
        Err(FrameError::NotManaged(Hpa::new(0)))
    );
    release(&frames, all);
}

#[test]
fn the_counts_take_eight_bytes_a_frame() {
    for (frames, counts) in [(16, 1), (512, 1), (513, 2), (1025, 3)] {
        let figures = Arena::allocator(0x10_0000, frames).statistics();
        assert_eq!((figures.counts, figures.total), (counts, frames - counts));
    }
}

#[test]
fn memory_too_small_for_its_counts_is_refused() {
    let arena = Arena::new(0x1000, 1);
    let one = arena.range();
    let refused = |usable: &[AddrRange<Hpa>]| {
        // SAFETY: the arena is new; a refused allocator uses nothing.
        let made = unsafe { FrameAllocator::new(&arena, usable.iter().copied(), []) };
        made.err()
    };
    assert_eq!(refused(&[one]), Some(FrameError::NoRoomForCounts));
    assert_eq!(refused(&[]), Some(FrameError::NoRoomForCounts));
}

#[test]
fn the_last_release_frees_and_one_more_is_an_error() {
    let frames = Arena::allocator(0x10_0000, 8);
    let a = frames.alloc().unwrap();
    let at = a.address();
    let b = frames.share(&a).unwrap();
    assert_eq!(frames.count(at), 2);
    frames.release(a);
    assert_eq!((frames.count(at), frames.statistics().used), (1, 1));
    frames.release(b);
    assert_eq!((frames.count(at), frames.statistics().used), (0, 0));
    assert_eq!(frames.share(&lent(at)), Err(FrameError::NotAllocated(at)));
    let again = std::panic::AssertUnwindSafe(|| frames.release(Frame::new(at)));
    std::panic::catch_unwind(again).unwrap_err();
    assert_eq!(frames.statistics().used, 0);
}

#[test]
fn foreign_and_unaligned_addresses_are_refused() {
    let frames = Arena::allocator(0x10_0000, 8);
    for bad in [0xf_f000, 0x10_8000, 0x10_7001, u64::MAX, 1 << 52] {
        let bad = Hpa::new(bad);
        let refused = frames.share(&lent(bad));
        if bad.is_aligned(PAGE_SIZE) {
            assert_eq!(refused, Err(FrameError::NotManaged(bad)));
        }
        assert_eq!(
            frames.audit().reference(bad),
            Err(FrameError::NotManaged(bad))
        );
        assert_eq!(frames.count(bad), 0);
    }
    // The frames that hold the counts are nobody's.
    let all = drain(&frames);
    let free: BTreeSet<_> = all.iter().map(Frame::address).collect();
    release(&frames, all);
    let counts = (0x100..0x108)
        .map(|n| Hpa::new(n * PAGE_SIZE))
        .find(|a| !free.contains(a))
        .unwrap();
    assert_eq!(
        frames.share(&lent(counts)),
        Err(FrameError::NotManaged(counts))
    );
}

#[test]
fn a_count_does_not_overflow() {
    let frames = Arena::allocator(0x10_0000, 8);
    let a = frames.alloc().unwrap();
    frames.force_count(&a, counts::MAX_COUNT);
    assert_eq!(
        frames.share(&a),
        Err(FrameError::CountOverflow(a.address()))
    );
    assert_eq!(frames.count(a.address()), counts::MAX_COUNT);
    frames.force_count(&a, 1);
    frames.release(a);
}

fn dirty(frames: &FrameAllocator<Arena>, frame: &Frame, byte: u8) {
    // SAFETY: the frame is a test's own.
    unsafe { frames.write(frame, 0, &[byte; 4096]) }.unwrap();
}

fn content(frames: &FrameAllocator<Arena>, frame: &Frame) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    frames.read(frame, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn zeroed_frames_are_zero_whatever_they_held() {
    let frames = Arena::allocator(0x10_0000, 8);
    let all = drain(&frames);
    for frame in all {
        dirty(&frames, &frame, 0xa5);
        frames.release(frame);
    }
    assert_eq!(frames.refill(3), 3);
    assert_eq!(
        (frames.statistics().zeroed, frames.statistics().used),
        (3, 0)
    );
    let zeroed: Vec<_> = std::iter::from_fn(|| frames.alloc_zeroed().ok()).collect();
    assert_eq!(zeroed.len() as u64, frames.statistics().total);
    assert!(zeroed.iter().all(|f| content(&frames, f) == [0; 4096]));
    assert_eq!(frames.statistics().zeroed, 0);
    release(&frames, zeroed);
}

#[test]
fn the_pool_is_refilled_in_bounded_steps() {
    let frames = Arena::allocator(0x10_0000, 16);
    assert_eq!(frames.refill_to(5, 3), 3);
    assert_eq!(frames.refill_to(5, 3), 2);
    assert_eq!(frames.refill_to(5, 3), 0);
    assert_eq!(frames.statistics().zeroed, 5);
    let frame = frames.alloc_zeroed().unwrap();
    assert_eq!(content(&frames, &frame), [0; 4096]);
    assert_eq!(
        (frames.statistics().zeroed, frames.statistics().used),
        (4, 1)
    );
    assert_eq!(frames.refill_to(5, 3), 1);
    let total = frames.statistics().total;
    assert_eq!(frames.refill_to(u32::MAX, u32::MAX), total - 1 - 5);
    frames.release(frame);
}

#[test]
fn the_pool_serves_when_nothing_else_is_left() {
    let frames = Arena::allocator(0x10_0000, 8);
    let total = frames.statistics().total;
    assert_eq!(frames.refill(u64::MAX), total);
    assert_eq!(frames.statistics().free, total);
    let all = drain(&frames);
    assert_eq!(all.len() as u64, total);
    release(&frames, all);
}

#[test]
fn bytes_move_within_one_frame_only() {
    let frames = Arena::allocator(0x10_0000, 8);
    let frame = frames.alloc_zeroed().unwrap();
    for (offset, len) in [
        (0, 4096),
        (1, 15),
        (7, 2),
        (8, 8),
        (3, 21),
        (4095, 1),
        (4096 - 9, 9),
        (5, 0),
    ] {
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8) ^ 0x5a).collect();
        let mut expected = content(&frames, &frame);
        expected[offset..offset + len].copy_from_slice(&bytes);
        // SAFETY: the frame is this test's own.
        unsafe { frames.write(&frame, offset as u64, &bytes) }.unwrap();
        assert_eq!(content(&frames, &frame), expected);
        let mut back = vec![0; len];
        frames.read(&frame, offset as u64, &mut back).unwrap();
        assert_eq!(back, bytes);
    }
    let mut copy = frames.alloc_copy(&frame).unwrap();
    assert_eq!(content(&frames, &copy), content(&frames, &frame));
    let own = FrameError::NotExclusive(copy.address());
    let twice = frames.share(&copy).unwrap();
    assert_eq!(frames.copy_into(&mut copy, &frame), Err(own));
    frames.release(twice);
    dirty(&frames, &frame, 0x77);
    assert_eq!(frames.copy_into(&mut copy, &frame), Ok(()));
    assert_eq!(content(&frames, &copy), [0x77; 4096]);
    for (offset, len) in [(4095, 2), (4096, 0), (u64::MAX, 1)] {
        let refused = frames.read(&frame, offset, &mut [0; 2][..len]);
        assert!(
            matches!(refused, Err(FrameError::OutOfFrame(_))),
            "{offset}"
        );
    }
    // SAFETY: refused, so nothing is written.
    assert!(unsafe { frames.write(&frame, 1, &[0; 4096]) }.is_err());
    // SAFETY: likewise.
    assert!(unsafe { frames.exchange(&frame, 4096, 0, 1) }.is_err());
    release(&frames, [frame, copy]);
}

#[test]
fn large_blocks_are_aligned_counted_once_and_whole_again() {
    // Starts one frame before a 2 MiB boundary, so that heads and tails are there.
    let frames = Arena::allocator(2 * MIB2 - PAGE_SIZE, 512 * 3 + 2);
    let total = frames.statistics().total;
    let mut a = frames.alloc_large(PageSize::Size2M).unwrap();
    assert_eq!(frames.zero_some(&mut a, 0, u64::MAX), Ok(2 << 20));
    let b = frames.alloc_large(PageSize::Size2M).unwrap();
    assert!(a.address().is_aligned(MIB2) && b.address().is_aligned(MIB2) && a != b);
    assert_eq!(frames.statistics().used, 1024);
    let inner = Hpa::new(a.address().as_u64() + 5 * PAGE_SIZE);
    assert_eq!(frames.block(inner), Some((a.address(), PageSize::Size2M)));
    let part = frames.share(&lent(inner)).unwrap();
    assert_eq!((frames.count(a.address()), frames.count(inner)), (2, 2));
    let shared = FrameError::NotExclusive(a.address());
    assert_eq!(frames.split(&mut a), Err(shared));
    assert_eq!(frames.zero_some(&mut a, 0, u64::MAX), Err(shared));
    frames.release(a);
    assert_eq!(frames.statistics().used, 1024);
    frames.release(part);
    assert_eq!(frames.statistics().used, 512);
    // The freed block is given out whole, and in parts when there is nothing else.
    let c = frames.alloc_large(PageSize::Size2M).unwrap();
    frames.release(c);
    let small = drain(&frames);
    assert_eq!(small.len() as u64, total - 512);
    assert!(frames.alloc_large(PageSize::Size2M).is_err());
    release(&frames, small);
    frames.release(b);
    assert_eq!(frames.statistics().used, 0);
}

#[test]
fn a_block_is_split_and_merged_again() {
    let frames = Arena::allocator(MIB2, 1024 + 8);
    let mut block = frames.alloc_large(PageSize::Size2M).unwrap();
    let start = block.address();
    let at = |i: u64| Hpa::new(start.as_u64() + i * PAGE_SIZE);
    frames.split(&mut block).unwrap();
    assert!((0..512).all(
        |i| frames.count(at(i)) == 1 && frames.block(at(i)) == Some((at(i), PageSize::Size4K))
    ));
    let extra = frames.share(&lent(at(7))).unwrap();
    let shared = Err(FrameError::NotExclusive(start));
    assert_eq!(merge(&frames, &mut block, PageSize::Size2M), shared);
    frames.release(extra);
    assert_eq!(merge(&frames, &mut block, PageSize::Size2M), Ok(()));
    assert_eq!(frames.block(at(511)), Some((at(0), PageSize::Size2M)));
    frames.split(&mut block).unwrap();
    release(&frames, (1..512).map(|i| part(at(i))));
    // With one frame missing it is no block.
    assert_eq!(merge(&frames, &mut block, PageSize::Size2M), shared);
    frames.release(block);
    assert_eq!(frames.statistics().used, 0);
    // Unaligned blocks are refused, also past the last frame.
    let mut all = drain(&frames);
    for frame in &mut all {
        let aligned = frame.address().is_aligned(MIB2);
        assert!(aligned || merge(&frames, frame, PageSize::Size2M).is_err());
    }
    release(&frames, all);
}

#[test]
fn a_gib_is_split_by_sizes_and_merged_from_any_parts() {
    const GIB: u64 = 1 << 30;
    let frames = Arena::allocator(GIB - 4 * MIB2, GIB / PAGE_SIZE + 2048);
    let mut block = frames.alloc_large(PageSize::Size1G).unwrap();
    let at = |offset: u64| Hpa::new(GIB + offset);
    assert_eq!(block.address(), at(0));
    frames.split(&mut block).unwrap();
    for offset in [0, MIB2, GIB - MIB2] {
        let inside = at(offset + 5 * PAGE_SIZE);
        assert_eq!(
            frames.block(inside),
            Some((at(offset), PageSize::Size2M)),
            "{offset:#x}"
        );
        assert_eq!(frames.count(inside), 1);
    }
    // One of the parts in frames.
    let mut second = part(at(MIB2));
    frames.split(&mut second).unwrap();
    assert_eq!(second.into_raw(), at(MIB2));
    assert_eq!(frames.count(at(MIB2 + PAGE_SIZE)), 1);
    let extra = frames.share(&lent(at(2 * MIB2))).unwrap();
    let shared = Err(FrameError::NotExclusive(at(0)));
    assert_eq!(merge(&frames, &mut block, PageSize::Size1G), shared);
    frames.release(extra);
    assert_eq!(merge(&frames, &mut block, PageSize::Size1G), Ok(()));
    assert_eq!(
        frames.block(at(GIB - PAGE_SIZE)),
        Some((at(0), PageSize::Size1G))
    );
    frames.release(block);
    assert_eq!(frames.statistics().used, 0);
}

#[test]
fn what_is_left_of_a_shared_block_is_trimmed() {
    const GIB: u64 = 1 << 30;
    let frames = Arena::allocator(GIB - 4 * MIB2, GIB / PAGE_SIZE + 2048);
    let at = |offset: u64| Hpa::new(GIB + offset);
    let page = at(3 * MIB2 + 7 * PAGE_SIZE);
    for (size, kept) in [(PageSize::Size2M, 512), (PageSize::Size4K, 1)] {
        let start = page.align_down(size.bytes());
        let block = frames.alloc_large(PageSize::Size1G).unwrap();
        let mut retired = Retired::new();
        let second = frames.share(&block).unwrap();
        // Of the block's two references, that for these bytes alone.
        let mut rest = part(start);
        let shared = FrameError::NotExclusive(at(0));
        assert_eq!(frames.trim(&mut rest, size, &mut retired), Err(shared));
        frames.release(second);
        let mut off = part(Hpa::new(start.as_u64() + PAGE_SIZE / 2));
        assert!(frames.trim(&mut off, size, &mut retired).is_err());
        off.into_raw();
        frames.trim(&mut rest, size, &mut retired).unwrap();
        // It is a block already: nothing happens.
        frames.trim(&mut rest, size, &mut retired).unwrap();
        assert_eq!(retired.frames(), GIB / PAGE_SIZE - kept);
        assert_eq!(frames.statistics().used, GIB / PAGE_SIZE);
        frames.free_retired(&mut retired);
        assert_eq!(frames.statistics().used, kept);
        assert_eq!(
            (frames.block(page), frames.count(page)),
            (Some((start, size)), 1)
        );
        assert_eq!(frames.count(block.into_raw()), 0);
        frames.release(rest);
        assert_eq!(frames.statistics().used, 0);
        // The other parts came back as blocks; they are merged for the next round.
        if size == PageSize::Size2M {
            let parts: Vec<_> = (0..512)
                .map(|_| frames.alloc_large(PageSize::Size2M).unwrap().into_raw())
                .collect();
            assert!(parts.contains(&at(0)));
            let mut first = part(at(0));
            merge(&frames, &mut first, PageSize::Size1G).unwrap();
            frames.release(first);
        }
    }
}

#[test]
fn the_memory_of_the_counts_is_not_free_for_others() {
    let frames = Arena::allocator(MIB2, 64);
    assert!(frames.overlaps(range(0, 4 * MIB2)));
    let counts = (0..64)
        .map(|i| range(MIB2 + i * PAGE_SIZE, PAGE_SIZE))
        .filter(|page| !frames.ranges().any(|managed| managed.overlaps(*page)));
    let counts: Vec<_> = counts.collect();
    assert_eq!(counts.len() as u64, frames.statistics().counts);
    assert!(counts.iter().all(|page| frames.overlaps(*page)));
    assert!(!frames.overlaps(range(0, MIB2)));
    assert!(!frames.overlaps(range(MIB2 + 64 * PAGE_SIZE, PAGE_SIZE)));
}

#[test]
fn it_can_stand_in_a_static() {
    static FRAMES: spin::Once<FrameAllocator<Arena>> = spin::Once::new();
    let frames = FRAMES.call_once(|| Arena::allocator(0x10_0000, 64));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let frames = FRAMES.get().unwrap();
                for _ in 0..2000 {
                    let a = frames.alloc_zeroed().unwrap();
                    let b = frames.share(&a).unwrap();
                    frames.release(a);
                    frames.release(b);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(frames.statistics().used, 0);
}

#[test]
fn retired_frames_are_not_given_out_before_they_are_freed() {
    let frames = Arena::allocator(MIB2, 1024 + 8);
    let block = frames.alloc_large(PageSize::Size2M).unwrap();
    let mut small = drain(&frames);
    let (kept, last) = (small.pop().unwrap(), small.pop().unwrap());
    let shared = frames.share(&kept).unwrap();
    let used = frames.statistics().used;
    let mut retired = Retired::new();
    frames.retire(shared, &mut retired);
    assert!(retired.is_empty());
    let gone = last.address();
    frames.retire(last, &mut retired);
    frames.retire(small.pop().unwrap(), &mut retired);
    frames.retire(block, &mut retired);
    assert_eq!((retired.frames(), frames.statistics().used), (514, used));
    assert_eq!(frames.alloc(), Err(FrameError::OutOfFrames));
    assert_eq!(
        frames.share(&lent(gone)),
        Err(FrameError::NotAllocated(gone))
    );
    frames.free_retired(&mut retired);
    assert_eq!(
        (retired.frames(), frames.statistics().used),
        (0, used - 514)
    );
    let block = frames.alloc_large(PageSize::Size2M).unwrap();
    let small_again = drain(&frames);
    assert_eq!(small_again.len(), 2);
    release(&frames, small.into_iter().chain(small_again));
    release(&frames, [kept, block]);
}

#[test]
fn an_audit_finds_references_that_are_missing_or_too_many() {
    let frames = Arena::allocator(MIB2, 1024 + 8);
    let a = frames.alloc().unwrap();
    let b = frames.share(&a).unwrap();
    let block = frames.alloc_large(PageSize::Size2M).unwrap();
    let inside = Hpa::new(block.address().as_u64() + 3 * PAGE_SIZE);
    frames.share_many(&lent(inside), 2).unwrap();
    let at = a.address();
    let found = |of_a: usize, of_block: usize| {
        let mut audit = frames.audit();
        for i in 0..of_a {
            assert_eq!(audit.reference(at), Ok(i == 0));
        }
        for _ in 0..of_block {
            audit.reference(inside).unwrap();
        }
        audit.finish()
    };
    assert_eq!(found(2, 3), Ok(0));
    assert_eq!(found(0, 0), Ok(513));
    assert_eq!(found(2, 0), Ok(512));
    assert_eq!(
        found(1, 3),
        Err(Miscount {
            frame: at,
            count: 2,
            found: 1
        })
    );
    assert_eq!(
        found(3, 3),
        Err(Miscount {
            frame: at,
            count: 2,
            found: 3
        })
    );
    assert!(found(2, 2).is_err());
    // The marks that an audit leaves are not taken for anything else.
    assert_eq!(
        frames.block(inside),
        Some((block.address(), PageSize::Size2M))
    );
    release(&frames, [a, b]);
    assert_eq!(
        frames.audit().reference(at),
        Err(FrameError::NotAllocated(at))
    );
    assert_eq!(frames.statistics().used, 512);
    release(&frames, [block, part(inside), part(inside)]);
}

#[derive(Clone, Debug)]
enum Step {
    Alloc,
    Zeroed,
    Large,
    Share(usize),
    Release(usize),
    Refill(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Alloc),
        2 => Just(Step::Zeroed),
        1 => Just(Step::Large),
        2 => any::<usize>().prop_map(Step::Share),
        5 => any::<usize>().prop_map(Step::Release),
        1 => (0u64..4).prop_map(Step::Refill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]

    /// Against a map from the start of each block to its length and the handles to it.
    #[test]
    fn agrees_with_a_map_of_counts(steps in prop::collection::vec(step(), 1..300)) {
        let frames = Arena::allocator(MIB2 - 3 * PAGE_SIZE, 3 + 2 * 512 + 20);
        let total = frames.statistics().total;
        let mut handles: Vec<Frame> = vec![];
        let mut model: BTreeMap<Hpa, (u64, u32)> = BTreeMap::new();
        for step in steps {
            let used: u64 = model.values().map(|(len, _)| len).sum();
            let new = match step {
                Step::Alloc => frames.alloc().map(|f| (f, 1)),
                Step::Zeroed => frames.alloc_zeroed().map(|f| (f, 1)),
                Step::Large => frames.alloc_large(PageSize::Size2M).map(|f| (f, 512)),
                Step::Share(i) => {
                    if !handles.is_empty() {
                        let frame = frames.share(&handles[i % handles.len()]).unwrap();
                        model.get_mut(&frame.address()).unwrap().1 += 1;
                        handles.push(frame);
                    }
                    continue;
                }
                Step::Release(i) => {
                    if !handles.is_empty() {
                        let frame = handles.swap_remove(i % handles.len());
                        let at = frame.address();
                        frames.release(frame);
                        let entry = model.get_mut(&at).unwrap();
                        entry.1 -= 1;
                        if entry.1 == 0 {
                            model.remove(&at);
                        }
                    }
                    continue;
                }
                Step::Refill(n) => {
                    let done = frames.refill(n);
                    prop_assert!(done <= n && done <= frames.statistics().zeroed && frames.statistics().used == used);
                    continue;
                }
            };
            match new {
                Ok((frame, len)) => {
                    let start = frame.address().as_u64();
                    for (other, (other_len, _)) in &model {
                        prop_assert!(!range(start, len * PAGE_SIZE).overlaps(range(other.as_u64(), other_len * PAGE_SIZE)));
                    }
                    model.insert(frame.address(), (len, 1));
                    handles.push(frame);
                }
                // A large block may be lacking while small frames are free.
                Err(error) => {
                    prop_assert_eq!(error, FrameError::OutOfFrames);
                    prop_assert!(matches!(step, Step::Large) || used == total);
                }
            }
            for (at, (_, count)) in &model {
                prop_assert_eq!(frames.count(*at), *count);
            }
            prop_assert_eq!(frames.statistics().used, model.values().map(|(len, _)| len).sum::<u64>());
        }
        release(&frames, handles);
        prop_assert_eq!(frames.statistics().used, 0);
        let all = drain(&frames);
        prop_assert_eq!(all.len() as u64, total);
        release(&frames, all);
    }
}
