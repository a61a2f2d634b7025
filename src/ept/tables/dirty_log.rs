//! The pages whose leaves may be dirty, as a CPU or the hypervisor noted them, so that not all leaves have to be looked at.
//!
//! It only says where to look, and is bounded: a page that cannot be noted is not an error. Which of the dirty leaves it has
//! is its [`Coverage`].

use crate::addr::{Gpa, PAGE_SIZE};
use crate::frames::{FrameAllocator, FrameList, PhysMem};
use arrayvec::ArrayVec;

/// How many frames a log has at most.
const FRAMES: usize = 512;
const PAGES: usize = FRAMES * FrameList::<u64>::PER_FRAME;
/// In place of a page: it was taken out.
const GONE: u64 = u64::MAX;

/// Which of the dirty leaves the log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ept) enum Coverage {
    /// Every one.
    All,
    /// Those of the pages below this address, and what was noted since.
    Below(Gpa),
}

/// Pages, in the order in which they were noted, with repetitions.
#[derive(Debug)]
pub(in crate::ept) struct DirtyLog {
    pages: FrameList<u64>,
    pub coverage: Coverage,
}

impl DirtyLog {
    /// An empty log of a space that may have dirty leaves.
    pub const fn new() -> Self {
        Self {
            pages: FrameList::new(),
            coverage: Coverage::Below(Gpa::new(0)),
        }
    }

    /// Notes the page, and returns whether it is; where there is no room or no frame, the log is lost.
    #[inline(always)]
    pub fn push<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, page: Gpa) -> bool {
        let noted = self.pages.len() < PAGES && self.pages.push(frames, page.as_u64()).is_ok();
        if !noted {
            self.lose(frames);
        }
        noted
    }

    /// Leaves may be dirty that were not noted: it starts anew.
    #[cold]
    pub fn lose<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        self.pages.clear(frames);
        self.coverage = Coverage::Below(Gpa::new(0));
    }

    /// No leaf is dirty any more.
    pub fn clear<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        self.pages.clear(frames);
        self.coverage = Coverage::All;
    }

    /// How many pages are noted, repetitions counted.
    pub const fn len(&self) -> usize {
        self.pages.len()
    }

    /// Shows each page to `keep`, in the order of their addresses; those for which it says `false` go. Each frame is sorted
    /// where it is, and of all frames the least page that was not shown yet is the next: that takes a number of steps in
    /// proportion to the logarithm of how many frames there are.
    pub fn retain_in_order<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        mut keep: impl FnMut(Gpa) -> bool,
    ) {
        let mut kept = 0;
        let mut runs: ArrayVec<_, FRAMES> = self.pages.parts(frames.mem()).collect();
        // Of each run that is not over, the next page, then which run it is and where the page is in it.
        let next = |page: &u64, run: usize, at: usize| {
            ((page / PAGE_SIZE) << 20) | ((run << 10) | at) as u64
        };
        let mut heap: ArrayVec<u64, FRAMES> = ArrayVec::new();
        for (number, run) in runs.iter_mut().enumerate() {
            run.sort_unstable();
            heap.extend(run.first().map(|page| next(page, number, 0)));
        }
        // What is in order is a heap.
        heap.sort_unstable();
        while let Some(least) = heap.first_mut() {
            let (number, at) = ((*least >> 10) as usize % 1024, *least as usize % 1024);
            let Some([page, rest @ ..]) = runs.get_mut(number).and_then(|run| run.get_mut(at..))
            else {
                break;
            };
            match rest.first() {
                Some(page) => *least = next(page, number, at + 1),
                None => drop(heap.swap_remove(0)),
            }
            sift_down(&mut heap);
            if keep(Gpa::new(*page)) {
                kept += 1;
            } else {
                *page = GONE;
            }
        }
        drop(runs);
        match kept {
            0 => self.pages.clear(frames),
            _ => self.pages.retain(frames, |page| page.get() != GONE),
        }
    }

    /// The frames that the log holds: of each the one reference.
    pub fn frames<'a, M: PhysMem>(
        &'a self,
        mem: &'a M,
    ) -> impl Iterator<Item = crate::addr::Hpa> + 'a {
        self.pages.frames(mem)
    }

    /// Gives the frames back.
    pub fn release<M: PhysMem>(mut self, frames: &FrameAllocator<M>) {
        self.pages.clear(frames);
    }
}

