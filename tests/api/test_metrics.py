"""Metrics: what the shared pages and /proc say, as series, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from fake_guests import Host, page, series_of
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hvapi.v1 import guest_pb2, metrics_pb2, metrics_pb2_grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hvd.api.interceptors import CallInterceptor, Streams
from hvd.api.metrics_service import MetricsService
from hvd.api.roles import Role
from hvd.errors import HvdError
from hvd.metrics.meter import CpuSeconds, _divide, _Life, _ProcessTimes
from hvd.trace import counters
from hvd.trace.points import BY_NAME
from tests.api.promtool import check_with_promtool

Guest = guest_pb2.Guest
# What changes between two readings: the first call is in the second's, and the daemon's process goes on.
MOVING = ("hvd_operation", "process_")
PORT_OUT, HALT, LOG = (BY_NAME[name].id for name in ("port-out", "halt", "hypercall.log"))


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Something that burns CPU time, in place of a runner."""
    running = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield running
    running.kill()
    running.wait()


def write_pid_file(host: Host, guest: Guest, pid: int, start_time: int | None = None) -> None:
    if start_time is None:
        start_time = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = {"pid": pid, "start_time": start_time, "boot_id": boot_id}
    (host.root / guest.uid / "pid").write_text(json.dumps(record))


