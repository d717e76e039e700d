# From the reset vector to Rust, in 16- and 32-bit code. AT&T syntax.
#
# Plain and SEV-SNP vCPUs start in real mode at 4 GiB - 16, those of a trust domain there in 32-bit
# protected mode. Nothing here believes anything but the config page, which is measured, and the
# processor.

.set CODE32, 0x08
.set CODE64, 0x10                # What Linux expects in CS (__BOOT_CS)
.set DATA,   0x18                # and in the data segments (__BOOT_DS)

.set PLAIN, 1
.set SNP,   2
.set TDX,   3

.set MSR_GHCB,   0xc0010130
.set MSR_STATUS, 0xc0010131
.set MSR_EFER,   0xc0000080

# In the mailbox page: what the kernel writes (ACPI 6.5, table 5.45), and in the half that is the
# firmware's own, whether page tables are ready.
.set COMMAND, MAILBOX
.set APIC_ID, MAILBOX + 4
.set VECTOR,  MAILBOX + 8
.set READY,   MAILBOX + 0x800
.set WAKEUP,  1
.set TEST,    2
.set LOOKS,   256                # at the mailbox, before the host is asked to take its time

# ---- 4 GiB - 16. The first three instructions are the same in both modes; the jump behind them is
# reached in protected mode, the last one in real mode.
.section .reset, "ax"
.code32
.global reset_vector
reset_vector:
    movl %cr0, %eax
    testb $1, %al                   # PE
    jz   1f
    jmp  entry_td
.code16
1:  jmp  entry16

.section .boot16, "ax"
.code16
boot16_start:
entry16:
    cli
    cld
    movw $(0xf000 + gdtr - boot16_start), %bx
    lgdtl %cs:(%bx)
    movw $(0xf000 + idtr - boot16_start), %bx
    lidtl %cs:(%bx)
    movl %cr0, %eax
    andl $0x9fffffff, %eax          # caches on: CD = NW = 0
    orl  $0x21, %eax                # PE, NE
    movl %eax, %cr0
    ljmpl $CODE32, $entry32

.code32
entry32:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs

    xorl %esp, %esp                 # esp, while there is no stack: which vCPU of a trust domain
    xorl %edx, %edx                 # edx: C-bit, 0 without one
    movl IMAGE + 0x0c, %ebp         # ebp: platform, of the config page
    cmpl $PLAIN, %ebp
    je   zero
    cmpl $SNP, %ebp
    jne  no_platform                # nobody filled in the page

# SEV-SNP. Is it? This MSR cannot be intercepted (AMD64 APM volume 2, 15.34.10).
    movl $MSR_STATUS, %ecx
    rdmsr
    andl $7, %eax                   # SEV, SEV-ES and SEV-SNP
    cmpl $7, %eax
    jne  no_platform

# The C-bit, of leaf 0x8000001f in the CPUID page. A wrong one leads nowhere: memory decrypted with
# the wrong key is noise. Rust checks the page again.
    movl $CPUID_PAGE, %esi
    movl (%esi), %ecx
    cmpl $64, %ecx
    ja   no_c_bit
    addl $16, %esi
1:  testl %ecx, %ecx
    jz   no_c_bit
    cmpl $0x8000001f, (%esi)
    je   2f
    addl $48, %esi
    decl %ecx
    jmp  1b
2:  movl 28(%esi), %edi
    andl $0x3f, %edi
    cmpl $32, %edi
    jb   no_c_bit
    cmpl $51, %edi
    ja   no_c_bit

# Accept the work area: there is no memory to use before, not even for a stack.
    movl $__work_start, %esi
3:  movl %esi, %eax
    xorl %ecx, %ecx                 # a page of 4 KiB
    movl $1, %edx                   # valid
    .byte 0xf2, 0x0f, 0x01, 0xff    # pvalidate
    jc   accepted_twice             # was valid already
    testl %eax, %eax
    jnz  no_accept
    addl $4096, %esi
    cmpl $__work_end, %esi
    jb   3b
    movl %edi, %edx

# Page tables: they stay for vCPUs that wait, as does the mailbox before them.
zero:
    movl $__work_start, %edi
    movl $__work_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

# They map 4 GiB by themselves, in pages of 2 MiB, with the C-bit everywhere. Rust makes the loader
# window shared.
    xorl %ebx, %ebx                 # ebx: upper half of the C-bit's mask
    testl %edx, %edx
    jz   1f
    leal -32(%edx), %ecx
    movl $1, %ebx
    shll %cl, %ebx
1:  movl $page_tables, %edi
    leal 0x1003(%edi), %eax         # present, writable
    movl %eax, (%edi)
    movl %ebx, 4(%edi)
    leal 0x1000(%edi), %esi
    leal 0x2003(%edi), %eax
    movl $4, %ecx
