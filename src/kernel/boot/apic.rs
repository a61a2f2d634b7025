//! The local APIC: what the firmware left on in it is masked, and interrupts that came through it are acknowledged there.
//!
//! An interrupt that is not acknowledged stays in service, and none of the same or a lower priority comes any more. Those of
//! the 8259 pair come through it, too, but are not in service in it (SDM "Local Vector Table", 11.5.1).

use super::layout;
use core::sync::atomic::{AtomicU64, Ordering};
use offshoot::addr::{Hpa, PAGE_SIZE};
use x86::apic::xapic::{
    XAPIC_EOI, XAPIC_ISR0, XAPIC_LVT_CMCI, XAPIC_LVT_ERROR, XAPIC_LVT_LINT0, XAPIC_LVT_LINT1,
    XAPIC_LVT_PMI, XAPIC_LVT_THERMAL, XAPIC_LVT_TIMER, XAPIC_SVR, XAPIC_TIMER_CURRENT_COUNT,
    XAPIC_TIMER_DIV_CONF, XAPIC_TIMER_INIT_COUNT, XAPIC_VERSION,
};
use x86::msr::{IA32_APIC_BASE, rdmsr, wrmsr};

/// In IA32_APIC_BASE: enabled, and by MSRs rather than in memory.
const ENABLED: u64 = 1 << 11;
const BY_MSRS: u64 = 1 << 10;
/// The first MSR of those that stand for registers, of which each has 16 bytes in memory.
const FIRST_MSR: u32 = 0x800;
/// In an entry of the local vector table: masked; how it is delivered.
const MASKED: u32 = 1 << 16;
const DELIVERY: u32 = 0b111 << 8;
const VECTORS: u32 = 256;
/// In the spurious-interrupt vector register: the APIC does something.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// The timer counts at the full rate.
const BY_ONE: u32 = 0b1011;

/// The local vector table, in the order in which CPUs came to have its entries.
const ENTRIES: [u32; 7] = [
    XAPIC_LVT_TIMER,
    XAPIC_LVT_LINT0,
    XAPIC_LVT_LINT1,
    XAPIC_LVT_ERROR,
    XAPIC_LVT_PMI,
    XAPIC_LVT_THERMAL,
    XAPIC_LVT_CMCI,
];

/// Where the registers are mapped that lie in memory; 0 before they are.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// How the registers are reached.
#[derive(Clone, Copy)]
enum Apic {
    Memory(u64),
    Msrs,
}

/// The page with the registers, where they lie in memory.
pub fn page() -> Option<Hpa> {
    let base = base()?;
    (base & BY_MSRS == 0).then(|| Hpa::new(base & ((1 << 52) - PAGE_SIZE)))
}

/// Says that the [`page`] is mapped, uncached, where [`layout::APIC`] says.
pub fn set_mapped() {
    MAPPED.store(layout::APIC, Ordering::Relaxed);
}

/// IA32_APIC_BASE, where there is a local APIC that is enabled.
fn base() -> Option<u64> {
    const HAS_APIC: u32 = 1 << 9;
    if core::arch::x86_64::__cpuid(1).edx & HAS_APIC == 0 {
        return None;
    }
    // SAFETY: a CPU with a local APIC has the MSR.
    let base = unsafe { rdmsr(IA32_APIC_BASE) };
    (base & ENABLED != 0).then_some(base)
}

impl Apic {
    fn find() -> Option<Self> {
        match (base()? & BY_MSRS, MAPPED.load(Ordering::Relaxed)) {
            (0, 0) => None,
            (0, mapped) => Some(Self::Memory(mapped)),
            _ => Some(Self::Msrs),
        }
    }

    fn read(self, register: u32) -> u32 {
        match self {
            // SAFETY: the page is mapped for good, and the register is in it.
            Self::Memory(start) => unsafe {
                ((start + u64::from(register)) as *const u32).read_volatile()
            },
            // SAFETY: only registers that every such APIC has are asked for, or those that its version says it has.
            Self::Msrs => unsafe { rdmsr(FIRST_MSR + register / 16) as u32 },
        }
    }

    fn write(self, register: u32, value: u32) {
        match self {
            // SAFETY: as above; the APIC is the kernel's alone, which takes no interrupts itself.
            Self::Memory(start) => unsafe {
                ((start + u64::from(register)) as *mut u32).write_volatile(value)
            },
            // SAFETY: as above.
            Self::Msrs => unsafe { wrmsr(FIRST_MSR + register / 16, value.into()) },
        }
    }

    fn in_service(self, vector: u32) -> bool {
        self.read(XAPIC_ISR0 + vector / 32 * 16) >> (vector % 32) & 1 != 0
    }
}

