//! Tests of decoding and of the bus. That instructions do what the CPU makes of them is tested beside, against the CPU
//! itself, in `tests/mmio_oracle.rs`.

use super::super::loader::GuestMemory;
use super::super::repetition::AT_ONCE;
use super::super::virtual_memory::{Privilege, Translation, VirtualFault};
use super::devices::{MmioDevices, TEST_DEVICE, TEST_DEVICE_ROM};
use super::instruction::{Base, Op, Operand};
use super::*;
use crate::addr::Gpa;
use crate::virt::AccessRights;
use crate::virt::BreakpointHits;
use crate::virt::Breakpoints;
use crate::virt::io::AddressSize;
use crate::virt::{Gpr, GuestRegs};
use offshoot_abi::test_device::{LAST_OFFSET, LAST_VALUE, READS, WIDTHS, WRITES};

const PAGE: u64 = 4096;

/// Pages 0 and 1: RAM. 2 and 3: the test device. 4: its ROM. 5: RAM. 6: ROM without a handler. 7: a device that nobody
/// has. The rest: nothing.
struct Memory(Vec<u8>);

impl GuestMemory for Memory {
    type Error = &'static str;
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Self::Error> {
        let at = from.as_u64() as usize;
        into.copy_from_slice(self.0.get(at..at + into.len()).ok_or("outside")?);
        Ok(())
    }
    fn write(&mut self, to: Gpa, bytes: &[u8]) -> Result<(), Self::Error> {
        let at = to.as_u64() as usize;
        let place = self.0.get_mut(at..at + bytes.len()).ok_or("outside")?;
        place.copy_from_slice(bytes);
        Ok(())
    }
}

impl Places for Memory {
    fn place(&self, gpa: Gpa, write: bool) -> Result<Place, Self::Error> {
        let offset = |start: u64| gpa.as_u64() - start * PAGE;
        let (tag, offset) = match gpa.as_u64() / PAGE {
            0 | 1 | 5 => return Ok(Place::Memory),
            2 | 3 => (TEST_DEVICE, offset(2)),
            4 if write => (TEST_DEVICE_ROM, offset(4)),
            4 | 6 if !write => return Ok(Place::Memory),
            6 => return Err("denied"),
            7 => (99, offset(7)),
            _ => return Err("nothing"),
        };
        Ok(Place::Device { tag, offset })
    }
}

struct World {
    memory: Memory,
    devices: MmioDevices,
    sent: Vec<(u16, u64)>,
    received: u64,
}

/// What is read from a port is its number, and is counted; what is written is noted.
struct Ports<'w>(&'w mut Vec<(u16, u64)>, &'w mut u64);

impl PortAccess for Ports<'_> {
    fn input(&mut self, port: u16, width: Width) -> u64 {
        *self.1 += 1;
        (0x0101_0101_0101_0101 * u64::from(port as u8)) & width.mask()
    }
    fn output(&mut self, port: u16, _: Width, value: u64) {
        self.0.push((port, value));
    }
}

type Segments = fn(SegmentRegister) -> Result<Segment, ()>;

impl World {
    fn new() -> Self {
        Self {
            memory: Memory((0..8 * PAGE).map(|at| at as u8).collect()),
            devices: MmioDevices::default(),
            sent: Vec::new(),
            received: 0,
        }
    }
    /// A bus without paging. The CPU has translated nothing that is accessed.
    fn bus(&mut self) -> GuestBus<'_, Memory, Segments, Ports<'_>> {
        GuestBus {
            memory: &mut self.memory,
            devices: &mut self.devices,
            segments: |_| Ok(Segment::flat(0, AccessRights::DATA)),
            translation: &Translation::OFF,
            privilege: Privilege {
                user: false,
                write_protect: true,
                smap: false,
                smep: false,
            },
            translated: None,
            ports: Ports(&mut self.sent, &mut self.received),
            aligned: false,
            breakpoints: None,
            met: BreakpointHits::NONE,
            linear_mask: CodeMode::Bits64.linear_mask(),
        }
    }
    fn register(&mut self, offset: u64) -> u64 {
        let (device, base) = self.devices.get(TEST_DEVICE).unwrap();
        device.read(base + offset, Width::Qword)
    }
}

