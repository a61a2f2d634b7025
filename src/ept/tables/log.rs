//! Which pages became a fork's own, in the order in which they did: what a warm reset has to look at.
//!
//! | state | pages are noted | left by |
//! |---|---|---|
//! | off | no: it is no fork of a template | nothing |
//! | on, as a fork of a template starts | each once, when its leaf is written as this space's own | [`Log::lose`]: an edit that does not tell its pages, or no frame for a record |
//! | lost | no: the next reset drops all that the fork holds | [`Log::clear`]: a cold reset, after which nothing is the fork's own; then it is on |

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::frames::{FrameAllocator, FrameList, PhysMem};
use core::cell::Cell;
use core::sync::atomic::AtomicU64;

/// A page of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ept) struct OwnPage {
    /// The word of its leaf. The table is the fork's own, so it stays where it is.
    pub leaf: Hpa,
    /// Its address; in the low bits, for how many resets it has not been written.
    page: u64,
    /// What the template holds there; 0 until somebody has looked.
    pub source: u64,
}

impl OwnPage {
    /// Its address.
    pub const fn page(&self) -> Gpa {
        Gpa::new(self.page & !(PAGE_SIZE - 1))
    }
    /// For how many resets it has not been written.
    pub const fn idle(&self) -> u64 {
        self.page & (PAGE_SIZE - 1)
    }
    /// The same, of which is known what the template holds.
    pub const fn with_source(self, source: u64) -> Self {
        Self { source, ..self }
    }
    /// The same, not written for so many resets.
    pub const fn with_idle(self, idle: u64) -> Self {
        let most = PAGE_SIZE - 1;
        let idle = if idle < most { idle } else { most };
        let page = self.page & !most | idle;
        Self { page, ..self }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    On,
    Lost,
}

/// The log of one fork.
#[derive(Debug, Default)]
pub(in crate::ept) struct Log {
    state: State,
    records: FrameList<OwnPage>,
}

impl Log {
    /// A log in which pages are noted.
    pub const fn on() -> Self {
        Self {
            state: State::On,
            records: FrameList::new(),
        }
    }

    /// A log of these pages in which no more are noted.
    pub const fn of(records: FrameList<OwnPage>) -> Self {
        let state = State::Off;
        Self { state, records }
    }

    /// Whether pages are to be noted.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// From now on it does not tell all pages.
    #[inline(always)]
    pub fn lose(&mut self) {
        if self.state == State::On {
            self.state = State::Lost;
        }
    }

    /// Forgets everything and gives the frames back. Pages are noted again if they were.
    pub fn clear<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        self.records.clear(frames);
        if self.state == State::Lost {
            self.state = State::On;
        }
    }

    /// Notes a page whose leaf has just become one of a frame of the space's own, in a table that is so too.
    #[inline(always)]
    pub fn note<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, leaf: Hpa, page: Gpa) {
        let page = page.as_u64() & !(PAGE_SIZE - 1);
        let record = OwnPage {
            leaf,
            page,
            source: 0,
        };
        if self.records.push(frames, record).is_err() {
            self.state = State::Lost;
        }
    }

    /// The pages that were noted.
    pub const fn records(&self) -> &FrameList<OwnPage> {
        &self.records
    }

    /// Shows each record and the word of its leaf to `keep`, the latest first, which may change them. Those for which it says
    /// `false` go.
    ///
    /// # Safety
    /// The log must be on, and be that of the space whose leaves were noted: no edit has moved them, or it would be lost.
    #[inline(always)]
    pub unsafe fn retain<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        mut keep: impl FnMut(&Cell<OwnPage>, &AtomicU64) -> bool,
    ) {
        self.records.retain(frames, |record| {
            let leaf = frames.mem().ptr(record.get().leaf);
            // SAFETY: a word of a table that is the space's own, which is as atomic words alone as all tables are.
            keep(record, unsafe { AtomicU64::from_ptr(leaf.cast()) })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn a_log_without_a_frame_is_lost_until_it_is_cleared() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut log = Log::on();
        let full = FrameList::<OwnPage>::PER_FRAME;
        for i in 0..full as u64 {
            log.note(&frames, Hpa::new(i * 8), Gpa::new(i * PAGE_SIZE + 5));
        }
        frames.allowance.store(0, SeqCst);
        assert!(log.is_on());
        log.note(&frames, Hpa::new(0), Gpa::new(0));
        assert!(!log.is_on() && log.records().len() == full);
        frames.allowance.store(u64::MAX, SeqCst);
        log.clear(&frames);
        assert!(log.is_on() && log.records().is_empty() && frames.statistics().used == 0);
        // One that nobody asked for stays off.
        let mut off = Log::default();
        off.lose();
        off.clear(&frames);
        assert!(!off.is_on());
    }

    #[test]
    fn idle_counts_stand_beside_the_address() {
        let record = OwnPage {
            leaf: Hpa::new(8),
            page: 0x7000,
            source: 3,
        };
        assert_eq!((record.idle(), record.page()), (0, Gpa::new(0x7000)));
        let idle = record.with_idle(17);
        assert_eq!(
            (idle.idle(), idle.page(), idle.source),
            (17, Gpa::new(0x7000), 3)
        );
        assert_eq!(idle.with_idle(1 << 40).page(), Gpa::new(0x7000));
    }
}
