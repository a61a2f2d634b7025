//! Random changes of inputs, the same ones for the same seed.

use oorandom::Rand32;

use super::dictionary::Dictionary;

/// At most so many changes are made at once.
const CHANGES_MAX: u32 = 16;
/// The longest block that is copied, inserted or removed at once.
const BLOCK_MAX: usize = 64;
/// Values at which programs go wrong: the edges of signed and unsigned numbers, and sizes.
const INTERESTING: [u32; 18] = [
    0,
    1,
    2,
    16,
    32,
    64,
    100,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x400,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
];

/// An input that is being changed: the first bytes of a buffer.
pub struct Draft<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl<'b> Draft<'b> {
    /// The first `len` bytes of `buffer`, which may grow to fill it.
    pub fn new(buffer: &'b mut [u8], len: usize) -> Self {
        let len = len.min(buffer.len());
        Self { buffer, len }
    }

    /// The input.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// How long it is.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `count` bytes at `at`, if there are so many.
    fn part(&mut self, at: usize, count: usize) -> Option<&mut [u8]> {
        let end = at.checked_add(count).filter(|end| *end <= self.len)?;
        self.buffer.get_mut(at..end)
    }

    fn overwrite(&mut self, at: usize, with: &[u8]) {
        if let Some(part) = self.part(at, with.len()) {
            part.copy_from_slice(with);
        }
    }

    /// Moves what is at `at` and behind it back by `count` bytes, as far as there is room, and returns the gap.
    fn open(&mut self, at: usize, count: usize) -> &mut [u8] {
        let count = count.min(self.buffer.len() - self.len);
        let at = at.min(self.len);
        self.buffer.copy_within(at..self.len, at + count);
        self.len += count;
        self.buffer.get_mut(at..at + count).unwrap_or_default()
    }

    fn insert(&mut self, at: usize, bytes: &[u8]) {
        let gap = self.open(at, bytes.len());
        let count = gap.len();
        gap.copy_from_slice(bytes.get(..count).unwrap_or_default());
    }

    fn remove(&mut self, at: usize, count: usize) {
        let at = at.min(self.len);
        let end = at.saturating_add(count).min(self.len);
        self.buffer.copy_within(end..self.len, at);
        self.len -= end - at;
    }

    /// Keeps the first `at` bytes, and puts `tail` behind them as far as there is room.
    fn splice(&mut self, at: usize, tail: &[u8]) {
        self.len = at.min(self.len);
        self.insert(self.len, tail);
    }
}

/// The source of all that is random in a campaign, and what it knows to put into inputs.
#[derive(Clone, Debug)]
pub struct Mutator {
    random: Rand32,
    dictionary: Dictionary,
}

impl Mutator {
    /// The same seed gives the same changes.
    pub fn new(seed: u64, dictionary: Dictionary) -> Self {
        Self {
            random: Rand32::new(seed),
            dictionary,
        }
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        match u32::try_from(end).unwrap_or(u32::MAX) {
            0 => 0,
            end => self.random.rand_range(0..end) as usize,
        }
    }

    /// Changes `draft` in a few places at random, perhaps with parts of `other`, another input.
    pub fn mutate(&mut self, draft: &mut Draft<'_>, other: &[u8]) {
        // 1, 2, 4 ... changes, rather few: what has to stay as it is soon does not after many.
        let most = CHANGES_MAX.ilog2() as usize + 1;
        let changes = 1 << self.below(most).min(self.below(most)).min(self.below(most));
        for _ in 0..changes {
            self.change(draft, other);
        }
    }

