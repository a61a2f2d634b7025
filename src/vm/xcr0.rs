//! What a guest may write to XCR0.

use x86_64::registers::xcontrol::XCr0Flags;

use super::cpuid::Features;
use super::msr::{Gp, written_value};

/// XSETBV: the new XCR0, or #GP(0) (SDM "XSETBV—Set Extended Control Register"). #UD for CR4.OSXSAVE = 0 comes before
/// the exit.
///
/// # Errors
/// #GP(0): the register is not 0, the value is not allowed, or the guest is not at CPL 0.
pub fn xsetbv(rcx: u64, rax: u64, rdx: u64, cpl: u8, features: &Features) -> Result<u64, Gp> {
    let value = written_value(rax, rdx);
    if cpl == 0 && rcx as u32 == 0 && is_legal(value, features) {
        Ok(value)
    } else {
        Err(Gp)
    }
}

/// SDM "Enabling the XSAVE Feature Set", vol. 1, 13.3: x87 always; AVX needs SSE; the three parts of AVX-512 go
/// together and need AVX.
fn is_legal(value: u64, features: &Features) -> bool {
    const AVX512: XCr0Flags = XCr0Flags::OPMASK
        .union(XCr0Flags::ZMM_HI256)
        .union(XCr0Flags::HI16_ZMM);
    let Some(flags) = XCr0Flags::from_bits(value) else {
        return false;
    };
    let avx512 = flags & AVX512;
    value & !features.xcr0 == 0
        && flags.contains(XCr0Flags::X87)
        && (!flags.contains(XCr0Flags::AVX) || flags.contains(XCr0Flags::SSE))
        && (avx512.is_empty() || avx512 == AVX512 && flags.contains(XCr0Flags::AVX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(xcr0: u64) -> Features {
        Features {
            cr4: 0,
            xcr0,
            physical_bits: 39,
            beyond_physical: 0,
            no_execute: true,
            gib_pages: true,
            wide_4_mib_pages: true,
            tsc_aux: true,
        }
    }

    fn legal(offered: u64) -> Vec<u64> {
        let write = |value: u64| xsetbv(0, value, value >> 32, 0, &features(offered));
        (0..0x1000)
            .chain((12..64).map(|bit| 7 | 1 << bit))
            .filter_map(|v| write(v).ok())
            .collect()
    }

    #[test]
    fn every_combination() {
        assert_eq!(legal(0xe7), [1, 3, 7, 0xe7]);
        assert_eq!(legal(0x7), [1, 3, 7]);
        assert_eq!(legal(0x3), [1, 3]);
        assert_eq!(legal(0), [0u64; 0]);
        // Were they offered by mistake, MPX and PKRU would still be named by the caller's features, not invented.
        assert!(legal(0xe7).iter().all(|value| value & 0x218 == 0));
    }

    #[test]
    fn privilege_and_index() {
        let all = features(0xe7);
        assert_eq!(xsetbv(0, 7, 0, 3, &all), Err(Gp));
        assert_eq!(xsetbv(1, 7, 0, 0, &all), Err(Gp));
        assert_eq!(xsetbv(0xffff_ffff, 7, 0, 0, &all), Err(Gp));
        assert_eq!(
            xsetbv(1 << 32, 7 | 1 << 40, 1 << 40, 0, &all),
            Ok(7),
            "lower halves count"
        );
        assert_eq!(xsetbv(0, 7, 1 << 31, 0, &all), Err(Gp));
    }
}
