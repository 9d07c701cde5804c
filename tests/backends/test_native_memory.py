"""Memory of the native engine's guests: above 4 GiB, holes, and accesses to devices of all sizes."""

from __future__ import annotations

import pytest
from native_rig import DEVICE, EXIT_PORT, SCRATCH, SPARE_WINDOW, Start

from hvd.backends.emulation.backend import BACKEND
from hvd.board.vcpu import ExitReason

NATIVE = next(engine for engine in BACKEND.engines() if engine.name == "native").availability
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=f"{NATIVE.reason}; {NATIVE.remedy}")


def test_ram_above_4_gib(start: Start) -> None:
    """5 GiB, of which the upper 2 lie above 4 GiB. What is not touched costs nothing."""
    rig = start(
        """
        movq $0x123456780, %rbx
        movq $0x1122334455667788, %rax
        movq %rax, (%rbx)
        movq (%rbx), %rcx
        cmpq %rax, %rcx
        jne 1f
        movl $function, %esi; movq $0x140000000, %rdi; movl $6, %ecx; rep movsb   # code runs there, and can be changed
        movq $0x140000000, %rbx
        call *%rbx
        movl %eax, %ebp
        movb $7, 1(%rbx)
        call *%rbx
        shll $8, %ebp; orl %eax, %ebp
        finish %ebp
    1:  finish $0xbad
    function: movl $5, %eax; ret
    """,
        64,
        memory_bytes=5 << 30,
    )
    assert rig.finish() == 0x507
    assert rig.memory.read(0x1_2345_6780, 8) == bytes.fromhex("8877665544332211")
    assert rig.memory.allocated_bytes() < 4 << 20
    rig.memory.write(0x1_4000_0001, b"\x09")
    rig.vcpu.memory_changed(0x1_4000_0001, 1)


def test_memory_changed_above_4_gib(start: Start) -> None:
    rig = start(
        """
        movl $function, %esi; movq $0x140000000, %rdi; movl $6, %ecx; rep movsb
        movq $0x140000000, %rbx
    1:  call *%rbx
        movl %eax, SCRATCH
        jmp 1b
    function: movl $1, %eax; ret
    """,
        64,
        memory_bytes=5 << 30,
    )
    rig.interrupt()
    for value in range(2, 20):
        rig.memory.write(0x1_4000_0001, bytes([value]))
        rig.vcpu.memory_changed(0x1_4000_0001, 1)
        rig.memory.write(SCRATCH, bytes(4))
        while not rig.scratch():
            rig.interrupt(0.001)
        assert rig.scratch() == value


@pytest.mark.parametrize(
    "address", [RAM_END := 2 << 20, 0xA0000000, 0xC0001000, 0xFFFFFFF8, 1 << 32, (1 << 39) + 8, (1 << 40) - 8]
)
def test_holes_read_all_ones(start: Start, address: int) -> None:
    rig = start(
        f"""
        movq $SPARE_WINDOW + {address & (1 << 30) - 1:#x}, %rbx
        xorl %eax, %eax; movb (%rbx), %al; movl %eax, SCRATCH
        xorl %eax, %eax; movw (%rbx), %ax; movl %eax, SCRATCH + 4
        movl (%rbx), %eax; movq %rax, SCRATCH + 8
        movq (%rbx), %rax; movq %rax, SCRATCH + 16
        movq $0, (%rbx); movl $0, (%rbx); movw $0, (%rbx); movb $0, (%rbx)
        movq (%rbx), %rax; movq %rax, SCRATCH + 24
        finish $1
    """.replace("SPARE_WINDOW", hex(SPARE_WINDOW)),
        64,
    )
    rig.map_spare(address & ~((1 << 30) - 1))
    assert rig.finish() == 1
    ones = (1 << 64) - 1
    assert [rig.scratch(*at) for at in ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8))] == [
        0xFF,
        0xFFFF,
        0xFFFF_FFFF,
        ones,
        ones,
    ]


