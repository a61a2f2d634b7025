//! A checked ELF image. What the file says is a claim until [`Image::parse`] has accepted it.

use core::fmt;

use arrayvec::ArrayVec;
use elf::ElfBytes;
use elf::abi::{
    ELFCLASS32, EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD,
};
use elf::endian::LittleEndian;
use elf::parse::ParseError;
use elf::segment::ProgramHeader;

use super::LoadError;
use crate::addr::{AddrRange, Address, Gpa, PAGE_SIZE};

/// The most segments an image may have.
pub const SEGMENTS_MAX: usize = 16;

/// A segment: where it lies, what of it is in the file, and what may be done to it. Its GVA is its GPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
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

impl Segment<'_> {
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
    segments: ArrayVec<Segment<'a>, SEGMENTS_MAX>,
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
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let elf = check_header(file)?;
        let mut segments = ArrayVec::<Segment<'a>, SEGMENTS_MAX>::new();
        for header in elf.segments().into_iter().flatten() {
            match header.p_type {
                PT_INTERP | PT_DYNAMIC => return Err(LoadError::DynamicallyLinked),
                PT_LOAD => {}
                _ => continue,
            }
            if let Some(segment) = check_segment(&elf, &header)? {
                let most = SEGMENTS_MAX;
                segments
                    .try_push(segment)
                    .map_err(|_| LoadError::TooManySegments { most })?;
            }
        }
        segments.sort_unstable_by_key(|segment| segment.range.start());
        check_overlap(&segments)?;
        check_entry(elf.ehdr.e_entry, &segments)?;
        Ok(Self {
            entry: Gpa::new(elf.ehdr.e_entry),
            segments,
        })
    }

    /// The entry point.
    pub fn entry(&self) -> Gpa {
        self.entry
    }

    /// The segments, by address. No two lie on one page, and none on page 0.
    pub fn segments(&self) -> &[Segment<'a>] {
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

fn check_header(file: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, LoadError> {
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
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(describe)?;
    let header = &elf.ehdr;
    if header.e_machine != EM_X86_64 {
        return Err(LoadError::WrongMachine(header.e_machine));
    }
    match header.e_type {
        ET_EXEC => Ok(elf),
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

/// The segment that a PT_LOAD header describes, or none if it is empty, as linkers like to leave some.
fn check_segment<'a>(
    elf: &ElfBytes<'a, LittleEndian>,
    header: &ProgramHeader,
) -> Result<Option<Segment<'a>>, LoadError> {
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
    Ok(Some(Segment {
        range,
        file: elf.segment_data(header).map_err(|_| LoadError::Truncated)?,
        read: header.p_flags & PF_R != 0,
        write: header.p_flags & PF_W != 0,
        execute: header.p_flags & PF_X != 0,
    }))
}

fn check_overlap(segments: &[Segment<'_>]) -> Result<(), LoadError> {
    for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
        let page = next.pages().start();
        if segment.pages().contains(page) {
            return Err(LoadError::SharedPage { page });
        }
    }
    Ok(())
}

fn check_entry(entry: u64, segments: &[Segment<'_>]) -> Result<(), LoadError> {
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
        assert_eq!(
            error(good().header(elf::abi::PT_INTERP)),
            LoadError::DynamicallyLinked
        );
        assert_eq!(
            error(good().header(elf::abi::PT_DYNAMIC)),
            LoadError::DynamicallyLinked
        );
        assert!(Image::parse(&good().header(elf::abi::PT_NOTE).bytes()).is_ok());
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
