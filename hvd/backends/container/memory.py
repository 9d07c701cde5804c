"""The memory of a container's processes, as the host's kernel tells it: /proc/PID/{smaps,pagemap,mem}.

A process is looked up once: its directory in /proc stays its own however soon another takes its number.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hvapi.v1 import inspect_pb2

from hvd.backends.container.cgroup.usage import charged
from hvd.cgroup.hierarchy import PARENT, hierarchy
from hvd.errors import HvdError

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _SWAPPED, _FRAME = 1 << 63, 1 << 62, (1 << 55) - 1
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(slots=True)
class _Mapping:
    """One of /proc/PID/smaps."""

    start: int
    end: int
    permissions: str
    offset: int
    owner: str
    resident: int = 0


@contextlib.contextmanager
def _process(uid: str, pid: int) -> Iterator[int]:
    """A descriptor of its directory in /proc. Raises HvdError FIELD_INVALID: it is not one of the container's."""
    try:
        directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise _stranger(pid) from None
    try:
        try:
            groups = [line.split(":", 2)[2] for line in _text(directory, "cgroup").splitlines()]
        except OSError:
            raise _stranger(pid) from None
        own = f"/{PARENT}/{uid}"
        if not any(group == own or group.startswith(own + "/") for group in groups):
            raise _stranger(pid)
        yield directory
    except _GONE as error:
        raise _stranger(pid) from error
    finally:
        os.close(directory)


def _stranger(pid: int) -> HvdError:
    remedy = "`hvctl mem map` shows its processes, as the host numbers them"
    return HvdError("FIELD_INVALID", field="pid", value=pid, problem="is no process of this container", remedy=remedy)


def _text(directory: int, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read()


def processes(uid: str) -> list[int]:
    """By number, those of groups that it made for itself, too."""
    for top in hierarchy().directories(uid):
        found: set[int] = set()
        for group in (top, *top.rglob("*/")) if top.is_dir() else ():
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (group / "cgroup.procs").read_text("ascii").split()}
        if found:
            return sorted(found)
    return []


def regions(uid: str, pid: int = 0) -> inspect_pb2.MemoryMap:
    """The mappings of all its processes, or of one. Raises HvdError FIELD_INVALID."""
    answer = inspect_pb2.MemoryMap()
    answer.charged_bytes, answer.limit_bytes = charged(uid)
    for number in [pid] if pid else processes(uid):
        try:
            with _process(uid, number) as directory:
                mappings = _mappings(directory)
        except HvdError:
            if pid:
                raise
            continue  # it has ended meanwhile
        for each in mappings:
            answer.regions.add(
                start=each.start, length=each.end - each.start, kind=inspect_pb2.MemoryRegion.RAM, owner=each.owner,
                file_offset=each.offset, pid=number, permissions=each.permissions, resident_bytes=each.resident,
            )  # fmt: skip
    return answer


def _mappings(directory: int, name: str = "smaps") -> list[_Mapping]:
    """proc(5): "start-end perms offset device inode path", and in smaps below each its figures."""
    found: list[_Mapping] = []
    for line in _text(directory, name).splitlines():
        words = line.split(maxsplit=5)
        if words[0].endswith(":"):
            if words[0] == "Rss:":
                found[-1].resident = int(words[1]) << 10
            continue
        start, _, end = words[0].partition("-")
        owner = words[5] if len(words) > 5 else "[anon]"
        found.append(_Mapping(int(start, 16), int(end, 16), words[1], int(words[2], 16), owner))
    return found


def translate(uid: str, pid: int, address: int) -> inspect_pb2.AddressTranslation:
    """The frame of the host's memory behind it. Raises HvdError FIELD_INVALID."""
    answer = inspect_pb2.AddressTranslation(virtual_address=address, paging_mode="of the host")
    with _process(uid, pid) as directory:
        mapping = next((each for each in _mappings(directory, "maps") if each.start <= address < each.end), None)
        if mapping is None:
            answer.fault = f"process {pid} has no mapping there"
            return answer
        answer.writable, answer.executable, answer.user = (
            "w" in mapping.permissions,
            "x" in mapping.permissions,
            mapping.owner != "[vsyscall]",
        )
        entry = _entry(directory, address)
    if mapping.owner == "[vsyscall]":
        answer.fault = "the kernel's own page, which has no frame of the process"
    elif entry & _PRESENT and entry & _FRAME:
        answer.physical_address = (entry & _FRAME) * _PAGE + address % _PAGE
        answer.page_bytes = _PAGE
    elif entry & _PRESENT:
        answer.fault = "resident, but this kernel does not tell the daemon frames (CAP_SYS_ADMIN)"
    elif entry & _SWAPPED:
        answer.fault = f"in the swap area; mapped by {mapping.owner}"
    else:
        answer.fault = f"not resident: never touched, or given back; mapped by {mapping.owner}"
    return answer


def _entry(directory: int, address: int) -> int:
    """Of /proc/PID/pagemap; 0 = it has none (vsyscall)."""
    descriptor = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        data = os.pread(descriptor, 8, address // _PAGE * 8)
    except (OSError, OverflowError):
        return 0
    finally:
        os.close(descriptor)
    return int(struct.unpack("<Q", data)[0]) if len(data) == 8 else 0


def read(uid: str, pid: int, address: int, length: int) -> bytes:
    """Raises HvdError FIELD_INVALID, ADDRESS_UNMAPPED."""
    data = bytearray()
    with _process(uid, pid) as directory:
        descriptor = os.open("mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            while len(data) < length:
                piece = os.pread(descriptor, length - len(data), address + len(data))
                if not piece:  # its address space is gone: it has ended
                    raise ProcessLookupError
                data += piece
        except (OverflowError, OSError) as error:
            if isinstance(error, _GONE):
                raise
            problem = f"process {pid} has nothing to read there"
            raise HvdError("ADDRESS_UNMAPPED", address=hex(address + len(data)), problem=problem) from error
        finally:
            os.close(descriptor)
    return bytes(data)