fn virtual_memory(address: u64, error: &'static str) -> BusFault<&'static str, ()> {
    BusFault::Virtual(VirtualFault::Memory(super::super::loader::MemoryFault {
        address: Gpa::new(address),
        error,
    }))
}

#[test]
fn an_access_arrives_whole_where_it_can() {
    let mut world = World::new();
    let device = 2 * PAGE;
    // Aligned and not, and across the two pages of the device.
    for offset in [0x10, 0x13, PAGE - 3] {
        for width in Width::ALL {
            let value = 0x8877_6655_4433_2211 & width.mask();
            world
                .bus()
                .write(Gva::new(device + offset), width, value)
                .unwrap();
            let read = world.bus().read(Gva::new(device + offset), width);
            assert_eq!(read, Ok(value));
            assert_eq!(world.register(LAST_OFFSET), offset);
            assert_eq!(
                world.register(WIDTHS) & 0xffff,
                (0x80 | width.bytes()) << 8 | width.bytes()
            );
        }
    }
    assert_eq!((world.register(READS), world.register(WRITES)), (12, 12));
}

#[test]
fn an_access_across_an_edge_is_split_and_checked_first() {
    let mut world = World::new();
    // Five bytes of RAM, three of the device: 2 and 1.
    let at = Gva::new(2 * PAGE - 5);
    world
        .bus()
        .write(at, Width::Qword, 0x0807_0605_0403_0201)
        .unwrap();
    assert_eq!(
        world.memory.0[2 * PAGE as usize - 5..][..5],
        [1, 2, 3, 4, 5]
    );
    assert_eq!(world.register(WIDTHS), 0x8281);
    assert_eq!(
        (world.register(LAST_OFFSET), world.register(LAST_VALUE)),
        (2, 8)
    );
    assert_eq!(
        world.bus().read(at, Width::Qword),
        Ok(0x0807_0605_0403_0201)
    );
    // Into ROM without a handler, into nothing, into a device that nobody has: neither half is written.
    for (at, fault) in [
        (6 * PAGE - 4, virtual_memory(6 * PAGE, "denied")),
        (6 * PAGE + 8, virtual_memory(6 * PAGE + 8, "denied")),
        (8 * PAGE - 4, BusFault::NoDevice(Gpa::new(8 * PAGE - 4))),
        (8 * PAGE, virtual_memory(8 * PAGE, "nothing")),
    ] {
        let before = world.memory.0.clone();
        assert_eq!(world.bus().write(Gva::new(at), Width::Qword, 0), Err(fault));
        assert_eq!(
            world.bus().may_write(Gva::new(at), Width::Qword),
            Err(fault)
        );
        assert_eq!(world.memory.0, before);
    }
    let reads = world.register(READS);
    let nowhere = Gva::new(7 * PAGE - 1);
    assert!(world.bus().read(nowhere, Width::Word).is_err());
    // A write that ends nowhere is not begun in the device.
    assert_eq!(world.register(READS), reads);
}

#[test]
fn the_translation_of_the_cpu_counts_for_its_page_and_its_right() {
    let mut world = World::new();
    let translated = |write, device| Translated {
        gva: Gva::new(0x7000_0000_0123),
        gpa: Gpa::new(2 * PAGE + 0x123),
        write,
        device,
    };
    // With the device known and without, it is the same.
    for device in [None, Some((TEST_DEVICE, 0x123))] {
        let mut bus = world.bus();
        let nowhere = Translation::four_level(Gpa::new(1 << 32));
        bus.translation = &nowhere; // whatever needs the tables fails
        let reported = translated(false, device);
        bus.translated = Some(&reported);
        assert!(bus.read(Gva::new(0x7000_0000_0010), Width::Dword).is_ok());
        assert!(
            bus.write(Gva::new(0x7000_0000_0010), Width::Dword, 0)
                .is_err()
        );
        assert!(bus.read(Gva::new(0x7000_0000_0fff), Width::Word).is_err());
        let reported = translated(true, device);
        bus.translated = Some(&reported);
        let last = Gva::new(0x7000_0000_0ffc);
        assert_eq!(bus.may_write(last, Width::Dword), Ok(()));
        assert_eq!(bus.write(last, Width::Dword, 0x1_2345_6789), Ok(()));
        assert!(bus.may_write(last, Width::Qword).is_err());
        assert_eq!(bus.read(last, Width::Dword), Ok(0x2345_6789));
        assert_eq!(world.register(LAST_OFFSET), 0xffc);
    }
    // A device that the guest does not have.
    let mut bus = world.bus();
    let reported = translated(true, Some((99, 0x123)));
    bus.translated = Some(&reported);
    let at = Gva::new(0x7000_0000_0010);
    let none = Err(BusFault::NoDevice(Gpa::new(2 * PAGE + 0x10)));
    assert_eq!(bus.read(at, Width::Byte).map(drop), none);
    assert_eq!(bus.write(at, Width::Byte, 0), none);
    assert_eq!(bus.may_write(at, Width::Byte), none);
}

#[test]
fn outside_64_bit_mode_an_access_goes_on_at_0_behind_4_gib() {
    let mut world = World::new();
    // The last page below 4 GiB is the second of the device, the first one is RAM.
    fn at_the_top(world: &mut World, mode: CodeMode) -> GuestBus<'_, Memory, Segments, Ports<'_>> {
        let mut bus = world.bus();
        bus.linear_mask = mode.linear_mask();
        bus.translated = Some(
            const {
                &Translated {
                    gva: Gva::new(0xffff_f000),
                    gpa: Gpa::new(3 * PAGE),
                    write: true,
                    device: None,
                }
            },
        );
        bus
    }
    let at = Gva::new(0xffff_fffe);
    let mut bus = at_the_top(&mut world, CodeMode::Bits64);
    let beyond = virtual_memory(1 << 32, "nothing");
    assert_eq!(bus.write(at, Width::Dword, 0x0403_0201), Err(beyond));
    for mode in [CodeMode::Bits32, CodeMode::Bits16] {
        let mut bus = at_the_top(&mut world, mode);
        assert_eq!(bus.write(at, Width::Dword, 0x0403_0201), Ok(()));
        assert_eq!(bus.read(at, Width::Dword), Ok(0x0403_0201));
    }
    assert_eq!(world.memory.0[..2], [3, 4]);
    assert_eq!(world.register(LAST_OFFSET), 2 * PAGE - 2);
    // The CPU may have reported either page.
    let store = decode(CodeMode::Bits32, &[0x89, 0x03]).unwrap(); // mov [ebx], eax
    for (reported, fits) in [(0xffff_f000, true), (0, true), (PAGE, false)] {
        let mut state = state(0);
        state.regs.set(Gpr::Rbx, 0xffe);
        let mut bus = at_the_top(&mut world, CodeMode::Bits32);
        bus.segments = |_| {
            Ok(Segment {
                base: 0xffff_f000,
                ..Segment::flat(0, AccessRights::DATA)
            })
        };
        let reported = Gva::new(reported);
        let done = execute(&store, CodeMode::Bits32, &mut state, reported, &mut bus);
        assert_eq!(done.is_ok(), fits, "{reported:#x}: {done:?}");
    }
}

#[test]
fn what_is_accessed_is_marked_in_the_tables() {
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = ACCESSED | 1 << 6;
    type Act = fn(&mut GuestBus<'_, Memory, Segments, Ports<'_>>);
    // The same 2 MiB at 2 GiB, and behind that again.
    const RAM: u64 = 0x8000_1800;
    const REGISTER: u64 = 0x8020_2008;
    let cases: [(Act, [u64; 4]); 7] = [
        // What is only asked about is not marked. What is read is accessed, what is written dirty.
        (
            |bus| bus.may_write(Gva::new(RAM), Width::Qword).unwrap(),
            [0; 4],
        ),
        (
            |bus| assert!(bus.read(Gva::new(RAM), Width::Qword).is_ok()),
            [ACCESSED, ACCESSED, ACCESSED, 0],
        ),
        (
            |bus| bus.write(Gva::new(RAM), Width::Qword, 7).unwrap(),
            [ACCESSED, ACCESSED, DIRTY, 0],
        ),
        // What the CPU has translated it has marked; but for a write it may not have.
        (
            |bus| assert!(bus.read(Gva::new(REGISTER), Width::Qword).is_ok()),
            [0; 4],
        ),
        (
            |bus| bus.write(Gva::new(REGISTER), Width::Qword, 7).unwrap(),
            [ACCESSED, ACCESSED, 0, DIRTY],
        ),
        // The tables say something else by now: the CPU has marked what it used.
        (
            |bus| {
                bus.translated = Some(
                    const {
                        &Translated {
                            gva: Gva::new(REGISTER),
                            gpa: Gpa::new(3 * PAGE),
                            write: true,
                            device: Some((TEST_DEVICE, 8)),
                        }
                    },
                );
                bus.write(Gva::new(REGISTER), Width::Qword, 7).unwrap();
            },
            [0; 4],
        ),
        // Into ROM: no page counts as written unless all can be.
        (
            |bus| {
                let at = Gva::new(0x8000_6000 - 4);
                bus.write(at, Width::Qword, 7).unwrap_err();
            },
            [0; 4],
        ),
    ];
    for (case, (act, expected)) in cases.into_iter().enumerate() {
        let mut world = World::new();
        world.memory.0.fill(0);
        // Root, PDPT and PD, all three in RAM.
        let entries = [
            (0, 0x1003),
            (0x1010, 0x5003),
            (0x5000, 0x83),
            (0x5008, 0x83),
        ];
        for (at, bits) in entries {
            world
                .memory
                .write(Gpa::new(at), &u64::to_le_bytes(bits))
                .unwrap();
        }
        let tables = Translation::four_level(Gpa::new(0));
        let mut bus = world.bus();
        bus.translation = &tables;
        bus.translated = Some(
            const {
                &Translated {
                    gva: Gva::new(REGISTER),
                    gpa: Gpa::new(2 * PAGE + 8),
                    write: true,
                    device: Some((TEST_DEVICE, 8)),
                }
            },
        );
        act(&mut bus);
        for ((at, bits), marks) in entries.into_iter().zip(expected) {
            let [found] = world.memory.words(Gpa::new(at)).unwrap();
            assert_eq!(found, bits | marks, "case {case}, entry at {at:#x}");
        }
    }
}

fn memory(instruction: &Instruction) -> instruction::MemoryOperand {
    match (instruction.first, instruction.second) {
        (Operand::Memory(memory), _) | (_, Operand::Memory(memory)) => memory,
        _ => panic!("no memory in {instruction:?}"),
    }
}

#[test]
fn addresses_of_every_mode_are_understood() {
    use CodeMode::{Bits16, Bits32, Bits64};
    use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
    let mut regs = GuestRegs::ZERO;
    for (number, gpr) in (1..).zip([Gpr::Rbx, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi, Gpr::Rsp]) {
        regs.set(gpr, 0xaaaa_0000_0000_0000 | number << 8);
    }
    regs.set(Gpr::R13, 0xffff_ffff_ffff_f000);
    let wide = 0xaaaa_0000_0000_0000;
    for (mode, bytes, segment, offset) in [
        // mov [rbx], eax and so on, by ModRM and SIB.
        (Bits64, &[0x89, 0x03][..], Ds, wide | 0x100),
        (Bits64, &[0x89, 0x45, 0x10], Ss, wide | 0x210),
        (Bits64, &[0x89, 0x04, 0x24], Ss, wide | 0x500),
        (Bits64, &[0x67, 0x89, 0x03], Ds, 0x100),
        (Bits64, &[0x67, 0x89, 0x43, 0xff], Ds, 0xff),
        (Bits64, &[0x41, 0x89, 0x85, 0, 0x20, 0, 0], Ds, 0x1000),
        (
            Bits64,
            &[0x89, 0x04, 0x25, 0, 0, 0, 0xff],
            Ds,
            0xffff_ffff_ff00_0000,
        ),
        (
            Bits64,
            &[0x67, 0x89, 0x04, 0x25, 0, 0, 0, 0xff],
            Ds,
            0xff00_0000,
        ),
        (
            Bits64,
            &[0x89, 0x04, 0x75, 4, 0, 0, 0],
            Ds,
            0x5554_0000_0000_0604,
        ),
        (
            Bits64,
            &[0x89, 0x05, 0xf0, 0xff, 0xff, 0xff],
            Ds,
            0x1_0000_0000 - 10,
        ),
        (
            Bits64,
            &[0x67, 0x89, 0x05, 0xf0, 0xff, 0xff, 0xff],
            Ds,
            0xffff_fff7,
        ),
        (Bits64, &[0x64, 0x89, 0x03], Fs, wide | 0x100),
        (Bits64, &[0x65, 0x3e, 0x89, 0x03], Gs, wide | 0x100),
        (Bits64, &[0x26, 0x89, 0x03], Ds, wide | 0x100),
        (
            Bits64,
            &[0xa2, 1, 2, 3, 4, 5, 6, 7, 8],
            Ds,
            0x0807_0605_0403_0201,
        ),
        (Bits32, &[0x89, 0x03], Ds, 0x100),
        (Bits32, &[0x89, 0x45, 0x10], Ss, 0x210),
        (Bits32, &[0x3e, 0x89, 0x45, 0x10], Ds, 0x210),
        (Bits32, &[0x2e, 0x89, 0x03], Cs, 0x100),
        (Bits32, &[0x89, 0x05, 0, 0, 0, 0xff], Ds, 0xff00_0000),
        (Bits32, &[0xa2, 0, 0, 0, 0xff], Ds, 0xff00_0000),
        (Bits32, &[0x89, 0x44, 0xb5, 0xfc], Ss, 0x200 + 0xc00 - 4),
        (Bits32, &[0x67, 0x89, 0x00], Ds, 0x400),
        (Bits32, &[0x67, 0x89, 0x06, 0x34, 0x82], Ds, 0x8234),
        (Bits16, &[0x89, 0x00], Ds, 0x400),
        (Bits16, &[0x89, 0x02], Ss, 0x500),
        (Bits16, &[0x36, 0x89, 0x05], Ss, 0x400),
        (Bits16, &[0x26, 0x89, 0x41, 0xff], Es, 0x4ff),
        (Bits16, &[0x89, 0x86, 0, 0xff], Ss, 0x100),
        (Bits16, &[0xa3, 0x34, 0x82], Ds, 0x8234),
        (Bits16, &[0x67, 0x66, 0x89, 0x45, 0x10], Ss, 0x210),
    ] {
        let instruction =
            decode(mode, bytes).unwrap_or_else(|error| panic!("{bytes:x?}: {error:?}"));
        assert_eq!(usize::from(instruction.length), bytes.len(), "{bytes:x?}");
        let operand = memory(&instruction);
        assert_eq!(operand.segment, segment, "{bytes:x?}");
        let next = 0x1_0000_0000 + bytes.len() as u64;
        let found = operand.offset(&regs, next, instruction.address_size);
        assert_eq!(found, offset, "{bytes:x?}: {found:#x}");
    }
}

#[test]
fn widths_and_repetitions_are_understood() {
    use CodeMode::{Bits16, Bits32, Bits64};
    for (mode, bytes, width, repeat, address_size) in [
        (
            Bits64,
            &[0xf3, 0x48, 0xa5][..],
            Width::Qword,
            Repeat::WhileEqual,
            AddressSize::Bits64,
        ),
        (
            Bits64,
            &[0xf3, 0x67, 0xaa],
            Width::Byte,
            Repeat::WhileEqual,
            AddressSize::Bits32,
        ),
        (
            Bits64,
            &[0x66, 0xf2, 0xaf],
            Width::Word,
            Repeat::WhileNotEqual,
            AddressSize::Bits64,
        ),
        (
            Bits32,
            &[0xf3, 0xa5],
            Width::Dword,
            Repeat::WhileEqual,
            AddressSize::Bits32,
        ),
        (
            Bits32,
            &[0x67, 0xac],
            Width::Byte,
            Repeat::No,
            AddressSize::Bits16,
        ),
        (
            Bits16,
            &[0xf3, 0xa5],
            Width::Word,
            Repeat::WhileEqual,
            AddressSize::Bits16,
        ),
        (
            Bits16,
            &[0x66, 0x67, 0xad],
            Width::Dword,
            Repeat::No,
            AddressSize::Bits32,
        ),
    ] {
        let instruction = decode(mode, bytes).unwrap();
        assert!(matches!(instruction.op, Op::String(_)));
        let found = (
            instruction.width,
            instruction.repeat,
            instruction.address_size,
        );
        assert_eq!(found, (width, repeat, address_size), "{bytes:x?}");
    }
    for (mode, bytes, width) in [
        (Bits16, &[0x89, 0x00][..], Width::Word),
        (Bits16, &[0x66, 0x89, 0x00], Width::Dword),
        (Bits32, &[0x66, 0x89, 0x00], Width::Word),
        (Bits64, &[0x48, 0x89, 0x00], Width::Qword),
        (Bits64, &[0x88, 0x20], Width::Byte),
    ] {
        assert_eq!(decode(mode, bytes).unwrap().width, width, "{bytes:x?}");
    }
}

#[test]
fn a_rex_prefix_counts_only_before_the_opcode() {
    let bit = decode(CodeMode::Bits64, &[0x48, 0x66, 0x0f, 0xba, 0x2b, 5]).unwrap();
    assert_eq!(bit.width, Width::Word);
    let bit = decode(CodeMode::Bits64, &[0x66, 0x48, 0x0f, 0xba, 0x2b, 5]).unwrap();
    assert_eq!(bit.width, Width::Qword);
    let load = decode(CodeMode::Bits64, &[0x48, 0x64, 0x8b, 0x03]).unwrap();
    assert_eq!(load.width, Width::Dword);
    assert_eq!(memory(&load).segment, SegmentRegister::Fs);
}

#[test]
fn what_is_not_carried_out_is_refused() {
    let not = Err(DecodeError::NotCarriedOut);
    for bytes in [
        &[0x0f, 0x10, 0x07][..],   // movups
        &[0x66, 0x0f, 0x6f, 0x07], // movdqa
        &[0xdd, 0x07],             // fld
        &[0xff, 0x37],             // push
        &[0xff, 0x17],             // call
        &[0x8e, 0x1f],             // mov ds
        &[0x8c, 0x1f],             // mov from ds
        &[0x48, 0x0f, 0xc7, 0x0f], // cmpxchg16b
        &[0x0f, 0xae, 0x27],       // xsave
        &[0xc1, 0x27, 3],          // shl
        &[0x6b, 0x07, 3],          // imul
        &[0xc5, 0xf8, 0x10, 0x07], // vmovups
        &[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x07],
    ] {
        assert_eq!(decode(CodeMode::Bits64, bytes), not, "{bytes:x?}");
    }
    let short = Err(DecodeError::TooShort);
    let whole = [0x66, 0x81, 0x84, 0x24, 1, 2, 3, 4, 5, 6];
    for len in 0..whole.len() {
        assert_eq!(decode(CodeMode::Bits64, &whole[..len]), short, "{len}");
    }
    assert!(decode(CodeMode::Bits64, &whole).is_ok());
    // LOCK where it may not stand, and more prefixes than fit.
    assert_eq!(
        decode(CodeMode::Bits64, &[0xf0, 0x89, 0x07]),
        Err(DecodeError::Invalid)
    );
    assert!(decode(CodeMode::Bits64, &[0x66; 15]).is_err());
}

fn state(rip: u64) -> State {
    State {
        regs: GuestRegs::ZERO,
        rip,
        rflags: 2,
    }
}

#[test]
fn an_instruction_that_does_not_fit_the_report_changes_nothing() {
    let mut world = World::new();
    let mut state = state(0);
    state.regs.set(Gpr::Rbx, 2 * PAGE);
    let before = state;
    let instruction = decode(CodeMode::Bits64, &[0x89, 0x03]).unwrap();
    for (reported, fits) in [(0, false), (2 * PAGE + 0xfff, true), (3 * PAGE, false)] {
        let done = execute(
            &instruction,
            CodeMode::Bits64,
            &mut state,
            Gva::new(reported),
            &mut world.bus(),
        );
        assert_eq!(done.is_ok(), fits, "{reported:#x}");
        assert_eq!(done == Err(Stop::Elsewhere), !fits);
        assert_eq!(state, before);
    }
    assert_eq!(world.register(WRITES), 1);
    // One that begins in the page before fits as well.
    state.regs.set(Gpr::Rbx, 2 * PAGE - 1);
    let at = Gva::new(2 * PAGE);
    let done = execute(
        &instruction,
        CodeMode::Bits64,
        &mut state,
        at,
        &mut world.bus(),
    );
    assert_eq!(done, Ok(Progress::Done));
}

#[test]
fn a_repetition_is_bounded_and_keeps_what_it_did() {
    let mut world = World::new();
    let rep = decode(CodeMode::Bits64, &[0xf3, 0xa4]).unwrap();
    let mut state = state(0);
    state.regs.set(Gpr::Rcx, u64::MAX);
    state.regs.set(Gpr::Rsi, 2 * PAGE);
    state.regs.set(Gpr::Rdi, 2 * PAGE - 100);
    let at = Gva::new(2 * PAGE);
    let mut step = |state: &mut State| execute(&rep, CodeMode::Bits64, state, at, &mut world.bus());
    assert_eq!(step(&mut state), Ok(Progress::Again));
    assert_eq!(state.regs.get(Gpr::Rcx), u64::MAX - AT_ONCE);
    assert_eq!(state.regs.get(Gpr::Rsi), 2 * PAGE + AT_ONCE);
    // Single-stepped, one element.
    state.rflags |= 1 << 8;
    assert_eq!(step(&mut state), Ok(Progress::Again));
    assert_eq!(state.regs.get(Gpr::Rcx), u64::MAX - AT_ONCE - 1);
    // To where nothing is: the elements before stand, the device is not read for the one that fails.
    state.rflags = 2;
    state.regs.set(Gpr::Rdi, 6 * PAGE - 3);
    state.regs.set(Gpr::Rsi, 2 * PAGE);
    let failed = step(&mut state);
    assert_eq!(failed, Err(Stop::Bus(virtual_memory(6 * PAGE, "denied"))));
    assert_eq!(state.regs.get(Gpr::Rcx), u64::MAX - AT_ONCE - 4);
    assert_eq!(world.register(READS), AT_ONCE + 4);
    // Nothing to do.
    let mut none = self::state(0);
    let done = execute(&rep, CodeMode::Bits64, &mut none, at, &mut world.bus());
    assert_eq!(done, Ok(Progress::Done));
}

#[test]
fn a_comparison_repeats_as_long_as_its_prefix_says() {
    let mut world = World::new();
    // Equal to the bytes at 0 but for the sixth, and all of them 7 further on.
    world.memory.0[0x105] = 0xaa;
    world.memory.0[0x200..0x210].fill(7);
    world.memory.0[0x20a] = 8;
    let mut run = |bytes: &[u8], [rsi, rdi, rax]: [u64; 3]| {
        let instruction = decode(CodeMode::Bits64, bytes).unwrap();
        let mut state = state(0);
        state.regs.set(Gpr::Rcx, 16);
        state.regs.set(Gpr::Rsi, rsi);
        state.regs.set(Gpr::Rdi, rdi);
        state.regs.set(Gpr::Rax, rax);
        let bus = &mut world.bus();
        let done = execute(&instruction, CodeMode::Bits64, &mut state, None, bus);
        assert_eq!(done, Ok(Progress::Done), "{bytes:x?}");
        let zero = state.rflags & 1 << 6 != 0;
        (state.regs.get(Gpr::Rcx), state.regs.get(Gpr::Rdi), zero)
    };
    let (repe_cmps, repne_cmps) = (&[0xf3, 0xa6], &[0xf2, 0xa6]);
    let (repe_scas, repne_scas) = (&[0xf3, 0xae], &[0xf2, 0xae]);
    // To the first that differs, to the first that does not, and to the end.
    assert_eq!(run(repe_cmps, [0, 0x100, 0]), (10, 0x106, false));
    assert_eq!(run(repne_cmps, [0, 0x200, 0]), (8, 0x208, true));
    assert_eq!(run(repe_cmps, [0, 0x300, 0]), (0, 0x310, true));
    assert_eq!(run(repne_cmps, [0, 0x301, 0]), (0, 0x311, false));
    assert_eq!(run(repe_scas, [0, 0x200, 7]), (5, 0x20b, false));
    assert_eq!(run(repne_scas, [0, 0x200, 8]), (5, 0x20b, true));
    // What compares nothing looks at no flag, whichever prefix it has.
    for prefix in [0xf2, 0xf3] {
        let (rcx, rdi, _) = run(&[prefix, 0xaa], [0, 0x400, 0]);
        assert_eq!((rcx, rdi), (0, 0x410));
    }
    assert_eq!(world.memory.0[0x400..0x410], [0; 16]);
}

#[test]
fn either_end_of_a_string_may_be_what_was_reported() {
    let mut world = World::new();
    let copy = decode(CodeMode::Bits64, &[0xa4]).unwrap();
    for (from, to) in [(0x100, 2 * PAGE), (2 * PAGE, 0x100), (2 * PAGE, 2 * PAGE)] {
        for (reported, fits) in [(2 * PAGE, true), (3 * PAGE, false)] {
            let mut state = state(0);
            state.regs.set(Gpr::Rsi, from);
            state.regs.set(Gpr::Rdi, to);
            let bus = &mut world.bus();
            let done = execute(&copy, CodeMode::Bits64, &mut state, Gva::new(reported), bus);
            assert_eq!(done.is_ok(), fits, "{from:#x} to {to:#x}: {done:?}");
            assert_eq!(state.regs.get(Gpr::Rsi), from + u64::from(fits));
        }
    }
}

#[test]
fn the_source_of_a_copy_faults_before_its_destination() {
    let mut world = World::new();
    let copy = decode(CodeMode::Bits32, &[0xa4]).unwrap();
    let null: Segments = |register| {
        Ok(match register {
            SegmentRegister::Es => Segment::UNUSABLE,
            _ => Segment::flat(0, AccessRights::DATA),
        })
    };
    let flat: Segments = |_| Ok(Segment::flat(0, AccessRights::DATA));
    let of_segment = Stop::Segment(SegmentFault { stack: false });
    let of_page = |page, error| Stop::Bus(virtual_memory(page * PAGE, error));
    for (segments, from, fault) in [
        (flat, 8, of_page(8, "nothing")),
        (flat, 2, of_page(6, "denied")),
        (null, 8, of_page(8, "nothing")),
        (null, 2, of_segment),
    ] {
        let mut state = state(0);
        state.regs.set(Gpr::Rsi, from * PAGE);
        state.regs.set(Gpr::Rdi, 6 * PAGE);
        let before = state;
        let mut bus = world.bus();
        bus.segments = segments;
        let reported = Gva::new(from * PAGE);
        let done = execute(&copy, CodeMode::Bits32, &mut state, reported, &mut bus);
        assert_eq!(done, Err(fault), "from {from}");
        assert_eq!(state, before);
    }
    assert_eq!(world.register(READS), 0);
}

#[test]
fn segments_count_outside_64_bit_mode() {
    let mut world = World::new();
    let mut state = state(0);
    let store = decode(CodeMode::Bits32, &[0x88, 0x03]).unwrap(); // mov [ebx], al
    let mut at = |segments: Segments, state: &mut State| {
        let mut bus = world.bus();
        bus.segments = segments;
        execute(
            &store,
            CodeMode::Bits32,
            state,
            Gva::new(2 * PAGE),
            &mut bus,
        )
    };
    let with_base: Segments = |_| {
        let data = Segment::flat(0, AccessRights::DATA);
        Ok(Segment {
            base: 2 * PAGE,
            limit: 0xff,
            ..data
        })
    };
    state.regs.set(Gpr::Rbx, 0xffff_0000_0000_00ff);
    assert_eq!(at(with_base, &mut state), Ok(Progress::Done));
    state.regs.set(Gpr::Rbx, 0x100);
    let fault = SegmentFault { stack: false };
    assert_eq!(at(with_base, &mut state), Err(Stop::Segment(fault)));
    assert_eq!(world.register(LAST_OFFSET), 0xff);
    assert_eq!(memory(&store).base, Base::Register(Gpr::Rbx));
}

/// INS or OUTS of `width`, with these registers: what came of it, and the registers.
fn port_string(
    bus: &mut GuestBus<'_, Memory, Segments, Ports<'_>>,
    op: StringOp,
    repeat: Repeat,
    address_size: AddressSize,
    state: &mut State,
) -> Result<Progress, Stop<BusFault<&'static str, ()>>> {
    let segment = SegmentRegister::Ds;
    let instruction = Instruction::port_string(op, Width::Word, repeat, address_size, segment, 2);
    let mode = match bus.linear_mask {
        u64::MAX => CodeMode::Bits64,
        _ => CodeMode::Bits32,
    };
    execute(&instruction, mode, state, None, bus)
}

