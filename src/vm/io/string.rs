//! INS and OUTS: port accesses from and to memory, repeated as often as the guest says, but only so often at one exit.

use super::super::repetition::{AT_ONCE, AddressSize, Steps};
use super::super::virtual_memory::VirtualMemory;
use super::Ports;
use crate::addr::{Address, Gva, PAGE_SIZE};
use crate::vmx::qualification::IoAccess;

/// An INS or OUTS at an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// Port, size, direction, repetition.
    pub access: IoAccess,
    /// The width of its addresses.
    pub address_size: AddressSize,
    /// The guest-linear address field: where the first element is.
    pub linear: Gva,
    /// RDI of INS, RSI of OUTS.
    pub index: u64,
    /// RCX.
    pub rcx: u64,
    /// RFLAGS.DF: addresses go down.
    pub down: bool,
    /// RFLAGS.TF: it stops after each element.
    pub stepped: bool,
}

/// The registers after some elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringProgress {
    /// RDI of INS, RSI of OUTS.
    pub index: u64,
    /// RCX.
    pub rcx: u64,
    /// Whether the instruction is done; else it is executed again.
    pub done: bool,
}

impl StringIo {
    /// Moves some elements. When one faults, those before it stand, and `fault` comes with the progress so far: the
    /// registers are updated, then the exception is raised.
    pub fn step<M: VirtualMemory>(
        &self,
        ports: &mut Ports,
        memory: &mut M,
        mut print: impl FnMut(u8),
    ) -> (StringProgress, Option<M::Fault>) {
        let count = self.elements();
        for element in 0..count {
            if let Err(fault) = self.element(element, ports, memory, &mut print) {
                return (self.after(element), Some(fault));
            }
        }
        (self.after(count), None)
    }

    /// How many elements this exit moves. Only the first address is known to be within its segment and to not wrap, so
    /// further ones are for 64-bit addresses, within the page.
    fn elements(&self) -> u64 {
        if !self.access.rep {
            return 1;
        }
        let most = if self.stepped { 1 } else { AT_ONCE };
        let size = self.access.size as u64;
        let offset = self.linear.page_offset();
        let in_page = match (self.address_size, self.down) {
            (AddressSize::Bits64, false) => (PAGE_SIZE - offset) / size,
            (AddressSize::Bits64, true) => offset / size + 1,
            _ => 1,
        };
        self.steps().left(self.rcx).min(in_page.clamp(1, most))
    }

    const fn steps(&self) -> Steps {
        Steps {
            address_size: self.address_size,
            bytes: self.access.size as u64,
            down: self.down,
            rep: self.access.rep,
        }
    }

    fn element<M: VirtualMemory>(
        &self,
        element: u64,
        ports: &mut Ports,
        memory: &mut M,
        print: &mut impl FnMut(u8),
    ) -> Result<(), M::Fault> {
        let IoAccess {
            port, size, input, ..
        } = self.access;
        let at = Gva::new(self.steps().moved(self.linear.as_u64(), element));
        let mut bytes = [0; 4];
        let (used, _) = bytes.split_at_mut(size as usize);
        if input {
            // A guest that reads a port has no other effect here, so a fault after it loses nothing.
            used.copy_from_slice(
                ports
                    .read(port, size)
                    .to_le_bytes()
                    .split_at(size as usize)
                    .0,
            );
            memory.write(at, used)
        } else {
            memory.read(at, used)?;
            ports.write(port, size, u32::from_le_bytes(bytes), print);
            Ok(())
        }
    }

