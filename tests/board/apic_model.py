"""Local APIC and IOAPIC once more, from the manuals and as plain as possible: what the C model is compared with. Without the timer."""

from __future__ import annotations

from dataclasses import dataclass, field

MASKED, LEVEL, REMOTE_IRR, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11
LVT = (0x320, 0x330, 0x340, 0x350, 0x360, 0x370)
LVT_BITS = {0x320: 0x700FF, 0x330: 0x107FF, 0x340: 0x107FF, 0x350: 0x1A7FF, 0x360: 0x1A7FF, 0x370: 0x100FF}


@dataclass
class LocalApic:
    id: int = 0
    tpr: int = 0
    ldr: int = 0
    dfr: int = 0xFFFFFFFF
    svr: int = 0xFF
    icr: int = 0
    icr_high: int = 0
    esr: int = 0
    errors: int = 0
    requested: set[int] = field(default_factory=set)
    in_service: set[int] = field(default_factory=set)
    by_level: set[int] = field(default_factory=set)
    lvt: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LVT, MASKED) | {0x350: 0x700, 0x360: 0x400})

    @property
    def on(self) -> bool:
        return bool(self.svr & 0x100)

    @property
    def priority(self) -> int:
        top = max(self.in_service, default=0) & 0xF0
        return self.tpr if self.tpr & 0xF0 >= top else top

    def peek(self) -> int | None:
        top = max(self.requested, default=None)
        if not self.on or top is None or top & 0xF0 <= self.priority & 0xF0:
            return None
        return top

    def acknowledge(self) -> int:
        vector = self.peek()
        if vector is None:
            return self.svr & 0xFF
        self.requested.remove(vector)
        self.in_service.add(vector)
        return vector

    def is_meant(self, destination: int, logical: bool) -> bool:
        if not logical:
            return destination in (0xFF, self.id)
        own = self.ldr >> 24
        if self.dfr >> 28 == 0xF:
            return bool(destination & own)
        return destination >> 4 in (0xF, own >> 4) and bool(destination & own & 0xF)

    def deliver(self, mode: int, vector: int, level: bool) -> bool:
        if mode == 4:
            return True
        if not self.on or mode > 1:
            return False
        if vector < 16:
            self.report(0x40)
            return False
        self.requested.add(vector)
        (self.by_level.add if level else self.by_level.discard)(vector)
        return True

    def report(self, error: int) -> None:
        news = error & ~self.errors
        self.errors |= error
        entry = self.lvt[0x370]
        if news and not entry & MASKED and entry & 0xFF >= 16:
            self.deliver(0, entry & 0xFF, False)

    def send(self) -> None:
        mode, vector, shorthand = self.icr >> 8 & 7, self.icr & 0xFF, self.icr >> 18 & 3
        if mode < 2 and vector < 16:
            self.report(0x20)
        if shorthand in (1, 2) or (not shorthand and self.is_meant(self.icr_high >> 24, bool(self.icr & LOGICAL))):
            self.deliver(mode, vector, False)

    def read(self, offset: int) -> int:
        sets = {0x100: self.in_service, 0x180: self.by_level, 0x200: self.requested}
        for base, members in sets.items():
            if base <= offset < base + 0x80:
                word = (offset - base) // 16
                return sum(1 << vector % 32 for vector in members if vector // 32 == word)
        values = {
            0x20: self.id << 24, 0x30: 0x50014, 0x80: self.tpr, 0x90: 0, 0xA0: self.priority, 0xB0: 0, 0xC0: 0, 0xD0: self.ldr,
            0xE0: self.dfr, 0xF0: self.svr, 0x280: self.esr, 0x300: self.icr, 0x310: self.icr_high,
        }  # fmt: skip
        if offset in values:
            return values[offset]
        if offset in self.lvt:
            return self.lvt[offset]
        self.report(0x80)
        return 0

    def write(self, offset: int, value: int) -> int | None:
        """The vector whose end the IOAPIC hears of."""
        if offset == 0xB0:
            vector = max(self.in_service, default=None)
            self.in_service.discard(-1 if vector is None else vector)
            return vector if vector in self.by_level else None
        if offset in self.lvt:
            self.lvt[offset] = value & LVT_BITS[offset] | (0 if self.on else MASKED)
        elif offset == 0x20:
            self.id = value >> 24
        elif offset == 0x80:
            self.tpr = value & 0xFF
        elif offset == 0xD0:
            self.ldr = value & 0xFF000000
        elif offset == 0xE0:
            self.dfr = value | 0x0FFFFFFF
        elif offset == 0xF0:
            self.svr = value & 0x3FF
            if not self.on:
                self.lvt = {at: entry | MASKED for at, entry in self.lvt.items()}
        elif offset == 0x280:
            self.esr, self.errors = self.errors, 0
        elif offset == 0x300:
            self.icr = value & 0xCCFFF
            self.send()
        elif offset == 0x310:
            self.icr_high = value & 0xFF000000
        elif offset not in (0x30, 0x90, 0xA0, 0xC0) and not 0x100 <= offset < 0x280:
            self.report(0x80)
        return None


class Apics:
    """Both, with the wiring between them."""

    def __init__(self) -> None:
        self.local = LocalApic()
        self.entries = [MASKED] * 24
        self.lines = [False] * 24
        self.index = self.id = 0

    def request(self, pin: int) -> None:
        entry = self.entries[pin]
        if entry & MASKED or (entry & LEVEL and entry & REMOTE_IRR):
            return
        if not self.local.is_meant(entry >> 56, bool(entry & LOGICAL)):
            return
        if self.local.deliver(entry >> 8 & 7, entry & 0xFF, bool(entry & LEVEL)) and entry & LEVEL:
            self.entries[pin] |= REMOTE_IRR

    def set_line(self, gsi: int, level: bool) -> None:
        if gsi == 2:
            return
        pin = gsi or 2
        was, self.lines[pin] = self.lines[pin], level
        if level and (not was or self.entries[pin] & LEVEL):
            self.request(pin)

    def msi(self, address: int, data: int) -> None:
        if address >> 20 == 0xFEE and self.local.is_meant(address >> 12 & 0xFF, bool(address & 4)):
            self.local.deliver(data >> 8 & 7, data & 0xFF, bool(data & LEVEL))

    def retry(self) -> None:
        for pin, entry in enumerate(self.entries):
            if self.lines[pin] and entry & LEVEL:
                self.request(pin)

    def write_local(self, offset: int, value: int) -> None:
        was_on = self.local.on
        ended = self.local.write(offset, value)
        if ended is not None:
            for pin, entry in enumerate(self.entries):
                if entry & 0xFF == ended and entry & LEVEL:
                    self.entries[pin] &= ~REMOTE_IRR
                    if self.lines[pin]:
                        self.request(pin)
        if self.local.on and not was_on:
            self.retry()

    def read_io(self) -> int:
        if self.index in (0, 2):
            return self.id << 24
        if self.index == 1:
            return 0x170011
        if not 0x10 <= self.index < 0x40:
            return 0
        entry = self.entries[(self.index - 0x10) // 2]
        return entry >> 32 if self.index & 1 else entry & 0xFFFFFFFF

    def write_io(self, value: int) -> None:
        if self.index == 0:
            self.id = value >> 24 & 15
        if not 0x10 <= self.index < 0x40:
            return
        pin = (self.index - 0x10) // 2
        entry = self.entries[pin]
        high, low = entry & ~0xFFFFFFFF, entry & 0xFFFFFFFF
        if self.index & 1:
            high = (value & 0xFF000000) << 32
        else:
            low = value & 0x1AFFF | entry & REMOTE_IRR
        entry = high | low
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR
        self.entries[pin] = entry
        if self.lines[pin] and entry & LEVEL:
            self.request(pin)
