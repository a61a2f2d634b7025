//! After a VMRUN that was refused: which of the manual's checks the VMCB does not pass (APM "Canonicalization and Consistency
//! Checks", 15.5.1).
//!
//! The CPU says no more than that one failed. Here they are made again in software and each that fails is named. Checks on
//! features that no guest of ours uses are left out: CET, AVIC, encrypted guests, virtual NMIs, branch records. Addresses need no
//! check: VMRUN makes them canonical.

use core::fmt;

use super::capabilities::Capabilities;
use super::field::{Field, Word};
use super::fields::*;
use super::intercept::Intercept;
use super::neutral::{AccessRights, SegmentRegister};
use super::permission_map::{IoMap, MsrMap};
use super::segment::{place, read_segment};
use super::start_state::EFER_SVME;
use super::vmcb::Vmcb;
use crate::register_bits::{
    CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE,
};
use crate::virt::{self, Rule};

const UPPER_HALF: u64 = 0xffff_ffff_0000_0000;
/// LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE and automatic IBRS.
const EFER_OTHERS: u64 = 1 << 13 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 18 | 1 << 20 | 1 << 21;
/// All that EFER has on any CPU.
const EFER_KNOWN: u64 = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_SVME | EFER_OTHERS;

/// A check that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// The field that is wrong.
    pub field: &'static Named,
    /// What is in it.
    pub value: u64,
    /// What the manual wants of it.
    pub rule: Rule,
}

impl fmt::Display for FailedCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named { name, offset, .. } = self.field;
        write!(
            f,
            "{name} ({offset:#05x}) is {:#x}: {}",
            self.value, self.rule
        )
    }
}

/// The checks that failed.
pub type FailedChecks = virt::FailedChecks<FailedCheck>;

/// Makes the checks on this VMCB. Its save area must be what VMRUN was given: some CPUs have stored the host's state there when
/// they refuse it.
pub fn failed_checks(vmcb: &Vmcb, capabilities: &Capabilities) -> FailedChecks {
    let mut checker = Checker {
        vmcb,
        capabilities,
        failed: FailedChecks::default(),
    };
    checker.controls();
    checker.control_registers();
    checker.mode();
    checker.debug_registers();
    checker.nested_paging();
    checker.event();
    checker.failed
}

struct Checker<'a> {
    vmcb: &'a Vmcb,
    capabilities: &'a Capabilities,
    failed: FailedChecks,
}

