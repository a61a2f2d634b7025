// The guest of the self-test: it makes one exit of each kind and checks what comes back. It is copied to GUEST_CODE.

.section .rodata.svm_guest, "a"
.balign 16
.global svm_guest_start
svm_guest_start:
    lgdt [rip + svm_gdtr]
    lidt [rip + svm_idtr]

    // CPUID: the host answers for it.
    mov eax, 0x40000000
    cpuid
    cmp ebx, 0x6f66664f
    jne svm_failed

    // All registers go over the exit.
    mov rbx, 0x0303030303030303
    mov rbp, 0x0505050505050505
    mov rsi, 0x0606060606060606
    mov rdi, 0x0707070707070707
    mov r8, 0x0808080808080808
    mov r9, 0x0909090909090909
    mov r10, 0x0a0a0a0a0a0a0a0a
    mov r11, 0x0b0b0b0b0b0b0b0b
    mov r14, 0x0e0e0e0e0e0e0e0e
    mov r15, 0x0f0f0f0f0f0f0f0f
    movq xmm7, r15
    mov rcx, 0x0101010101010101
    mov rdx, 0x0202020202020202
    xor r12d, r12d
    xor r13d, r13d
    xor eax, eax
    vmmcall
    movq rcx, xmm7
    cmp rcx, r15
    jne svm_failed
    mov rcx, 0x0404040404040404
    cmp r9, rcx
    jne svm_failed

    // I/O, MSRs, control registers.
    mov dx, 0x3f8
    mov al, 0x78
    out dx, al
    in eax, 0x70
    cmp eax, 0x12345678
    jne svm_failed
    mov ecx, 0xc0000080
    rdmsr
    cmp eax, 0xd01
    jne svm_failed
    mov rdi, cr0
    mov cr0, rdi

    // Memory that the nested tables do not have yet.
    mov rax, [0x10000]
    cmp rax, r15
    jne svm_failed
    mov [0x11008], rax
    cmp [0x11008], r15
    jne svm_failed

    // An exception in the place of the instruction.
    mov eax, 1
    vmmcall
    cmp r12d, 1
    jne svm_failed

    // The window: interrupts are off, then there is the shadow of STI.
    mov eax, 2
    vmmcall
    nop
    sti
    nop
    nop
    cli
    cmp r13d, 1
    jne svm_failed

    // An event whose delivery needs memory that is not there yet.
    mov rbp, rsp
    mov rsp, 0x13000
    int 0x30
    mov rsp, rbp
    cmp r13d, 2
    jne svm_failed

    // The host changes what is behind a page.
    mov eax, 3
    vmmcall
    cmp [0x10000], r14
    jne svm_failed
    hlt
svm_failed:
    mov eax, 0xdead
    vmmcall
    jmp svm_failed

// #GP(0), in the place of an instruction of three bytes.
.global svm_on_gp
svm_on_gp:
    cmp qword ptr [rsp], 0
    jne svm_failed
    add rsp, 8
    inc r12d
    add qword ptr [rsp], 3
    iretq

.global svm_on_interrupt
svm_on_interrupt:
    inc r13d
    iretq

// Counts: the smallest difference of two time stamps around a CPUID, in R14. Four instructions are the guest's.
.global svm_guest_count
svm_guest_count:
    mov r15d, 100
    mov r14d, -1
2:
    rdtsc
    mov r8d, eax
    xor eax, eax
    cpuid
    rdtsc
    sub eax, r8d
    cmp eax, r14d
    cmovb r14d, eax
    dec r15d
    jnz 2b
    hlt

// Does nothing, for ever, and wants no interrupts.
.global svm_guest_spin
svm_guest_spin:
    cli
2:
    jmp 2b

.balign 16
svm_gdtr:
    .word 23
    .quad 0x4800
.balign 16
svm_idtr:
    .word 0x30f
    .quad 0x4000
.balign 8
.global svm_guest_end
svm_guest_end:
.text