2:  movl %eax, (%esi)
    movl %ebx, 4(%esi)
    addl $0x1000, %eax
    addl $8, %esi
    loop 2b
    leal 0x2000(%edi), %esi
    movl $0x83, %eax                # present, writable, large
    movl $2048, %ecx
3:  movl %eax, (%esi)
    movl %ebx, 4(%esi)
    addl $0x200000, %eax
    addl $8, %esi
    loop 3b
    movl $page_tables + 3, level5   # for 5-level paging; see wait_again

    movl %edx, %esi                 # the second argument of Rust
long_mode:                          # in this order (AMD64 APM volume 2, section 14.6)
    movl %cr4, %eax
    orl  $0x620, %eax               # PAE; OSFXSR and OSXMMEXCPT for SHA-NI
    movl %eax, %cr4
    movl $page_tables, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx            # a trust domain has these already, and its write is trapped
    rdmsr
    testl $0x100, %eax              # LME
    jnz  1f
    orl  $0x900, %eax               # and NXE: Rust makes the window, and RAM, not executable
    wrmsr
1:  movl %cr0, %eax
    andl $~0x4, %eax                # EM = 0
    orl  $0x80010022, %eax          # PG, WP, NE, MP
    movl %eax, %cr0
    ljmpl $CODE64, $entry64

# A trust domain: all its vCPUs come here, with ESI their index (Intel TDX module base
# specification, "Initial State of Guest GPRs"). The host has set nothing but RCX and R8. Memory
# that was added at launch can be used: the work area.
entry_td:
    cli
    cld
    lgdtl gdtr
    lidtl idtr
    ljmpl $CODE32, $1f
1:  movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl %esi, %esp
    xorl %edx, %edx                 # no C-bit
    movl IMAGE + 0x0c, %ebp
    cmpl $TDX, %ebp
    jne  2f
    testl %esp, %esp
    jz   zero
1:  pause                           # the boot processor makes page tables first
    cmpl $0, READY
    je   1b
    jmp  long_mode
2:  ud2                             # the IDT is empty

# Reasons as in fatal.rs. In a plain guest, or where nothing is known, a triple fault is all there is.
no_platform:
    movl $4, %ebx
    jmp  give_up
no_accept:
    movl $6, %ebx
    jmp  give_up
accepted_twice:
    movl $7, %ebx
    jmp  give_up
no_c_bit:
    movl $8, %ebx
give_up:
    cmpl $SNP, IMAGE + 0x0c
    jne  2f
    movl $MSR_GHCB, %ecx            # reading the status MSR faults without SEV: then so does this
    movl %ebx, %eax
    shll $16, %eax
    orl  $0x5100, %eax              # termination request, reason set 5
    xorl %edx, %edx
1:  wrmsr
    rep vmmcall                     # VMGEXIT
    jmp  1b
2:  ud2                             # the IDT is empty

# Where an SEV-SNP guest's other vCPUs start; measured in their VMSAs. KVM takes the state that the
# kernel makes for a vCPU (AP_CREATE) only once it runs: here, until then.
.code16
# The profile of their registers has an empty table of interrupts, and so does this: the one of real
# mode, at 0, would be memory that others write.
.global ap_hold
ap_hold:
    cli
    movw $(0xf000 + idtr - boot16_start), %bx
    lidtl %cs:(%bx)
1:  movl $MSR_GHCB, %ecx
    xorl %edx, %edx
    movl $0x006, %eax               # AP reset hold, by MSR
    wrmsr
    rep vmmcall
    jmp 1b

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # CODE32
    .quad 0x00af9b000000ffff        # CODE64
    .quad 0x00cf93000000ffff        # DATA
gdt_end:
gdtr:                               # in both sizes
    .word gdt_end - gdt - 1
    .quad gdt
idtr:                               # of no entries, in both sizes
    .word 0
    .quad 0

.code64
entry64:
    movw $DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    testl %esp, %esp
    jnz  wait_first                 # not the boot processor
    movl $1, READY
    movl $__stack_top, %esp
    movl %ebp, %edi                 # platform, of the config page; esi is the C-bit
    movl $__state, %edx
    movabsq $main, %rax
    callq *%rax
    ud2

# Where the kernel sends a vCPU of a trust domain that is to wait again (ACPI 6.5, section
# 5.2.12.19). Its page tables map this page and perhaps no other, with four or five levels.
.balign 64
.global wait_again
wait_again:
    endbr64
    cli
    movl $page_tables, %eax
    movl $level5, %ecx
    movq %cr4, %rdx
    btl  $12, %edx                  # LA57
    cmovcl %ecx, %eax
    movq %rax, %cr3
    lgdt gdtr(%rip)
    lidt idtr(%rip)                 # whatever comes now ends the guest
wait_first:
    movl $1, %eax                   # TDG.VP.INFO: r9d is the index, which the APIC identifiers are
    .byte 0x66, 0x0f, 0x01, 0xcc    # tdcall
