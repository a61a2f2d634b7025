//! The VMX instructions, one function each.

use core::arch::asm;
use core::mem::MaybeUninit;

use super::super::fields::{Field, Field16, Field32, Field64, FieldNatural};
use super::super::instruction_error::VmFail;
use super::super::vmcs::{Vmcs, VmcsAccess, VmcsError};
use crate::addr::Hpa;
use crate::counting::{Counted, add};

/// What the flags say after a VMX instruction (SDM "Conventions", 31.2): CF is VMfailInvalid, ZF VMfailValid.
#[inline(always)]
fn outcome(cf: u8, zf: u8) -> Result<(), VmFail> {
    if cf | zf == 0 {
        Ok(())
    } else {
        Err(failure(cf != 0))
    }
}

#[cold]
fn failure(invalid: bool) -> VmFail {
    if invalid {
        return VmFail::Invalid;
    }
    let number: u64;
    // SAFETY: VMfailValid says that there is a current VMCS; the error field exists on every CPU.
    unsafe {
        asm!("vmread {}, {}", out(reg) number, in(reg) u64::from(Field32::VmInstructionError as u32), options(nostack));
    }
    VmFail::from_number(number as u32)
}

macro_rules! with_memory_operand {
    ($(#[$doc:meta])* $name:ident, $mnemonic:literal) => {
        $(#[$doc])*
        pub(super) unsafe fn $name(region: Hpa) -> Result<(), VmFail> {
            let (cf, zf): (u8, u8);
            let operand = region.as_u64();
            // SAFETY: the caller's, as the documentation asks.
            unsafe {
                asm!(
                    concat!($mnemonic, " [{operand}]"), "setc {cf}", "setz {zf}",
                    operand = in(reg) &operand, cf = out(reg_byte) cf, zf = out(reg_byte) zf, options(nostack),
                );
            }
            outcome(cf, zf)
        }
    };
}

with_memory_operand!(
    /// Enters VMX operation.
    ///
    /// # Safety
    /// CR0, CR4 and IA32_FEATURE_CONTROL allow it, and `region` is a frame with the revision identifier that stays
    /// untouched until VMXOFF.
    vmxon, "vmxon"
);
with_memory_operand!(
    /// Writes the VMCS at `region` back, and makes it neither current nor launched.
    ///
    /// # Safety
    /// The CPU is in VMX operation; `region` is a frame for a VMCS.
    vmclear, "vmclear"
);
with_memory_operand!(
    /// Makes the VMCS at `region` current.
    ///
    /// # Safety
    /// The CPU is in VMX operation; `region` is a VMCS that was cleared on whichever CPU last had it.
    vmptrld, "vmptrld"
);

/// Leaves VMX operation.
///
/// # Safety
/// The CPU is in VMX operation and nothing uses a VMCS any more.
pub(super) unsafe fn vmxoff() {
    // SAFETY: the caller's.
    unsafe { asm!("vmxoff", options(nostack)) };
}

/// How much INVEPT or INVVPID throws away (SDM "INVEPT—Invalidate Translations Derived from EPT").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Invalidation {
    /// Of one EPT pointer, or one VPID.
    SingleContext = 1,
    /// Of all.
    AllContexts = 2,
}

macro_rules! invalidate {
    ($(#[$doc:meta])* $name:ident, $mnemonic:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) unsafe fn $name(kind: Invalidation, context: u64) -> Result<(), VmFail> {
            let descriptor = [context, 0];
            // SAFETY: the caller's, as the documentation asks.
            unsafe {
                asm!(
                    concat!($mnemonic, " {kind}, [{descriptor}]"), "jc {invalid}", "jz {valid}",
                    kind = in(reg) kind as u64, descriptor = in(reg) &descriptor,
                    invalid = label { return Err(failure(true)) },
                    valid = label { return Err(failure(false)) },
                    options(nostack),
                );
            }
            Ok(())
        }
    };
}

invalidate!(
    /// Throws away what the CPU has cached of the EPT tree that the EPT pointer `context` names.
    ///
    /// # Safety
    /// The CPU is in VMX operation and has INVEPT of this kind.
    invept, "invept"
);
invalidate!(
    /// Throws away what the CPU has cached under the VPID `context`.
    ///
    /// # Safety
    /// The CPU is in VMX operation and has INVVPID of this kind.
    invvpid, "invvpid"
);

/// The VMCS that is current on this CPU. Only [`super::Vmx::make_current`] makes one.
#[derive(Debug)]
pub struct CurrentVmcs {
    pub(super) region: Hpa,
}

impl CurrentVmcs {
    /// The frame of this VMCS.
    pub fn region(&self) -> Hpa {
        self.region
    }

    #[inline(always)]
    fn read(&self, encoding: u32, field: impl Fn() -> Field) -> Result<u64, VmcsError> {
        let value: u64;
        let failed: u8;
        add(Counted::Vmreads, 1);
        // SAFETY: `self` is there, so the CPU is in VMX operation; VMREAD changes nothing but its destination.
        unsafe {
            asm!(
                "vmread {value}, {field}", "setbe {failed}",
                value = out(reg) value, field = in(reg) u64::from(encoding), failed = out(reg_byte) failed,
                options(nostack, nomem),
            );
        }
        if failed == 0 {
            Ok(value)
        } else {
            Err(access_error(field(), VmcsAccess::Read))
        }
    }

    #[inline(always)]
    fn write(
        &mut self,
        encoding: u32,
        value: u64,
        field: impl Fn() -> Field,
    ) -> Result<(), VmcsError> {
        add(Counted::Vmwrites, 1);
        // SAFETY: as in `read`; what a field means is checked by the CPU at entry.
        unsafe {
            asm!(
                "vmwrite {field}, {value}", "jbe {failed}",
                value = in(reg) value, field = in(reg) u64::from(encoding),
                failed = label { return Err(access_error(field(), VmcsAccess::Write)) },
                options(nostack, nomem),
            );
        }
        Ok(())
    }

    #[cold]
    fn first_error<const N: usize>(&self, fields: [Field; N]) -> Result<[u64; N], VmcsError> {
        self.read_each(fields)
    }

    /// Writes them one by one, up to the one that fails.
    #[cold]
    fn write_each(&mut self, fields: [Field; 4], values: &[u64]) -> Result<(), VmcsError> {
        for (field, value) in fields.into_iter().zip(values) {
            self.write_any(field, *value)?;
        }
        Ok(())
    }
}

/// VMREADs to memory take fewer instructions than to registers, because nothing but a jump has to follow each.
macro_rules! read_all {
    ($vmcs:ident, $fields:ident, $count:literal, $($field:ident $at:literal)*) => {{
        let mut values = MaybeUninit::<[u64; $count]>::uninit();
        let to = values.as_mut_ptr().cast::<u64>();
        let [$($field),*] = $fields;
        add(Counted::Vmreads, $count);
        // SAFETY: as in `read`; the words at `to` are those of `values`, and all are written where no VMREAD fails.
        unsafe {
            asm!(
                $(concat!("vmread [{to} + 8 * ", $at, "], {", stringify!($field), "}"), "jbe {failed}",)*
                to = in(reg) to,
                $($field = in(reg) u64::from($field.encoding()),)*
                // Put together here, and not before it is known to be needed.
                failed = label { return $vmcs.first_error([$($field),*]) },
                options(nostack),
            );
            Ok([$(to.add($at).read()),*])
        }
    }};
}

#[cold]
fn access_error(field: Field, access: VmcsAccess) -> VmcsError {
    // With a current VMCS every failure is VMfailValid, and the error is there to be read.
    VmcsError {
        field,
        access,
        fail: failure(false),
    }
}

macro_rules! width {
    ($read:ident, $write:ident, $field:ty, $value:ty) => {
        #[inline(always)]
        fn $read(&self, field: $field) -> Result<$value, VmcsError> {
            self.read(field as u32, || field.into())
                .map(|value| value as $value)
        }
        #[inline(always)]
        fn $write(&mut self, field: $field, value: $value) -> Result<(), VmcsError> {
            self.write(field as u32, u64::from(value), || field.into())
        }
    };
}

impl Vmcs for CurrentVmcs {
    width!(read16, write16, Field16, u16);
    width!(read32, write32, Field32, u32);
    width!(read64, write64, Field64, u64);
    width!(read_natural, write_natural, FieldNatural, u64);

    // The CPU itself knows how wide a field is.
    #[inline(always)]
    fn read_any(&self, field: Field) -> Result<u64, VmcsError> {
        self.read(field.encoding(), || field)
    }
    #[inline(always)]
    fn write_any(&mut self, field: Field, value: u64) -> Result<(), VmcsError> {
        self.write(field.encoding(), value, || field)
    }

    /// Four VMWRITEs with nothing but a jump behind each.
    #[inline(always)]
    fn write_four<const AT: usize, const N: usize>(
        &mut self,
        fields: [Field; 4],
        values: &[u64; N],
    ) -> Result<(), VmcsError> {
        const { assert!(AT + 4 <= N) }
        let [a, b, c, d] = fields;
        add(Counted::Vmwrites, 4);
        // SAFETY: as in `write`; the words are those of `values`, which has as many.
        unsafe {
            asm!(
                "vmwrite {a}, [{from} + 8 * {at}]", "jbe {failed}",
                "vmwrite {b}, [{from} + 8 * {at} + 8]", "jbe {failed}",
                "vmwrite {c}, [{from} + 8 * {at} + 16]", "jbe {failed}",
                "vmwrite {d}, [{from} + 8 * {at} + 24]", "jbe {failed}",
                from = in(reg) values.as_ptr(), at = const AT,
                a = in(reg) u64::from(a.encoding()), b = in(reg) u64::from(b.encoding()),
                c = in(reg) u64::from(c.encoding()), d = in(reg) u64::from(d.encoding()),
                failed = label { return self.write_each(fields, values.get(AT..).unwrap_or_default()) },
                options(nostack, readonly),
            );
        }
        Ok(())
    }

    /// Four VMWRITEs and nothing else.
    #[inline(always)]
    fn rewrite_four<const AT: usize, const N: usize>(
        &mut self,
        fields: [Field; 4],
        values: &[u64; N],
    ) -> Result<(), VmcsError> {
        const { assert!(AT + 4 <= N) }
        let [a, b, c, d] = fields;
        add(Counted::Vmwrites, 4);
        // SAFETY: as in `write_four`.
        unsafe {
            asm!(
                "vmwrite {a}, [{from} + 8 * {at}]",
                "vmwrite {b}, [{from} + 8 * {at} + 8]",
                "vmwrite {c}, [{from} + 8 * {at} + 16]",
                "vmwrite {d}, [{from} + 8 * {at} + 24]",
                from = in(reg) values.as_ptr(), at = const AT,
                a = in(reg) u64::from(a.encoding()), b = in(reg) u64::from(b.encoding()),
                c = in(reg) u64::from(c.encoding()), d = in(reg) u64::from(d.encoding()),
                options(nostack, readonly),
            );
        }
        Ok(())
    }

    #[inline(always)]
    fn read_four(&self, fields: [Field; 4]) -> Result<[u64; 4], VmcsError> {
        read_all!(self, fields, 4, a 0 b 1 c 2 d 3)
    }

    #[inline(always)]
    fn read_six(&self, fields: [Field; 6]) -> Result<[u64; 6], VmcsError> {
        read_all!(self, fields, 6, a 0 b 1 c 2 d 3 e 4 f 5)
    }
}
