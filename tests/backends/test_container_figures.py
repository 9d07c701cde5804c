"""Limits that change, figures and memory of a container, under every runtime."""

from __future__ import annotations

import pytest
from container_harness import ContainerBench

from hvd.backends.container_spec import LimitsSpec
from hvd.errors import HvdError

BUSY = ("sh", "-c", "sleep 1000 & echo up; while :; do :; done")


async def test_limits_change_while_it_runs_and_for_an_adopter(container_bench: ContainerBench) -> None:
    running = await container_bench.start(*BUSY, limits=LimitsSpec(pids=50))
    await running.wrote("up")
    old, new = LimitsSpec(pids=50), LimitsSpec(memory_bytes=48 << 20, pids=40, cpus=0.5)
    await running.instance.update_limits(old, new)
    used = container_bench.backend.usage(running.directory)
    assert used is not None and (used.memory_limit_bytes, used.pids_limit) == (48 << 20, 40)
    await running.instance.close()
    running.instance = await container_bench.backend.adopt(running.directory)
    await running.instance.update_limits(new, LimitsSpec(memory_bytes=24 << 20))
    used = container_bench.backend.usage(running.directory)
    assert used is not None and (used.memory_limit_bytes, used.pids_limit) == (24 << 20, 0)
    assert used.pids == 2 and used.charged_bytes is not None and used.charged_bytes <= 24 << 20
    assert used.networks == {}  # it has but lo
    await running.instance.kill()
    assert container_bench.backend.usage(running.directory) is None
    with pytest.raises(HvdError) as error:
        await running.instance.update_limits(old, new)
    assert error.value.reason == "RUNNER_GONE"


async def test_the_memory_of_its_processes(container_bench: ContainerBench) -> None:
    running = await container_bench.start(*BUSY)
    await running.wrote("up")
    instance = running.instance
    found = await instance.memory_map()
    pids = {region.pid for region in found.regions}
    assert instance.pid in pids and len(pids) == 2 and found.charged_bytes > 0 and found.limit_bytes == 0
    one = await instance.memory_map(instance.pid)
    assert {region.pid for region in one.regions} == {instance.pid}
    text = next(region for region in one.regions if region.owner.endswith("/busybox") and region.file_offset == 0)
    assert text.resident_bytes > 0 and text.permissions.startswith("r")
    for pid in pids:
        assert await instance.read_memory(text.start, 4, True, pid) == b"\x7fELF"
    frames = {(await instance.translate(text.start, pid)).physical_address for pid in (*pids, 0)}
    assert len(frames) == 1 and frames != {0}
    with pytest.raises(HvdError) as error:
        await instance.read_memory((1 << 64) - 8, 8, True)
    assert error.value.reason == "ADDRESS_UNMAPPED"
    assert "no mapping" in (await instance.translate((1 << 64) - 8)).fault
    for stranger in (1, int(instance.facts["monitor_pid"]), 1 << 22):
        with pytest.raises(HvdError) as error:
            await instance.read_memory(text.start, 4, True, stranger)
        assert (error.value.reason, error.value.metadata["field"]) == ("FIELD_INVALID", "pid")
    await instance.kill()
    with pytest.raises(HvdError) as error:
        await instance.read_memory(text.start, 4, True)
    assert error.value.reason == "FIELD_INVALID"