#[test]
fn port_strings_go_through_memory_and_devices() {
    use Repeat::{No, WhileEqual};
    let mut world = World::new();
    let mut state = state(0);
    let start = |state: &mut State, at: u64, rcx: u64| {
        state.regs.set(Gpr::Rdx, 0xffff_0042);
        state.regs.set(Gpr::Rcx, rcx);
        state.regs.set(Gpr::Rsi, at);
        state.regs.set(Gpr::Rdi, at);
    };
    let size = AddressSize::Bits64;
    start(&mut state, 0x100, 3);
    let mut bus = world.bus();
    let done = port_string(&mut bus, StringOp::Ins, WhileEqual, size, &mut state);
    assert_eq!(done, Ok(Progress::Done));
    let [rcx, rsi, rdi] = [Gpr::Rcx, Gpr::Rsi, Gpr::Rdi].map(|gpr| state.regs.get(gpr));
    assert_eq!((rcx, rsi, rdi), (0, 0x100, 0x106));
    assert_eq!(
        world.memory.0[0xff..0x107],
        [0xff, 0x42, 0x42, 0x42, 0x42, 0x42, 0x42, 6]
    );
    // Without REP, once, whatever is in RCX; downwards.
    state.rflags |= 1 << 10;
    start(&mut state, 0x200, 3);
    let mut bus = world.bus();
    let done = port_string(&mut bus, StringOp::Outs, No, size, &mut state);
    assert_eq!(done, Ok(Progress::Done));
    assert_eq!(
        (state.regs.get(Gpr::Rsi), state.regs.get(Gpr::Rcx)),
        (0x1fe, 3)
    );
    assert_eq!(world.sent, [(0x42, 0x0100)]);
    state.rflags = 2;
    // From the device, and to it.
    start(&mut state, 2 * PAGE + 8, 1);
    for op in [StringOp::Ins, StringOp::Outs] {
        let done = port_string(&mut world.bus(), op, WhileEqual, size, &mut state);
        assert_eq!(done, Ok(Progress::Done));
        start(&mut state, 2 * PAGE + 8, 1);
    }
    assert_eq!(world.sent[1..], [(0x42, 0x4242)]);
    // A count of 0 in the address size, a large one, one that is stepped.
    for (rcx, address_size, stepped, expected, left) in [
        (1 << 16, AddressSize::Bits16, false, Progress::Done, 1 << 16),
        (1 << 32, AddressSize::Bits32, false, Progress::Done, 1 << 32),
        (u64::MAX, size, false, Progress::Again, u64::MAX - AT_ONCE),
        (3, size, true, Progress::Again, 2),
        (1, size, true, Progress::Done, 0),
    ] {
        start(&mut state, 0x100, rcx);
        state.rflags = if stepped { 0x102 } else { 2 };
        let mut bus = world.bus();
        let done = port_string(
            &mut bus,
            StringOp::Ins,
            WhileEqual,
            address_size,
            &mut state,
        );
        assert_eq!((done, state.regs.get(Gpr::Rcx)), (Ok(expected), left));
    }
    state.rflags = 2;
    // Where a write fails no port is read, and the elements before stand.
    start(&mut state, 6 * PAGE - 4, 9);
    world.received = 0;
    let done = port_string(
        &mut world.bus(),
        StringOp::Ins,
        WhileEqual,
        size,
        &mut state,
    );
    assert_eq!(done, Err(Stop::Bus(virtual_memory(6 * PAGE, "denied"))));
    assert_eq!(
        (state.regs.get(Gpr::Rdi), state.regs.get(Gpr::Rcx)),
        (6 * PAGE, 7)
    );
    assert_eq!(world.received, 2);
}

