//! The decoder of device accesses beside another disassembler: whole opcode maps in every mode, with prefixes. What is
//! carried out must be understood alike, and what the other one calls no instruction must not be carried out.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction as Other, Mnemonic, OpKind, Register};
use offshoot::virt::SegmentRegister;
use offshoot::virt::io::AddressSize;
use offshoot::virt::{Gpr, GuestRegs};
use offshoot::vm::mmio::{
    Binary, BitChange, CodeMode, Condition, Instruction, LONGEST, MemoryOperand, Op, Operand, Part,
    Repeat, StringOp, Unary, Width, decode,
};
use std::collections::BTreeMap;

const MODES: [(CodeMode, u32); 3] = [
    (CodeMode::Bits16, 16),
    (CodeMode::Bits32, 32),
    (CodeMode::Bits64, 64),
];
const RIP: u64 = 0x1_2345_6780;

/// An instruction with everything that matters, and nothing that can be said in two ways.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Meaning {
    op: Op,
    first: Value,
    second: Value,
    /// Of the access; CLFLUSH has none.
    width: Option<u64>,
    repeat: Repeat,
    /// Of a string instruction.
    address_size: Option<AddressSize>,
    source_segment: Option<SegmentRegister>,
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    None,
    Register(Part),
    /// As many bits as the operation uses.
    Constant(u64),
    /// Segment, and offset with certain registers.
    Memory(SegmentRegister, u64),
}

fn registers() -> GuestRegs {
    let mut regs = GuestRegs::ZERO;
    for number in 0..16 {
        let value = 0x0123_4567_89ab_cdef_u64
            .wrapping_mul(2 * number + 3)
            .rotate_left(number as u32 * 5);
        regs.set(Gpr::from_low_bits(number), value);
    }
    regs
}

/// What an instruction with a memory operand means; the other operand first where the order says nothing.
fn in_order(op: Op, first: Value, second: Value) -> (Value, Value) {
    let swaps = matches!(op, Op::Exchange | Op::Binary(Binary::Test));
    match first {
        Value::Memory(..) if swaps => (second, first),
        _ => (first, second),
    }
}

/// In 64-bit mode no other segments count than FS and GS, nor do prefixes for them.
fn counting(mode: CodeMode, segment: SegmentRegister) -> SegmentRegister {
    match (mode, segment) {
        (_, SegmentRegister::Fs | SegmentRegister::Gs) => segment,
        (CodeMode::Bits64, _) => SegmentRegister::Ds,
        _ => segment,
    }
}

fn constant(op: Op, width: u64, value: u64) -> Value {
    let mask = match op {
        Op::Bit(_) => (width * 8).wrapping_sub(1),
        _ => u64::MAX.unbounded_shr(64 - width as u32 * 8),
    };
    Value::Constant(value & mask)
}

fn meaning(mode: CodeMode, instruction: &Instruction) -> Meaning {
    let Instruction {
        op,
        first,
        second,
        width,
        repeat,
        address_size,
        source_segment,
        length,
    } = *instruction;
    let value = |operand| match operand {
        Operand::None => Value::None,
        Operand::Register(part) => Value::Register(part),
        Operand::Immediate(value) => constant(op, width.bytes(), value),
        Operand::Memory(memory) => {
            let MemoryOperand { segment, .. } = memory;
            let next = RIP + u64::from(length);
            Value::Memory(
                counting(mode, segment),
                memory.offset(&registers(), next, address_size),
            )
        }
    };
    let (first, second) = in_order(op, value(first), value(second));
    let string = match op {
        Op::String(string) => Some(string),
        _ => None,
    };
    Meaning {
        op,
        first,
        second,
        width: (op != Op::Nothing).then_some(width.bytes()),
        repeat,
        address_size: string.map(|_| address_size),
        source_segment: string
            .filter(|string| string.has_source())
            .map(|_| counting(mode, source_segment)),
        length: length.into(),
    }
}

/// What the other disassembler says.
enum Opinion {
    /// No instruction, or more than there is.
    Invalid,
    /// None that is carried out: another operation, or nothing in memory.
    NotOurs,
    Ours(Meaning),
}

fn opinion((mode, bits): (CodeMode, u32), bytes: &[u8]) -> Opinion {
    let mut decoder = Decoder::with_ip(bits, bytes, RIP, DecoderOptions::NONE);
    let found = decoder.decode();
    if found.is_invalid() {
        return Opinion::Invalid;
    }
    understood(&found, mode, bits).map_or(Opinion::NotOurs, Opinion::Ours)
}