class TestSeries:
    async def test_of_one_guest(self, host: Host) -> None:
        host.add(
            "a",
            page(
                {PORT_OUT: (10, 5000, {1: 9, 11: 1}), LOG: (2, 300, {0: 2}), HALT: (4, 10**9, {10: 4}), 250: (1, 0, {})},
                console_out_bytes=77, console_in_bytes=3, records=12, resets=1, halted_ns=2 * 10**9, instructions=99,
                shadow_pages=7, cache_bytes=4096, callouts=5, chained_jumps=3, looked_up_jumps=2, retranslated_blocks=6,
            ),
            image="images/linux",
        )  # fmt: skip
        host.guests[0].start_time.FromMilliseconds(1_700_000_000_500)
        series = await host.series()
        guest = 'guest="a"'
        expected = {
            f'hvd_guest_info{{backend="emulation",{guest},image="linux",uid="uid-a"}}': 1,
            f"hvd_guest_start_time_seconds{{{guest}}}": 1_700_000_000.5,
            f"hvd_guest_memory_limit_bytes{{{guest}}}": 64 << 20,
            f'hvd_guest_exits_total{{{guest},reason="port-out"}}': 10,
            f'hvd_guest_exits_total{{{guest},reason="hypercall.log"}}': 2,
            f'hvd_guest_exits_total{{{guest},reason="halt"}}': 4,
            f'hvd_guest_exits_total{{{guest},reason="point-250"}}': 1,
            f'hvd_guest_hypercalls_total{{call="log",{guest}}}': 2,
            f'hvd_trace_records_total{{{guest},sink="ring"}}': 12,
            f'hvd_guest_console_bytes_total{{direction="out",{guest}}}': 77,
            f'hvd_guest_console_bytes_total{{direction="in",{guest}}}': 3,
            f"hvd_guest_halted_seconds_total{{{guest}}}": 2,
            f"hvd_guest_resets_total{{{guest}}}": 1,
            f"hvd_guest_instructions_total{{{guest}}}": 99,
            f"hvd_guest_shadow_pages{{{guest}}}": 7,
            f"hvd_guest_translated_code_bytes{{{guest}}}": 4096,
            f"hvd_guest_callouts_total{{{guest}}}": 5,
            f'hvd_guest_translated_jumps_total{{{guest},way="chained"}}': 3,
            f'hvd_guest_translated_jumps_total{{{guest},way="looked-up"}}': 2,
            f"hvd_guest_retranslated_blocks_total{{{guest}}}": 6,
            'hvd_guests{backend="emulation",state="RUNNING"}': 1,
            'hvd_backend_available{backend="emulation"}': 1,
            'hvd_backend_available{backend="kvm"}': 0,
            'hvd_exit_handling_seconds_bucket{backend="emulation",le="2.5e-07",reason="port-out"}': 0,
            'hvd_exit_handling_seconds_bucket{backend="emulation",le="5e-07",reason="port-out"}': 9,
            'hvd_exit_handling_seconds_bucket{backend="emulation",le="0.1",reason="port-out"}': 9,
            'hvd_exit_handling_seconds_bucket{backend="emulation",le="+Inf",reason="port-out"}': 10,
            'hvd_exit_handling_seconds_count{backend="emulation",reason="port-out"}': 10,
            'hvd_exit_handling_seconds_sum{backend="emulation",reason="port-out"}': 5e-6,
        }
        assert {name: series.get(name) for name in expected} == expected
        # How long a HLT lasted is not how long it took to handle it.
        assert not any(name.startswith("hvd_exit_handling") and "halt" in name for name in series)
        assert any(name.startswith("hvd_build_info{") and 'core_version="1.2"' in name for name in series)

    @pytest.mark.parametrize(
        "content", [b"", b"short", bytes(counters.COUNTERS_BYTES), b"\xff" * counters.COUNTERS_BYTES]
    )
    async def test_a_page_that_cannot_be_read_costs_only_its_own_series(self, host: Host, content: bytes) -> None:
        host.add("odd", content)
        host.add("good", page({PORT_OUT: (1, 0, {})}))
        series = await host.series()
        assert 'hvd_guest_exits_total{guest="good",reason="port-out"}' in series
        assert not any("exits" in name and "odd" in name for name in series)
        assert 'hvd_guest_info{backend="emulation",guest="odd",image="",uid="uid-odd"}' in series

    async def test_a_deleted_guest_is_forgotten_although_nobody_asks_for_metrics(self, host: Host) -> None:
        following = asyncio.create_task(host.metrics.follow(host.events))
        await asyncio.sleep(0)
        seen = host.metrics._handling._seen
        guest = host.add("a", page({PORT_OUT: (1, 10, {1: 1})}))
        async with asyncio.timeout(60):
            host.change(guest, Guest.STOPPED)
            while not seen:
                await asyncio.sleep(0.01)
            host.guests.remove(guest)
            host.events.publish(guest_pb2.GuestEvent.DELETED, guest, "deleted")
            while seen:
                await asyncio.sleep(0.01)
        following.cancel()

    async def test_series_of_a_deleted_guest_vanish_at_once(self, host: Host) -> None:
        host.add("a", page({PORT_OUT: (1, 0, {})}))
        assert any('guest="a"' in name for name in await host.series())
        host.guests.clear()
        assert not any('guest="a"' in name for name in await host.series())

    async def test_only_those_of_the_named_guests(self, host: Host) -> None:
        for name in "abc":
            host.add(name, page({PORT_OUT: (1, 0, {})}))
        series = await host.series("guests/a", "c")
        assert series and all('guest="a"' in name or 'guest="c"' in name for name in series)
        with pytest.raises(HvdError) as raised:
            await host.series("a", "nobody")
        assert raised.value.reason == "GUEST_NOT_FOUND"

    async def test_trace_loss(self, host: Host) -> None:
        guest = host.add("a")
        host.metrics.trace_lost(guest.uid, "stream", 5)
        host.metrics.trace_lost(guest.uid, "stream", 2)
        assert (await host.series())['hvd_trace_records_lost_total{guest="a",sink="stream"}'] == 7

    async def test_operations(self, host: Host) -> None:
        host.metrics.observe_operation("/hvd.v1.GuestService/GetGuest", "OK", 0.003)
        labels = 'code="OK",method="hvd.v1.GuestService/GetGuest"'
        series = await host.series()
        assert series[f"hvd_operation_duration_seconds_count{{{labels}}}"] == 1
        assert series['hvd_operation_duration_seconds_bucket{code="OK",le="0.0025",' + labels.split(",")[1] + "}"] == 0
        assert series['hvd_operation_duration_seconds_bucket{code="OK",le="0.005",' + labels.split(",")[1] + "}"] == 1