/// Makes a heap, the least in front, of one whose first may be larger than others.
#[inline]
fn sift_down(heap: &mut [u64]) {
    let mut at = 0;
    while let Some(least) =
        (2 * at + 1..heap.len().min(2 * at + 3)).min_by_key(|child| heap[*child])
        && heap[at] > heap[least]
    {
        heap.swap(at, least);
        at = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ept::tests::memory;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering::SeqCst;

    fn pages(numbers: impl IntoIterator<Item = u64>) -> Vec<Gpa> {
        let page = |number| Gpa::new(number * PAGE_SIZE);
        numbers.into_iter().map(page).collect()
    }

    #[test]
    fn it_holds_what_was_noted_in_the_frames_that_it_tells() {
        let (frames, _) = memory(64);
        let used = frames.statistics().used;
        let mut log = DirtyLog::new();
        assert_eq!((log.len(), frames.statistics().used), (0, used));
        log.clear(&frames);
        for page in pages((0..1500).map(|i| i * 7919 % 1500)) {
            log.push(&frames, page);
        }
        assert_eq!((log.len(), log.coverage), (1500, Coverage::All));
        assert_eq!(frames.statistics().used - used, 3);
        assert_eq!(log.frames(frames.mem()).count(), 3);
        let mut shown = vec![];
        log.retain_in_order(&frames, |page| {
            shown.push(page);
            true
        });
        assert_eq!((shown, log.len()), (pages(0..1500), 1500));
        log.retain_in_order(&frames, |_| false);
        assert_eq!((log.len(), frames.statistics().used), (0, used));
    }

    #[test]
    fn what_finds_no_frame_has_it_start_anew() {
        let (frames, _) = memory(64);
        let used = frames.statistics().used;
        for allowed in 0..3 {
            let mut log = DirtyLog::new();
            log.clear(&frames);
            frames.allowance.store(allowed, SeqCst);
            for page in pages(0..1025) {
                log.push(&frames, page);
            }
            frames.allowance.store(u64::MAX, SeqCst);
            assert_eq!(
                (log.len(), frames.statistics().used),
                (0, used),
                "{allowed}"
            );
            let lost = Coverage::Below(Gpa::new(0));
            assert_eq!(log.coverage, lost, "{allowed}");
            // What is noted from now on is kept.
            log.push(&frames, Gpa::new(0));
            assert_eq!((log.len(), log.coverage), (1, lost));
            log.clear(&frames);
            assert_eq!((log.len(), log.coverage), (0, Coverage::All));
            assert_eq!(frames.statistics().used, used);
        }
    }

    #[test]
    fn it_is_bounded() {
        let (frames, _) = memory(700);
        let mut log = DirtyLog::new();
        log.clear(&frames);
        for _ in 0..PAGES {
            log.push(&frames, Gpa::new(0));
        }
        assert_eq!((log.len(), log.coverage), (PAGES, Coverage::All));
        log.push(&frames, Gpa::new(0));
        assert_eq!((log.len(), log.coverage), (0, Coverage::Below(Gpa::new(0))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(64)))]

        #[test]
        fn pages_are_shown_in_order_and_kept_or_not(
            numbers in prop::collection::vec(0u64..700, 0..2600),
            modulus in 1u64..9,
        ) {
            let (frames, _) = memory(16);
            let mut log = DirtyLog::new();
            for page in pages(numbers.iter().copied()) {
                log.push(&frames, page);
            }
            let mut numbers = numbers;
            // What was kept comes with what is noted later.
            for _ in 0..2 {
                let mut shown = vec![];
                log.retain_in_order(&frames, |page| {
                    shown.push(page);
                    (page.as_u64() / PAGE_SIZE).is_multiple_of(modulus)
                });
                numbers.sort_unstable();
                prop_assert_eq!(shown, pages(numbers.iter().copied()));
                numbers.retain(|number| number % modulus == 0);
                prop_assert_eq!(log.len(), numbers.len());
                for number in [9, 2, 700] {
                    log.push(&frames, Gpa::new(number * PAGE_SIZE));
                    numbers.push(number);
                }
            }
            log.release(&frames);
        }
    }
}
