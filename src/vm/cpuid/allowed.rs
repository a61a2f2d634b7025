//! What a guest may be told that its CPU can do: bits of CPUID leaves 1, 7 and 80000001H.
//!
//! The lists name what we handle. Everything else reads 0, so a feature of a future CPU stays off until someone has
//! looked at its registers, MSRs and exits. Left out on purpose:
//! - VMX, SMX, SGX, PT, TME, AMX, MPX, CET, PKU, PKS, UINTR, key locker, 5-level paging: state or modes that we do
//!   not switch.
//! - XSAVEC, XSAVES, XGETBV with ECX = 1: would need IA32_XSS; also inconsistent on some CPUs.
//! - APIC, x2APIC, TSC deadline, MTRR, MCE, MCA, thermal and performance monitoring, TSC_ADJUST, the speculation
//!   control MSRs: a guest has none of those MSRs, so it must not be told of them.
//! - MONITOR, WAITPKG: waiting would hold the CPU. TSX (HLE, RTM): aborts at exits make it useless.
//! - HTT and the topology leaves: one logical processor.

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// Leaf 1 ECX. OSXSAVE (27) mirrors the guest's CR4 and is not from here.
pub(super) const LEAF_1_ECX: u32 = bits(&[
    0,  // SSE3
    1,  // PCLMULQDQ
    9,  // SSSE3
    12, // FMA
    13, // CMPXCHG16B
    17, // PCID
    19, // SSE4.1
    20, // SSE4.2
    22, // MOVBE
    23, // POPCNT
    25, // AES
    26, // XSAVE
    28, // AVX
    29, // F16C
    30, // RDRAND
]);
/// Leaf 1 EDX.
pub(super) const LEAF_1_EDX: u32 = bits(&[
    0,  // FPU
    1,  // VME
    2,  // DE
    3,  // PSE
    4,  // TSC
    5,  // MSR
    6,  // PAE
    8,  // CMPXCHG8B
    11, // SYSENTER
    13, // PGE
    15, // CMOV
    16, // PAT
    17, // PSE-36
    19, // CLFLUSH
    23, // MMX
    24, // FXSR
    25, // SSE
    26, // SSE2
    27, // self-snoop
]);
/// Leaf 7 subleaf 0 EBX.
pub(super) const LEAF_7_EBX: u32 = bits(&[
    0,  // FSGSBASE
    3,  // BMI1
    5,  // AVX2
    6,  // x87 data pointer updated on exceptions only: how the CPU is, not what it can
    7,  // SMEP
    8,  // BMI2
    9,  // ERMS
    10, // INVPCID
    13, // x87 CS and DS deprecated: likewise
    16, // AVX512F
    17, // AVX512DQ
    18, // RDSEED
    19, // ADX
    20, // SMAP
    21, // AVX512_IFMA
    23, // CLFLUSHOPT
    24, // CLWB
    28, // AVX512CD
    29, // SHA
    30, // AVX512BW
    31, // AVX512VL
]);
/// Leaf 7 subleaf 0 ECX.
pub(super) const LEAF_7_ECX: u32 = bits(&[
    1,  // AVX512_VBMI
    2,  // UMIP
    6,  // AVX512_VBMI2
    8,  // GFNI
    9,  // VAES
    10, // VPCLMULQDQ
    11, // AVX512_VNNI
    12, // AVX512_BITALG
    14, // AVX512_VPOPCNTDQ
    22, // RDPID
    25, // CLDEMOTE
    27, // MOVDIRI
    28, // MOVDIR64B
]);
/// Leaf 7 subleaf 0 EDX.
pub(super) const LEAF_7_EDX: u32 = bits(&[
    4,  // fast short REP MOVSB
    8,  // AVX512_VP2INTERSECT
    10, // MD_CLEAR
    14, // SERIALIZE
    23, // AVX512_FP16
]);
/// Leaf 80000001H ECX.
pub(super) const LEAF_EXT_1_ECX: u32 = bits(&[
    0, // LAHF in 64-bit mode
    5, // LZCNT
    8, // PREFETCHW
]);
/// Leaf 80000001H EDX.
pub(super) const LEAF_EXT_1_EDX: u32 = bits(&[
    11, // SYSCALL
    20, // no-execute
    26, // 1 GiB pages
    27, // RDTSCP
    29, // 64-bit mode
]);

/// What goes without AVX: leaf 1 ECX (FMA, AVX, F16C), leaf 7 EBX (AVX2), ECX (VAES, VPCLMULQDQ).
pub(super) const NEEDS_AVX: [u32; 3] = [bits(&[12, 28, 29]), bits(&[5]), bits(&[9, 10])];
/// What goes without AVX-512: of leaf 7 EBX, ECX and EDX.
pub(super) const NEEDS_AVX512: [u32; 3] = [
    bits(&[16, 17, 21, 28, 30, 31]),
    bits(&[1, 6, 11, 12, 14]),
    bits(&[8, 23]),
];
