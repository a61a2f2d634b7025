//! Which instructions are tried: those that the hypervisor carries out on device memory, and INS and OUTS.

use crate::mode::Code;
use offshoot_guests::cpu;
use offshoot_guests::random::Random;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// The bytes before an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    One,
    /// 0F.
    Two,
    /// 0F 38.
    Three,
}

/// What follows the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// ModR/M with a register.
    Register,
    /// ModR/M with more of the opcode.
    Extended(u8),
    /// An address, and AL or its kin.
    Absolute,
    /// Nothing: a string instruction.
    String(StringKind),
}

/// String instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringKind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

impl StringKind {
    pub fn has_source(self) -> bool {
        matches!(self, Self::Movs | Self::Lods | Self::Cmps | Self::Outs)
    }

    pub fn has_destination(self) -> bool {
        !matches!(self, Self::Lods | Self::Outs)
    }

    pub fn is_port(self) -> bool {
        matches!(self, Self::Ins | Self::Outs)
    }
}

/// How wide the operand in memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Byte,
    Word,
    Dword,
    /// The operand size.
    Operand,
}

/// Prefixes that would make another instruction of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    None,
    /// F2 and F3.
    Repeats,
    /// F2, F3, and 66.
    All,
}

#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub map: Map,
    pub opcode: u8,
    pub shape: Shape,
    pub size: Size,
    /// Bytes of the constant at its end; 4 are 2 if the operand size is 16 bits.
    pub immediate: u8,
    /// LOCK may stand before it.
    pub lockable: bool,
    /// Flags that it leaves undefined (SDM "EFLAGS Cross-Reference", vol. 1, appendix A).
    pub undefined: u64,
    pub taken: Taken,
    /// The register is the number of a bit, which counts for the address.
    pub bit_number: bool,
    /// It compares with RAX.
    pub compares: bool,
}

impl Form {
    const fn new(map: Map, opcode: u8, shape: Shape, size: Size) -> Self {
        Self {
            map,
            opcode,
            shape,
            size,
            immediate: 0,
            lockable: false,
            undefined: 0,
            taken: Taken::None,
            bit_number: false,
            compares: false,
        }
    }

    const fn locks(mut self) -> Self {
        self.lockable = true;
        self
    }

    const fn imm(mut self, bytes: u8) -> Self {
        self.immediate = bytes;
        self
    }

    const fn not_defining(mut self, flags: u64) -> Self {
        self.undefined = flags;
        self
    }

    const fn taking(mut self, taken: Taken) -> Self {
        self.taken = taken;
        self
    }

    /// One by chance.
    pub fn pick(random: &mut Random, code: Code) -> Self {
        match random.below(16) {
            0..=3 => arithmetic(random, code),
            4 => moves(random),
            5 => unary(random),
            6 => bits(random),
            7 => exchanges(random),
            8 => extensions(random, code),
            9 => conditions(random),
            10 => rare(random),
            _ => strings(random),
        }
    }
}

fn sized(random: &mut Random) -> (u8, Size) {
    if random.one_in(2) {
        (0, Size::Byte)
    } else {
        (1, Size::Operand)
    }
}

fn arithmetic(random: &mut Random, code: Code) -> Form {
    const CMP: u8 = 7;
    let op = random.below(9) as u8;
    let (wide, size) = sized(random);
    let form =
        |opcode, shape, undefined| Form::new(Map::One, opcode, shape, size).not_defining(undefined);
    if op == 8 {
        // TEST.
        return if random.one_in(2) {
            form(0x84 + wide, Shape::Register, AF)
        } else {
            form(0xf6 + wide, Shape::Extended(0), AF).imm(if wide == 0 { 1 } else { 4 })
        };
    }
    // OR, AND, XOR.
    let undefined = if matches!(op, 1 | 4 | 6) { AF } else { 0 };
    let form = match random.below(5) {
        0 | 1 => form(8 * op + wide, Shape::Register, undefined),
        2 => return form(8 * op + 2 + wide, Shape::Register, undefined),
        3 => form(0x80 + wide, Shape::Extended(op), undefined).imm(if wide == 0 { 1 } else { 4 }),
        _ if wide == 1 => form(0x83, Shape::Extended(op), undefined).imm(1),
        _ if code == Code::Bits64 => form(0x80, Shape::Extended(op), undefined).imm(1),
        _ => form(0x82, Shape::Extended(op), undefined).imm(1),
    };
    if op == CMP { form } else { form.locks() }
}

