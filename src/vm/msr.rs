//! Which model-specific registers a guest has, and what may be written to them.
//!
//! | registers | where the guest's value is | RDMSR | WRMSR | who checks what is written |
//! |---|---|---|---|---|
//! | FS_BASE, GS_BASE | VMCS | passed | passed | the CPU: #GP if not canonical. Systems write them at every switch of tasks, and hypervisors below pass them through as well |
//! | KERNEL_GS_BASE | the CPU, [switched](SWITCHED_MSRS) | passed | passed | the same |
//! | SYSENTER_CS | VMCS | passed | passed | nobody: every value is legal, and 32 bits are kept |
//! | STAR | the CPU, switched | passed | passed | nobody: every value is legal |
//! | SYSENTER_ESP, SYSENTER_EIP | VMCS | passed | exits | here: canonical. KVM below makes it so instead of raising #GP |
//! | LSTAR, CSTAR | the CPU, switched | passed | exits | here: canonical |
//! | FMASK, TSC_AUX | the CPU, switched | passed | exits | here: 32 bits. KVM below takes any FMASK while SYSCALL is off |
//! | TSC | VMCS, as an offset | passed | exits | nobody: every value is legal |
//! | EFER, PAT | VMCS | exits | exits | here: a bad value would fail the next VM entry |
//! | APIC_BASE, MISC_ENABLE, PLATFORM_ID, BIOS_SIGN_ID | constant | exits | exits | here. System software reads them without asking CPUID |
//! | others | nowhere | #GP(0) | #GP(0) | as on a CPU that lacks them: MTRRs, machine check, speculation control and feature control are not in the guest's CPUID either |
//!
//! So the CPU is trusted with a check only where an exit would be felt and where whoever is below us leaves it to the CPU, too.
//! All others that can be wrong are written so rarely that an exit is nothing, and a bad value in them would be
//! a VM entry that fails (SYSENTER_ESP, SYSENTER_EIP), or a #GP in the hypervisor when it switches guests.

use bit_field::BitField;
use x86::msr::{
    IA32_APIC_BASE, IA32_BIOS_SIGN_ID, IA32_CSTAR, IA32_EFER, IA32_FMASK, IA32_FS_BASE,
    IA32_GS_BASE, IA32_KERNEL_GSBASE, IA32_LSTAR, IA32_MISC_ENABLE, IA32_PAT, IA32_PLATFORM_ID,
    IA32_STAR, IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_SYSENTER_ESP, IA32_TIME_STAMP_COUNTER,
    IA32_TSC_AUX,
};
use x86_64::registers::control::{Cr0Flags, EferFlags};

use super::cpuid::Features;
use crate::virt::cpu::SWITCHED_MSRS;

/// The registers that a guest writes without an exit.
const WRITTEN_FREELY: [u32; 5] = [
    IA32_FS_BASE,
    IA32_GS_BASE,
    IA32_KERNEL_GSBASE,
    IA32_SYSENTER_CS,
    IA32_STAR,
];

/// The other registers that a guest reads without an exit: the VMCS holds them.
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
    /// The guest's IA32_SYSENTER_ESP in the VMCS becomes this.
    SysenterEsp(u64),
    /// The guest's IA32_SYSENTER_EIP in the VMCS becomes this.
    SysenterEip(u64),
    /// One of [`SWITCHED_MSRS`], which is in the CPU, becomes this.
    Switched(u32, u64),
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
///
/// # Errors
/// #GP(0): the guest has no such MSR.
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
///
/// # Errors
/// #GP(0): the guest has no such MSR, or may not write the value.
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
        IA32_SYSENTER_ESP if is_canonical(value) => Ok(Write::SysenterEsp(value)),
        IA32_SYSENTER_EIP if is_canonical(value) => Ok(Write::SysenterEip(value)),
        index @ (IA32_LSTAR | IA32_CSTAR) if is_canonical(value) => {
            Ok(Write::Switched(index, value))
        }
        IA32_FMASK if value >> 32 == 0 => Ok(Write::Switched(IA32_FMASK, value)),
        IA32_TSC_AUX if value >> 32 == 0 && features.tsc_aux => {
            Ok(Write::Switched(IA32_TSC_AUX, value))
        }
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

