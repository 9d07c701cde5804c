"""Limits changed while a container runs, what it uses, and its memory, through the real daemon and the real client."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

from real_daemon import ROOT, RealDaemon, kernel, wait_for
from test_containers import box, root

from hvd.cgroup.hierarchy import hierarchy

__all__ = ["box", "root"]
SLEEPER = ("sh", "-c", "echo up; exec sleep 1000")
# Keeps so many MiB that nothing can take back: files of a tmpfs.
KEEPER = "dd if=/dev/zero of=/dev/shm/kept bs=1M count=24 2>/dev/null; echo kept; exec sleep 1000"


def group_file(daemon: RealDaemon, guest: str, controller: str, *names: str) -> str:
    directory = hierarchy().directory(controller, daemon.show(guest)["uid"])
    assert directory is not None
    return next((directory / name).read_text().strip() for name in names if (directory / name).exists())


def limits(daemon: RealDaemon, guest: str) -> dict[str, float]:
    return {field: float(value) for field, value in daemon.show(guest)["limits"].items() if float(value)}


def test_limits_of_a_running_container_are_changed(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", *SLEEPER)
    box.wait_logs("c", "up")
    box.ok("update", "c", "--memory", "64M", "--pids", "20", "--cpus", "0.5")
    assert group_file(box, "c", "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert group_file(box, "c", "pids", "pids.max") == "20"
    assert group_file(box, "c", "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert limits(box, "c") == {"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 20}
    box.ok("update", "c", "--memory", "none", "--pids", "30")
    assert group_file(box, "c", "pids", "pids.max") == "30"
    assert limits(box, "c") == {"cpus": 0.5, "pids": 30}
    box.ok("update", "c", "--disk-write-rate", "3M", "--cpus", "none")
    assert str(3 << 20) in group_file(box, "c", "blkio" if "blkio" in hierarchy().version_1 else "io", "blkio.throttle.write_bps_device", "io.max")
    box.stop(signal.SIGKILL)
    box.start()
    box.ok("update", "c", "--disk-write-rate", "none")
    assert limits(box, "c") == {"pids": 30}
    box.ok("kill", "c")
    box.ok("update", "c", "--pids", "7")  # of one that does not run
    box.ok("start", "c")
    wait_for(lambda: group_file(box, "c", "pids", "pids.max") == "7", "the next run has it")


def test_a_limit_is_felt_at_once_and_its_effects_show(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--", "sh", "-c", "echo up; while :; do :; done")
    box.wait_logs("c", "up")
    assert box.show("c")["limit_effects"].get("cpu_throttled_periods", "0") == "0"
    box.ok("update", "c", "--cpus", "0.05")
    wait_for(lambda: int(box.show("c")["limit_effects"].get("cpu_throttled_periods", "0")) > 2, "it is held back")
    assert box.show("c")["limit_effects"]["cpu_throttled_seconds"] > 0
    box.ok("update", "c", "--pids", "3")
    for _ in range(3):
        box.hvctl("exec", "c", "--", "sh", "-c", "sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait")
    assert int(box.show("c")["limit_effects"].get("pids_limit_hits", "0")) > 0


def test_less_memory_than_is_in_use_is_refused_and_nothing_changes(box: RealDaemon) -> None:
    box.ok("run", "-d", "--name", "c", "--image", "box", "--memory", "64M", "--", "sh", "-c", KEEPER)
    box.wait_logs("c", "kept")
    done = box.hvctl("update", "c", "--memory", "8M", "--pids", "9")
    assert done.returncode != 0 and "is in use and cannot be taken back" in done.stderr
    assert box.show("c")["state"] == "RUNNING"
    assert limits(box, "c") == {"memory_bytes": 64 << 20}
    assert group_file(box, "c", "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert group_file(box, "c", "pids", "pids.max") == "max"


def test_limits_that_make_no_sense_and_machines_are_refused(box: RealDaemon) -> None:
    box.ok("create", "--name", "c", "--image", "box", "--", "true")
    done = box.hvctl("update", "c", "--memory", "4096")
    assert done.returncode != 0 and "is below" in done.stderr
    assert box.hvctl("update", "c", "--pids", "many").returncode == 2
    box.ok("create", "--name", "vm", "--kernel", kernel("hello.elf"))
    done = box.hvctl("update", "vm", "--pids", "9")
    assert done.returncode != 0 and "cannot limits" in done.stderr
    box.ok("start", "vm", "--paused")
    done = box.hvctl("mem", "read", "vm", "0x1000", "16", "--pid", "1")
    assert done.returncode != 0 and "this guest is a machine" in done.stderr


def test_its_address_space(box: RealDaemon) -> None:
    for name in ("c", "d"):
        box.ok("run", "-d", "--name", name, "--image", "box", "--memory", "32M", "--", *SLEEPER)
        box.wait_logs(name, "up")
    pids = {name: int(box.show(name)["host_pid"]) for name in ("c", "d")}

    def mapped(name: str) -> dict[str, object]:
        found = json.loads(box.ok("mem", "map", name, "-o", "json").stdout)
        texts = [r for r in found["regions"] if r["owner"].endswith("/busybox") and r["permissions"].startswith("r-x")]
        return {**found, "text": texts[0] if texts else None}

    # The shell has become sleep: it has another address space then.
    wait_for(lambda: all(Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep") for pid in pids.values()), "they sleep")
    wait_for(lambda: all(mapped(name)["text"] for name in pids), "they run busybox")
    maps = {name: mapped(name) for name in pids}
    assert int(maps["c"]["limit_bytes"]) == 32 << 20 and 0 < int(maps["c"]["charged_bytes"]) <= 32 << 20
    assert {int(r["pid"]) for r in maps["c"]["regions"]} == {pids["c"]}
    assert sum(int(r.get("resident_bytes", 0)) for r in maps["c"]["regions"]) > 0
    # Both run the same file of the same layer: the kernel has it in memory once.
    start = int(maps["c"]["text"]["start"])
    frames = {}
    for name, pid in pids.items():
        address = int(maps[name]["text"]["start"])
        read = box.ok("mem", "read", name, hex(address), "64", "--pid", str(pid), "-o", "json").stdout
        assert json.loads(read)["data"]
        found = json.loads(box.ok("mem", "translate", name, f"{pid}:{address:#x}", "-o", "json").stdout)
        frames[name] = found["physical_address"]
        assert found["executable"] is True and not found.get("writable")
    assert frames["c"] == frames["d"]
    assert "RESIDENT" in box.ok("mem", "map", "c").stdout
    # Somebody else's process, and none at all.
    for stranger in (pids["d"], 1, 4194304):
        for words in (
            ("read", "c", hex(start), "16", "--pid", str(stranger)),
            ("translate", "c", f"{stranger}:{start:#x}"),
            ("map", "c", "--pid", str(stranger)),
        ):
            done = box.hvctl("mem", *words)
            assert done.returncode != 0 and "is no process of this container" in done.stderr
    assert "no mapping there" in box.ok("mem", "translate", "c", "0x10").stdout
    done = box.hvctl("mem", "read", "c", "0x10", "16")
    assert done.returncode != 0 and "is not mapped" in done.stderr
    assert "cannot memory-write" in box.hvctl("mem", "write", "c", hex(start), "00").stderr


def series(text: str, name: str, guest: str) -> dict[str, float]:
    """Other labels -> value."""
    pattern = re.compile(rf'^{name}\{{(.*)\}} (\S+)$', re.M)
    return {labels: float(value) for labels, value in pattern.findall(text) if f'guest="{guest}"' in labels}


def test_what_it_uses_in_metrics_and_stats(box: RealDaemon) -> None:
    script = "echo up; dd if=/dev/zero of=/srv/file bs=1M count=4 conv=fsync 2>/dev/null; echo written; while :; do :; done"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--memory", "64M", "--cpus", "0.2", "--pids", "20", "--", "sh", "-c", script)
    box.wait_logs("c", "written")
    found: dict[str, dict[str, float]] = {}

    def value(name: str, labels: str = "") -> float:
        values = series(box.ok("metrics", "c").stdout, name, "c")
        found[name] = values
        return sum(value for key, value in values.items() if labels in key)

    wait_for(lambda: value("hvd_guest_cpu_seconds_total", 'mode="guest"') > 0.1, "its CPU time")
    wait_for(lambda: value("hvd_guest_cpu_throttled_seconds_total") > 0, "it is held back")
    assert not [labels for labels in found["hvd_guest_cpu_seconds_total"] if 'mode="vmm"' in labels]
    assert value("hvd_guest_memory_limit_bytes") == 64 << 20
    text = box.ok("metrics", "c").stdout  # of one moment
    resident, charged = (sum(series(text, f"hvd_guest_memory_{what}_bytes", "c").values()) for what in ("resident", "charged"))
    assert 0 < resident <= charged <= 64 << 20
    assert 1 <= value("hvd_guest_pids") <= 20 and value("hvd_guest_pids_limit") == 20
    assert value("hvd_guest_oom_kills_total") == 0 and "hvd_guest_oom_kills_total" in found
    if (Path("/proc/pressure")).exists() and hierarchy().unified is not None:
        wait_for(lambda: value("hvd_guest_pressure_cpu_waiting_seconds_total") > 0, "it waited for CPU time")
    line = json.loads(box.ok("stats", "c", "--every", "200ms", "--count", "2", "-o", "jsonl").stdout.splitlines()[-1])["stats"][0]
    assert (line["memory_limit_bytes"], line["pids_limit"]) == (str(64 << 20), "20")
    assert 0.02 < line["cpu_ratio"] < 1.5 and int(line["pids"]) >= 1 and int(line["limit_effects"]["cpu_throttled_periods"]) > 0
    assert "PIDS" in box.ok("stats", "c", "--count", "1", "-o", "wide").stdout
    promtool = shutil.which("promtool") or shutil.which("promtool", path=ROOT / "build/tools/usr/bin")
    if promtool:
        text = box.ok("metrics").stdout
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # Bytes on the disk are told when they went there.
    wait_for(lambda: value("hvd_guest_disk_write_bytes_total") >= 4 << 20, "what it wrote")
    cpu = value("hvd_guest_cpu_seconds_total")
    box.ok("kill", "c")
    assert value("hvd_guest_cpu_seconds_total") >= cpu - 0.05 and not series(box.ok("metrics", "c").stdout, "hvd_guest_pids", "c")


def test_a_kill_for_want_of_memory_is_counted(box: RealDaemon) -> None:
    hog = "echo up; while :; do sh -c 'dd if=/dev/zero of=/dev/null bs=64M count=1' 2>/dev/null; done"
    box.ok("run", "-d", "--name", "c", "--image", "box", "--memory", "16M", "--", "sh", "-c", hog)
    wait_for(lambda: sum(series(box.ok("metrics", "c").stdout, "hvd_guest_oom_kills_total", "c").values()) > 0, "the kernel kills")
    assert int(box.show("c")["limit_effects"]["oom_kills"]) > 0