    fn after(&self, elements: u64) -> StringProgress {
        let steps = self.steps();
        StringProgress {
            index: steps.index_after(self.index, elements),
            rcx: steps.rcx_after(self.rcx, elements),
            done: steps.left(self.rcx) == elements,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::qualification::IoSize;
    use offshoot_abi::COM1;

    /// Memory up to `end`.
    struct Memory {
        bytes: Vec<u8>,
        accesses: u64,
    }
    impl Memory {
        fn new(len: usize) -> Self {
            Self {
                bytes: (0..len).map(|i| i as u8).collect(),
                accesses: 0,
            }
        }
        fn range(&mut self, at: Gva, len: usize) -> Option<&mut [u8]> {
            self.accesses += 1;
            let at = usize::try_from(at.as_u64()).ok()?;
            self.bytes.get_mut(at..at.checked_add(len)?)
        }
    }
    impl VirtualMemory for Memory {
        type Fault = ();
        fn read(&mut self, from: Gva, into: &mut [u8]) -> Result<(), ()> {
            let len = into.len();
            into.copy_from_slice(self.range(from, len).ok_or(())?);
            Ok(())
        }
        fn write(&mut self, to: Gva, bytes: &[u8]) -> Result<(), ()> {
            self.range(to, bytes.len())
                .ok_or(())?
                .copy_from_slice(bytes);
            Ok(())
        }
    }

    fn instruction(port: u16, size: IoSize, input: bool, rep: bool) -> StringIo {
        StringIo {
            access: IoAccess {
                port,
                size,
                input,
                string: true,
                rep,
                immediate: false,
            },
            address_size: AddressSize::Bits64,
            linear: Gva::new(0x100),
            index: 0x100,
            rcx: 5,
            down: false,
            stepped: false,
        }
    }
    fn step(io: StringIo, memory: &mut Memory) -> (StringProgress, bool, Vec<u8>) {
        let mut sent = Vec::new();
        let (progress, fault) = io.step(&mut Ports::default(), memory, |byte| sent.push(byte));
        (progress, fault.is_some(), sent)
    }

    #[test]
    fn a_single_stepped_repetition_stops_after_each_element() {
        let mut memory = Memory::new(0x200);
        let mut io = StringIo {
            stepped: true,
            ..instruction(COM1, IoSize::Byte, false, true)
        };
        for left in (0..5).rev() {
            let (progress, faulted, printed) = step(io, &mut memory);
            assert!(!faulted);
            assert_eq!((progress.rcx, progress.done), (left, left == 0));
            assert_eq!(printed, [io.linear.as_u64() as u8]);
            (io.rcx, io.index) = (progress.rcx, progress.index);
            io.linear = Gva::new(io.index);
        }
    }

    #[test]
    fn rep_outsb_prints_a_string() {
        let io = instruction(COM1, IoSize::Byte, false, true);
        let (progress, fault, sent) = step(io, &mut Memory::new(0x1000));
        assert_eq!(
            progress,
            StringProgress {
                index: 0x105,
                rcx: 0,
                done: true
            }
        );
        assert_eq!((fault, sent), (false, vec![0, 1, 2, 3, 4]));
        let down = StringIo {
            down: true,
            rcx: 2,
            ..io
        };
        let (progress, _, sent) = step(down, &mut Memory::new(0x1000));
        assert_eq!((progress.index, sent), (0xfe, vec![0, 0xff]));
    }

    #[test]
    fn without_rep_there_is_one_element() {
        let io = instruction(0x80, IoSize::Word, true, false);
        let mut memory = Memory::new(0x1000);
        let (progress, ..) = step(io, &mut memory);
        assert_eq!(
            progress,
            StringProgress {
                index: 0x102,
                rcx: 5,
                done: true
            }
        );
        assert_eq!(memory.bytes[0xfe..0x104], [0xfe, 0xff, 0xff, 0xff, 2, 3]);
    }

    #[test]
    fn a_huge_count_is_bounded_work_at_each_exit() {
        for (rcx, size) in [
            (u64::MAX, AddressSize::Bits64),
            (u64::MAX, AddressSize::Bits32),
            (1 << 63, AddressSize::Bits64),
        ] {
            let io = StringIo {
                rcx,
                address_size: size,
                ..instruction(0x80, IoSize::Dword, true, true)
            };
            let mut memory = Memory::new(0x1000);
            let (progress, fault, _) = step(io, &mut memory);
            assert!(memory.accesses <= AT_ONCE && !fault && !progress.done);
            assert_eq!(progress.rcx, (rcx & size.mask()) - memory.accesses);
        }
    }

    #[test]
    fn a_count_of_zero_in_the_address_size_does_nothing() {
        let io = instruction(COM1, IoSize::Byte, false, true);
        for (rcx, address_size) in [
            (0, AddressSize::Bits64),
            (1 << 32, AddressSize::Bits32),
            (1 << 16, AddressSize::Bits16),
        ] {
            let mut memory = Memory::new(0x1000);
            let (progress, ..) = step(
                StringIo {
                    rcx,
                    address_size,
                    ..io
                },
                &mut memory,
            );
            assert!(progress.done);
            assert_eq!(memory.accesses, 0);
        }
    }

    #[test]
    fn addresses_wrap_in_their_size() {
        let io = StringIo {
            index: 0xabcd_0000_ffff_ffff,
            rcx: 0xabcd_0000_0000_0002,
            ..instruction(0x80, IoSize::Byte, true, true)
        };
        let mut memory = Memory::new(0x1000);
        let progress =
            |address_size, memory: &mut Memory| step(StringIo { address_size, ..io }, memory).0;
        let in_16 = progress(AddressSize::Bits16, &mut memory);
        assert_eq!(
            (in_16.index, in_16.rcx, in_16.done),
            (0xabcd_0000_ffff_0000, 0xabcd_0000_0000_0001, false)
        );
        let in_32 = progress(AddressSize::Bits32, &mut memory);
        assert_eq!((in_32.index, in_32.rcx), (0, 1));
    }

    #[test]
    fn a_fault_keeps_what_was_done_before_it() {
        // The second page is not there.
        let io = StringIo {
            linear: Gva::new(0xffd),
            index: 0xffd,
            rcx: 9,
            ..instruction(COM1, IoSize::Byte, false, true)
        };
        let mut memory = Memory::new(0x1000);
        let (progress, fault, sent) = step(io, &mut memory);
        assert_eq!(
            (progress, fault, sent.len()),
            (
                StringProgress {
                    index: 0x1000,
                    rcx: 6,
                    done: false
                },
                false,
                3
            )
        );
        let next = StringIo {
            linear: Gva::new(0x1000),
            index: progress.index,
            rcx: progress.rcx,
            ..io
        };
        let (progress, fault, sent) = step(next, &mut memory);
        assert_eq!(
            (progress, fault, sent.len()),
            (
                StringProgress {
                    index: 0x1000,
                    rcx: 6,
                    done: false
                },
                true,
                0
            )
        );
        // An element that straddles into the hole is not written in part.
        let across = StringIo {
            linear: Gva::new(0xffe),
            ..instruction(0x80, IoSize::Dword, true, false)
        };
        let before = memory.bytes.clone();
        let (progress, fault, _) = step(across, &mut memory);
        assert!(fault && !progress.done && memory.bytes == before);
        assert_eq!((progress.index, progress.rcx), (0x100, 5));
    }

    #[test]
    fn address_sizes_from_the_exit() {
        let of = AddressSize::from_instruction_information;
        assert_eq!(
            [of(0), of(0x80), of(0x100)],
            [
                AddressSize::Bits16,
                AddressSize::Bits32,
                AddressSize::Bits64
            ]
        );
    }
}
