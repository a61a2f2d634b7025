//! The count of every managed frame, and the way from an address to it.
//!
//! A frame's record is 8 bytes: its count, and a word that links free frames or says how large an allocated block is.
//! The records live in frames carved out of managed memory and are reached through [`PhysMem`] one by one, so nothing
//! here asks that memory be contiguous in the hypervisor's own address space.

use super::ranges::{MAX_RANGES, Span, SpanSet};
use super::{FrameError, PhysMem};
use crate::addr::{AddrRange, Address, Hpa, PAGE_SIZE};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

/// The largest count. Bit 31 is [`TAIL`].
pub(super) const MAX_COUNT: u32 = TAIL - 1;
/// In place of a count: this frame is part of a block, whose first frame `link` names and whose count is there.
pub(super) const TAIL: u32 = 1 << 31;
/// The bits of an allocated frame's `link` that hold log2 of its block; above them an [`Audit`](super::Audit) counts.
pub(super) const ORDER: u32 = 0x1f;
/// Bytes of a frame's record.
pub(super) const RECORD: u64 = size_of::<Record>() as u64;

/// What is known of one frame.
#[repr(C)]
pub(super) struct Record {
    /// How many refer to it; 0: free; [`TAIL`]: see there.
    pub count: AtomicU32,
    /// Of a free frame, the next in its list; of an allocated one, log2 of the frames in its block; of a tail, the head.
    pub link: AtomicU32,
}

impl Record {
    /// The record of frame `number`.
    ///
    /// # Safety
    /// `records` must be where the [`Counts`] of `mem` are, and the number one of a frame that they count.
    #[inline(always)]
    pub unsafe fn at(mem: &impl PhysMem, records: Hpa, number: u64) -> &Self {
        let at = Hpa::new(records.as_u64() + number * RECORD);
        // SAFETY: `carve` made room for the record in frames that are handed to nobody, so the place is valid as long as
        // `mem`, only ever seen as this atomic pair, and initialised. Records are 8 bytes at multiples of 8, so none
        // crosses a frame.
        unsafe { &*mem.ptr(at).cast::<Self>() }
    }

    /// Makes this the first frame of a block with a count of 1.
    #[inline(always)]
    fn start(&self, order: u32) {
        self.link.store(order, Relaxed);
        self.count.store(1, Relaxed);
    }

    /// Adds `more` references, if this is the record that keeps the count and nobody else is changing it: nearly always.
    /// Returns whether it did.
    #[inline(always)]
    pub fn take(&self, more: u32) -> bool {
        let count = self.count.load(Relaxed);
        count.wrapping_sub(1) < MAX_COUNT.saturating_sub(more) && self.replace(count, count + more)
    }

    /// Whether this keeps the count, and there is more than one reference.
    #[inline(always)]
    pub fn is_one_of_many(&self) -> bool {
        self.count.load(Relaxed).wrapping_sub(2) < MAX_COUNT - 1
    }

    /// Takes away a reference, and returns whether it did: not where it is the last, or where that takes a longer look.
    #[inline(always)]
    pub fn give_one_of_many(&self) -> bool {
        let count = self.count.load(Relaxed);
        count.wrapping_sub(2) < MAX_COUNT - 1 && self.replace(count, count - 1)
    }

    /// Replaces a count, if it is what it was. Returns whether it did.
    #[inline(always)]
    fn replace(&self, count: u32, new: u32) -> bool {
        self.count
            .compare_exchange(count, new, AcqRel, Relaxed)
            .is_ok()
    }
}

/// A span of managed frames and the number of the first.
#[derive(Clone, Copy)]
struct Managed {
    start: u64,
    frames: u32,
    base: u32,
}

/// The records of the largest span: a copy, so that it stays in registers where many references are counted.
pub(super) struct Largest<'a, M> {
    mem: &'a M,
    start: u64,
    frames: u64,
    records: Hpa,
}

impl<M> Clone for Largest<'_, M> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Largest<'_, M> {}

