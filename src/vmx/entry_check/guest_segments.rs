//! SDM "Checks on Guest Segment Registers", 28.3.1.2.

use super::super::controls::{Entry, Secondary};
use super::super::register_bits::{CR0_PE, RFLAGS_VM};
use super::super::segment::{AccessRights, Segment, SegmentRegister};
use super::super::state::GuestState;
use super::super::vmcs::{Vmcs, VmcsError};
use super::Checker;

use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};

/// Access rights of every segment in virtual-8086 mode.
const VIRTUAL_8086: AccessRights = AccessRights(0xf3);

impl<V: Vmcs> Checker<'_, V> {
    pub(super) fn guest_segments(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        self.selectors(state)?;
        self.bases(state)?;
        for register in [Cs, Ss, Ds, Es, Fs, Gs] {
            let segment = state.segment(register);
            if state.rflags & RFLAGS_VM != 0 {
                self.virtual_8086(register, segment)?;
            } else if register == Cs {
                self.code(state)?;
            } else if !segment.access.unusable() {
                self.data(register, state)?;
            }
        }
        self.task_register(state.segment(Tr))?;
        if !state.segment(Ldtr).access.unusable() {
            self.local_descriptor_table(state.segment(Ldtr))?;
        }
        Ok(())
    }

    fn selectors(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        let ti = |register| state.segment(register).selector & 4 != 0;
        self.require(!ti(Tr), Tr.selector_field(), "TI must be 0")?;
        let ldtr = state.segment(Ldtr);
        self.require(
            ldtr.access.unusable() || !ti(Ldtr),
            Ldtr.selector_field(),
            "TI must be 0",
        )?;
        let rpl = |register| state.segment(register).selector & 3;
        self.require(
            state.rflags & RFLAGS_VM != 0
                || self.has(Secondary::UnrestrictedGuest)
                || rpl(Ss) == rpl(Cs),
            Ss.selector_field(),
            "RPL must equal the RPL of CS without \"unrestricted guest\"",
        )
    }

    fn bases(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        for register in [Tr, Fs, Gs] {
            self.require_canonical(register.base_field())?;
        }
        if !state.segment(Ldtr).access.unusable() {
            self.require_canonical(Ldtr.base_field())?;
        }
        for register in [Cs, Ss, Ds, Es] {
            let segment = state.segment(register);
            let counts = register == Cs || !segment.access.unusable();
            self.require(
                !counts || segment.base >> 32 == 0,
                register.base_field(),
                "bits 63:32 must be 0",
            )?;
        }
        Ok(())
    }

    fn virtual_8086(
        &mut self,
        register: SegmentRegister,
        segment: &Segment,
    ) -> Result<(), VmcsError> {
        self.require(
            segment.base == u64::from(segment.selector) << 4,
            register.base_field(),
            "must be 16 times the selector in virtual-8086 mode",
        )?;
        self.require(
            segment.limit == 0xffff,
            register.limit_field(),
            "must be 0xffff in virtual-8086 mode",
        )?;
        self.require(
            segment.access == VIRTUAL_8086,
            register.access_field(),
            "must be 0xf3 in virtual-8086 mode",
        )
    }

    fn code(&mut self, state: &GuestState) -> Result<(), VmcsError> {
        let segment = state.segment(Cs);
        let access = segment.access;
        let stack = state.segment(Ss).access;
        let field = Cs.access_field();
        let unrestricted = self.has(Secondary::UnrestrictedGuest);
        self.require(
            match access.segment_type() {
                9 | 11 | 13 | 15 => true,
                3 => unrestricted,
                _ => false,
            },
            field,
            "the type must be accessed code: 9, 11, 13 or 15 (or 3 with \"unrestricted guest\")",
        )?;
        self.require(
            match access.segment_type() {
                3 => access.dpl() == 0,
                9 | 11 => access.dpl() == stack.dpl(),
                13 | 15 => access.dpl() <= stack.dpl(),
                _ => true,
            },
            field,
            "the DPL must be 0 of type 3, that of SS of types 9 and 11, at most that of SS of types 13 and 15",
        )?;
        self.usable(Cs, segment)?;
        self.require(
            !(self.has(Entry::Ia32eModeGuest) && access.long() && access.default_big()),
            field,
            "D/B must be 0 where L is 1",
        )
    }

    fn data(&mut self, register: SegmentRegister, state: &GuestState) -> Result<(), VmcsError> {
        let segment = state.segment(register);
        let access = segment.access;
        let field = register.access_field();
        let kind = access.segment_type();
        let rpl = (segment.selector & 3) as u8;
        let unrestricted = self.has(Secondary::UnrestrictedGuest);
        if register == Ss {
            self.require(
                matches!(kind, 3 | 7),
                field,
                "the type must be accessed writable data: 3 or 7",
            )?;
            self.require(
                unrestricted || access.dpl() == rpl,
                field,
                "the DPL must equal the RPL without \"unrestricted guest\"",
            )?;
            let must_be_0 = state.segment(Cs).access.segment_type() == 3 || state.cr0 & CR0_PE == 0;
            self.require(
                !must_be_0 || access.dpl() == 0,
                field,
                "the DPL must be 0 where the type of CS is 3 or CR0.PE is 0",
            )?;
        } else {
            self.require(kind & 1 != 0, field, "the type must be accessed")?;
            self.require(
                kind & 8 == 0 || kind & 2 != 0,
                field,
                "code must be readable",
            )?;
            self.require(
                unrestricted || kind > 11 || access.dpl() >= rpl,
                field,
                "the DPL must not be below the RPL without \"unrestricted guest\"",
            )?;
        }
        self.usable(register, segment)
    }

    /// What is wanted of all code and data segments that can be used.
    fn usable(&mut self, register: SegmentRegister, segment: &Segment) -> Result<(), VmcsError> {
        let field = register.access_field();
        self.require(segment.access.is_code_or_data(), field, "S must be 1")?;
        self.present(register, segment)
    }

    fn present(&mut self, register: SegmentRegister, segment: &Segment) -> Result<(), VmcsError> {
        let field = register.access_field();
        self.require(segment.access.present(), field, "P must be 1")?;
        self.require(
            segment.access.reserved() == 0,
            field,
            "reserved bits 31:17 and 11:8 must be 0",
        )?;
        self.require(
            !segment.access.granularity() || segment.limit & 0xfff == 0xfff,
            field,
            "G must be 0 where any of bits 11:0 of the limit is 0",
        )?;
        self.require(
            segment.access.granularity() || segment.limit >> 20 == 0,
            field,
            "G must be 1 where any of bits 31:20 of the limit is 1",
        )
    }

    fn task_register(&mut self, segment: &Segment) -> Result<(), VmcsError> {
        let field = Tr.access_field();
        let kind = segment.access.segment_type();
        self.require(
            kind == 11 || kind == 3 && !self.has(Entry::Ia32eModeGuest),
            field,
            "the type must be a busy TSS: 11 (or 3 outside IA-32e mode)",
        )?;
        self.require(!segment.access.is_code_or_data(), field, "S must be 0")?;
        self.require(!segment.access.unusable(), field, "must not be unusable")?;
        self.present(Tr, segment)
    }

    fn local_descriptor_table(&mut self, segment: &Segment) -> Result<(), VmcsError> {
        let field = Ldtr.access_field();
        self.require(
            segment.access.segment_type() == 2,
            field,
            "the type must be LDT: 2",
        )?;
        self.require(!segment.access.is_code_or_data(), field, "S must be 0")?;
        self.present(Ldtr, segment)
    }
}
