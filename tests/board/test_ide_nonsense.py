"""Whatever a guest does to the IDE controller, the controller answers; and what was saved at any moment goes on."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from ide_rig import CONTROL, DEVICE, MID, PRIMARY, SECONDARY, STATUS, MemoryImage, Rig, numbered

from hvd.board.ide.cdrom import COMMANDS as CDROM_COMMANDS
from hvd.board.ide.cdrom import OPERATIONS
from hvd.board.ide.disk import COMMANDS

ports = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from([PRIMARY, SECONDARY]),
    st.sampled_from([0, 0, *range(8), CONTROL]),
)
sizes = st.sampled_from([1, 2, 4])
read = st.tuples(st.just("read"), ports, sizes, st.integers(1, 600))
write = st.tuples(st.just("write"), ports, sizes, st.integers(0, 0xFFFFFFFF))
codes = st.sampled_from(sorted({*COMMANDS, *CDROM_COMMANDS, 0x90}))
command = st.tuples(st.just("command"), st.sampled_from([PRIMARY, SECONDARY]), st.booleans(), codes)
packet = st.tuples(
    st.just("packet"),
    st.integers(0, 0xFFFF),
    st.just(1),
    st.builds(
        lambda code, rest: bytes((code, *rest)), st.sampled_from(sorted(OPERATIONS)), st.binary(min_size=11, max_size=11)
    ),
)
steps = st.lists(st.one_of(read, write, command, packet), max_size=60)


def play(rig: Rig, asked: list[tuple]) -> list[int]:
    """Everything that was read."""
    seen = []
    for kind, place, size, value in asked:
        if kind == "read":
            for _ in range(value):
                seen.append(rig.read(place, size))
                assert 0 <= seen[-1] < 1 << 8 * size
        elif kind == "write":
            rig.write(place, value & (1 << 8 * size) - 1, size)
        elif kind == "command":
            rig.write(place + DEVICE, 0xE0 | (0x10 if size else 0))
            rig.write(place + STATUS, value)
        else:
            rig.write(SECONDARY + DEVICE, 0xA0)
            rig.write(SECONDARY + MID, place & 0xFF)
            rig.write(SECONDARY + MID + 1, place >> 8)
            rig.write(SECONDARY + STATUS, 0xA0)
            rig.data_out(SECONDARY, value)
    return seen


def make() -> Rig:
    broken = MemoryImage(numbered(300))
    broken.broken = {1, 50, 299}
    return Rig(
        broken, MemoryImage(numbered(1), read_only=True), cdroms=[MemoryImage(bytes(range(256)) * 80), MemoryImage(b"")]
    )


@settings(max_examples=150, deadline=None)
@given(steps, steps)
def test_anything(before: list[tuple], after: list[tuple]) -> None:
    rig = make()
    play(rig, before)
    state = json.loads(json.dumps(rig.ide.save()))
    other = make()
    for old, new in zip(rig.machine.disks, other.machine.disks, strict=True):
        new.image.content[:] = old.image.content
    other.ide.restore(state)
    assert other.ide.save() == state
    assert play(rig, after) == play(other, after)
    assert rig.ide.save() == other.ide.save()
