//! The inputs that reached something new: what the next inputs are made of.

use arrayvec::ArrayVec;

use super::page::{PAGE, Page};
use crate::frames::{FrameAllocator, FrameError, PhysMem};

/// The most inputs that are kept.
pub const CORPUS_MAX: usize = 128;
/// The longest input.
pub const INPUT_MAX: usize = PAGE;

struct Entry<'f, M: PhysMem> {
    page: Page<'f, M>,
    len: u32,
    /// How often it was chosen.
    chosen: u32,
    /// How long its run took, in ticks of the guest.
    ticks: u32,
}

/// The inputs that are kept, a frame for each.
pub struct Corpus<'f, M: PhysMem> {
    frames: &'f FrameAllocator<M>,
    entries: ArrayVec<Entry<'f, M>, CORPUS_MAX>,
}

impl<'f, M: PhysMem> Corpus<'f, M> {
    /// An empty one, which takes its frames from `frames`.
    pub const fn new(frames: &'f FrameAllocator<M>) -> Self {
        Self {
            frames,
            entries: ArrayVec::new_const(),
        }
    }

    /// How many inputs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keeps `input`, cut to [`INPUT_MAX`] bytes, whose run took so many ticks. If there is no room it replaces the one that was chosen most often, which
    /// has had its chances.
    pub fn keep(&mut self, input: &[u8], ticks: u64) -> Result<(), FrameError> {
        let input = input.get(..INPUT_MAX).unwrap_or(input);
        if !self.entries.is_full() {
            let page = Page::new(self.frames)?;
            let entry = Entry {
                page,
                len: 0,
                chosen: 0,
                ticks: 0,
            };
            // There is room.
            let _ = self.entries.try_push(entry);
            self.entries
                .last_mut()
                .into_iter()
                .for_each(|entry| entry.put(input, ticks));
        } else if let Some(worn) = self.entries.iter_mut().max_by_key(|entry| entry.chosen) {
            worn.put(input, ticks);
        }
        Ok(())
    }

    /// The input with this number, to be changed; counts how often.
    pub fn choose(&mut self, index: usize) -> &[u8] {
        match self.entries.get_mut(index) {
            Some(entry) => {
                entry.chosen = entry.chosen.saturating_add(1);
                entry.bytes()
            }
            None => &[],
        }
    }

    /// Notes how long the run of the input with this number took.
    pub fn ran(&mut self, index: usize, ticks: u64) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.ticks = ticks.min(u32::MAX.into()) as u32;
        }
    }

    /// How long its run took; 0 of what did not run.
    pub fn ticks(&self, index: usize) -> u32 {
        self.entries.get(index).map_or(0, |entry| entry.ticks)
    }

    /// The input with this number.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.entries.get(index).map(Entry::bytes)
    }
}

impl<M: PhysMem> Entry<'_, M> {
    fn put(&mut self, input: &[u8], ticks: u64) {
        if let Some(bytes) = self.page.get_mut(..input.len()) {
            bytes.copy_from_slice(input);
            self.len = input.len() as u32;
            self.chosen = 0;
            self.ticks = ticks.min(u32::MAX.into()) as u32;
        }
    }

    fn bytes(&self) -> &[u8] {
        self.page.get(..self.len as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::arena::Arena;

    #[test]
    fn inputs_are_kept_as_they_were() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut corpus = Corpus::new(&frames);
        assert!(corpus.is_empty() && corpus.get(0).is_none() && corpus.choose(0).is_empty());
        corpus.keep(b"", 7).unwrap();
        corpus.keep(b"first", 7).unwrap();
        corpus.keep(&[7; INPUT_MAX + 1], 7).unwrap();
        assert_eq!(corpus.get(0), Some(&b""[..]));
        assert_eq!(corpus.choose(1), b"first");
        corpus.ran(1, u64::MAX);
        corpus.ran(3, 9);
        assert_eq!([0, 1, 3].map(|at| corpus.ticks(at)), [7, u32::MAX, 0]);
        assert_eq!(corpus.get(2), Some(&[7; INPUT_MAX][..]));
        assert_eq!((corpus.len(), frames.figures().used), (3, 3));
        drop(corpus);
        assert_eq!(frames.figures().used, 0);
    }

    #[test]
    fn a_full_one_replaces_what_was_chosen_most() {
        let frames = Arena::allocator(0x10_0000, CORPUS_MAX as u64 + 16);
        let mut corpus = Corpus::new(&frames);
        for n in 0..CORPUS_MAX {
            corpus.keep(&n.to_le_bytes(), 7).unwrap();
            corpus.choose(n);
        }
        corpus.choose(9);
        corpus.keep(b"new", 7).unwrap();
        assert_eq!(corpus.len(), CORPUS_MAX);
        assert_eq!(corpus.get(9), Some(&b"new"[..]));
        corpus.choose(20);
        corpus.keep(b"newer", 7).unwrap();
        assert_eq!(corpus.get(9), Some(&b"new"[..]), "it has not been chosen");
        assert_eq!(corpus.get(20), Some(&b"newer"[..]));
    }

    #[test]
    fn without_frames_nothing_is_lost() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut corpus = Corpus::new(&frames);
        while corpus.keep(b"input", 7).is_ok() {}
        let kept = corpus.len();
        assert_eq!(frames.figures().free, 0);
        assert_eq!(corpus.keep(b"x", 7), Err(FrameError::OutOfFrames));
        assert_eq!(
            (corpus.len(), corpus.get(kept - 1)),
            (kept, Some(&b"input"[..]))
        );
    }
}
