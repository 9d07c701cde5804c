"""The series of a guest's disks and network cards: from its counters page, or as its backend measures them. docs/metrics.md
lists them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from hvd.metrics.meter import Reading

# Series -> (help, field of the counters page that it is).
_DISK = {
    "hvd_guest_disk_read_bytes": ("Bytes that the guest read from its disk.", "read_bytes"),
    "hvd_guest_disk_write_bytes": ("Bytes that the guest wrote to its disk.", "written_bytes"),
    "hvd_guest_disk_errors": ("Operations that ended as an I/O error of the guest.", "errors"),
}
_OPERATIONS = {"read": "reads", "write": "writes", "flush": "flushes", "discard": "discards"}
_NETWORK = {
    "hvd_guest_network_receive_bytes": ("Bytes that the guest received.", "received_bytes"),
    "hvd_guest_network_receive_packets": ("Packets that the guest received.", "received_packets"),
    "hvd_guest_network_receive_dropped": ("Packets for the guest that it had no room for.", "received_dropped"),
    "hvd_guest_network_transmit_bytes": ("Bytes that the guest sent.", "transmitted_bytes"),
    "hvd_guest_network_transmit_packets": ("Packets that the guest sent.", "transmitted_packets"),
    "hvd_guest_network_transmit_dropped": ("Packets of the guest that went nowhere.", "transmitted_dropped"),
}
_LABELS = ("guest", "device")


def device_families(readings: Sequence[Reading]) -> Iterable[Metric]:
    """Devices are named as in the machine's configuration: disk0, net0; a container's disks as the host names them (vda), its
    interfaces as it does (eth0)."""
    counted = [(reading.guest.name, reading.counters) for reading in readings if reading.counters is not None]
    used = [(reading.guest.name, reading.usage) for reading in readings if reading.usage is not None]
    for name, (text, field) in _DISK.items():
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for guest, counters in counted:
            for slot, disk in counters.disks.items():
                family.add_metric([guest, f"disk{slot}"], disk[field])
        for guest, usage in used:
            for device, figures in usage.disks.items():
                if hasattr(figures, field):
                    family.add_metric([guest, device], getattr(figures, field))
        yield family
    operations = CounterMetricFamily(
        "hvd_guest_disk_operations", "Operations that the guest's disk has done.", labels=(*_LABELS, "operation")
    )
    busy = CounterMetricFamily(
        "hvd_guest_disk_busy_seconds", "Time that operations on the guest's disk took.", labels=_LABELS
    )
    for guest, counters in counted:
        for slot, disk in counters.disks.items():
            for operation, field in _OPERATIONS.items():
                operations.add_metric([guest, f"disk{slot}", operation], disk[field])
            busy.add_metric([guest, f"disk{slot}"], disk["busy_ns"] / 1e9)
    for guest, usage in used:
        for device, figures in usage.disks.items():
            operations.add_metric([guest, device, "read"], figures.reads)
            operations.add_metric([guest, device, "write"], figures.writes)
    yield from (operations, busy)
    for name, (text, field) in _NETWORK.items():
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for guest, counters in counted:
            for slot, card in counters.nics.items():
                family.add_metric([guest, f"net{slot}"], card[field])
        for guest, usage in used:
            for device, interface in usage.networks.items():
                family.add_metric([guest, device], getattr(interface, field))
        yield family
