//! A good ELF file, spoilt in one place.

use crate::booted::image;
use offshoot_runner::Guest;
use std::fs;
use std::path::PathBuf;

/// The bytes of the sample guest `hello`, to be changed.
pub struct ElfFile(Vec<u8>);

/// Fields of the file header, by offset.
pub const CLASS: usize = 4;
pub const TYPE: usize = 16;
pub const MACHINE: usize = 18;
pub const ENTRY: usize = 24;
pub const HEADERS: usize = 32;
pub const SECTIONS: usize = 40;

/// Fields of a program header, by offset.
pub const FLAGS: usize = 4;
pub const OFFSET: usize = 8;
pub const ADDRESS: usize = 16;
pub const FILE_SIZE: usize = 32;
pub const MEMORY_SIZE: usize = 40;

impl ElfFile {
    /// The file as it was built.
    pub fn good() -> Self {
        let path = image()
            .samples
            .get("hello")
            .expect("the guest hello was built");
        Self(fs::read(path).expect("the guest hello can be read"))
    }

    /// A file of 256 bytes: code that writes to the last segment, of which there are no bytes in the file, and exits with
    /// status 0.
    pub fn with_bss() -> Self {
        const CODE: [u8; 20] = [
            0x48, 0xc7, 0xc0, 0x00, 0x30, 0x20, 0x00, // mov rax, 0x203000
            0xc6, 0x00, 0x01, // mov byte [rax], 1
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1: the call that exits
            0x31, 0xff, // xor edi, edi
            0x0f, 0x01, 0xc1, // vmcall
        ];
        let mut file = vec![0; 0x100];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[0xe0..0xe0 + CODE.len()].copy_from_slice(&CODE);
        // ET_EXEC for x86-64; two program headers of 56 bytes.
        Self(file)
            .byte(TYPE, 2)
            .byte(MACHINE, 62)
            .word(ENTRY, 0x20_10e0)
            .word(HEADERS, 64)
            .byte(54, 56)
            .byte(56, 2)
            .word(64, 5 << 32 | 1) // PT_LOAD, R and X
            .with_segment(0, OFFSET, 0)
            .with_segment(0, ADDRESS, 0x20_1000)
            .with_segment(0, FILE_SIZE, 0x100)
            .with_segment(0, MEMORY_SIZE, 0x100)
            .word(64 + 56, 6 << 32 | 1) // PT_LOAD, R and W
            .with_segment(1, ADDRESS, 0x20_2000)
            .with_segment(1, MEMORY_SIZE, 0x2000)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Only the first `len` bytes.
    pub fn cut(mut self, len: usize) -> Self {
        assert!(len < self.0.len());
        self.0.truncate(len);
        self
    }

    /// Another byte at `offset` of the file header.
    pub fn byte(mut self, offset: usize, value: u8) -> Self {
        self.0[offset] = value;
        self
    }

    /// Another word at `offset` of the file header.
    pub fn word(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Where field `offset` of the program header of segment `index` lies.
    fn field(&self, index: usize, offset: usize) -> usize {
        self.read(HEADERS) as usize + index * 56 + offset
    }

    fn read(&self, at: usize) -> u64 {
        let bytes = self.0[at..at + 8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    }

    /// Field `offset` of the program header of segment `index`.
    pub fn segment(&self, index: usize, offset: usize) -> u64 {
        self.read(self.field(index, offset))
    }

    /// Another value in field `offset` of the program header of segment `index`.
    pub fn with_segment(self, index: usize, offset: usize, value: u64) -> Self {
        let at = self.field(index, offset);
        self.word(at, value)
    }

    /// Other permissions for segment `index`.
    pub fn with_flags(self, index: usize, flags: u8) -> Self {
        let at = self.field(index, FLAGS);
        self.byte(at, flags)
    }

    /// The file on disk, as the guest `name` of the test `test`.
    pub fn guest(&self, test: &str, name: &str) -> Guest {
        file(test, name, &self.0)
    }
}

/// A file of these bytes, as the guest `name` of the test `test`.
pub fn file(test: &str, name: &str, bytes: &[u8]) -> Guest {
    let dir: PathBuf = image().root.join("target/spoilt").join(test);
    fs::create_dir_all(&dir).expect("a folder under target can be made");
    let path = dir.join(format!("{name}.elf"));
    fs::write(&path, bytes).expect("a file under target can be written");
    Guest::new(path)
}