#[test]
fn port_strings_keep_to_their_segments() {
    let mut world = World::new();
    let mut state = state(0);
    let mut at = |segments: Segments, op, index: u64, size| {
        state.regs.set(Gpr::Rsi, index);
        state.regs.set(Gpr::Rdi, index);
        let mut bus = world.bus();
        bus.linear_mask = CodeMode::Bits32.linear_mask();
        bus.segments = segments;
        port_string(&mut bus, op, Repeat::No, size, &mut state).map_err(|stop| match stop {
            Stop::Segment(SegmentFault { stack }) => stack,
            other => panic!("{other:?}"),
        })
    };
    let small: Segments = |_| {
        let data = Segment::flat(0, AccessRights(0x4093));
        Ok(Segment {
            limit: 0xfff,
            ..data
        })
    };
    let read_only: Segments = |_| Ok(Segment::flat(0, AccessRights(0xc091)));
    let null: Segments = |_| Ok(Segment::UNUSABLE);
    let (in_32, in_16) = (AddressSize::Bits32, AddressSize::Bits16);
    for op in [StringOp::Ins, StringOp::Outs] {
        assert!(at(small, op, 0xffe, in_32).is_ok());
        assert_eq!(at(small, op, 0xfff, in_32), Err(false));
        assert_eq!(at(null, op, 0x100, in_32), Err(false));
        // Addresses of 16 bits wrap; nothing beyond counts.
        assert!(at(small, op, 0xabcd_0ffe, in_16).is_ok());
        assert_eq!(at(small, op, 0xffff, in_16), Err(false));
    }
    assert_eq!(at(read_only, StringOp::Ins, 0x100, in_32), Err(false));
    assert!(at(read_only, StringOp::Outs, 0x100, in_32).is_ok());
}

