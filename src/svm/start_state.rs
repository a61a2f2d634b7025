//! What the VMCB of a guest begins with.
//!
//! What it does not hold (general registers but RAX and RSP, FPU, DR0 to DR3, XCR0) is not here.

use super::choice::Chosen;
use super::event::mask_physical_interrupts;
use super::fields::*;
use super::neutral::{AccessRights, Segment, SegmentRegister, Start64};
use super::segment::write_segment;
use super::vmcb::Vmcb;
use crate::addr::Hpa;
use crate::register_bits::{
    CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, DR7_RESET,
    EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, PAT_RESET, RFLAGS_RESET,
};

/// EFER.SVME, without which no guest is entered. It is the host's: a guest reads 0.
pub const EFER_SVME: u64 = 1 << 12;
/// DR6 as after a reset.
const DR6_RESET: u64 = 0xffff_0ff0;

/// The addresses that a guest is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its nested tables.
    pub nested_cr3: Hpa,
    /// The MSR permission map.
    pub msr_map: Hpa,
    /// The I/O permission map.
    pub io_map: Hpa,
}

/// Writes the control area: how a guest is run, with nothing to be injected. The ASID is left to each entry.
pub fn write_controls(vmcb: &mut Vmcb, chosen: &Chosen, addresses: &Addresses) {
    vmcb.set_intercepts(chosen.intercepts);
    vmcb.set(IO_MAP, addresses.io_map.as_u64());
    vmcb.set(MSR_MAP, addresses.msr_map.as_u64());
    vmcb.set(TSC_OFFSET, 0);
    vmcb.set(VIRTUAL_INTERRUPT, 0);
    mask_physical_interrupts(vmcb);
    vmcb.set(INTERRUPT_SHADOW, 0);
    vmcb.set(EVENT_INJECTION, 0);
    vmcb.set(NESTED_CONTROL, NP_ENABLE);
    vmcb.set(NESTED_CR3, addresses.nested_cr3.as_u64());
    vmcb.set(LBR_CONTROL, 0);
}

/// Writes the save area of a guest that begins in 64-bit mode: code, data and stack of privilege 0, with paging, NX and SSE on,
/// interrupts off, and neither a GDT nor an IDT: the guest loads its own.
pub fn write_start(vmcb: &mut Vmcb, start: &Start64) {
    for register in SegmentRegister::ALL {
        let segment = match register {
            SegmentRegister::Cs => Segment::flat(0x8, AccessRights::CODE64),
            SegmentRegister::Ldtr => Segment::UNUSABLE,
            SegmentRegister::Tr => EMPTY_TSS,
            _ => Segment::flat(0x10, AccessRights::DATA),
        };
        write_segment(vmcb, register, &segment);
    }
    for (limit, base) in [(GDTR_LIMIT, GDTR_BASE), (IDTR_LIMIT, IDTR_BASE)] {
        vmcb.set(limit, 0xffff);
        vmcb.set(base, 0);
    }
    for (field, value) in [
        (EFER, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE | EFER_SVME),
        (CR0, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG),
        (CR3, start.cr3),
        (CR4, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT),
        (DR6, DR6_RESET),
        (DR7, DR7_RESET),
        (RFLAGS, RFLAGS_RESET),
        (RIP, start.rip),
        (RSP, start.rsp),
        (RAX, 0),
        (CR2, 0),
        (PAT, PAT_RESET),
        (DEBUGCTL, 0),
    ] {
        vmcb.set(field, value);
    }
    vmcb.set(VISIBLE_CR0, vmcb.get(CR0));
    vmcb.set(VISIBLE_CR4, vmcb.get(CR4));
    for of_system_calls in [
        STAR,
        LSTAR,
        CSTAR,
        SFMASK,
        KERNEL_GS_BASE,
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
    ] {
        vmcb.set(of_system_calls, 0);
    }
}

/// TR must be usable even of a guest that has no TSS yet. Its limit is that of the smallest TSS.
const EMPTY_TSS: Segment = Segment {
    selector: 0,
    base: 0,
    limit: 0x67,
    access: AccessRights::BUSY_TSS,
};

#[cfg(test)]
pub(super) mod tests {
    use super::super::capabilities::Capabilities;
    use super::super::capabilities::tests::qemu;
    use super::super::choice::choose;
    use super::super::entry_check::failed_checks;
    use super::*;

    pub const START: Start64 = Start64 {
        rip: 0x40_0000,
        rsp: 0x7f_f000,
        cr3: 0x1000,
    };
    pub const ADDRESSES: Addresses = Addresses {
        nested_cr3: Hpa::new(0x20_0000),
        msr_map: Hpa::new(0x21_0000),
        io_map: Hpa::new(0x22_0000),
    };

    /// A VMCB that VMRUN would take, with what QEMU's CPU can do.
    pub fn set_up() -> (Vmcb, Capabilities) {
        let capabilities = Capabilities::discover(&qemu()).unwrap();
        let mut vmcb = Vmcb::ZERO;
        write_controls(&mut vmcb, &choose(&capabilities).unwrap(), &ADDRESSES);
        write_start(&mut vmcb, &START);
        vmcb.set(ASID, 1);
        (vmcb, capabilities)
    }

    #[test]
    fn what_is_written_passes_every_check() {
        let (vmcb, capabilities) = set_up();
        assert_eq!(failed_checks(&vmcb, &capabilities).count(), 0);
    }

    #[test]
    fn whatever_stood_there_before_the_guest_begins_the_same() {
        let (expected, _) = set_up();
        let mut vmcb = expected.clone();
        let kept = [
            EXIT_CODE,
            EXIT_INFO_1,
            EXIT_INFO_2,
            EXIT_INTERRUPTION,
            NEXT_RIP,
        ];
        for (named, _) in expected.named() {
            let is_exits = kept.iter().any(|field| field.offset() == named.offset);
            // What is never on is not cleared either.
            let unused = named.name.contains("AVIC")
                || named.name.contains("address of the GHCB")
                || named.name.contains("address of the VMSA")
                || named.name.contains("pause filter")
                || named.name.contains("bytes")
                || named.name.starts_with("last ")
                || [
                    "S_CET",
                    "SSP",
                    "ISST_ADDR",
                    "SPEC_CTRL",
                    "ASID",
                    "TLB control",
                    "clean bits",
                ]
                .contains(&named.name);
            if !is_exits && !unused {
                vmcb.fill_for_test(named, 0xa5);
            }
        }
        write_controls(
            &mut vmcb,
            &choose(&Capabilities::discover(&qemu()).unwrap()).unwrap(),
            &ADDRESSES,
        );
        write_start(&mut vmcb, &START);
        vmcb.is_new_to_the_cpu();
        for ((named, value), (_, wanted)) in vmcb.named().zip(expected.named()) {
            assert_eq!(value, wanted, "{}", named.name);
        }
    }
}
