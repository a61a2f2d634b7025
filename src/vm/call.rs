//! The calls a guest makes with VMCALL.
//!
//! Arguments are claims: a pointer is followed through the guest's own tables, and what it points to is copied once,
//! then checked and used. A call that is refused does nothing.

use offshoot_abi::{
    CHANGE_MAX, Call, Error, FIGURE_NAME_MAX, HARVEST_MAX, MAY_EXECUTE, MAY_READ, MAY_WRITE,
    MESSAGE_MAX, PRINT_LINES_MAX, PRINT_MAX, to_rax,
};

use super::figure::{FigureName, Unit};
use super::virtual_memory::{Locate, VirtualMemory};
use crate::addr::{AddrRange, Address, Gpa, Gva, PAGE_SIZE};

/// The registers of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRegisters {
    /// The number.
    pub rax: u64,
    /// The first argument.
    pub rdi: u64,
    /// The second.
    pub rsi: u64,
    /// The third.
    pub rdx: u64,
}

impl CallRegisters {
    /// The registers of code that is not 64-bit code: what the upper halves hold is left over.
    pub const fn lower_halves(self) -> Self {
        const LOWER: u64 = 0xffff_ffff;
        Self {
            rax: self.rax & LOWER,
            rdi: self.rdi & LOWER,
            rsi: self.rsi & LOWER,
            rdx: self.rdx & LOWER,
        }
    }
}

/// Where the effects of calls go.
pub trait CallSink {
    /// Prints bytes on the console.
    fn print(&mut self, bytes: &[u8]);
    /// Files a figure. `false` where there is no room.
    fn figure(&mut self, name: FigureName, value: u64, unit: Unit) -> bool;
}

/// A request for the dirty pages of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HarvestRequest {
    /// Where the guest wants the bitmap.
    pub bitmap: Gva,
    /// The first page.
    pub first: Gpa,
    /// How many, at most [`HARVEST_MAX`].
    pub pages: u64,
}

/// What a guest wants to be able to do to memory, beside reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Writing.
    pub write: bool,
    /// Executing.
    pub execute: bool,
}

impl Permissions {
    fn decode(bits: u64) -> Result<Self, Error> {
        let known = MAY_READ | MAY_WRITE | MAY_EXECUTE;
        if bits & MAY_READ == 0 || bits & !known != 0 {
            return Err(Error::Invalid);
        }
        Ok(Self {
            write: bits & MAY_WRITE != 0,
            execute: bits & MAY_EXECUTE != 0,
        })
    }
}

/// What comes after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCall {
    /// The guest goes on behind the VMCALL, with this in RAX.
    Return(u64),
    /// The guest has ended, with this status.
    Exit(u64),
    /// The guest asks to be frozen, with room for a message here.
    Freeze(AddrRange<Gpa>),
    /// The guest goes on when it was told its dirty pages.
    HarvestDirty(HarvestRequest),
    /// The guest goes on when what is in these pages was given back.
    Discard(AddrRange<Gpa>),
    /// The guest goes on when these pages have other permissions.
    Protect(AddrRange<Gpa>, Permissions),
}