look:
    movl $LOOKS, %r8d
1:  pause
    cmpl %r9d, APIC_ID
    jne  2f
    movzwl COMMAND, %eax
    cmpl $TEST, %eax
    je   3f
    cmpl $WAKEUP, %eax
    je   4f
2:  decl %r8d
    jnz  1b
    xorl %eax, %eax                 # TDG.VP.VMCALL: the host takes its time, and has the processor
    movl $0xfc00, %ecx              # r10 to r15 are the host's to see
    xorl %r10d, %r10d
    movl $0x10000, %r11d            # which calls it knows (GHCI, TDG.VP.VMCALL<GetTdVmCallInfo>)
    movl $1, %r12d                  # beside those that each knows
    xorl %r13d, %r13d
    xorl %r14d, %r14d
    xorl %r15d, %r15d
    .byte 0x66, 0x0f, 0x01, 0xcc    # tdcall
    jmp  look                       # whatever it answers
3:  movw $0, COMMAND
    jmp  look
4:  movq VECTOR, %rax
    movw $0, COMMAND                # heard
    jmpq *%rax

# The end of the firmware, on the boot processor: to the kernel at rdi with boot parameters at rsi
# (Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol"). What the firmware worked with, the
# copies of the host's bytes among it, becomes zeroes. Its tables of descriptors are there: those of the
# image take their place, so that from here on whatever comes ends the guest.
.global enter_kernel
enter_kernel:
    cli
    cld
    lgdt gdtr(%rip)
    lidt idtr(%rip)
    movq %rdi, %rdx
    movl $__state, %edi
    movl $__work_end, %ecx
    subl %edi, %ecx
    shrl $3, %ecx
    xorl %eax, %eax
    rep stosq
    movq %rdx, %rax
    xorl %ebx, %ebx
    xorl %edx, %edx
    xorl %edi, %edi
    xorl %ebp, %ebp
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    xorl %r11d, %r11d
    xorl %r12d, %r12d
    xorl %r13d, %r13d
    xorl %r14d, %r14d
    xorl %r15d, %r15d
    jmpq *%rax

.section .kept, "aw", @nobits
.balign 4096
    .skip 4096                      # the mailbox
.global page_tables
page_tables:
    .skip 6 * 4096
level5:
    .skip 4096

# ---- What launchers must know: OVMF's formats (SEV and TDX metadata; GUIDed table).
.section .metadata, "a"
.balign 16
.global sev_metadata
sev_metadata:
    .ascii "ASEV"
    .long sev_metadata_end - sev_metadata, 1, (sev_metadata_end - sev_metadata - 16) / 12
    .long SECRETS_PAGE, 0x1000, 2
    .long CPUID_PAGE, 0x1000, 3
sev_metadata_end:

.macro section offset, raw, address, size, kind, attributes
    .long \offset, \raw
    .quad \address, \size
    .long \kind, \attributes
.endm
.balign 16
    .long 0xe9eaf9f3
    .word 0x168e, 0x44d5
    .byte 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae
.global tdx_metadata
tdx_metadata:
    .ascii "TDVF"
    .long tdx_metadata_end - tdx_metadata, 1, (tdx_metadata_end - tdx_metadata - 16) / 32
    section 0, IMAGE_SIZE, IMAGE, IMAGE_SIZE, 0, 1          # code, measured
    section 0, 0, HOB, HOB_SIZE, 2, 0                       # list of resources, not used
    section 0, 0, MAILBOX, 0x1000, 3, 1                     # zeroes, measured to be so
    section 0, 0, MAILBOX + 0x1000, WORK_REST, 3, 0         # the rest of the work area
tdx_metadata_end:

.section .guid_table, "a"
guid_start:
    # Config page: offset from the end. 8ae37e5b-2c1f-4d8e-9d5a-63b0c3a5e1f4, as in config.rs.
    .long IMAGE_SIZE
    .word 22
    .long 0x8ae37e5b
    .word 0x2c1f, 0x4d8e
    .byte 0x9d, 0x5a, 0x63, 0xb0, 0xc3, 0xa5, 0xe1, 0xf4
    # SEV-ES reset block: where other vCPUs start.
    .long ap_hold
    .word 22
    .long 0x00f771de
    .word 0x1a7e, 0x4fcb
    .byte 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e
    # SEV metadata: offset from the end.
    .long sev_metadata_from_end
    .word 22
    .long 0xdc886566
    .word 0x984a, 0x4798
    .byte 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc
    # TDX metadata: offset from the end.
    .long tdx_metadata_from_end
    .word 22
    .long 0xe47a6535
    .word 0x984a, 0x4798
    .byte 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
    # Footer: length of all, and 96b582de-1fb2-45f7-baea-a366c55a082d.
    .word guid_end - guid_start
    .long 0x96b582de
    .word 0x1fb2, 0x45f7
    .byte 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
guid_end:
