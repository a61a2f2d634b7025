//! Memory types: memory that the MTRRs do not make write-back is not used.
//!
//! Guests have their memory write-back, and so has the hypervisor. A frame for which the MTRRs say otherwise would have two
//! types, of which the manual says that what comes of it is undefined (SDM "Memory Type Range Registers (MTRRs)", 12.11).

use super::info::BootInfo;
use super::power;
use offshoot::virt::cpu::ThisCpu;
use offshoot::virt::cpuid::address_bits;
use offshoot::vm::mtrr::{NoMtrrs, read_mtrrs};
use x86::msr::{IA32_MTRR_DEF_TYPE, IA32_MTRR_PHYSBASE0, IA32_MTRRCAP, rdmsr, wrmsr};
use x86_64::registers::control::{Cr0, Cr0Flags};

/// Reads the MTRRs and takes what is not write-back out of the memory of `boot`.
pub fn init(boot: &mut BootInfo, test: Option<SelfTest>) {
    if let Some(test) = test {
        test.apply();
    }
    let mtrrs = match read_mtrrs(&ThisCpu) {
        Ok(mtrrs) => mtrrs,
        Err(why @ NoMtrrs::TooMany(_)) => power::end(Err(format_args!("{why}"))),
        Err(why) => {
            log::warn!("{why}: all memory is taken for write-back");
            return;
        }
    };
    log::debug!("MTRRs: {mtrrs}");
    let taken = mtrrs.take_not_write_back(&mut boot.memory);
    if taken.given_up() != 0 {
        let kib = taken.given_up() >> 10;
        log::warn!("{kib} KiB of memory in more ranges are not used: they are not write-back");
    }
    for range in taken.ranges() {
        let kib = range.len() >> 10;
        match mtrrs.type_of(range) {
            Some(other) => log::warn!(
                "{kib} KiB of memory at {range} are not used: the MTRRs make them {other}"
            ),
            None => log::warn!(
                "{kib} KiB of memory at {range} are not used: the MTRRs do not make them write-back"
            ),
        }
    }
    boot.mtrrs = Some(mtrrs);
}

/// What `selftest=` can ask for here.
#[derive(Clone, Copy)]
pub enum SelfTest {
    /// 1 MiB of memory is uncacheable.
    Hole,
    /// The MTRRs are switched off.
    Off,
}

impl SelfTest {
    pub const NAMES: &str = "mtrr-hole, mtrr-off";

    pub fn of(which: &str) -> Option<Self> {
        match which {
            "mtrr-hole" => Some(Self::Hole),
            "mtrr-off" => Some(Self::Off),
            _ => None,
        }
    }

    /// Changes the MTRRs, which the CPU must have.
    fn apply(self) {
        match self {
            Self::Hole => change(make_hole),
            Self::Off => change(|default| default & !ENABLED),
        }
    }
}

/// Where the hole is: memory that a machine of more than 64 MiB has and that no boot loader uses for a few modules.
const HOLE: u64 = 64 << 20;
const HOLE_MASK: u64 = !((1 << 20) - 1);

/// Makes the hole with the first variable range that is free.
fn make_hole(default: u64) -> u64 {
    // SAFETY: a CPU with MTRRs has the register.
    let count = unsafe { rdmsr(IA32_MTRRCAP) } as u32 & 0xff;
    let mut masks = (0..count).map(|range| IA32_MTRR_PHYSBASE0 + 2 * range + 1);
    // SAFETY: these are there, by the capability.
    let free = masks.find(|mask| unsafe { rdmsr(*mask) } & ENABLED == 0);
    let (width, _) = address_bits(&ThisCpu);
    if let Some(mask) = free {
        // SAFETY: as before; nothing uses the memory yet. Type 0 is uncacheable.
        unsafe {
            wrmsr(mask - 1, HOLE);
            wrmsr(mask, HOLE_MASK & ((1 << width) - 1) | ENABLED);
        }
    }
    default
}

/// In IA32_MTRR_DEF_TYPE, and in the mask of a variable range.
const ENABLED: u64 = 1 << 11;

/// Has `change` at the MTRRs while they are switched off; it returns what IA32_MTRR_DEF_TYPE is to be (SDM "MTRR
/// Considerations in MP Systems", 12.11.8, of one processor).
fn change(change: impl FnOnce(u64) -> u64) {
    let cr0 = Cr0::read();
    // SAFETY: a user asked for it, of a CPU with MTRRs: caching is switched off and back on with nothing left in the
    // caches; what changes is the type of memory that nobody uses, or of all of it.
    unsafe {
        Cr0::write(cr0 | Cr0Flags::CACHE_DISABLE);
        core::arch::asm!("wbinvd", options(nostack));
        let default = rdmsr(IA32_MTRR_DEF_TYPE);
        wrmsr(IA32_MTRR_DEF_TYPE, default & !ENABLED);
        let default = change(default);
        wrmsr(IA32_MTRR_DEF_TYPE, default);
        core::arch::asm!("wbinvd", options(nostack));
        Cr0::write(cr0);
    }
    x86_64::instructions::tlb::flush_all();
}
