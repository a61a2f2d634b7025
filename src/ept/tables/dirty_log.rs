//! A list of guest-physical pages in frames of its own: what a CPU or the hypervisor noted of a space, to be gone through
//! later.
//!
//! It is bounded, and a page that cannot be noted is not an error: the list says that it is [incomplete](DirtyLog::is_complete),
//! and whoever relies on it has to look at the tables instead. Nothing is allocated before the first page.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::ept::tables::table::word;
use crate::frames::{Frame, FrameAllocator, PhysMem};
use core::sync::atomic::Ordering;

/// Pages noted in one frame, and frames that the directory has room for.
const PER_FRAME: usize = (PAGE_SIZE / 8) as usize;

/// Pages, in the order in which they were noted, with repetitions. Its frames are given back by [`DirtyLog::release`].
#[must_use = "frames of a log that is dropped are leaked"]
#[derive(Debug)]
pub(in crate::ept) struct DirtyLog {
    /// The first frame of pages.
    first: Option<Frame>,
    /// The frame that lists the others, by number, once there are any.
    directory: Option<Frame>,
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
        unsafe { word(frames.mem(), self.next) }.store(page.as_u64(), Ordering::Relaxed);
        self.next = Hpa::new(self.next.as_u64() + 8);
    }

    /// Whether the last frame begun is full, or there is none.
    #[inline(always)]
    const fn is_full(&self) -> bool {
        self.next.as_u64().is_multiple_of(PAGE_SIZE)
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
        if self.first.is_none() {
            self.first = frames.alloc().ok();
            self.held = usize::from(self.first.is_some());
            return self.first.is_some();
        }
        if self.directory.is_none() {
            self.directory = frames.alloc().ok();
        }
        let (Some(directory), Ok(frame)) = (&self.directory, frames.alloc()) else {
            return false;
        };
        // SAFETY: the directory is a frame of this list; there is room, as was checked above.
        unsafe { word(frames.mem(), place(directory.address(), self.held)) }
            .store(frame.into_raw().as_u64(), Ordering::Relaxed);
        self.held += 1;
        true
    }

    /// The frame of pages with this number.
    fn frame<M: PhysMem>(&self, mem: &M, number: usize) -> Option<Hpa> {
        match &self.directory {
            _ if number >= self.held => None,
            Some(directory) if number > 0 => {
                // SAFETY: the directory is a frame of this list.
                let frame = unsafe { word(mem, place(directory.address(), number)) };
                Some(Hpa::new(frame.load(Ordering::Relaxed)))
            }
            _ => self.first.as_ref().map(Frame::address),
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
    fn get<M: PhysMem>(&self, mem: &M, number: usize) -> Gpa {
        let page = self.frame(mem, number / PER_FRAME).map_or(0, |frame| {
            // SAFETY: a frame of this list.
            unsafe { word(mem, place(frame, number)) }.load(Ordering::Relaxed)
        });
        Gpa::new(page)
    }

    /// Replaces the page with this number, below [`DirtyLog::len`].
    #[inline]
    fn set<M: PhysMem>(&mut self, mem: &M, number: usize, page: Gpa) {
        if let Some(frame) = self.frame(mem, number / PER_FRAME) {
            // SAFETY: a frame of this list.
            unsafe { word(mem, place(frame, number)) }.store(page.as_u64(), Ordering::Relaxed);
        }
    }

    /// All pages.
    #[cfg(test)]
    pub fn iter<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Gpa> + 'a {
        (0..self.len()).map(move |number| self.get(mem, number))
    }

    /// Forgets all pages but the first `left`. The frames stay, for the next pages.
    fn truncate<M: PhysMem>(&mut self, mem: &M, left: usize) {
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

    /// Shows each page to `keep`, in the order of their addresses; those for which it says `false` go. Each frame is sorted
    /// where it is, and of all frames the least page that was not shown yet is the next: that takes a number of steps in
    /// proportion to the logarithm of how many frames there are.
    pub fn retain_in_order<M: PhysMem>(&mut self, mem: &M, mut keep: impl FnMut(Gpa) -> bool) {
        let mut runs = Runs {
            next: [0; PER_FRAME],
            heap: [0; PER_FRAME],
            live: 0,
        };
        let mut kept = [0_u16; PER_FRAME];
        for number in 0..self.begun {
            self.pages_of(mem, number).sort_unstable();
        }
        for number in (0..self.begun).rev() {
            runs.add(number, |run, at| self.get(mem, run * PER_FRAME + at));
        }
        while let Some((run, at)) = runs.least() {
            let page = self.get(mem, run * PER_FRAME + at);
            if keep(page)
                && let Some(kept) = kept.get_mut(run)
            {
                // Never ahead of what is shown.
                self.set(mem, run * PER_FRAME + usize::from(*kept), page);
                *kept += 1;
            }
            let len = (self.len() - run * PER_FRAME).min(PER_FRAME);
            runs.advance(len, |run, at| self.get(mem, run * PER_FRAME + at));
        }
        let mut left = 0;
        for (run, kept) in kept.iter().enumerate().take(self.begun) {
            for at in 0..usize::from(*kept) {
                let page = self.get(mem, run * PER_FRAME + at);
                self.set(mem, left, page);
                left += 1;
            }
        }
        self.truncate(mem, left);
    }

    /// The pages in the frame with this number.
    fn pages_of<M: PhysMem>(&mut self, mem: &M, number: usize) -> &mut [u64] {
        let Some(frame) = self.frame(mem, number) else {
            return &mut [];
        };
        let len = (self.len() - number * PER_FRAME).min(PER_FRAME);
        // SAFETY: a frame of this list, which is borrowed for as long, and so many pages have been noted in it.
        unsafe { core::slice::from_raw_parts_mut(mem.ptr(frame).cast(), len) }
    }

    /// The frames that the list holds: of each the one reference.
    pub fn frames<'a, M: PhysMem>(&'a self, mem: &'a M) -> impl Iterator<Item = Hpa> + 'a {
        let pages = (0..self.held).filter_map(move |number| self.frame(mem, number));
        pages.chain(self.directory.as_ref().map(Frame::address))
    }

    /// Gives the frames back.
    pub fn release<M: PhysMem>(self, frames: &FrameAllocator<M>) {
        for address in (1..self.held).filter_map(|number| self.frame(frames.mem(), number)) {
            // SAFETY: the directory lists it, and is itself given back.
            frames.release(unsafe { Frame::from_raw(address) });
        }
        let Self {
            first, directory, ..
        } = self;
        let own = first.into_iter().chain(directory);
        own.for_each(|frame| frames.release(frame));
    }
}

/// Where the word of a frame is that has this number, or as many frames' more.
const fn place(frame: Hpa, number: usize) -> Hpa {
    Hpa::new(frame.as_u64() + 8 * (number % PER_FRAME) as u64)
}

/// Sorted runs of pages that are gone through together: a heap of their numbers, the one with the least page in front.
struct Runs {
    /// The place in each run that is next.
    next: [u16; PER_FRAME],
    heap: [u16; PER_FRAME],
    /// Runs in the heap.
    live: usize,
}

impl Runs {
    /// The run with the least page, and where in it that is.
    #[inline]
    fn least(&self) -> Option<(usize, usize)> {
        let run = usize::from(*self.heap.get(..self.live)?.first()?);
        Some((run, usize::from(*self.next.get(run)?)))
    }

    /// Adds a run. `page` tells the page at a place of a run.
    fn add(&mut self, run: usize, page: impl Fn(usize, usize) -> Gpa) {
        let mut at = self.live;
        if let Some(place) = self.heap.get_mut(at) {
            *place = run as u16;
            self.live += 1;
        }
        while at > 0 && self.key(at, &page) < self.key((at - 1) / 2, &page) {
            self.heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    /// Goes on in the run with the least page, which has `len`.
    #[inline]
    fn advance(&mut self, len: usize, page: impl Fn(usize, usize) -> Gpa) {
        let Some((run, at)) = self.least() else {
            return;
        };
        if at + 1 < len {
            if let Some(next) = self.next.get_mut(run) {
                *next += 1;
            }
        } else {
            self.live -= 1;
            self.heap.swap(0, self.live);
        }
        let mut at = 0;
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.live);
            let Some(least) = children.min_by_key(|child| self.key(*child, &page)) else {
                return;
            };
            if self.key(at, &page) <= self.key(least, &page) {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    /// The next page of the run at this place of the heap.
    fn key(&self, place: usize, page: impl Fn(usize, usize) -> Gpa) -> Gpa {
        let run = self.heap.get(place).map_or(0, |run| usize::from(*run));
        page(run, self.next.get(run).map_or(0, |next| usize::from(*next)))
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
        let mut shown = vec![];
        log.retain_in_order(frames.mem(), |page| {
            shown.push(page);
            true
        });
        assert_eq!(shown, pages(0..1500));
        assert_eq!(log.len(), 1500);
        log.clear();
        for page in pages(0..1500) {
            log.push(&frames, page);
        }
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
                log.retain_in_order(frames.mem(), |page| {
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
