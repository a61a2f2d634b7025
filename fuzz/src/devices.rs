//! Instructions that access devices: whatever the bytes are, they are decoded to the same instruction however many follow,
//! one that faults changes nothing, and a repetition comes to the same whether it is carried out many elements at once or
//! one by one.

use offshoot::addr::Gva;
use offshoot::vm::mmio::{Bus, CodeMode, Op, Progress, State, Width, decode, execute};
use offshoot::vm::repetition::AT_ONCE;
use offshoot::virt::{AccessRights, Segment, SegmentRegister};
use offshoot::virt::{Gpr, GuestRegs};

use crate::Bytes;

/// Memory from 0 on, half of it read-only, and a device behind it.
const MEMORY: usize = 0x400;
const READ_ONLY: u64 = 0x200;
const DEVICE_END: u64 = 0x600;
/// RFLAGS.TF.
const STEP: u64 = 1 << 8;

#[derive(Clone, PartialEq, Debug)]
struct World {
    memory: [u8; MEMORY],
    segments: [Segment; 2],
    /// Reads of the device and of ports, and a sum of all that was written there.
    reads: u64,
    sum: u64,
}

impl World {
    fn note(&mut self, at: u64, width: Width, value: u64) {
        let all = at ^ value << 8 ^ width.bytes() << 60;
        self.sum = (self.sum ^ all).wrapping_mul(0x100_0000_01b3);
    }
    fn answer(&mut self, at: u64, width: Width) -> u64 {
        self.reads += 1;
        (at ^ self.reads).wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.mask()
    }
    fn bytes(&mut self, at: Gva, width: Width) -> Option<&mut [u8]> {
        let at = usize::try_from(at.as_u64()).ok()?;
        self.memory
            .get_mut(at..at.checked_add(width.bytes() as usize)?)
    }
    fn is_device(at: Gva, width: Width) -> bool {
        let end = at.as_u64().checked_add(width.bytes());
        at.as_u64() >= MEMORY as u64 && end.is_some_and(|end| end <= DEVICE_END)
    }
}

impl Bus for World {
    type Fault = Gva;
    fn segment(&mut self, register: SegmentRegister) -> Result<Segment, Gva> {
        Ok(self.segments[usize::from(register == SegmentRegister::Es)])
    }
    fn read(&mut self, at: Gva, width: Width) -> Result<u64, Gva> {
        if Self::is_device(at, width) {
            return Ok(self.answer(at.as_u64(), width));
        }
        let mut value = [0; 8];
        let bytes = self.bytes(at, width).ok_or(at)?;
        value[..bytes.len()].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(value))
    }
    fn write(&mut self, at: Gva, width: Width, value: u64) -> Result<(), Gva> {
        self.may_write(at, width)?;
        if Self::is_device(at, width) {
            self.note(at.as_u64(), width, value & width.mask());
        } else if let Some(bytes) = self.bytes(at, width) {
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
    fn may_read(&mut self, at: Gva, width: Width) -> Result<(), Gva> {
        match Self::is_device(at, width) || self.bytes(at, width).is_some() {
            true => Ok(()),
            false => Err(at),
        }
    }
    fn may_write(&mut self, at: Gva, width: Width) -> Result<(), Gva> {
        self.may_read(at, width)?;
        match at.as_u64() >= READ_ONLY {
            true => Ok(()),
            false => Err(at),
        }
    }
    fn input(&mut self, port: u16, width: Width) -> u64 {
        self.answer(u64::from(port) << 32, width)
    }
    fn output(&mut self, port: u16, width: Width, value: u64) {
        self.note(u64::from(port) << 32, width, value & width.mask());
    }
    fn has_met_breakpoint(&self) -> bool {
        false
    }
}

/// Takes `input` for the bytes of an instruction, the registers, and what is in memory.
pub fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let code = bytes.take::<15>();
    let how = bytes.byte();
    let mode = [CodeMode::Bits64, CodeMode::Bits32, CodeMode::Bits16][usize::from(how % 3)];
    let Ok(instruction) = decode(mode, &code) else {
        return;
    };
    let length = usize::from(instruction.length);
    assert!((1..=15).contains(&length));
    assert_eq!(decode(mode, &code[..length]), Ok(instruction));
    for short in 0..length {
        assert!(decode(mode, &code[..short]).is_err(), "{short} bytes");
    }

    let mut state = State {
        regs: GuestRegs::ZERO,
        rip: bytes.word() & 0xfff,
        rflags: bytes.word() & 0xcd5 | 2,
    };
    for number in 0..16 {
        // Most registers lead into the memory or count few elements.
        let value = match how & 1 << (3 + number % 4) {
            0 => u64::from(u16::from_le_bytes(bytes.take())) & 0x7ff,
            _ => bytes.word(),
        };
        state.regs.set(Gpr::from_low_bits(number), value);
    }
    let segment = |kind: u8| match kind % 4 {
        0 => Segment::UNUSABLE,
        1 => Segment {
            limit: 0x2ff,
            ..Segment::flat(0, AccessRights::DATA)
        },
        _ => Segment::flat(0, AccessRights::DATA),
    };
    let mut world = World {
        memory: [0; MEMORY],
        segments: [segment(bytes.byte()), segment(bytes.byte())],
        reads: 0,
        sum: 0,
    };
    let fill = bytes.take::<64>();
    world
        .memory
        .iter_mut()
        .zip(fill.iter().cycle())
        .for_each(|(byte, fill)| *byte = *fill);

    if !matches!(instruction.op, Op::String(_)) {
        let before = (state, world.clone());
        match execute(&instruction, mode, &mut state, None, &mut world) {
            Ok(progress) => assert_eq!(progress, Progress::Done),
            Err(_) => assert_eq!((state, world), before),
        }
        return;
    }
    // At once, and one by one.
    state.rflags &= !STEP;
    let (mut stepped, mut beside) = (state, world.clone());
    stepped.rflags |= STEP;
    for _ in 0..4 {
        let done = execute(&instruction, mode, &mut state, None, &mut world);
        let mut one = Ok(Progress::Again);
        for _ in 0..AT_ONCE {
            one = execute(&instruction, mode, &mut stepped, None, &mut beside);
            if one != Ok(Progress::Again) {
                break;
            }
        }
        assert_eq!(done, one);
        state.rflags |= STEP;
        assert_eq!((&state, &world), (&stepped, &beside));
        state.rflags &= !STEP;
        if done != Ok(Progress::Again) {
            return;
        }
    }
}
