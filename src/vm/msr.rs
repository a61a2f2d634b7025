//! Which model-specific registers a guest has, and what may be written to them.
//!
//! | class | registers | why |
//! |---|---|---|
//! | passed through, in the VMCS | FS and GS base, SYSENTER_CS/ESP/EIP | an exit saves them, an entry loads them |
//! | passed through, [switched](SWITCHED) | KERNEL_GS_BASE, STAR, LSTAR, CSTAR, FMASK, TSC_AUX | the guest's values are swapped with the host's |
//! | read passed through | TSC | the CPU adds the offset |
//! | in the VMCS, checked here | EFER, PAT | a bad value would fail the next VM entry |
//! | constant | APIC_BASE, MISC_ENABLE, PLATFORM_ID, BIOS_SIGN_ID | system software reads them without asking CPUID |
//!
//! Every other one raises #GP(0), as on a CPU that lacks it: MTRRs, machine check, speculation control and
//! feature control are not in the guest's CPUID either. Nothing here touches an MSR of the host. What is passed through
//! is checked by the CPU: a non-canonical address raises #GP in the guest, without an exit.

use bit_field::BitField;
use x86::msr::{
    IA32_APIC_BASE, IA32_BIOS_SIGN_ID, IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_MISC_ENABLE,
    IA32_PAT, IA32_PLATFORM_ID, IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_SYSENTER_ESP,
    IA32_TIME_STAMP_COUNTER, IA32_TSC_AUX,
};
use x86_64::registers::control::{Cr0Flags, EferFlags};

use super::cpuid::Features;
use crate::vmx::cpu::SWITCHED_MSRS;

/// The registers that a guest writes without an exit and that neither exit nor entry switches: whoever enters a
/// guest swaps them. [`IA32_TSC_AUX`] is among them only where the guest has it.
pub const SWITCHED: [u32; SWITCHED_MSRS.len()] = SWITCHED_MSRS;

/// The other registers without exits: the VMCS holds them.
const IN_VMCS: [u32; 5] = [
    IA32_FS_BASE,
    IA32_GS_BASE,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
];

/// The APIC at its usual place, switched off, on the bootstrap processor.
const APIC_BASE_VALUE: u64 = 0xfee0_0000 | 1 << 8;
/// Fast strings; branch trace storage and precise event sampling unavailable.
const MISC_ENABLE_VALUE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Microcode revision 1, in the high half. Software that looks for bugs fixed by microcode leaves a virtual CPU alone.
const BIOS_SIGN_ID_VALUE: u64 = 1 << 32;

/// A general-protection exception with error code 0 is due in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// Where the value of a RDMSR comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This is it.
    Value(u64),
    /// The guest's IA32_EFER in the VMCS.
    Efer,
    /// The guest's IA32_PAT in the VMCS.
    Pat,
    /// The guest's time-stamp counter.
    Tsc,
}

/// What a WRMSR with a legal value asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing.
    Done,
    /// The guest's IA32_EFER becomes this.
    Efer(u64),
    /// The guest's IA32_PAT becomes this.
    Pat(u64),
    /// The guest's time-stamp counter goes on from here.
    Tsc(u64),
}

/// The guest state on which the legality of a write depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The guest's CR0.
    pub cr0: u64,
    /// The guest's EFER.
    pub efer: u64,
}

/// RDMSR with this RCX, of which the lower half counts.
#[inline]
pub fn read(rcx: u64) -> Result<Read, Gp> {
    match rcx as u32 {
        IA32_EFER => Ok(Read::Efer),
        IA32_PAT => Ok(Read::Pat),
        IA32_TIME_STAMP_COUNTER => Ok(Read::Tsc),
        index => constant(index).map(Read::Value).ok_or(Gp),
    }
}

/// WRMSR with this RCX, of which the lower half counts. For the value see [`written_value`].
pub fn write(
    rcx: u64,
    value: u64,
    features: &Features,
    live: impl FnOnce() -> Live,
) -> Result<Write, Gp> {
    match rcx as u32 {
        IA32_EFER => efer(value, features, live()).map(Write::Efer),
        IA32_PAT if pat_is_legal(value) => Ok(Write::Pat(value)),
        IA32_TIME_STAMP_COUNTER => Ok(Write::Tsc(value)),
        // Loaders clear it before they ask for the revision.
        IA32_BIOS_SIGN_ID => Ok(Write::Done),
        index if constant(index) == Some(value) => Ok(Write::Done),
        _ => Err(Gp),
    }
}

