"""Devices out of a forged snapshot: refused, or safe whatever the guest does next; and out of a true one: as they were."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_bench import Bench
from test_nonsense import accesses

from hvd.board.block.overlay import create_overlay
from hvd.board.spec import DiskSpec, NetworkSpec
from hvd.board.vcpu import Exit, ExitReason

# What restore() may raise, and hvd.snapshot.machine turns into SNAPSHOT_DAMAGED.
REFUSALS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
READS = (ExitReason.PORT_IN, ExitReason.MMIO_READ)


def machine(directory: Path) -> Bench:
    """With a disk and a network card, so that their devices are there."""
    overlay = directory / "overlay"
    create_overlay(overlay, 1 << 20, None)
    disks = (
        DiskSpec(name="disk0", base="", overlay=str(overlay), size_bytes=1 << 20),
    )
    cards = (NetworkSpec(name="net0", network="none", mac_address="52:54:00:00:00:01"),)
    return Bench(directory, [], disks=disks, network_interfaces=cards, restart_on_reset=True)


def use(one: Bench, asked: list[Exit]) -> None:
    """As the machine's loop does it, without its net."""
    for exit_ in asked:
        bus, board = one.machine.bus, one.board
        if exit_.reason in READS:
            read = bus.read_port if exit_.reason is ExitReason.PORT_IN else bus.read_mmio
            assert 0 <= read(exit_.address, exit_.size) < 1 << 8 * exit_.size
        elif exit_.reason is ExitReason.PORT_OUT:
            if not 0x6868 <= exit_.address < 0x6878:  # hypercalls look into the vcpu
                bus.write_port(exit_.address, exit_.size, exit_.value)
        else:
            bus.write_mmio(exit_.address, exit_.size, exit_.value)
        board.console_take()
        one.machine.end = None


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value that is no container, and to every container."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, inner in items for way in leaves(inner, (*path, key)))]


def put(state: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Any]]:
    """Of devices that a guest has done this and that to."""
    with TemporaryDirectory() as name:
        one = machine(Path(name))
        numbers = random.Random(3)
        for _ in range(2000):
            port = numbers.choice([0x60, 0x64, 0x70, 0x71, 0x1F0, 0x1F2, 0x1F6, 0x1F7, 0x3C0, 0x3C4, 0x3D4, 0x3D5, 0xCF8, 0xCFC, 0x510, 0x511])
            use(one, [Exit(ExitReason.PORT_OUT, port, 1, numbers.randrange(256))])
        return {device.name: json.loads(json.dumps(device.save())) for device in one.machine.devices}


def test_true_states_come_back(states: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    one = machine(tmp_path)
    for device in one.machine.devices:
        device.restore(json.loads(json.dumps(states[device.name])))
        assert json.loads(json.dumps(device.save())) == states[device.name], device.name


odd = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.integers(-1, (1 << 65)), st.just(1.5), st.sampled_from(["", "zz", "00", "ff" * 40]),
    st.just([]), st.just({}), st.lists(st.integers(0, 70000), max_size=3),
)  # fmt: skip


def forged_text(text: str, seed: int) -> str:
    """Hex of the same length, or of another one."""
    numbers = random.Random(seed)
    length = len(text) // 2 if numbers.random() < 0.8 else numbers.randrange(600)
    return numbers.randbytes(length).hex()


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_forged_states(states: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(states)))
    state = json.loads(json.dumps(states[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        ways = leaves(state)[1:]
        if not ways:
            break
        way = data.draw(st.sampled_from(ways))
        before = at(state, way)
        by_kind = data.draw(st.booleans())
        if by_kind and isinstance(before, str):
            put(state, way, forged_text(before, data.draw(st.integers(0, 1 << 30))))
        elif by_kind and isinstance(before, int) and not isinstance(before, bool):
            put(state, way, data.draw(st.integers(0, 255) | st.integers(0, (1 << 64) - 1)))
        else:
            put(state, way, data.draw(odd))
    asked = data.draw(st.lists(accesses, max_size=60))
    with TemporaryDirectory() as directory:
        one = machine(Path(directory))
        device = next(device for device in one.machine.devices if device.name == name)
        try:
            device.restore(state)
        except REFUSALS:
            return
        use(one, asked)
        json.dumps(device.save())