fn moves(random: &mut Random) -> Form {
    let (wide, size) = sized(random);
    let form = |opcode, shape| Form::new(Map::One, opcode, shape, size);
    match random.below(6) {
        0 | 1 => form(0x88 + wide, Shape::Register),
        2 => form(0x8a + wide, Shape::Register),
        3 => form(0xc6 + wide, Shape::Extended(0)).imm(if wide == 0 { 1 } else { 4 }),
        4 => form(0xa0 + wide, Shape::Absolute),
        _ => form(0xa2 + wide, Shape::Absolute),
    }
}

fn unary(random: &mut Random) -> Form {
    let (wide, size) = sized(random);
    let (opcode, extension) = match random.below(4) {
        0 => (0xf6, 2),
        1 => (0xf6, 3),
        2 => (0xfe, 0),
        _ => (0xfe, 1),
    };
    Form::new(Map::One, opcode + wide, Shape::Extended(extension), size).locks()
}

fn bits(random: &mut Random) -> Form {
    let op = random.below(4) as u8;
    let form = |opcode, shape| {
        Form::new(Map::Two, opcode, shape, Size::Operand).not_defining(OF | SF | AF | PF)
    };
    let form = if random.one_in(2) {
        let form = form(0xa3 + 8 * op, Shape::Register);
        Form {
            bit_number: true,
            ..form
        }
    } else {
        form(0xba, Shape::Extended(4 + op)).imm(1)
    };
    if op == 0 { form } else { form.locks() }
}

fn exchanges(random: &mut Random) -> Form {
    let (wide, size) = sized(random);
    match random.below(3) {
        0 => Form::new(Map::One, 0x86 + wide, Shape::Register, size).locks(),
        1 => Form::new(Map::Two, 0xc0 + wide, Shape::Register, size).locks(),
        _ => {
            let form = Form::new(Map::Two, 0xb0 + wide, Shape::Register, size).locks();
            Form {
                compares: true,
                ..form
            }
        }
    }
}

fn extensions(random: &mut Random, code: Code) -> Form {
    match random.below(5) {
        0 => Form::new(Map::Two, 0xb6, Shape::Register, Size::Byte),
        1 => Form::new(Map::Two, 0xb7, Shape::Register, Size::Word),
        2 => Form::new(Map::Two, 0xbe, Shape::Register, Size::Byte),
        3 => Form::new(Map::Two, 0xbf, Shape::Register, Size::Word),
        // MOVSXD, which the manual discourages without REX.W.
        _ if code == Code::Bits64 => {
            Form::new(Map::One, 0x63, Shape::Register, Size::Dword).taking(Taken::All)
        }
        _ => Form::new(Map::Two, 0xbe, Shape::Register, Size::Byte),
    }
}

fn conditions(random: &mut Random) -> Form {
    let condition = random.below(16) as u8;
    if random.one_in(2) {
        Form::new(Map::Two, 0x90 + condition, Shape::Extended(0), Size::Byte)
    } else {
        Form::new(Map::Two, 0x40 + condition, Shape::Register, Size::Operand)
    }
}

fn rare(random: &mut Random) -> Form {
    const MOVBE: u32 = 22;
    match random.below(3) {
        // MOVNTI.
        0 => Form::new(Map::Two, 0xc3, Shape::Register, Size::Operand).taking(Taken::All),
        1 if cpu::has_ecx1(MOVBE) => {
            let opcode = 0xf0 + random.below(2) as u8;
            Form::new(Map::Three, opcode, Shape::Register, Size::Operand).taking(Taken::Repeats)
        }
        // CLFLUSH.
        _ => Form::new(Map::Two, 0xae, Shape::Extended(7), Size::Byte).taking(Taken::All),
    }
}

fn strings(random: &mut Random) -> Form {
    use StringKind::{Cmps, Ins, Lods, Movs, Outs, Scas, Stos};
    let (wide, size) = sized(random);
    let kinds = [
        (0xa4, Movs),
        (0xa4, Movs),
        (0xa6, Cmps),
        (0xaa, Stos),
        (0xac, Lods),
        (0xae, Scas),
        (0x6c, Ins),
        (0x6e, Outs),
    ];
    let (opcode, kind) = kinds[random.below(kinds.len() as u64) as usize];
    Form::new(Map::One, opcode + wide, Shape::String(kind), size)
}
