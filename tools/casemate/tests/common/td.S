# A TDVF image of 32 KiB that does what a list of requests says, and writes the results to the serial
# port: 16 digits for each register, a line for each request. The test fills in the list.
#
# Image, at the top of the first 4 GiB:
#   0x0000  page tables: 0 to 1 GiB and 3 to 4 GiB as they are, private; from 4 GiB on
#           0 to 1 GiB once more, shared
#   0x5000  requests, 48 bytes each: what to do, and up to five values
#   0x7000  code, metadata, reset vector
#
# Sources: Intel TDX module ABI, "TDG.VP.VMCALL"; GHCI; TDX Virtual Firmware Design Guide.

.set BASE, 0xffff8000
.set SHARED, 1 << 47
.set TABLE, 0x63                    # present, writable, accessed, dirty
.set LARGE, TABLE | 1 << 7

.set IDT, 0x12000
.set COUNT, 0x12800                 # interrupts of vector 0x40

.intel_syntax noprefix
.globl _start
_start:
pml4:   .quad BASE + 0x1000 + TABLE
        .org 0x1000
pdpt:   .quad BASE + 0x2000 + TABLE, 0, 0, BASE + 0x3000 + TABLE, BASE + 0x4000 + TABLE
.macro  directory from
        .set page, \from
        .rept 512
        .quad page + LARGE
        .set page, page + 0x200000
        .endr
.endm
        .org 0x2000
        directory 0
        directory 0xc0000000
        directory SHARED
        .org 0x5000
requests:

        .org 0x7000
.code32
start:  test esi, esi               # the number of the vCPU
1:      pause
        jnz 1b
        mov eax, cr4                # EFER.LME is set already
        or  eax, 1 << 5
        mov cr4, eax
        mov eax, BASE
        mov cr3, eax
        mov eax, cr0
        or  eax, 1 << 31
        mov cr0, eax
        lgdt [BASE + 0x7000 + gdtr - start]
        .att_syntax
        ljmp $8, $BASE + 0x7000 + long - start
        .intel_syntax noprefix
.align 8
gdt:    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:   .word gdtr - gdt - 1
        .long BASE + 0x7000 + gdt - start

idtr:   .word 0x41 * 16 - 1
        .quad IDT

.code64
counted:
        inc qword ptr [COUNT]
        iretq
.macro  tdcall
        .byte 0x66, 0x0f, 0x01, 0xcc
.endm
long:   mov eax, 16
        mov ss, eax
        mov ds, eax
        mov es, eax
        mov esp, IDT                # in TEMP_MEM
        lea rax, [rip + counted]    # a gate for interrupts of vector 0x40
        mov word ptr [IDT + 0x400], ax
        shr rax, 16
        mov word ptr [IDT + 0x406], ax
        mov word ptr [IDT + 0x402], 8
        mov word ptr [IDT + 0x404], 0x8e00
        lidt [rip + idtr]
        mov r11d, 32                # WRMSR of SVR, which is the host's: the local APIC is on
        mov r12d, 0x80f
        mov r13d, 0x1ff
        call ask
        sti
        lea rbx, [rip + requests]
next:   mov rax, [rbx]
        mov rsi, [rbx + 8]
        mov rdi, [rbx + 16]
        mov rcx, [rbx + 24]
        cmp eax, 1
        jb  vmcall
        je  module
        cmp eax, 3
        jb  read
        je  write
        cmp eax, 5
        jb  wait
        rep movsb                   # 5: copy
        jmp done

vmcall: mov r11, rsi                # 0: ask the host; R10 and R11
        mov r12, rdi
        mov r13, rcx
        mov r14, [rbx + 32]
        mov r15, [rbx + 40]
        call ask
        push r11
        mov rax, r10
        call hex
        pop rax
        call hex
        jmp line
module: mov rax, rsi                # 1: ask the TDX module; RAX
        xchg rcx, rdi
        mov rdx, rdi
        mov r8, [rbx + 32]
        tdcall
        call hex
        jmp line
read:   mov rax, [rsi]              # 2: a word of memory
        call hex
        jmp line
write:  mov [rsi], rdi              # 3
        jmp done
wait:   pause                       # 4: for a word to change
        cmp [rsi], rdi
        je  wait
        jmp done
line:   mov al, 10
        call put
done:   add rbx, 48
        jmp next

hex:    mov rbp, rax                # writes RAX
        mov r9d, 16
1:      rol rbp, 4
        mov eax, ebp
        and eax, 15
        add eax, 48
        cmp eax, 57
        jbe 2f
        add eax, 39
2:      call put
        dec r9d
        jnz 1b
        mov al, 32
put:    movzx r15d, al              # writes AL
        mov r11d, 30
        mov r12d, 1
        mov r13d, 1
        mov r14d, 0x3f8
ask:    xor eax, eax
        xor r10d, r10d
        mov ecx, 0xfc00             # R10 to R15
        tdcall
        ret

        .org 0x7e00
        .byte 0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44
        .byte 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae
metadata:
        .ascii "TDVF"
        .long 16 + 3 * 32, 1, 3
.macro  section offset, size, address, memory, type, attributes
        .long \offset, \size
        .quad \address, \memory
        .long \type, \attributes
.endm
        section 0, 0x8000, BASE, 0x8000, 0, 1
        section 0, 0, 0x10000, 0x1000, 2, 0
        section 0, 0, 0x11000, 0x3000, 3, 0
        # The GUID table, from its end downwards.
        .org 0x8000 - 0x20 - 40
        .long 0x8000 - 0x7e10
        .word 22
        .byte 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47
        .byte 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2
        .word 40
        .byte 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45
        .byte 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
        .org 0x8000 - 0x10
.code32
        jmp start
        .org 0x8000
