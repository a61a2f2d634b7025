//! What an Offshoot guest and its hypervisor agree on.
//!
//! A guest is a static x86-64 ELF image. It starts in 64-bit mode at its entry point, on a stack of its own,
//! with interrupts off and the address of its [`StartInfo`] in RDI. Every other general register is zero. It
//! calls out with `VMCALL`: the [`Call`] number in RAX, arguments in RDI, RSI, RDX; the result comes back in RAX,
//! every other register is kept. Only the kernel of a guest (CPL 0) may call.
//!
//! At the start SSE can be used (CR4.OSFXSR), read-only pages hold for CPL 0 too (CR0.WP) and pages may be
//! no-execute (EFER.NXE). Whatever is mapped has a guest-physical address equal to its guest-virtual one. `HLT` with
//! interrupts off ends the guest, as nothing could wake it; with interrupts on it is over at once.
#![no_std]

/// Numbers of the calls a guest makes with `VMCALL`, in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Call {
    /// Does nothing and returns 0: the cost of a round trip.
    Nop = 0,
    /// Ends the guest with the exit status in RDI; 0 is success. Does not return.
    Exit = 1,
    /// Prints the RSI bytes at GVA RDI to the console. Returns the number of bytes taken, at most
    /// [`PRINT_MAX`] and up to the end of the [`PRINT_LINES_MAX`]th line, or an [`Error`].
    Print = 2,
    /// Files a figure for the run's report, in ticks of the TSC: the name is the RSI bytes at GVA RDI (at most
    /// [`FIGURE_NAME_MAX`], `[a-z0-9._]`), its value is RDX.
    Figure = 3,
    /// Asks that the guest be frozen here and go on as forks of what it is now. RDI is the GVA of a buffer for a message
    /// to each fork, RSI its length: 0 for none, at most [`MESSAGE_MAX`], and it must lie in one page that the guest may
    /// write. It returns in every fork, with the length of the message that was put into the buffer, or once with an
    /// [`Error`] where the host does not freeze the guest.
    Freeze = 4,
    /// Asks which pages were written since they were last told, by the guest or by the hypervisor for it, or ever. RDX is
    /// the guest-physical address of a page, RSI a number of pages from there on, at most [`HARVEST_MAX`], all of them
    /// memory of the guest. RDI is the GVA of a bitmap of as many bits, rounded up to bytes: bit `n % 8` of byte `n / 8` is
    /// set if page `n` was written. Returns how many bits it set, or an [`Error`].
    ///
    /// The bitmap is written too. Pages with page tables of the guest count as written where the CPU notes writes, as it
    /// takes its use of them for writes. Where the CPU does not, more pages may be told: such as were only made writable, or
    /// were written in a run before the fork was reset.
    ///
    /// A fork, and one that was reset, begins with none: it is not told what was written before the guest was frozen.
    HarvestDirty = 5,
    /// Gives back what was written to the RSI pages, at most [`CHANGE_MAX`], from guest-physical address RDI on, all of
    /// them memory of the guest. They hold again what they held before the first write: zeroes, or the data that was mapped
    /// there; in a fork, too, zeroes rather than what the template had. They do not count as written by that. Read-only
    /// memory of a device is not given back. Returns 0 or an [`Error`].
    Discard = 6,
    /// Sets what may be done to the RSI pages, at most [`CHANGE_MAX`], from guest-physical address RDI on, all of them
    /// memory of the guest, whatever its own tables allow: RDX is made of [`MAY_READ`], which must be there,
    /// [`MAY_WRITE`] and [`MAY_EXECUTE`]. At first everything may be done to memory, but for writes to data that was mapped
    /// with `:ro`; to ask for those is [`Error::NotPermitted`]. Returns 0 or an [`Error`]; [`Error::NoSpace`] where memory
    /// would have too many different parts.
    ///
    /// A guest that does what it may not is stopped. Where the CPU takes its use of page tables for writes, pages with
    /// tables that are in use must stay writable.
    Protect = 7,
    /// The same as [`Call::Figure`] for a number of things.
    Count = 8,
}