/// The value that WRMSR takes from EDX:EAX.
pub const fn written_value(rax: u64, rdx: u64) -> u64 {
    rdx << 32 | rax & 0xffff_ffff
}

/// RAX and RDX after RDMSR has read `value`.
pub const fn read_result(value: u64) -> (u64, u64) {
    (value & 0xffff_ffff, value >> 32)
}

fn constant(index: u32) -> Option<u64> {
    match index {
        IA32_APIC_BASE => Some(APIC_BASE_VALUE),
        IA32_MISC_ENABLE => Some(MISC_ENABLE_VALUE),
        IA32_BIOS_SIGN_ID => Some(BIOS_SIGN_ID_VALUE),
        IA32_PLATFORM_ID => Some(0),
        _ => None,
    }
}

/// SDM "Extended Feature Enable Register", 2.2.1: LMA is read-only; LME may not change while paging is on.
fn efer(value: u64, features: &Features, live: Live) -> Result<u64, Gp> {
    let lma = EferFlags::LONG_MODE_ACTIVE.bits();
    let lme = EferFlags::LONG_MODE_ENABLE.bits();
    let mut allowed = EferFlags::SYSTEM_CALL_EXTENSIONS.bits() | lme | lma;
    if features.no_execute {
        allowed |= EferFlags::NO_EXECUTE_ENABLE.bits();
    }
    let paging = live.cr0 & Cr0Flags::PAGING.bits() != 0;
    if value & !allowed != 0 || paging && (value ^ live.efer) & lme != 0 {
        return Err(Gp);
    }
    Ok(value & !lma | live.efer & lma)
}

/// SDM "IA32_PAT MSR", 14.12.2: memory types 0, 1, 4, 5, 6, 7 in each of eight bytes.
fn pat_is_legal(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|memory_type| matches!(memory_type, 0 | 1 | 4..=7))
}

/// Bytes of an MSR bitmap.
pub const BITMAP_SIZE: usize = 4096;
/// Where the bits for writes begin.
const WRITES: usize = 2048;
const HIGH_FIRST: u32 = 0xc000_0000;

/// Fills the MSR bitmap (SDM "MSR-Bitmap Address", 26.6.9): a set bit makes the access exit.
pub fn fill_bitmap(bitmap: &mut [u8; BITMAP_SIZE], features: &Features) {
    bitmap.fill(0xff);
    let mut pass = |index: u32, half: usize| {
        if let Some((byte, bit)) = place(index)
            && let Some(byte) = bitmap.get_mut(half + byte)
        {
            byte.set_bit(bit, false);
        }
    };
    for index in IN_VMCS.into_iter().chain(switched(features)) {
        pass(index, 0);
        pass(index, WRITES);
    }
    pass(IA32_TIME_STAMP_COUNTER, 0);
}

/// The registers out of [`SWITCHED`] that a guest with these features has.
pub fn switched(features: &Features) -> impl Iterator<Item = u32> + use<> {
    let tsc_aux = features.tsc_aux;
    SWITCHED
        .into_iter()
        .filter(move |&index| index != IA32_TSC_AUX || tsc_aux)
}

