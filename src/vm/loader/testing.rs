//! ELF files made to order for tests.

use elf::abi::{PF_R, PF_W, PF_X, PT_LOAD};

pub const R: u32 = PF_R;
pub const RW: u32 = PF_R | PF_W;
pub const RX: u32 = PF_R | PF_X;
pub const RWX: u32 = PF_R | PF_W | PF_X;

/// A PT_LOAD segment.
pub struct Load {
    address: u64,
    flags: u32,
    file: Vec<u8>,
    memory: Option<u64>,
    offset: Option<u64>,
    align: u64,
}

impl Load {
    pub fn new(address: u64, flags: u32) -> Self {
        Self {
            address,
            flags,
            file: Vec::new(),
            memory: None,
            offset: None,
            align: 0x1000,
        }
    }
    pub fn file(mut self, bytes: &[u8]) -> Self {
        self.file = bytes.to_vec();
        self
    }
    /// Bytes in memory; else as many as in the file.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }
    /// Where the header says that the bytes lie in the file; else where they do.
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
    pub fn align(mut self, align: u64) -> Self {
        self.align = align;
        self
    }
}

/// An ELF64 file.
pub struct ElfFile {
    entry: u64,
    headers: Vec<(u32, Load)>,
    patches: Vec<(usize, u8)>,
}

impl ElfFile {
    pub fn new(entry: u64) -> Self {
        Self {
            entry,
            headers: Vec::new(),
            patches: Vec::new(),
        }
    }
    pub fn load(mut self, load: Load) -> Self {
        self.headers.push((PT_LOAD, load));
        self
    }
    /// A program header of some other type.
    pub fn header(mut self, kind: u32, of: Load) -> Self {
        self.headers.push((kind, of));
        self
    }
    /// Changes one byte of the finished file.
    pub fn byte(mut self, at: usize, value: u8) -> Self {
        self.patches.push((at, value));
        self
    }
    /// Changes two bytes.
    pub fn half(mut self, at: usize, value: u16) -> Self {
        self.patches.extend((at..).zip(value.to_le_bytes()));
        self
    }
    /// Changes eight.
    pub fn word(mut self, at: usize, value: u64) -> Self {
        self.patches.extend((at..).zip(value.to_le_bytes()));
        self
    }
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [2u16, 62] {
            out.extend(half.to_le_bytes());
        }
        out.extend(1u32.to_le_bytes());
        for word in [self.entry, 64, 0] {
            out.extend(word.to_le_bytes());
        }
        out.extend(0u32.to_le_bytes());
        for half in [64, 56, self.headers.len() as u16, 0, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let mut data = Vec::<u8>::new();
        let data_at = 64 + 56 * self.headers.len() as u64;
        for (kind, load) in &self.headers {
            out.extend(kind.to_le_bytes());
            out.extend(load.flags.to_le_bytes());
            let file = load.file.len() as u64;
            let offset = load.offset.unwrap_or(data_at + data.len() as u64);
            let memory = load.memory.unwrap_or(file);
            for word in [offset, load.address, load.address, file, memory, load.align] {
                out.extend(word.to_le_bytes());
            }
            data.extend(&load.file);
        }
        out.extend(data);
        for &(at, value) in &self.patches {
            out[at] = value;
        }
        out
    }
}
