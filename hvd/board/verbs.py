"""What is asked of a running machine: pausing, ending, memory. All of it in the vcpu thread, through Machine.call()."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from hvd.board.devices.acpi_pm import AcpiPm
from hvd.board.end import End
from hvd.board.hot import HotBoard
from hvd.board.memory import GuestMemory, Region
from hvd.board.paging import AddressSpace, Translation
from hvd.board.vcpu import Exit, Vcpu
from hvd.errors import HvdError

READ_MOST: Final = 1 << 20

D = TypeVar("D")


class Holder(Protocol):
    """Who has the guest's breakpoints and steps: a debugger (hvd.debug), or who counts by them. In the vcpu thread."""

    def exited(self, exit_: Exit) -> None:
        """run() returned DEBUG."""

    def paused(self) -> None:
        """Somebody paused the machine."""

    def check_resume(self) -> None:
        """Somebody wants the machine to go on. Raises HvdError DEBUGGER_ATTACHED when it stands for this one."""


class Verbs(ABC):
    """The part of Machine that is this; see there for what the attributes mean."""

    board: HotBoard
    memory: GuestMemory
    vcpu: Vcpu
    state: str
    debugger: Holder | None
    _paused: bool
    _on_change: Callable[[], None]

    @abstractmethod
    def finish(self, end: End) -> None: ...

    @abstractmethod
    def device(self, kind: type[D]) -> D: ...

    @abstractmethod
    def _set_state(self, state: str) -> None: ...

    @abstractmethod
    def _error(self, exit_: Exit) -> None: ...

    def process_ended(self) -> None:
        """The process that executes the guest has ended, as a running vcpu notices by itself and one that stands does not."""
        if self._paused:
            self._error(self.vcpu.run())

    def pause(self) -> None:
        """Stop the vcpu and the guest's clock; no error when it is paused."""
        if not self._paused:
            self._paused = True
            self.board.stop_clock()
            if self.state != "PAUSED":
                self._set_state("PAUSED")
            if self.debugger is not None:
                self.debugger.paused()

    def resume(self) -> None:
        """Go on; no error when it runs. Raises HvdError DEBUGGER_ATTACHED while a debugger holds it."""
        if self.debugger is not None:
            self.debugger.check_resume()
        self.go_on()

    def go_on(self, *, as_paused: bool = False) -> None:
        """resume() by whoever may. as_paused: for a moment only, nobody shall be told."""
        if self._paused:
            self._paused = False
            self.board.start_clock()
        if not as_paused and self.state == "PAUSED":
            self._set_state("RUNNING")

    def set_debugger(self, debugger: Holder | None) -> None:
        """A debugger comes or leaves; it sees to what that means."""
        self.debugger = debugger
        self._on_change()

    def power_button(self) -> bool:
        """Press it. False: the guest does not listen to it."""
        return self.device(AcpiPm).press_power_button()

    def kill(self) -> None:
        """End at once."""
        self.finish(End("KILLED", "killed"))

    def read_memory(self, address: int, length: int, virtual: bool) -> bytes:
        """At most 1 MiB. Raises HvdError REQUEST_INVALID, ADDRESS_OUTSIDE, ADDRESS_UNMAPPED."""
        _check_length(length)
        if virtual:
            return self.address_space().read(address, length)
        return self.memory.read(address, length)

    def write_memory(self, address: int, data: bytes, virtual: bool) -> None:
        """Like read_memory; on an error nothing was written."""
        _check_length(len(data))
        if virtual:
            changed = self.address_space().write(address, data)
        else:
            self.memory.write(address, data)
            changed = [(address, len(data))]
        for start, length in changed:
            self.vcpu.memory_changed(start, length)

    def regions(self) -> list[Region]:
        """The guest-physical address space."""
        return self.memory.regions()

    def translate(self, address: int) -> Translation:
        """Guest-virtual to guest-physical by the vcpu's present page tables."""
        return self.address_space().translate(address)

    def address_space(self) -> AddressSpace:
        """Guest-virtual memory at this moment."""
        return AddressSpace(self.memory, self.vcpu.registers())


def _check_length(length: int) -> None:
    if length > READ_MOST:
        raise HvdError(
            "REQUEST_INVALID", problem=f"{length} bytes at once are too many", remedy=f"ask for at most {READ_MOST}"
        )