#[test]
fn what_must_be_aligned_faults_where_it_could_be_accessed() {
    let mut world = World::new();
    let mut bus = world.bus();
    bus.aligned = true;
    let alignment = Err(BusFault::Alignment);
    for base in [0x100, 2 * PAGE + 0x100] {
        for width in Width::ALL {
            for offset in 0..8 {
                let at = Gva::new(base + offset);
                let aligned = offset % width.bytes() == 0;
                let expected = if aligned { Ok(()) } else { alignment };
                assert_eq!(bus.read(at, width).map(drop), expected);
                assert_eq!(bus.may_write(at, width), expected);
                assert_eq!(bus.write(at, width, 0), expected);
            }
        }
    }
    // Across pages, both of which are looked at before.
    let at = |page: u64| Gva::new(page * PAGE - 1);
    assert_eq!(bus.read(at(2), Width::Word).map(drop), alignment);
    let denied = Err(virtual_memory(6 * PAGE, "denied"));
    assert_eq!(bus.write(at(6), Width::Word, 0), denied);
    // In the page that the CPU has reported, too.
    bus.translated = Some(
        const {
            &Translated {
                gva: Gva::new(0x7000_0000_0000),
                gpa: Gpa::new(2 * PAGE),
                write: true,
                device: Some((TEST_DEVICE, 0)),
            }
        },
    );
    let odd = Gva::new(0x7000_0000_0011);
    assert_eq!(bus.write(odd, Width::Word, 0), alignment);
    assert_eq!(bus.may_write(odd, Width::Word), alignment);
    assert_eq!(bus.read(odd, Width::Word).map(drop), alignment);
    assert_eq!(bus.read(odd, Width::Byte).map(drop), Ok(()));
}