impl Call {
    /// The call a guest asks for by `number`, if there is one.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nop),
            1 => Some(Self::Exit),
            2 => Some(Self::Print),
            3 => Some(Self::Figure),
            4 => Some(Self::Freeze),
            5 => Some(Self::HarvestDirty),
            6 => Some(Self::Discard),
            7 => Some(Self::Protect),
            8 => Some(Self::Count),
            _ => None,
        }
    }
}

/// What a failed call leaves in RAX: a negative number, as in Linux system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Error {
    /// There is no such call (ENOSYS).
    NoSuchCall = -38,
    /// A pointer or length is not in memory that the guest can read (EFAULT).
    BadAddress = -14,
    /// An argument is out of its range (EINVAL).
    Invalid = -22,
    /// The call may only come from CPL 0, or is about more than the guest may ever do (EPERM).
    NotPermitted = -1,
    /// A table of the hypervisor is full (ENOSPC).
    NoSpace = -28,
    /// The host did not do it, and may another time (EAGAIN).
    NotNow = -11,
}

impl Error {
    /// The error that a call left in RAX, if it failed. What no error has as its number counts as [`Error::Invalid`].
    pub const fn from_rax(rax: i64) -> Option<Self> {
        match rax {
            0.. => None,
            -38 => Some(Self::NoSuchCall),
            -28 => Some(Self::NoSpace),
            -14 => Some(Self::BadAddress),
            -11 => Some(Self::NotNow),
            -1 => Some(Self::NotPermitted),
            _ => Some(Self::Invalid),
        }
    }
}

/// What a call leaves in RAX.
pub const fn to_rax(result: Result<u64, Error>) -> u64 {
    match result {
        Ok(value) => value,
        Err(error) => error as i64 as u64,
    }
}

/// The most bytes one [`Call::Print`] takes.
pub const PRINT_MAX: usize = 1024;

/// The most lines that one [`Call::Print`] ends.
pub const PRINT_LINES_MAX: usize = 128;
/// The longest name of a [`Call::Figure`].
pub const FIGURE_NAME_MAX: usize = 32;
/// The most pages that one [`Call::HarvestDirty`] tells of: 2 MiB.
pub const HARVEST_MAX: u64 = 512;

/// The most pages that one [`Call::Discard`] or [`Call::Protect`] changes: 1 MiB.
pub const CHANGE_MAX: u64 = 256;
/// To [`Call::Protect`]: the guest may read.
pub const MAY_READ: u64 = 1 << 0;
/// To [`Call::Protect`]: the guest may write.
pub const MAY_WRITE: u64 = 1 << 1;
/// To [`Call::Protect`]: the guest may execute.
pub const MAY_EXECUTE: u64 = 1 << 2;

/// The most devices of the machine that a guest is given.
pub const PASSTHROUGH_MAX: usize = 4;

/// The longest message to a fork ([`Call::Freeze`]).
pub const MESSAGE_MAX: usize = 4096;

/// The first CPUID leaf of the hypervisor range: EAX is the highest leaf of the range, EBX, ECX and EDX spell
/// [`CPUID_VENDOR`].
pub const CPUID_BASE: u32 = 0x4000_0000;
/// The leaf that gives the version of this interface in EAX, and in EBX what guests may do on this machine:
/// [`CPUID_MAY_LEAVE_PAGING`].
pub const CPUID_VERSION: u32 = 0x4000_0001;
/// The leaf that tells forks apart: EAX is the generation (0 of a guest that is no fork, 1 of a fork, 2 of a fork of what
/// such a fork became, and so on), EBX the low half of the fork's number.
pub const CPUID_FORK: u32 = 0x4000_0002;
/// EBX of leaf [`CPUID_VERSION`]: a guest may switch paging and protection off, and so change to 32-bit and real
/// mode. Where it may not, the attempt ends it.
pub const CPUID_MAY_LEAVE_PAGING: u32 = 1 << 0;
/// The vendor name in leaf [`CPUID_BASE`].
pub const CPUID_VENDOR: [u8; 12] = *b"OffshootHVM ";
/// The version of this interface.
pub const VERSION: u32 = 1;

