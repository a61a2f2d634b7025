//! A checked ELF image. What the file says is a claim until [`Image::parse`] has accepted it.

use core::fmt;

use arrayvec::ArrayVec;
use elf::abi::{
    EI_NIDENT, ELFCLASS32, EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PN_XNUM, PT_DYNAMIC,
    PT_INTERP, PT_LOAD,
};
use elf::endian::LittleEndian;
use elf::file::{FileHeader, parse_ident};
use elf::parse::{ParseAt, ParseError};
use elf::segment::{ProgramHeader, SegmentTable};

use super::LoadError;
use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE};

/// The most segments an image may have.
pub const SEGMENTS_MAX: usize = 16;

/// A segment: where it lies, what of it is in the file, and what may be done to it. Its GVA is its GPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSegment<'a> {
    /// Its bytes in memory.
    pub range: AddrRange<Gpa>,
    /// The first of them; the others are zero.
    pub file: &'a [u8],
    /// Whether it may be read. (On x86 whatever may be written or executed may be read.)
    pub read: bool,
    /// Whether it may be written.
    pub write: bool,
    /// Whether it may be executed.
    pub execute: bool,
}

impl LoadSegment<'_> {
    /// The whole pages it lies in.
    pub fn pages(&self) -> AddrRange<Gpa> {
        pages(self.range).unwrap_or(self.range)
    }
}

/// The whole pages that `range` lies in, unless they pass the end of the address range.
fn pages(range: AddrRange<Gpa>) -> Option<AddrRange<Gpa>> {
    let start = range.start().align_down(PAGE_SIZE);
    let end = range
        .start()
        .checked_add(range.len())?
        .align_up(PAGE_SIZE)?;
    AddrRange::new(start, end.as_u64() - start.as_u64())
}

/// An executable that can be loaded into a guest with enough memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    entry: Gpa,
    /// Not empty, by address, no two on one page, none on page 0.
    segments: ArrayVec<LoadSegment<'a>, SEGMENTS_MAX>,
}

/// Something unwise about an image that does not keep it from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A segment that may be both written and executed.
    WritableAndExecutable(AddrRange<Gpa>),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WritableAndExecutable(range) => {
                write!(f, "the segment {range} is both writable and executable")
            }
        }
    }
}

impl<'a> Image<'a> {
    /// Checks all that can be checked without knowing the guest's memory.
    ///
    /// # Errors
    /// What of the file is not a static x86-64 program, or is malformed, with its place.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let elf = check_header(file)?;
        let mut segments = ArrayVec::<LoadSegment<'a>, SEGMENTS_MAX>::new();
        for header in program_headers(file, &elf)? {
            match header.p_type {
                // An empty dynamic section asks for nothing.
                PT_DYNAMIC if header.p_filesz == 0 => continue,
                PT_INTERP | PT_DYNAMIC => return Err(LoadError::DynamicallyLinked),
                PT_LOAD => {}
                _ => continue,
            }
            if let Some(segment) = check_segment(file, &header)? {
                let most = SEGMENTS_MAX;
                segments
                    .try_push(segment)
                    .map_err(|_| LoadError::TooManySegments { most })?;
            }
        }
        segments.sort_unstable_by_key(|segment| segment.range.start());
        check_overlap(&segments)?;
        check_entry(elf.e_entry, &segments)?;
        Ok(Self {
            entry: Gpa::new(elf.e_entry),
            segments,
        })
    }

    /// The entry point.
    pub fn entry(&self) -> Gpa {
        self.entry
    }

    /// The segments, by address. No two lie on one page, and none on page 0.
    pub fn segments(&self) -> &[LoadSegment<'a>] {
        &self.segments
    }

    /// What the user should know about the image.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        self.segments
            .iter()
            .filter(|segment| segment.write && segment.execute)
            .map(|segment| Warning::WritableAndExecutable(segment.range))
    }
}