/// Carries out a call.
pub fn call<M: VirtualMemory + Locate>(
    registers: CallRegisters,
    cpl: u8,
    memory: &mut M,
    sink: &mut impl CallSink,
) -> AfterCall {
    let result = match Call::from_number(registers.rax) {
        _ if cpl != 0 => Err(Error::NotPermitted),
        None => Err(Error::NoSuchCall),
        Some(Call::Nop) => Ok(0),
        Some(Call::Exit) => return AfterCall::Exit(registers.rdi),
        Some(Call::Print) => print(registers.rdi, registers.rsi, memory, sink),
        Some(Call::Figure) => figure(registers, Unit::Ticks, memory, sink),
        Some(Call::Count) => figure(registers, Unit::Count, memory, sink),
        Some(Call::Freeze) => match message_buffer(registers, memory) {
            Ok(buffer) => return AfterCall::Freeze(buffer),
            Err(error) => Err(error),
        },
        Some(Call::HarvestDirty) if registers.rsi > HARVEST_MAX => Err(Error::Invalid),
        Some(Call::HarvestDirty) => {
            return AfterCall::HarvestDirty(HarvestRequest {
                bitmap: Gva::new(registers.rdi),
                first: Gpa::new(registers.rdx),
                pages: registers.rsi,
            });
        }
        Some(Call::Discard) => match pages(registers) {
            Ok(range) => return AfterCall::Discard(range),
            Err(error) => Err(error),
        },
        Some(Call::Protect) => match (pages(registers), Permissions::decode(registers.rdx)) {
            (Ok(range), Ok(permissions)) => return AfterCall::Protect(range, permissions),
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
    };
    AfterCall::Return(to_rax(result))
}

fn print<M: VirtualMemory>(
    at: u64,
    len: u64,
    memory: &mut M,
    sink: &mut impl CallSink,
) -> Result<u64, Error> {
    let taken = len.min(PRINT_MAX as u64);
    let mut bytes = [0; PRINT_MAX];
    let bytes = bytes.get_mut(..taken as usize).ok_or(Error::Invalid)?;
    memory
        .read(Gva::new(at), bytes)
        .map_err(|_| Error::BadAddress)?;
    let mut ends = (1..).zip(&*bytes).filter(|(_, byte)| **byte == b'\n');
    let last = ends.nth(PRINT_LINES_MAX - 1).map(|(len, _)| len);
    let bytes = bytes.get(..last.unwrap_or(bytes.len())).unwrap_or_default();
    sink.print(bytes);
    Ok(bytes.len() as u64)
}

fn figure<M: VirtualMemory>(
    registers: CallRegisters,
    unit: Unit,
    memory: &mut M,
    sink: &mut impl CallSink,
) -> Result<u64, Error> {
    let mut bytes = [0; FIGURE_NAME_MAX];
    let len = usize::try_from(registers.rsi).map_err(|_| Error::Invalid)?;
    let bytes = bytes.get_mut(..len).ok_or(Error::Invalid)?;
    memory
        .read(Gva::new(registers.rdi), bytes)
        .map_err(|_| Error::BadAddress)?;
    let name = FigureName::new(bytes).ok_or(Error::Invalid)?;
    if sink.figure(name, registers.rdx, unit) {
        Ok(0)
    } else {
        Err(Error::NoSpace)
    }
}

/// The pages that a call is to change.
fn pages(registers: CallRegisters) -> Result<AddrRange<Gpa>, Error> {
    let (first, pages) = (Gpa::new(registers.rdi), registers.rsi);
    if pages == 0 || pages > CHANGE_MAX || !first.is_aligned(PAGE_SIZE) {
        return Err(Error::Invalid);
    }
    AddrRange::new(first, pages * PAGE_SIZE).ok_or(Error::Invalid)
}

/// The room for a message: in one page, so that it is one range of the guest's memory.
fn message_buffer(
    registers: CallRegisters,
    memory: &mut impl Locate,
) -> Result<AddrRange<Gpa>, Error> {
    let (at, len) = (Gva::new(registers.rdi), registers.rsi);
    if len > MESSAGE_MAX as u64 || len > PAGE_SIZE - at.page_offset() {
        return Err(Error::Invalid);
    }
    let at = match len {
        0 => Gpa::new(0),
        _ => memory.locate(at).ok_or(Error::BadAddress)?,
    };
    AddrRange::new(at, len).ok_or(Error::BadAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes at 0x1000; each read of them changes them.
    struct Memory {
        bytes: Vec<u8>,
        reads: u32,
    }
    impl VirtualMemory for Memory {
        type Fault = ();
        fn read(&mut self, from: Gva, into: &mut [u8]) -> Result<(), ()> {
            self.reads += 1;
            let at = usize::try_from(from.as_u64().checked_sub(0x1000).ok_or(())?).unwrap();
            into.copy_from_slice(self.bytes.get(at..at + into.len()).ok_or(())?);
            self.bytes.fill(b'!');
            Ok(())
        }
        fn write(&mut self, _: Gva, _: &[u8]) -> Result<(), ()> {
            panic!("no call writes")
        }
    }
    impl Locate for Memory {
        fn locate(&mut self, at: Gva) -> Option<Gpa> {
            let gpa = Gpa::new(at.as_u64().checked_add(0x70_0000)?);
            (at.as_u64() >= 0x1000).then_some(gpa)
        }
    }

    #[derive(Default)]
    struct Sink {
        printed: Vec<u8>,
        figures: Vec<(String, u64, Unit)>,
        full: bool,
    }
    impl CallSink for Sink {
        fn print(&mut self, bytes: &[u8]) {
            self.printed.extend(bytes);
        }
        fn figure(&mut self, name: FigureName, value: u64, unit: Unit) -> bool {
            self.figures.push((name.to_string(), value, unit));
            !self.full
        }
    }

    fn at_cpl(cpl: u8, text: &[u8], [rax, rdi, rsi, rdx]: [u64; 4]) -> (AfterCall, Sink, u32) {
        let mut memory = Memory {
            bytes: text.to_vec(),
            reads: 0,
        };
        let mut sink = Sink::default();
        let after = call(
            CallRegisters { rax, rdi, rsi, rdx },
            cpl,
            &mut memory,
            &mut sink,
        );
        (after, sink, memory.reads)
    }
    fn kernel(text: &[u8], registers: [u64; 4]) -> (AfterCall, Sink) {
        let (after, sink, reads) = at_cpl(0, text, registers);
        assert!(reads <= 1, "fetched more than once");
        (after, sink)
    }
    fn error(error: Error) -> AfterCall {
        AfterCall::Return(error as i64 as u64)
    }

    #[test]
    fn the_calls_do_what_they_say() {
        assert_eq!(kernel(b"", [0, 9, 9, 9]).0, AfterCall::Return(0));
        assert_eq!(kernel(b"", [1, 42, 0, 0]).0, AfterCall::Exit(42));
        let (after, sink) = kernel(b"hello\n", [2, 0x1000, 5, 0]);
        assert_eq!(
            (after, &sink.printed[..]),
            (AfterCall::Return(5), &b"hello"[..])
        );
        for (number, unit) in [(3, Unit::Ticks), (8, Unit::Count)] {
            let (after, sink) = kernel(b"exit.cpuid", [number, 0x1000, 10, 123]);
            assert_eq!(
                (after, sink.figures),
                (AfterCall::Return(0), vec![("exit.cpuid".into(), 123, unit)])
            );
        }
    }

    #[test]
    fn outside_64_bit_code_the_lower_halves_are_the_arguments() {
        let stale = 0xdead_beef << 32;
        let registers = CallRegisters {
            rax: stale | 2,
            rdi: stale | 0x1000,
            rsi: stale | 5,
            rdx: stale,
        };
        let CallRegisters { rax, rdi, rsi, rdx } = registers.lower_halves();
        let (after, sink) = kernel(b"hello", [rax, rdi, rsi, rdx]);
        assert_eq!(
            (after, &sink.printed[..]),
            (AfterCall::Return(5), &b"hello"[..])
        );
    }

    #[test]
    fn a_request_for_dirty_pages_is_bounded() {
        let request = HarvestRequest {
            bitmap: Gva::new(0x1234),
            first: Gpa::new(0x5000),
            pages: HARVEST_MAX,
        };
        let (after, _) = kernel(b"", [5, 0x1234, HARVEST_MAX, 0x5000]);
        assert_eq!(after, AfterCall::HarvestDirty(request));
        for pages in [HARVEST_MAX + 1, 1 << 32, u64::MAX] {
            assert_eq!(kernel(b"", [5, 0, pages, 0]).0, error(Error::Invalid));
        }
    }

    #[test]
    fn changes_are_of_whole_pages_and_bounded() {
        let range = |start, pages| AddrRange::new(Gpa::new(start), pages * PAGE_SIZE).unwrap();
        let last = u64::MAX - 0xfff;
        for (start, pages) in [(0, 1), (0x5000, CHANGE_MAX), (last, 1)] {
            let discard = kernel(b"", [6, start, pages, u64::MAX]).0;
            assert_eq!(discard, AfterCall::Discard(range(start, pages)));
            for (bits, write, execute) in [
                (1, false, false),
                (3, true, false),
                (5, false, true),
                (7, true, true),
            ] {
                let permissions = Permissions { write, execute };
                let protect = kernel(b"", [7, start, pages, bits]).0;
                assert_eq!(
                    protect,
                    AfterCall::Protect(range(start, pages), permissions)
                );
            }
        }
        for number in [6, 7] {
            for (start, pages) in [
                (0, 0),
                (0, CHANGE_MAX + 1),
                (0, 1 << 52),
                (0, u64::MAX),
                (1, 1),
                (0xfff, 1),
                (last, 2),
            ] {
                let after = kernel(b"", [number, start, pages, 7]).0;
                assert_eq!(after, error(Error::Invalid), "{start:#x} {pages:#x}");
            }
        }
        for bits in [0, 2, 4, 6, 8, 9, 1 << 32 | 1, 1 << 63 | 7, u64::MAX] {
            let after = kernel(b"", [7, 0x1000, 1, bits]).0;
            assert_eq!(after, error(Error::Invalid), "{bits:#x}");
        }
    }

    #[test]
    fn a_freeze_is_asked_for_with_room_in_one_page_or_none() {
        let freeze = |at: u64, len: u64| kernel(b"", [4, at, len, 0]).0;
        let buffer = |at, len| AfterCall::Freeze(AddrRange::new(Gpa::new(at), len).unwrap());
        assert_eq!(freeze(0x1000, 0x1000), buffer(0x70_1000, 0x1000));
        assert_eq!(freeze(0x1fff, 1), buffer(0x70_1fff, 1));
        assert_eq!(freeze(0, 0), buffer(0, 0));
        assert_eq!(freeze(u64::MAX, 0), buffer(0, 0));
        for (at, len) in [
            (0x1000, 0x1001),
            (0x1fff, 2),
            (0x1000, u64::MAX),
            (u64::MAX, 2),
        ] {
            assert_eq!(freeze(at, len), error(Error::Invalid), "{at:#x} {len:#x}");
        }
        assert_eq!(freeze(0, 8), error(Error::BadAddress));
    }

    #[test]
    fn unknown_numbers_are_refused() {
        for number in [9, 10, 1 << 32, 1 << 32 | 1, 1 << 63, u64::MAX] {
            assert_eq!(
                kernel(b"", [number, 0, 0, 0]).0,
                error(Error::NoSuchCall),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn only_the_kernel_may_call() {
        for number in 0..8 {
            let (after, sink, reads) = at_cpl(3, b"text", [number, 0x1000, 4, 0]);
            assert_eq!(after, error(Error::NotPermitted));
            assert!(sink.printed.is_empty() && sink.figures.is_empty() && reads == 0);
        }
    }

    #[test]
    fn lengths_are_bounded_and_pointers_checked() {
        let long = vec![b'x'; 3000];
        for len in [1024, 1025, 3000, 1 << 32, u64::MAX] {
            let (after, sink) = kernel(&long, [2, 0x1000, len, 0]);
            assert_eq!(
                (after, sink.printed.len()),
                (AfterCall::Return(1024), 1024),
                "{len:#x}"
            );
        }
        assert_eq!(kernel(b"", [2, 0x1000, 0, 0]).0, AfterCall::Return(0));
        // Many short lines take as long as a long text.
        for (text, taken) in [
            (vec![b'\n'; 1024], 128),
            (b"ab\n".repeat(200), 384),
            (b"ab\n".repeat(128), 384),
        ] {
            let (after, sink) = kernel(&text, [2, 0x1000, text.len() as u64, 0]);
            assert_eq!(
                (after, sink.printed.len()),
                (AfterCall::Return(taken), taken as usize)
            );
        }
        for (at, len) in [(0, 1), (0x1000, 5), (0x1003, 2), (0x1004, 1), (0xfff, 1)] {
            let (after, sink) = kernel(b"text", [2, at, len, 0]);
            assert_eq!(after, error(Error::BadAddress), "{at:#x} {len}");
            assert!(sink.printed.is_empty(), "part of it was printed");
        }
        for len in [33, 1 << 32, u64::MAX] {
            assert_eq!(kernel(&long, [3, 0x1000, len, 0]).0, error(Error::Invalid));
        }
        assert_eq!(kernel(b"ab", [3, 0x1000, 3, 0]).0, error(Error::BadAddress));
    }

    #[test]
    fn bad_names_and_a_full_table() {
        for name in ["", "Upper", "a b", "a\"b", "\0"] {
            let len = name.len() as u64;
            let (after, sink) = kernel(name.as_bytes(), [3, 0x1000, len, 0]);
            assert_eq!(after, error(Error::Invalid), "{name:?}");
            assert!(sink.figures.is_empty());
        }
        let mut memory = Memory {
            bytes: b"a".to_vec(),
            reads: 0,
        };
        let mut sink = Sink {
            full: true,
            ..Sink::default()
        };
        let registers = CallRegisters {
            rax: 3,
            rdi: 0x1000,
            rsi: 1,
            rdx: 0,
        };
        assert_eq!(
            call(registers, 0, &mut memory, &mut sink),
            error(Error::NoSpace)
        );
    }
}
