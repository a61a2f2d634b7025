//! From the bytes of an instruction to what it does. The decoding itself is `yaxpeax_x86`'s, which has a module with
//! types of its own for each mode; here they become one.

use arrayvec::ArrayVec;

use super::Width;
use super::instruction::{
    Base, Binary, BitChange, Condition, Instruction, LONGEST, MemoryOperand, Op, Operand, Part,
    Repeat, StringOp, Unary,
};
use crate::virt::CodeMode;
use crate::virt::Gpr;
use crate::virt::SegmentRegister;
use crate::virt::io::AddressSize;

/// Why bytes could not be turned into an [`Instruction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// There is more of the instruction than these bytes.
    TooShort,
    /// This is no instruction.
    Invalid,
    /// This instruction is not carried out.
    NotCarriedOut,
}

/// Decodes the instruction that `bytes` begin with.
///
/// # Errors
/// The bytes end too early, or are no instruction that accesses memory in a way that is known here.
pub fn decode(mode: CodeMode, bytes: &[u8]) -> Result<Instruction, DecodeError> {
    let prefixes = Prefixes::of(bytes, mode);
    match prefixes.rewritten(bytes, mode) {
        None => decode_plain(mode, &prefixes, bytes),
        Some((plain, dropped)) => {
            let mut instruction = decode_plain(mode, &prefixes, &plain)?;
            instruction.length += dropped;
            if usize::from(instruction.length) > LONGEST {
                return Err(DecodeError::Invalid);
            }
            Ok(instruction)
        }
    }
}

fn decode_plain(
    mode: CodeMode,
    prefixes: &Prefixes,
    bytes: &[u8],
) -> Result<Instruction, DecodeError> {
    let instruction = match mode {
        CodeMode::Bits64 => long::decode(bytes, prefixes.segment),
        CodeMode::Bits32 => protected::decode(bytes, prefixes.segment),
        CodeMode::Bits16 => real::decode(bytes, prefixes.segment),
    }?;
    Ok(corrected(instruction, mode, prefixes))
}

/// Corrects what `yaxpeax_x86` 2.2 makes of three encodings: INS and OUTS with REX.W move 32 bits, with an operand-size prefix
/// too; BT and its kin with a constant have the operand size like
/// everything else, and MOVSXD without REX.W does not extend to 64 bits, nor with an operand-size prefix to 32, where it
/// reads 16 bits on Intel's processors.
fn corrected(mut instruction: Instruction, mode: CodeMode, prefixes: &Prefixes) -> Instruction {
    let Prefixes {
        other_size, rex_w, ..
    } = *prefixes;
    match (instruction.op, instruction.first, instruction.second) {
        (Op::Bit(_), _, Operand::Immediate(_)) => {
            instruction.width = match (mode, other_size) {
                _ if rex_w => Width::Qword,
                (CodeMode::Bits16, true) | (CodeMode::Bits32 | CodeMode::Bits64, false) => {
                    Width::Dword
                }
                _ => Width::Word,
            }
        }
        (Op::MoveSigned, Operand::Register(part), _) if prefixes.is_movsxd && !rex_w => {
            let width = if other_size {
                Width::Word
            } else {
                Width::Dword
            };
            instruction.first = Operand::Register(Part::low(part.gpr, width));
            instruction.width = width;
        }
        (Op::String(StringOp::Ins | StringOp::Outs), ..)
            if rex_w && instruction.width == Width::Word =>
        {
            instruction.width = Width::Dword;
        }
        _ => {}
    }
    instruction
}

/// What of the beginning of an instruction the decoder does not tell, or not right.
struct Prefixes {
    /// The segment that the last such prefix names. The decoder forgets one that names DS, which counts where the base is
    /// RSP or RBP outside 64-bit mode.
    segment: Option<SegmentRegister>,
    other_size: bool,
    rex_w: bool,
    /// How many bytes are before the opcode.
    len: usize,
    /// How many of them are REX prefixes that do not count.
    void: u8,
    /// The opcode is that of MOVSXD.
    is_movsxd: bool,
}

