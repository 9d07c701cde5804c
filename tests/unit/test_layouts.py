"""What C writes and Python reads: every offset of both descriptions, compared by compiling the C one."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hvapi.record import FLAG_LONG, FLAG_UNTIMED, FLAG_USER, RECORD, RECORD_BYTES, Record

from hvd.board import spec
from hvd.board.hot import RECORD_BYTES as RING_RECORD_BYTES
from hvd.board.hot import TAP_RECORDS, Tap
from hvd.board.vcpu import DebugCause, ExitReason
from hvd.trace import counters, points

NATIVE = Path(points.__file__).resolve().parents[1] / "board" / "native"
SHIM = Path(points.__file__).resolve().parents[1] / "backends" / "emulation" / "shim.h"

# Record field -> member of struct hv_record.
RECORD_MEMBERS = {
    **{name: name for name in Record._fields if name not in ("a0", "a1", "a2", "a3")},
    **{f"a{i}": f"arguments[{i}]" for i in range(4)},
}
HEADER_MEMBERS = ("magic", "version", *counters.HEADER_FIELDS)


@pytest.fixture(scope="module")
def c_layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Numbers that the C compiler gives."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed: apt install gcc"
    directory = tmp_path_factory.mktemp("layout")
    (directory / "points.h").write_text(points.c_header())
    expressions = {
        "record": "sizeof(struct hv_record)",
        "counters": "sizeof(struct hv_counters)",
        "points": "offsetof(struct hv_counters, points)",
        "histogram": "offsetof(struct hv_counters, histogram)",
        "disks": "offsetof(struct hv_counters, disks)",
        "nics": "offsetof(struct hv_counters, nics)",
        "disk": "sizeof(struct hv_disk_counter)",
        "nic": "sizeof(struct hv_nic_counter)",
        "tap": "sizeof(struct hv_tap)",
        "tap.records": "offsetof(struct hv_tap, records)",
        "HV_TAP_RECORDS": "HV_TAP_RECORDS",
        "HV_DISKS": "HV_DISKS",
        "HV_NICS": "HV_NICS",
        **{f"disk.{m}": f"offsetof(struct hv_disk_counter, {m})" for m in counters.DISK_FIELDS},
        **{f"nic.{m}": f"offsetof(struct hv_nic_counter, {m})" for m in counters.NIC_FIELDS},
        "HV_POINTS": "HV_POINTS",
        "HV_BUCKETS": "HV_BUCKETS",
        "HV_COUNTERS_MAGIC": "HV_COUNTERS_MAGIC",
        "HV_LAYOUT_VERSION": "HV_LAYOUT_VERSION",
        "HV_RECORD_USER": "HV_RECORD_USER",
        "HV_RECORD_UNTIMED": "HV_RECORD_UNTIMED",
        "HV_RECORD_LONG": "HV_RECORD_LONG",
        **{f"record.{f}": f"offsetof(struct hv_record, {m})" for f, m in RECORD_MEMBERS.items()},
        **{f"header.{m}": f"offsetof(struct hv_counters, {m})" for m in HEADER_MEMBERS},
        **{f"point.{m}": f"offsetof(struct hv_counter, {m})" for m in ("count", "total_ns", "max_ns")},
        **{f"bucket.{i}": f"hv_bucket_ns[{i}]" for i in range(counters.BUCKETS - 1)},
    }
    lines = [
        f'printf("%s\\"{key}\\": %llu", first, (unsigned long long)({c})); first = ", ";'
        for key, c in expressions.items()
    ]
    (directory / "layout.c").write_text(
        '#include <stdio.h>\n#include "board.h"\nint main(void) { const char *first = "{";\n'
        + "\n".join(lines)
        + '\nputs("}"); }\n'
    )
    # board.h looks for points.h next to itself first: give the compiler copies.
    for header in NATIVE.glob("*.h"):
        if header.name != "points.h":
            shutil.copy(header, directory)
    sources = [str(NATIVE / name) for name in ("crossing.c", "clock.c")]
    program = directory / "layout"
    command = [compiler, "-std=gnu11", f"-I{directory}", "-o", str(program), str(directory / "layout.c")]
    for source in sources:
        shutil.copy(source, directory)
        command.append(str(directory / Path(source).name))
    subprocess.run(command, check=True, timeout=60)
    output = subprocess.run([program], check=True, capture_output=True, timeout=10).stdout
    result: dict[str, int] = json.loads(output)
    return result


def test_record(c_layout: dict[str, int]) -> None:
    assert c_layout["record"] == RECORD_BYTES == RING_RECORD_BYTES == 64
    # Where Python's format puts each field: mark one at a time and see which byte changes first.
    zero = RECORD.pack(*[0] * len(Record._fields))
    for index, name in enumerate(Record._fields):
        marked = RECORD.pack(*[1 if i == index else 0 for i in range(len(Record._fields))])
        first = next(i for i in range(RECORD_BYTES) if marked[i] != zero[i])
        assert first == c_layout[f"record.{name}"], name
    assert (
        c_layout["HV_RECORD_USER"],
        c_layout["HV_RECORD_UNTIMED"],
        c_layout["HV_RECORD_LONG"],
    ) == (FLAG_USER, FLAG_UNTIMED, FLAG_LONG)


def test_counters(c_layout: dict[str, int]) -> None:
    assert c_layout["counters"] == counters.COUNTERS_BYTES
    assert c_layout["points"] == counters.POINTS_OFFSET == counters.HEADER_BYTES
    assert c_layout["histogram"] == counters.HISTOGRAM_OFFSET
    assert c_layout["HV_POINTS"] == counters.POINTS
    assert c_layout["HV_BUCKETS"] == counters.BUCKETS
    assert c_layout["HV_COUNTERS_MAGIC"] == counters.MAGIC
    assert c_layout["HV_LAYOUT_VERSION"] == counters.VERSION
    assert tuple(c_layout[f"bucket.{i}"] for i in range(counters.BUCKETS - 1)) == counters.BUCKET_NS
    assert [c_layout[f"point.{m}"] for m in ("count", "total_ns", "max_ns")] == [0, 8, 16]
    for index, name in enumerate(HEADER_MEMBERS):
        marked = counters.HEADER.pack(*[1 if i == index else 0 for i in range(len(HEADER_MEMBERS))])
        assert marked.index(1) == c_layout[f"header.{name}"], name


def test_device_counters(c_layout: dict[str, int]) -> None:
    assert (c_layout["disks"], c_layout["nics"]) == (counters.DISKS_OFFSET, counters.NICS_OFFSET)
    assert (c_layout["disk"], c_layout["nic"]) == (counters.DISK_WORDS * 8, counters.NIC_WORDS * 8)
    assert c_layout["HV_DISKS"] == counters.DISKS == spec.MOST_DISKS
    assert c_layout["HV_NICS"] == counters.NICS == spec.MOST_INTERFACES
    for kind, names in (("disk", counters.DISK_FIELDS), ("nic", counters.NIC_FIELDS)):
        assert [c_layout[f"{kind}.{name}"] for name in names] == [8 * word for word in range(len(names))]


def test_tap(c_layout: dict[str, int]) -> None:
    assert (c_layout["tap"], c_layout["tap.records"]) == (ctypes.sizeof(Tap), Tap.records.offset)
    assert c_layout["HV_TAP_RECORDS"] == TAP_RECORDS


def test_points_fit_the_page() -> None:
    numbers = [point.id for point in points.POINTS]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < counters.POINTS for number in numbers)
    assert all(point.kind < 32 for point in points.POINTS)  # one bit each of `enabled`
    assert all(len(point.arguments) <= 4 for point in points.POINTS)


def test_exit_reasons() -> None:
    body = SHIM.read_text().split("enum hv_exit_reason {", 1)[1].split("}", 1)[0]
    names = [word.strip() for word in body.replace("\n", " ").split(",") if word.strip()]
    assert names == [f"HV_EXIT_{reason.name}" for reason in ExitReason]
    assert [reason.value for reason in ExitReason] == list(range(len(names)))


def test_debug_causes() -> None:
    body = SHIM.read_text().split("enum hv_debug_cause {", 1)[1].split("}", 1)[0]
    names = [word.strip() for word in body.split(",")]
    assert names == ["HV_DEBUG_STEP = 1", "HV_DEBUG_BREAKPOINT", "HV_DEBUG_WATCHPOINT"]
    assert [f"HV_DEBUG_{cause.name}" for cause in DebugCause] == [name.partition(" ")[0] for name in names]
    assert [cause.value for cause in DebugCause] == [1, 2, 3]
