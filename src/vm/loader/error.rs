//! Why an image cannot be loaded.

use core::fmt;

use crate::addr::{AddrRange, Gpa};

/// Why an image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The module has no bytes.
    Empty,
    /// The file does not begin as an ELF file does.
    NotElf,
    /// The file ends before what its headers promise.
    Truncated,
    /// The headers contradict themselves or the ELF format.
    Malformed,
    /// A 32-bit image.
    ThirtyTwoBit,
    /// A big-endian image.
    BigEndian,
    /// For another processor: `e_machine`.
    WrongMachine(u16),
    /// A position-independent executable or shared object.
    PositionIndependent,
    /// An object file, core dump or the like: `e_type`.
    NotExecutable(u16),
    /// It asks for a dynamic linker.
    DynamicallyLinked,
    /// There is nothing to load.
    NoSegments,
    /// More segments than are provided for.
    TooManySegments {
        /// The most there may be.
        most: usize,
    },
    /// A segment has more bytes in the file than in memory.
    FileLargerThanMemory {
        /// Where the segment begins.
        address: Gpa,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// A segment passes the end of the address range.
    Wraps {
        /// Where the segment begins.
        address: Gpa,
        /// Its bytes.
        len: u64,
    },
    /// A segment covers page 0, which stays unmapped so that null pointers are caught.
    NullPage,
    /// Two segments have bytes on this page.
    SharedPage {
        /// The page.
        page: Gpa,
    },
    /// The entry point is in no segment.
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
    /// The entry point is in a segment that is not executable.
    EntryNotExecutable {
        /// The entry point.
        entry: u64,
    },
    /// A segment lies beyond the guest's memory.
    OutsideMemory {
        /// The segment.
        segment: AddrRange<Gpa>,
        /// Bytes of guest memory.
        memory: u64,
        /// Bytes with which the image would load, if any number would do.
        needed: Option<u64>,
    },
    /// Segments fit, but not the stack and the tables with them.
    TooLittleMemory {
        /// Bytes of guest memory.
        memory: u64,
        /// Bytes with which the image would load.
        needed: u64,
    },
    /// More memory than can be mapped at addresses equal to the physical ones.
    TooMuchMemory {
        /// Bytes of guest memory, with the data behind it.
        memory: u64,
        /// The most there may be.
        most: u64,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("the module is empty"),
            Self::NotElf => f.write_str("not an ELF file"),
            Self::Truncated => f.write_str("truncated: the file ends before what its headers promise"),
            Self::Malformed => f.write_str("malformed ELF headers"),
            Self::ThirtyTwoBit => f.write_str("a 32-bit ELF image; a guest must be x86-64"),
            Self::BigEndian => f.write_str("a big-endian ELF image; a guest must be x86-64"),
            Self::WrongMachine(machine) => {
                write!(f, "an ELF image for machine {machine}; a guest must be x86-64 (62)")
            }
            Self::PositionIndependent => f.write_str(
                "position-independent (ET_DYN); link it at fixed addresses (-no-pie, relocation-model=static)",
            ),
            Self::NotExecutable(kind) => write!(f, "ELF type {kind} is not an executable (ET_EXEC)"),
            Self::DynamicallyLinked => {
                f.write_str("dynamically linked (PT_INTERP or PT_DYNAMIC); link it statically")
            }
            Self::NoSegments => f.write_str("nothing to load (no PT_LOAD segment)"),
            Self::TooManySegments { most } => write!(f, "more than {most} PT_LOAD segments"),
            Self::FileLargerThanMemory { address, file, memory } => write!(
                f,
                "the segment at {address:#x} has {file:#x} bytes in the file but {memory:#x} in memory"
            ),
            Self::Wraps { address, len } => {
                write!(f, "the segment at {address:#x} of {len:#x} bytes passes the last address")
            }
            Self::NullPage => f.write_str("a segment covers page 0, which must stay unmapped"),
            Self::SharedPage { page } => {
                write!(f, "two segments share the page at {page:#x}; align them to 4 KiB")
            }
            Self::EntryOutside { entry } => write!(f, "the entry point {entry:#x} is in no segment"),
            Self::EntryNotExecutable { entry } => {
                write!(f, "the entry point {entry:#x} is in a segment that is not executable")
            }
            Self::OutsideMemory { segment, memory, needed } => {
                write!(f, "the segment {segment} lies outside the guest's {memory:#x} bytes of memory")?;
                needed.map_or(Ok(()), |needed| write!(f, "; mem={needed:#x} would do"))
            }
            Self::TooLittleMemory { memory, needed } => {
                write!(f, "{memory:#x} bytes of memory are too little; mem={needed:#x} would do")
            }
            Self::TooMuchMemory { memory, most } => {
                write!(f, "{memory:#x} bytes of memory are more than the {most:#x} that can be mapped")
            }
        }
    }
}
impl core::error::Error for LoadError {}
