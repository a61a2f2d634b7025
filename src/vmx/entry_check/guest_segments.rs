//! SDM "Checks on Guest Segment Registers", 28.3.1.2.

use super::super::controls::{EntryControl, Secondary};
use super::super::fields::{Field, FieldNatural};
use super::super::segments::{read_segment, segment_fields};
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;
use crate::register_bits::{CR0_PE, RFLAGS_VM};
use crate::virt::{Segment, SegmentRegister};

use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};

/// Access rights of every segment in virtual-8086 mode.
const VIRTUAL_8086: u32 = 0xf3;

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn guest_segments(&mut self) -> Result<(), VmcsError> {
        let virtual_8086 = self.get(FieldNatural::GuestRflags)? & RFLAGS_VM != 0;
        self.selectors(virtual_8086)?;
        self.bases()?;
        for register in [Cs, Ss, Ds, Es, Fs, Gs] {
            if virtual_8086 {
                self.virtual_8086(register)?;
            } else if register == Cs {
                self.code()?;
            } else if self.is_usable(register)? {
                self.data(register)?;
            }
        }
        self.system(Tr)?;
        if self.is_usable(Ldtr)? {
            self.system(Ldtr)?;
        }
        Ok(())
    }

    fn segment(&self, register: SegmentRegister) -> Result<Segment, VmcsError> {
        read_segment(self.vmcs, register)
    }
    fn is_usable(&self, register: SegmentRegister) -> Result<bool, VmcsError> {
        Ok(!self.segment(register)?.access.unusable())
    }

    fn selectors(&mut self, virtual_8086: bool) -> Result<(), VmcsError> {
        for register in [Tr, Ldtr] {
            let [field, ..] = segment_fields(register);
            let counts = register == Tr || self.is_usable(register)?;
            if counts && self.get(field)? & 4 != 0 {
                self.fail(field, "TI must be 0")?;
            }
        }
        let rpl_differs = (self.segment(Ss)?.selector ^ self.segment(Cs)?.selector) & 3 != 0;
        if rpl_differs && !virtual_8086 && !self.has(Secondary::UnrestrictedGuest) {
            let [field, ..] = segment_fields(Ss);
            let rule = "RPL must equal the RPL of CS without \"unrestricted guest\"";
            self.fail(field, rule)?;
        }
        Ok(())
    }

    fn bases(&mut self) -> Result<(), VmcsError> {
        for register in [Tr, Fs, Gs, Ldtr, Cs, Ss, Ds, Es] {
            let [_, field, ..] = segment_fields(register);
            let usable = self.is_usable(register)?;
            match register {
                Tr | Fs | Gs => self.require_canonical(field)?,
                Ldtr if usable => self.require_canonical(field)?,
                Cs => self.require_zero(field, !0 << 32)?,
                Ss | Ds | Es if usable => self.require_zero(field, !0 << 32)?,
                _ => (),
            }
        }
        Ok(())
    }

    fn virtual_8086(&mut self, register: SegmentRegister) -> Result<(), VmcsError> {
        let segment = self.segment(register)?;
        let [_, base, limit, access] = segment_fields(register);
        if segment.base != u64::from(segment.selector) << 4 {
            let rule = "must be 16 times the selector in virtual-8086 mode";
            self.fail(base, rule)?;
        }
        if segment.limit != 0xffff {
            self.fail(limit, "must be 0xffff in virtual-8086 mode")?;
        }
        if segment.access.0 != VIRTUAL_8086 {
            self.fail(access, "must be 0xf3 in virtual-8086 mode")?;
        }
        Ok(())
    }

    fn code(&mut self) -> Result<(), VmcsError> {
        let segment = self.segment(Cs)?;
        let access = segment.access;
        let stack = self.segment(Ss)?.access;
        let [.., field] = segment_fields(Cs);
        let right_type = match access.segment_type() {
            9 | 11 | 13 | 15 => true,
            3 => self.has(Secondary::UnrestrictedGuest),
            _ => false,
        };
        if !right_type {
            let rule = "the type must be accessed code: 9, 11, 13 or 15 (or 3 with \"unrestricted guest\")";
            self.fail(field, rule)?;
        }
        let right_dpl = match access.segment_type() {
            3 => access.dpl() == 0,
            9 | 11 => access.dpl() == stack.dpl(),
            13 | 15 => access.dpl() <= stack.dpl(),
            _ => true,
        };
        if !right_dpl {
            let rule = "the DPL must be 0 of type 3, that of SS of types 9 and 11, at most that of SS of types 13 and 15";
            self.fail(field, rule)?;
        }
        self.code_or_data(field, &segment)?;
        if self.has(EntryControl::Ia32eModeGuest) && access.long() && access.default_big() {
            self.fail(field, "D/B must be 0 where L is 1")?;
        }
        Ok(())
    }

    fn data(&mut self, register: SegmentRegister) -> Result<(), VmcsError> {
        let segment = self.segment(register)?;
        let [.., field] = segment_fields(register);
        let kind = segment.access.segment_type();
        let (dpl, rpl) = (segment.access.dpl(), (segment.selector & 3) as u8);
        let restricted = !self.has(Secondary::UnrestrictedGuest);
        if register == Ss {
            if !matches!(kind, 3 | 7) {
                let rule = "the type must be accessed writable data: 3 or 7";
                self.fail(field, rule)?;
            }
            if restricted && dpl != rpl {
                let rule = "the DPL must equal the RPL without \"unrestricted guest\"";
                self.fail(field, rule)?;
            }
            let real = self.get(FieldNatural::GuestCr0)? & CR0_PE == 0;
            if dpl != 0 && (real || self.segment(Cs)?.access.segment_type() == 3) {
                let rule = "the DPL must be 0 where the type of CS is 3 or CR0.PE is 0";
                self.fail(field, rule)?;
            }
        } else {
            if kind & 1 == 0 {
                self.fail(field, "the type must be accessed")?;
            }
            if kind & 8 != 0 && kind & 2 == 0 {
                self.fail(field, "code must be readable")?;
            }
            if restricted && kind <= 11 && dpl < rpl {
                let rule = "the DPL must not be below the RPL without \"unrestricted guest\"";
                self.fail(field, rule)?;
            }
        }
        self.code_or_data(field, &segment)
    }

    /// What is wanted of all code and data segments that can be used.
    fn code_or_data(&mut self, field: Field, segment: &Segment) -> Result<(), VmcsError> {
        if !segment.access.is_code_or_data() {
            self.fail(field, "S must be 1")?;
        }
        self.present(field, segment)
    }

    fn present(&mut self, field: Field, segment: &Segment) -> Result<(), VmcsError> {
        let granularity = segment.access.granularity();
        if !segment.access.present() {
            self.fail(field, "P must be 1")?;
        }
        self.require_zero(field, 0xfffe_0f00)?;
        if granularity && segment.limit & 0xfff != 0xfff {
            let rule = "G must be 0 where any of bits 11:0 of the limit is 0";
            self.fail(field, rule)?;
        }
        if !granularity && segment.limit >> 20 != 0 {
            let rule = "G must be 1 where any of bits 31:20 of the limit is 1";
            self.fail(field, rule)?;
        }
        Ok(())
    }

    /// TR, or an LDTR that can be used.
    fn system(&mut self, register: SegmentRegister) -> Result<(), VmcsError> {
        let segment = self.segment(register)?;
        let [.., field] = segment_fields(register);
        match (register, segment.access.segment_type()) {
            (Tr, 11) | (Ldtr, 2) => (),
            (Tr, 3) if !self.has(EntryControl::Ia32eModeGuest) => (),
            (Ldtr, _) => self.fail(field, "the type must be LDT: 2")?,
            _ => {
                let rule = "the type must be a busy TSS: 11 (or 3 outside IA-32e mode)";
                self.fail(field, rule)?;
            }
        }
        if segment.access.is_code_or_data() {
            self.fail(field, "S must be 0")?;
        }
        if segment.access.unusable() {
            self.fail(field, "must not be unusable")?;
        }
        self.present(field, &segment)
    }
}
