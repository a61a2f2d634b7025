//! Which pages became a fork's own, in the order in which they did.
//!
//! The log lies in frames that are taken when the first page is noted. Where there is none, or where the tables change
//! in a way that it does not tell, it is lost: the next reset then drops all that the fork holds.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::frames::{Frame, FrameAllocator, FrameError, PhysMem};

/// A page of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(in crate::ept) struct Record {
    /// The word of its leaf. The table is the fork's own, so it stays where it is.
    pub leaf: Hpa,
    /// Its address; in the low bits, for how many resets it has not been written.
    page: u64,
    /// What the template holds there; 0 until somebody has looked.
    pub source: u64,
}

impl Record {
    /// Its address.
    pub const fn page(&self) -> Gpa {
        Gpa::new(self.page & !(PAGE_SIZE - 1))
    }
    /// For how many resets it has not been written.
    pub const fn idle(&self) -> u64 {
        self.page & (PAGE_SIZE - 1)
    }
    /// The same, not written for so many resets.
    pub const fn with_idle(self, idle: u64) -> Self {
        let most = PAGE_SIZE - 1;
        let idle = if idle < most { idle } else { most };
        let page = self.page & !most | idle;
        Self { page, ..self }
    }
}

/// Bytes of a record.
const RECORD: u64 = size_of::<Record>() as u64;
/// How many records fit into a frame, behind the address of the frame before it.
const RECORDS: usize = 170;

/// A frame of the log. The last record ends where it ends.
#[repr(C)]
struct Chunk {
    before: u64,
    unused: u64,
    records: [Record; RECORDS],
}
const _: () = assert!(size_of::<Chunk>() as u64 == PAGE_SIZE);
/// Where the first record is.
const FIRST: u64 = core::mem::offset_of!(Chunk, records) as u64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nobody asks.
    #[default]
    Off,
    On,
    Lost,
}

/// The log of one fork.
#[derive(Debug, Default)]
#[must_use = "a log that is dropped without `clear` leaks its frames"]
pub(in crate::ept) struct Log {
    state: State,
    /// The last frame; 0 where there is none.
    chunk: u64,
    /// Where the next record goes: where a frame begins, if there is no room.
    next: u64,
    /// Records in the frames before the last.
    before: u64,
}

impl Log {
    /// A log in which pages are noted.
    pub const fn on() -> Self {
        Self {
            state: State::On,
            chunk: 0,
            next: 0,
            before: 0,
        }
    }

    /// Whether pages are to be noted.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// How many records there are.
    pub const fn len(&self) -> u64 {
        self.before + self.in_last()
    }

    /// How many of them are in the last frame.
    const fn in_last(&self) -> u64 {
        match self.chunk {
            0 => 0,
            chunk => (self.next - chunk - FIRST) / RECORD,
        }
    }

    /// From now on it does not tell all pages.
    #[inline(always)]
    pub fn lose(&mut self) {
        if self.state == State::On {
            self.state = State::Lost;
        }
    }

    /// Notes a page.
    #[inline(always)]
    pub fn note<M: PhysMem>(&mut self, frames: &FrameAllocator<M>, leaf: Hpa, page: Gpa) {
        let page = page.as_u64() & !(PAGE_SIZE - 1);
        let record = Record {
            leaf,
            page,
            source: 0,
        };
        if self.push(frames, record).is_err() {
            self.state = State::Lost;
        }
    }

