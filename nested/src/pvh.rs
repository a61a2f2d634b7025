//! Puts an ELF image with a PVH entry and its modules into the memory of a virtual machine, as a boot loader does.

use elf::endian::LittleEndian;
use elf::note::Note;
use elf::{ElfBytes, abi};
use std::fmt::Display;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const MAGIC: u64 = 0x336e_c578;
/// The type of the note with the 32-bit entry point.
const PHYS32_ENTRY: u64 = 18;
/// Where what the kernel is told begins, and where it must end: below the firmware of a PC.
const TOLD: u64 = 0x6000;
const TOLD_END: u64 = 0x9_f000;
const RAM: u64 = 1;
const RESERVED: u64 = 2;

/// Where a kernel that was loaded begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// For EIP.
    pub entry: u64,
    /// For EBX: where the kernel finds what it is told.
    pub info: u64,
}

/// A module with its command line.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// What is in it.
    pub bytes: &'a [u8],
    /// What is said of it.
    pub cmdline: &'a str,
}

/// Why something could not be loaded, as text.
fn because<E: Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Loads the kernel, and behind it the modules.
///
/// # Errors
/// A kernel without an entry for PVH, or memory that is too small, in words.
pub fn load(
    memory: &GuestMemoryMmap,
    kernel: &[u8],
    cmdline: &str,
    modules: &[Module<'_>],
) -> Result<Start, String> {
    let (entry, end) = load_kernel(memory, kernel)?;
    let mut told = Told { memory, next: TOLD };
    let mut at = end.next_multiple_of(MIB);
    let mut list = Vec::new();
    for module in modules {
        put(memory, at, module.bytes)?;
        let cmdline = told.text(module.cmdline)?;
        list.extend([at, module.bytes.len() as u64, cmdline, 0]);
        at = (at + module.bytes.len() as u64).next_multiple_of(PAGE);
    }
    let list = told.words(&list)?;
    let last = memory.last_addr().0;
    let map = [
        [0, 0x9_fc00, RAM],
        [0xf_0000, 0x1_0000, RESERVED],
        [MIB, last + 1 - MIB, RAM],
    ];
    let map = told.words(map.as_flattened())?;
    let cmdline = told.text(cmdline)?;
    // Magic and version 1; flags and the number of modules; modules, command line, RSDP, memory map and its length.
    let count = modules.len() as u64;
    let info = told.words(&[MAGIC | 1 << 32, count << 32, list, cmdline, 0, map, 3])?;
    Ok(Start { entry, info })
}

/// Returns the entry point and where the kernel ends.
fn load_kernel(memory: &GuestMemoryMmap, kernel: &[u8]) -> Result<(u64, u64), String> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(kernel).map_err(because("the kernel"))?;
    let segments = file.segments().ok_or("the kernel has no segments")?;
    let (mut entry, mut end) = (None, 0);
    for segment in segments.iter() {
        if segment.p_type == abi::PT_LOAD {
            let data = file
                .segment_data(&segment)
                .map_err(because("a segment of the kernel"))?;
            put(memory, segment.p_paddr, data)?;
            end = end.max(segment.p_paddr.saturating_add(segment.p_memsz));
        } else if segment.p_type == abi::PT_NOTE {
            let notes = file
                .segment_data_as_notes(&segment)
                .map_err(because("the notes of the kernel"))?;
            for note in notes {
                if let Note::Unknown(note) = note
                    && note.n_type == PHYS32_ENTRY
                    && let Some(word) = note.desc.first_chunk()
                {
                    entry = Some(u64::from(u32::from_le_bytes(*word)));
                }
            }
        }
    }
    let entry = entry.ok_or("the kernel has no PVH note")?;
    Ok((entry, end))
}

fn put(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) -> Result<(), String> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(because("memory"))
}

/// Where the kernel is told things, one behind the other.
struct Told<'m> {
    memory: &'m GuestMemoryMmap,
    next: u64,
}

impl Told<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let at = self.next;
        self.next = (at + bytes.len() as u64).next_multiple_of(16);
        if self.next > TOLD_END {
            return Err("too much to tell the kernel".into());
        }
        put(self.memory, at, bytes)?;
        Ok(at)
    }
    fn words(&mut self, words: &[u64]) -> Result<u64, String> {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }
    fn text(&mut self, text: &str) -> Result<u64, String> {
        self.bytes(&[text.as_bytes(), b"\0"].concat())
    }
}