    fn change(&mut self, draft: &mut Draft<'_>, other: &[u8]) {
        let at = self.below(draft.len());
        match self.below(16) {
            0 | 1 => {
                let bit = self.below(8);
                self.byte(draft, at, |byte| byte ^ 1 << bit);
            }
            2 | 3 => {
                let random = self.random.rand_u32() as u8;
                self.byte(draft, at, |_| random);
            }
            4 => {
                let by = self.below(71) as u8;
                self.byte(draft, at, |byte| byte.wrapping_add(by).wrapping_sub(35));
            }
            5 | 6 => self.interesting(draft, at),
            7 => self.add(draft, at),
            8 => {
                let count = self.block(draft.len() - at);
                draft.remove(at, count);
            }
            9 => self.duplicate(draft, at),
            10 => {
                let from = self.below(draft.len());
                let count = self.block(draft.len() - from.max(at));
                draft.buffer.copy_within(from..from + count, at);
            }
            11 => {
                let at = self.below(draft.len() + 1);
                let byte = self.random.rand_u32() as u8;
                let count = self.block(BLOCK_MAX);
                draft.open(at, count).fill(byte);
            }
            12 => {
                let token = self.token();
                draft.overwrite(at, token.as_ref().map_or(&[], |token| token.bytes()));
            }
            13 => {
                let at = self.below(draft.len() + 1);
                let token = self.token();
                draft.insert(at, token.as_ref().map_or(&[], |token| token.bytes()));
            }
            14 => {
                let at = self.below(draft.len() + 1);
                let from = self.below(other.len());
                let count = self.block(other.len() - from);
                draft.insert(at, other.get(from..from + count).unwrap_or_default());
            }
            _ => {
                let from = self.below(other.len());
                draft.splice(at, other.get(from..).unwrap_or_default());
            }
        }
    }

    fn byte(&mut self, draft: &mut Draft<'_>, at: usize, change: impl Fn(u8) -> u8) {
        match draft.part(at, 1) {
            Some([byte]) => *byte = change(*byte),
            // There is nothing to change in an empty input but that it is empty.
            _ => draft.insert(at, &[change(0)]),
        }
    }

    /// Puts an interesting number of 1, 2 or 4 bytes there, in either byte order.
    fn interesting(&mut self, draft: &mut Draft<'_>, at: usize) {
        let value = INTERESTING
            .get(self.below(INTERESTING.len()))
            .copied()
            .unwrap_or(0);
        match self.below(5) {
            0 => draft.overwrite(at, &[value as u8]),
            1 => draft.overwrite(at, &(value as u16).to_le_bytes()),
            2 => draft.overwrite(at, &(value as u16).to_be_bytes()),
            3 => draft.overwrite(at, &value.to_le_bytes()),
            _ => draft.overwrite(at, &value.to_be_bytes()),
        }
    }

    /// Adds a small number to one of 2 or 4 bytes.
    fn add(&mut self, draft: &mut Draft<'_>, at: usize) {
        let by = (self.below(71) as u32).wrapping_sub(35);
        if self.below(2) == 0 {
            if let Some(&mut [a, b]) = draft.part(at, 2).map(|part| &mut *part) {
                let sum = u16::from_le_bytes([a, b]).wrapping_add(by as u16);
                draft.overwrite(at, &sum.to_le_bytes());
            }
        } else if let Some(&mut [a, b, c, d]) = draft.part(at, 4).map(|part| &mut *part) {
            let sum = u32::from_le_bytes([a, b, c, d]).wrapping_add(by);
            draft.overwrite(at, &sum.to_le_bytes());
        }
    }

    /// Inserts at `at` a block from elsewhere in the input.
    fn duplicate(&mut self, draft: &mut Draft<'_>, at: usize) {
        let from = self.below(draft.len());
        let count = self.block(draft.len() - from);
        let mut block = [0; BLOCK_MAX];
        let (Some(block), Some(part)) = (block.get_mut(..count), draft.part(from, count)) else {
            return;
        };
        block.copy_from_slice(part);
        draft.insert(at, block);
    }

    /// The length of a block: 1 to [`BLOCK_MAX`], rather short, and at most `most`.
    fn block(&mut self, most: usize) -> usize {
        let limit = [4, 16, BLOCK_MAX]
            .get(self.below(3))
            .copied()
            .unwrap_or(BLOCK_MAX);
        (1 + self.below(limit)).min(most)
    }