    /// Adds a record.
    #[inline(always)]
    pub fn push<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        record: Record,
    ) -> Result<(), FrameError> {
        if self.next.is_multiple_of(PAGE_SIZE) {
            self.grow(frames)?;
        }
        // SAFETY: a place in the last frame of this log, which is borrowed for writing.
        unsafe { self.next_place(frames).write(record) };
        self.next += RECORD;
        Ok(())
    }

    #[cold]
    fn grow<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) -> Result<(), FrameError> {
        let frame = frames.alloc()?.into_raw().as_u64();
        self.before = self.len();
        let before = core::mem::replace(&mut self.chunk, frame);
        self.next = frame + FIRST;
        // SAFETY: the frame is fresh, and `before` is its first word.
        unsafe { (&raw mut (*chunk(frames, self.chunk)).before).write(before) };
        Ok(())
    }

    /// Where the next record goes.
    #[inline(always)]
    fn next_place<M: PhysMem>(&self, frames: &FrameAllocator<M>) -> *mut Record {
        frames.mem().ptr(Hpa::new(self.next)).cast()
    }

    /// Shows each record to `keep`, the latest first, which may change it. Those for which it says `false` go.
    #[inline(always)]
    pub fn retain<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        mut keep: impl FnMut(&mut Record) -> bool,
    ) {
        let (mut at, mut end) = (self.chunk, self.next);
        while at != 0 {
            let first = records_of(frames, at);
            // SAFETY: a frame of this log: only those behind it, whose records have been shown, may be gone. All records
            // below its end have been written.
            let (before, mut place) = unsafe {
                let records = first.byte_add((end - at - FIRST) as usize);
                ((*chunk(frames, at)).before, records)
            };
            while place != first {
                // SAFETY: not the first, so the one before it is in the frame too.
                place = unsafe { place.sub(1) };
                // SAFETY: the log is borrowed for writing.
                if !keep(unsafe { &mut *place }) {
                    // SAFETY: likewise.
                    unsafe { self.replace_by_last(frames, place) };
                }
            }
            (at, end) = (before, before + PAGE_SIZE);
        }
    }

    /// Has the last record take the place of another that was shown to `keep`.
    ///
    /// # Safety
    /// `place` must be one of this log's records, and all behind it have been shown.
    #[cold]
    unsafe fn replace_by_last<M: PhysMem>(
        &mut self,
        frames: &FrameAllocator<M>,
        place: *mut Record,
    ) {
        self.next -= RECORD;
        // SAFETY: there is a record, so the last frame has one; it is this one or another that was shown.
        unsafe { place.write(*self.next_place(frames)) };
        if self.next == self.chunk + FIRST {
            self.drop_chunk(frames);
        }
    }

    /// Gives the last frame back.
    fn drop_chunk<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        let gone = Hpa::new(self.chunk);
        // SAFETY: the last frame of this log.
        self.chunk = unsafe { (*chunk(frames, self.chunk)).before };
        (self.next, self.before) = match self.chunk {
            0 => (0, 0),
            full => (full + PAGE_SIZE, self.before - RECORDS as u64),
        };
        // SAFETY: the log does not have it any more.
        frames.release(unsafe { Frame::from_raw(gone) });
    }

    /// The records, the latest first.
    pub fn records<'a, M: PhysMem>(
        &self,
        frames: &'a FrameAllocator<M>,
    ) -> impl Iterator<Item = Record> + use<'a, M> {
        let (mut at, mut left) = (self.chunk, self.in_last() as usize);
        core::iter::from_fn(move || {
            if left == 0 && at != 0 {
                // SAFETY: a frame of the log.
                at = unsafe { (*chunk(frames, at)).before };
                left = RECORDS;
            }
            if at == 0 {
                return None;
            }
            left -= 1;
            // SAFETY: as in `retain`.
            Some(unsafe { *records_of(frames, at).add(left) })
        })
    }

    /// Forgets everything and gives the frames back. Pages are noted again if they were.
    pub fn clear<M: PhysMem>(&mut self, frames: &FrameAllocator<M>) {
        while self.chunk != 0 {
            self.drop_chunk(frames);
        }
        if self.state == State::Lost {
            self.state = State::On;
        }
    }

    /// The frames that it is in.
    pub fn frames<'a, M: PhysMem>(
        &self,
        frames: &'a FrameAllocator<M>,
    ) -> impl Iterator<Item = Hpa> + use<'a, M> {
        let mut at = self.chunk;
        core::iter::from_fn(move || {
            let frame = (at != 0).then(|| Hpa::new(at))?;
            // SAFETY: a frame of the log.
            at = unsafe { (*chunk(frames, at)).before };
            Some(frame)
        })
    }
}

