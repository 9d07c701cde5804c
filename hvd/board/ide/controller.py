"""The board's IDE controller: two channels at their legacy ports (ANSI INCITS 370, "ATA host adapter standards"), IRQ 14
and 15. A drive that is not there is silent: the other one of its channel answers zeroes for it, and an empty channel
floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hvd.board.ide.cdrom import CdRom
from hvd.board.ide.disk import Disk
from hvd.board.ide.drive import COMMAND, DATA, DEVICE, DEVICE_OBSOLETE, DEVICE_SELECT, ERROR, STATUS, Drive
from hvd.board.saved import number

if TYPE_CHECKING:
    from hvd.board import block
    from hvd.board.machine import Machine

CHANNELS: Final = ((0x1F0, 0x3F6, 14), (0x170, 0x376, 15))  # command block, control block, interrupt
DRIVES: Final = 4
# Where disks and CD-ROMs go: primary master, primary slave, secondary master, secondary slave; CD-ROMs first where PCs
# have them.
DISK_PLACES: Final = (0, 1, 2, 3)
CDROM_PLACES: Final = (2, 3, 0, 1)

CONTROL_NO_INTERRUPT, CONTROL_RESET, CONTROL_HIGH = 0x02, 0x04, 0x80
DIAGNOSE: Final = 0x90


def place(disks: Sequence[block.Disk]) -> dict[int, block.Disk]:
    """Which of a machine's disks is which drive (0-3): in their order, as far as there is room."""
    placed: dict[int, block.Disk] = {}
    for cdrom, places in ((False, DISK_PLACES), (True, CDROM_PLACES)):
        for disk in disks:
            if disk.spec.bus == "ide" and disk.spec.cdrom == cdrom:
                free = [index for index in places if index not in placed]
                if free:
                    placed[free[0]] = disk
    return placed


