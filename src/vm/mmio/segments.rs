//! From an offset in a segment to a linear address, with the checks of protected mode.

use super::Width;
use crate::addr::Gva;
use crate::virt::CodeMode;
use crate::virt::{Segment, SegmentRegister};

/// An access that its segment does not allow: #SS(0) or #GP(0) is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFault {
    /// It was in the stack segment.
    pub stack: bool,
}

/// Whether nothing of the register counts: in 64-bit mode, of all but FS and GS.
pub const fn ignores(mode: CodeMode, register: SegmentRegister) -> bool {
    let has_base = matches!(register, SegmentRegister::Fs | SegmentRegister::Gs);
    matches!(mode, CodeMode::Bits64) && !has_base
}

/// The linear address of `offset` in `segment`, which counts unless the mode [`ignores`] it.
///
/// In 64-bit mode only FS and GS have a base, and nothing has a limit (SDM "Segmentation in 64-bit Mode", 3.2.4); else
/// type and limit are checked (SDM "Limit Checking" and "Type Checking", 6.3, 6.4).
pub fn linear(
    mode: CodeMode,
    register: SegmentRegister,
    segment: &Segment,
    offset: u64,
    width: Width,
    write: bool,
) -> Result<Gva, SegmentFault> {
    if mode == CodeMode::Bits64 {
        let base = if ignores(mode, register) {
            0
        } else {
            segment.base
        };
        return Ok(Gva::new(base.wrapping_add(offset)));
    }
    if !allows(segment, offset, width, write) {
        let stack = register == SegmentRegister::Ss;
        return Err(SegmentFault { stack });
    }
    Ok(Gva::new(segment.base.wrapping_add(offset) & 0xffff_ffff))
}

fn allows(segment: &Segment, offset: u64, width: Width, write: bool) -> bool {
    const CODE: u8 = 1 << 3;
    const EXPAND_DOWN: u8 = 1 << 2;
    /// Of code: readable. Of data: writable.
    const MORE: u8 = 1 << 1;
    let access = segment.access;
    let kind = access.segment_type();
    let by_type = match (kind & CODE != 0, write) {
        (true, true) => false,
        (false, false) => true,
        (true, false) | (false, true) => kind & MORE != 0,
    };
    let last = offset + (width.bytes() - 1);
    let limit = u64::from(segment.limit);
    let within = if kind & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if access.default_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    !access.unusable() && by_type && within
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virt::AccessRights;

    fn at(
        mode: CodeMode,
        register: SegmentRegister,
        segment: Segment,
        offset: u64,
        write: bool,
    ) -> Result<u64, bool> {
        linear(mode, register, &segment, offset, Width::Dword, write)
            .map(|gva| gva.as_u64())
            .map_err(|fault| fault.stack)
    }

    #[test]
    fn in_64_bit_mode_only_fs_and_gs_count() {
        let segment = Segment {
            base: 0x1_0000_0000,
            ..Segment::UNUSABLE
        };
        for register in SegmentRegister::ALL {
            let base: u64 = if matches!(register, SegmentRegister::Fs | SegmentRegister::Gs) {
                1 << 32
            } else {
                0
            };
            assert_eq!(
                at(CodeMode::Bits64, register, segment, u64::MAX - 1, true),
                Ok(base.wrapping_sub(2))
            );
        }
    }

    #[test]
    fn limits_and_types_hold_in_other_modes() {
        use SegmentRegister::{Ds, Ss};
        let mode = CodeMode::Bits32;
        let data = Segment {
            base: 0xffff_f000,
            limit: 0xfff,
            ..Segment::flat(0, AccessRights(0xc093))
        };
        assert_eq!(at(mode, Ds, data, 0xffc, true), Ok(0xffff_fffc));
        assert_eq!(at(mode, Ds, data, 0xffd, true), Err(false));
        assert_eq!(at(mode, Ss, data, 0xffd, false), Err(true));
        // Addresses wrap at 4 GiB.
        let high = Segment {
            limit: 0xffff_ffff,
            ..data
        };
        assert_eq!(at(mode, Ds, high, 0x2000, true), Ok(0x1000));
        assert_eq!(at(mode, Ds, high, 0xffff_fffd, true), Err(false));
        // Read-only data, executable code, readable code, expand-down data.
        for (access, reads, writes) in [
            (0xc091, true, false),
            (0xc099, false, false),
            (0xc09b, true, false),
            (0xc097, false, false),
        ] {
            let segment = Segment {
                access: AccessRights(access),
                ..data
            };
            assert_eq!(
                at(mode, Ds, segment, 0, false).is_ok(),
                reads,
                "{access:#x}"
            );
            assert_eq!(
                at(mode, Ds, segment, 0, true).is_ok(),
                writes,
                "{access:#x}"
            );
        }
        let down = |access| Segment {
            access: AccessRights(access),
            ..data
        };
        assert!(at(mode, Ds, down(0xc097), 0x1000, true).is_ok());
        assert!(at(mode, Ds, down(0xc097), 0xffff_fffc, true).is_ok());
        assert!(at(mode, Ds, down(0x8097), 0xfffc, true).is_ok());
        assert!(at(mode, Ds, down(0x8097), 0xfffd, true).is_err());
        assert!(at(mode, Ds, Segment::UNUSABLE, 0, false).is_err());
    }
}