impl Checker<'_> {
    /// Notes that `field` breaks `rule`.
    fn broken<T: Word>(&mut self, field: Field<T>, rule: Rule) {
        // Every field is one of these.
        let named = FIELDS.iter().find(|named| named.offset == field.offset());
        if let Some(named) = named {
            self.failed.add(FailedCheck {
                field: named,
                value: self.vmcb.get(field).widen(),
                rule,
            });
        }
    }
    fn fail<T: Word>(&mut self, field: Field<T>, words: &'static str) {
        self.broken(field, Rule::Words(words));
    }
    fn require_zero(&mut self, field: Field<u64>, bits: u64) {
        if self.vmcb.get(field) & bits != 0 {
            self.broken(field, Rule::Zero(bits));
        }
    }
    /// That what begins at this address ends inside of physical memory.
    fn require_physical(&mut self, field: Field<u64>, bytes: usize) {
        // The CPU ignores the lowest bits.
        let start = self.vmcb.get(field) & !0xfff;
        let end = start.checked_add(bytes as u64 - 1);
        let beyond = |end: u64| end >> self.capabilities.physical_bits.min(63) != 0;
        if end.is_none_or(beyond) {
            self.fail(field, "must end inside the physical-address width");
        }
    }

    fn controls(&mut self) {
        if !self.vmcb.intercepts().has(Intercept::VMRUN) {
            self.fail(INTERCEPT_4, "the intercept of VMRUN (bit 0) must be 1");
        }
        if self.vmcb.get(ASID) == 0 {
            self.fail(ASID, "must not be 0, which is the host's");
        }
        self.require_physical(MSR_MAP, MsrMap::BYTES);
        self.require_physical(IO_MAP, IoMap::BYTES);
    }

    fn control_registers(&mut self) {
        let cr0 = self.vmcb.get(CR0);
        if cr0 & CR0_NW != 0 && cr0 & CR0_CD == 0 {
            self.fail(CR0, "NW must be 0 where CD is 0");
        }
        self.require_zero(CR0, UPPER_HALF);
        self.require_zero(CR3, self.beyond_physical());
        self.require_zero(CR4, !self.capabilities.cr4);
        self.require_zero(EFER, !EFER_KNOWN);
        if self.vmcb.get(EFER) & EFER_SVME == 0 {
            self.fail(EFER, "SVME must be 1");
        }
    }
    fn beyond_physical(&self) -> u64 {
        u64::MAX
            .checked_shl(self.capabilities.physical_bits.into())
            .unwrap_or(0)
    }

    /// Long mode with all that belongs to it.
    fn mode(&mut self) {
        if self.vmcb.get(EFER) & EFER_LME == 0 || self.vmcb.get(CR0) & CR0_PG == 0 {
            return;
        }
        if self.vmcb.get(CR4) & CR4_PAE == 0 {
            self.fail(CR4, "PAE must be 1 where EFER.LME and CR0.PG are 1");
        }
        if self.vmcb.get(CR0) & CR0_PE == 0 {
            self.fail(CR0, "PE must be 1 where EFER.LME and CR0.PG are 1");
        }
        let cs: AccessRights = read_segment(self.vmcb, SegmentRegister::Cs).access;
        if cs.long() && cs.default_big() {
            let field = place(SegmentRegister::Cs).attributes;
            self.fail(field, "D must be 0 where L is 1");
        }
    }

    fn debug_registers(&mut self) {
        self.require_zero(DR6, UPPER_HALF);
        self.require_zero(DR7, UPPER_HALF);
    }

    fn nested_paging(&mut self) {
        if self.vmcb.get(NESTED_CONTROL) & NP_ENABLE == 0 {
            return;
        }
        self.require_zero(NESTED_CR3, self.beyond_physical());
        let pat = self.vmcb.get(PAT).to_le_bytes();
        if !pat.iter().all(|t| matches!(t, 0 | 1 | 4..=7)) {
            self.fail(
                PAT,
                "each of its 8 bytes must be 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB) or 7 (UC-)",
            );
        }
    }

    /// APM 15.20.
    fn event(&mut self) {
        let bits = self.vmcb.get(EVENT_INJECTION);
        if bits >> 31 & 1 == 0 {
            return;
        }
        let vector = bits as u8;
        match bits >> 8 & 7 {
            0 | 2 | 4 => {}
            3 if vector == 2 => self.fail(EVENT_INJECTION, "NMI is no exception: its type is 2"),
            3 if vector >= 32 => self.fail(EVENT_INJECTION, "an exception's vector is below 32"),
            3 => {}
            _ => self.fail(EVENT_INJECTION, "the type must be 0, 2, 3 or 4"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::start_state::tests::set_up;
    use super::*;

    /// What is said of a VMCB that is right but for this.
    fn said(change: impl FnOnce(&mut Vmcb)) -> String {
        let (mut vmcb, capabilities) = set_up();
        change(&mut vmcb);
        failed_checks(&vmcb, &capabilities).to_string()
    }
    fn change(field: Field<u64>, change: impl FnOnce(u64) -> u64) -> String {
        said(|vmcb| {
            let value = vmcb.get(field);
            vmcb.set(field, change(value));
        })
    }

    #[test]
    fn each_check_is_named_when_it_alone_fails() {
        let intercepts = said(|vmcb| vmcb.set(INTERCEPT_4, 2));
        assert_eq!(
            intercepts,
            "intercept vector 4 (0x010) is 0x2: the intercept of VMRUN (bit 0) must be 1\n"
        );
        let asid = said(|vmcb| vmcb.set(ASID, 0));
        assert_eq!(
            asid,
            "ASID (0x058) is 0x0: must not be 0, which is the host's\n"
        );
        let attributes = said(|vmcb| vmcb.set(ATTRIBUTES_OF_CS, 0xe9b));
        assert_eq!(
            attributes,
            "CS attributes (0x412) is 0xe9b: D must be 0 where L is 1\n"
        );
        for (found, words) in [
            (
                change(MSR_MAP, |_| 0xff_ffff_f000),
                "the MSR permission map (0x048) is 0xfffffff000: must end",
            ),
            (
                change(IO_MAP, |_| u64::MAX),
                "the I/O permission map (0x040)",
            ),
            (
                change(CR0, |cr0| cr0 | CR0_NW),
                "CR0 (0x558) is 0xa0010033: NW must be 0 where CD is 0",
            ),
            (
                change(CR0, |cr0| cr0 | 1 << 40),
                "CR0 (0x558) is 0x10080010033: bits 63:32 must be 0",
            ),
            (
                change(CR0, |cr0| cr0 & !CR0_PE),
                "PE must be 1 where EFER.LME and CR0.PG are 1",
            ),
            (
                change(CR3, |cr3| cr3 | 1 << 41),
                "CR3 (0x550) is 0x20000001000: bits 63:40 must be 0",
            ),
            (change(CR4, |cr4| cr4 | 1 << 13), "CR4 (0x548)"),
            (
                change(CR4, |cr4| cr4 & !CR4_PAE),
                "PAE must be 1 where EFER.LME and CR0.PG are 1",
            ),
            (change(EFER, |efer| efer | 2), "EFER (0x4d0)"),
            (
                change(EFER, |efer| efer & !EFER_SVME),
                "EFER (0x4d0) is 0xd01: SVME must be 1",
            ),
            (
                change(DR6, |_| 1 << 32),
                "DR6 (0x568) is 0x100000000: bits 63:32 must be 0",
            ),
            (change(DR7, |_| 1 << 63), "DR7 (0x560)"),
            (
                change(NESTED_CR3, |_| 1 << 40),
                "nested CR3 (0x0b0) is 0x10000000000: bits 63:40 must be 0",
            ),
            (
                change(PAT, |_| 2),
                "PAT (0x668) is 0x2: each of its 8 bytes",
            ),
            (
                change(EVENT_INJECTION, |_| 0x8000_0302),
                "NMI is no exception",
            ),
            (
                change(EVENT_INJECTION, |_| 0x8000_0320),
                "vector is below 32",
            ),
            (change(EVENT_INJECTION, |_| 0x8000_0130), "the type must be"),
        ] {
            assert!(found.contains(words), "{words} in {found}");
            assert_eq!(found.lines().count(), 1, "{found}");
        }
    }

    #[test]
    fn what_does_not_count_is_not_checked() {
        // Long mode without paging; nested paging off; nothing to inject.
        let real = said(|vmcb| {
            vmcb.set(CR0, 0x10);
            vmcb.set(CR4, 0);
            vmcb.set(ATTRIBUTES_OF_CS, 0xe9b);
        });
        let off = said(|vmcb| {
            vmcb.set(NESTED_CONTROL, 0);
            vmcb.set(NESTED_CR3, u64::MAX);
            vmcb.set(PAT, 2);
        });
        let nothing = change(EVENT_INJECTION, |_| 0x7fff_ffff);
        for found in [real, off, nothing] {
            assert_eq!(found, "no failed check found\n");
        }
    }

    #[test]
    fn more_than_can_be_named_are_counted() {
        let all = said(|vmcb| {
            *vmcb = Vmcb::ZERO;
            for field in [CR0, CR3, CR4, EFER, DR6, DR7, NESTED_CR3, MSR_MAP, IO_MAP] {
                vmcb.set(field, !(CR0_CD | CR0_PE | CR4_PAE | EFER_SVME));
            }
            vmcb.set(NESTED_CONTROL, 1);
            vmcb.set(PAT, 2);
            vmcb.set(EVENT_INJECTION, 0x8000_0302);
            vmcb.set(ATTRIBUTES_OF_CS, 0xe9b);
        });
        assert_eq!(all.lines().count(), 17, "{all}");
        assert!(all.ends_with("and 2 more\n"), "{all}");
    }
}
