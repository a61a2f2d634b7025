//! Instructions with one operand in memory.

use crate::device::{Device, read, write};
use core::arch::asm;
use offshoot_guest::StartInfo;
use offshoot_guests::check::Checks;

/// What an instruction finds and leaves. RDI is the address.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Regs {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    r8: u64,
    flags: u64,
}

/// CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

struct Form {
    text: &'static str,
    run: fn(u64, &mut Regs),
    /// Flags that are defined, or that processors agree on.
    flags: u64,
}

macro_rules! forms {
    ($($flags:ident: $($text:literal)+;)*) => {
        &[$($(Form {
            text: $text,
            run: |address, regs| {
                // SAFETY: the instruction accesses 16 bytes at RDI, which are the caller's, and is no jump.
                unsafe {
                    asm!(
                        "push r9",
                        "popfq",
                        $text,
                        "pushfq",
                        "pop r9",
                        "cld",
                        inout("rax") regs.rax,
                        inout("rcx") regs.rcx,
                        inout("rdx") regs.rdx,
                        inout("rsi") regs.rsi,
                        inout("r8") regs.r8,
                        inout("r9") regs.flags,
                        inout("rdi") address => _,
                    );
                }
            },
            flags: $flags,
        },)+)*]
    };
}

const BIT: u64 = 1;
const LOGIC: u64 = STATUS & !0x10;