fn understood(found: &Other, mode: CodeMode, bits: u32) -> Option<Meaning> {
    let op = operation(found)?;
    if let Op::String(string) = op {
        let kind = (0..found.op_count())
            .map(|at| found.op_kind(at))
            .find(|kind| *kind != OpKind::Register)?;
        let repeat = match (found.has_repe_prefix(), found.has_repne_prefix()) {
            (_, true) => Repeat::WhileNotEqual,
            (true, _) => Repeat::WhileEqual,
            _ => Repeat::No,
        };
        return Some(Meaning {
            op,
            first: Value::None,
            second: Value::None,
            width: Some(found.memory_size().size() as u64),
            repeat,
            address_size: Some(match kind {
                OpKind::MemorySegSI | OpKind::MemoryESDI => AddressSize::Bits16,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => AddressSize::Bits32,
                _ => AddressSize::Bits64,
            }),
            source_segment: string
                .has_source()
                .then(|| counting(mode, segment(found.memory_segment()))),
            length: found.len(),
        });
    }
    let width = found.memory_size().size() as u64;
    let value = |at| match found.op_kind(at) {
        OpKind::Register => part(found.op_register(at)).map(Value::Register),
        OpKind::Memory => Some(Value::Memory(
            counting(mode, segment(found.memory_segment())),
            offset(found, bits),
        )),
        _ => Some(constant(op, width, found.immediate(at))),
    };
    let mut values = [Value::None; 2];
    if found.op_count() > 2 {
        return None;
    }
    for at in 0..found.op_count() {
        values[at as usize] = value(at)?;
    }
    let [first, second] = values;
    let in_memory = |value| matches!(value, Value::Memory(..));
    if !in_memory(first) && !in_memory(second) {
        return None;
    }
    let (first, second) = in_order(op, first, second);
    Some(Meaning {
        op,
        first,
        second,
        width: (op != Op::Nothing).then_some(width),
        repeat: Repeat::No,
        address_size: None,
        source_segment: None,
        length: found.len(),
    })
}

fn offset(found: &Other, bits: u32) -> u64 {
    let (base, index) = (found.memory_base(), found.memory_index());
    if found.is_ip_rel_memory_operand() {
        return found.ip_rel_memory_address();
    }
    let size = [base, index]
        .iter()
        .find(|register| **register != Register::None)
        .map_or(found.memory_displ_size(), |register| register.size() as u32);
    let value = |register: Register| match register {
        Register::None => 0,
        register => registers().get(Gpr::from_low_bits(register.full_register().number() as u64)),
    };
    let sum = value(base)
        .wrapping_add(value(index).wrapping_mul(found.memory_index_scale().into()))
        .wrapping_add(found.memory_displacement64());
    match (size, bits) {
        (2, _) => sum & 0xffff,
        (4, _) => sum & 0xffff_ffff,
        _ => sum,
    }
}