#[test]
fn an_address_that_is_none_faults_before_its_page_does() {
    let mut world = World::new();
    for (at, width, canonical) in [
        (0x7fff_ffff_fffc, Width::Dword, true),
        (0x7fff_ffff_fffd, Width::Dword, false),
        (0x8000_0000_0000, Width::Byte, false),
        (0xffff_7fff_ffff_ffff, Width::Byte, false),
        (0xffff_8000_0000_0000, Width::Byte, true),
        (u64::MAX - 1, Width::Dword, true),
    ] {
        let mut bus = world.bus();
        let fault = BusFault::Virtual(VirtualFault::NonCanonical(Gva::new(at)));
        let found = bus.write(Gva::new(at), width, 0);
        assert_eq!(found == Err(fault), !canonical, "{at:#x}: {found:?}");
        // Other code has none that are not.
        bus.linear_mask = CodeMode::Bits32.linear_mask();
        assert_ne!(bus.write(Gva::new(at), width, 0), Err(fault));
    }
}

#[test]
fn accesses_meet_breakpoints_and_a_repetition_stops_there() {
    // DR0 on writes of 2 bytes in memory, DR1 on any access to a register of the device, DR2 on a port.
    let breakpoints = Breakpoints {
        addresses: [0x104, 2 * PAGE + 8, 0x42, 0],
        dr7: 0x400 | 0b01_0101 | 0b0101 << 16 | 0b1111 << 20 | 0b0010 << 24,
        on_ports: true,
    };
    let mut world = World::new();
    let mut met = |act: &dyn Fn(&mut GuestBus<'_, Memory, Segments, Ports<'_>>)| {
        let mut bus = world.bus();
        bus.breakpoints = Some(&breakpoints);
        act(&mut bus);
        bus.met.any()
    };
    let at = Gva::new;
    assert!(!met(&|bus| {
        let _ = bus.read(at(0x104), Width::Word);
    }));
    assert!(!met(&|bus| bus.may_write(at(0x104), Width::Word).unwrap()));
    assert!(met(&|bus| bus.write(at(0x102), Width::Dword, 0).unwrap()));
    assert!(!met(&|bus| bus.write(at(0x106), Width::Dword, 0).unwrap()));
    assert!(met(&|bus| {
        let _ = bus.read(at(2 * PAGE + 11), Width::Byte);
    }));
    assert!(!met(&|bus| {
        let _ = bus.read(at(2 * PAGE + 12), Width::Byte);
    }));
    assert!(met(&|bus| bus.output(0x41, Width::Word, 0)));
    assert!(!met(&|bus| {
        let _ = bus.input(0x43, Width::Byte);
    }));
    // What faults has not been made.
    assert!(!met(&|bus| {
        let _ = bus.write(at(6 * PAGE), Width::Word, 0);
    }));
    // Of five elements the third is on the breakpoint.
    let mut state = state(0);
    state.regs.set(Gpr::Rcx, 5);
    state.regs.set(Gpr::Rdi, 0x100);
    let mut bus = world.bus();
    bus.breakpoints = Some(&breakpoints);
    let (rep, size) = (Repeat::WhileEqual, AddressSize::Bits64);
    let done = port_string(&mut bus, StringOp::Ins, rep, size, &mut state);
    assert_eq!((done, state.regs.get(Gpr::Rcx)), (Ok(Progress::Again), 2));
    assert!(bus.met.any());
    // The last one is done with it.
    state.regs.set(Gpr::Rcx, 1);
    state.regs.set(Gpr::Rdi, 0x104);
    bus.met = BreakpointHits::NONE;
    let done = port_string(&mut bus, StringOp::Ins, rep, size, &mut state);
    assert_eq!(done, Ok(Progress::Done));
    assert!(bus.met.any());
}

