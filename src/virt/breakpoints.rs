//! Data and I/O breakpoints on what the host accesses for a guest: the CPU compares its own accesses with them, not those.

use core::ops::BitOrAssign;

use crate::addr::Gva;
use crate::register_bits::CR4_DE;

/// The breakpoints of a guest (SDM "Debug Registers", 19.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoints {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR7.
    pub dr7: u64,
    /// CR4.DE: there are breakpoints on ports.
    pub on_ports: bool,
}

/// L0, G0 to L3, G3 in DR7.
const ENABLED: u64 = 0xff;

/// What a breakpoint is on: R/W0 to R/W3 in DR7.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Instruction,
    Write,
    Port,
    Access,
}

/// Breakpoints that were met: what becomes pending with the completion of the instruction, or of the element of a repetition.
/// Nothing, unless one of them is enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct BreakpointHits(u64);

impl BreakpointHits {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether there are any.
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// B0 to B3 of DR6.
    pub const fn dr6(self) -> u64 {
        self.0
    }
}

impl BitOrAssign for BreakpointHits {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Breakpoints {
    /// Whether this DR7 enables any.
    #[inline(always)]
    pub const fn are_enabled(dr7: u64) -> bool {
        dr7 & ENABLED != 0
    }

    /// From the control registers and DR0 to DR3.
    pub const fn new(dr7: u64, cr4: u64, addresses: [u64; 4]) -> Self {
        Self {
            addresses,
            dr7,
            on_ports: cr4 & CR4_DE != 0,
        }
    }

    /// Those that an access to data meets. What goes beyond `linear_mask` goes on at 0.
    pub fn on_data(&self, at: Gva, bytes: u64, write: bool, linear_mask: u64) -> BreakpointHits {
        let byte = |n| at.as_u64().wrapping_add(n) & linear_mask;
        self.met((0..bytes).map(byte), |kind| {
            kind == Kind::Access || kind == Kind::Write && write
        })
    }

    /// Those that an access to ports meets.
    pub fn on_port(&self, port: u16, bytes: u64) -> BreakpointHits {
        let first = u64::from(port);
        self.met(first..first + bytes, |kind| {
            kind == Kind::Port && self.on_ports
        })
    }

    fn met(
        &self,
        accessed: impl Iterator<Item = u64> + Clone,
        counts: impl Fn(Kind) -> bool,
    ) -> BreakpointHits {
        let mut met = 0;
        let mut enabled = false;
        for (n, address) in self.addresses.into_iter().enumerate() {
            let (kind, mask) = self.kind_and_mask(n);
            if counts(kind) && accessed.clone().any(|at| (at ^ address) & mask == 0) {
                met |= 1 << n;
                enabled |= self.dr7 >> (2 * n) & 3 != 0;
            }
        }
        // Conditions that are met without being enabled may be told too, as the CPUs do.
        BreakpointHits(if enabled { met } else { 0 })
    }

    /// What breakpoint `n` is on, and the bits of its address that count: it lies at a multiple of its length.
    const fn kind_and_mask(&self, n: usize) -> (Kind, u64) {
        let field = self.dr7 >> (16 + 4 * n);
        let kind = match field & 3 {
            0 => Kind::Instruction,
            1 => Kind::Write,
            2 => Kind::Port,
            _ => Kind::Access,
        };
        let length = match field >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        (kind, !(length - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breakpoint `n` at `address`, of this kind and length, locally enabled.
    fn one(n: usize, address: u64, kind: u64, length: u64) -> Breakpoints {
        let mut addresses = [0x7000; 4];
        addresses[n] = address;
        let fields = kind | length << 2;
        Breakpoints {
            addresses,
            dr7: 0x400 | 1 << (2 * n) | fields << (16 + 4 * n),
            on_ports: true,
        }
    }

    const ALL: u64 = u64::MAX;

    #[test]
    fn every_byte_of_an_access_is_compared_with_every_byte_of_a_breakpoint() {
        for (length, bytes) in [(0, 1), (1, 2), (3, 4), (2, 8)] {
            // The lower bits of the address do not count.
            for address in [0x1000, 0x1000 + bytes - 1] {
                for width in [1, 2, 4, 8] {
                    for at in 0xff0..0x1010 {
                        for (n, expected) in [(0, 1), (3, 8)] {
                            let met =
                                one(n, address, 3, length).on_data(Gva::new(at), width, false, ALL);
                            let overlaps = at < 0x1000 + bytes && at + width > 0x1000;
                            assert_eq!(met.dr6(), if overlaps { expected } else { 0 });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn each_kind_is_met_by_what_it_is_for() {
        // Of an instruction, which is the CPU's to meet; a write; a port; any access.
        for (kind, read, write, port) in [
            (0, false, false, false),
            (1, false, true, false),
            (2, false, false, true),
            (3, true, true, false),
        ] {
            let breakpoints = one(1, 0x80, kind, 0);
            let data = |write| breakpoints.on_data(Gva::new(0x80), 1, write, ALL).any();
            assert_eq!((data(false), data(true)), (read, write), "{kind}");
            assert_eq!(breakpoints.on_port(0x80, 1).any(), port);
            assert_eq!(breakpoints.on_port(0x7f, 4).any(), port);
            assert!(!breakpoints.on_port(0x81, 4).any());
            // Without CR4.DE there are none on ports.
            let without = Breakpoints {
                on_ports: false,
                ..breakpoints
            };
            assert!(!without.on_port(0x80, 1).any());
        }
    }

    #[test]
    fn what_is_not_enabled_is_only_told_with_what_is() {
        let mut breakpoints = one(2, 0x1000, 3, 0);
        breakpoints.addresses[1] = 0x1000;
        breakpoints.dr7 |= 3 << 20;
        let met = |breakpoints: &Breakpoints| breakpoints.on_data(Gva::new(0x1000), 1, false, ALL);
        assert_eq!(met(&breakpoints).dr6(), 0b110);
        breakpoints.dr7 &= !0xff;
        assert!(!Breakpoints::are_enabled(breakpoints.dr7));
        assert_eq!(met(&breakpoints), BreakpointHits::NONE);
        // Globally.
        breakpoints.dr7 |= 2 << 2;
        assert!(Breakpoints::are_enabled(breakpoints.dr7));
        assert_eq!(met(&breakpoints).dr6(), 0b110);
    }

    #[test]
    fn an_access_goes_on_at_0_behind_4_gib() {
        let at = Gva::new(0xffff_fffe);
        assert!(one(0, 1, 3, 0).on_data(at, 4, false, u32::MAX.into()).any());
        assert!(!one(0, 1, 3, 0).on_data(at, 4, false, ALL).any());
        assert!(one(0, 1 << 32, 3, 0).on_data(at, 4, false, ALL).any());
    }

    #[test]
    fn what_several_accesses_meet_is_met() {
        let mut met = BreakpointHits::NONE;
        met |= one(3, 0x80, 2, 0).on_port(0x80, 1);
        met |= one(0, 0x80, 2, 0).on_port(0x80, 1);
        assert_eq!(met.dr6(), 0b1001);
    }
}
