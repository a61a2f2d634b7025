//! Segment registers as the VMCB holds them (APM "Segment State in the VMCB", 15.5.1, figure 15-1).

use super::field::Field;
use super::fields as f;
use super::neutral::{AccessRights, Segment, SegmentRegister};
use super::vmcb::Vmcb;

/// P, in the attributes. A register that was loaded with a null selector has 0 there, and so has a segment that is not
/// present, which no register can hold.
const PRESENT: u16 = 1 << 7;
/// AVL, L, D/B and G: bits 11:8 of the attributes, 15:12 of a descriptor and of access rights.
const UPPER: u16 = 0xf00;

/// The attributes that say the same as these access rights.
pub const fn attributes(access: AccessRights) -> u16 {
    if access.0 & AccessRights::UNUSABLE.0 != 0 {
        return 0;
    }
    access.0 as u16 & 0xff | (access.0 >> 4) as u16 & UPPER
}

/// The access rights that say the same as these attributes.
pub const fn access_rights(attributes: u16) -> AccessRights {
    if attributes & PRESENT == 0 {
        return AccessRights::UNUSABLE;
    }
    AccessRights(attributes as u32 & 0xff | (attributes as u32 & UPPER as u32) << 4)
}

/// Where a segment register is in the VMCB.
pub(super) struct Place {
    pub selector: Field<u16>,
    pub attributes: Field<u16>,
    pub limit: Field<u32>,
    pub base: Field<u64>,
}

macro_rules! places {
    ($($register:ident $selector:ident $attributes:ident $limit:ident $base:ident;)*) => {
        /// Where this register is.
        #[inline(always)]
        pub(super) const fn place(register: SegmentRegister) -> Place {
            match register {
                $(SegmentRegister::$register => Place {
                    selector: f::$selector,
                    attributes: f::$attributes,
                    limit: f::$limit,
                    base: f::$base,
                },)*
            }
        }
    };
}

places! {
    Es SELECTOR_OF_ES ATTRIBUTES_OF_ES LIMIT_OF_ES BASE_OF_ES;
    Cs SELECTOR_OF_CS ATTRIBUTES_OF_CS LIMIT_OF_CS BASE_OF_CS;
    Ss SELECTOR_OF_SS ATTRIBUTES_OF_SS LIMIT_OF_SS BASE_OF_SS;
    Ds SELECTOR_OF_DS ATTRIBUTES_OF_DS LIMIT_OF_DS BASE_OF_DS;
    Fs SELECTOR_OF_FS ATTRIBUTES_OF_FS LIMIT_OF_FS BASE_OF_FS;
    Gs SELECTOR_OF_GS ATTRIBUTES_OF_GS LIMIT_OF_GS BASE_OF_GS;
    Ldtr SELECTOR_OF_LDTR ATTRIBUTES_OF_LDTR LIMIT_OF_LDTR BASE_OF_LDTR;
    Tr SELECTOR_OF_TR ATTRIBUTES_OF_TR LIMIT_OF_TR BASE_OF_TR;
}

/// Writes a segment register into the VMCB. With SS goes the CPL, which is its DPL: one CPU takes it from there, the other from
/// its own field.
pub fn write_segment(vmcb: &mut Vmcb, register: SegmentRegister, segment: &Segment) {
    let place = place(register);
    vmcb.set(place.selector, segment.selector);
    vmcb.set(place.attributes, attributes(segment.access));
    vmcb.set(place.limit, segment.limit);
    vmcb.set(place.base, segment.base);
    if register == SegmentRegister::Ss {
        vmcb.set(f::CPL, segment.access.dpl());
    }
}

/// Reads a segment register from the VMCB.
pub fn read_segment(vmcb: &Vmcb, register: SegmentRegister) -> Segment {
    let place = place(register);
    Segment {
        selector: vmcb.get(place.selector),
        base: vmcb.get(place.base),
        limit: vmcb.get(place.limit),
        access: access_rights(vmcb.get(place.attributes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_access_rights_without_the_gap() {
        for (access, bits) in [
            (AccessRights::CODE64, 0xa9b),
            (AccessRights::CODE32, 0xc9b),
            (AccessRights::DATA, 0xc93),
            (AccessRights::BUSY_TSS, 0x08b),
            (AccessRights(0x10f3), 0x1f3),
            (AccessRights::UNUSABLE, 0),
        ] {
            assert_eq!(attributes(access), bits, "{access:?}");
            assert_eq!(access_rights(bits), access, "{bits:#x}");
        }
        // What else an unusable register has means nothing.
        assert_eq!(attributes(AccessRights(0x1_c093)), 0);
        assert_eq!(access_rights(0xc13), AccessRights::UNUSABLE);
    }

    #[test]
    fn every_register_has_fields_of_its_own() {
        let mut vmcb = Vmcb::ZERO;
        let segment = |n: u16| Segment {
            selector: n,
            base: u64::from(n) << 32 | 1,
            limit: u32::from(n) << 12,
            access: AccessRights(0x80 | u32::from(n)),
        };
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            write_segment(&mut vmcb, register, &segment(n));
        }
        for (n, register) in (1..).zip(SegmentRegister::ALL) {
            assert_eq!(read_segment(&vmcb, register), segment(n), "{register:?}");
            let start = format!("{register:?} ").to_uppercase();
            let of_register = |name: &str| name.starts_with(&start);
            let written = vmcb
                .named()
                .filter(|(named, value)| of_register(named.name) && *value != 0);
            assert_eq!(written.count(), 4, "{register:?}");
        }
    }

    #[test]
    fn the_cpl_follows_the_stack() {
        let mut vmcb = Vmcb::ZERO;
        let user = Segment::flat(0x23, AccessRights(0xc0f3));
        write_segment(&mut vmcb, SegmentRegister::Ds, &user);
        assert_eq!(vmcb.get(f::CPL), 0);
        write_segment(&mut vmcb, SegmentRegister::Ss, &user);
        assert_eq!(vmcb.get(f::CPL), 3);
    }
}
