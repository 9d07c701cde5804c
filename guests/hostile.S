/* A guest that attacks what it runs in (tests/cell/test_containment.py): a flat binary that leaves protected mode's segments for the
 * host's 64-bit code segment, and does there what a script tells it, which somebody writes into its memory from outside.
 *
 *   script      u64 go, u64 gadget: address of a SYSCALL; RET to be used instead of its own, 0 = its own
 *               then steps of eight u64: act and up to seven parameters
 *   acts        END back to 32-bit code, "survived" on the console, exit code 0
 *               CALL number, six arguments: a system call of the host; its result to `result`
 *               FILL address, bytes, value       COPY to, from, bytes
 *               GOTO step                        JUMP address, stack pointer
 *               SPIN64 for ever                  SPIN32 for ever, in 32-bit code with interrupts off
 *               TRAP HLT in 64-bit code          SEND32 number: INT 80 in 32-bit code, with no gate for it
 */
        .set    HOST_CODE_64, 0x33
        .set    COM1, 0x3f8
        .set    EXIT_PORT, 0xf4

        .code32
        .globl  _start
_start: jmp     begin

        .balign 16
script: .quad   0, 0                    # at 0x100010
        .fill   64 * 64, 1, 0
result: .quad   0                       # at 0x101020
return: .long   back
        .word   0
        .balign 16

begin:  mov     $stack, %esp
        mov     %cs, %eax
        mov     %ax, return + 4
        mov     $ready, %esi
        call    print
1:      pause
        cmpl    $0, script
        je      1b
        ljmp    $HOST_CODE_64, $long

back:   mov     $survived, %esi
        call    print
        xor     %eax, %eax
        out     %al, $EXIT_PORT
        hlt

quiet:  cli
        mov     $spinning, %esi
        call    print
1:      jmp     1b

send:   mov     script + 16 + 8, %eax
        int     $0x80
        jmp     back

print:  mov     $COM1, %dx
1:      lodsb
        test    %al, %al
        jz      2f
        out     %al, %dx
        jmp     1b
2:      ret

ready:  .asciz  "hostile: ready\n"
survived: .asciz "hostile: survived\n"
spinning: .asciz "hostile: spinning\n"

        .code64
long:   xor     %r12d, %r12d
next:   mov     %r12d, %ebx
        shl     $6, %ebx
        add     $script + 16, %ebx
        inc     %r12d
        mov     (%rbx), %eax
        cmp     $9, %eax
        ja      over
        mov     acts(, %rax, 4), %eax
        jmp     *%rax

over:   ljmpl   *return

call_it:
        mov     8(%rbx), %rax
        mov     16(%rbx), %rdi
        mov     24(%rbx), %rsi
        mov     32(%rbx), %rdx
        mov     40(%rbx), %r10
        mov     48(%rbx), %r8
        mov     56(%rbx), %r9
        mov     script + 8, %r13
        test    %r13, %r13
        jz      1f
        call    *%r13
        jmp     2f
1:      syscall
2:      mov     %rax, result
        jmp     next

fill_it:
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rcx
        mov     24(%rbx), %rax
        rep stosb
        jmp     next

copy_it:
        mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rcx
        rep movsb
        jmp     next

goto_it:
        mov     8(%rbx), %r12d
        jmp     next

jump_it:
        mov     16(%rbx), %rsp
        mov     8(%rbx), %rax
        jmp     *%rax

spin_it:
        jmp     spin_it

quiet_it:
        movl    $quiet, return
        jmp     over

trap_it:
        hlt
        jmp     next

send_it:
        movl    $send, return
        jmp     over

        .balign 4
acts:   .long   over, call_it, fill_it, copy_it, goto_it, jump_it, spin_it, quiet_it, trap_it, send_it

        .balign 16
        .fill   4096, 1, 0
stack:
        /* What scripts point to is put behind, at 0x110000. */
	.section .note.GNU-stack, "", @progbits
