//! The permission maps: which MSRs and ports make a guest exit (APM "MSR Intercepts", 15.11, and "IOIO Intercepts", 15.10).

/// Where the three ranges of MSRs begin of which the map has bits. Any other MSR exits.
const RANGES: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
/// MSRs of a range.
const RANGE_LENGTH: u32 = 0x2000;
/// Bytes of the map for a range: two bits for an MSR.
const RANGE_BYTES: usize = RANGE_LENGTH as usize / 4;

/// Which accesses to MSRs exit: two bits for each, of reading and of writing. It must lie in two pages one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct MsrMap([u8; Self::BYTES]);

impl MsrMap {
    /// Bytes of the map.
    pub const BYTES: usize = 0x2000;

    /// Every access exits.
    pub const ALL: Self = Self([0xff; Self::BYTES]);

    /// Which byte has the bits of an MSR, and where they are in it. `None` of an MSR that always exits.
    const fn place(index: u32) -> Option<(usize, u32)> {
        let mut range = 0;
        while range < RANGES.len() {
            let at = index.wrapping_sub(RANGES[range]);
            if at < RANGE_LENGTH {
                return Some((range * RANGE_BYTES + at as usize / 4, at % 4 * 2));
            }
            range += 1;
        }
        None
    }

    /// Lets a guest read, or write, this MSR without an exit. Returns whether that can be said of it.
    #[must_use]
    pub fn pass(&mut self, index: u32, write: bool) -> bool {
        let place = Self::place(index).and_then(|(at, bit)| Some((self.0.get_mut(at)?, bit)));
        place.is_some_and(|(byte, bit)| {
            *byte &= !(1 << (bit + u32::from(write)));
            true
        })
    }

    /// Whether such an access exits.
    pub fn exits(&self, index: u32, write: bool) -> bool {
        let byte = Self::place(index).and_then(|(at, bit)| Some((self.0.get(at)?, bit)));
        byte.is_none_or(|(byte, bit)| byte >> (bit + u32::from(write)) & 1 != 0)
    }
}

/// Which ports exit: a bit for each, and a few more, as an access to the last port may go on behind it. It must lie in three pages
/// one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct IoMap([u8; Self::BYTES]);

impl IoMap {
    /// Bytes of the map.
    pub const BYTES: usize = 0x3000;

    /// Every port exits. No guest of ours gets one for itself.
    pub const ALL: Self = Self([0xff; Self::BYTES]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_have_their_bits_where_the_manual_has_them() {
        // From the manual's table of the layout: byte offsets 0, 800h and 1000h for the three ranges, two bits for an MSR.
        for (index, byte, bit) in [
            (0, 0, 0),
            (0x10, 4, 0),
            (0x277, 0x9d, 6),
            (0x1fff, 0x7ff, 6),
            (0xc000_0000, 0x800, 0),
            (0xc000_0080, 0x820, 0),
            (0xc000_0102, 0x840, 4),
            (0xc000_1fff, 0xfff, 6),
            (0xc001_0000, 0x1000, 0),
            (0xc001_0117, 0x1045, 6),
            (0xc001_1fff, 0x17ff, 6),
        ] {
            for write in [false, true] {
                let mut map = MsrMap::ALL;
                assert!(map.pass(index, write), "{index:#x}");
                let cleared = map.0[byte];
                assert_eq!(cleared, !(1 << (bit + u32::from(write))), "{index:#x}");
                map.0[byte] = 0xff;
                assert_eq!(map, MsrMap::ALL, "{index:#x}");
            }
        }
    }

    #[test]
    fn only_what_was_passed_passes() {
        let mut map = MsrMap::ALL;
        assert!(map.pass(0xc000_0082, false) && map.pass(0xc000_0082, true));
        assert!(map.pass(0x10, false));
        let passes = |index, write| !map.exits(index, write);
        assert!(passes(0xc000_0082, false) && passes(0xc000_0082, true));
        assert!(passes(0x10, false) && !passes(0x10, true));
        for index in (0..0x4000)
            .chain(0xbfff_fff0..0xc000_3000)
            .chain(0xc000_fff0..0xc001_3000)
        {
            let all = [0x10, 0xc000_0082].contains(&index);
            assert_eq!(passes(index, false), all, "{index:#x}");
        }
    }

    #[test]
    fn an_msr_outside_the_map_always_exits() {
        let mut map = MsrMap::ALL;
        for index in [
            0x2000,
            0x4000_0000,
            0xbfff_ffff,
            0xc000_2000,
            0xc001_2000,
            u32::MAX,
        ] {
            assert!(!map.pass(index, false) && map.exits(index, false));
        }
        assert_eq!(map, MsrMap::ALL);
    }

    #[test]
    fn the_map_of_ports_has_room_for_an_access_at_the_last() {
        const { assert!(IoMap::BYTES * 8 >= 0x10000 + 3) }
        assert!(IoMap::ALL.0.iter().all(|byte| *byte == 0xff));
    }
}
