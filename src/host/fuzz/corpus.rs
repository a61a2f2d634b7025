//! The inputs that reached something new: what the next inputs are made of.

use arrayvec::ArrayVec;

use super::page::{PAGE, Page};
use crate::frames::{FrameAllocator, FrameError, PhysMem};

/// The most inputs that are kept.
pub const CORPUS_MAX: usize = 128;
/// The longest input.
pub const INPUT_MAX: usize = PAGE;
/// What a walk changes in each byte of an input: each bit; then each pair of neighbours, and all of them.
const MASKS: [u8; 16] = [
    0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x03, 0x06, 0x0c, 0x18, 0x30, 0x60, 0xc0, 0xff,
];

struct Entry<'f, M: PhysMem> {
    page: Page<'f, M>,
    len: u32,
    /// How often it was chosen.
    chosen: u32,
    /// How many steps of its walk were made.
    walked: u32,
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

    /// Keeps `input`, cut to [`INPUT_MAX`] bytes. If there is no room it replaces the one that was chosen most often, which
    /// has had its chances.
    ///
    /// # Errors
    /// No frame for it; nothing is kept.
    pub fn keep(&mut self, input: &[u8]) -> Result<(), FrameError> {
        let input = input.get(..INPUT_MAX).unwrap_or(input);
        if !self.entries.is_full() {
            let page = Page::new(self.frames)?;
            let entry = Entry {
                page,
                len: 0,
                chosen: 0,
                walked: 0,
            };
            // There is room.
            let _ = self.entries.try_push(entry);
            self.entries
                .last_mut()
                .into_iter()
                .for_each(|entry| entry.put(input));
        } else if let Some(worn) = self.entries.iter_mut().max_by_key(|entry| entry.chosen) {
            worn.put(input);
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

    /// The next step of a walk through an input, until each has had its own: the input, which byte of it to change, and the
    /// bits to flip there. All single bits come first, and the newest input, which has got furthest.
    pub fn walk(&mut self) -> Option<(&[u8], usize, u8)> {
        let left = self.entries.iter_mut().rev().filter_map(|entry| {
            let pass = entry.walked.checked_div(entry.len)? as usize;
            Some((*MASKS.get(pass)?, pass / 8, entry))
        });
        let (mask, _, entry) = left.min_by_key(|(_, stage, _)| *stage)?;
        let at = entry.walked % entry.len;
        entry.walked += 1;
        Some((entry.bytes(), at as usize, mask))
    }

    /// The input with this number.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.entries.get(index).map(Entry::bytes)
    }
}

impl<M: PhysMem> Entry<'_, M> {
    fn put(&mut self, input: &[u8]) {
        if let Some(bytes) = self.page.get_mut(..input.len()) {
            bytes.copy_from_slice(input);
            self.len = input.len() as u32;
            (self.chosen, self.walked) = (0, 0);
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
        corpus.keep(b"").unwrap();
        corpus.keep(b"first").unwrap();
        corpus.keep(&[7; INPUT_MAX + 1]).unwrap();
        assert_eq!(corpus.get(0), Some(&b""[..]));
        assert_eq!(corpus.choose(1), b"first");
        assert_eq!(corpus.get(2), Some(&[7; INPUT_MAX][..]));
        assert_eq!((corpus.len(), frames.statistics().used), (3, 3));
        drop(corpus);
        assert_eq!(frames.statistics().used, 0);
    }

    #[test]
    fn a_full_one_replaces_what_was_chosen_most() {
        let frames = Arena::allocator(0x10_0000, CORPUS_MAX as u64 + 16);
        let mut corpus = Corpus::new(&frames);
        for n in 0..CORPUS_MAX {
            corpus.keep(&n.to_le_bytes()).unwrap();
            corpus.choose(n);
        }
        corpus.choose(9);
        corpus.keep(b"new").unwrap();
        assert_eq!(corpus.len(), CORPUS_MAX);
        assert_eq!(corpus.get(9), Some(&b"new"[..]));
        corpus.choose(20);
        corpus.keep(b"newer").unwrap();
        assert_eq!(corpus.get(9), Some(&b"new"[..]), "it has not been chosen");
        assert_eq!(corpus.get(20), Some(&b"newer"[..]));
    }

    #[test]
    fn each_input_is_walked_once_the_newest_first_and_single_bits_before_others() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut corpus = Corpus::new(&frames);
        for input in [&b"abc"[..], b"", b"xy"] {
            corpus.keep(input).unwrap();
        }
        let mut steps = Vec::new();
        while let Some((input, at, mask)) = corpus.walk() {
            steps.push((input.to_vec(), at, mask));
        }
        assert_eq!(steps.len(), 5 * MASKS.len());
        let single = |step: &(Vec<u8>, usize, u8)| step.2.count_ones() == 1;
        assert!(
            steps[..16]
                .iter()
                .all(|step| step.0 == b"xy" && single(step))
        );
        assert!(
            steps[16..40]
                .iter()
                .all(|step| step.0 == b"abc" && single(step))
        );
        assert!(!steps[40..].iter().any(single));
        steps.sort();
        steps.dedup();
        assert_eq!(steps.len(), 5 * MASKS.len(), "none twice");
        corpus.keep(b"z").unwrap();
        assert_eq!(corpus.walk(), Some((&b"z"[..], 0, 1)));
    }

    #[test]
    fn without_frames_nothing_is_lost() {
        let frames = Arena::allocator(0x10_0000, 16);
        let mut corpus = Corpus::new(&frames);
        while corpus.keep(b"input").is_ok() {}
        let kept = corpus.len();
        assert_eq!(frames.statistics().free, 0);
        assert_eq!(corpus.keep(b"x"), Err(FrameError::OutOfFrames));
        assert_eq!(
            (corpus.len(), corpus.get(kept - 1)),
            (kept, Some(&b"input"[..]))
        );
    }
}