#[test]
fn port_strings_are_decoded_where_the_cpu_does_not_tell_them() {
    use CodeMode::{Bits16, Bits32, Bits64};
    use SegmentRegister::{Ds, Es, Ss};
    for (mode, bytes, op, width, repeat, size, segment) in [
        (
            Bits64,
            &[0x6c][..],
            StringOp::Ins,
            Width::Byte,
            Repeat::No,
            AddressSize::Bits64,
            Ds,
        ),
        (
            Bits64,
            &[0xf3, 0x6f],
            StringOp::Outs,
            Width::Dword,
            Repeat::WhileEqual,
            AddressSize::Bits64,
            Ds,
        ),
        (
            Bits32,
            &[0x36, 0x66, 0x6f],
            StringOp::Outs,
            Width::Word,
            Repeat::No,
            AddressSize::Bits32,
            Ss,
        ),
        (
            Bits32,
            &[0x67, 0xf3, 0x6d],
            StringOp::Ins,
            Width::Dword,
            Repeat::WhileEqual,
            AddressSize::Bits16,
            Ds,
        ),
        (
            Bits16,
            &[0x26, 0x6e],
            StringOp::Outs,
            Width::Byte,
            Repeat::No,
            AddressSize::Bits16,
            Es,
        ),
        (
            Bits16,
            &[0x6d],
            StringOp::Ins,
            Width::Word,
            Repeat::No,
            AddressSize::Bits16,
            Ds,
        ),
    ] {
        let length = bytes.len() as u8;
        let expected = Instruction::port_string(op, width, repeat, size, segment, length);
        assert_eq!(decode(mode, bytes), Ok(expected), "{mode:?} {bytes:x?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(crate::testing::cases(256)))]

    /// Whatever the guest has for code: no panic, and a length within what was fetched.
    #[test]
    fn arbitrary_bytes_decode_to_something(
        chunks in proptest::collection::vec(proptest::array::uniform15(proptest::num::u8::ANY), 64),
        prefix in proptest::sample::select(vec![0x66u8, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x0f, 0x62, 0xc4, 0xc5, 0x8f]),
    ) {
        for mut bytes in chunks {
            for known in [15, bytes[14] as usize % 16] {
                for mode in [CodeMode::Bits16, CodeMode::Bits32, CodeMode::Bits64] {
                    if let Ok(instruction) = decode(mode, &bytes[..known]) {
                        proptest::prop_assert!((1..=known).contains(&instruction.length.into()));
                        let mut world = World::new();
                        let mut state = state(0);
                        let _ = execute(&instruction, mode, &mut state, Gva::new(0), &mut world.bus());
                    }
                }
                bytes[0] = prefix;
            }
        }
    }
}