@pytest.mark.parametrize(
    ("instruction", "reason", "size"),
    [
        ("movb (%rbx), %al", ExitReason.MMIO_READ, 1), ("movw (%rbx), %ax", ExitReason.MMIO_READ, 2),
        ("movl (%rbx), %eax", ExitReason.MMIO_READ, 4), ("movq (%rbx), %rax", ExitReason.MMIO_READ, 8),
        ("movb %cl, (%rbx)", ExitReason.MMIO_WRITE, 1), ("movw %cx, (%rbx)", ExitReason.MMIO_WRITE, 2),
        ("movl %ecx, (%rbx)", ExitReason.MMIO_WRITE, 4), ("movq %rcx, (%rbx)", ExitReason.MMIO_WRITE, 8),
    ],
)  # fmt: skip
def test_sizes_of_device_accesses(start: Start, instruction: str, reason: ExitReason, size: int) -> None:
    rig = start(
        f"movl $DEVICE + 16, %ebx; xorl %eax, %eax; movq $0x8877665544332211, %rcx; at: {instruction}; movq %rax, SCRATCH; finish $at",
        64,
    )
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    done, read = 0, 0
    rips = set()
    while done < size:  # 8 bytes may come as two accesses
        exit_ = rig.vcpu.run()
        assert (exit_.reason, exit_.address) == (reason, DEVICE + 16 + done)
        part = value >> 8 * done & (1 << 8 * exit_.size) - 1
        rips.add(exit_.rip)
        if reason is ExitReason.MMIO_READ:
            exit_.value = part
        else:
            assert exit_.value == part
        done += exit_.size
        read |= part
    assert done == size
    at = rig.finish()
    assert rips == {at}
    if reason is ExitReason.MMIO_READ:
        assert rig.scratch(0, 8) == value


@pytest.mark.parametrize("suffix", ["b", "w", "l"])
def test_strings_between_device_and_memory(start: Start, suffix: str) -> None:
    size = {"b": 1, "w": 2, "l": 4}[suffix]
    rig = start(f"""
        movl $4, %ecx; movl $DEVICE, %esi; movl $SCRATCH, %edi
        rep movs{suffix}
        movl $4, %ecx; movl $SCRATCH, %esi; movl $DEVICE + 0x100, %edi
        rep movs{suffix}
        finish %ecx
    """)
    data = bytes(range(1, 1 + 4 * size))
    for n in range(4):
        exit_ = rig.vcpu.run()
        assert (exit_.reason, exit_.address, exit_.size) == (ExitReason.MMIO_READ, DEVICE + n * size, size)
        exit_.value = int.from_bytes(data[n * size : (n + 1) * size], "little")
    written = b""
    for n in range(4):
        exit_ = rig.vcpu.run()
        assert (exit_.reason, exit_.address, exit_.size) == (ExitReason.MMIO_WRITE, DEVICE + 0x100 + n * size, size)
        written += exit_.value.to_bytes(size, "little")
    assert written == data == rig.memory.read(SCRATCH, 4 * size)
    assert rig.finish() == 0


def test_flags_survive_device_accesses(start: Start) -> None:
    """The instruction is looked up in the middle of a block; what the block knows about the flags must stay right."""
    rig = start("""
        xorl %ebx, %ebx
        movl $1, %ecx
        cmpl $2, %ecx           # CF
        movl DEVICE, %eax
        adcl $0, %ebx           # 1
        addl %ecx, DEVICE       # all ones + 1: CF, ZF
        adcl $0, %ebx           # 2
        subl $1, %ecx           # ZF
        movl %ebx, DEVICE
        setz %cl
        addl %ecx, %ebx         # 3
        lock xaddl %ecx, DEVICE # all ones + 1: CF
        adcl $0, %ebx           # 4
        finish %ebx
    """)
    while (exit_ := rig.vcpu.run()).address != EXIT_PORT:
        exit_.value = 0xFFFF_FFFF
    assert exit_.value == 4