impl<'a, M: PhysMem> Largest<'a, M> {
    /// The number and the record of the frame at `address`.
    #[inline(always)]
    pub fn find(&self, address: Hpa) -> Option<(u32, &'a Record)> {
        let number = (address.as_u64() / PAGE_SIZE).wrapping_sub(self.start);
        if number >= self.frames {
            return None;
        }
        // SAFETY: the number is that of a frame.
        Some((number as u32, unsafe {
            Record::at(self.mem, self.records, number)
        }))
    }
}

/// The managed frames, numbered without holes.
pub(super) struct Counts {
    spans: [Managed; MAX_RANGES],
    used: usize,
    total: u32,
    records: Hpa,
    record_frames: u64,
    /// Free frames that are zeroed already.
    zeroed: AtomicU32,
}

impl Counts {
    /// Carves room for the records out of `set` and clears them.
    ///
    /// # Safety
    /// `set` must be memory for which `mem` keeps the contract of [`PhysMem`] and that nothing else uses.
    pub unsafe fn carve(
        mem: &impl PhysMem,
        mut set: SpanSet<MAX_RANGES>,
    ) -> Result<Self, FrameError> {
        // Frame 0 is never handed out, so that an empty entry cannot be mistaken for one that refers to it.
        set.remove_span(Span { start: 0, end: 1 });
        let record_frames = (set.frames() * RECORD).div_ceil(PAGE_SIZE);
        // The tightest fit, so that the large spans stay whole for large pages.
        let fits = set
            .as_slice()
            .iter()
            .filter(|span| span.len() >= record_frames);
        let home = fits
            .min_by_key(|span| span.len())
            .copied()
            .ok_or(FrameError::NoRoomForCounts)?;
        set.remove_span(Span {
            start: home.start,
            end: home.start + record_frames,
        });
        set.sort_by_size();

        let mut counts = Self {
            spans: [Managed {
                start: 0,
                frames: 0,
                base: 0,
            }; MAX_RANGES],
            used: 0,
            total: 0,
            records: Hpa::new(home.start * PAGE_SIZE),
            record_frames,
            zeroed: AtomicU32::new(0),
        };
        for (slot, span) in counts.spans.iter_mut().zip(set.as_slice()) {
            // Numbers are 32 bits with the last one meaning none: 16 TiB are managed at most.
            let frames = span.len().min(u64::from(u32::MAX - 1 - counts.total)) as u32;
            *slot = Managed {
                start: span.start,
                frames,
                base: counts.total,
            };
            counts.total += frames;
            counts.used += 1;
        }
        if counts.total == 0 {
            return Err(FrameError::NoRoomForCounts);
        }
        for frame in 0..record_frames {
            // SAFETY: the frame was carved out just now, so it is managed memory that nothing else uses; every word of
            // it is in bounds and aligned.
            unsafe {
                let words = mem
                    .ptr(Hpa::new((home.start + frame) * PAGE_SIZE))
                    .cast::<u64>();
                // Eight at a time, and volatile so that it does not become a `memset`, which may go byte by byte.
                for eight in 0..(PAGE_SIZE / 64) as usize {
                    for word in 0..8 {
                        words.add(eight * 8 + word).write_volatile(0);
                    }
                }
            }
        }
        Ok(counts)
    }

    /// How many free frames are zeroed already.
    #[inline(always)]
    pub fn zeroed(&self) -> u32 {
        self.zeroed.load(Relaxed)
    }

    /// Changes that number. Who calls this holds the lock of the lists, so nobody else changes it meanwhile.
    #[inline(always)]
    pub fn note_zeroed(&self, change: impl FnOnce(u32) -> u32) {
        self.zeroed.store(change(self.zeroed()), Relaxed);
    }

    pub fn total(&self) -> u32 {
        self.total
    }

    pub fn record_frames(&self) -> u64 {
        self.record_frames
    }

    /// The numbers of each managed span: first, and one past the last.
    pub fn spans(&self) -> impl Iterator<Item = (u32, u32)> {
        self.managed().iter().map(|m| (m.base, m.base + m.frames))
    }

