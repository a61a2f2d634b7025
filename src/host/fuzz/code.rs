//! The code of an image: where it lies and what its bytes are.

use arrayvec::ArrayVec;
use elf::ElfBytes;
use elf::abi::{SHF_EXECINSTR, SHT_PROGBITS};
use elf::endian::LittleEndian;

use crate::addr::Gva;
use crate::vm::loader::{Image, SEGMENTS_MAX};

/// A run of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRun<'i> {
    /// The address of its first byte. An image is loaded so that its GVA is its GPA.
    pub start: Gva,
    /// Its bytes, as in the file.
    pub bytes: &'i [u8],
}

/// The runs of code, by address.
pub type Codes<'i> = ArrayVec<CodeRun<'i>, { 2 * SEGMENTS_MAX }>;

/// The code of the image in `file`: its executable sections, as far as they lie in executable segments; or, of a file
/// without them, all of those segments.
pub fn codes<'i>(file: &'i [u8], image: &Image<'i>) -> Codes<'i> {
    let sections = sections(file, image);
    if !sections.is_empty() {
        return sections;
    }
    segments(image).collect()
}

fn segments<'i>(image: &Image<'i>) -> impl Iterator<Item = CodeRun<'i>> {
    let executable = image.segments().iter().filter(|segment| segment.execute);
    executable.copied().map(|segment| CodeRun {
        start: Gva::new(segment.range.start().as_u64()),
        bytes: segment.file,
    })
}

fn sections<'i>(file: &'i [u8], image: &Image<'i>) -> Codes<'i> {
    let mut found = Codes::new();
    let Ok(elf) = ElfBytes::<LittleEndian>::minimal_parse(file) else {
        return found;
    };
    let headers = elf.section_headers().into_iter().flatten();
    for header in headers {
        let code =
            header.sh_type == SHT_PROGBITS && header.sh_flags & u64::from(SHF_EXECINSTR) != 0;
        let at = header.sh_addr;
        let len = usize::try_from(header.sh_size).unwrap_or(usize::MAX);
        let inside = |segment: CodeRun<'i>| {
            let offset = usize::try_from(at.checked_sub(segment.start.as_u64())?).ok()?;
            segment.bytes.get(offset..offset.checked_add(len)?)
        };
        if code
            && len != 0
            && let Some(bytes) = segments(image).find_map(inside)
        {
            // Of more sections than that the others count as not known.
            let start = Gva::new(at);
            let _ = found.try_push(CodeRun { start, bytes });
        }
    }
    found.sort_unstable_by_key(|code| code.start);
    // A file may claim that sections overlap.
    let mut end = 0;
    found.retain(|code| {
        let apart = code.start.as_u64() >= end;
        if apart {
            end = code.start.as_u64() + code.bytes.len() as u64;
        }
        apart
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::loader::testing::{ElfFile, Load, RW, RX};

    /// Puts section headers behind a file: type, flags, address, size.
    fn with_sections(mut file: Vec<u8>, sections: &[(u32, u64, u64, u64)]) -> Vec<u8> {
        let at = file.len() as u64;
        file[40..48].copy_from_slice(&at.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        for &(kind, flags, address, size) in sections {
            let mut header = [0; 64];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[16..24].copy_from_slice(&address.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend(header);
        }
        file
    }

    fn found(file: &[u8]) -> Vec<(u64, usize)> {
        let image = Image::parse(file).unwrap();
        codes(file, &image)
            .iter()
            .map(|code| (code.start.as_u64(), code.bytes.len()))
            .collect()
    }

    fn file() -> Vec<u8> {
        ElfFile::new(0x1000)
            .load(Load::new(0x1000, RX).file(&[0x90; 100]))
            .load(Load::new(0x3000, RW).file(&[1; 100]))
            .bytes()
    }

    #[test]
    fn without_sections_it_is_the_executable_segments() {
        assert_eq!(found(&file()), [(0x1000, 100)]);
    }

    #[test]
    fn executable_sections_are_what_counts() {
        let alloc_exec = 6;
        let file = with_sections(
            file(),
            &[
                (0, 0, 0, 0),
                (1, alloc_exec, 0x1020, 0x10),
                (1, 2, 0x1040, 0x10),
                (1, alloc_exec, 0x1004, 0x8),
            ],
        );
        assert_eq!(found(&file), [(0x1004, 8), (0x1020, 0x10)]);
    }

    #[test]
    fn sections_that_cannot_be_are_left_out() {
        let exec = |address, size| (1, 6, address, size);
        let file = with_sections(
            file(),
            &[
                exec(0x1060, 5),
                exec(0x3000, 4),
                exec(0xfff, 4),
                exec(u64::MAX, u64::MAX),
                exec(0x1000, 100),
                exec(0x1010, 4),
            ],
        );
        assert_eq!(found(&file), [(0x1000, 100)]);
    }
}