static FORMS: &[Form] = forms! {
    STATUS:
        "mov [rdi], al" "mov [rdi], ah" "mov [rdi], ch" "mov [rdi], dh" "mov [rdi], sil" "mov [rdi], r8b"
        "mov [rdi], ax" "mov [rdi], eax" "mov [rdi], rax" "mov [rdi], r8w" "mov [rdi], r8d" "mov [rdi], r8"
        "mov byte ptr [rdi], 0x85" "mov word ptr [rdi], 0x8567" "mov dword ptr [rdi], 0x85674523"
        "mov qword ptr [rdi], -0x7a98bade"
        "mov al, [rdi]" "mov ah, [rdi]" "mov ch, [rdi]" "mov dh, [rdi]" "mov sil, [rdi]" "mov r8b, [rdi]"
        "mov ax, [rdi]" "mov eax, [rdi]" "mov rax, [rdi]" "mov r8w, [rdi]" "mov r8d, [rdi]" "mov r8, [rdi]"
        "mov rdi, [rdi]; mov rdx, rdi" "mov edi, [rdi]; mov rdx, rdi"
        "movzx ax, byte ptr [rdi]" "movzx eax, byte ptr [rdi]" "movzx rax, byte ptr [rdi]"
        "movzx edx, word ptr [rdi]" "movzx rdx, word ptr [rdi]"
        "movsx ax, byte ptr [rdi]" "movsx eax, byte ptr [rdi]" "movsx rax, byte ptr [rdi]"
        "movsx edx, word ptr [rdi]" "movsx rdx, word ptr [rdi]" "movsxd r8, dword ptr [rdi]"
        "movnti [rdi], ecx" "movnti [rdi], rcx"
        "xchg [rdi], al" "xchg [rdi], ah" "xchg [rdi], ax" "xchg [rdi], eax" "xchg rax, [rdi]" "xchg [rdi], r8d"
        "not byte ptr [rdi]" "not word ptr [rdi]" "not dword ptr [rdi]" "not qword ptr [rdi]"
        "lock not dword ptr [rdi]"
        "cmovz rax, [rdi]" "cmovnz eax, [rdi]" "cmovl ax, [rdi]" "cmovg r8, [rdi]" "cmovb r8d, [rdi]"
        "cmovbe edx, [rdi]" "cmovs rdx, [rdi]" "cmovp rdx, [rdi]" "cmovo edx, [rdi]" "cmovge ecx, [rdi]"
        "setz byte ptr [rdi]" "setnz byte ptr [rdi]" "setb byte ptr [rdi]" "seta byte ptr [rdi]"
        "setl byte ptr [rdi]" "setle byte ptr [rdi]" "setg byte ptr [rdi]" "seto byte ptr [rdi]"
        "setns byte ptr [rdi]" "setnp byte ptr [rdi]"
        "clflush [rdi]";
    STATUS:
        "add [rdi], al" "add [rdi], dh" "add [rdi], ax" "add [rdi], eax" "add [rdi], rax"
        "add byte ptr [rdi], 0x7f" "add word ptr [rdi], 0x7fff" "add dword ptr [rdi], -3" "add qword ptr [rdi], -1"
        "add al, [rdi]" "add ax, [rdi]" "add eax, [rdi]" "add r8, [rdi]" "lock add [rdi], rcx"
        "adc [rdi], al" "adc [rdi], ax" "adc [rdi], edx" "adc [rdi], rdx" "adc r8d, [rdi]" "adc qword ptr [rdi], -1"
        "sbb [rdi], al" "sbb [rdi], ax" "sbb [rdi], edx" "sbb [rdi], rdx" "sbb r8, [rdi]" "sbb qword ptr [rdi], -1"
        "sub [rdi], ah" "sub [rdi], ax" "sub [rdi], eax" "sub [rdi], rax" "sub al, [rdi]" "sub rcx, [rdi]"
        "sub dword ptr [rdi], 0x12345" "lock sub word ptr [rdi], 2"
        "cmp [rdi], al" "cmp [rdi], ch" "cmp [rdi], ax" "cmp [rdi], eax" "cmp [rdi], rax" "cmp dh, [rdi]" "cmp r8, [rdi]"
        "cmp byte ptr [rdi], -1" "cmp dword ptr [rdi], 7" "cmp qword ptr [rdi], 0x7fffffff"
        "inc byte ptr [rdi]" "inc word ptr [rdi]" "inc dword ptr [rdi]" "inc qword ptr [rdi]" "lock inc dword ptr [rdi]"
        "dec byte ptr [rdi]" "dec word ptr [rdi]" "dec dword ptr [rdi]" "dec qword ptr [rdi]" "lock dec qword ptr [rdi]"
        "neg byte ptr [rdi]" "neg word ptr [rdi]" "neg dword ptr [rdi]" "neg qword ptr [rdi]"
        "xadd [rdi], al" "xadd [rdi], ch" "xadd [rdi], ax" "lock xadd [rdi], ecx" "lock xadd [rdi], r8"
        "cmpxchg [rdi], cl" "cmpxchg [rdi], dx" "lock cmpxchg [rdi], ecx" "lock cmpxchg [rdi], r8";
    LOGIC:
        "and [rdi], al" "and [rdi], ax" "and [rdi], eax" "and [rdi], rax" "and dl, [rdi]" "and r8, [rdi]"
        "and byte ptr [rdi], 0xf0" "lock and dword ptr [rdi], -16" "and qword ptr [rdi], -16"
        "or [rdi], ah" "or [rdi], ax" "or [rdi], eax" "or [rdi], rax" "or dl, [rdi]" "or r8d, [rdi]"
        "or byte ptr [rdi], 0x80" "lock or dword ptr [rdi], 0x80" "or qword ptr [rdi], -128"
        "xor [rdi], al" "xor [rdi], ax" "xor [rdi], eax" "xor [rdi], rax" "xor dh, [rdi]" "xor rsi, [rdi]"
        "xor word ptr [rdi], 0x1234" "lock xor qword ptr [rdi], -1"
        "test [rdi], al" "test [rdi], ch" "test [rdi], ax" "test [rdi], eax" "test [rdi], r8"
        "test byte ptr [rdi], 0x81" "test dword ptr [rdi], 0x80000001" "test qword ptr [rdi], -2";
    BIT:
        "bt word ptr [rdi], 3" "bt dword ptr [rdi], 31" "bt qword ptr [rdi], 63" "bts dword ptr [rdi], 5"
        "btr qword ptr [rdi], 40" "btc word ptr [rdi], 14" "lock bts qword ptr [rdi], 33"
        "and rcx, 15; bt [rdi], cx" "and rcx, 63; bts [rdi], ecx" "and rcx, 63; btr [rdi], rcx"
        "and rcx, 31; btc [rdi], rcx" "or rcx, -16; add rdi, 2; bts word ptr [rdi], cx"
        "or rcx, -32; add rdi, 4; btc dword ptr [rdi], ecx" "or rcx, -64; add rdi, 8; lock btr qword ptr [rdi], rcx";
    // Ways to address it.
    STATUS:
        "mov rsi, 4; mov [rdi + rsi], eax" "mov rsi, 1; mov eax, [rdi + rsi * 8 - 5]"
        "mov rsi, rdi; shr rsi; mov rdx, [rsi * 2]; xor rsi, rsi" "mov eax, [edi]" "mov [edi + 2], cx"
        "mov rsi, 0xffffffff00000002; mov [edi + esi], eax"
        "push rbp; mov rbp, rdi; mov [rbp + 1], eax; pop rbp" "push rbp; mov rbp, rdi; mov rax, [rbp]; pop rbp"
        "push r13; mov r13, rdi; add [r13 + 3], al; pop r13" "push r12; mov r12, rdi; mov [r12], rax; pop r12"
        "push rsp; mov rsi, rsp; mov rsp, rdi; mov [rsp + 4], rcx; mov rsp, rsi; pop rsi; xor esi, esi"
        "mov fs:[rdi + 1], ax" "mov gs:[rdi], rcx" "mov ds:[rdi], ecx" "mov cs:[rdi], cl";
};

