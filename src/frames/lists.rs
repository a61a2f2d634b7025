//! Which frames are free: lists of returned ones, and segments of never-touched ones.

use super::PhysMem;
use super::counts::Counts;
use super::ranges::MAX_RANGES;
use crate::addr::{Address, Hpa, PAGE_SIZE};

const NONE: u32 = u32::MAX;
/// Segments are the managed spans, cut in two by each large block that is not taken from an end.
const SEGMENTS: usize = 2 * MAX_RANGES;
/// log2 of the frames in blocks of 2 MiB and 1 GiB.
pub(super) const LARGE: [u32; 2] = [9, 18];

/// A list of free blocks of one size, with its end.
#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    last: u32,
}

impl Chain {
    const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
    };
}

/// Frames without references that may not be given out yet, because some CPU may still have a translation to them. They
/// come back by [`FrameAllocator::free_retired`](super::FrameAllocator::free_retired).
#[must_use = "retired frames that are dropped are leaked"]
#[derive(Debug)]
pub struct Retired {
    chains: [Chain; 3],
    frames: u32,
}

impl Default for Retired {
    fn default() -> Self {
        Self::new()
    }
}

impl Retired {
    /// No frames.
    pub const fn new() -> Self {
        Self {
            chains: [Chain::EMPTY; 3],
            frames: 0,
        }
    }
    /// How many frames there are.
    pub const fn frames(&self) -> u64 {
        self.frames as u64
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    pub(super) fn join(&mut self, mem: &impl PhysMem, counts: &Counts, mut other: Self) {
        for (chain, more) in self.chains.iter_mut().zip(other.chains) {
            if more.first != NONE {
                counts.set_next(mem, more.last, chain.first);
                let last = if chain.last == NONE {
                    more.last
                } else {
                    chain.last
                };
                *chain = Chain {
                    first: more.first,
                    last,
                };
            }
        }
        self.frames += core::mem::take(&mut other.frames);
    }

    pub(super) fn push(&mut self, mem: &impl PhysMem, counts: &Counts, number: u32, order: u32) {
        let chain = match order {
            0 => &mut self.chains[0],
            order if order == LARGE[0] => &mut self.chains[1],
            _ => &mut self.chains[2],
        };
        counts.set_next(mem, number, chain.first);
        chain.first = number;
        if chain.last == NONE {
            chain.last = number;
        }
        self.frames += 1 << order;
    }
}

#[cfg(test)]
impl Drop for Retired {
    fn drop(&mut self) {
        if !self.is_empty() {
            crate::bomb::dropped("a list of retired frames");
        }
    }
}

/// Frames, by number, that were never given out.
#[derive(Clone, Copy)]
struct FreeSpan {
    low: u32,
    high: u32,
}

/// The free frames. Small frames leave a segment at its low end and large blocks at its high end. A large block that
/// comes back stays whole until no other frame is left; small frames that come back are not joined again.
pub(super) struct Lists {
    returned: u32,
    zeroed: u32,
    large: [u32; 2],
    segments: [FreeSpan; SEGMENTS],
    current: usize,
    pub used: u32,
    pub peak: u32,
}

impl Lists {
    pub fn new(counts: &Counts) -> Self {
        let mut segments = [FreeSpan { low: 0, high: 0 }; SEGMENTS];
        for (slot, (low, high)) in segments.iter_mut().zip(counts.spans()) {
            *slot = FreeSpan { low, high };
        }
        let (returned, zeroed, large) = (NONE, NONE, [NONE; 2]);
        Self {
            returned,
            zeroed,
            large,
            segments,
            current: 0,
            used: 0,
            peak: 0,
        }
    }

    /// Notes that `frames` more are in use.
    #[inline(always)]
    pub fn note_used(&mut self, frames: u32) {
        self.used += frames;
        if self.used > self.peak {
            self.peak = self.used;
        }
    }

    /// A free frame whose content is unknown, the zeroed ones last.
    #[inline]
    pub fn pop(&mut self, mem: &impl PhysMem, counts: &Counts) -> Option<u32> {
        self.pop_unzeroed(mem, counts)
            .or_else(|| self.pop_zeroed(mem, counts))
    }

    /// A free frame that is not in the pool of zeroed ones.
    #[inline]
    pub fn pop_unzeroed(&mut self, mem: &impl PhysMem, counts: &Counts) -> Option<u32> {
        self.pop_quick(mem, counts)
            .or_else(|| self.next_segment(mem, counts))
    }