fn check_header(file: &[u8]) -> Result<FileHeader<LittleEndian>, LoadError> {
    if file.is_empty() {
        return Err(LoadError::Empty);
    }
    if !file.starts_with(&elf::abi::ELFMAGIC) {
        return Err(LoadError::NotElf);
    }
    // Before the rest, so that a 32-bit file is not called truncated because its header is shorter.
    if file.get(elf::abi::EI_CLASS) == Some(&ELFCLASS32) {
        return Err(LoadError::ThirtyTwoBit);
    }
    let (ident, rest) = file
        .split_at_checked(EI_NIDENT)
        .ok_or(LoadError::Truncated)?;
    let ident = parse_ident(ident).map_err(describe)?;
    let header = FileHeader::parse_tail(ident, rest).map_err(describe)?;
    if header.e_machine != EM_X86_64 {
        return Err(LoadError::WrongMachine(header.e_machine));
    }
    match header.e_type {
        ET_EXEC => Ok(header),
        ET_DYN => Err(LoadError::PositionIndependent),
        other => Err(LoadError::NotExecutable(other)),
    }
}

fn describe(error: ParseError) -> LoadError {
    match error {
        ParseError::BadMagic(_) => LoadError::NotElf,
        ParseError::UnsupportedElfEndianness(elf::abi::ELFDATA2MSB) => LoadError::BigEndian,
        ParseError::SliceReadError(_)
        | ParseError::BadOffset(_)
        | ParseError::TryFromSliceError(_) => LoadError::Truncated,
        _ => LoadError::Malformed,
    }
}

/// The program headers: with the segments they are all of the file that is needed. Where sections would be is nobody's
/// concern, as a loader uses none; tools cut them off.
fn program_headers<'a>(
    file: &'a [u8],
    elf: &FileHeader<LittleEndian>,
) -> Result<SegmentTable<'a, LittleEndian>, LoadError> {
    if elf.e_phoff == 0 || elf.e_phnum == 0 {
        return Err(LoadError::NoSegments);
    }
    if elf.e_phnum == PN_XNUM {
        // The first section would say how many there are, for core dumps: no executable has as many.
        let most = SEGMENTS_MAX;
        return Err(LoadError::TooManySegments { most });
    }
    let size = ProgramHeader::validate_entsize(elf.class, elf.e_phentsize.into());
    let len = size.map_err(describe)? as u64 * u64::from(elf.e_phnum);
    let table = bytes(file, elf.e_phoff, len)?;
    Ok(SegmentTable::new(elf.endianness, elf.class, table))
}

/// So many bytes of the file. None at all are there wherever that is.
fn bytes(file: &[u8], offset: u64, len: u64) -> Result<&[u8], LoadError> {
    if len == 0 {
        return Ok(&[]);
    }
    let end = offset.checked_add(len).ok_or(LoadError::Truncated)?;
    match (usize::try_from(offset), usize::try_from(end)) {
        (Ok(start), Ok(end)) => file.get(start..end).ok_or(LoadError::Truncated),
        _ => Err(LoadError::Truncated),
    }
}

/// The segment that a PT_LOAD header describes, or none if it is empty, as linkers like to leave some.
fn check_segment<'a>(
    file: &'a [u8],
    header: &ProgramHeader,
) -> Result<Option<LoadSegment<'a>>, LoadError> {
    let address = Gpa::new(header.p_vaddr);
    if header.p_filesz > header.p_memsz {
        let (file, memory) = (header.p_filesz, header.p_memsz);
        return Err(LoadError::FileLargerThanMemory {
            address,
            file,
            memory,
        });
    }
    if header.p_memsz == 0 {
        return Ok(None);
    }
    let len = header.p_memsz;
    let wraps = LoadError::Wraps { address, len };
    let range = AddrRange::new(address, len).ok_or(wraps)?;
    if pages(range).ok_or(wraps)?.start() == Gpa::new(0) {
        return Err(LoadError::NullPage);
    }
    Ok(Some(LoadSegment {
        range,
        file: bytes(file, header.p_offset, header.p_filesz)?,
        read: header.p_flags & PF_R != 0,
        write: header.p_flags & PF_W != 0,
        execute: header.p_flags & PF_X != 0,
    }))
}

fn check_overlap(segments: &[LoadSegment<'_>]) -> Result<(), LoadError> {
    for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
        let page = next.pages().start();
        if segment.pages().contains(page) {
            return Err(LoadError::SharedPage { page });
        }
    }
    Ok(())
}

