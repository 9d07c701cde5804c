"""The 8259A pair once more, from its data sheet and as plain as possible: what the C model is compared with."""

from __future__ import annotations


class Chip:
    def __init__(self, vector_base: int) -> None:
        self.lines = [False] * 8
        self.request = [False] * 8
        self.service: set[int] = set()
        self.masked = set(range(8))
        self.level = [False] * 8
        self.base = vector_base
        self.expect: list[str] = []
        self.order = list(range(8))  # descending priority
        self.auto_eoi = self.rotate_auto = self.special_mask = self.nested = self.poll = self.show_service = False

    def set_line(self, n: int, level: bool) -> None:
        if not level:
            self.request[n] = False
        elif self.level[n] or not self.lines[n]:
            self.request[n] = True
        self.lines[n] = level

    def rotate(self, n: int) -> None:
        """n becomes the lowest."""
        while self.order[-1] != n:
            self.order.append(self.order.pop(0))

    def blocking(self) -> set[int]:
        return self.service - self.masked if self.special_mask else set(self.service)

    def winner(self, cascade: int | None = None) -> int | None:
        if self.expect:
            return None
        busy = self.blocking()
        for n in self.order:
            if self.request[n] and n not in self.masked:
                return n if n not in busy or (n == cascade and self.nested) else None
            if n in busy and not (n == cascade and self.nested and self.request[n] and n not in self.masked):
                return None
        return None

    def take(self, n: int) -> None:
        if not self.level[n]:
            self.request[n] = False
        if not self.auto_eoi:
            self.service.add(n)
        elif self.rotate_auto:
            self.rotate(n)

    def command(self, value: int) -> None:
        if value & 0x10:
            self.request = [line and level for line, level in zip(self.lines, self.level, strict=True)]
            self.service, self.masked, self.order = set(), set(), list(range(8))
            self.auto_eoi = self.rotate_auto = self.special_mask = self.nested = self.poll = self.show_service = False
            self.expect = ["icw2"] + ([] if value & 2 else ["icw3"]) + (["icw4"] if value & 1 else [])
        elif value & 8:
            self.poll = bool(value & 4)
            if value & 2:
                self.show_service = bool(value & 1)
            if value & 0x40:
                self.special_mask = bool(value & 0x20)
        else:
            self.ocw2(value >> 5, value & 7)

    def ocw2(self, operation: int, level: int) -> None:
        if operation in (0, 4):
            self.rotate_auto = operation == 4
        elif operation == 6:
            self.rotate(level)
        elif operation in (1, 5):
            first = next((n for n in self.order if n in self.blocking()), None)
            if first is not None:
                self.service.discard(first)
                if operation == 5:
                    self.rotate(first)
        elif operation in (3, 7):
            self.service.discard(level)
            if operation == 7:
                self.rotate(level)

    def data(self, value: int) -> None:
        step = self.expect.pop(0) if self.expect else "ocw1"
        if step == "ocw1":
            self.masked = {n for n in range(8) if value >> n & 1}
        elif step == "icw2":
            self.base = value & 0xF8
        elif step == "icw4":
            self.auto_eoi, self.nested = bool(value & 2), bool(value & 16)

    def set_levels(self, value: int) -> None:
        for n in range(8):
            level = bool(value >> n & 1)
            if level != self.level[n]:
                self.level[n] = level
                self.request[n] = level and self.lines[n]


class Pair:
    def __init__(self) -> None:
        self.master, self.slave = Chip(0x08), Chip(0x70)
        for n in (1, 2, 3):  # the board's reset: SCI and PCI
            self.slave.level[n] = True

    def refresh(self) -> None:
        self.master.set_line(2, self.slave.winner() is not None)

    def set_line(self, irq: int, level: bool) -> None:
        if irq < 8 and irq != 2:
            self.master.set_line(irq, level)
        elif 8 <= irq < 16:
            self.slave.set_line(irq - 8, level)
            self.refresh()

    def peek(self) -> int | None:
        n = self.master.winner(2)
        if n is None:
            return None
        if n != 2:
            return self.master.base + n
        inner = self.slave.winner()
        return self.slave.base + (7 if inner is None else inner)

    def acknowledge(self) -> int:
        n = self.master.winner(2)
        if n is None:
            return self.master.base + 7
        self.master.take(n)
        if n != 2:
            return self.master.base + n
        inner = self.slave.winner()
        if inner is None:
            return self.slave.base + 7
        self.slave.take(inner)
        self.master.set_line(2, False)
        self.refresh()
        return self.slave.base + inner

    def write(self, port: int, value: int) -> None:
        chip = self.slave if port in (0xA0, 0xA1, 0x4D1) else self.master
        if port in (0x20, 0xA0):
            chip.command(value)
        elif port in (0x21, 0xA1):
            chip.data(value)
        else:
            chip.set_levels(value & (0xDE if chip is self.slave else 0xF8))
        self.refresh()

    def read(self, port: int) -> int:
        chip = self.slave if port in (0xA0, 0xA1, 0x4D1) else self.master
        if port >= 0x4D0:
            return sum(1 << n for n in range(8) if chip.level[n])
        if chip.poll:
            chip.poll = False
            n = chip.winner(2 if chip is self.master else None)
            if n is None:
                return 0
            chip.take(n)
            if chip is self.slave:
                self.master.set_line(2, False)
            self.refresh()
            return 0x80 | n
        if port & 1:
            return sum(1 << n for n in chip.masked)
        if chip.show_service:
            return sum(1 << n for n in chip.service)
        return sum(1 << n for n in range(8) if chip.request[n])