    fn token(&mut self) -> Option<super::dictionary::Token> {
        let index = self.below(self.dictionary.tokens().len());
        self.dictionary.tokens().get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::dictionary::Token;
    use super::*;

    fn dictionary() -> Dictionary {
        let mut dictionary = Dictionary::default();
        dictionary.add(Token::of(u32::from_le_bytes(*b"HEAD").into(), 4).unwrap());
        dictionary
    }

    fn inputs(seed: u64, from: &[u8], capacity: usize, count: usize) -> Vec<Vec<u8>> {
        let mut mutator = Mutator::new(seed, dictionary());
        let other = b"another input, which is longer than the first";
        (0..count)
            .map(|_| {
                let mut buffer = vec![0; capacity];
                let len = from.len().min(capacity);
                buffer[..len].copy_from_slice(&from[..len]);
                let mut draft = Draft::new(&mut buffer, len);
                mutator.mutate(&mut draft, other);
                draft.bytes().to_vec()
            })
            .collect()
    }

    #[test]
    fn the_seed_decides() {
        let from = b"0123456789";
        assert_eq!(inputs(1, from, 100, 50), inputs(1, from, 100, 50));
        assert_ne!(inputs(1, from, 100, 50), inputs(2, from, 100, 50));
    }

    #[test]
    fn inputs_of_every_length_stay_in_their_buffer() {
        for capacity in [0, 1, 2, 3, 5, 64, 4096] {
            for len in [0, 1, 2, 4, capacity] {
                let from = vec![7; len];
                for input in inputs(3, &from, capacity, 300) {
                    assert!(input.len() <= capacity);
                }
            }
        }
    }

    #[test]
    fn every_kind_of_change_happens() {
        let from = b"0123456789abcdef";
        let all = inputs(5, from, 64, 3000);
        let has = |what: &dyn Fn(&[u8]) -> bool| all.iter().any(|input| what(input));
        assert!(has(&|input| input.len() < from.len()));
        assert!(has(&|input| input.len() == 64), "grows to the buffer's end");
        let hits = |token: &[u8]| {
            all.iter()
                .filter(|input| input.windows(token.len()).any(|w| w == token))
                .count()
        };
        assert!(hits(b"HEAD") > 100, "tokens of the dictionary");
        assert!(hits(b"longer") > 10, "parts of another input");
        assert!(hits(b"3434") + hits(b"4545") + hits(b"7878") > 3, "blocks");
        assert!(hits(&[0xff, 0xff]) > 50 && hits(&[0x7f, 0xff]) > 10);
        let one_bit = |input: &[u8]| {
            input.len() == from.len()
                && input
                    .iter()
                    .zip(from)
                    .map(|(a, b)| (a ^ b).count_ones())
                    .sum::<u32>()
                    == 1
        };
        assert!(has(&one_bit));
        let unchanged = all.iter().filter(|input| *input == from).count();
        assert!(unchanged < all.len() / 20, "{unchanged} are unchanged");
    }

    #[test]
    fn drafts_are_edited_within_their_bounds() {
        let mut buffer = *b"abcdef....";
        let mut draft = Draft::new(&mut buffer, 6);
        draft.insert(3, b"123");
        assert_eq!(draft.bytes(), b"abc123def");
        draft.insert(0, b"xyz");
        assert_eq!(draft.bytes(), b"xabc123def", "as far as there is room");
        draft.remove(1, 3);
        draft.remove(5, 100);
        assert_eq!(draft.bytes(), b"x123d");
        draft.overwrite(3, b"45");
        draft.overwrite(4, b"67");
        assert_eq!(draft.bytes(), b"x1245");
        draft.splice(2, b"0123456789");
        assert_eq!(draft.bytes(), b"x101234567");
        draft.splice(0, b"");
        assert!(draft.is_empty());
    }
}