impl Prefixes {
    /// Those that an instruction begins with. A REX prefix counts only right before the opcode (SDM "REX Prefixes", vol. 2,
    /// 2.2.1).
    fn of(bytes: &[u8], mode: CodeMode) -> Self {
        let long = matches!(mode, CodeMode::Bits64);
        let mut found = Self {
            segment: None,
            other_size: false,
            rex_w: false,
            len: 0,
            void: 0,
            is_movsxd: false,
        };
        let mut rex = 0;
        for &byte in bytes {
            match byte {
                0x40..=0x4f if long => {}
                0x64 => found.segment = Some(SegmentRegister::Fs),
                0x65 => found.segment = Some(SegmentRegister::Gs),
                // Ignored in 64-bit mode (SDM "Segmentation in 64-bit Mode", 3.2.4).
                0x26 | 0x2e | 0x36 | 0x3e if long => {}
                0x26 => found.segment = Some(SegmentRegister::Es),
                0x2e => found.segment = Some(SegmentRegister::Cs),
                0x36 => found.segment = Some(SegmentRegister::Ss),
                0x3e => found.segment = Some(SegmentRegister::Ds),
                0x66 => found.other_size = true,
                0x67 | 0xf0 | 0xf2 | 0xf3 => {}
                opcode => {
                    found.is_movsxd = long && opcode == 0x63;
                    break;
                }
            }
            found.len += 1;
            found.void += u8::from(rex != 0);
            rex = if is_rex(byte, mode) { byte } else { 0 };
        }
        found.rex_w = rex & 8 != 0;
        found
    }

    /// The same instruction as the decoder understands it, and how many bytes it is shorter: it takes REX prefixes to count
    /// that do not, and does not know that 82 stands for 80 outside 64-bit mode (SDM "Opcode Map", vol. 2, appendix A).
    fn rewritten(&self, bytes: &[u8], mode: CodeMode) -> Option<(ArrayVec<u8, LONGEST>, u8)> {
        const GROUP_1: u8 = 0x80;
        const ALSO_GROUP_1: u8 = 0x82;
        let opcode = bytes.get(self.len);
        let alias = opcode == Some(&ALSO_GROUP_1) && !matches!(mode, CodeMode::Bits64);
        if self.void == 0 && !alias {
            return None;
        }
        let counts = |at: usize| at + 1 >= self.len;
        let plain = bytes
            .iter()
            .enumerate()
            .filter(|&(at, &byte)| counts(at) || !is_rex(byte, mode))
            .map(|(at, &byte)| match alias && at == self.len {
                true => GROUP_1,
                false => byte,
            });
        Some((plain.take(LONGEST).collect(), self.void))
    }
}

const fn is_rex(byte: u8, mode: CodeMode) -> bool {
    matches!(mode, CodeMode::Bits64) && byte & 0xf0 == 0x40
}

/// What an address without a segment prefix refers to.
const fn default_segment(base: Base) -> SegmentRegister {
    match base {
        Base::Register(Gpr::Rsp | Gpr::Rbp) => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    }
}

/// Parts of an address, before its segment is known.
struct Address {
    base: Base,
    index: Option<(Gpr, u8)>,
    displacement: u64,
}

impl Address {
    fn in_segment(self, segment: Option<SegmentRegister>) -> Operand {
        let Self {
            base,
            index,
            displacement,
        } = self;
        Operand::Memory(MemoryOperand {
            segment: segment.unwrap_or(default_segment(base)),
            base,
            index,
            displacement,
        })
    }
}

