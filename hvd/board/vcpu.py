"""The one interface between a board and a way of executing, shaped like KVM_RUN (Linux Documentation/virt/kvm/api.rst, section 5)."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hvd.errors import HvdError

if TYPE_CHECKING:
    from hvd.board.memory import GuestMemory
    from hvd.board.paravirt import Paravirt

FPU_BYTES = 512  # of FXSAVE's image


class ExitReason(enum.IntEnum):
    """Why run() returned. The values are enum hv_exit_reason of the C side."""

    INTERRUPTED = 0  # kick(); state is canonical: the only exit besides DEBUG at which it may be read, changed or saved
    PORT_IN = 1  # answer with Exit.value before the next run()
    PORT_OUT = 2
    MMIO_READ = 3  # answer with Exit.value before the next run()
    MMIO_WRITE = 4
    HALT = 5  # HLT with interrupts off: nothing will ever wake it (HLT with interrupts on waits inside run())
    HYPERCALL = 6
    SHUTDOWN = 7  # triple fault
    DEBUG = 8  # Exit.value says why (DebugCause); state is canonical
    ERROR = 9  # the backend cannot go on; Exit.detail says why
    CONSOLE_FULL = 10  # drain the console, run again


class DebugCause(enum.IntEnum):
    """What set_debug() asked for and what happened. The values are enum hv_debug_cause of the C side."""

    STEP = 1  # one instruction was executed; of a trap, a fault or a system call RIP is the first one of its handler
    BREAKPOINT = 2  # Exit.address: RIP as a linear address; the instruction there was not executed
    WATCHPOINT = 3  # Exit.address: the watched linear address; the instruction that accessed it was executed


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """A range of linear addresses: the guest's accesses to it stop it. Those of devices do not."""

    address: int
    length: int  # bytes, at least 1
    read: bool
    write: bool


class CensusCommand(enum.IntEnum):
    """What a vcpu that rewrites kernel code is asked. The values are enum hv_census of the cell."""

    COUNT = 1  # from now on the executions of each site are counted, from 0
    COLLECT = 2  # the sites of all code that is translated now
    END = 3  # no counting any more


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Instructions of the guest's kernel that were replaced. sites: struct hv_cell_site one behind the other, as the cell says (hvd.cell.rewritten).
    blocks, pages, instructions: of code that is translated now. complete: False = there were more sites than there is room for."""

    sites: bytes
    blocks: int = 0
    pages: int = 0
    instructions: int = 0
    complete: bool = True


@dataclass(slots=True)
class Exit:
    """One return of Vcpu.run(). Of the PORT_* and MMIO_* kinds: address, size in bytes (1, 2, 4, 8) and value."""

    reason: ExitReason
    address: int = 0
    size: int = 0
    value: int = 0
    rip: int = 0
    start_ns: int = 0  # CLOCK_MONOTONIC at which the guest was left
    flags: int = 0  # of the trace record: FLAG_USER, FLAG_LONG
    detail: str = ""  # of ERROR
    metadata: dict[str, str] = field(default_factory=dict)  # of ERROR: address, bytes, ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part. attributes: bits 8-23 of the descriptor's second word, in place."""

    selector: int
    base: int
    limit: int
    attributes: int


@dataclass(frozen=True, slots=True)
class Shadow:
    """How a page of the guest is mapped in the process that executes it natively. file_offset: in the memory file."""

    view: str
    host_address: int
    mapped: bool = False
    readable: bool = False
    writable: bool = False
    executable: bool = False
    file_offset: int = 0


@dataclass(frozen=True, slots=True)
class EntryState:
    """The vcpu's state at the guest's first instruction, as a loader wants it (Multiboot 1, PVH, Linux boot protocol)."""

    registers: Mapping[str, int]  # eax.. or rax.., eip/rip, eflags; what is missing is 0
    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    segments: Mapping[str, Segment] = field(default_factory=dict)  # cs ds es fs gs ss tr ldtr
    gdt: tuple[int, int] = (0, 0)  # base, limit
    idt: tuple[int, int] = (0, 0)


