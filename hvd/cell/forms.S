/* x87, MMX and SSE instructions for x87.c and sse.c, one at each place: their memory operand is at RDI, their first register is ST, MM0 or XMM0,
 * and a RET is behind them. In the program's own text, so that they need no code that is written at run time. */
	.section .note.GNU-stack, "", @progbits
	.text
	.globl hv_x87_registers, hv_x87_memory, hv_x87_memory_16, hv_emms, hv_sse_forms, hv_sse_compares, hv_int1

/* [(opcode - D8) * 64 + ModRM - C0], 4 bytes each */
hv_x87_registers:
	.set n, 0
	.rept 512
	.byte 0xd8 + (n >> 6), 0xc0 + (n & 63), 0xc3, 0xcc
	.set n, n + 1
	.endr

/* [(opcode - D8) * 8 + /reg], 4 bytes each; the second with the operand-size prefix */
hv_x87_memory:
	.set n, 0
	.rept 64
	.byte 0xd8 + (n >> 3), 7 | (n & 7) << 3, 0xc3, 0xcc
	.set n, n + 1
	.endr
hv_x87_memory_16:
	.set n, 0
	.rept 64
	.byte 0x66, 0xd8 + (n >> 3), 7 | (n & 7) << 3, 0xc3
	.set n, n + 1
	.endr

hv_emms:
	emms
	ret

/* For int1.c, which is told where its trap comes from. */
hv_int1:
	.byte 0xf1
	ret

/* [prefix][opcode], 8 bytes each; no prefix, 66, F3, F2 */
	.macro sse_forms prefix:vararg
	.set n, 0
	.rept 256
	.ifnb \prefix
	.byte \prefix
	.endif
	.byte 0x0f, n, 7, 0xc3
	.balign 8, 0xcc
	.set n, n + 1
	.endr
	.endm
	.balign 8, 0xcc
hv_sse_forms:
	sse_forms
	sse_forms 0x66
	sse_forms 0xf3
	sse_forms 0xf2

/* [prefix][predicate]: CMPPS and its like */
	.macro sse_compares prefix:vararg
	.set n, 0
	.rept 8
	.ifnb \prefix
	.byte \prefix
	.endif
	.byte 0x0f, 0xc2, 7, n, 0xc3
	.balign 8, 0xcc
	.set n, n + 1
	.endr
	.endm
hv_sse_compares:
	sse_compares
	sse_compares 0x66
	sse_compares 0xf3
	sse_compares 0xf2
