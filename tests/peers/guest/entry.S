# How a guest without an operating system gets to `main` in ring 3 of 64-bit mode, with all memory
# below 4 GiB and all I/O ports open to it. Where KVM has no hardware to run ring 0 on, it emulates
# it, thousands of times slower than the processor runs ring 3: so as little as can be is here.
# There are no exception handlers: a fault is a triple fault, which the VMM tells.

	.section .note.pvh, "a", @note
	.long	4, 4, 18			# XEN_ELFNOTE_PHYS32_ENTRY
	.ascii	"Xen\0"
	.long	start

	.text
	.code32
	.globl	start
start:	mov	$0x620, %eax			# CR4: PAE, OSFXSR, OSXMMEXCPT
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx		# EFER: LME, and SCE for sysret
	rdmsr
	or	$0x101, %eax
	wrmsr
	mov	$0x80010033, %eax		# CR0: PG, WP, NE, ET, MP, PE
	mov	%eax, %cr0
	mov	$tss, %eax			# its address has three places in the descriptor
	mov	%ax, gdt + 0x2a
	shr	$16, %eax
	mov	%al, gdt + 0x2c
	mov	%ah, gdt + 0x2f
	lgdt	gdt_register
	ljmp	$0x08, $long_mode

	.code64
long_mode:
	mov	$0x10, %eax
	mov	%eax, %ss
	mov	$0x28, %eax
	ltr	%ax
	mov	$0xc0000081, %ecx		# STAR: sysret has CS 0x23 and SS 0x1b
	xor	%eax, %eax
	mov	$0x00100008, %edx
	wrmsr
	mov	$stack_top - 8, %esp		# as if main had been called
	mov	$main, %ecx
	mov	$2, %r11d			# flags: no interrupts
	sysretq

	.data
	.balign	16
gdt:	.quad	0
	.quad	0x00af9b000000ffff		# 0x08: code of ring 0
	.quad	0x00cf93000000ffff		# 0x10: data of ring 0
	.quad	0x00cff3000000ffff		# 0x18: data of ring 3
	.quad	0x00affb000000ffff		# 0x20: code of ring 3
	.quad	0x0000890000000000 + tss_end - tss - 1, 0	# 0x28: task state
gdt_register:
	.word	. - gdt - 1
	.long	gdt, 0
	.balign	16
tss:	.skip	102
	.word	104				# where the bitmap of ports begins: all are open
	.skip	8192
	.byte	0xff
tss_end:
	.balign	4096				# 4 GiB in pages of 2 MiB: present, writable, for ring 3
	.globl	pml4
pml4:	.quad	pdpt + 7
	.skip	4088
pdpt:	.quad	pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
	.skip	4064
	.set	page, 0x87
pd:	.rept	2048
	.quad	page
	.set	page, page + 0x200000
	.endr
	.bss
	.balign	16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
