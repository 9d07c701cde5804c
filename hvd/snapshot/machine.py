"""A whole machine into a snapshot's sections and out of them again (docs/snapshots.md).

    about         JSON, the daemon's: name, guest, when and why; the runner does not look into it
    machine       JSON: memory_bytes, paused, resets, console_size, board, devices, vcpu
    memory.index  pairs of 64-bit little-endian numbers: guest-physical address and length of a run of pages
    memory        those pages, one run after the other; what is not there is zero
    diskN         of a disk that the guest can write: its overlay file (hvd.snapshot.sparse), complete as of this moment
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hvd.board import saved
from hvd.board.spec import DiskSpec
from hvd.board.vcpu import Vcpu
from hvd.errors import HvdError
from hvd.snapshot.container import COPY_BYTES, Reader, Writer
from hvd.snapshot.pages import PAGE, crc32c, used_runs
from hvd.snapshot.sparse import write_file

if TYPE_CHECKING:
    from hvd.board.machine import Machine

ABOUT: Final = "about"
MACHINE: Final = "machine"
MEMORY_INDEX: Final = "memory.index"
MEMORY: Final = "memory"
RUN: Final = struct.Struct("<QQ")
MOST_RESETS: Final = (1 << 32) - 1
MOST_CONSOLE: Final = 65535


def state_of(machine: Machine) -> dict[str, Any]:
    """Everything but the memory, as JSON. In the vcpu thread, between two instructions."""
    return {
        "memory_bytes": machine.memory.size,
        "paused": machine.state == "PAUSED",
        "resets": machine.resets,
        "console_size": list(machine.console_size),
        "board": machine.board.save(),
        "devices": {device.name: device.save() for device in machine.devices},
        "disks": [disk_state(disk.spec) for disk in machine.disks],
        "vcpu": machine.vcpu.save(),
    }


def disk_state(spec: DiskSpec) -> dict[str, Any]:
    """What must be the same of a disk where the snapshot is restored."""
    return {
        "name": spec.name,
        "base": Path(spec.base).name,
        "size_bytes": spec.size_bytes,
        "read_only": spec.read_only,
        "bus": spec.bus,
        "cdrom": spec.cdrom,
    }


def save(machine: Machine, path: Path, about: bytes) -> Writer:
    """Write the machine while it stands still; in the vcpu thread. The caller finishes the file in another thread
    (Writer.finish), while the guest goes on. Raises HvdError DISK_FULL, CAPABILITY_MISSING, SNAPSHOT_FAILED."""
    # A counter that would go on alone is worse for the guest than a clock that goes on for a moment.
    stands = machine.state == "RUNNING" and machine.vcpu.tsc_stands
    if stands:
        machine.board.stop_clock()
    try:
        writer = Writer(path)
        try:
            writer.add(ABOUT, about)
            writer.add_json(MACHINE, state_of(machine))
            _write_memory(machine, writer)
            _write_disks(machine, writer)
        except BaseException:
            writer.__exit__()
            raise
    except OSError as error:
        raise HvdError("SNAPSHOT_FAILED", problem=str(error)) from error
    finally:
        if stands:
            machine.board.start_clock()
    return writer


def _write_memory(machine: Machine, writer: Writer) -> None:
    index = bytearray()
    with writer.section(MEMORY) as section:
        for address, length in used_runs(machine.memory):
            with machine.memory.view(address, length) as view:
                section.write(view)
            index += RUN.pack(address, length)
    writer.add(MEMORY_INDEX, bytes(index))


def _write_disks(machine: Machine, writer: Writer) -> None:
    """Flushed first: an overlay counts what was not flushed only until its host is started anew."""
    for disk in machine.disks:
        if disk.spec.overlay:
            disk.image.flush()
            write_file(writer, disk.spec.name, Path(disk.spec.overlay))


def restore(machine: Machine, vcpu: Vcpu, path: Path) -> None:
    """Put a machine that was just made into the state of a snapshot. Raises HvdError SNAPSHOT_DAMAGED, _FOREIGN,
    _VERSION, _MISMATCH; OSError. The machine is of no use then."""
    with Reader(path) as reader:
        state = reader.read_json(MACHINE)
        memory_bytes = state.get("memory_bytes")
        if memory_bytes != machine.memory.size:
            raise mismatch(reader.name, "memory", f"{memory_bytes} bytes", f"{machine.memory.size} bytes")
        disks = [disk_state(disk.spec) for disk in machine.disks]
        if state.get("disks", []) != disks:
            raise mismatch(reader.name, "set of disks", str(state.get("disks")), str(disks))
        _read_memory(machine, reader)
        try:
            _restore_devices(machine, reader.name, state)
            machine.resets = saved.number(state, "resets", MOST_RESETS)
            rows, columns = saved.numbers(state, "console_size", 2, MOST_CONSOLE)
            machine.console_size = (rows, columns)
            vcpu.restore(state["vcpu"])
            if saved.flag(state, "paused"):
                machine.start_paused()
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise reader.damaged(f"its machine makes no sense: {type(error).__name__}: {error}") from error


def mismatch(name: str, what: str, found: str, needed: str) -> HvdError:
    return HvdError("SNAPSHOT_MISMATCH", name=name, what=what, found=found, needed=needed)


def _restore_devices(machine: Machine, name: str, state: dict[str, Any]) -> None:
    """The Python devices first: what one of them does to an interrupt line is undone by the controllers' own state."""
    devices = dict(state["devices"])
    for device in machine.devices:
        if device.name in devices:  # an older board may not have had it: as after power-on, then
            device.restore(dict(devices.pop(device.name)))
    if devices:
        raise mismatch(name, "board", f"one with {', '.join(sorted(devices))[:200]}", "one without")
    machine.board.restore(dict(state["board"]))


def _runs(reader: Reader, memory_bytes: int) -> Iterator[tuple[int, int]]:
    index = reader.read(MEMORY_INDEX, most=RUN.size * (memory_bytes // PAGE + 1))
    if len(index) % RUN.size:
        raise reader.damaged("its index of memory is torn")
    end = total = 0
    for address, length in RUN.iter_unpack(index):
        if address % PAGE or length % PAGE or not length or address < end:
            raise reader.damaged("its index of memory makes no sense")
        end = address + length
        total += length
        yield address, length
    if total != reader.section(MEMORY).bytes:
        raise reader.damaged("its index of memory does not fit its memory")


def _read_memory(machine: Machine, reader: Reader) -> None:
    """Into memory that is all zero. The checksum is that of what was read, while it is still in the cache."""
    section = reader.section(MEMORY)
    offset, crc = section.offset, 0
    for address, length in _runs(reader, machine.memory.size):
        if offset + length > section.end:
            raise reader.damaged("its index of memory does not fit its memory")
        try:
            whole = machine.memory.view(address, length)
        except HvdError as error:
            raise reader.damaged(f"it has memory at {address:#x}, where the guest has none") from error
        with whole:
            for at in range(0, length, COPY_BYTES):
                with whole[at : at + COPY_BYTES] as view:
                    if os.preadv(reader.fd, [view], offset) != len(view):
                        raise reader.damaged("it ends within its memory")
                    crc = crc32c(view, crc)
                    offset += len(view)
    if crc != section.crc:
        raise reader.damaged("section memory has a wrong checksum")