fn check_entry(entry: u64, segments: &[LoadSegment<'_>]) -> Result<(), LoadError> {
    if segments.is_empty() {
        return Err(LoadError::NoSegments);
    }
    let segment = segments
        .iter()
        .find(|segment| segment.range.contains(Gpa::new(entry)));
    match segment {
        Some(segment) if segment.execute => Ok(()),
        Some(_) => Err(LoadError::EntryNotExecutable { entry }),
        None => Err(LoadError::EntryOutside { entry }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ElfFile, Load, R, RW, RWX, RX};
    use super::*;

    fn error(elf: ElfFile) -> LoadError {
        Image::parse(&elf.bytes()).unwrap_err()
    }

    #[test]
    fn a_good_image() {
        let file = ElfFile::new(0x201010)
            .load(Load::new(0x202ff0, RW).file(b"data").memory(0x2000))
            .load(Load::new(0x201000, RX).file(&[0x90; 32]))
            .load(Load::new(0x200000, R).file(b"consts"))
            .load(Load::new(0x0, R))
            .bytes();
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.entry(), Gpa::new(0x201010));
        let starts: Vec<_> = image
            .segments()
            .iter()
            .map(|s| s.range.start().as_u64())
            .collect();
        assert_eq!(
            starts,
            [0x200000, 0x201000, 0x202ff0],
            "sorted, the empty one left out"
        );
        let data = image.segments()[2];
        assert_eq!(data.file, b"data");
        assert_eq!((data.read, data.write, data.execute), (true, true, false));
        assert_eq!(
            data.pages(),
            AddrRange::new(Gpa::new(0x202000), 0x3000).unwrap()
        );
        assert_eq!(image.warnings().count(), 0);
    }

    #[test]
    fn what_is_no_x86_64_executable_is_named() {
        let good = || ElfFile::new(0x1000).load(Load::new(0x1000, RX).file(&[0xf4]));
        assert!(Image::parse(&good().bytes()).is_ok());
        assert_eq!(Image::parse(&[]), Err(LoadError::Empty));
        assert_eq!(Image::parse(b"#!/bin/sh\n"), Err(LoadError::NotElf));
        assert_eq!(Image::parse(b"\x7fEL"), Err(LoadError::NotElf));
        assert_eq!(Image::parse(b"\x7fELF"), Err(LoadError::Truncated));
        assert_eq!(error(good().byte(4, 1)), LoadError::ThirtyTwoBit);
        assert_eq!(error(good().byte(4, 7)), LoadError::Malformed);
        assert_eq!(error(good().byte(5, 2)), LoadError::BigEndian);
        assert_eq!(error(good().byte(16, 3)), LoadError::PositionIndependent);
        assert_eq!(error(good().byte(16, 1)), LoadError::NotExecutable(1));
        assert_eq!(error(good().byte(18, 183)), LoadError::WrongMachine(183));
        assert_eq!(
            error(good().byte(54, 55)),
            LoadError::Malformed,
            "e_phentsize"
        );
        assert_eq!(error(ElfFile::new(0x1000)), LoadError::NoSegments);
        let dynamic = || Load::new(0x2000, R).file(&[0; 16]);
        for kind in [PT_INTERP, PT_DYNAMIC] {
            let with = good().header(kind, dynamic());
            assert_eq!(error(with), LoadError::DynamicallyLinked);
        }
        let empty = good().header(PT_INTERP, Load::new(0, R));
        assert_eq!(error(empty), LoadError::DynamicallyLinked);
        let empty = good().header(PT_DYNAMIC, Load::new(0, R));
        assert!(Image::parse(&empty.bytes()).is_ok());
        let many = good().half(E_PHNUM, PN_XNUM);
        assert_eq!(
            error(many),
            LoadError::TooManySegments { most: SEGMENTS_MAX }
        );
    }

    const E_PHOFF: usize = 32;
    const E_SHOFF: usize = 40;
    const E_PHENTSIZE: usize = 54;
    const E_PHNUM: usize = 56;
    const E_SHENTSIZE: usize = 58;
    const E_SHNUM: usize = 60;
    const E_SHSTRNDX: usize = 62;
    /// Places in a file, and far from any.
    const WHEREVER: [u64; 6] = [0, 1, 0x1000, 1 << 32, 1 << 63, u64::MAX];

    fn parsed(elf: &ElfFile) -> Result<Vec<(u64, u64)>, LoadError> {
        let bytes = elf.bytes();
        let image = Image::parse(&bytes)?;
        let each = |s: &LoadSegment<'_>| (s.range.start().as_u64(), s.file.len() as u64);
        Ok(image.segments().iter().map(each).collect())
    }

    #[test]
    fn bytes_that_nobody_needs_may_be_anywhere() {
        use elf::abi::{PT_GNU_STACK, PT_NOTE, PT_PHDR, PT_TLS};
        let good = || ElfFile::new(0x1000).load(Load::new(0x1000, RX).file(&[0xf4; 20]));
        for offset in WHEREVER {
            let bss = good().load(Load::new(0x2000, RW).memory(0x2000).offset(offset));
            assert_eq!(parsed(&bss), Ok(vec![(0x1000, 20), (0x2000, 0)]));
            for address in WHEREVER {
                let nothing = Load::new(address, RWX).offset(offset);
                assert_eq!(parsed(&good().load(nothing)), Ok(vec![(0x1000, 20)]));
                for kind in [PT_GNU_STACK, PT_NOTE, PT_PHDR, PT_TLS, 0x6fff_ffff] {
                    let other = Load::new(address, RWX)
                        .file(&[1; 8])
                        .offset(offset)
                        .memory(4);
                    let parsed = parsed(&good().header(kind, other));
                    assert_eq!(parsed, Ok(vec![(0x1000, 20)]), "{kind:#x}");
                }
            }
            for half in [E_SHENTSIZE, E_SHNUM, E_SHSTRNDX] {
                let sections = good().word(E_SHOFF, offset).half(half, 0xffff);
                assert_eq!(parsed(&sections), Ok(vec![(0x1000, 20)]), "{half}");
            }
            let no_headers = good().half(E_PHNUM, 0).half(E_PHENTSIZE, 7);
            let no_headers = no_headers.word(E_PHOFF, offset);
            assert_eq!(parsed(&no_headers), Err(LoadError::NoSegments));
            let align = Load::new(0x2000, RW).file(&[1]).align(offset);
            assert_eq!(
                parsed(&good().load(align)),
                Ok(vec![(0x1000, 20), (0x2000, 1)])
            );
        }
        let no_headers = good().word(E_PHOFF, 0);
        assert_eq!(parsed(&no_headers), Err(LoadError::NoSegments));
    }

    #[test]
    fn bytes_that_are_needed_must_be_there() {
        let good = || ElfFile::new(0x1000).load(Load::new(0x1000, RX).file(&[0xf4; 20]));
        let len = good().bytes().len() as u64;
        for far in [len, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX] {
            let one = Load::new(0x2000, RW).file(&[1]).offset(far);
            let file = good().load(one).bytes();
            // Moved beyond the end, behind the header and the byte that it would have had.
            let past = far.max(file.len() as u64);
            let one = Load::new(0x2000, RW).file(&[1]).offset(past);
            assert_eq!(parsed(&good().load(one)), Err(LoadError::Truncated));
            let headers = good().word(E_PHOFF, far);
            assert_eq!(parsed(&headers), Err(LoadError::Truncated));
        }
        let last = Load::new(0x2000, RW).file(&[1]).offset(0);
        assert!(parsed(&good().load(last)).is_ok());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = ElfFile::new(0x1000)
            .load(Load::new(0x1000, RX).file(&[0xf4; 100]))
            .bytes();
        for len in 5..file.len() {
            assert_eq!(
                Image::parse(&file[..len]),
                Err(LoadError::Truncated),
                "{len}"
            );
        }
    }

    #[test]
    fn segments_that_cannot_be() {
        let with = |load| {
            error(
                ElfFile::new(0x1000)
                    .load(Load::new(0x1000, RX).memory(1))
                    .load(load),
            )
        };
        assert_eq!(with(Load::new(0xfff, R).memory(1)), LoadError::NullPage);
        assert_eq!(with(Load::new(0, R).memory(1)), LoadError::NullPage);
        let address = Gpa::new(u64::MAX - 0xfff);
        for len in [0x1000, 0x1001, u64::MAX] {
            // Even without wrapping, the end of the last page cannot be expressed; nor can it be guest memory.
            assert_eq!(
                with(Load::new(address.as_u64(), R).memory(len)),
                LoadError::Wraps { address, len }
            );
        }
        assert_eq!(
            with(Load::new(0x2000, R).file(b"four").memory(3)),
            LoadError::FileLargerThanMemory {
                address: Gpa::new(0x2000),
                file: 4,
                memory: 3
            }
        );
        let many = (2..20).fold(ElfFile::new(0x1000), |e, i| {
            e.load(Load::new(i << 12, RX).memory(1))
        });
        assert_eq!(
            error(many),
            LoadError::TooManySegments { most: SEGMENTS_MAX }
        );
    }

    #[test]
    fn two_segments_on_one_page() {
        let pair = |a: u64, len: u64, b: u64| {
            error(
                ElfFile::new(a)
                    .load(Load::new(b, RX).memory(8))
                    .load(Load::new(a, RX).memory(len)),
            )
        };
        let page = Gpa::new(0x3000);
        assert_eq!(pair(0x2000, 0x1010, 0x3800), LoadError::SharedPage { page });
        assert_eq!(pair(0x2000, 0x9000, 0x3800), LoadError::SharedPage { page });
        assert_eq!(pair(0x3000, 0x10, 0x3000), LoadError::SharedPage { page });
        let apart = ElfFile::new(0x2000)
            .load(Load::new(0x3000, R).memory(8))
            .load(Load::new(0x2000, RX).memory(0x1000));
        assert!(Image::parse(&apart.bytes()).is_ok());
    }

    #[test]
    fn the_entry_point_must_be_code() {
        let at = |entry| {
            error(
                ElfFile::new(entry)
                    .load(Load::new(0x2000, RX).memory(0x100))
                    .load(Load::new(0x3000, RW).memory(0x100)),
            )
        };
        assert_eq!(at(0x2100), LoadError::EntryOutside { entry: 0x2100 });
        assert_eq!(at(0), LoadError::EntryOutside { entry: 0 });
        assert_eq!(at(u64::MAX), LoadError::EntryOutside { entry: u64::MAX });
        assert_eq!(at(0x3000), LoadError::EntryNotExecutable { entry: 0x3000 });
    }

    #[test]
    fn writable_code_is_allowed_and_warned_of() {
        let file = ElfFile::new(0x1000)
            .load(Load::new(0x1000, RWX).memory(8))
            .bytes();
        let image = Image::parse(&file).unwrap();
        let range = AddrRange::new(Gpa::new(0x1000), 8).unwrap();
        assert_eq!(
            image.warnings().collect::<Vec<_>>(),
            [Warning::WritableAndExecutable(range)]
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(256)))]
        #[test]
        fn a_file_may_end_where_nothing_more_is_needed(
            sizes in proptest::collection::vec((0usize..40, 0u64..40), 1..6),
        ) {
            let mut elf = ElfFile::new(0x1000);
            let mut needed = 64 + 56 * sizes.len();
            let (mut end, mut some) = (needed, false);
            for (i, &(file, more)) in sizes.iter().enumerate() {
                let address = 0x1000 * (1 + i as u64);
                elf = elf.load(Load::new(address, RX).file(&vec![0xf4; file]).memory(file as u64 + more));
                end += file;
                if file > 0 {
                    needed = end;
                }
                some |= i == 0 && file as u64 + more > 0;
            }
            let file = elf.bytes();
            for len in 64..=file.len() {
                let parsed = Image::parse(&file[..len]);
                if len < needed {
                    proptest::prop_assert_eq!(parsed, Err(LoadError::Truncated));
                } else {
                    // Without a first segment, the entry point is in none, or there is none at all.
                    proptest::prop_assert_eq!(parsed.is_ok(), some, "{:?}", parsed);
                }
            }
        }

        #[test]
        fn no_file_panics(changes in proptest::collection::vec((0usize..400, proptest::prelude::any::<u8>()), 0..8)) {
            let mut file = ElfFile::new(0x1000)
                .load(Load::new(0x1000, RX).file(&[0xf4; 100]))
                .load(Load::new(0x3000, RW).file(&[1; 100]))
                .bytes();
            for (at, byte) in changes {
                let at = at % file.len();
                file[at] = byte;
            }
            if let Ok(image) = Image::parse(&file) {
                for segment in image.segments() {
                    assert!(segment.range.contains_range(segment.range));
                    assert!(segment.file.len() as u64 <= segment.range.len());
                }
            }
        }
    }
}