class Vcpu(ABC):
    """One virtual CPU. Everything but kick() belongs to the thread that calls run()."""

    # As many as set_debug() takes.
    most_breakpoints: int = 1024
    most_watchpoints: int = 64
    # Kernel code is rewritten before it runs: rewritten() says what.
    rewrites: bool = False

    # A pidfd of the process that executes the guest, when that is another one; -1 = it is this one. When it has ended, run()
    # returns ERROR.
    process: int = -1

    @property
    def tsc_stands(self) -> bool:
        """The guest's time stamp counter stands while the board's clock does. At any exit."""
        return True

    @abstractmethod
    def enter(self, state: EntryState) -> None:
        """Set the whole state, for the start and after a reset. At any exit; an access that waits for its answer is dropped."""

    @abstractmethod
    def run(self) -> Exit:
        """Run the guest until something needs the board's Python side."""

    @abstractmethod
    def kick(self) -> None:
        """Make run() return INTERRUPTED soon, even if it is not running yet. Callable from any thread."""

    @abstractmethod
    def registers(self) -> dict[str, int]:
        """All architectural registers by Intel's lower-case names: rax.. r15, rip, rflags, cr0 cr2 cr3 cr4 cr8, efer, cs ds es fs gs
        ss tr ldtr, their `.base` and `.limit`, gdtr.base/.limit, idtr.base/.limit. At any exit."""

    @abstractmethod
    def set_register(self, name: str, value: int) -> None:
        """Change one general register, rip or rflags. Raises KeyError for other names."""

    def set_debug(self, breakpoints: Set[int], watchpoints: Set[Watchpoint], step: bool) -> None:
        """What makes run() return DEBUG from now on, in place of what was asked for before (KVM_SET_GUEST_DEBUG). Breakpoints are
        linear addresses; guest memory is not changed for them, and one at the present RIP stops before the next instruction.
        step: after one instruction, breakpoints aside; interrupts of devices wait meanwhile. The guest's own debug registers
        and TF keep working. At INTERRUPTED, DEBUG or before the first run. Raises HvdError CAPABILITY_MISSING."""
        if breakpoints or watchpoints or step:
            raise HvdError("CAPABILITY_MISSING", backend="this way of executing", capability="debug")

    def fpu(self) -> bytes:
        """x87 and SSE registers as FXSAVE's 512 bytes (SDM vol. 1, 10.5.1). Raises HvdError CAPABILITY_MISSING."""
        raise HvdError("CAPABILITY_MISSING", backend="this way of executing", capability="debug")

    def set_fpu(self, image: bytes) -> None:
        """The reverse. Raises HvdError CAPABILITY_MISSING; ValueError for another length."""
        raise HvdError("CAPABILITY_MISSING", backend="this way of executing", capability="debug")

    def settle(self, user: int, calls: bytes, network: int, mounts: int) -> None:
        """Whose it is, of one that was made before its guest was known (create_ahead() in hvd/backends/NAME/vcpu.py): the guest's user, and of its
        jail the filter of system calls (hvd/jail/seccomp.py) and descriptors of the namespaces. Once, before it runs, when the board has its
        files. Raises OSError when it has ended."""
        raise NotImplementedError("it was not made ahead")

    def shadows(self, linear: int) -> Sequence[Shadow]:
        """How the page of a linear address is mapped by what executes the guest natively; none for other ways. Raises OSError."""
        return ()

    @abstractmethod
    def inject(self, vector: int) -> None:
        """Deliver an external interrupt as soon as the guest takes it (devices of the board use its interrupt lines instead)."""

    @abstractmethod
    def memory_changed(self, address: int, length: int) -> None:
        """The board wrote guest-physical memory (DMA, debugger): drop what was derived from it (translated code)."""

    # What a census of the kernel leaves out: pages (linear addresses) of the ABI's own code, and instructions (hvd.cell.sensitive) that the
    # ABI has native.
    census_pages: frozenset[int] = frozenset()
    census_native: frozenset[str] = frozenset()

    def executed_code(self) -> Sequence[int] | None:
        """Linear addresses at which the guest's kernel was seen to execute; more and more. Any thread. None: this way of executing does not
        need to know, since no sensitive instruction can pass it by (docs/trap.md)."""
        return None

    def neglected(self) -> str:
        """What the guest's kernel has asked for and this way of executing cannot do, for its user; empty: nothing so far. The vcpu thread, after
        an exit."""
        return ""

    def rewritten(self, command: CensusCommand) -> Rewritten:
        """Between two run(), where `rewrites`: do that, then what was rewritten, as of the last COLLECT. Raises HvdError CAPABILITY_MISSING."""
        raise HvdError("CAPABILITY_MISSING", backend=type(self).__name__, capability="census")

    def save(self) -> dict[str, Any]:
        """The whole state at an INTERRUPTED exit, in the form of hvd.board.ia32. Raises HvdError CAPABILITY_MISSING."""
        raise HvdError("CAPABILITY_MISSING", backend=type(self).__name__, capability="snapshot")

    def restore(self, state: dict[str, Any]) -> None:
        """What save() gave, perhaps that of another backend of the same form. At any exit; an access that waits for its
        answer is dropped. Raises ValueError, KeyError, TypeError for what makes no sense, HvdError SNAPSHOT_MISMATCH for
        what this way of executing cannot go on with, CAPABILITY_MISSING."""
        raise HvdError("CAPABILITY_MISSING", backend=type(self).__name__, capability="snapshot")

    def paravirtualise(self, memory: GuestMemory, kernel: Paravirt) -> None:
        """A kernel was loaded that could be paravirtual: make it so; others leave it as it is. Before enter()."""
        del memory, kernel

    def memory_changed_at(self, ranges: Sequence[int]) -> None:
        """memory_changed for many ranges at once: addresses and lengths in turn."""
        for address, length in zip(ranges[::2], ranges[1::2], strict=True):
            self.memory_changed(address, length)

    @abstractmethod
    def close(self) -> None:
        """Free everything. run() must not be active."""
