//! ELF images: whatever is accepted is loaded as it says, where the plan says, and seen so through the tables that were
//! built for it.

use std::collections::HashMap;

use offshoot::addr::{AddrRange, Address, Gpa, Gva, PAGE_SIZE};
use offshoot::paging::{Content, Entry, Format, GuestAmd64, TableReadOps, Write, query};
use offshoot::vm::loader::{GuestMemory, Image, MappedData, Plan, AreaKind, load};

use crate::Bytes;

/// The most memory of a guest.
const MEMORY: u64 = 1 << 26;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// The pages that something was written to.
struct Memory {
    pages: HashMap<u64, [u8; PAGE_SIZE as usize]>,
    end: u64,
}

impl GuestMemory for Memory {
    type Error = &'static str;
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Self::Error> {
        let (mut at, mut rest) = (from.as_u64(), into);
        while !rest.is_empty() {
            let within = (at % PAGE_SIZE) as usize;
            let len = rest.len().min(PAGE_SIZE as usize - within);
            let (now, later) = rest.split_at_mut(len);
            match self.pages.get(&(at / PAGE_SIZE)) {
                Some(page) => now.copy_from_slice(&page[within..within + len]),
                None => now.fill(0),
            }
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), Self::Error> {
        let end = to.as_u64().checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.end) {
            return Err("outside of the memory");
        }
        let (mut at, mut rest) = (to.as_u64(), bytes);
        while !rest.is_empty() {
            let within = (at % PAGE_SIZE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE_SIZE as usize - within));
            let page = self.pages.entry(at / PAGE_SIZE).or_insert([0; 4096]);
            page[within..within + now.len()].copy_from_slice(now);
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }
}

/// The tables in it.
struct Tables<'m>(&'m Memory, Gpa);

impl TableReadOps for Tables<'_> {
    type Format = GuestAmd64;
    fn root(&self) -> Gpa {
        self.1
    }
    unsafe fn read_entry(&self, table: Gpa, index: usize) -> Option<<GuestAmd64 as Format>::Entry> {
        let mut bytes = [0; 8];
        let at = table.checked_add(index as u64 * 8)?;
        self.0.read(at, &mut bytes).ok()?;
        Some(Entry::from_bits(u64::from_le_bytes(bytes)))
    }
}

/// A file, either as it is given or as a header with a few segments, the numbers of which are small, and then patched.
fn file(input: &[u8]) -> Vec<u8> {
    let mut bytes = Bytes(input);
    let how = bytes.byte();
    if how & 1 == 0 {
        return bytes.0.to_vec();
    }
    let segments = usize::from(how >> 1 & 7);
    let mut file = vec![0; HEADER + segments * PROGRAM_HEADER];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &(0x20_0000 + u64::from(bytes.byte())).to_le_bytes());
    put(32, &(HEADER as u64).to_le_bytes());
    put(52, &[HEADER as u8, 0, PROGRAM_HEADER as u8, 0]);
    put(56, &[segments as u8]);
    for number in 0..segments {
        let [flags, start, page, file_len, more, ..] = bytes.take::<8>();
        let at = HEADER + number * PROGRAM_HEADER;
        let offset = u64::from(start);
        let address = 0x20_0000 + (u64::from(page) << 12) + offset;
        let file_len = u64::from(file_len);
        put(at, &[1]);
        put(at + 4, &[flags & 7]);
        let words = [
            offset,
            address,
            address,
            file_len,
            file_len + (u64::from(more) << 6),
            0x1000,
        ];
        for (n, word) in words.into_iter().enumerate() {
            put(at + 8 + 8 * n, &word.to_le_bytes());
        }
    }
    for _ in 0..how >> 4 {
        let [low, high, value] = bytes.take();
        let at = usize::from(u16::from_le_bytes([low, high])) % file.len();
        file[at] ^= value;
    }
    file.extend(bytes.0);
    file
}

fn end(range: AddrRange<Gpa>) -> u64 {
    range.start().as_u64() + range.len()
}

/// Takes `input` for a file and some memory to load it into.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let [pages, more, flags, data] = bytes.take();
    let file = file(bytes.0);
    let image = match Image::parse(&file) {
        Ok(image) => image,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!image.segments().is_empty());
    let mut last = PAGE_SIZE;
    for segment in image.segments() {
        let pages = segment.pages();
        assert!(pages.start().as_u64() >= last && segment.file.len() as u64 <= segment.range.len());
        last = end(pages);
    }
    let mut executed = image.segments().iter().filter(|segment| segment.execute);
    assert!(executed.any(|segment| segment.range.contains(image.entry())));

    let memory = (u64::from(u16::from_le_bytes([pages, more])) << 12).min(MEMORY);
    let data = (flags & 1 != 0).then_some(MappedData {
        len: u64::from(data) << 8 | 1,
        write: flags & 2 != 0,
    });
    let plan = match Plan::new(&image, memory, data, flags & 4 != 0) {
        Ok(plan) => plan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut last = PAGE_SIZE;
    for area in plan.areas() {
        assert!(
            area.range.start().is_aligned(PAGE_SIZE) && area.range.start().as_u64() >= last
        );
        last = end(area.range);
        assert!(last <= memory || area.kind == AreaKind::Data);
    }
    let mut written = Memory {
        pages: HashMap::new(),
        end: memory,
    };
    let start = load(&image, &plan, &mut written).expect("a plan that was made can be carried out");
    for segment in image.segments() {
        let mut found = vec![1; (segment.range.len() as usize).min(1 << 13)];
        let _ = written.read(segment.range.start(), &mut found);
        let (file, rest) = found.split_at(segment.file.len().min(found.len()));
        assert!(segment.file.starts_with(file) && rest.iter().all(|byte| *byte == 0));
    }
    // Through the tables, every area is where it is, and may be used as it says.
    let tables = Tables(&written, start.cr3);
    for area in plan.areas() {
        let (first, last) = (area.range.start(), end(area.range) - 1);
        for at in [first.as_u64(), last]
            .iter()
            .filter(|_| area.range.len() > 0)
        {
            let found = query(&tables, Gva::new(*at)).expect("tables that were built");
            let attr = found.and_then(|leaf| {
                assert_eq!(leaf.phys_of(Gva::new(*at)), Some(Gpa::new(*at)));
                match leaf.content {
                    Content::Page { attr, .. } => Some((attr.write(), attr.execute())),
                    _ => None,
                }
            });
            let write = match area.write {
                true => Write::Allowed,
                false => Write::Denied,
            };
            assert_eq!(attr, area.read.then_some((write, area.execute)));
        }
    }
    let null = query(&tables, Gva::new(0)).expect("tables that were built");
    assert_eq!(null, None);
}
