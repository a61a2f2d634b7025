//! The registers of x87, SSE, AVX and AVX-512 over a storm of exits.

use crate::storm::{self, Heap, Storm};
use core::arch::{asm, naked_asm};
use core::ops::Range;
use offshoot_guest::{StartInfo, println};
use offshoot_guests::check::Checks;
use offshoot_guests::cpu;

const ROUNDS: u64 = 60;
const OSXSAVE: u64 = 1 << 18;
/// FCW, FSW and FTW; MXCSR; ST0 to ST7; XMM0 to XMM15. Between them are the last instruction's addresses, which
/// CPUs save differently.
const FCW: Range<usize> = 0..5;
const MXCSR: Range<usize> = 24..28;
const STACK: usize = 32;
const XMM: Range<usize> = 160..416;
const XSTATE_BV: usize = 512;

/// An area of XSAVE, the first 512 bytes of which are one of FXSAVE.
#[repr(C, align(64))]
struct Area([u8; 4096]);

impl Area {
    const ZERO: Self = Self([0; 4096]);
}

/// What belongs in byte `at` of an area.
fn pattern(at: usize, seed: u64) -> u8 {
    ((at as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(seed)
        >> 29) as u8
}

/// Fills `area` with a state that every component of `components` is part of.
fn fill(area: &mut Area, components: &[(u32, Range<usize>)], seed: u64) {
    for (at, byte) in area.0.iter_mut().enumerate().take(XMM.end) {
        *byte = pattern(at, seed);
    }
    area.0[XMM.end..XSTATE_BV + 64].fill(0);
    // All exceptions masked, rounding towards zero, 64-bit mantissa; TOP at 5; no register empty.
    area.0[FCW].copy_from_slice(&[0x7f, 0x0f, 0x00, 0x28, 0xff]);
    area.0[5..24].fill(0);
    area.0[MXCSR].copy_from_slice(&0x0000_7fbf_u32.to_le_bytes());
    area.0[28..32].fill(0xff);
    for register in 0..8 {
        // Ten bytes each, with the integer bit set so that they are numbers.
        let at = STACK + register * 16;
        area.0[at + 7] |= 0x80;
        area.0[at + 8..at + 10].copy_from_slice(&[register as u8, 0x40]);
        area.0[at + 10..at + 16].fill(0);
    }
    let mut present = 3;
    for (component, bytes) in components {
        present |= 1_u64 << component;
        for at in bytes.clone() {
            area.0[at] = pattern(at, seed);
        }
    }
    area.0[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
}

fn same(checks: &mut Checks, what: &str, bytes: Range<usize>, found: &Area, expected: &Area) {
    for at in bytes {
        checks.equal(
            format_args!("{what}: byte {at}"),
            found.0[at].into(),
            expected.0[at].into(),
        );
    }
}

fn compare(
    checks: &mut Checks,
    what: &str,
    components: &[(u32, Range<usize>)],
    found: &Area,
    expected: &Area,
) {
    same(checks, what, FCW, found, expected);
    same(checks, what, MXCSR, found, expected);
    for register in 0..8 {
        let at = STACK + register * 16;
        same(checks, what, at..at + 10, found, expected);
    }
    same(checks, what, XMM, found, expected);
    for (_, bytes) in components {
        same(checks, what, bytes.clone(), found, expected);
    }
}

/// Loads `load` with FXRSTOR, runs the storm, saves to `save` with FXSAVE, and leaves the state of the start.
#[unsafe(naked)]
unsafe extern "C" fn with_fxsave(storm: *mut Storm, load: *const Area, save: *mut Area) {
    naked_asm!(
        "push rbx",
        "mov rbx, rdx",
        "fxrstor64 [rsi]",
        "call {storm}",
        "fxsave64 [rbx]",
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "pop rax",
        "pop rbx",
        "ret",
        storm = sym storm::run,
    )
}

/// The same with XRSTOR and XSAVE of all that XCR0 `all` has, and XCR0 `during` for the storm.
#[unsafe(naked)]
unsafe extern "C" fn with_xsave(
    storm: *mut Storm,
    load: *const Area,
    save: *mut Area,
    all: u64,
    during: u64,
) {
    naked_asm!(
        "push rbx",
        "push r12",
        "push r13",
        "mov rbx, rdx",
        "mov r12, rcx",
        "mov r13, r8",
        "mov eax, r12d",
        "xor edx, edx",
        "xrstor64 [rsi]",
        "mov eax, r13d",
        "xor ecx, ecx",
        "xsetbv",
        "call {storm}",
        "mov eax, r12d",
        "xor edx, edx",
        "xor ecx, ecx",
        "xsetbv",
        "xsave64 [rbx]",
        "fninit",
        "push 0x1f80",
        "ldmxcsr [rsp]",
        "pop rax",
        "pop r13",
        "pop r12",
        "pop rbx",
        "ret",
        storm = sym storm::run,
    )
}

pub fn check(checks: &mut Checks, _: &StartInfo, heap: &mut Heap) {
    let (mut load, mut save) = (Area::ZERO, Area::ZERO);
    let mut exits = 0;
    fill(&mut load, &[], 1);
    let mut storm = Storm::new(ROUNDS, heap);
    // SAFETY: both areas are whole and aligned; the storm may run here.
    unsafe { with_fxsave(&mut storm, &load, &mut save) };
    compare(checks, "FXSAVE", &[], &save, &load);
    exits += storm.exits();
    checks.that(
        storm.found_zeros(),
        format_args!("fresh pages were not zero"),
    );

    if cpu::has_ecx1(26) {
        exits += extended(checks, heap, &mut load, &mut save);
    } else {
        println!("no XSAVE: SSE only");
    }
    println!("FPU and vector registers over {exits} exits");
}

/// Components of XCR0 above SSE that we know: AVX, opmask, upper halves of ZMM, upper ZMM.
const COMPONENTS: [u32; 4] = [2, 5, 6, 7];

fn extended(checks: &mut Checks, heap: &mut Heap, load: &mut Area, save: &mut Area) -> u64 {
    // SAFETY: permits XSETBV and its kin, no more.
    unsafe {
        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, const OSXSAVE);
    }
    checks.that(
        cpu::has_ecx1(27),
        format_args!("CPUID does not show OSXSAVE"),
    );
    let offered = cpu::cpuid(0xd, 0).eax;
    let place = |component: u32| {
        let leaf = cpu::cpuid(0xd, component);
        let start = leaf.ebx as usize;
        (component, start..start + leaf.eax as usize)
    };
    let mut places: [(u32, Range<usize>); 4] = [const { (0, 0..0) }; 4];
    let mut count = 0;
    for component in COMPONENTS
        .into_iter()
        .filter(|&bit| offered & 1 << bit != 0)
    {
        let (component, bytes) = place(component);
        if bytes.start < 576 || bytes.end > load.0.len() {
            checks.that(
                false,
                format_args!("component {component} of XSAVE at {bytes:?}"),
            );
            continue;
        }
        places[count] = (component, bytes);
        count += 1;
    }

    let mut exits = 0;
    // All that this program knows, then AVX and SSE alone, as far as they are offered.
    let known = offered & 0xe7;
    for (all, seed) in [(known, 2), (known & 7, 3), (known & 3, 4)] {
        let places = &places[..count];
        let enabled = places
            .iter()
            .take_while(|(component, _)| all & 1 << component != 0)
            .count();
        let places = &places[..enabled];
        // With the same components on during the storm, and with all but SSE off: they keep their contents.
        for during in [all, 3, 1] {
            fill(load, places, seed + u64::from(during) * 16);
            save.0.fill(0);
            let mut storm = Storm::new(ROUNDS, heap);
            // SAFETY: the components are offered and legal together; the areas are whole and aligned.
            unsafe {
                asm!("xsetbv", in("ecx") 0, in("eax") all, in("edx") 0);
                with_xsave(&mut storm, load, save, all.into(), during.into());
            }
            compare(checks, "XSAVE", places, save, load);
            checks.that(
                storm.found_zeros(),
                format_args!("fresh pages were not zero"),
            );
            exits += storm.exits();
        }
    }
    println!("state components {known:#x}");
    // SAFETY: all on again, of which this program itself only uses SSE.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") known, in("edx") 0);
    }
    exits
}
