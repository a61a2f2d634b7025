//! The fields of the VMCB, each a constant with its type (APM volume 2, appendix B, tables B-1 and B-2).
//!
//! A field that has another width than what is written to it is a type error.

use super::field::{Clean, Field};

/// A field as the dump knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where it is.
    pub offset: u16,
    /// How wide it is.
    pub bytes: u16,
    /// What it is.
    pub name: &'static str,
}

impl Named {
    /// What it is.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

macro_rules! fields {
    ($($name:ident: $type:ty = $offset:literal, $clean:ident, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Field<$type> = Field::new($offset, Clean::$clean);)*

        /// All of them, in the order of their offsets.
        pub static FIELDS: &[Named] = &[
            $(Named { offset: $offset, bytes: size_of::<$type>() as u16, name: $text },)*
        ];
    };
}

fields! {
    INTERCEPT_CR: u32 = 0x000, INTERCEPTS, "intercepts of control registers";
    INTERCEPT_DR: u32 = 0x004, INTERCEPTS, "intercepts of debug registers";
    INTERCEPT_EXCEPTION: u32 = 0x008, INTERCEPTS, "intercepts of exceptions";
    INTERCEPT_3: u32 = 0x00c, INTERCEPTS, "intercept vector 3";
    INTERCEPT_4: u32 = 0x010, INTERCEPTS, "intercept vector 4";
    INTERCEPT_5: u32 = 0x014, INTERCEPTS, "intercept vector 5";
    PAUSE_THRESHOLD: u16 = 0x03c, INTERCEPTS, "pause filter threshold";
    PAUSE_COUNT: u16 = 0x03e, INTERCEPTS, "pause filter count";
    IO_MAP: u64 = 0x040, PERMISSION_MAPS, "address of the I/O permission map";
    MSR_MAP: u64 = 0x048, PERMISSION_MAPS, "address of the MSR permission map";
    TSC_OFFSET: u64 = 0x050, INTERCEPTS, "TSC offset";
    ASID: u32 = 0x058, ASID, "ASID";
    TLB_CONTROL: u8 = 0x05c, NEVER, "TLB control";
    VIRTUAL_INTERRUPT: u64 = 0x060, VIRTUAL_INTERRUPT, "virtual interrupts";
    INTERRUPT_SHADOW: u64 = 0x068, NEVER, "interrupt shadow";
    EXIT_CODE: u64 = 0x070, NEVER, "exit code";
    EXIT_INFO_1: u64 = 0x078, NEVER, "exit information 1";
    EXIT_INFO_2: u64 = 0x080, NEVER, "exit information 2";
    EXIT_INTERRUPTION: u64 = 0x088, NEVER, "exit interruption information";
    NESTED_CONTROL: u64 = 0x090, NESTED_PAGING, "nested paging control";
    AVIC_APIC_BAR: u64 = 0x098, NEVER, "AVIC APIC base address";
    GHCB: u64 = 0x0a0, NEVER, "address of the GHCB";
    EVENT_INJECTION: u64 = 0x0a8, NEVER, "event injection";
    NESTED_CR3: u64 = 0x0b0, NESTED_PAGING, "nested CR3";
    LBR_CONTROL: u64 = 0x0b8, BRANCHES, "LBR virtualization control";
    CLEAN: u32 = 0x0c0, NEVER, "clean bits";
    NEXT_RIP: u64 = 0x0c8, NEVER, "next RIP";
    FETCHED_LOW: u64 = 0x0d0, NEVER, "guest instruction bytes, with their number first";
    FETCHED_HIGH: u64 = 0x0d8, NEVER, "guest instruction bytes, the rest";
    AVIC_BACKING_PAGE: u64 = 0x0e0, NEVER, "AVIC backing page";
    AVIC_LOGICAL_TABLE: u64 = 0x0f0, NEVER, "AVIC logical table";
    AVIC_PHYSICAL_TABLE: u64 = 0x0f8, NEVER, "AVIC physical table";
    VMSA: u64 = 0x108, NEVER, "address of the VMSA";
    VISIBLE_CR0: u64 = 0x3e0, NEVER, "CR0 as the guest sees it";
    VISIBLE_CR4: u64 = 0x3e8, NEVER, "CR4 as the guest sees it";
    SELECTOR_OF_ES: u16 = 0x400, SEGMENTS, "ES selector";
    ATTRIBUTES_OF_ES: u16 = 0x402, SEGMENTS, "ES attributes";
    LIMIT_OF_ES: u32 = 0x404, SEGMENTS, "ES limit";
    BASE_OF_ES: u64 = 0x408, SEGMENTS, "ES base";
    SELECTOR_OF_CS: u16 = 0x410, SEGMENTS, "CS selector";
    ATTRIBUTES_OF_CS: u16 = 0x412, SEGMENTS, "CS attributes";
    LIMIT_OF_CS: u32 = 0x414, SEGMENTS, "CS limit";
    BASE_OF_CS: u64 = 0x418, SEGMENTS, "CS base";
    SELECTOR_OF_SS: u16 = 0x420, SEGMENTS, "SS selector";
    ATTRIBUTES_OF_SS: u16 = 0x422, SEGMENTS, "SS attributes";
    LIMIT_OF_SS: u32 = 0x424, SEGMENTS, "SS limit";
    BASE_OF_SS: u64 = 0x428, SEGMENTS, "SS base";
    SELECTOR_OF_DS: u16 = 0x430, SEGMENTS, "DS selector";
    ATTRIBUTES_OF_DS: u16 = 0x432, SEGMENTS, "DS attributes";
    LIMIT_OF_DS: u32 = 0x434, SEGMENTS, "DS limit";
    BASE_OF_DS: u64 = 0x438, SEGMENTS, "DS base";
    SELECTOR_OF_FS: u16 = 0x440, NEVER, "FS selector";
    ATTRIBUTES_OF_FS: u16 = 0x442, NEVER, "FS attributes";
    LIMIT_OF_FS: u32 = 0x444, NEVER, "FS limit";
    BASE_OF_FS: u64 = 0x448, NEVER, "FS base";
    SELECTOR_OF_GS: u16 = 0x450, NEVER, "GS selector";
    ATTRIBUTES_OF_GS: u16 = 0x452, NEVER, "GS attributes";
    LIMIT_OF_GS: u32 = 0x454, NEVER, "GS limit";
    BASE_OF_GS: u64 = 0x458, NEVER, "GS base";
    GDTR_LIMIT: u32 = 0x464, DESCRIPTOR_TABLES, "GDTR limit";
    GDTR_BASE: u64 = 0x468, DESCRIPTOR_TABLES, "GDTR base";
    SELECTOR_OF_LDTR: u16 = 0x470, NEVER, "LDTR selector";
    ATTRIBUTES_OF_LDTR: u16 = 0x472, NEVER, "LDTR attributes";
    LIMIT_OF_LDTR: u32 = 0x474, NEVER, "LDTR limit";
    BASE_OF_LDTR: u64 = 0x478, NEVER, "LDTR base";
    IDTR_LIMIT: u32 = 0x484, DESCRIPTOR_TABLES, "IDTR limit";
    IDTR_BASE: u64 = 0x488, DESCRIPTOR_TABLES, "IDTR base";
    SELECTOR_OF_TR: u16 = 0x490, NEVER, "TR selector";
    ATTRIBUTES_OF_TR: u16 = 0x492, NEVER, "TR attributes";
    LIMIT_OF_TR: u32 = 0x494, NEVER, "TR limit";
    BASE_OF_TR: u64 = 0x498, NEVER, "TR base";
    CPL: u8 = 0x4cb, SEGMENTS, "CPL";
    EFER: u64 = 0x4d0, CONTROL_REGISTERS, "EFER";
    CR4: u64 = 0x548, CONTROL_REGISTERS, "CR4";
    CR3: u64 = 0x550, CONTROL_REGISTERS, "CR3";
    CR0: u64 = 0x558, CONTROL_REGISTERS, "CR0";
    DR7: u64 = 0x560, DEBUG_REGISTERS, "DR7";
    DR6: u64 = 0x568, DEBUG_REGISTERS, "DR6";
    RFLAGS: u64 = 0x570, NEVER, "RFLAGS";
    RIP: u64 = 0x578, NEVER, "RIP";
    RSP: u64 = 0x5d8, NEVER, "RSP";
    S_CET: u64 = 0x5e0, NEVER, "S_CET";
    SSP: u64 = 0x5e8, NEVER, "SSP";
    ISST_ADDR: u64 = 0x5f0, NEVER, "ISST_ADDR";
    RAX: u64 = 0x5f8, NEVER, "RAX";
    STAR: u64 = 0x600, NEVER, "STAR";
    LSTAR: u64 = 0x608, NEVER, "LSTAR";
    CSTAR: u64 = 0x610, NEVER, "CSTAR";
    SFMASK: u64 = 0x618, NEVER, "SFMASK";
    KERNEL_GS_BASE: u64 = 0x620, NEVER, "KernelGsBase";
    SYSENTER_CS: u64 = 0x628, NEVER, "SYSENTER_CS";
    SYSENTER_ESP: u64 = 0x630, NEVER, "SYSENTER_ESP";
    SYSENTER_EIP: u64 = 0x638, NEVER, "SYSENTER_EIP";
    CR2: u64 = 0x640, CR2, "CR2";
    PAT: u64 = 0x668, NESTED_PAGING, "PAT";
    DEBUGCTL: u64 = 0x670, BRANCHES, "DBGCTL";
    LAST_BRANCH_FROM: u64 = 0x678, BRANCHES, "last branch from";
    LAST_BRANCH_TO: u64 = 0x680, BRANCHES, "last branch to";
    LAST_EXCEPTION_FROM: u64 = 0x688, BRANCHES, "last exception from";
    LAST_EXCEPTION_TO: u64 = 0x690, BRANCHES, "last exception to";
    SPEC_CTRL: u64 = 0x6e0, NEVER, "SPEC_CTRL";
}

/// The six vectors of intercepts, in their order.
pub const INTERCEPTS: [Field<u32>; 6] = [
    INTERCEPT_CR,
    INTERCEPT_DR,
    INTERCEPT_EXCEPTION,
    INTERCEPT_3,
    INTERCEPT_4,
    INTERCEPT_5,
];

/// Virtual interrupts: V_IRQ, one is pending.
pub const V_IRQ: u64 = 1 << 8;
/// Virtual interrupts: V_GIF.
pub const V_GIF: u64 = 1 << 9;
/// Virtual interrupts: where V_INTR_PRIO is.
pub const V_INTR_PRIO: u32 = 16;
/// Virtual interrupts: V_IGN_TPR, whatever the task priority.
pub const V_IGN_TPR: u64 = 1 << 20;
/// Virtual interrupts: V_INTR_MASKING, the guest's RFLAGS.IF and CR8 have no effect on physical interrupts.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// Interrupt shadow: the guest is in one.
pub const IN_SHADOW: u64 = 1 << 0;
/// Interrupt shadow: RFLAGS.IF of the guest, where an exit tells it.
pub const GUEST_INTERRUPT_MASK: u64 = 1 << 1;
/// Nested paging control: it is on.
pub const NP_ENABLE: u64 = 1 << 0;

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