class TestHandlingTimesNeverShrink:
    COUNT = 'hvd_exit_handling_seconds_count{backend="emulation",reason="port-out"}'

    def timed(self, count: int, start_ns: int = 1) -> bytes:
        return page({PORT_OUT: (count, count * 1000, {2: count})}, start_ns=start_ns)

    async def test_over_guests_that_go(self, host: Host) -> None:
        for name, count in (("a", 3), ("b", 5)):
            host.add(name, self.timed(count))
        assert (await host.series())[self.COUNT] == 8
        gone = host.guests.pop(0)
        for _ in range(2):
            assert (await host.series())[self.COUNT] == 8
        shutil.rmtree(host.root / gone.uid)
        host.add("c", self.timed(1))
        assert (await host.series())[self.COUNT] == 9

    async def test_over_a_guest_that_is_started_anew(self, host: Host) -> None:
        guest = host.add("a", self.timed(10))
        assert (await host.series())[self.COUNT] == 10
        host.write(guest, self.timed(2, start_ns=5))
        assert (await host.series())[self.COUNT] == 12
        host.write(guest, self.timed(4, start_ns=5))
        assert (await host.series())[self.COUNT] == 14

    async def test_what_a_run_counted_last_is_noted_at_its_end(self, host: Host) -> None:
        """Without a scrape between the guest's end and the removal of its page."""
        guest = host.add("a", self.timed(10))
        following = asyncio.create_task(host.metrics.follow(host.events))
        await asyncio.sleep(0)
        assert (await host.series())[self.COUNT] == 10
        host.write(guest, self.timed(11))
        host.change(guest, Guest.STOPPED)
        async with asyncio.timeout(60):
            while host.metrics._handling.sums()["emulation", PORT_OUT].buckets[2] != 11:
                await asyncio.sleep(0.01)
        host.guests.clear()
        assert (await host.series())[self.COUNT] == 11
        following.cancel()


class TestAdoption:
    async def test_adopted_and_lost(self, host: Host) -> None:
        running = host.add("a")
        host.add("b", state=Guest.PAUSED)
        host.add("c", state=Guest.LOST)
        host.add("d", state=Guest.STOPPED)
        host.metrics.adoption_finished()
        following = asyncio.create_task(host.metrics.follow(host.events))
        await asyncio.sleep(0)
        lost = 'hvd_guests_lost_total{backend="emulation"}'
        assert (await host.series())['hvd_guests_adopted_total{backend="emulation"}'] == 2
        assert (await host.series())[lost] == 1
        host.change(running, Guest.LOST)
        host.change(running, Guest.LOST)  # told again is not lost again
        async with asyncio.timeout(60):
            while (await host.series())[lost] != 2:
                await asyncio.sleep(0.01)
        following.cancel()


CPU_MODES = ("guest", "vmm", "system")


