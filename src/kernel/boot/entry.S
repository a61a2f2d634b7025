# From the boot loader's 32-bit protected mode to 64-bit Rust at the kernel's own addresses.
#
# Both protocols enter with paging off, flat segments and interrupts off; EBX points to what they tell us. The tables
# made here map the first 4 GiB three times: at 0 for this code, at DIRECT_MAP and (its first GiB) at KERNEL_BASE.
# They live until the kernel has built its own.

    .set MULTIBOOT2_HEADER_MAGIC, 0xe85250d6
    .set PVH_MAGIC, 0x336ec578
    .set PTE_LARGE, 0x83                # present, writable, page size

    .section .boot.header, "a"
    .balign 8
multiboot2_header:
    .long MULTIBOOT2_HEADER_MAGIC
    .long 0                             # i386 protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(MULTIBOOT2_HEADER_MAGIC + (multiboot2_header_end - multiboot2_header))
    .short 6, 0                         # modules on page boundaries
    .long 8
    .balign 8
    .short 5, 1                         # a frame buffer, if there is to be one: UEFI has no text mode
    .long 20
    .long 0, 0, 0                       # of any size
    .balign 8
    .short 0, 0                         # end of tags
    .long 8
multiboot2_header_end:

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                             # length of the name
    .long 8                             # length of the value
    .long 18                            # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .boot.text, "ax"
    .code32
    .global multiboot2_start
multiboot2_start:
    mov edi, eax
    mov esi, ebx
    jmp 1f
    .global pvh_start
pvh_start:
    mov edi, PVH_MAGIC
    mov esi, ebx
1:
    cli
    cld
    mov esp, offset boot_stack_end
    rdtsc                               # every CPU with 64-bit mode has it, and the others get no further
    mov [boot_tsc], eax
    mov [boot_tsc + 4], edx

    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc no_long_mode
    bt edx, 20
    jnc no_long_mode

    # Four page directories of 2 MiB pages: the first 4 GiB.
    mov ecx, 2048
    mov edx, offset boot_pds
    mov eax, PTE_LARGE
2:  mov [edx], eax
    add edx, 8
    add eax, 0x200000
    dec ecx
    jnz 2b
    mov eax, offset boot_pds + 3        # present, writable
    mov edx, offset boot_pdpt_low
    mov ecx, 4
3:  mov [edx], eax
    add edx, 8
    add eax, 4096
    dec ecx
    jnz 3b
    mov dword ptr [boot_pdpt_high + 510 * 8], offset boot_pds + 3
    mov dword ptr [boot_pml4], offset boot_pdpt_low + 3
    mov dword ptr [boot_pml4 + 256 * 8], offset boot_pdpt_low + 3
    mov dword ptr [boot_pml4 + 511 * 8], offset boot_pdpt_high + 3

    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080                 # EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 0x08
    mov eax, offset long_mode
    push eax
    retf

no_long_mode:
    mov esi, offset no_long_mode_text
    mov ecx, [no_long_mode_length]
4:  mov dx, 0x3fd
5:  in al, dx
    test al, 0x20
    jz 5b
    mov dx, 0x3f8
    mov al, [esi]
    out dx, al
    inc esi
    dec ecx
    jnz 4b
    mov eax, 0x11
    mov dx, 0xf4
    out dx, eax
6:  hlt
    jmp 6b

    .code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov edi, edi
    mov esi, esi
    mov rdx, [boot_tsc]
    mov rsp, offset {stack} + {stack_size}
    xor ebp, ebp
    mov rax, offset {start}
    call rax
    ud2

    .section .boot.data, "a"
no_long_mode_text:
    .ascii "offshoot: this CPU has no 64-bit mode with no-execute pages; Offshoot needs both\r\n"
    .ascii "OFFSHOOT-END failed: the CPU has no 64-bit mode\r\n"
no_long_mode_text_end:
no_long_mode_length:
    .long no_long_mode_text_end - no_long_mode_text
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 64-bit code
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

    .section .boot.bss, "aw", @nobits
    .balign 4096
boot_pml4:      .skip 4096
boot_pdpt_low:  .skip 4096
boot_pdpt_high: .skip 4096
boot_pds:       .skip 4 * 4096
boot_stack:     .skip 512
boot_stack_end:
boot_tsc:       .skip 8

    .text
