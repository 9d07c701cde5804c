"""bpf(2) without a library or a compiler: maps, programs, a ring buffer, and an assembler for what we load
(Linux's Documentation/bpf, include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator

_SYSCALL_BPF = 321  # x86-64
_libc = ctypes.CDLL(None, use_errno=True)

# enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_GET_NEXT_KEY, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 1, 2, 3, 4, 5, 17
# enum bpf_map_type
HASH, ARRAY, PERCPU_ARRAY, RINGBUF = 1, 2, 6, 27
_PROG_TYPE_RAW_TRACEPOINT = 17
NO_PREALLOC = 1
# Of bpf_map_update_elem: only if it is not there (BPF_NOEXIST).
NO_EXIST = 1
_LOG_BYTES = 1 << 18

# Ring buffer records: an 8 byte header before each (BPF_RINGBUF_*_BIT).
_BUSY, _DISCARD = 1 << 31, 1 << 30
_PAGE = mmap.PAGESIZE


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = int(_libc.syscall(_SYSCALL_BPF, command, buffer, len(buffer)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Map:
    """A map of the kernel's; keys and values are bytes. Must be closed. Raises OSError."""

    def __init__(self, kind: int, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> None:
        self.key_bytes, self.value_bytes = key_bytes, value_bytes
        self.fd = _bpf(_MAP_CREATE, struct.pack("<IIIII", kind, key_bytes, value_bytes, entries, flags))

    def get(self, key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self.value_bytes)
        name = ctypes.create_string_buffer(key, len(key))
        try:
            _bpf(_MAP_LOOKUP, struct.pack("<IIQQQ", self.fd, 0, ctypes.addressof(name), ctypes.addressof(value), 0))
        except FileNotFoundError:
            return None
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        data, name = ctypes.create_string_buffer(value, len(value)), ctypes.create_string_buffer(key, len(key))
        _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", self.fd, 0, ctypes.addressof(name), ctypes.addressof(data), 0))

    def remove(self, key: bytes) -> None:
        """No error when it is not there."""
        name = ctypes.create_string_buffer(key, len(key))
        try:
            _bpf(_MAP_DELETE, struct.pack("<IIQ", self.fd, 0, ctypes.addressof(name)))
        except FileNotFoundError:
            return

    def names(self) -> list[bytes]:
        """The keys of a hash. Some may stand there twice, when others are taken away meanwhile."""
        found: list[bytes] = []
        last, following = ctypes.create_string_buffer(self.key_bytes), ctypes.create_string_buffer(self.key_bytes)
        where = 0  # NULL asks for the first one
        try:
            while True:
                _bpf(_MAP_GET_NEXT_KEY, struct.pack("<IIQQ", self.fd, 0, where, ctypes.addressof(following)))
                found.append(following.raw)
                last.raw, where = following.raw, ctypes.addressof(last)
        except FileNotFoundError:
            return found

    def close(self) -> None:
        os.close(self.fd)


class RingBuffer:
    """BPF_MAP_TYPE_RINGBUF, read through its pages. One reader."""

    def __init__(self, size: int) -> None:
        """size: bytes, a power of two. Raises OSError."""
        self._size = size
        self._map = Map(RINGBUF, 0, 0, size)
        self.fd = self._map.fd
        self._consumer = mmap.mmap(self.fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data are mapped twice in a row, so that no record is torn by the end.
        self._data = mmap.mmap(self.fd, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        self._position = 0

    def read(self) -> Iterator[bytes]:
        """What is there now, and not when it is asked for, oldest first; the room is given back piece by piece."""
        return self._until(struct.unpack_from("<Q", self._data, 0)[0])

    def _until(self, end: int) -> Iterator[bytes]:
        unpack, data, mask = struct.Struct("<I").unpack_from, self._data, self._size - 1
        given_back = self._position
        try:
            while self._position < end:
                start = _PAGE + (self._position & mask)
                header = unpack(data, start)[0]
                if header & _BUSY:
                    break
                length = header & ~_DISCARD
                record = data[start + 8 : start + 8 + length]
                self._position += (length + 8 + 7) & ~7
                if self._position - given_back > self._size >> 3:
                    given_back = self._give_back()
                if not header & _DISCARD:
                    yield record
        finally:  # also when the reader has enough
            self._give_back()

    def _give_back(self) -> int:
        struct.pack_into("<Q", self._consumer, 0, self._position)
        return self._position

    def close(self) -> None:
        self._consumer.close()
        self._data.close()
        self._map.close()


def load(code: bytes) -> int:
    """A raw tracepoint's program, as a descriptor. Raises OSError, with the verifier's last words."""
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes = struct.pack(
        "<IIQQIIQII16s", _PROG_TYPE_RAW_TRACEPOINT, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_),
        1, len(log), ctypes.addressof(log), 0, 0, b"hvd_trace",
    )  # fmt: skip
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        lines = log.value.decode("ascii", "replace").strip().splitlines()[-4:]
        raise OSError(error.errno, f"{error.strerror}: {'; '.join(lines)}" if lines else error.strerror) from error


def attach(tracepoint: str, program: int) -> int:
    """To a raw tracepoint, until the descriptor that this returns is closed. Raises OSError."""
    name = ctypes.create_string_buffer(tracepoint.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(name), program))


class Assembler:
    """eBPF instructions (Documentation/bpf/standardization/instruction-set.rst) with labels. Registers are numbers."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def _add(self, opcode: int, target: int = 0, source: int = 0, offset: int | str = 0, value: int = 0) -> None:
        self._code.append((opcode, target, source, offset, value))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def move(self, target: int, source: int) -> None:
        self._add(0xBF, target, source)

    def set(self, target: int, value: int) -> None:
        self._add(0xB7, target, value=value)

    def add(self, target: int, value: int) -> None:
        self._add(0x07, target, value=value)

    def add_register(self, target: int, source: int) -> None:
        self._add(0x0F, target, source)

    def subtract_register(self, target: int, source: int) -> None:
        self._add(0x1F, target, source)

    def mask(self, target: int, value: int) -> None:
        self._add(0x57, target, value=value)

    def shift_right(self, target: int, value: int) -> None:
        self._add(0x77, target, value=value)

    def shift_right_by(self, target: int, source: int) -> None:
        self._add(0x7F, target, source)

    def shift_left(self, target: int, value: int) -> None:
        self._add(0x67, target, value=value)

    def divide(self, target: int, value: int) -> None:
        """Unsigned."""
        self._add(0x37, target, value=value)

    def low_half(self, target: int) -> None:
        """Clear the upper 32 bits."""
        self._add(0xBC, target, target)

    def or_register(self, target: int, source: int) -> None:
        self._add(0x4F, target, source)

    def map(self, target: int, descriptor: int) -> None:
        """The address of a map (BPF_PSEUDO_MAP_FD)."""
        self._add(0x18, target, 1, value=descriptor)
        self._add(0)

    def load(self, target: int, source: int, offset: int) -> None:
        self._add(0x79, target, source, offset)

    def load32(self, target: int, source: int, offset: int) -> None:
        self._add(0x61, target, source, offset)

    def store(self, target: int, offset: int, source: int) -> None:
        self._add(0x7B, target, source, offset)

    def store32(self, target: int, offset: int, source: int) -> None:
        self._add(0x63, target, source, offset)

    def store_value(self, target: int, offset: int, value: int) -> None:
        self._add(0x7A, target, 0, offset, value)

    def store_value32(self, target: int, offset: int, value: int) -> None:
        self._add(0x62, target, 0, offset, value)

    def atomic_add(self, target: int, offset: int, source: int) -> None:
        self._add(0xDB, target, source, offset)

    def call(self, helper: int) -> None:
        self._add(0x85, value=helper)

    def jump(self, label: str) -> None:
        self._add(0x05, offset=label)

    def if_equal(self, register: int, value: int, label: str) -> None:
        self._add(0x15, register, offset=label, value=value)

    def if_not_equal(self, register: int, value: int, label: str) -> None:
        self._add(0x55, register, offset=label, value=value)

    def if_greater(self, register: int, value: int, label: str) -> None:
        """Unsigned."""
        self._add(0x25, register, offset=label, value=value)

    def if_not_above(self, register: int, other: int, label: str) -> None:
        """Unsigned, both registers."""
        self._add(0xBD, register, other, label)

    def if_positive(self, register: int, label: str) -> None:
        """Signed, more than 0."""
        self._add(0x65, register, offset=label, value=0)

    def exit(self) -> None:
        self._add(0x95)

    def code(self) -> bytes:
        packed = []
        for at, (opcode, target, source, offset, value) in enumerate(self._code):
            jump = self._labels[offset] - at - 1 if isinstance(offset, str) else offset
            packed.append(struct.pack("<BBhi", opcode, target | source << 4, jump, value))
        return b"".join(packed)