class TestProcessTimes:
    async def test_of_a_living_process(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        guest = host.add("a", page({}, run_ns=1), host_pid=process.pid)
        write_pid_file(host, guest, process.pid)
        async with asyncio.timeout(60):
            while (await host.series())['hvd_guest_cpu_seconds_total{guest="a",mode="guest"}'] < 0.05:
                await asyncio.sleep(0.05)
                host.write(guest, page({}, run_ns=time.monotonic_ns()))
        series = await host.series()
        modes = {mode: series[f'hvd_guest_cpu_seconds_total{{guest="a",mode="{mode}"}}'] for mode in CPU_MODES}
        assert sum(modes.values()) < 20 and min(modes.values()) >= 0
        assert 1 << 20 < series['hvd_guest_memory_resident_bytes{guest="a"}'] < 1 << 30
        process.kill()
        process.wait()
        guest.host_pid = 0
        after = await host.series()
        assert after['hvd_guest_cpu_seconds_total{guest="a",mode="guest"}'] >= 0.05
        assert 'hvd_guest_memory_resident_bytes{guest="a"}' not in after

    async def test_a_pid_that_belongs_to_another_by_now(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        guest = host.add("a", host_pid=process.pid)
        write_pid_file(host, guest, process.pid, start_time=1)
        series = await host.series()
        assert series['hvd_guest_cpu_seconds_total{guest="a",mode="vmm"}'] == 0
        assert 'hvd_guest_memory_resident_bytes{guest="a"}' not in series

    def test_no_part_of_the_time_ever_shrinks(self) -> None:
        life = _Life(pid=1, start_time=1)
        seen = [CpuSeconds()]
        # (user time, wall-clock time in the guest): on a busy host the latter runs ahead, then the VMM catches up.
        for user, run in ((1.0, 0.9), (1.0, 1.5), (2.0, 1.6), (2.0, 1.0), (3.0, 9.0), (2.9, 9.5), (4.0, 9.5)):
            _divide(life, _ProcessTimes(user, user / 10, 0), run)
            seen.append(life.cpu)
            assert life.cpu.guest + life.cpu.vmm == pytest.approx(life.user)
        for before, after in itertools.pairwise(seen):
            assert after.guest >= before.guest and after.vmm >= before.vmm and after.system >= before.system
        # One tick of what the board counted may be carried on to the next reading, no more.
        tick = 1 / os.sysconf("SC_CLK_TCK")
        assert seen[-1].guest == pytest.approx(0.9 + 0.1 + tick + 1.0 + tick)
        assert seen[-1].vmm == pytest.approx(4.0 - seen[-1].guest)


class TestPromtool:
    async def test_a_thousand_guests(self, host: Host, record_property: Callable[[str, object], None]) -> None:
        points = {number: (number, 1000, {3: number}) for number in BY_NAME_IDS}
        for number in range(1000):
            host.add(f"g{number}", page(points, run_ns=5, records=1), image="images/linux")
        host.metrics.observe_operation("/hvd.v1.GuestService/GetGuest", "OK", 0.003)
        began = time.perf_counter()
        text = generate_latest(await host.metrics.snapshot())
        seconds = time.perf_counter() - began
        series = series_of(text.decode())
        record_property("scrape_seconds_1000_guests", seconds)
        print(f"1000 guests: {len(series)} series, {len(text)} bytes, {seconds:.3f} s")
        of_one = [name for name in series if 'guest="g7"' in name]
        assert 10 < len(of_one) < 200
        # What is not a guest's own does not grow with their number.
        assert len(series) - 1000 * len(of_one) < 2000
        check_with_promtool(text)

    async def test_of_a_daemon_without_guests(self, host: Host) -> None:
        check_with_promtool(generate_latest(await host.metrics.snapshot()))


BY_NAME_IDS = sorted(point.id for point in BY_NAME.values())


@pytest.fixture
async def stub(host: Host) -> AsyncIterator[metrics_pb2_grpc.MetricsServiceAsyncStub]:
    interceptor = CallInterceptor(Role.VIEW, Streams(), host.metrics.observe_operation)
    server = grpc.aio.server(interceptors=[interceptor])
    metrics_pb2_grpc.add_MetricsServiceServicer_to_server(MetricsService(host.metrics), server)
    address = f"unix:{host.root}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield metrics_pb2_grpc.MetricsServiceStub(channel)
    await server.stop(None)


def reason_of(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None and status.details[0].Unpack(info), error
    return info.reason


def every(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


class TestService:
    async def test_the_same_figures(self, host: Host, stub: metrics_pb2_grpc.MetricsServiceAsyncStub) -> None:
        host.add("a", page({PORT_OUT: (3, 3000, {3: 3})}))
        text = (await stub.GetMetrics(metrics_pb2.GetMetricsRequest(as_text=True), timeout=60)).text
        families = (await stub.GetMetrics(metrics_pb2.GetMetricsRequest(), timeout=60)).families
        types = {family.name: family.type for family in families}
        assert types["hvd_guest_exits"] == "counter" and types["hvd_guests"] == "gauge"
        assert types["hvd_exit_handling_seconds"] == "histogram"
        told = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if not family.name.startswith(MOVING)
        }
        parsed = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not family.name.startswith(MOVING)
        }
        assert told == parsed
        named = await stub.GetMetrics(metrics_pb2.GetMetricsRequest(names=["guests/a"]), timeout=60)
        assert "hvd_build_info" not in {family.name for family in named.families}

    async def test_calls_are_timed(self, host: Host, stub: metrics_pb2_grpc.MetricsServiceAsyncStub) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await stub.GetMetrics(metrics_pb2.GetMetricsRequest(names=["nobody"]), timeout=60)
        assert reason_of(raised.value) == "GUEST_NOT_FOUND"
        labels = 'code="NOT_FOUND",method="hvd.v1.MetricsService/GetMetrics"'
        assert (await host.series())[f"hvd_operation_duration_seconds_count{{{labels}}}"] == 1

    async def test_stats(self, host: Host, stub: metrics_pb2_grpc.MetricsServiceAsyncStub) -> None:
        guest = host.add("a", page({PORT_OUT: (100, 0, {}), LOG: (5, 0, {})}))
        host.add("b")
        lines = aiter(stub.WatchStats(metrics_pb2.WatchStatsRequest(interval=every(0.1)), timeout=30))
        first = await anext(lines)
        assert [stats.name for stats in first.stats] == ["guests/a", "guests/b"]
        a = first.stats[0]
        assert (a.state, a.exits, a.hypercalls, a.exits_per_second) == ("RUNNING", 105, 5, 0)
        assert dict(a.exits_by_kind) == {"port-io": 100, "hypercall": 5}
        assert a.memory_limit_bytes == 64 << 20 and first.time.seconds > 0
        host.write(guest, page({PORT_OUT: (1000, 0, {}), LOG: (5, 0, {})}))
        async with asyncio.timeout(60):
            async for line in lines:
                if line.stats[0].exits == 1005:
                    break
        assert line.stats[0].exits_per_second > 100
        host.write(guest, page({PORT_OUT: (1, 0, {})}, start_ns=9))
        async with asyncio.timeout(60):
            async for line in lines:
                assert line.stats[0].exits_per_second >= 0
                if line.stats[0].exits == 1:
                    break

    async def test_a_guest_that_is_deleted_drops_out(
        self, host: Host, stub: metrics_pb2_grpc.MetricsServiceAsyncStub
    ) -> None:
        host.add("a")
        request = metrics_pb2.WatchStatsRequest(names=["a"], interval=every(0.1))
        lines = aiter(stub.WatchStats(request, timeout=30))
        assert len((await anext(lines)).stats) == 1
        host.guests.clear()
        async with asyncio.timeout(60):
            async for line in lines:
                if not line.stats:
                    break
        assert not (await anext(lines)).stats

    @pytest.mark.parametrize(
        ("request_", "reason"),
        [
            (metrics_pb2.WatchStatsRequest(interval=every(0.05)), "FIELD_INVALID"),
            (metrics_pb2.WatchStatsRequest(interval=every(-1)), "FIELD_INVALID"),
            (metrics_pb2.WatchStatsRequest(names=["nobody"]), "GUEST_NOT_FOUND"),
        ],
    )
    async def test_refused(
        self, stub: metrics_pb2_grpc.MetricsServiceAsyncStub, request_: metrics_pb2.WatchStatsRequest, reason: str
    ) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            await anext(aiter(stub.WatchStats(request_, timeout=60)))
        assert reason_of(raised.value) == reason
