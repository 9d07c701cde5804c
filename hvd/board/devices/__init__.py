"""The board's devices in Python, one file each, and the one table of them. The hot ones are in C (hvd/board/native)."""

from __future__ import annotations

from hvd.board.device import DeviceFactory
from hvd.board.devices.acpi_pm import AcpiPm
from hvd.board.devices.cmos import Cmos
from hvd.board.devices.debug_exit import DebugExit
from hvd.board.devices.fw_cfg import FwCfg
from hvd.board.devices.keyboard import Keyboard
from hvd.board.devices.reset_control import ResetControl
from hvd.board.devices.vga import Vga
from hvd.board.hypercall import HypercallPort
from hvd.board.ide.controller import Ide
from hvd.board.pci.bus import PciBus
from hvd.board.pci.slots import pci_bus

# name -> what makes one for a machine. The order is that of the reset line.
DEVICES: dict[str, DeviceFactory] = {
    Cmos.name: Cmos,
    Keyboard.name: Keyboard,
    Vga.name: Vga,
    ResetControl.name: ResetControl,
    AcpiPm.name: AcpiPm,
    Ide.name: Ide,
    PciBus.name: pci_bus,
    FwCfg.name: FwCfg,
    DebugExit.name: DebugExit,
    HypercallPort.name: HypercallPort,
}