/// Masks whatever would interrupt by a vector of its own: the timer above all. What brings NMIs, or the interrupts of the
/// 8259 pair, stays as it is. What is in service is acknowledged.
fn silence() {
    let Some(apic) = Apic::find() else {
        return;
    };
    let last_entry = apic.read(XAPIC_VERSION) >> 16 & 0xff;
    for register in ENTRIES.into_iter().take(last_entry as usize + 1) {
        let entry = apic.read(register);
        if entry & DELIVERY == 0 {
            apic.write(register, entry | MASKED);
        }
    }
    // Each time the one of the highest priority.
    for _ in 0..VECTORS {
        if !(0..VECTORS).any(|vector| apic.in_service(vector)) {
            break;
        }
        apic.write(XAPIC_EOI, 0);
    }
}

/// The timer, for interrupts of the kernel's own.
#[derive(Clone, Copy)]
pub struct Timer(Apic);

impl Timer {
    /// That of this CPU, if it has one that can be reached.
    pub fn find() -> Option<Self> {
        let apic = Apic::find()?;
        apic.write(XAPIC_SVR, apic.read(XAPIC_SVR) | SOFTWARE_ENABLED);
        apic.write(XAPIC_TIMER_DIV_CONF, BY_ONE);
        Some(Self(apic))
    }

    /// Interrupts by `vector` once it has counted so far; 0 stops it.
    pub fn start(self, vector: u8, count: u32) {
        // Neither masked nor periodic.
        self.0.write(XAPIC_LVT_TIMER, vector.into());
        self.0.write(XAPIC_TIMER_INIT_COUNT, count);
    }

    /// How far it has to count still.
    pub fn left(self) -> u32 {
        self.0.read(XAPIC_TIMER_CURRENT_COUNT)
    }

    /// Acknowledges its interrupt.
    pub fn end_of_interrupt(self) {
        self.0.write(XAPIC_EOI, 0);
    }
}

/// Acknowledges the interrupt of `vector` if it came through the local APIC; returns whether it did.
pub fn end_of_interrupt(vector: u8) -> bool {
    let came = Apic::find().filter(|apic| apic.in_service(vector.into()));
    if let Some(apic) = came {
        apic.write(XAPIC_EOI, 0);
    }
    came.is_some()
}

/// What `selftest=` can ask for here: the timer runs, `left-on` from before everything is masked, `timer` from behind that;
/// with `-x2apic` the registers are MSRs.
#[derive(Clone, Copy)]
pub struct SelfTest {
    left_on: bool,
    by_msrs: bool,
}

impl SelfTest {
    pub const NAMES: &str = "timer, timer-x2apic, left-on, left-on-x2apic";

    pub fn of(which: &str) -> Option<Self> {
        let name = which.strip_suffix("-x2apic");
        let left_on = match name.unwrap_or(which) {
            "left-on" => true,
            "timer" => false,
            _ => return None,
        };
        let by_msrs = name.is_some();
        Some(Self { left_on, by_msrs })
    }
}

/// Silences the local APIC, once its registers can be reached.
pub fn init(test: Option<SelfTest>) {
    if test.is_some_and(|test| test.by_msrs) {
        use_msrs();
    }
    if test.is_some_and(|test| test.left_on) {
        start_timer();
    }
    silence();
    if test.is_some_and(|test| !test.left_on) {
        start_timer();
    }
}

/// Goes over to registers by MSRs, where the CPU has them so.
fn use_msrs() {
    const HAS_X2APIC: u32 = 1 << 21;
    let has = core::arch::x86_64::__cpuid(1).ecx & HAS_X2APIC != 0;
    match base().filter(|_| has) {
        // SAFETY: the CPU has the mode, and the APIC is enabled, from where it may be entered.
        Some(base) => unsafe { wrmsr(IA32_APIC_BASE, base | BY_MSRS) },
        None => log::error!("this CPU has no x2APIC"),
    }
}

/// Has the timer interrupt by vector 64 for ever, as firmware may have left it.
fn start_timer() {
    const PERIODIC: u32 = 1 << 17;
    match Apic::find() {
        Some(apic) => {
            apic.write(XAPIC_SVR, apic.read(XAPIC_SVR) | SOFTWARE_ENABLED);
            apic.write(XAPIC_TIMER_DIV_CONF, BY_ONE);
            apic.write(XAPIC_LVT_TIMER, PERIODIC | 64);
            apic.write(XAPIC_TIMER_INIT_COUNT, 20_000);
        }
        None => log::error!("this CPU has no local APIC that is enabled"),
    }
}
