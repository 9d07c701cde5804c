"""What a spare runner makes ready (hvd.runner.spare): a machine like that of the guest that was started last."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from hvd.board.spec import MachineSpec


class Likeness(NamedTuple):
    """kernel and initrd: paths; empty = none, or they are not to be loaded ahead."""

    memory_bytes: int
    engine: str = ""
    kernel: str = ""
    initrd: str = ""
    command_line: str = ""
    flat_load_address: int = 0

    @classmethod
    def of(cls, spec: MachineSpec) -> Self:
        if spec.boot != "kernel" or spec.snapshot:
            return cls(spec.memory_bytes, spec.engine)
        return cls(spec.memory_bytes, spec.engine, spec.kernel, spec.initrd, spec.command_line, spec.flat_load_address)

    def document(self) -> dict[str, Any]:
        """For JSON; made from that again by Likeness(**...)."""
        return self._asdict()

    def spec(self, backend: str) -> MachineSpec:
        return MachineSpec(name="", backend=backend, **self._asdict())

    def strangeness(self, other: Likeness) -> int:
        """How much must be made anew for a guest with another one: the least is the best."""
        return 2 * (self.memory_bytes != other.memory_bytes) + (self[1:] != other[1:])
