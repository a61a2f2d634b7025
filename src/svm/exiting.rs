//! What the instructions are that exit, where the CPU does not say how long they are or which registers they name.
//!
//! It is known already what has exited, so this only finds the end of a few instructions, and makes sure that the bytes are one
//! of those: a guest may have changed them meanwhile.

use super::event::Injection;
use super::exit::Exit;
use super::neutral::{CodeMode, Gpr};
use super::reason::Reason;

/// An instruction that has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exiting {
    /// Its bytes.
    pub length: u8,
    /// The general register that it names, if it names one.
    pub gpr: Option<Gpr>,
}

/// The longest instruction that there is.
pub const LONGEST: usize = 15;

/// What stands before the opcode.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    length: usize,
    lock: bool,
    rex: u8,
}

impl Prefixes {
    fn read(bytes: &[u8], mode: CodeMode) -> Self {
        let mut found = Self::default();
        for byte in bytes {
            match byte {
                0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0xf2 | 0xf3 => {
                    found.rex = 0
                }
                0xf0 => {
                    found.lock = true;
                    found.rex = 0;
                }
                0x40..=0x4f if mode == CodeMode::Bits64 => found.rex = *byte,
                _ => break,
            }
            found.length += 1;
        }
        found
    }
    /// REX.R or REX.B, as bit 3 of a register.
    fn extension(self, bit: u8) -> u8 {
        (self.rex >> bit & 1) << 3
    }
}

/// The instruction in `bytes` by which `exit` came about. `None` where they are not one of those that exit so, or where too
/// few are there. LMSW and SMSW of memory are not told either.
pub fn exiting_instruction(exit: &Exit, mode: CodeMode, bytes: &[u8]) -> Option<Exiting> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let prefixes = Prefixes::read(bytes, mode);
    let rest = bytes.get(prefixes.length..)?;
    let (opcode, gpr) = match exit {
        Exit::Cr(access) => control_register(access.number, access.write, prefixes, rest)?,
        Exit::Dr(access) => {
            let opcode = if access.write { 0x23 } else { 0x21 };
            (3, Some(mov(opcode, access.number, prefixes, rest)?))
        }
        Exit::Msr { write } => (
            plain(&[0x0f, if *write { 0x30 } else { 0x32 }], rest)?,
            None,
        ),
        Exit::Other(reason) => {
            let mut forms = forms(*reason).iter();
            (forms.find_map(|opcode| plain(opcode, rest))?, None)
        }
        _ => return None,
    };
    Some(Exiting {
        length: (prefixes.length + opcode) as u8,
        gpr,
    })
}

/// The bytes of the instruction that has asked for `event`, whose delivery an exit has interrupted: RIP is still at it, but what is
/// pushed is what comes behind it. `None` where the bytes are none that do.
pub fn asking_instruction(event: Injection, mode: CodeMode, bytes: &[u8]) -> Option<u8> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let Prefixes { length, .. } = Prefixes::read(bytes, mode);
    let opcode = match (bytes.get(length..)?, event.vector()) {
        ([0xcd, vector, ..], asked) if *vector == asked => 2,
        ([0xcc, ..], 3) | ([0xce, ..], 4) => 1,
        _ => return None,
    };
    event.is_software().then_some((length + opcode) as u8)
}

/// An opcode without operands.
fn plain(opcode: &[u8], rest: &[u8]) -> Option<usize> {
    rest.starts_with(opcode).then_some(opcode.len())
}

/// MOV from or to the control or debug register `number`; the other operand. Its mode bits do not count.
fn mov(opcode: u8, number: u8, prefixes: Prefixes, rest: &[u8]) -> Option<Gpr> {
    let [0x0f, second, modrm, ..] = *rest else {
        return None;
    };
    let named = modrm >> 3 & 7 | prefixes.extension(2);
    // AMD has LOCK MOV CR0 for CR8, outside 64-bit mode too. DR4 and DR5 are other names of DR6 and DR7.
    let named = if prefixes.lock { named | 8 } else { named };
    (second == opcode && named == number).then(|| {
        let gpr = modrm & 7 | prefixes.extension(0);
        Gpr::from_low_bits(gpr.into())
    })
}

fn control_register(
    number: u8,
    write: bool,
    prefixes: Prefixes,
    rest: &[u8],
) -> Option<(usize, Option<Gpr>)> {
    let opcode = if write { 0x22 } else { 0x20 };
    if let Some(gpr) = mov(opcode, number, prefixes, rest) {
        return Some((3, Some(gpr)));
    }
    let [0x0f, second, ..] = *rest else {
        return None;
    };
    match (number, write, second) {
        // CLTS.
        (0, true, 0x06) => Some((2, None)),
        // LMSW and SMSW of a register.
        (0, _, 0x01) => {
            let modrm = *rest.get(2)?;
            let form = if write { 6 } else { 4 };
            let gpr = Gpr::from_low_bits((modrm & 7 | prefixes.extension(0)).into());
            (modrm >> 6 == 3 && modrm >> 3 & 7 == form).then_some((3, Some(gpr)))
        }
        _ => None,
    }
}

/// The opcodes that exit for `reason`, of those that the host carries out for a guest or steps over.
const fn forms(reason: Reason) -> &'static [&'static [u8]] {
    match reason {
        Reason::Cpuid => &[&[0x0f, 0xa2]],
        Reason::Hlt => &[&[0xf4]],
        Reason::Invd => &[&[0x0f, 0x08]],
        Reason::Wbinvd => &[&[0x0f, 0x09]],
        Reason::Rdtsc => &[&[0x0f, 0x31]],
        Reason::Rdpmc => &[&[0x0f, 0x33]],
        Reason::Rsm => &[&[0x0f, 0xaa]],
        Reason::Pause => &[&[0x90]],
        Reason::Icebp => &[&[0xf1]],
        Reason::Monitor => &[&[0x0f, 0x01, 0xc8], &[0x0f, 0x01, 0xfa]],
        Reason::Mwait | Reason::MwaitArmed => &[&[0x0f, 0x01, 0xc9], &[0x0f, 0x01, 0xfb]],
        Reason::Xsetbv => &[&[0x0f, 0x01, 0xd1]],
        Reason::Vmrun => &[&[0x0f, 0x01, 0xd8]],
        Reason::Vmmcall => &[&[0x0f, 0x01, 0xd9]],
        Reason::Vmload => &[&[0x0f, 0x01, 0xda]],
        Reason::Vmsave => &[&[0x0f, 0x01, 0xdb]],
        Reason::Stgi => &[&[0x0f, 0x01, 0xdc]],
        Reason::Clgi => &[&[0x0f, 0x01, 0xdd]],
        Reason::Skinit => &[&[0x0f, 0x01, 0xde]],
        Reason::Invlpga => &[&[0x0f, 0x01, 0xdf]],
        Reason::Rdtscp => &[&[0x0f, 0x01, 0xf9]],
        Reason::Rdpru => &[&[0x0f, 0x01, 0xfd]],
        _ => &[],
    }
}

#[cfg(test)]
#[path = "exiting_tests.rs"]
mod tests;