fn segment(register: Register) -> SegmentRegister {
    match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

fn part(register: Register) -> Option<Part> {
    if !register.is_gpr() {
        return None;
    }
    Some(Part {
        gpr: Gpr::from_low_bits(register.full_register().number() as u64),
        width: Width::from_bytes(register.size() as u8)?,
        high: matches!(
            register,
            Register::AH | Register::CH | Register::DH | Register::BH
        ),
    })
}

fn operation(found: &Other) -> Option<Op> {
    // SSE has two of the names of string instructions.
    let is_string = found.op_kind(0) != OpKind::Memory
        && (0..found.op_count()).all(|at| found.op_kind(at) != OpKind::Memory);
    Some(match found.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti => Op::Move,
        Mnemonic::Movsx | Mnemonic::Movsxd => Op::MoveSigned,
        Mnemonic::Movbe => Op::MoveSwapped,
        Mnemonic::Add => Op::Binary(Binary::Add),
        Mnemonic::Or => Op::Binary(Binary::Or),
        Mnemonic::Adc => Op::Binary(Binary::Adc),
        Mnemonic::Sbb => Op::Binary(Binary::Sbb),
        Mnemonic::And => Op::Binary(Binary::And),
        Mnemonic::Sub => Op::Binary(Binary::Sub),
        Mnemonic::Xor => Op::Binary(Binary::Xor),
        Mnemonic::Cmp => Op::Binary(Binary::Cmp),
        Mnemonic::Test => Op::Binary(Binary::Test),
        Mnemonic::Inc => Op::Unary(Unary::Inc),
        Mnemonic::Dec => Op::Unary(Unary::Dec),
        Mnemonic::Not => Op::Unary(Unary::Not),
        Mnemonic::Neg => Op::Unary(Unary::Neg),
        Mnemonic::Bt => Op::Bit(BitChange::None),
        Mnemonic::Bts => Op::Bit(BitChange::Set),
        Mnemonic::Btr => Op::Bit(BitChange::Reset),
        Mnemonic::Btc => Op::Bit(BitChange::Complement),
        Mnemonic::Xchg => Op::Exchange,
        Mnemonic::Xadd => Op::ExchangeAdd,
        Mnemonic::Cmpxchg => Op::CompareExchange,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Op::Nothing,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => Op::String(StringOp::Movs),
        Mnemonic::Movsd if found.code() == Code::Movsd_m32_m32 => Op::String(StringOp::Movs),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Op::String(StringOp::Ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Op::String(StringOp::Outs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            Op::String(StringOp::Stos)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            Op::String(StringOp::Lods)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq => Op::String(StringOp::Cmps),
        Mnemonic::Cmpsd if is_string && found.code() == Code::Cmpsd_m32_m32 => {
            Op::String(StringOp::Cmps)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            Op::String(StringOp::Scas)
        }
        other => {
            use Mnemonic::*;
            const MOVES: [Mnemonic; 16] = [
                Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp,
                Cmovnp, Cmovl, Cmovge, Cmovle, Cmovg,
            ];
            const SETS: [Mnemonic; 16] = [
                Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl,
                Setge, Setle, Setg,
            ];
            let number = |list: [Mnemonic; 16]| list.iter().position(|one| *one == other);
            let condition = |number: usize| Condition(number as u8);
            match (number(MOVES), number(SETS)) {
                (Some(number), _) => Op::MoveIf(condition(number)),
                (_, Some(number)) => Op::SetIf(condition(number)),
                _ => return None,
            }
        }
    })
}

/// Differences, by what they are; an example of each.
#[derive(Default)]
struct Differences {
    found: BTreeMap<String, (u64, String)>,
    compared: u64,
    ours: u64,
}

impl Differences {
    fn compare(&mut self, (mode, bits): (CodeMode, u32), key: &dyn Fn() -> String, bytes: &[u8]) {
        let found = decode(mode, bytes);
        // What has no operand in memory is never asked for.
        let found = found.as_ref().ok().map(|found| meaning(mode, found));
        let found = found.filter(|found| {
            let in_memory = |value| matches!(value, Value::Memory(..));
            matches!(found.op, Op::String(_)) || in_memory(found.first) || in_memory(found.second)
        });
        let other = opinion((mode, bits), bytes);
        self.compared += 1;
        let kind = match (&found, &other) {
            (None, Opinion::Invalid | Opinion::NotOurs) => return,
            (Some(found), Opinion::Ours(other)) => {
                self.ours += 1;
                if found == other {
                    return;
                }
                "differs"
            }
            (Some(_), Opinion::Invalid) => "is none",
            (Some(_), Opinion::NotOurs) => "is another",
            (None, Opinion::Ours(_)) => "is refused",
        };
        let expected = match other {
            Opinion::Ours(meaning) => format!("{meaning:x?}"),
            _ => String::new(),
        };
        let entry = self.found.entry(format!("{bits} bits, {} {kind}", key()));
        let example = || {
            (
                0,
                format!(
                    "{bytes:02x?}: {found:x?} ({:?}) for {expected}",
                    decode(mode, bytes).err()
                ),
            )
        };
        entry.or_insert_with(example).0 += 1;
    }

    fn none(self) {
        for (kind, (count, example)) in self.found.iter().take(60) {
            println!("{kind}, {count} times: {example}");
        }
        assert!(
            self.found.is_empty(),
            "{} kinds of differences",
            self.found.len()
        );
        println!("{} compared, {} carried out", self.compared, self.ours);
    }
}

/// Sequences of prefixes; those with 4x are for 64-bit mode.
const PREFIXES: &[&[u8]] = &[
    &[],
    &[0x66],
    &[0x67],
    &[0xf2],
    &[0xf3],
    &[0xf0],
    &[0x26],
    &[0x2e],
    &[0x36],
    &[0x3e],
    &[0x64],
    &[0x65],
    &[0x66, 0x67],
    &[0x66, 0xf2],
    &[0x66, 0xf3],
    &[0x66, 0xf0],
    &[0xf0, 0xf2],
    &[0xf3, 0xf0],
    &[0xf2, 0xf3],
    &[0xf3, 0xf2],
    &[0x67, 0xf3],
    &[0x64, 0x3e],
    &[0x3e, 0x65],
    &[0x66, 0x66],
    &[0x40],
    &[0x41],
    &[0x42],
    &[0x44],
    &[0x47],
    &[0x48],
    &[0x4f],
    &[0x48, 0x66],
    &[0x66, 0x48],
    &[0x66, 0x40],
    &[0x67, 0x48],
    &[0xf0, 0x48],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0x48, 0xf3],
    &[0x64, 0x48],
    &[0x48, 0x40],
    &[0x66, 0xf2, 0x48],
    &[0x66, 0x67, 0x4f],
];

const MAPS: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];