/// The frame of a log at `at`.
fn chunk<M: PhysMem>(frames: &FrameAllocator<M>, at: u64) -> *mut Chunk {
    frames.mem().ptr(Hpa::new(at)).cast()
}

/// The first record of the frame of a log at `at`.
fn records_of<M: PhysMem>(frames: &FrameAllocator<M>, at: u64) -> *mut Record {
    // The offset is inside the frame.
    chunk(frames, at)
        .cast::<u8>()
        .wrapping_add(FIRST as usize)
        .cast()
}

#[cfg(test)]
impl Drop for Log {
    fn drop(&mut self) {
        if self.chunk != 0 {
            crate::bomb::dropped("a log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering::SeqCst;

    fn filled(frames: &FrameAllocator<Arena>, count: u64) -> Log {
        let mut log = Log::on();
        for i in 0..count {
            log.note(frames, Hpa::new(i * 8), Gpa::new(i * PAGE_SIZE + 5));
        }
        log
    }

    fn pages(frames: &FrameAllocator<Arena>, log: &mut Log) -> Vec<u64> {
        let mut pages = vec![];
        log.retain(frames, |record| {
            pages.push(record.page().as_u64() / PAGE_SIZE);
            true
        });
        pages
    }

    #[test]
    fn each_record_is_shown_once_whatever_goes() {
        let frames = Arena::allocator(0x10_0000, 16);
        let all = 3 * RECORDS as u64 + 5;
        for modulus in [1, 2, 3, 7, 200, 1000] {
            for goes in [false, true] {
                let mut log = filled(&frames, all);
                assert_eq!((log.len(), frames.figures().used), (all, 4));
                let mut shown = BTreeSet::new();
                let stays = |page: u64| page.is_multiple_of(modulus) == goes;
                log.retain(&frames, |record| {
                    assert!(shown.insert(record.page()), "{record:?} twice");
                    assert_eq!(record.leaf.as_u64() / 8, record.page().as_u64() / PAGE_SIZE);
                    stays(record.page().as_u64() / PAGE_SIZE)
                });
                assert_eq!(shown.len() as u64, all);
                let mut left = pages(&frames, &mut log);
                let told = log
                    .records(&frames)
                    .map(|record| record.page().as_u64() / PAGE_SIZE);
                assert_eq!(told.collect::<Vec<_>>(), left);
                left.sort();
                assert_eq!(
                    left,
                    (0..all).filter(|page| stays(*page)).collect::<Vec<_>>()
                );
                assert_eq!(log.len(), left.len() as u64);
                let held = left.len().div_ceil(RECORDS) as u64;
                assert_eq!(
                    (frames.figures().used, log.frames(&frames).count() as u64),
                    (held, held)
                );
                log.note(&frames, Hpa::new(0), Gpa::new(0));
                assert_eq!(log.len(), left.len() as u64 + 1);
                log.clear(&frames);
                assert_eq!((frames.figures().used, log.len()), (0, 0));
            }
        }
    }

    #[test]
    fn a_log_without_a_frame_is_lost_until_it_is_cleared() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut log = filled(&frames, RECORDS as u64);
        frames.allowance.store(0, SeqCst);
        assert!(log.is_on());
        log.note(&frames, Hpa::new(0), Gpa::new(0));
        assert!(!log.is_on() && log.len() == RECORDS as u64);
        frames.allowance.store(u64::MAX, SeqCst);
        log.clear(&frames);
        assert!(log.is_on() && log.len() == 0 && frames.figures().used == 0);
        // One that nobody asked for stays off.
        let mut off = Log::default();
        off.lose();
        off.clear(&frames);
        assert!(!off.is_on());
    }

    #[test]
    fn idle_counts_stand_beside_the_address() {
        let record = Record {
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
