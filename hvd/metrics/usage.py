"""The series of guests whose backend measures them by control groups. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from hvd.backends.usage import Usage
from hvd.metrics.meter import Reading

# Series -> (help, value; None = not told).
_GAUGES: dict[str, tuple[str, Callable[[Usage], float | None]]] = {
    "hvd_guest_memory_charged_bytes": (
        "Memory that the guest is charged for: its processes', page cache, the kernel's for it.",
        lambda used: used.charged_bytes,
    ),
    "hvd_guest_pids": ("Processes and threads of the guest.", lambda used: used.pids),
    "hvd_guest_pids_limit": ("Most processes and threads that it may have.", lambda used: used.pids_limit or None),
}
_COUNTERS: dict[str, tuple[str, Callable[[Usage], float]]] = {
    "hvd_guest_oom_kills": (
        "Processes of the guest that the kernel killed for want of memory.",
        lambda used: used.effects.oom_kills,
    ),
    "hvd_guest_memory_limit_hits": (
        "Times that the guest's memory was at its limit.",
        lambda used: used.effects.memory_limit_hits,
    ),
    "hvd_guest_pids_limit_hits": (
        "Forks refused because of the guest's limit of processes.",
        lambda used: used.effects.pids_limit_hits,
    ),
    "hvd_guest_cpu_throttled_periods": (
        "Periods in which the guest had used up its CPU time.",
        lambda used: used.effects.cpu_throttled_periods,
    ),
    "hvd_guest_cpu_throttled_seconds": (
        "Time that the guest's CPUs were held back.",
        lambda used: used.effects.cpu_throttled_seconds,
    ),
}
_RESOURCES = ("cpu", "memory", "io")


def usage_families(readings: Sequence[Reading]) -> Iterable[Metric]:
    used = [(reading.guest.name, reading.usage) for reading in readings if reading.usage is not None]
    for name, (text, gauge_of) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["guest"])
        for guest, usage in used:
            if (value := gauge_of(usage)) is not None:
                gauge.add_metric([guest], value)
        yield gauge
    for name, (text, counter_of) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["guest"])
        for guest, usage in used:
            counter.add_metric([guest], counter_of(usage))
        yield counter
    for resource in _RESOURCES:
        yield from _pressure(resource, used)


def _pressure(resource: str, used: Sequence[tuple[str, Usage]]) -> Iterable[Metric]:
    """A name each, as cAdvisor has it: their sum would mean nothing."""
    waiting = CounterMetricFamily(
        f"hvd_guest_pressure_{resource}_waiting_seconds",
        f"Time in which some tasks of the guest waited for {resource}.",
        labels=["guest"],
    )
    stalled = CounterMetricFamily(
        f"hvd_guest_pressure_{resource}_stalled_seconds",
        f"Time in which all tasks of the guest that had work waited for {resource}.",
        labels=["guest"],
    )
    for guest, usage in used:
        if (pressure := usage.pressure.get(resource)) is not None:
            waiting.add_metric([guest], pressure.some)
            stalled.add_metric([guest], pressure.full)
    return waiting, stalled
