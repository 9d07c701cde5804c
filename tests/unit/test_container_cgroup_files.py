"""Limits and figures of control groups on made-up hierarchies: what this host has not, version 2's controllers above all."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvd.backends.container.cgroup import update
from hvd.backends.container.cgroup.disk import disk_of
from hvd.backends.container.cgroup.limits import resources
from hvd.backends.container.cgroup.usage import usage
from hvd.backends.container_spec import LimitsSpec
from hvd.cgroup.hierarchy import Hierarchy
from hvd.errors import HvdError

NO_PROCESS = 0  # /proc/0 is never there
UID = "u"
VERSION_2 = {
    "cpu.stat": "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 500000\n",
    "memory.stat": "anon 4096\nfile 8192\nfile_mapped 4096\nshmem 0\ninactive_anon 1024\nactive_anon 2048\nunevictable 1024\n",
    "memory.current": "20480\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n",
    "pids.current": "3\n",
    "pids.max": "40\n",
    "pids.events": "max 5\n",
    "cpu.max": "max 100000\n",
    "io.max": "",
    "io.stat": "250:7 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n250:8 \n",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n",
}
VERSION_1 = {
    "cpuacct": {"cpuacct.usage_user": "2000000000\n", "cpuacct.usage_sys": "1000000000\n"},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712\n",
        "memory.memsw.limit_in_bytes": "9223372036854771712\n",
        "memory.usage_in_bytes": "20480\n",
        "memory.stat": "total_rss 4096\ntotal_mapped_file 4096\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.failcnt": "7\n",
    },
    "pids": {"pids.current": "3\n", "pids.max": "40\n", "pids.events": "max 5\n"},
    "cpu": {
        "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 500000000\n",
        "cpu.cfs_quota_us": "-1\n",
        "cpu.cfs_period_us": "100000\n",
    },
    "blkio": {
        "blkio.throttle.io_service_bytes": "250:7 Read 4096\n250:7 Write 8192\n250:7 Sync 8192\nTotal 12288\n",
        "blkio.throttle.io_serviced": "250:7 Read 1\n250:7 Write 2\nTotal 3\n",
        "blkio.throttle.write_bps_device": "",
    },
}


def fill(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


@pytest.fixture
def version_2(tmp_path: Path) -> Hierarchy:
    fill(tmp_path / "hvd" / UID, VERSION_2)
    return Hierarchy({}, tmp_path, frozenset({"cpu", "memory", "pids", "io"}))


@pytest.fixture
def version_1(tmp_path: Path) -> Hierarchy:
    for controller, files in VERSION_1.items():
        fill(tmp_path / controller / "hvd" / UID, files)
    return Hierarchy({controller: tmp_path / controller for controller in VERSION_1}, None, frozenset())


@pytest.mark.parametrize("version", ["version_1", "version_2"])
def test_both_versions_tell_the_same(version: str, request: pytest.FixtureRequest) -> None:
    used = usage(UID, NO_PROCESS, request.getfixturevalue(version))
    assert used is not None
    assert (used.user_seconds, used.system_seconds) == (2.0, 1.0)
    assert (used.resident_bytes, used.charged_bytes, used.memory_limit_bytes) == (8192, 20480, 0)
    assert (used.pids, used.pids_limit) == (3, 40)
    effects = used.effects
    assert (effects.oom_kills, effects.memory_limit_hits, effects.pids_limit_hits) == (2, 7, 5)
    assert (effects.cpu_throttled_periods, effects.cpu_throttled_seconds) == (4, 0.5)
    (disk,) = used.disks.items()
    assert disk[0] == "250:7"  # there is no such device
    assert (disk[1].read_bytes, disk[1].written_bytes, disk[1].reads, disk[1].writes) == (4096, 8192, 1, 2)
    assert used.networks == {}
    if version == "version_2":
        assert (used.pressure["cpu"].some, used.pressure["cpu"].full) == (1.5, 0.5) and "io" not in used.pressure


def test_nothing_of_a_container_that_is_gone(tmp_path: Path) -> None:
    assert usage(UID, NO_PROCESS, Hierarchy({"memory": tmp_path}, tmp_path, frozenset())) is None


def test_files_that_make_no_sense_are_no_failure(version_2: Hierarchy) -> None:
    assert version_2.unified is not None
    for path in (version_2.unified / "hvd" / UID).iterdir():
        path.write_text("\n1 2 3\nsome total=\nx=y z\n")
    assert usage(UID, NO_PROCESS, version_2) is not None


NEW = LimitsSpec(memory_bytes=1 << 20, cpus=0.5, pids=9, disk_write_bytes_per_second=1000)


def test_change_in_version_2(version_2: Hierarchy, tmp_path: Path) -> None:
    group = tmp_path / "hvd" / UID
    update.change(version_2, UID, LimitsSpec(), NEW, tmp_path)
    device = os.stat(tmp_path).st_dev
    # The files are plain here: a write leaves what was longer behind it.
    assert (group / "memory.max").read_text().startswith(str(1 << 20)) and (group / "memory.swap.max").read_text().startswith("0")
    assert (group / "cpu.max").read_text().startswith("50000 100000") and (group / "pids.max").read_text().startswith("9")
    assert (group / "io.max").read_text() == f"{os.major(device)}:{os.minor(device)} wbps=1000"
    update.change(version_2, UID, NEW, LimitsSpec(), tmp_path)
    assert (group / "memory.max").read_text().startswith("max") and (group / "cpu.max").read_text().startswith("max 100000")
    assert "wbps=max" in (group / "io.max").read_text()


def test_change_in_version_1(version_1: Hierarchy, tmp_path: Path) -> None:
    update.change(version_1, UID, LimitsSpec(), NEW, tmp_path)
    for controller, name, content in (
        ("memory", "memory.limit_in_bytes", str(1 << 20)),
        ("memory", "memory.memsw.limit_in_bytes", str(1 << 20)),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("pids", "pids.max", "9"),
        ("blkio", "blkio.throttle.write_bps_device", f"{os.major(os.stat(tmp_path).st_dev)}:"),
    ):
        assert (tmp_path / controller / "hvd" / UID / name).read_text().startswith(content)


def test_version_2_would_kill_where_version_1_refuses(version_2: Hierarchy, tmp_path: Path) -> None:
    with pytest.raises(HvdError) as error:
        update.change(version_2, UID, LimitsSpec(), LimitsSpec(memory_bytes=4095), tmp_path)
    assert (error.value.reason, error.value.metadata["used"]) == ("LIMIT_BELOW_USE", "4096")
    assert (tmp_path / "hvd" / UID / "memory.max").read_text() == "max\n"


def test_what_fails_later_takes_back_what_was_changed_before(version_2: Hierarchy, tmp_path: Path) -> None:
    group = tmp_path / "hvd" / UID
    (group / "pids.max").unlink()
    with pytest.raises(HvdError) as error:
        update.change(version_2, UID, LimitsSpec(), NEW, tmp_path)
    assert error.value.reason == "LIMIT_UNAVAILABLE"
    assert (group / "memory.max").read_text().startswith("max") and (group / "cpu.max").read_text().startswith("max")
    with pytest.raises(HvdError) as error:
        update.change(version_2, "gone", LimitsSpec(), NEW, tmp_path)
    assert error.value.reason == "RUNNER_GONE"


def a_disk(directory: Path, number: str, partition: str = "") -> None:
    """In a made-up /sys: a disk with that number and a partition on it."""
    disk = directory / "devices" / f"disk-{number}"
    (directory / "dev" / "block").mkdir(parents=True, exist_ok=True)
    for path, own in ((disk, number), (disk / "part", partition)):
        if own:
            path.mkdir(parents=True, exist_ok=True)
            (path / "dev").write_text(f"{own}\n")
            (directory / "dev" / "block" / own).symlink_to(path)
    if partition:
        (disk / "part" / "partition").write_text("1\n")


def test_rates_are_about_the_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = os.stat(tmp_path).st_dev
    own = f"{os.major(number)}:{os.minor(number)}"
    a_disk(tmp_path / "whole", own)
    assert disk_of(tmp_path, tmp_path / "whole") == own
    a_disk(tmp_path / "parted", "777:0", own)
    assert disk_of(tmp_path, tmp_path / "parted") == "777:0"
    assert disk_of(tmp_path, tmp_path / "nothing") == own


def test_the_disk_of_a_file_system_that_has_no_number_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs: the mount's source says which."""
    real = os.stat

    def stat(path: object, **options: bool) -> object:
        fake = {tmp_path: SimpleNamespace(st_dev=os.makedev(0, 27)), "/dev/sdx2": SimpleNamespace(st_rdev=os.makedev(8, 18))}
        return fake.get(path) or real(path, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", stat)
    a_disk(tmp_path / "sys", "8:16", "8:18")
    mounts = tmp_path / "mountinfo"
    mounts.write_text("29 1 0:27 /root / rw - btrfs /dev/sdx2 rw\n")
    assert disk_of(tmp_path, tmp_path / "sys", mounts) == "8:16"
    mounts.write_text("29 1 0:27 / /tmp rw - tmpfs tmpfs rw\n")
    assert disk_of(tmp_path, tmp_path / "sys", mounts) == "0:27"


def test_swap_is_limited_where_the_kernel_counts_it(tmp_path: Path) -> None:
    found = Hierarchy({"memory": tmp_path}, None, frozenset())
    limits = LimitsSpec(memory_bytes=1 << 20)
    assert resources(limits, tmp_path, found)["memory"] == {"limit": 1 << 20}
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    assert resources(limits, tmp_path, found)["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