/// Byte and bit of an MSR in either half of the bitmap, if it has one.
fn place(index: u32) -> Option<(usize, usize)> {
    let (quarter, number) = match index {
        0..0x2000 => (0, index),
        HIGH_FIRST..0xc000_2000 => (1024, index - HIGH_FIRST),
        _ => return None,
    };
    Some((quarter + number as usize / 8, number as usize % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURES: Features = Features {
        cr4: 0,
        xcr0: 0,
        physical_bits: 39,
        no_execute: true,
        gib_pages: true,
        tsc_aux: true,
    };
    const PAGING_ON: Live = Live {
        cr0: 0x8000_0011,
        efer: 0x500,
    };

    fn wr(index: u32, value: u64) -> Result<Write, Gp> {
        write(index.into(), value, &FEATURES, || PAGING_ON)
    }

    #[test]
    fn every_index_is_answered_and_most_do_not_exist() {
        let all = (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .chain([0x4000_0000, u32::MAX]);
        let there: Vec<u32> = all.filter(|&index| read(index.into()).is_ok()).collect();
        assert_eq!(there, [0x10, 0x17, 0x1b, 0x8b, 0x1a0, 0x277, 0xc000_0080]);
        for index in [
            0x3a, 0x3b, 0x48, 0xfe, 0x10a, 0x179, 0x200, 0x480, 0x6e0, 0x800, 0xda0,
        ] {
            assert_eq!(
                (read(index.into()), wr(index, 0)),
                (Err(Gp), Err(Gp)),
                "{index:#x}"
            );
        }
    }

    #[test]
    fn only_the_lower_half_of_rcx_counts() {
        assert_eq!(read(0xffff_ffff_0000_0277), Ok(Read::Pat));
        assert_eq!(
            written_value(0xffff_ffff_0000_0001, 0xffff_ffff_0000_0002),
            0x2_0000_0001
        );
        assert_eq!(read_result(0x1_8000_0002), (0x8000_0002, 1));
    }

    #[test]
    fn efer_of_every_bit() {
        for bit in 0..64 {
            let value = 0x100 | 1 << bit;
            let expected = match bit {
                0 | 8 | 10 | 11 => Ok(Write::Efer(value | 0x400)),
                _ => Err(Gp),
            };
            assert_eq!(wr(IA32_EFER, value), expected, "{bit}");
        }
        assert_eq!(wr(IA32_EFER, 0), Err(Gp), "LME while paging");
        assert_eq!(
            wr(IA32_EFER, 0x100),
            Ok(Write::Efer(0x500)),
            "LMA is read-only"
        );
        let off = || Live { cr0: 1, efer: 0 };
        assert_eq!(
            write(IA32_EFER.into(), 0x500, &FEATURES, off),
            Ok(Write::Efer(0x100))
        );
        let no_nx = Features {
            no_execute: false,
            ..FEATURES
        };
        assert_eq!(
            write(IA32_EFER.into(), 0x900, &no_nx, || PAGING_ON),
            Err(Gp)
        );
    }

    #[test]
    fn pat_of_every_type_in_every_byte() {
        for byte in 0..8 {
            for memory_type in 0..=255u64 {
                let value = memory_type << (8 * byte);
                let legal = matches!(memory_type, 0 | 1 | 4 | 5 | 6 | 7);
                let expected = if legal {
                    Ok(Write::Pat(value))
                } else {
                    Err(Gp)
                };
                assert_eq!(wr(IA32_PAT, value), expected);
            }
        }
        assert_eq!(
            wr(IA32_PAT, 0x0007_0406_0007_0406),
            Ok(Write::Pat(0x0007_0406_0007_0406))
        );
    }

    #[test]
    fn constants_take_their_own_value_only() {
        for index in [IA32_APIC_BASE, IA32_MISC_ENABLE, IA32_PLATFORM_ID] {
            let Ok(Read::Value(value)) = read(index.into()) else {
                panic!("{index:#x}")
            };
            assert_eq!(wr(index, value), Ok(Write::Done));
            for bit in 0..64 {
                assert_eq!(wr(index, value ^ 1 << bit), Err(Gp), "{index:#x} {bit}");
            }
        }
        assert_eq!(wr(IA32_BIOS_SIGN_ID, 0), Ok(Write::Done));
        assert_eq!(
            wr(IA32_TIME_STAMP_COUNTER, u64::MAX),
            Ok(Write::Tsc(u64::MAX))
        );
    }

    /// Whether the CPU exits on an access, as the manual describes the bitmap.
    fn exits(bitmap: &[u8; BITMAP_SIZE], index: u32, write: bool) -> bool {
        let quarter = match (index, write) {
            (0..=0x1fff, false) => 0,
            (0xc000_0000..=0xc000_1fff, false) => 1,
            (0..=0x1fff, true) => 2,
            (0xc000_0000..=0xc000_1fff, true) => 3,
            _ => return true,
        };
        let number = (index & 0x1fff) as usize;
        bitmap[quarter * 1024 + number / 8] >> (number % 8) & 1 != 0
    }

    #[test]
    fn the_bitmap_passes_what_the_table_says_and_no_more() {
        let passed = |features: &Features, write| -> Vec<u32> {
            let mut bitmap = [0x55; BITMAP_SIZE];
            fill_bitmap(&mut bitmap, features);
            (0..0x2000)
                .chain(0xc000_0000..0xc000_2000)
                .filter(|&index| !exits(&bitmap, index, write))
                .collect()
        };
        let both = [
            0x174,
            0x175,
            0x176,
            0xc000_0081,
            0xc000_0082,
            0xc000_0083,
            0xc000_0084,
            0xc000_0100,
            0xc000_0101,
            0xc000_0102,
            0xc000_0103,
        ];
        assert_eq!(passed(&FEATURES, true), both);
        assert_eq!(passed(&FEATURES, false), [&[0x10], &both[..]].concat());
        let no_aux = Features {
            tsc_aux: false,
            ..FEATURES
        };
        assert_eq!(passed(&no_aux, true), both[..both.len() - 1]);
        assert_eq!(switched(&no_aux).count(), 5);
    }
}
