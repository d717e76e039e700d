# A firmware image of 32 KiB for SEV-SNP that does what a list of requests says, and writes the results
# to the serial port: 16 digits for each value, a line for each request. The test fills in the list.
#
# Image, at the top of the first 4 GiB:
#   0x0000  page tables: 0 to 1 GiB and 3 to 4 GiB as they are, private; from 4 GiB on
#           0 to 1 GiB once more, shared
#   0x5000  requests, 72 bytes each: what to do, and up to eight values
#   0x7000  code, metadata, reset vector
#
# Sources: AMD64 Architecture Programmer's Manual, volume 2, 15.36; GHCB specification 2.03, 2.3.1 and 4;
# OvmfPkg/ResetVector in edk2 for the metadata.

.set BASE, 0xffff8000
.set C_BIT, 1 << 51
.set TABLE, 0x63 | C_BIT            # present, writable, accessed, dirty
.set LARGE, 0x63 | 1 << 7

.set GHCB, 0x10000
.set VIEW, 0x100000000 + GHCB       # where it is mapped shared
.set GHCB_MSR, 0xc0010130

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
        directory C_BIT
        directory C_BIT + 0xc0000000
        directory 0
        .org 0x5000
requests:

        .org 0x7000
code:
.code16
start:  cli
        .byte 0x2e, 0x66, 0x0f, 0x01, 0x16      # lgdt cs:[gdtr], 32 bits
        .word 0xf000 + gdtr - code
        mov eax, cr0
        or  al, 1
        mov cr0, eax
        .byte 0x66, 0xea                        # jmp 8:protected, 32 bits
        .long BASE + 0x7000 + protected - code
        .word 24
.code32
protected:
        mov eax, cr4
        or  eax, 1 << 5
        mov cr4, eax
        mov eax, BASE
        mov cr3, eax
        mov ecx, 0xc0000080                     # EFER
        mov eax, 1 << 12 | 1 << 8               # SVME stays
        xor edx, edx
        wrmsr
        mov eax, cr0
        or  eax, 1 << 31
        mov cr0, eax
        .byte 0xea                              # jmp 8:long
        .long BASE + 0x7000 + long - code
        .word 8
.align 8
gdt:    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdtr:   .word gdtr - gdt - 1
        .long BASE + 0x7000 + gdt - code

.code64
.macro  vmgexit
        .byte 0xf3, 0x0f, 0x01, 0xd9
.endm
long:   mov eax, 16
        mov ss, eax
        mov ds, eax
        mov es, eax
        mov esp, 0x12000                        # in SEC_MEM
        mov eax, GHCB | 0x14                    # page state change, to shared
        mov edx, 2 << 20
        call msr
        mov eax, GHCB | 0x12                    # register it
        xor edx, edx
        call msr
        movabs r8, VIEW
        lea rbx, [rip + requests]
next:   mov rax, [rbx]
        mov rsi, [rbx + 8]
        mov rdi, [rbx + 16]
        mov rcx, [rbx + 24]
        cmp eax, 1
        jb  by_msr
        je  by_page
        cmp eax, 3
        jb  read
        je  write
        cmp eax, 5
        jb  touch
        je  input
        cmp qword ptr [rbx + 16], 0             # 6: bytes back in the list, and how often
        je  done
        dec qword ptr [rbx + 16]
        sub rbx, rsi
        jmp next

by_msr: mov eax, esi                            # 0: a value for the GHCB MSR; what it has then
        mov rdx, rsi
        shr rdx, 32
        call msr
        call hex
        jmp line
by_page:                                        # 1: exit code, two infos, RAX, RBX, RCX, RDX
        mov r14, [rbx + 56]                     # and scratch of the GHCB; both infos and RAX
        mov [r8 + 0x310], r14
        mov r14, [rbx + 48]
        mov [r8 + 0x308], r14
        mov r14, [rbx + 40]
        mov [r8 + 0x318], r14
        mov r14, [rbx + 32]
        mov [r8 + 0x1f8], r14
        mov r14, [rbx + 64]
        mov [r8 + 0x3a8], r14
        call exit
        mov rax, [r8 + 0x398]
        push [r8 + 0x3a0]
        push [r8 + 0x1f8]
        call hex
        pop r14
        pop rax
        push r14
        call hex
        pop rax
        call hex
        jmp line
read:   mov rax, [rsi]                          # 2: a word of memory
        call hex
        jmp line
write:  mov [rsi], rdi                          # 3
        jmp done
touch:  mov r12, rcx                            # 4: from, bytes, validate first: writes each page
1:      test r12, r12
        jz  2f
        mov rax, rsi
        xor ecx, ecx
        mov edx, 1
        .byte 0xf2, 0x0f, 0x01, 0xff
2:      mov [rsi], rsi
        add rsi, 4096
        sub rdi, 4096
        jnz 1b
        jmp done
input:  mov rsi, 0x7b                           # 5: waits for a byte from the serial port
        mov rdi, 0x3fd << 16 | 1 << 9 | 1 << 4 | 1
        xor ecx, ecx
        call exit
        test byte ptr [r8 + 0x1f8], 1
        jz  input
        mov rsi, 0x7b
        mov rdi, 0x3f8 << 16 | 1 << 9 | 1 << 4 | 1
        call exit
        jmp done
line:   mov al, 10
        call put
done:   add rbx, 72
        jmp next

hex:    mov rbp, rax                            # writes RAX
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
put:    movzx eax, al                           # writes AL
        mov [r8 + 0x1f8], rax
        mov rsi, 0x7b                           # IOIO: OUT of a byte
        mov rdi, 0x3f8 << 16 | 1 << 9 | 1 << 4
        xor ecx, ecx
exit:   mov [r8 + 0x390], rsi                   # exit code RSI, infos RDI and RCX
        mov [r8 + 0x398], rdi
        mov [r8 + 0x3a0], rcx
        movabs r14, 0x8000000002000000          # RAX and CPL are valid,
        mov [r8 + 0x3f0], r14
        movabs r14, 0x003c000e00000000          # RCX, RDX, RBX, exit code, infos, scratch
        mov [r8 + 0x3f8], r14
        mov word ptr [r8 + 0xffa], 2
        mov dword ptr [r8 + 0xffc], 0
        mov eax, GHCB
        xor edx, edx
msr:    mov ecx, GHCB_MSR                       # EDX:EAX; RAX
        wrmsr
        vmgexit
        rdmsr
        shl rdx, 32
        or  rax, rdx
        ret

        .org 0x7e00
metadata:
        .ascii "ASEV"
        .long 16 + 12, 1, 1
        .long 0x11000, 0x3000, 1                # SEC_MEM
        # The GUID table, from its end downwards.
        .org 0x8000 - 0x20 - 40
        .long 0x8000 - 0x7e00
        .word 22
        .byte 0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47
        .byte 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc
        .word 40
        .byte 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45
        .byte 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
        .org 0x8000 - 0x10
.code16
        jmp start
        .org 0x8000
