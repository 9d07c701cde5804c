# The guest of selfcheck.py: a flat 32-bit program at 0x100000 that needs everything which a wrong build of the emulator gets wrong.
# Results at 0x103000: page fault's error code, CR2, EIP; invalid opcode's EIP; timer ticks; hash. It ends with HLT, interrupts off.
# Built by native.mk; 'ITERATIONS' and the addresses below are known to selfcheck.py.
        .intel_syntax noprefix
        .code32
        .set RESULT, 0x103000
        .set IDT, 0x102000
        .set PAGE_DIRECTORY, 0x104000
        .set TABLE, 0x110000            # 64 KiB that the hash walks through
        .set ITERATIONS, 400000
        .org 0
        mov esp, 0x109000
        # IDT: 6 = invalid opcode, 14 = page fault, 32 = timer
        mov edi, IDT + 6 * 8
        mov eax, offset invalid_opcode + 0x100000
        call gate
        mov edi, IDT + 14 * 8
        mov eax, offset page_fault + 0x100000
        call gate
        mov edi, IDT + 32 * 8
        mov eax, offset timer + 0x100000
        call gate
        lidt [idt_pointer + 0x100000]
        # paging: the first 4 MiB as one page, nothing else
        mov dword ptr [PAGE_DIRECTORY], 0x83
        mov eax, PAGE_DIRECTORY
        mov cr3, eax
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
        .globl faulting
faulting:
        mov byte ptr [0xC00123], 1      # #PF: write, supervisor, not present = 2; 7 bytes long
        ud2                             # #UD; 2 bytes long
        # 8259: vectors 32-39, only the timer; 8254: 1 kHz, mode 2
        mov al, 0x11
        out 0x20, al
        mov al, 32
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xFE
        out 0x21, al
        mov al, 0x34
        out 0x43, al
        mov al, 0xA9
        out 0x40, al
        mov al, 0x04
        out 0x40, al
        sti
        # hash = hash * 1664525 + 1013904223, added into a table slot that depends on it and read back
        mov ecx, ITERATIONS
        mov eax, 1
hash:   imul eax, eax, 1664525
        add eax, 1013904223
        movzx edx, ax
        and edx, 0xFFFC
        add [TABLE + edx], eax
        xor eax, [TABLE + edx]
        dec ecx
        jnz hash
        # at least three ticks, waited for in HLT
wait:   cmp dword ptr [RESULT + 16], 3
        jae done
        hlt
        jmp wait
done:   cli
        mov [RESULT + 20], eax
        hlt

gate:   # edi = gate, eax = handler: interrupt gate, selector 8
        mov word ptr [edi], ax
        mov word ptr [edi + 2], 0x10
        mov word ptr [edi + 4], 0x8E00
        shr eax, 16
        mov word ptr [edi + 6], ax
        ret

page_fault:
        push eax
        mov eax, [esp + 4]
        mov [RESULT], eax
        mov eax, cr2
        mov [RESULT + 4], eax
        mov eax, [esp + 8]
        mov [RESULT + 8], eax
        add dword ptr [esp + 8], 7
        pop eax
        add esp, 4
        iret

invalid_opcode:
        push eax
        mov eax, [esp + 4]
        mov [RESULT + 12], eax
        add dword ptr [esp + 4], 2
        pop eax
        iret

timer:  push eax
        inc dword ptr [RESULT + 16]
        mov al, 0x20
        out 0x20, al
        pop eax
        iret

idt_pointer:
        .word 33 * 8 - 1
        .long IDT