    /// The managed ranges.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange<Hpa>> {
        let range = |m: &Managed| {
            AddrRange::new(
                Hpa::new(m.start * PAGE_SIZE),
                u64::from(m.frames) * PAGE_SIZE,
            )
        };
        self.managed().iter().filter_map(range)
    }

    /// Where the records are.
    pub fn records(&self) -> Option<AddrRange<Hpa>> {
        AddrRange::new(self.records, self.record_frames * PAGE_SIZE)
    }

    fn managed(&self) -> &[Managed] {
        self.spans.get(..self.used).unwrap_or(&[])
    }

    /// The largest span, of which nearly all frames are, and whose numbers start at 0.
    #[inline(always)]
    pub fn largest<'a, M: PhysMem>(&self, mem: &'a M) -> Largest<'a, M> {
        let [largest, ..] = &self.spans;
        Largest {
            mem,
            start: largest.start,
            frames: u64::from(largest.frames),
            records: self.records,
        }
    }

    /// The number and the record of a frame of the largest span.
    #[inline(always)]
    pub fn near<'a>(&self, mem: &'a impl PhysMem, address: Hpa) -> Option<(u32, &'a Record)> {
        self.largest(mem).find(address)
    }

    /// The number of the frame that starts at `address`.
    #[inline]
    pub fn number(&self, address: Hpa) -> Result<u32, FrameError> {
        let frame = address.as_u64() / PAGE_SIZE;
        for span in self.managed() {
            let offset = frame.wrapping_sub(span.start);
            if offset < u64::from(span.frames) && address.is_aligned(PAGE_SIZE) {
                return Ok(span.base + offset as u32);
            }
        }
        Err(FrameError::NotManaged(address))
    }

    /// The address of frame `number`, which must be below the total.
    pub fn address(&self, number: u32) -> Hpa {
        for span in self.managed() {
            let offset = number.wrapping_sub(span.base);
            if offset < span.frames {
                return Hpa::new((span.start + u64::from(offset)) * PAGE_SIZE);
            }
        }
        unreachable!("frame numbers come from this table")
    }

    /// The record of frame `number`, which must be below the total.
    #[inline(always)]
    pub(super) fn record<'a>(&self, mem: &'a impl PhysMem, number: u32) -> &'a Record {
        assert!(number < self.total);
        // SAFETY: just checked.
        unsafe { Record::at(mem, self.records, u64::from(number)) }
    }

    /// Gives free frame `number` a count of 1. Returns its address.
    #[inline(always)]
    pub fn start_one(&self, mem: &impl PhysMem, number: u32) -> Hpa {
        let [largest, ..] = &self.spans;
        if number < largest.frames {
            let number = u64::from(number);
            // SAFETY: a frame of the largest span, whose numbers are the first.
            unsafe { Record::at(mem, self.records, number) }.start(0);
            return Hpa::new((largest.start + number) * PAGE_SIZE);
        }
        self.start_anywhere(mem, number)
    }

    #[inline(never)]
    fn start_anywhere(&self, mem: &impl PhysMem, number: u32) -> Hpa {
        self.record(mem, number).start(0);
        self.address(number)
    }

    /// Makes the `1 << order` free frames from `number` on one block with a count of 1.
    #[inline(always)]
    pub fn start(&self, mem: &impl PhysMem, number: u32, order: u32) {
        for tail in number + 1..number + (1 << order) {
            let record = self.record(mem, tail);
            record.link.store(number, Relaxed);
            record.count.store(TAIL, Relaxed);
        }
        self.record(mem, number).start(order);
    }

    /// The next in the list that free frame `number` is part of.
    #[inline(always)]
    pub fn next(&self, mem: &impl PhysMem, number: u32) -> u32 {
        self.record(mem, number).link.load(Relaxed)
    }

    /// Links free frame `number` before `next`.
    pub fn set_next(&self, mem: &impl PhysMem, number: u32, next: u32) {
        self.record(mem, number).link.store(next, Relaxed);
    }

    /// Sets a count outright, so that tests reach the largest one.
    #[cfg(test)]
    pub fn force(&self, mem: &impl PhysMem, number: u32, count: u32) {
        self.record(mem, number).count.store(count, Relaxed);
    }
}