class Channel:
    """Two drives on one cable; the control block register is common to both."""

    def __init__(self, drives: Sequence[Drive | None], set_irq: Callable[[bool], None]) -> None:
        self.drives = tuple(drives)
        self._set_irq = set_irq
        self._selected = 0
        self._control = 0
        for drive in self.present:
            drive.on_interrupt = self._update_irq
        self._select(0)

    @property
    def present(self) -> list[Drive]:
        return [drive for drive in self.drives if drive is not None]

    def reset(self) -> None:
        """The reset line."""
        self._control = 0
        self._reset_drives()

    def _reset_drives(self) -> None:
        for drive in self.present:
            drive.reset()
        self._select(0)

    def _select(self, index: int) -> None:
        self._selected = index
        for place, drive in enumerate(self.drives):
            if drive is not None and place != index:
                drive.select(False)
        chosen = self.drives[index]
        if chosen is not None:
            chosen.select(True)
        self._update_irq()

    def _update_irq(self) -> None:
        drive = self.drives[self._selected]
        enabled = not self._control & CONTROL_NO_INTERRUPT
        self._set_irq(drive is not None and drive.interrupt and enabled)

    # ---- the command block

    def read(self, offset: int, size: int) -> int:
        """offset: of a register; only the data port takes more than a byte."""
        drive = self.drives[self._selected]
        if drive is None:  # the other one answers in its place: no status, its own registers (clause 9.16.1)
            if offset in (STATUS, DATA):
                return 0
            drive = self.present[0]
        if offset == DATA:
            return drive.read_data(size)
        if offset == STATUS:
            drive.interrupt = False
            self._update_irq()
        elif offset == DEVICE:
            return drive.registers[DEVICE] | DEVICE_OBSOLETE
        elif offset != ERROR and self._control & CONTROL_HIGH:
            return drive.previous[offset]
        return drive.registers[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        drive = self.drives[self._selected]
        if offset == DATA:
            if drive is not None:
                drive.write_data(size, value)
            return
        self._control &= ~CONTROL_HIGH
        if offset == COMMAND:
            self._command(drive, value)
            return
        for each in self.present:
            each.write_register(offset, value)
        if offset == DEVICE:
            self._select(1 if value & DEVICE_SELECT else 0)

    def _command(self, drive: Drive | None, code: int) -> None:
        if code == DIAGNOSE:  # addressed to both; the first answers, with the register's selection taken back
            for each in self.present:
                each.diagnose()
            self._select(0)
            first = self.drives[0]
            if first is not None:
                first.raise_interrupt()
        elif drive is not None and not self._control & CONTROL_RESET:
            drive.run(code)
            self._update_irq()

    # ---- the control block

    def read_alternate_status(self) -> int:
        """Status, without the effect on the interrupt."""
        drive = self.drives[self._selected]
        return 0 if drive is None else drive.registers[STATUS]

    def write_control(self, value: int) -> None:
        """Device control: SRST acts when it is set; while it is, the drives are busy for a moment that nobody sees."""
        rises = value & CONTROL_RESET and not self._control & CONTROL_RESET
        self._control = value
        if rises:
            self._reset_drives()
        self._update_irq()

    # ---- state

    def save(self) -> dict[str, Any]:
        drives = [None if drive is None else drive.save() for drive in self.drives]
        return {"selected": self._selected, "control": self._control, "drives": drives}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError."""
        selected, control, drives = number(state, "selected", 1), number(state, "control", 0xFF), state["drives"]
        if not isinstance(drives, list) or len(drives) != len(self.drives):
            raise ValueError("another number of drives")
        for drive, saved in zip(self.drives, drives, strict=True):
            if (drive is None) != (saved is None):
                raise ValueError("another set of drives")
        for drive, saved in zip(self.drives, drives, strict=True):
            if drive is not None:
                drive.select(False)
                drive.restore(saved)
        self._control = control
        self._select(selected)


class Ide:
    """The controller, with whatever of the machine's disks is on bus "ide"; none of its ports without one."""

    name: ClassVar[str] = "ide"
    widest: ClassVar[int] = 4

    def __init__(self, machine: Machine) -> None:
        places = place(machine.disks)
        self._channels: dict[int, Channel] = {}  # by first port of the command block
        self._controls: dict[int, Channel] = {}
        for first, (command, control, irq) in enumerate(CHANNELS):
            drives = [self._drive(machine, places.get(2 * first + side), 2 * first + side) for side in (0, 1)]
            if any(drives):
                channel = Channel(drives, lambda level, irq=irq: machine.set_irq(irq, level))  # type: ignore[misc]
                self._channels[command] = self._controls[control] = channel

    @staticmethod
    def _drive(machine: Machine, disk: block.Disk | None, index: int) -> Drive | None:
        if disk is None:
            return None
        make = CdRom if disk.spec.cdrom else Disk
        return make(disk.image, disk.spec.name, machine.board.window(index), CHANNELS[index // 2][0])

    @property
    def ports(self) -> Sequence[range]:
        return (
            *(range(first, first + 8) for first in self._channels),
            *(range(control, control + 1) for control in self._controls),
        )

    def read_port(self, port: int, size: int) -> int:
        channel = self._controls.get(port)
        if channel is not None:
            return channel.read_alternate_status()
        channel, offset = self._channels[port & ~7], port & 7
        if offset == DATA:
            return channel.read(DATA, size)
        # A byte wide all others: an access of more is cut, as on the ISA bus.
        return sum(channel.read((offset + index) & 7, 1) << 8 * index for index in range(size))

    def write_port(self, port: int, size: int, value: int) -> None:
        channel = self._controls.get(port)
        if channel is not None:
            channel.write_control(value)
            return
        channel, offset = self._channels[port & ~7], port & 7
        if offset == DATA:
            channel.write(DATA, size, value)
            return
        for index in range(size):
            channel.write(offset + index, 1, value >> 8 * index & 0xFF)

    def reset(self) -> None:
        for channel in self._channels.values():
            channel.reset()

    def save(self) -> dict[str, Any]:
        return {hex(port): channel.save() for port, channel in self._channels.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, KeyError, TypeError."""
        if len(state) != len(self._channels):
            raise ValueError("another number of channels")
        for port, channel in self._channels.items():
            channel.restore(state[hex(port)])