/// Whether bits 63 to 47 are the same: guests have no 5-level paging (SDM "Canonical Addressing", vol. 1, 3.3.7.1).
const fn is_canonical(value: u64) -> bool {
    (value << 16) as i64 >> 16 == value as i64
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
    for (index, write) in passed(features) {
        pass(index, if write { WRITES } else { 0 });
    }
}

/// The accesses that do not exit: to which register, and whether it is written.
pub fn passed(features: &Features) -> impl Iterator<Item = (u32, bool)> + use<> {
    let read = IN_VMCS
        .into_iter()
        .chain(switched(features))
        .chain([IA32_TIME_STAMP_COUNTER]);
    let read = read.map(|index| (index, false));
    read.chain(WRITTEN_FREELY.map(|index| (index, true)))
}

/// The registers that a guest with these features reads without an exit and that neither exit nor entry switches: whoever enters
/// a guest swaps them.
pub fn switched(features: &Features) -> impl Iterator<Item = u32> + use<> {
    let tsc_aux = features.tsc_aux;
    SWITCHED_MSRS
        .into_iter()
        .map(|(index, _)| index)
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
        beyond_physical: 0,
        no_execute: true,
        gib_pages: true,
        wide_4_mib_pages: true,
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

    #[test]
    fn addresses_must_be_canonical_and_32_bits_are_32() {
        let canonical = [0, 1, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX];
        let others = [
            0x8000_0000_0000,
            0xffff_7fff_ffff_ffff,
            1 << 63,
            0x00ff_ffff_ffff_ffff,
            0x5a5a_5a5a_a5a5_a5a5,
        ];
        for value in canonical {
            assert_eq!(wr(IA32_SYSENTER_ESP, value), Ok(Write::SysenterEsp(value)));
            assert_eq!(wr(IA32_SYSENTER_EIP, value), Ok(Write::SysenterEip(value)));
            for index in [IA32_LSTAR, IA32_CSTAR] {
                assert_eq!(wr(index, value), Ok(Write::Switched(index, value)));
            }
        }
        for value in others {
            for index in [IA32_SYSENTER_ESP, IA32_SYSENTER_EIP, IA32_LSTAR, IA32_CSTAR] {
                assert_eq!(wr(index, value), Err(Gp), "{index:#x} {value:#x}");
            }
        }
        for index in [IA32_FMASK, IA32_TSC_AUX] {
            for bit in 0..64 {
                let legal = Ok(Write::Switched(index, 1 << bit));
                let expected = if bit < 32 { legal } else { Err(Gp) };
                assert_eq!(wr(index, 1 << bit), expected, "{index:#x} {bit}");
            }
        }
        let no_aux = Features {
            tsc_aux: false,
            ..FEATURES
        };
        let done = write(IA32_TSC_AUX.into(), 0, &no_aux, || PAGING_ON);
        assert_eq!(done, Err(Gp), "the CPU has none");
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
        let written = [0x174, 0xc000_0081, 0xc000_0100, 0xc000_0101, 0xc000_0102];
        let read = [
            0x10,
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
        assert_eq!(passed(&FEATURES, true), written);
        assert_eq!(passed(&FEATURES, false), read);
        // What is read without an exit and written with one is written here.
        for index in read.into_iter().filter(|index| !written.contains(index)) {
            assert!(wr(index, 0).is_ok(), "{index:#x}");
        }
        let no_aux = Features {
            tsc_aux: false,
            ..FEATURES
        };
        assert_eq!(passed(&no_aux, true), written);
        assert_eq!(passed(&no_aux, false), read[..read.len() - 1]);
        assert_eq!(switched(&no_aux).count(), 5);
    }
}
