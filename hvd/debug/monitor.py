"""gdb's `monitor COMMAND`: what has no place in gdb's own commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.debug.stub import Stub

MOST_DUMPED: Final = 1 << 16
_PER_LINE: Final = 16

TRACE_MODES: Final = ("steps", "on", "off")


class Usage(Exception):
    """What was typed is no command; the text says what would be."""


def execute(stub: Stub, line: str) -> str:
    """The command's output, with a line end. Never raises for what was typed."""
    words = line.split()
    name = words[0] if words else "help"
    command = COMMANDS.get(name)
    if command is None:
        return f"hvd has no command '{name[:40]}'; `monitor help` lists them\n"
    usage, _, function = command
    try:
        return function(stub, words[1:])
    except Usage as problem:
        return f"{problem or 'write it as'}: monitor {usage}\n"
    except HvdError as error:
        return f"{error}\n"


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise Usage(f"'{text[:40]}' is no number") from None
    if not 0 <= value < 1 << 64:
        raise Usage(f"{text[:40]} is out of range")
    return value


def _phys(stub: Stub, words: list[str]) -> str:
    if words:
        if words not in (["on"], ["off"]):
            raise Usage
        stub.physical = words == ["on"]
    return f"gdb's memory addresses are guest-{'physical' if stub.physical else 'virtual'}\n"


def _xp(stub: Stub, words: list[str]) -> str:
    if len(words) != 2:
        raise Usage
    address, length = _number(words[0]), _number(words[1])
    if not 1 <= length <= MOST_DUMPED:
        raise Usage(f"1-{MOST_DUMPED} bytes at once")
    data = stub.machine.read_memory(address, length, virtual=False)
    lines = []
    for at in range(0, length, _PER_LINE):
        row = data[at : at + _PER_LINE]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{address + at:#012x}  {row.hex(' '):<{3 * _PER_LINE}} {text}\n")
    return "".join(lines)


def _regs(stub: Stub, words: list[str]) -> str:
    registers = stub.machine.vcpu.registers()
    lines = []
    for name, value in registers.items():
        register, _, part = name.partition(".")
        if not part:
            hidden = [
                f"{key}={registers[f'{register}.{key}']:#x}"
                for key in ("base", "limit", "attributes")
                if f"{register}.{key}" in registers
            ]
            lines.append(" ".join([f"{name:<8}{value:#018x}", *hidden]) + "\n")
    for name in ("gdtr", "idtr"):
        lines.append(f"{name:<8}base={registers[f'{name}.base']:#x} limit={registers[f'{name}.limit']:#x}\n")
    return "".join(lines)


def _translate(stub: Stub, words: list[str]) -> str:
    if len(words) != 1:
        raise Usage
    found = stub.machine.translate(_number(words[0]))
    lines = [f"{entry.level:<6} at {entry.address:#x}: {entry.value:#018x}\n" for entry in found.entries]
    if found.physical_address is None:
        lines.append(f"{found.virtual_address:#x} is not mapped ({found.mode} paging): {found.fault}\n")
    else:
        rights = ("r", "w" if found.writable else "-", "x" if found.executable else "-", " user" if found.user else "")
        page = f", {found.page_bytes >> 10} KiB page" if found.page_bytes else ""
        lines.append(
            f"{found.virtual_address:#x} -> {found.physical_address:#x} ({found.mode} paging{page}, {''.join(rights)})\n"
        )
    return "".join(lines)


def _trace(stub: Stub, words: list[str]) -> str:
    if words:
        if len(words) != 1 or words[0] not in TRACE_MODES:
            raise Usage
        stub.trace = words[0]
    shown = {
        "steps": "what a single step crossed into the hypervisor is shown",
        "on": "the last crossings into the hypervisor are shown at each stop",
        "off": "crossings into the hypervisor are not shown",
    }
    return f"{shown[stub.trace]}\n"


def _reset(stub: Stub, words: list[str]) -> str:
    stub.machine.reset()
    return "the machine was reset; `maintenance flush register-cache` lets gdb see it\n"


def _help(stub: Stub, words: list[str]) -> str:
    width = max(len(usage) for usage, _, _ in COMMANDS.values())
    return "".join(f"monitor {usage:<{width}}  {text}\n" for usage, text, _ in COMMANDS.values())


# Name -> usage, what it does, function.
COMMANDS: Final[dict[str, tuple[str, str, Callable[[Stub, list[str]], str]]]] = {
    "phys": ("phys [on|off]", "let gdb's memory commands take guest-physical addresses", _phys),
    "xp": ("xp ADDRESS LENGTH", "dump guest-physical memory", _xp),
    "regs": ("regs", "every register, with the hidden parts of segments", _regs),
    "translate": ("translate ADDRESS", "guest-virtual to guest-physical, entry by entry", _translate),
    "trace": ("trace [steps|on|off]", "show what crosses into the hypervisor", _trace),
    "reset": ("reset", "push the reset button; the guest stays stopped", _reset),
    "help": ("help", "this list", _help),
}