    /// The same, if it is quickly had.
    #[inline(always)]
    pub fn pop_quick(&mut self, mem: &impl PhysMem, counts: &Counts) -> Option<u32> {
        if self.returned != NONE {
            let number = self.returned;
            self.returned = counts.next(mem, number);
            return Some(number);
        }
        let segment = self.segments.get_mut(self.current)?;
        if segment.low >= segment.high {
            return None;
        }
        segment.low += 1;
        Some(segment.low - 1)
    }

    /// Goes to the smallest segment left, so that the larger stay whole; then to a large block that came back.
    #[cold]
    fn next_segment(&mut self, mem: &impl PhysMem, counts: &Counts) -> Option<u32> {
        if !self.segments.iter().any(|s| s.low < s.high) {
            let (list, order) = self
                .large
                .iter_mut()
                .zip(LARGE)
                .find(|(list, _)| **list != NONE)?;
            let number = *list;
            *list = counts.next(mem, number);
            *self.segments.first_mut()? = FreeSpan {
                low: number,
                high: number + (1 << order),
            };
        }
        let left = self
            .segments
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.low < s.high);
        let (current, segment) = left.min_by_key(|(_, s)| s.high - s.low)?;
        self.current = current;
        segment.low += 1;
        Some(segment.low - 1)
    }

    /// A frame from the pool of zeroed ones.
    #[inline(always)]
    pub fn pop_zeroed(&mut self, mem: &impl PhysMem, counts: &Counts) -> Option<u32> {
        if self.zeroed == NONE {
            return None;
        }
        let number = self.zeroed;
        self.zeroed = counts.next(mem, number);
        counts.note_zeroed(|zeroed| zeroed - 1);
        Some(number)
    }

    pub fn push_zeroed(&mut self, mem: &impl PhysMem, counts: &Counts, number: u32) {
        counts.set_next(mem, number, self.zeroed);
        self.zeroed = number;
        counts.note_zeroed(|zeroed| zeroed + 1);
    }

    /// Takes back a block whose last reference is gone.
    #[inline]
    pub fn push(&mut self, mem: &impl PhysMem, counts: &Counts, number: u32, order: u32) {
        let list = match LARGE.iter().position(|large| *large == order) {
            Some(i) => &mut self.large[i],
            None => &mut self.returned,
        };
        counts.set_next(mem, number, *list);
        *list = number;
    }

    /// Takes back all that `retired` holds.
    pub fn push_all(&mut self, mem: &impl PhysMem, counts: &Counts, retired: &mut Retired) {
        let [two_mib, one_gib] = &mut self.large;
        let lists = [&mut self.returned, two_mib, one_gib];
        for (list, chain) in lists.into_iter().zip(&mut retired.chains) {
            if chain.first != NONE {
                counts.set_next(mem, chain.last, *list);
                *list = chain.first;
                *chain = Chain::EMPTY;
            }
        }
        self.used -= core::mem::take(&mut retired.frames);
    }

    /// A free block of `1 << order` frames, aligned to its size; `order` is one of [`LARGE`].
    pub fn pop_large(&mut self, mem: &impl PhysMem, counts: &Counts, order: u32) -> Option<u32> {
        let which = LARGE.iter().position(|large| *large == order)?;
        if self.large[which] != NONE {
            let number = self.large[which];
            self.large[which] = counts.next(mem, number);
            return Some(number);
        }
        self.carve(counts, order).or_else(|| {
            // A whole GiB that came back can be cut.
            let number = self.large[1];
            if order == LARGE[1] || number == NONE {
                return None;
            }
            let slot = self.segments.iter_mut().find(|s| s.low == s.high)?;
            *slot = FreeSpan {
                low: number,
                high: number + (1 << LARGE[1]),
            };
            self.large[1] = counts.next(mem, number);
            self.carve(counts, order)
        })
    }

    /// Cuts a block from the high end of a segment that has one.
    fn carve(&mut self, counts: &Counts, order: u32) -> Option<u32> {
        let frames = 1u32 << order;
        for i in 0..SEGMENTS {
            let FreeSpan { low, high } = self.segments[i];
            if high - low < frames {
                continue;
            }
            // Alignment is of addresses, which a segment's numbers follow one to one.
            let start: Hpa = counts.address(high - frames);
            let down = (start.as_u64() - start.align_down(PAGE_SIZE << order).as_u64()) / PAGE_SIZE;
            let first = match (high - frames).checked_sub(down as u32) {
                Some(first) if first >= low => first,
                _ => continue,
            };
            let rest = FreeSpan {
                low: first + frames,
                high,
            };
            if rest.low < rest.high {
                // `i` itself holds frames, so it is not the slot found.
                let Some(slot) = self.segments.iter_mut().find(|s| s.low == s.high) else {
                    continue;
                };
                *slot = rest;
            }
            self.segments[i].high = first;
            return Some(first);
        }
        None
    }
}