/// The types of one mode of the decoder, and what only it has: classes of registers, the base that is the next
/// instruction, other operands.
macro_rules! mode {
    (
        $name:ident, $arch:ident, $plain:expr, $other:expr,
        disp: $disp:ident, next: $($next:ident)|+,
        parts: { $($class:ident => $width:expr),* },
        addresses: { $($absolute:ident as $signed:ty),* },
        immediates: { $($immediate:ident),* }
    ) => {
        mod $name {
            use super::*;
            use yaxpeax_x86::$arch as x86;
            use x86::{Opcode, Operand as Decoded, RegSpec, register_class as class};

            pub(super) fn decode(
                bytes: &[u8],
                segment: Option<SegmentRegister>,
            ) -> Result<Instruction, DecodeError> {
                let decoder = x86::InstDecoder::default();
                let decoded = decoder.decode_slice(bytes).map_err(|error| match error {
                    x86::DecodeError::ExhaustedInput => DecodeError::TooShort,
                    _ => DecodeError::Invalid,
                })?;
                let opcode = decoded.opcode();
                let op = op(opcode).ok_or(DecodeError::NotCarriedOut)?;
                let operand = |at: u8| {
                    if at < decoded.operand_count() {
                        operand(decoded.operand(at), segment).ok_or(DecodeError::NotCarriedOut)
                    } else {
                        Ok(Operand::None)
                    }
                };
                let (first, second) = match op {
                    Op::String(_) => (Operand::None, Operand::None),
                    _ if decoded.operand_count() > 2 => return Err(DecodeError::NotCarriedOut),
                    _ => (operand(0)?, operand(1)?),
                };
                let accessed = decoded.mem_size().and_then(|size| size.bytes_size());
                let width = match op {
                    // A whole line; one byte stands for it.
                    Op::Nothing => Width::Byte,
                    _ => accessed.and_then(Width::from_bytes).ok_or(DecodeError::NotCarriedOut)?,
                };
                let prefixes = &decoded.prefixes;
                let repeat = match op {
                    Op::String(_) if prefixes.repnz() => Repeat::WhileNotEqual,
                    Op::String(_) if prefixes.rep() => Repeat::WhileEqual,
                    _ => Repeat::No,
                };
                Ok(Instruction {
                    op,
                    first,
                    second,
                    width,
                    repeat,
                    address_size: if prefixes.address_size() { $other } else { $plain },
                    source_segment: segment.unwrap_or(SegmentRegister::Ds),
                    length: length(&decoded),
                })
            }

            fn length(decoded: &x86::Instruction) -> u8 {
                use yaxpeax_arch::LengthedInstruction;
                decoded.len().to_const() as u8
            }

            fn operand(decoded: Decoded, segment: Option<SegmentRegister>) -> Option<Operand> {
                let address = match decoded {
                    Decoded::Register { reg } => return part(reg).map(Operand::Register),
                    Decoded::ImmediateI8 { imm } => return Some(Operand::Immediate(imm as u64)),
                    Decoded::ImmediateU8 { imm } => return Some(Operand::Immediate(imm.into())),
                    Decoded::ImmediateI16 { imm } => return Some(Operand::Immediate(imm as u64)),
                    Decoded::ImmediateU16 { imm } => return Some(Operand::Immediate(imm.into())),
                    Decoded::ImmediateI32 { imm } => return Some(Operand::Immediate(imm as u64)),
                    Decoded::ImmediateU32 { imm } => return Some(Operand::Immediate(imm.into())),
                    Decoded::MemDeref { base: at } => address(base(at)?, None, 0)?,
                    Decoded::$disp { base: at, disp } => address(base(at)?, None, disp)?,
                    Decoded::MemIndexScale { index, scale } => {
                        address(Base::None, Some((index, scale)), 0)?
                    }
                    Decoded::MemIndexScaleDisp { index, scale, disp } => {
                        address(Base::None, Some((index, scale)), disp)?
                    }
                    Decoded::MemBaseIndexScale { base: at, index, scale } => {
                        address(base(at)?, Some((index, scale)), 0)?
                    }
                    Decoded::MemBaseIndexScaleDisp { base: at, index, scale, disp } => {
                        address(base(at)?, Some((index, scale)), disp)?
                    }
                    $(Decoded::$immediate { imm } => return Some(Operand::Immediate(imm as u64)),)*
                    $(Decoded::$absolute { addr } => Address {
                        base: Base::None,
                        index: None,
                        displacement: addr as $signed as u64,
                    },)*
                    _ => return None,
                };
                Some(address.in_segment(segment))
            }

            fn address(base: Base, index: Option<(RegSpec, u8)>, disp: i32) -> Option<Address> {
                let index = match index {
                    Some((register, scale)) => Some((part(register)?.gpr, scale)),
                    None => None,
                };
                Some(Address { base, index, displacement: disp as u64 })
            }

            fn base(register: RegSpec) -> Option<Base> {
                match register.class() {
                    $(class::$next)|+ => Some(Base::NextInstruction),
                    _ => Some(Base::Register(part(register)?.gpr)),
                }
            }

            fn part(register: RegSpec) -> Option<Part> {
                let number = register.num();
                let (width, high) = match register.class() {
                    class::D => (Width::Dword, false),
                    class::W => (Width::Word, false),
                    class::B => (Width::Byte, number & 4 != 0),
                    $(class::$class => ($width, false),)*
                    _ => return None,
                };
                let gpr = if high { number & 3 } else { number };
                Some(Part { gpr: Gpr::from_low_bits(gpr.into()), width, high })
            }

            fn op(opcode: Opcode) -> Option<Op> {
                Some(match opcode {
                    Opcode::MOV | Opcode::MOVZX | Opcode::MOVNTI => Op::Move,
                    Opcode::MOVSX | Opcode::MOVSXD => Op::MoveSigned,
                    Opcode::MOVBE => Op::MoveSwapped,
                    Opcode::ADD => Op::Binary(Binary::Add),
                    Opcode::OR => Op::Binary(Binary::Or),
                    Opcode::ADC => Op::Binary(Binary::Adc),
                    Opcode::SBB => Op::Binary(Binary::Sbb),
                    Opcode::AND => Op::Binary(Binary::And),
                    Opcode::SUB => Op::Binary(Binary::Sub),
                    Opcode::XOR => Op::Binary(Binary::Xor),
                    Opcode::CMP => Op::Binary(Binary::Cmp),
                    Opcode::TEST => Op::Binary(Binary::Test),
                    Opcode::INC => Op::Unary(Unary::Inc),
                    Opcode::DEC => Op::Unary(Unary::Dec),
                    Opcode::NOT => Op::Unary(Unary::Not),
                    Opcode::NEG => Op::Unary(Unary::Neg),
                    Opcode::BT => Op::Bit(BitChange::None),
                    Opcode::BTS => Op::Bit(BitChange::Set),
                    Opcode::BTR => Op::Bit(BitChange::Reset),
                    Opcode::BTC => Op::Bit(BitChange::Complement),
                    Opcode::XCHG => Op::Exchange,
                    Opcode::XADD => Op::ExchangeAdd,
                    Opcode::CMPXCHG => Op::CompareExchange,
                    Opcode::MOVS => Op::String(StringOp::Movs),
                    Opcode::STOS => Op::String(StringOp::Stos),
                    Opcode::LODS => Op::String(StringOp::Lods),
                    Opcode::CMPS => Op::String(StringOp::Cmps),
                    Opcode::SCAS => Op::String(StringOp::Scas),
                    Opcode::INS => Op::String(StringOp::Ins),
                    Opcode::OUTS => Op::String(StringOp::Outs),
                    Opcode::CLFLUSH | Opcode::CLFLUSHOPT | Opcode::CLWB => Op::Nothing,
                    Opcode::CMOVO => Op::MoveIf(Condition(0)),
                    Opcode::CMOVNO => Op::MoveIf(Condition(1)),
                    Opcode::CMOVB => Op::MoveIf(Condition(2)),
                    Opcode::CMOVNB => Op::MoveIf(Condition(3)),
                    Opcode::CMOVZ => Op::MoveIf(Condition(4)),
                    Opcode::CMOVNZ => Op::MoveIf(Condition(5)),
                    Opcode::CMOVNA => Op::MoveIf(Condition(6)),
                    Opcode::CMOVA => Op::MoveIf(Condition(7)),
                    Opcode::CMOVS => Op::MoveIf(Condition(8)),
                    Opcode::CMOVNS => Op::MoveIf(Condition(9)),
                    Opcode::CMOVP => Op::MoveIf(Condition(10)),
                    Opcode::CMOVNP => Op::MoveIf(Condition(11)),
                    Opcode::CMOVL => Op::MoveIf(Condition(12)),
                    Opcode::CMOVGE => Op::MoveIf(Condition(13)),
                    Opcode::CMOVLE => Op::MoveIf(Condition(14)),
                    Opcode::CMOVG => Op::MoveIf(Condition(15)),
                    Opcode::SETO => Op::SetIf(Condition(0)),
                    Opcode::SETNO => Op::SetIf(Condition(1)),
                    Opcode::SETB => Op::SetIf(Condition(2)),
                    Opcode::SETAE => Op::SetIf(Condition(3)),
                    Opcode::SETZ => Op::SetIf(Condition(4)),
                    Opcode::SETNZ => Op::SetIf(Condition(5)),
                    Opcode::SETBE => Op::SetIf(Condition(6)),
                    Opcode::SETA => Op::SetIf(Condition(7)),
                    Opcode::SETS => Op::SetIf(Condition(8)),
                    Opcode::SETNS => Op::SetIf(Condition(9)),
                    Opcode::SETP => Op::SetIf(Condition(10)),
                    Opcode::SETNP => Op::SetIf(Condition(11)),
                    Opcode::SETL => Op::SetIf(Condition(12)),
                    Opcode::SETGE => Op::SetIf(Condition(13)),
                    Opcode::SETLE => Op::SetIf(Condition(14)),
                    Opcode::SETG => Op::SetIf(Condition(15)),
                    _ => return None,
                })
            }
        }
    };
}

mode!(
    long, long_mode, AddressSize::Bits64, AddressSize::Bits32,
    disp: Disp, next: RIP | EIP,
    parts: { Q => Width::Qword, RB => Width::Byte },
    // A 32-bit address without base is extended by its sign (SDM "64-Bit Mode Displacement", vol. 2, 2.2.1.3).
    addresses: { AbsoluteU32 as i32, AbsoluteU64 as u64 },
    immediates: { ImmediateI64, ImmediateU64 }
);
mode!(
    protected, protected_mode, AddressSize::Bits32, AddressSize::Bits16,
    disp: Disp, next: EIP,
    parts: {},
    addresses: { AbsoluteU32 as u32, AbsoluteU16 as u16 },
    immediates: {}
);
mode!(
    real, real_mode, AddressSize::Bits16, AddressSize::Bits32,
    disp: MemDisp, next: EIP,
    parts: {},
    addresses: { AbsoluteU32 as u32, AbsoluteU16 as u16 },
    immediates: {}
);