/// What comes behind ModRM.
const TAILS: [[u8; 9]; 3] = [
    [0x24, 0x11, 0x82, 0x33, 0xa4, 0x55, 0xc6, 0x77, 0xe8],
    [0xe5, 0x91, 0x02, 0xb3, 0x24, 0xd5, 0x46, 0xf7, 0x68],
    [0x8b, 0xf1, 0x7e, 0x3d, 0x5a, 0x09, 0x12, 0x81, 0x90],
];

#[test]
fn opcode_maps_are_those_of_another_disassembler() {
    let mut differences = Differences::default();
    for mode in MODES {
        for prefixes in PREFIXES {
            let rex = prefixes.iter().any(|byte| byte & 0xf0 == 0x40);
            if rex && mode.1 != 64 {
                continue;
            }
            for (map, opcode) in MAPS
                .iter()
                .flat_map(|map| (0..=0xff).map(move |at| (map, at)))
            {
                for modrm in 0..=0xffu8 {
                    // Some registers and addresses stand for all, but every field `reg` and every form of address.
                    let few =
                        matches!(modrm & 7, 0 | 4 | 5 | 6) && (modrm < 0xc8 || modrm & 7 == 0);
                    if !few {
                        continue;
                    }
                    let tail = TAILS[usize::from(modrm ^ opcode) % 3];
                    let mut bytes = [0x90; LONGEST];
                    let parts = prefixes
                        .iter()
                        .chain(map.iter())
                        .chain([&opcode, &modrm])
                        .chain(&tail);
                    for (to, from) in bytes.iter_mut().zip(parts) {
                        *to = *from;
                    }
                    let key = || {
                        format!(
                            "{prefixes:02x?} {map:02x?} {opcode:02x} /{}",
                            modrm >> 3 & 7
                        )
                    };
                    differences.compare(mode, &key, &bytes);
                }
            }
        }
    }
    differences.none();
}

#[test]
fn lengths_end_at_15_bytes() {
    let mut differences = Differences::default();
    let longest = [0x66, 0x81, 0x84, 0x24, 1, 2, 3, 4, 5, 6];
    for mode in MODES {
        for more in 0..8 {
            for prefix in [0x66, 0x67, 0x3e, 0x64, 0xf3] {
                let bytes: Vec<u8> = core::iter::repeat_n(prefix, more)
                    .chain(longest)
                    .chain([0x90; 8])
                    .collect();
                for len in 0..=LONGEST {
                    let key = || format!("{more} times {prefix:02x}, {len} bytes");
                    differences.compare(mode, &key, &bytes[..len]);
                }
            }
        }
    }
    differences.none();
}

/// Numbers by chance, the same each time.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }
}

#[test]
fn any_bytes_are_what_another_disassembler_says() {
    const COMMON: [u8; 14] = [
        0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x64, 0x48, 0x41, 0x4c, 0x0f, 0x0f,
    ];
    let mut differences = Differences::default();
    let mut random = Random(10);
    for _ in 0..300_000 {
        let mut bytes: [u8; LONGEST] = core::array::from_fn(|_| random.number() as u8);
        for byte in bytes.iter_mut().take(random.number() as usize % 6) {
            *byte = COMMON[random.number() as usize % COMMON.len()];
        }
        for mode in MODES {
            let key = || format!("{:02x?}", &bytes[..6]);
            differences.compare(mode, &key, &bytes);
        }
    }
    differences.none();
}
