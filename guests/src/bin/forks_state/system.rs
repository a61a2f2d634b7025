//! Control, debug, descriptor-table and model-specific registers, and how to change all of them.

use core::arch::asm;
use offshoot_guest::abi::Call;
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

macro_rules! get {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

macro_rules! set {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the value is legal, and nothing that follows depends on what it changes.
        unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value) };
    }};
}

/// Each with a value that is legal in it: SYSENTER_CS, ESP and EIP, PAT (its first entries as at reset), STAR, LSTAR,
/// CSTAR, FMASK, FS, GS and kernel GS base.
const MSRS: [(&str, u32, u64); 11] = [
    ("SYSENTER_CS", 0x174, 0x1234),
    ("SYSENTER_ESP", 0x175, 0xffff_8000_1234_5670),
    ("SYSENTER_EIP", 0x176, 0x0000_7fff_8765_4321),
    ("PAT", PAT, 0x0105_0600_0007_0406),
    ("STAR", 0xc000_0081, 0x0023_0010_0000_0000),
    ("LSTAR", 0xc000_0082, 0xffff_ffff_8010_2030),
    ("CSTAR", 0xc000_0083, 0xffff_9abc_def0_1234),
    ("FMASK", 0xc000_0084, 0x0004_7700),
    ("FS base", 0xc000_0100, 0x0000_1234_5678_9abc),
    ("GS base", 0xc000_0101, 0xffff_fedc_ba98_7654),
    ("kernel GS base", 0xc000_0102, 0xffff_8800_0000_1000),
];
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const TSC: u32 = 0x10;
const TSC_AUX: u32 = 0xc000_0103;

const CR0_TS: u64 = 1 << 3;
const CR0_AM: u64 = 1 << 18;
const CR4_TSD: u64 = 1 << 2;
const CR4_DE: u64 = 1 << 3;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR3_PWT: u64 = 1 << 3;

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only for registers that the guest has.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: only for registers that this program does not depend on, with legal values.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high) };
}

fn has_tsc_aux() -> bool {
    cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: CR4.OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

fn set_xcr0(value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: CR4.OSXSAVE is set and the value legal.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high) };
}

/// Switches XSAVE on with all that the CPU has of x87, SSE and AVX, if it has XSAVE.
pub fn enable_vectors() -> bool {
    if !cpu::has_ecx1(26) {
        return false;
    }
    set!("cr4", get!("cr4") | CR4_OSXSAVE);
    set_xcr0(7 & u64::from(cpu::cpuid(0xd, 0).eax));
    true
}

/// Gives the registers values other than those after a reset.
pub fn set_before_the_freeze(has_xsave: bool) {
    for (_, msr, value) in MSRS {
        // Of the entries of the PAT few values are legal.
        write_msr(
            msr,
            if msr == PAT {
                0x0007_0406_0007_0406
            } else {
                value ^ 0x10
            },
        );
    }
    if has_tsc_aux() {
        write_msr(TSC_AUX, 0x77);
    }
    set!("dr0", 0x1111);
    set!("dr1", 0x2222);
    set!("dr2", 0x3333);
    set!("dr3", 0x4444);
    set!("cr2", 0x5555_0000);
    set!("cr8", 3);
    vectors(0x1111_1111_1111_1111);
    if has_xsave && xcr0() & 4 != 0 {
        wide_vectors([0x11; 32]);
    }
}

/// Puts numbers into x87 and SSE registers.
fn vectors(seed: u64) {
    let control: u16 = if seed & 1 == 0 { 0x37f } else { 0x27f };
    let mxcsr: u32 = if seed & 1 == 0 { 0x1f80 } else { 0x9fc0 };
    // SAFETY: the registers are named, and the values legal.
    unsafe {
        asm!(
            "fninit",
            "fldcw [{control}]",
            "fldpi",
            "fld1",
            "fldl2e",
            "ldmxcsr [{mxcsr}]",
            "movq xmm0, {seed}",
            "movq xmm5, {seed}",
            "movq xmm15, {seed}",
            "punpcklqdq xmm5, xmm5",
            control = in(reg) &control,
            mxcsr = in(reg) &mxcsr,
            seed = in(reg) seed,
            out("xmm0") _, out("xmm5") _, out("xmm15") _,
        );
    }
}

