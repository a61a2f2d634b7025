//! A list of guest-physical pages in frames of its own: what a CPU or the hypervisor noted of a space, to be gone through
//! later.
//!
//! It is bounded, and a page that cannot be noted is not an error: the list says that it is [incomplete](DirtyLog::is_complete),
//! and whoever relies on it has to look at the tables instead. Nothing is allocated before the first page.

use super::tables::word;
use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::frames::{FrameAllocator, PhysMem};
use core::sync::atomic::Ordering;

/// Pages noted in one frame, and frames that the directory has room for.
const PER_FRAME: usize = (PAGE_SIZE / 8) as usize;

/// Pages, in the order in which they were noted, with repetitions. Its frames are given back by [`DirtyLog::release`].
#[must_use = "frames of a log that is dropped are leaked"]
#[derive(Debug)]
pub(super) struct DirtyLog {
    /// The first frame of pages.
    first: Option<Hpa>,
    /// The frame that lists all frames of pages, once there is more than one.
    directory: Option<Hpa>,
    /// Frames of pages there are.
    held: usize,
    /// Frames of pages begun.
    begun: usize,
    /// Where the next page is noted: in the last frame begun, or nowhere where that is full.
    next: Hpa,
    complete: bool,
}

impl DirtyLog {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            first: None,
            directory: None,
            held: 0,
            begun: 0,
            next: Hpa::new(0),
            complete: true,
        }
    }

    /// Notes the page. Where there is no room and no frame, the list is incomplete from then on.
    #[inline(always)]
    pub fn push<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, page: Gpa) {
        if self.is_full() && !self.grow(frames) {
            self.complete = false;
            return;
        }
        // SAFETY: the place is in a frame of this list, which is alive.
        unsafe { word(frames.mem(), self.next, 0) }.store(page.as_u64(), Ordering::Relaxed);
        self.next = Hpa::new(self.next.as_u64() + 8);
    }

    /// Whether the last frame begun is full, or there is none.
    #[inline(always)]
    const fn is_full(&self) -> bool {
        self.next.as_u64() % PAGE_SIZE == 0
    }

    /// Begins another frame.
    #[cold]
    fn grow<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> bool {
        if self.begun == self.held && !self.allocate(frames) {
            return false;
        }
        let Some(frame) = self.frame(frames.mem(), self.begun) else {
            return false;
        };
        self.begun += 1;
        self.next = frame;
        true
    }

    fn allocate<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> bool {
        if self.held == PER_FRAME {
            return false;
        }
        let Some(first) = self.first else {
            self.first = frames.alloc().ok().map(|frame| frame.into_raw());
            self.held = usize::from(self.first.is_some());
            return self.first.is_some();
        };
        if self.directory.is_none() {
            let Ok(frame) = frames.alloc() else {
                return false;
            };
            let directory = frame.into_raw();
            // SAFETY: the directory is a fresh frame of this list.
            unsafe { word(frames.mem(), directory, 0) }.store(first.as_u64(), Ordering::Relaxed);
            self.directory = Some(directory);
        }
        let (Some(directory), Ok(frame)) = (self.directory, frames.alloc()) else {
            return false;
        };
        let frame = frame.into_raw();
        // SAFETY: the directory is a frame of this list; there is room, as was checked above.
        unsafe { word(frames.mem(), directory, self.held) }
            .store(frame.as_u64(), Ordering::Relaxed);
        self.held += 1;
        true
    }

    /// The frame of pages with this number.
    fn frame<M: PhysMem>(&self, mem: &M, number: usize) -> Option<Hpa> {
        match self.directory {
            _ if number >= self.held => None,
            None => self.first,
            Some(directory) => {
                // SAFETY: the directory is a frame of this list.
                let address = unsafe { word(mem, directory, number) }.load(Ordering::Relaxed);
                Some(Hpa::new(address))
            }
        }
    }

    /// Whether every page is there that was to be noted.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Notes that a page may be missing.
    pub const fn mark_incomplete(&mut self) {
        self.complete = false;
    }
    /// How many pages are noted, repetitions counted.
    pub const fn len(&self) -> usize {
        if self.is_full() {
            self.begun * PER_FRAME
        } else {
            (self.begun - 1) * PER_FRAME + (self.next.as_u64() % PAGE_SIZE / 8) as usize
        }
    }

    /// The page with this number, below [`DirtyLog::len`].
    #[inline]
    pub fn get<M: PhysMem>(&self, mem: &M, number: usize) -> Gpa {
        let page = self.frame(mem, number / PER_FRAME).map_or(0, |frame| {
            // SAFETY: a frame of this list.
            unsafe { word(mem, frame, number % PER_FRAME) }.load(Ordering::Relaxed)
        });
        Gpa::new(page)
    }

    /// Replaces the page with this number, below [`DirtyLog::len`].
    #[inline]
    pub fn set<M: PhysMem>(&mut self, mem: &M, number: usize, page: Gpa) {
        if let Some(frame) = self.frame(mem, number / PER_FRAME) {
            // SAFETY: a frame of this list.
            unsafe { word(mem, frame, number % PER_FRAME) }.store(page.as_u64(), Ordering::Relaxed);
        }
    }

    /// All pages.
    #[cfg(test)]
    pub fn iter<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Gpa> + 'a {
        (0..self.len()).map(move |number| self.get(mem, number))
    }

    /// Forgets all pages but the first `left`. The frames stay, for the next pages.
    pub fn truncate<M: PhysMem>(&mut self, mem: &M, left: usize) {
        if left < self.len() {
            self.begun = left.div_ceil(PER_FRAME);
            let within = (left % PER_FRAME) as u64 * 8;
            let last = self.begun.checked_sub(1);
            self.next = last
                .filter(|_| within != 0)
                .and_then(|last| self.frame(mem, last))
                .map_or(Hpa::new(0), |frame| Hpa::new(frame.as_u64() + within));
        }
    }

    /// Forgets all pages: the list is empty and complete.
    pub const fn clear(&mut self) {
        self.begun = 0;
        self.next = Hpa::new(0);
        self.complete = true;
    }

    /// Puts the pages into the order of their addresses, where they are. Takes one look at each where they are in order
    /// already, as those of a guest that goes through its memory are.
    pub fn sort<M: PhysMem>(&mut self, mem: &M) {
        let len = self.len();
        let sorted = (1..len).all(|number| self.get(mem, number - 1) <= self.get(mem, number));
        if sorted {
            return;
        }
        // A heap, whose greatest is at its front: first made, then taken away from at its end.
        for front in (0..len / 2).rev() {
            self.sift(mem, front, len);
        }
        for end in (1..len).rev() {
            let (greatest, last) = (self.get(mem, 0), self.get(mem, end));
            self.set(mem, end, greatest);
            self.set(mem, 0, last);
            self.sift(mem, 0, end);
        }
    }

    /// Lets the page at `at` sink in the heap of the first `end` pages, until none below it is greater.
    fn sift<M: PhysMem>(&mut self, mem: &M, mut at: usize, end: usize) {
        let page = self.get(mem, at);
        while 2 * at + 1 < end {
            let mut child = 2 * at + 1;
            let mut greatest = self.get(mem, child);
            if child + 1 < end {
                let right = self.get(mem, child + 1);
                if right > greatest {
                    (child, greatest) = (child + 1, right);
                }
            }
            if greatest <= page {
                break;
            }
            self.set(mem, at, greatest);
            at = child;
        }
        self.set(mem, at, page);
    }

    /// The frames that the list holds: of each the one reference.
    pub fn frames<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Hpa> + 'a {
        let pages = (0..self.held).filter_map(move |number| self.frame(mem, number));
        pages.chain(self.directory)
    }

    /// Gives the frames back.
    pub fn release<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        for address in self.frames(frames.mem()) {
            let gone = frames
                .from_entry(address)
                .and_then(|frame| frames.release(frame));
            debug_assert!(gone.is_ok(), "{gone:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::memory;
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering::SeqCst;

    fn pages(numbers: impl IntoIterator<Item = u64>) -> Vec<Gpa> {
        let page = |number| Gpa::new(number * PAGE_SIZE);
        numbers.into_iter().map(page).collect()
    }

    #[test]
    fn it_holds_what_was_noted_and_takes_no_more_frames_than_that_needs() {
        let (frames, _) = memory(64);
        let used = frames.figures().used;
        let mut log = DirtyLog::new();
        assert_eq!((log.len(), frames.figures().used), (0, used));
        let all = pages((0..1500).map(|i| i * 7919 % 1500));
        for (number, page) in all.iter().enumerate() {
            log.push(&frames, *page);
            assert_eq!(log.len(), number + 1);
            let expected = match number {
                0..512 => 1,
                512..1024 => 3,
                _ => 4,
            };
            assert_eq!(frames.figures().used - used, expected, "{number}");
            assert_eq!(log.frames(frames.mem()).count() as u64, expected);
        }
        assert!(log.is_complete());
        assert!(log.iter(frames.mem()).eq(all.iter().copied()));
        log.sort(frames.mem());
        assert!(log.iter(frames.mem()).eq(pages(0..1500)));
        // Cut, it goes on where it was cut, in the frames that it has.
        for left in [1300, 1024, 1023, 512, 511, 1, 0] {
            log.truncate(frames.mem(), left);
            assert!(log.iter(frames.mem()).eq(pages(0..left as u64)), "{left}");
            log.push(&frames, Gpa::new(PAGE_SIZE));
            assert_eq!(
                (log.len(), log.get(frames.mem(), left)),
                (left + 1, Gpa::new(PAGE_SIZE))
            );
            log.set(frames.mem(), left, Gpa::new(left as u64 * PAGE_SIZE));
        }
        log.clear();
        assert_eq!((log.len(), frames.figures().used - used), (0, 4));
        log.release(&frames);
        assert_eq!(frames.figures().used, used);
    }

    #[test]
    fn what_finds_no_frame_makes_it_incomplete() {
        let (frames, _) = memory(64);
        let used = frames.figures().used;
        // The frame of pages, the directory, and the second frame of pages.
        for (allowed, noted) in [(0, 0), (1, 512), (2, 512), (3, 1024)] {
            let mut log = DirtyLog::new();
            frames.allowance.store(allowed, SeqCst);
            for page in pages(0..1025) {
                log.push(&frames, page);
            }
            assert_eq!((log.len(), log.is_complete()), (noted, false), "{allowed}");
            assert!(log.iter(frames.mem()).eq(pages(0..noted as u64)));
            frames.allowance.store(u64::MAX, SeqCst);
            log.push(&frames, Gpa::new(0));
            assert_eq!((log.len(), log.is_complete()), (noted + 1, false));
            log.clear();
            assert!(log.is_complete());
            log.release(&frames);
            assert_eq!(frames.figures().used, used);
        }
    }

    #[test]
    fn it_is_bounded() {
        let (frames, _) = memory(700);
        let mut log = DirtyLog::new();
        for _ in 0..PER_FRAME * PER_FRAME {
            log.push(&frames, Gpa::new(0));
        }
        assert!(log.is_complete());
        log.push(&frames, Gpa::new(0));
        assert!(!log.is_complete());
        assert_eq!(log.len(), PER_FRAME * PER_FRAME);
        log.release(&frames);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sorting_is_sorting(numbers in prop::collection::vec(0u64..700, 0..1200)) {
            let (frames, _) = memory(16);
            let mut log = DirtyLog::new();
            for page in pages(numbers.iter().copied()) {
                log.push(&frames, page);
            }
            log.sort(frames.mem());
            let mut numbers = numbers;
            numbers.sort_unstable();
            prop_assert!(log.iter(frames.mem()).eq(pages(numbers)));
        }
    }
}