/// Operands that reach every flag.
const VALUES: [(u64, u64); 6] = [
    (0, 0),
    (u64::MAX, 1),
    (0x8000_0000_8000_8080, 0x8000_0000_8000_8080),
    (0x7fff_ffff_7fff_7f7f, 0x0000_0001_0001_0101),
    (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210),
    (0x0f0f_1e2d_3c4b_5a69, 0x9696_a5b4_c3d2_e1f0),
];

/// Within a page, unaligned, across the two pages of the device.
const OFFSETS: [u64; 3] = [0x10, 0x35, 0xffd];

/// Bytes around the operand that are looked at, in words.
const WORDS: u64 = 4;

pub fn check(checks: &mut Checks, info: &StartInfo, device: &Device) {
    let memory = info.heap.next_multiple_of(4096);
    for (number, form) in (0_u64..).zip(FORMS) {
        for (case, &(a, b)) in (0_u64..).zip(&VALUES) {
            let offset = OFFSETS[((number + case) % 3) as usize];
            // Every other case with all flags set.
            let flags = 2 | if (number + case / 3) % 2 == 0 {
                0
            } else {
                STATUS
            };
            let before = Regs {
                rax: b,
                rcx: b.rotate_left(8) ^ case,
                rdx: a,
                rsi: 0,
                r8: !b,
                flags,
            };
            let [expected, found] = [memory + offset, device.at(offset)].map(|at| {
                for word in 0..WORDS {
                    write(at - 8 + word * 8, a.rotate_left(word as u32));
                }
                let mut regs = before;
                (form.run)(at, &mut regs);
                regs.flags &= form.flags;
                let bytes: [u64; WORDS as usize] =
                    core::array::from_fn(|word| read(at - 8 + word as u64 * 8));
                (regs, bytes)
            });
            compare(checks, form.text, offset, case, &expected, &found);
        }
    }
}

type Left = (Regs, [u64; WORDS as usize]);

fn compare(checks: &mut Checks, text: &str, offset: u64, case: u64, expected: &Left, found: &Left) {
    let ((regs, bytes), (regs_found, bytes_found)) = (expected, found);
    checks.that(
        regs == regs_found && bytes == bytes_found,
        format_args!(
            "{text}, offset {offset:#x}, case {case}: {:x?} {bytes_found:x?} instead of {:x?} {bytes:x?}",
            words(regs_found),
            words(regs),
        ),
    );
}

fn words(regs: &Regs) -> [u64; 6] {
    [regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.r8, regs.flags]
}