/// The COM1 data port, whose output goes to the console line by line.
pub const COM1: u16 = 0x3f8;

/// What a guest is told at its start. It lies in a page that the guest may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StartInfo {
    /// [`StartInfo::MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Size of this structure in bytes; a later version only adds to its end.
    pub size: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// First address of the heap: memory of the guest, readable and writable, that nothing has touched.
    pub heap: u64,
    /// Bytes of heap.
    pub heap_len: u64,
    /// Lowest address of the stack. The page below it is the guard page.
    pub stack: u64,
    /// Bytes of stack.
    pub stack_len: u64,
    /// Guest-physical address of the root table.
    pub root: u64,
    /// Where the data begins that was mapped with `map=`: behind the guest's memory, at a multiple of 2 MiB. 0 if there
    /// is none. It may be read and, unless mapped with `:ro`, written; what is written there is the guest's own.
    pub data: u64,
    /// Bytes of that data. What follows them in their last page reads as zero.
    pub data_len: u64,
    /// Guest-physical address of the [`test_device`], 0 if there is none. It is not mapped.
    pub test_device: u64,
    /// The devices of the machine that the guest was given with `passthrough=`, in that order; then zeroes. They are not
    /// mapped.
    pub passthrough: [Device; PASSTHROUGH_MAX],
}

/// A device of the machine that a guest was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// Its address, guest-physical as well as in the machine.
    pub start: u64,
    /// Its bytes, whole pages; 0: there is none.
    pub len: u64,
}

impl StartInfo {
    /// "Offshoot" as bytes.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"Offshoot");
}

/// The device of a guest with the option `testdev`: device memory that remembers what is written to it, with counters.
/// For tests of what accesses device memory.
///
/// It begins at the guest-physical address [`StartInfo::test_device`], behind memory and data, and is not mapped by the
/// tables that a guest starts with. Two pages of device memory hold [`test_device::MEMORY`] bytes over and over again, and the
/// registers at [`test_device::REGISTERS`]. One page of ROM follows, of zeroes: what is written there is counted.
pub mod test_device {
    /// Pages of device memory.
    pub const PAGES: u64 = 2;
    /// Bytes that are remembered. Offset `x` is the same as offset `x % MEMORY`.
    pub const MEMORY: u64 = 128;
    /// Offset of the registers, 8 bytes each. They can be read in any width; a write to any of them resets all.
    /// Accesses to them are not counted.
    pub const REGISTERS: u64 = 0x800;
    /// Register 0: [`MAGIC`].
    pub const ID: u64 = REGISTERS;
    /// Register 1: how many reads there were.
    pub const READS: u64 = REGISTERS + 8;
    /// Register 2: how many writes there were.
    pub const WRITES: u64 = REGISTERS + 16;
    /// Register 3: offset of the last access.
    pub const LAST_OFFSET: u64 = REGISTERS + 24;
    /// Register 4: what the last access read or wrote.
    pub const LAST_VALUE: u64 = REGISTERS + 32;
    /// Register 5: widths of the last eight accesses in bytes, the last in the low byte; bit 7 of each: a write.
    pub const WIDTHS: u64 = REGISTERS + 40;
    /// Register 6: how many writes to the ROM there were.
    pub const ROM_WRITES: u64 = REGISTERS + 48;
    /// The first offset after the registers.
    pub const REGISTERS_END: u64 = REGISTERS + 56;
    /// Offset of the ROM.
    pub const ROM: u64 = PAGES * 4096;
    /// What [`ID`] reads: "testdev" as bytes.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"testdev\0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_sees_the_error_that_the_host_returned() {
        for error in [
            Error::NoSuchCall,
            Error::BadAddress,
            Error::Invalid,
            Error::NotPermitted,
            Error::NoSpace,
            Error::NotNow,
        ] {
            assert_eq!(Error::from_rax(to_rax(Err(error)) as i64), Some(error));
        }
        for value in [0, 1, HARVEST_MAX, i64::MAX as u64] {
            assert_eq!(Error::from_rax(to_rax(Ok(value)) as i64), None);
        }
        assert_eq!(Error::from_rax(i64::MIN), Some(Error::Invalid));
    }
}
