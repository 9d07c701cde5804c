"""An ATAPI CD-ROM drive: packet commands (ATA/ATAPI-6, clause 9.8; SFF-8020i; MMC-3) over an image of one data track."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board.data_window import WINDOW_BYTES, DataWindow
from hvd.board.ide import identify
from hvd.board.ide.drive import ABORTED, COUNT, DEVICE, DEVICE_SELECT, HIGH, MID, READY, SEEK_DONE, Drive
from hvd.board.ide.identify import SECTOR
from hvd.board.saved import data, flag, number

if TYPE_CHECKING:
    from hvd.board.block import BlockImage

FRAME: Final = 2048
PACKET: Final = 12
# The interrupt reason register (COUNT): what the data port is for.
IS_COMMAND, TO_HOST = 1, 2
_DMA: Final = 1  # bit of the feature register

# Sense keys, and additional sense codes with their qualifiers (MMC-3, annex F).
NO_SENSE, NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST = 0, 2, 3, 5
MEDIUM_NOT_PRESENT, UNRECOVERED_READ, INVALID_OPCODE, OUT_OF_RANGE, INVALID_FIELD, REMOVAL_PREVENTED = (
    0x3A00, 0x1100, 0x2000, 0x2100, 0x2400, 0x5302,
)  # fmt: skip

_PROFILE_CDROM: Final = 0x0008
_LEADOUT: Final = 0xAA


def _lba(frame: int) -> bytes:
    return frame.to_bytes(4, "big")


def _msf(frame: int) -> bytes:
    """Minute, second, frame; the first two seconds are the pregap."""
    minute, rest = divmod(frame + 150, 60 * 75)
    return bytes((0, min(minute, 255), *divmod(rest, 75)))


class CdRom(Drive):
    """A drive with a disc in it."""

    kind: ClassVar[str] = "cdrom"
    signature: ClassVar[bytes] = bytes((1, 1, 0x14, 0xEB))
    reset_status: ClassVar[int] = 0  # not ready until it is asked for something (clause 9.12)
    idle_status: ClassVar[int] = READY | SEEK_DONE

    def __init__(self, image: BlockImage, serial: str, window: DataWindow, data_port: int) -> None:
        self._image = image
        self._serial = serial
        self.frames: Final = image.size_bytes // FRAME
        super().__init__(window, data_port)

    def reset_settings(self) -> None:
        self._sense = (NO_SENSE, 0)
        self._open = self._locked = False
        self._forget()

    def _forget(self) -> None:
        """No transfer is under way."""
        self._packet = False  # the block that the guest writes is a packet
        self._reply = b""  # what is left of an answer
        self._frame = self._frames = 0  # what is left of a READ
        self._limit = 0  # bytes that the guest takes at once

    def command(self, code: int) -> None:
        self._forget()
        COMMANDS.get(code, CdRom.abort)(self)

    # ---- ATA commands

    def device_reset(self) -> None:
        """DEVICE RESET: no interrupt."""
        device = self.registers[DEVICE]
        self.reset()
        self.registers[DEVICE] = device & DEVICE_SELECT

    def refuse_identify(self) -> None:
        """IDENTIFY DEVICE and READ SECTORS: it is aborted, and the signature shows why (clause 8.15.5.1)."""
        self.registers[COUNT : HIGH + 1] = self.signature
        self.abort()

    def identify(self) -> None:
        """IDENTIFY PACKET DEVICE."""
        self.data[:SECTOR] = identify.identify_cdrom(self._serial)
        self.begin_block(SECTOR, out=False)
        self.raise_interrupt()

    def set_features(self) -> None:
        """SET FEATURES: PIO modes only."""
        if self.feature == 3 and self.registers[COUNT] < 0x10:
            self.done()
        else:
            self.abort()

    def nothing(self) -> None:
        self.done()

    def check_power(self) -> None:
        """CHECK POWER MODE: active."""
        self.registers[COUNT] = 0xFF
        self.done()

    def packet(self) -> None:
        """PACKET: twelve bytes come next, without an interrupt."""
        limit = self.registers[MID] | self.registers[HIGH] << 8
        if self.feature & _DMA:
            self.abort()
            return
        self._limit = min(limit, WINDOW_BYTES) & ~1
        self._packet = True
        self.registers[COUNT] = IS_COMMAND
        self.begin_block(PACKET, out=True)

    def block_written(self, length: int) -> None:
        packet = bytes(self.data[:length])
        self._packet = False
        operation = OPERATIONS.get(packet[0])
        if operation is None:
            self.check_condition(ILLEGAL_REQUEST, INVALID_OPCODE)
            return
        needs_disc, handler = operation
        if packet[0] != _REQUEST_SENSE:
            self._sense = (NO_SENSE, 0)
        if needs_disc and (self._open or not self.frames):
            self.check_condition(NOT_READY, MEDIUM_NOT_PRESENT)
        else:
            handler(self, packet)

    # ---- answers

    def complete(self) -> None:
        """Status: good."""
        self.registers[COUNT] = IS_COMMAND | TO_HOST
        self.done()

    def check_condition(self, key: int, code: int) -> None:
        """Status: CHECK CONDITION; REQUEST SENSE tells more."""
        self._forget()
        self._sense = (key, code)
        self.registers[COUNT] = IS_COMMAND | TO_HOST
        self.fail(key << 4 | (ABORTED if key == ILLEGAL_REQUEST else 0))

    def reply(self, answer: bytes, allocated: int) -> None:
        """An answer, of which the guest wants so many bytes."""
        self._reply = answer[:allocated]
        self._next_block()

    def _next_block(self) -> None:
        if not self._reply and self._frames and not self._read_frames():
            return
        length = min(len(self._reply), self._limit)
        if not self._reply:
            self.complete()
        elif not length:  # it asked for something and takes nothing (clause 8.23.5)
            self.check_condition(ILLEGAL_REQUEST, INVALID_FIELD)
        else:
            self.data[:length], self._reply = self._reply[:length], self._reply[length:]
            self.registers[COUNT] = TO_HOST
            self.registers[MID], self.registers[HIGH] = length & 0xFF, length >> 8
            self.begin_block(length, out=False)
            self.raise_interrupt()

    def _read_frames(self) -> bool:
        """As many as the guest takes at once, one at least: it may take a frame in pieces."""
        count = min(self._frames, max(1, self._limit // FRAME))
        content = bytearray(count * FRAME)
        try:
            self._image.read(self._frame * FRAME, [memoryview(content)])
        except OSError:
            self.check_condition(MEDIUM_ERROR, UNRECOVERED_READ)
            return False
        self._reply = bytes(content)
        self._frame += count
        self._frames -= count
        return True

    def block_read(self) -> None:
        if self._limit:  # of a packet command; IDENTIFY's block has nothing behind it
            self._next_block()

    # ---- packet commands

    def test_unit_ready(self, packet: bytes) -> None:
        self.complete()

    def request_sense(self, packet: bytes) -> None:
        key, code = self._sense
        self._sense = (NO_SENSE, 0)
        self.reply(bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code >> 8, code & 0xFF, 0, 0, 0, 0)), packet[4])

    def inquiry(self, packet: bytes) -> None:
        if packet[1] & 1:  # vital product data
            self.check_condition(ILLEGAL_REQUEST, INVALID_FIELD)
            return
        # CD-ROM, removable, no version claimed, ATAPI's response format, 31 more bytes
        header = bytes((5, 0x80, 0, 0x21, 31, 0, 0, 0))
        self.reply(header + b"HVD     " + b"CD-ROM          " + b"1.0 ", packet[4])

    def start_stop(self, packet: bytes) -> None:
        """START STOP UNIT: LoEj says whether the tray is meant, Start which way."""
        if packet[4] & 2:
            opens = not packet[4] & 1
            if opens and self._locked:
                self.check_condition(ILLEGAL_REQUEST, REMOVAL_PREVENTED)
                return
            self._open = opens
        self.complete()

    def prevent_removal(self, packet: bytes) -> None:
        self._locked = bool(packet[4] & 1)
        self.complete()

    def read_capacity(self, packet: bytes) -> None:
        self.reply((self.frames - 1).to_bytes(4, "big") + FRAME.to_bytes(4, "big"), 8)

    def read_10(self, packet: bytes) -> None:
        self._read(int.from_bytes(packet[2:6], "big"), int.from_bytes(packet[7:9], "big"))

    def read_12(self, packet: bytes) -> None:
        self._read(int.from_bytes(packet[2:6], "big"), int.from_bytes(packet[6:10], "big"))

    def _read(self, frame: int, count: int) -> None:
        if frame + count > self.frames:
            self.check_condition(ILLEGAL_REQUEST, OUT_OF_RANGE)
            return
        self._frame, self._frames = frame, count
        self._next_block()

    def seek(self, packet: bytes) -> None:
        if int.from_bytes(packet[2:6], "big") >= self.frames:
            self.check_condition(ILLEGAL_REQUEST, OUT_OF_RANGE)
        else:
            self.complete()

    def read_toc(self, packet: bytes) -> None:
        """READ TOC/PMA/ATIP: one data track and the lead-out, or one session."""
        place = _msf if packet[1] & 2 else _lba
        # The format moved from the control byte to byte 2 (SFF-8020i, MMC).
        form = packet[2] & 0xF or packet[9] >> 6
        allocated = int.from_bytes(packet[7:9], "big")
        if form == 0 and (packet[6] <= 1 or packet[6] == _LEADOUT):
            tracks = b"" if packet[6] == _LEADOUT else bytes((0, 0x14, 1, 0)) + place(0)
            body = bytes((1, 1)) + tracks + bytes((0, 0x14, _LEADOUT, 0)) + place(self.frames)
        elif form == 1:
            body = bytes((1, 1, 0, 0x14, 1, 0)) + place(0)
        else:
            self.check_condition(ILLEGAL_REQUEST, INVALID_FIELD)
            return
        self.reply(len(body).to_bytes(2, "big") + body, allocated)

    def get_configuration(self, packet: bytes) -> None:
        """The profile, without descriptions of features."""
        profile = 0 if self._open or not self.frames else _PROFILE_CDROM
        feature = bytes((0, 0, 3, 4)) + _PROFILE_CDROM.to_bytes(2, "big") + bytes((1 if profile else 0, 0))
        body = bytes(2) + profile.to_bytes(2, "big") + feature
        self.reply(len(body).to_bytes(4, "big") + body, int.from_bytes(packet[7:9], "big"))

    def get_event_status(self, packet: bytes) -> None:
        """GET EVENT STATUS NOTIFICATION, polled: nothing happened."""
        if not packet[1] & 1:
            self.check_condition(ILLEGAL_REQUEST, INVALID_FIELD)
            return
        media = 1 << 4
        told = bytes((4, media, 0, 1 if self._open else 2, 0, 0))
        body = told if packet[4] & media else bytes((0x80, media))  # 80: none of the classes asked for
        self.reply(len(body).to_bytes(2, "big") + body, int.from_bytes(packet[7:9], "big"))

    def mode_sense(self, packet: bytes) -> None:
        """MODE SENSE (10): error recovery and capabilities."""
        wanted, asked = packet[2] & 0x3F, packet[2] >> 6
        lock = 2 if self._locked else 0
        pages = {
            0x01: bytes((0x01, 6, 0, 5, 0, 0, 0, 0)),
            # Reads CD-R and CD-RW; multi-session; tray with lock and eject; 706 KB/s.
            0x2A: bytes((0x2A, 18, 3, 0, 0x40, 0, 0x29 | lock, 0, 2, 0xC2, 0, 2, 2, 0, 2, 0xC2, 0, 0, 0, 0)),
        }
        if asked == 3 or (wanted not in pages and wanted != 0x3F):  # there are no saved values
            self.check_condition(ILLEGAL_REQUEST, INVALID_FIELD)
            return
        body = b"".join(page for code, page in pages.items() if wanted in (code, 0x3F))
        medium = 0x71 if self._open else 1
        header = (len(body) + 6).to_bytes(2, "big") + bytes((medium, 0, 0, 0, 0, 0))
        self.reply(header + body, int.from_bytes(packet[7:9], "big"))

    def mechanism_status(self, packet: bytes) -> None:
        body = bytes((0, 0x10 if self._open else 0, 0, 0, 0, 1, 0, 0))
        self.reply(body, int.from_bytes(packet[8:10], "big"))

    def read_disc_information(self, packet: bytes) -> None:
        body = bytes((0x0E, 1, 1, 1, 1, 0x20)) + bytes(26)  # complete, one session, one track
        self.reply(len(body).to_bytes(2, "big") + body, int.from_bytes(packet[7:9], "big"))

    # ---- state

    def save(self) -> dict[str, Any]:
        return super().save() | {
            "sense_key": self._sense[0],
            "sense_code": self._sense[1],
            "open": self._open,
            "locked": self._locked,
            "packet": self._packet,
            "reply": self._reply.hex(),
            "frame": self._frame,
            "frames": self._frames,
            "limit": self._limit,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        frame, frames = number(state, "frame", self.frames), number(state, "frames", self.frames)
        limit, reply = number(state, "limit", WINDOW_BYTES), data(state, "reply", b"", WINDOW_BYTES)
        sense = number(state, "sense_key", 15), number(state, "sense_code", 0xFFFF)
        opened, locked, packet = flag(state, "open"), flag(state, "locked"), flag(state, "packet")
        if frame + frames > self.frames:
            raise ValueError(f"{frames} frames at {frame} of {self.frames}")
        if limit & 1:
            raise ValueError(f"blocks of {limit} bytes")
        block = len(data(state, "block", b"", WINDOW_BYTES))
        if block and flag(state, "out") and (not packet or block != PACKET):
            raise ValueError("the guest writes something that is no packet")
        super().restore(state)
        self._sense, self._open, self._locked, self._packet = sense, opened, locked, packet
        self._reply, self._frame, self._frames, self._limit = reply, frame, frames, limit


_REQUEST_SENSE: Final = 0x03
# Operation code -> needs a disc, what does it.
OPERATIONS: Final[dict[int, tuple[bool, Callable[[CdRom, bytes], None]]]] = {
    0x00: (True, CdRom.test_unit_ready),
    _REQUEST_SENSE: (False, CdRom.request_sense),
    0x12: (False, CdRom.inquiry),
    0x1B: (False, CdRom.start_stop),
    0x1E: (False, CdRom.prevent_removal),
    0x25: (True, CdRom.read_capacity),
    0x28: (True, CdRom.read_10),
    0x2B: (True, CdRom.seek),
    0x43: (True, CdRom.read_toc),
    0x46: (False, CdRom.get_configuration),
    0x4A: (False, CdRom.get_event_status),
    0x51: (True, CdRom.read_disc_information),
    0x5A: (False, CdRom.mode_sense),
    0xA8: (True, CdRom.read_12),
    0xBD: (False, CdRom.mechanism_status),
}
# Of the ATA command set (table C.2, packet devices).
COMMANDS: Final[dict[int, Callable[[CdRom], None]]] = {
    0x08: CdRom.device_reset,
    0x20: CdRom.refuse_identify,
    0xA0: CdRom.packet,
    0xA1: CdRom.identify,
    **dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3, 0xE7), CdRom.nothing),
    0xE5: CdRom.check_power,
    0xEC: CdRom.refuse_identify,
    0xEF: CdRom.set_features,
}
