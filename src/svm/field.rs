//! What a field of the VMCB is: a place, a type, and a group of clean bits.

use core::fmt;
use core::marker::PhantomData;

/// Bytes of a VMCB.
pub const VMCB_SIZE: usize = 4096;

/// Groups of fields that a CPU with clean bits may keep (APM "VMCB Clean Field", 15.15.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean(pub u32);

impl Clean {
    /// What a CPU loads at every VMRUN.
    pub const NEVER: Self = Self(0);
    /// Intercepts, TSC offset and pause filter.
    pub const INTERCEPTS: Self = Self(1 << 0);
    /// The addresses of the permission maps.
    pub const PERMISSION_MAPS: Self = Self(1 << 1);
    /// The ASID.
    pub const ASID: Self = Self(1 << 2);
    /// Virtual interrupts.
    pub const VIRTUAL_INTERRUPT: Self = Self(1 << 3);
    /// Nested paging, and the guest's PAT.
    pub const NESTED_PAGING: Self = Self(1 << 4);
    /// CR0, CR3, CR4 and EFER.
    pub const CONTROL_REGISTERS: Self = Self(1 << 5);
    /// DR6 and DR7.
    pub const DEBUG_REGISTERS: Self = Self(1 << 6);
    /// GDTR and IDTR.
    pub const DESCRIPTOR_TABLES: Self = Self(1 << 7);
    /// CS, DS, SS and ES, and the CPL.
    pub const SEGMENTS: Self = Self(1 << 8);
    /// CR2.
    pub const CR2: Self = Self(1 << 9);
    /// What records branches.
    pub const BRANCHES: Self = Self(1 << 10);
    /// Those of them that are of the save area.
    pub const SAVED: Self = Self(0x7f0);
    /// Every group whose fields we ever change.
    pub const ALL: Self = Self(0x7ff);
}

/// A number that can be a field.
pub trait Word: Copy + fmt::Debug + private::Sealed {
    /// As 64 bits.
    fn widen(self) -> u64;
}

mod private {
    pub trait Sealed {}
}

macro_rules! words {
    ($($word:ty)*) => {
        $(
            impl private::Sealed for $word {}
            impl Word for $word {
                fn widen(self) -> u64 {
                    self.into()
                }
            }
        )*
    };
}
words!(u8 u16 u32 u64);

/// A field of type `T`: where it is, and to which group it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<T> {
    offset: u16,
    clean: Clean,
    word: PhantomData<T>,
}

impl<T: Word> Field<T> {
    pub(super) const fn new(offset: u16, clean: Clean) -> Self {
        let (start, size) = (offset as usize, size_of::<T>());
        assert!(start + size <= VMCB_SIZE && start.is_multiple_of(size));
        Self {
            offset,
            clean,
            word: PhantomData,
        }
    }
    /// Where it is, in bytes from the start of the VMCB.
    #[inline(always)]
    pub const fn offset(self) -> u16 {
        self.offset
    }
    /// The group that it belongs to.
    #[inline(always)]
    pub const fn clean(self) -> Clean {
        self.clean
    }
}
