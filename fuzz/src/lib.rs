//! What the fuzz targets do with their inputs. A target in `fuzz_targets/` is nothing but a call.

pub mod cmdline;
pub mod devices;
pub mod image;
pub mod spaces;
pub mod walker;

/// Takes numbers off the front of an input; where it has ended, they are 0.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// The next bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        let (now, later) = self.0.split_at(len);
        bytes[..len].copy_from_slice(now);
        self.0 = later;
        bytes
    }
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    /// The next eight bytes as a number.
    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
    /// Whether all are taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
