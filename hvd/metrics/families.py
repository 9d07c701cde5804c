"""The series, made of readings: names, help and labels. docs/metrics.md lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from hvd.metrics.crossings import Handling, Key
from hvd.metrics.devices import device_families
from hvd.metrics.meter import Reading
from hvd.metrics.usage import usage_families
from hvd.trace.counters import BUCKET_NS
from hvd.trace.points import Kind, Point

# Trace points of a backend, by number.
Points = Callable[[str], Mapping[int, Point]]


def reason_of(points: Points, backend: str, number: int) -> str:
    """The label of a trace point; one without a name keeps its number."""
    point = points(backend).get(number)
    return point.name if point else f"point-{number}"


def kind_of(points: Points, backend: str, number: int) -> str:
    point = points(backend).get(number)
    return point.kind.label if point else "unknown"


def guest_families(readings: Sequence[Reading], points: Points) -> Iterable[Metric]:
    """The series that carry the label `guest`."""
    yield _info(readings)
    start = GaugeMetricFamily(
        "hvd_guest_start_time_seconds", "Start of the guest since the Unix epoch.", labels=["guest"]
    )
    cpu = CounterMetricFamily(
        "hvd_guest_cpu_seconds",
        "Host CPU time of the guest's process or processes: executing the guest, in the VMM's user code, in the host's kernel.",
        labels=["guest", "mode"],
    )
    resident = GaugeMetricFamily(
        "hvd_guest_memory_resident_bytes", "Resident memory of the guest's process or processes.", labels=["guest"]
    )
    limit = GaugeMetricFamily("hvd_guest_memory_limit_bytes", "Guest-physical RAM; of a container, its limit, if it has one.", labels=["guest"])
    for reading in readings:
        name = reading.guest.name
        if reading.guest.start_seconds:
            start.add_metric([name], reading.guest.start_seconds)
        for mode, seconds in (
            ("guest", reading.cpu.guest),
            ("vmm", reading.cpu.vmm),
            ("system", reading.cpu.system),
        ):
            if mode != "vmm" or reading.usage is None:  # a container has none
                cpu.add_metric([name, mode], seconds)
        if reading.resident is not None:
            resident.add_metric([name], reading.resident)
        if reading.memory_limit:
            limit.add_metric([name], reading.memory_limit)
    yield from (start, cpu, resident, limit)
    yield from _crossing_families(readings, points)
    yield from _page_families(readings)
    yield from device_families(readings)
    yield from usage_families(readings)


def _info(readings: Sequence[Reading]) -> Metric:
    info = GaugeMetricFamily(
        "hvd_guest_info",
        "What the guest is; a new uid is another guest of the same name.",
        labels=["guest", "uid", "backend", "image"],
    )
    for reading in readings:
        guest = reading.guest
        info.add_metric([guest.name, guest.uid, guest.backend, guest.image], 1)
    return info


def _crossing_families(readings: Sequence[Reading], points: Points) -> Iterable[Metric]:
    exits = CounterMetricFamily(
        "hvd_guest_exits", "Crossings from the guest to the hypervisor.", labels=["guest", "reason"]
    )
    calls = CounterMetricFamily(
        "hvd_guest_hypercalls", "Hypercalls of the guest; its exits count them too.", labels=["guest", "call"]
    )
    for reading in readings:
        guest, counters = reading.guest, reading.counters
        for number, counter in counters.points.items() if counters else ():
            reason = reason_of(points, guest.backend, number)
            exits.add_metric([guest.name, reason], counter.count)
            point = points(guest.backend).get(number)
            if point is not None and point.kind is Kind.HYPERCALL:
                calls.add_metric([guest.name, reason.removeprefix("hypercall.")], counter.count)
    return exits, calls


def _page_families(readings: Sequence[Reading]) -> Iterable[Metric]:
    """Plain figures of the counters page."""
    records = CounterMetricFamily(
        "hvd_trace_records", "Trace records that the guest's board wrote, by where to.", labels=["guest", "sink"]
    )
    console = CounterMetricFamily(
        "hvd_guest_console_bytes", "Bytes that the guest wrote to (out) and read from (in) its console.",
        labels=["guest", "direction"],
    )  # fmt: skip
    halted = CounterMetricFamily(
        "hvd_guest_halted_seconds", "Time that the guest spent waiting in HLT.", labels=["guest"]
    )
    resets = CounterMetricFamily("hvd_guest_resets", "Resets of the guest's machine.", labels=["guest"])
    instructions = CounterMetricFamily(
        "hvd_guest_instructions", "Guest instructions executed, where the backend counts them.", labels=["guest"]
    )
    shadows = GaugeMetricFamily(
        "hvd_guest_shadow_pages", "Pages of the guest that are mapped in the process that runs it natively.", labels=["guest"]
    )
    cache = GaugeMetricFamily("hvd_guest_translated_code_bytes", "Translated code of the guest's kernel.", labels=["guest"])
    callouts = CounterMetricFamily(
        "hvd_guest_callouts", "Calls into the monitor without a trap: of translated code, or of the paravirtual ABI.", labels=["guest"]
    )
    jumps = CounterMetricFamily(
        "hvd_guest_translated_jumps", "Jumps between translated blocks that were chained, and indirect ones that no table knew.",
        labels=["guest", "way"],
    )  # fmt: skip
    again = CounterMetricFamily(
        "hvd_guest_retranslated_blocks", "Blocks of code that had been translated before: it, or its mapping, has changed, or the cache was full.",
        labels=["guest"],
    )  # fmt: skip
    for reading in readings:
        name, counters = reading.guest.name, reading.counters
        if counters is None:
            continue
        if counters.shadow_pages:
            shadows.add_metric([name], counters.shadow_pages)
        if counters.cache_bytes:
            cache.add_metric([name], counters.cache_bytes)
            jumps.add_metric([name, "chained"], counters.chained_jumps)
            jumps.add_metric([name, "looked-up"], counters.looked_up_jumps)
            again.add_metric([name], counters.retranslated_blocks)
        if counters.callouts:
            callouts.add_metric([name], counters.callouts)
        records.add_metric([name, "ring"], counters.records)
        console.add_metric([name, "out"], counters.console_out_bytes)
        console.add_metric([name, "in"], counters.console_in_bytes)
        halted.add_metric([name], counters.halted_ns / 1e9)
        resets.add_metric([name], counters.resets)
        if counters.instructions:
            instructions.add_metric([name], counters.instructions)
    return records, console, halted, resets, instructions, shadows, cache, callouts, jumps, again


def daemon_families(
    readings: Sequence[Reading],
    sums: Mapping[Key, Handling],
    available: Mapping[str, bool],
    build: Mapping[str, str],
    points: Points,
) -> Iterable[Metric]:
    """The series about everything together."""
    info = GaugeMetricFamily("hvd_build_info", "The daemon's build.", labels=list(build))
    info.add_metric(list(build.values()), 1)
    backends = GaugeMetricFamily(
        "hvd_backend_available", "1 = guests of this backend can run here.", labels=["backend"]
    )
    for name, is_available in available.items():
        backends.add_metric([name], is_available)
    guests = GaugeMetricFamily("hvd_guests", "Guests there are.", labels=["backend", "state"])
    for (backend, state), count in Counter((each.guest.backend, each.guest.state) for each in readings).items():
        guests.add_metric([backend, state], count)
    return info, backends, guests, _handling_family(sums, points)


def _handling_family(sums: Mapping[Key, Handling], points: Points) -> Metric:
    handling = HistogramMetricFamily(
        "hvd_exit_handling_seconds",
        "Time the hypervisor took to handle crossings, over all guests there were. HLT is not among them.",
        labels=["backend", "reason"],
    )
    bounds = [*(f"{bound / 1e9:g}" for bound in BUCKET_NS), "+Inf"]
    for (backend, number), timed in sorted(sums.items()):
        cumulative, buckets = 0, []
        for bound, count in zip(bounds, timed.buckets, strict=True):
            cumulative += count
            buckets.append((bound, float(cumulative)))
        handling.add_metric([backend, reason_of(points, backend, number)], buckets, sum_value=timed.total_ns / 1e9)
    return handling
