//! Constants that the program compares with: the mutator puts them into inputs, as no random change would hit them.

use arrayvec::ArrayVec;

/// The most constants that are kept.
pub const TOKENS_MAX: usize = 128;

/// A constant of 2, 4 or 8 bytes, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    bytes: [u8; 8],
    len: u8,
}

impl Token {
    /// The constant `value` as a comparison of `width` bytes would see it, unless it is so small that mutation finds it by
    /// itself.
    pub fn of(value: u64, width: u8) -> Option<Self> {
        let (len, value) = match width {
            2 => (2, value & 0xffff),
            4 => (4, value & 0xffff_ffff),
            8 => (8, value),
            _ => return None,
        };
        // -1 and its kin are found by mutation too.
        let bits = u32::from(len) * 8;
        let negative = value >> 7 == u64::MAX >> (64 - bits) >> 7;
        (value > 0xff && !negative).then_some(Self {
            bytes: value.to_le_bytes(),
            len,
        })
    }

    /// Its bytes as they stand in memory.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

/// The constants, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dictionary(ArrayVec<Token, TOKENS_MAX>);

impl Dictionary {
    /// Takes one more, if it is new and there is room.
    pub fn add(&mut self, token: Token) {
        if !self.0.contains(&token) {
            // The first ones are as good as any.
            let _ = self.0.try_push(token);
        }
    }

    /// All of them.
    pub fn tokens(&self) -> &[Token] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_negative_constants_are_left_out() {
        let head = u64::from(u32::from_le_bytes(*b"HEAD"));
        assert_eq!(Token::of(head, 4).unwrap().bytes(), b"HEAD");
        assert_eq!(Token::of(0x4548, 2).unwrap().bytes(), b"HE");
        assert_eq!(Token::of(u64::MAX << 40, 8).unwrap().bytes()[5..], [255; 3]);
        for (value, width) in [
            (7, 4),
            (0xff, 8),
            (u64::MAX, 8),
            (u64::MAX, 4),
            (-128i64 as u64, 4),
            (0xffff_fffe, 4),
            (0x1234, 1),
        ] {
            assert_eq!(Token::of(value, width), None, "{value:#x}");
        }
        assert!(Token::of(-129i64 as u64, 4).is_some());
    }

    #[test]
    fn each_is_kept_once_and_not_without_end() {
        let mut dictionary = Dictionary::default();
        for value in (0x1000..0x2000).chain(0x1000..0x1010) {
            dictionary.add(Token::of(value, 4).unwrap());
        }
        assert_eq!(dictionary.tokens().len(), TOKENS_MAX);
        let mut again = Dictionary::default();
        for _ in 0..3 {
            again.add(Token::of(0x1234, 4).unwrap());
        }
        assert_eq!(again.tokens().len(), 1);
    }
}