/// The upper halves of the vector registers too.
fn wide_vectors(bytes: [u8; 32]) {
    // SAFETY: XCR0 has AVX.
    unsafe {
        asm!(
            "vmovdqu ymm3, [{bytes}]",
            "vmovdqu ymm12, [{bytes}]",
            bytes = in(reg) &bytes,
            out("xmm3") _, out("xmm12") _,
        );
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// A register and its value.
type Named = (&'static str, u64);
const COUNT: usize = MSRS.len() + 28;

/// What all these registers hold.
pub struct System {
    all: [Named; COUNT],
    pub tsc: u64,
}

impl System {
    pub fn read() -> Self {
        let (mut gdt, mut idt) = (Pointer::default(), Pointer::default());
        let (ldt, task): (u16, u16);
        let flags: u64;
        // SAFETY: stores registers, into memory of ours.
        unsafe {
            asm!("sgdt [{}]", in(reg) &mut gdt);
            asm!("sidt [{}]", in(reg) &mut idt);
            asm!("sldt {:x}", out(reg) ldt);
            asm!("str {:x}", out(reg) task);
            asm!("pushfq", "pop {}", out(reg) flags);
        }
        // Bits that instructions before this one leave behind by chance: CF, PF, AF, ZF, SF, OF.
        let flags = flags & !0x8d5;
        let cr4 = get!("cr4");
        let mut all = [("", 0); COUNT];
        let fixed = [
            ("CR0", get!("cr0")),
            ("CR2", get!("cr2")),
            ("CR3", get!("cr3")),
            ("CR4", cr4),
            ("CR8", get!("cr8")),
            ("XCR0", if cr4 & CR4_OSXSAVE != 0 { xcr0() } else { 0 }),
            ("DR0", get!("dr0")),
            ("DR1", get!("dr1")),
            ("DR2", get!("dr2")),
            ("DR3", get!("dr3")),
            ("DR6", get!("dr6")),
            ("DR7", get!("dr7")),
            ("EFER", read_msr(EFER)),
            ("TSC_AUX", if has_tsc_aux() { read_msr(TSC_AUX) } else { 0 }),
            ("GDTR base", gdt.base),
            ("GDTR limit", gdt.limit.into()),
            ("IDTR base", idt.base),
            ("IDTR limit", idt.limit.into()),
            ("LDTR", ldt.into()),
            ("TR", task.into()),
            ("RFLAGS", flags),
            ("CS", get!("cs")),
            ("SS", get!("ss")),
            ("DS", get!("ds")),
            ("ES", get!("es")),
            ("FS", get!("fs")),
            ("GS", get!("gs")),
            ("generation", 0),
        ];
        let msrs = MSRS.into_iter().map(|(name, msr, _)| (name, read_msr(msr)));
        for (slot, value) in all.iter_mut().zip(fixed.into_iter().chain(msrs)) {
            *slot = value;
        }
        Self {
            all,
            tsc: cpu::rdtsc(),
        }
    }

    /// Checks that `now` is the same.
    pub fn check(&self, checks: &mut Checks, now: &Self) {
        for ((name, before), (_, now)) in self.all.into_iter().zip(now.all) {
            checks.equal(format_args!("{name}"), now, before);
        }
    }
}

/// Changes all there is, the general registers last, and ends the guest.
pub fn change_everything(has_xsave: bool) -> u64 {
    for (_, msr, value) in MSRS {
        write_msr(msr, value);
    }
    if has_tsc_aux() {
        write_msr(TSC_AUX, 0xbeef_0123);
    }
    write_msr(EFER, read_msr(EFER) ^ 1);
    write_msr(TSC, 1 << 50);
    vectors(0x2222_2222_2222_2222);
    if has_xsave && xcr0() & 4 != 0 {
        wide_vectors([0x22; 32]);
        // With AVX switched off its registers are where they are.
        set_xcr0(3);
    }
    set!("dr0", 0xaaaa_0000);
    set!("dr1", 0xbbbb_0000);
    set!("dr2", 0xcccc_0000);
    set!("dr3", 0xdddd_0000);
    set!("dr6", 0xffff_0ff1);
    // Breakpoints on writes, which no address here matches.
    set!("dr7", 0x1111_0455);
    set!("cr2", 0x1234_5000);
    set!("cr3", get!("cr3") | CR3_PWT);
    set!("cr4", (get!("cr4") | CR4_TSD | CR4_DE) ^ CR4_OSXMMEXCPT);
    set!("cr8", 9);
    let nowhere = Pointer {
        limit: 7,
        base: 0x1000,
    };
    // SAFETY: nothing here is interrupted or loads a segment that is not null, and this is the end of the guest.
    unsafe {
        asm!(
            "lgdt [{nowhere}]",
            "lidt [{nowhere}]",
            "xor eax, eax",
            "mov ds, eax",
            "mov es, eax",
            "mov fs, eax",
            "mov gs, eax",
            "mov rax, cr0",
            "or rax, {cr0}",
            "mov cr0, rax",
            // ID, AC, NT, IOPL 3, DF and the arithmetic flags; IF last, so that its shadow is there at the exit.
            "push 0x2474d5",
            "popfq",
            "mov rax, {exit}",
            "mov rdi, 0",
            "mov rbx, -2",
            "mov rcx, -3",
            "mov rdx, -4",
            "mov rbp, -5",
            "mov rsi, -6",
            "mov r8, -7",
            "mov r9, -8",
            "mov r10, -9",
            "mov r11, -10",
            "mov r12, -11",
            "mov r13, -12",
            "mov r14, -13",
            "mov r15, -14",
            "mov rsp, -16",
            "sti",
            "vmcall",
            "ud2",
            nowhere = in(reg) &nowhere,
            cr0 = const CR0_TS | CR0_AM,
            exit = const Call::Exit as u64,
            options(noreturn),
        )
    }
}
